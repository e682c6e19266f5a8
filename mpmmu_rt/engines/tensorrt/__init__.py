"""TensorRT-RTX and TensorRT: two engines of one make. **Not run on any GPU yet.**

engine       loads the engine beside a graph, or builds it
build        an ONNX graph into an engine and its sidecar
sidecar      what an engine is and where it may be loaded
kept         engines that this device had to build
jit          what TensorRT-RTX compiles when an engine first runs
run          a loaded engine: its memory, its CUDA graphs
device_path  pixels to probability on one GPU
cuda         streams, events, memory
"""

from .engine import RTX as RTX
from .engine import TENSORRT as TENSORRT
from .engine import EngineRebuilt as EngineRebuilt
from .engine import TensorRt as TensorRt
