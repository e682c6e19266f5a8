"""TensorRT's runtime without a GPU: an engine stands for the ONNX graph that it was built from, and ONNX Runtime
executes that on the simulated device memory when the simulated device comes to it.

Simulated: Runtime, engine, runtime configuration, execution context, what they refuse, and how they refuse it (`False`,
`None` and a line in the log). Real: everything else of `tensorrt_rtx`, its parser and builder included, which note what
they build. As `tensorrt`, what only TensorRT-RTX has is hidden.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnxruntime
import tensorrt_rtx as real  # type: ignore[import-untyped]

from .simulated_cuda import Range, SimulatedCuda

_ONLY_RTX = frozenset({"ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"})
_KINDS = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "BFLOAT16": "BF16", "UINT8": "UINT8", "INT64": "INT64"}
_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "UINT8": 1, "INT64": 8}
SCRATCH_BYTES = 1000
SAYS_NO = "the simulated TensorRT says no"


@dataclass(frozen=True)
class Binding:
    name: str
    kind: str
    shape: tuple[int, ...]  # the batch is -1
    onnx_type: int
    is_input: bool

    def bytes(self, batch: int) -> int:
        size = batch * _BYTES[self.kind]
        for length in self.shape[1:]:
            size *= length
        return size


@functools.cache
def loaded(graph: Path, digest: str) -> tuple[tuple[Binding, ...], onnxruntime.InferenceSession]:
    model = onnx.load(graph, load_external_data=False)

    def binding(value: onnx.ValueInfoProto, is_input: bool) -> Binding:
        tensor = value.type.tensor_type
        shape = tuple(one.dim_value or -1 for one in tensor.shape.dim)
        kind = _KINDS[onnx.TensorProto.DataType.Name(tensor.elem_type)]
        return Binding(value.name, kind, shape, tensor.elem_type, is_input)

    found = [binding(one, True) for one in model.graph.input] + [binding(one, False) for one in model.graph.output]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return tuple(found), onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class SimulatedTensorRt(ModuleType):
    """Stands in for `tensorrt_rtx` or `tensorrt`.

    built: engine → its graph and the largest batch. refuse: calls that answer as they do when they fail. idle: graphs
    whose engines say that they ran and do nothing. capturable: what contexts of TensorRT-RTX say of themselves.
    """

    def __init__(self, name: str, cuda: SimulatedCuda) -> None:
        super().__init__(name)
        self.cuda = cuda
        self.built: dict[str, tuple[Path, int]] = {}
        self.refuse: set[str] = set()
        self.idle: set[str] = set()
        self.capturable = True
        self.contexts = 0  # alive
        self.compiled: list[tuple[str, int]] = []  # graph and batch, whenever a run waited for a compiler
        self.gpu = "the GPU that is simulated"
        self.__version__ = real.__version__

    def __getattr__(self, name: str) -> Any:
        if self.__name__ == "tensorrt" and name in _ONLY_RTX:
            raise AttributeError(name)
        return getattr(real, name)

    def note(self, engine: bytes, graph: Path, largest: int) -> None:
        self.built[hashlib.sha256(engine).hexdigest()] = graph, largest

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Parser:
        return Parser(self, real.OnnxParser(network, logger))

    def Builder(self, logger: Any) -> Builder:
        return Builder(self, real.Builder(logger))


class Parser:
    def __init__(self, trt: SimulatedTensorRt, parser: Any) -> None:
        self._trt, self._parser = trt, parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def parse_from_file(self, path: str) -> bool:
        _PARSED.path = Path(path)
        return bool(self._parser.parse_from_file(path))


_PARSED = threading.local()


class Builder:
    def __init__(self, trt: SimulatedTensorRt, builder: Any) -> None:
        self._trt, self._builder = trt, builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        engine = self._builder.build_serialized_network(network, config)
        if engine is not None:
            self._trt.note(bytes(engine), _PARSED.path, 32)
        return engine


@dataclass
class Runtime:
    trt: SimulatedTensorRt
    logger: Any

    def deserialize_cuda_engine(self, engine: bytes) -> Engine | None:
        known = self.trt.built.get(hashlib.sha256(engine).hexdigest())
        if known is None or "deserialize_cuda_engine" in self.trt.refuse:
            self.logger.log(real.ILogger.Severity.ERROR, SAYS_NO)
            return None
        graph, largest = known
        digest = hashlib.sha256(graph.read_bytes()).hexdigest()
        return Engine(self, graph.stem, *loaded(graph, digest), largest)


class Engine:
    def __init__(self, runtime: Runtime, graph: str, bindings: Sequence[Binding], session: Any, largest: int) -> None:
        self.graph = graph
        self.runtime, self.bindings, self.session, self.largest = runtime, bindings, session, largest
        self.num_io_tensors = len(bindings)
        self.device_memory_size_v2 = SCRATCH_BYTES

    def binding(self, name: str) -> Binding:
        return next(one for one in self.bindings if one.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self.bindings[index].name

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if self.binding(name).is_input else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return real.DataType.__members__[self.binding(name).kind]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.binding(name).shape

    def create_runtime_config(self) -> Config:
        return Config() if self.runtime.trt.__name__ == "tensorrt" else RtxConfig(trt=self.runtime.trt)

    def create_execution_context(self, how: Any) -> Context | None:
        trt = self.runtime.trt
        if "create_execution_context" in trt.refuse:
            self.runtime.logger.log(real.ILogger.Severity.ERROR, SAYS_NO)
            return None
        return Context(self, how)


@dataclass(eq=False)
class Config:
    """Of TensorRT 11."""

    strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


@dataclass(eq=False)
class RtxConfig(Config):
    dynamic_shapes_kernel_specialization_strategy: Any = real.DynamicShapesKernelSpecializationStrategy.LAZY
    cuda_graph_strategy: Any = real.CudaGraphStrategy.DISABLED
    trt: Any = None
    cache: weakref.ref[RuntimeCache] | None = None  # which it does not own

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = weakref.ref(cache)
        return True


@dataclass(eq=False)
class RuntimeCache:
    """What was compiled: graphs and batches. Its blob is of one release and one GPU."""

    trt: SimulatedTensorRt
    held: set[tuple[str, int]] = field(default_factory=set)

    def serialize(self) -> bytes:
        if self.trt.cuda.capturing():
            self.trt.cuda.violate("a runtime cache is read during a capture")
        return json.dumps([self.trt.__version__, self.trt.gpu, sorted(self.held)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        version, gpu, held = json.loads(blob)
        if (version, gpu) != (self.trt.__version__, self.trt.gpu):
            return False
        self.held = {(graph, batch) for graph, batch in held}
        return True


@dataclass
class State:
    """All that a captured run depends on."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: Range = (0, 0)


