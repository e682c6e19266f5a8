"""The graphs of a bundle run by torch, where TensorRT's engines can't be had: what `DevicePath(load=…)` loads.

So the device path, its streams, its CUDA graphs and the attention pool kernel can be judged on any GPU, and torch
itself is measured in the same way: the whole model by torch, eager or compiled, in one stream and captured as the rest
is. Not in the product, whose runtime is free of torch.

torch puts its work on the stream that it is handed. Inputs and outputs lie in memory of the device path. What lies
between comes from a pool of torch's for each engine: its blocks belong to a stream and stay where they are, also when
torch gives memory back, so that a graph finds in them what another batch size left there and nothing else. Batch sizes
take turns.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from torch import nn

from benchmarks.gpu import torch_graph
from benchmarks.gpu.device_report import AHEAD
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.tensorrt import TENSORRT
from mpmmu_rt.engines.tensorrt.cuda import Resources, Stream
from mpmmu_rt.engines.tensorrt.device_path import DevicePath, WholeGraph
from mpmmu_rt.engines.tensorrt.interface import Tensor
from mpmmu_rt.engines.tensorrt.run import ASKED_NOT_TO, TensorRtSession
from mpmmu_rt.engines.tensorrt.sidecar import Profile
from mpmmu_rt.errors import EngineError, MpmmuError
from mpmmu_rt.spec import Target

PRECISIONS = ("fp32", "fp16")
PROFILE = Profile(1, 32, 128)
PLAIN, LAST = torch_graph.Options(), torch_graph.Options(channels_last=True)
BLOCKS = torch_graph.Options(channels_last=True, blocks=True)
FUSED = torch_graph.Options(channels_last=True, blocks=True, relus=True)
Enqueue = Callable[[Stream, "TorchContext"], object]
Compile = Callable[[nn.Module], Callable[..., tuple[torch.Tensor, ...]]]
_NAMES = dict(torch_graph.TYPES.values())


def set_up() -> None:
    """FP32 means FP32, and cuDNN's kernels are chosen by a race in the run that comes before the capture."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


@functools.cache
def _foreign(address: int) -> torch.cuda.ExternalStream:
    return torch.cuda.ExternalStream(address)


def on_cuda(stream: Stream, context: TorchContext) -> None:
    engine = context.engine
    with torch.cuda.stream(_foreign(stream.address)):
        if not context.prepared:  # what is compiled, loaded or raced for takes memory of which nothing is kept
            context.compute()
            torch.cuda.current_stream().synchronize()
            torch.cuda.empty_cache()
            context.prepared = True
        with torch.cuda.use_mem_pool(engine.pool):
            context.compute()


class TorchEngine:
    """A graph as a torch module: a `DeviceEngine`.

    device: `cuda`, or `cpu` for tests. compiled: makes of the module what runs. enqueue: how work gets on a stream.
    """

    def __init__(
        self,
        graph: Path,
        *,
        profile: Profile = PROFILE,
        device: str = "cuda",
        options: torch_graph.Options = PLAIN,
        compiled: Compile = lambda module: module,
        enqueue: Enqueue = on_cuda,
    ) -> None:
        self.profile, self.device, self.enqueue = profile, device, enqueue
        source = onnx.load(str(graph), load_external_data=False).graph
        self.tensors = {one.name: _tensor(one, True) for one in source.input}
        self.tensors |= {one.name: _tensor(one, False) for one in source.output}
        self.inputs = tuple(one.name for one in source.input)
        self.outputs = tuple(one.name for one in source.output)
        self.run = compiled(torch_graph.load(graph, device, replace(options, cases=profile.max)))
        self.pool: Any = None
        if device == "cuda":
            self.pool = torch.cuda.MemPool()
            torch.cuda.synchronize()  # streams of the device path do not wait for the one that has loaded the weights

    def context(self, batch: int, addresses: Mapping[str, int]) -> TorchContext:
        return TorchContext(self, batch, addresses)

    def close(self) -> None:
        del self.run
        self.pool = None


def _tensor(value: onnx.ValueInfoProto, is_input: bool) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(int(one.dim_value) for one in kind.shape.dim[1:])
    if kind.elem_type not in torch_graph.TYPES or 0 in shape:
        raise EngineError(
            f"`{value.name}` has the type {kind.elem_type} and the sizes {shape}, expected all but the batch fixed",
            hint="export the model again",
        )
    return Tensor(value.name, torch_graph.TYPES[kind.elem_type][0], shape, is_input)


class TorchContext:
    """One batch size of an engine, with torch's view of the memory that it reads and writes."""

    def __init__(self, engine: TorchEngine, batch: int, addresses: Mapping[str, int]) -> None:
        self.engine, self.prepared = engine, False
        self.views = {
            name: view(tensor, batch, addresses[name], engine.device) for name, tensor in engine.tensors.items()
        }

    def execute(self, stream: Stream) -> None:
        try:
            self.engine.enqueue(stream, self)
        except RuntimeError as error:  # torch's errors of CUDA, cuDNN and cuBLAS, and of no memory
            raise EngineError(f"torch failed: {error}", hint="see benchmarks/gpu/torch_engine.py") from error

    def compute(self) -> None:
        """On the current stream."""
        engine = self.engine
        with torch.no_grad():
            said = engine.run(*(self.views[name] for name in engine.inputs))
            for name, value in zip(engine.outputs, said, strict=True):
                self.views[name].copy_(value)

    def capturable(self, stream: Stream) -> bool:
        return True

    def settled(self) -> None:
        """torch keeps what it compiles on its own."""

    def close(self) -> None:
        self.views = {}


def view(tensor: Tensor, batch: int, address: int, device: str) -> torch.Tensor:
    """Foreign memory as a torch tensor [batch, …], which does not own it."""
    shape, kind = (batch, *tensor.shape), _NAMES[tensor.element]
    if device == "cpu":
        raw = (ctypes.c_uint8 * tensor.bytes(batch)).from_address(address)
        return torch.frombuffer(raw, dtype=torch.uint8).view(kind).reshape(shape)
    described: Any = SimpleNamespace(
        __cuda_array_interface__={
            "shape": shape,
            "typestr": tensor.dtype.str,
            "data": (address, False),
            "version": 3,
            "strides": None,
        }
    )
    found = torch.as_tensor(described, device=device)
    if found.data_ptr() != address:
        raise EngineError("torch has copied foreign memory, expected a view of it", hint="use another release of torch")
    return found


# ------------------------------------------------------------ a bundle


def graph_of(bundle: Bundle, name: str, precision: str) -> Path:
    """FP32: the bundle's own graphs. FP16: those that it has for TensorRT, whose feature maps are FP16. The head is
    FP32."""
    if precision == "fp32" or name == "head":
        return bundle.path / str(bundle.entry["graphs"][name])
    return bundle.target_graph(Target(TENSORRT.name, precision), name)


def device_path(
    bundle: Bundle, precision: str, *, graphs: bool = True, ahead: bool = False, **options: Any
) -> DevicePath:
    """The device path with torch's encoders and head around the kernel. ahead: of `DevicePath`. options: of
    `TorchEngine`."""

    def load(name: str, resources: Resources, stream: Stream) -> TorchEngine:
        return TorchEngine(graph_of(bundle, name, precision), **options)

    no_graphs = None if graphs else ASKED_NOT_TO
    return DevicePath(bundle, Target("torch", precision), load, no_graphs=no_graphs, ahead=ahead)


def whole(bundle: Bundle, precision: str, *, graphs: bool = True, **options: Any) -> WholeGraph:
    """The whole model by torch alone. options: of `TorchEngine`."""

    def load(resources: Resources) -> TorchEngine:
        return TorchEngine(graph_of(bundle, "model", precision), **options)

    session = TensorRtSession(load, no_graphs=None if graphs else ASKED_NOT_TO)
    return WholeGraph(bundle, Target("torch", precision), session, "it was asked for")


def problem(target: Target) -> MpmmuError | None:
    """Why torch can't run `target` here, or None."""
    if target.precision not in PRECISIONS:
        return EngineError(f"torch was asked for {target.precision}, expected one of {', '.join(PRECISIONS)}")
    if not torch.cuda.is_available():
        return EngineError("torch can't use a GPU here, expected one", hint="install a torch that was built for CUDA")
    return None


def variants(
    bundle: Bundle, target: Target, **options: Any
) -> dict[str, tuple[Mapping[str, bool], Callable[[], DevicePath | WholeGraph]]]:
    """By name what is asked of a variant, and what makes it: of `torch`, the device path, and torch's own operators for
    all; of `torch-compile`, torch's compiler. All whole models run in one stream. options: of `TorchEngine`.

    In FP16 each comes with its weights channels last as well, which tensor cores read without turning them. Compiled,
    it comes only so: a compilation takes longer than all the rest. Fused (`torch_blocks`) it is channels last, and
    that, the fastest, comes `AHEAD` too.
    """
    set_up()
    half = target.precision == "fp16"
    path, model = (functools.partial(one, bundle, target.precision, **options) for one in (device_path, whole))
    graphs, none, alone = {"graphs": True}, {"graphs": False}, {"graphs": True, "whole_graph": True}
    if target.engine == "torch-compile":
        compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
        name = "torch.compile, CUDA graph" + ", channels last" * half
        return {name: (alone, functools.partial(model, compiled=compiled, options=LAST if half else PLAIN))}
    found: dict[str, tuple[Mapping[str, bool], Callable[[], DevicePath | WholeGraph]]] = {
        "device path, CUDA graph": (graphs, path),
        "device path, no graph": (none, functools.partial(path, graphs=False)),
        "torch eager, CUDA graph": (alone, model),
    }
    if half:
        found["device path, CUDA graph, channels last"] = (graphs, functools.partial(path, options=LAST))
        found["torch eager, CUDA graph, channels last"] = (alone, functools.partial(model, options=LAST))
        fused = functools.partial(path, options=FUSED)
        found["device path, CUDA graph, ReLU fused too"] = (graphs, fused)
        found[f"device path, CUDA graph, ReLU fused too{AHEAD}"] = (graphs, functools.partial(fused, ahead=True))
    found["device path, CUDA graph, blocks fused"] = (graphs, functools.partial(path, options=BLOCKS))
    return found