class Context:
    def __init__(self, engine: Engine, how: Config) -> None:
        self.engine, self.trt = engine, engine.runtime.trt
        self._how = weakref.ref(how)  # which whoever made the context has to keep
        if how.strategy != real.ExecutionContextAllocationStrategy.USER_MANAGED:
            self.trt.cuda.violate("a context that allocates on its own")
        self.state, self.version, self.ran = State(), 0, False
        self.trt.contexts += 1
        self.alive = [True]  # shared with what was enqueued, which must not keep the context

    def __getattribute__(self, name: str) -> Any:
        if name == "is_stream_capturable" and object.__getattribute__(self, "trt").__name__ == "tensorrt":
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def __del__(self) -> None:
        self.trt.contexts -= 1
        self.alive[0] = False

    @property
    def how(self) -> Config:
        how = self._how()
        if how is None:
            self.trt.cuda.violate("a context has outlived its runtime configuration")
        assert how is not None
        return how

    def compile(self, batch: int) -> None:
        """TensorRT-RTX does, at the first run of a context, what its runtime cache does not hold."""
        if not isinstance(self.how, RtxConfig):
            return
        held, key = self.how.cache, (self.engine.graph, batch)
        cache = None if held is None else held()
        if held is not None and cache is None:
            self.trt.cuda.violate("a context has outlived its runtime cache")
        if cache is None or key not in cache.held:
            self.trt.compiled.append(key)
        if cache is not None:
            cache.held.add(key)

    def no(self, what: str) -> bool:
        if what in self.trt.refuse:
            self.engine.runtime.logger.log(real.ILogger.Severity.ERROR, SAYS_NO)
        return what in self.trt.refuse

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= SCRATCH_BYTES
        self.trt.cuda.check([(memory, size)])
        self.state.scratch = (memory, size)
        self.version += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        want = self.engine.binding(name)
        fits = want.is_input and shape[1:] == want.shape[1:] and 1 <= shape[0] <= self.engine.largest
        if self.no("set_input_shape") or not fits:
            return False
        self.state.shapes[name] = shape
        self.version += 1
        return True

    def infer_shapes(self) -> list[str]:
        return [one.name for one in self.engine.bindings if one.is_input and one.name not in self.state.shapes]

    @property
    def batch(self) -> int:
        (batch,) = {shape[0] for shape in self.state.shapes.values()}
        return batch

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, *self.engine.binding(name).shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.no("set_tensor_address") or not any(one.name == name for one in self.engine.bindings) or memory % 256:
            return False
        self.state.addresses[name] = memory
        self.version += 1
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        assert isinstance(self.how, RtxConfig)
        self.trt.cuda.stream(stream)
        eager = real.DynamicShapesKernelSpecializationStrategy.EAGER
        return self.trt.capturable and self.how.dynamic_shapes_kernel_specialization_strategy == eager

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, state, batch = self.trt.cuda, self.state, self.batch
        if self.no("execute_async_v3") or self.infer_shapes() or not state.scratch[0]:
            return False
        if set(state.addresses) != {one.name for one in self.engine.bindings}:
            return False
        if cuda.capturing() and not self.ran:
            cuda.violate("the first run of a context is captured: what it allocates and compiles can't be")
        if not self.ran:
            self.compile(batch)
        self.ran = True
        ranges = {one.name: (state.addresses[one.name], one.bytes(batch)) for one in self.engine.bindings}
        reads = [ranges[one.name] for one in self.engine.bindings if one.is_input]
        writes = [ranges[one.name] for one in self.engine.bindings if not one.is_input] + [state.scratch]
        version, alive, engine = self.version, self.alive, self.engine
        current = self.__dict__  # without keeping the context itself

        def run() -> None:
            if not alive[0] or current["version"] != version:
                cuda.violate("a context was changed or freed while a run or a graph of it was left")
            cuda.check([*reads, *writes])
            if engine.graph in engine.runtime.trt.idle:
                return
            binding = engine.session.io_binding()
            for one in engine.bindings:
                bind = binding.bind_input if one.is_input else binding.bind_output
                shape = [batch, *one.shape[1:]]
                bind(one.name, "cpu", 0, one.onnx_type, shape, ranges[one.name][0])
            engine.session.run_with_iobinding(binding)

        cuda.enqueue(stream_handle, "engine", run, reads, writes)
        return True
