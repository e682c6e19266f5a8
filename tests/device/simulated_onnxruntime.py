"""ONNX Runtime built for CUDA, without a GPU: the CPU provider computes, on the simulated device memory and when the
simulated device comes to it.

Simulated: the CUDA provider's options, its streams, what it waits for and what it forbids. Real: sessions, bindings,
options and run options, of whichever distribution is installed.
"""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real

from .simulated_cuda import OK, Range, SimulatedCuda

PROVIDER = "CUDAExecutionProvider"
DEFAULTS = {
    **{"device_id": "0", "use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "0"},
    **{"enable_cuda_graph": "0", "has_user_compute_stream": "0", "user_compute_stream": "0"},
}
RUNS_BEFORE_CAPTURE = 2


class SimulatedOnnxRuntime(ModuleType):
    """Stands in for `onnxruntime`. ran: how often each batch size reached a session. broken: graphs that fail to run.
    elsewhere: graphs whose nodes are placed on the processor. stubborn: what the provider takes whatever is asked;
    silent: options of which it does not say what it took."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__("onnxruntime")
        self.cuda = cuda
        self.__version__ = "1.31.1"
        self.__file__ = "nowhere/onnxruntime/__init__.py"
        self.asked: list[dict[str, str]] = []  # of each session its provider's options
        self._made: list[weakref.ref[Session]] = []
        self.ran: Counter[int] = Counter()
        self.broken: set[str] = set()
        self.elsewhere: set[str] = set()
        self.stubborn: dict[str, str] = {}
        self.silent: set[str] = set()
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.memory)

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        """Everything is there."""

    def InferenceSession(
        self, graph: str | bytes, options: Any, *, providers: list[Any], enable_fallback: int = 1
    ) -> Any:
        ((name, asked),) = [(one, {}) if isinstance(one, str) else one for one in providers]
        if name != PROVIDER:
            return real.InferenceSession(graph, options, providers=providers)
        assert enable_fallback == 0
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        if unknown := asked.keys() - DEFAULTS.keys():
            raise RuntimeError(f"unknown provider option: {min(unknown)}")
        self.asked.append(DEFAULTS | asked | self.stubborn)
        session = Session(self, graph, self.asked[-1])
        self._made.append(weakref.ref(session))
        return session

    @property
    def sessions(self) -> list[Session]:
        """Those that are alive."""
        return [one for one in (made() for made in self._made) if one is not None]

    def memory(self, shape: list[int], kind: Any, device: str, index: int) -> Any:
        assert (device, index) == ("cuda", 0)
        error, address = self.cuda.cudaMalloc(int(np.prod(shape)) * np.dtype(kind).itemsize)
        if error != OK:
            raise RuntimeError(error.name)
        return Value(self.cuda, address)


class Value:
    """Device memory that is freed with it."""

    def __init__(self, cuda: SimulatedCuda, address: int) -> None:
        self.cuda, self.address = cuda, address

    def data_ptr(self) -> int:
        return self.address

    def __del__(self) -> None:
        self.cuda.cudaFree(self.address)


class Binding:
    def __init__(self) -> None:
        self.places: dict[str, tuple[bool, str, Any, tuple[int, ...], int]] = {}

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        self.places[name] = (True, device, kind, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        self.places[name] = (False, device, kind, tuple(shape), address)

    def synchronize_inputs(self) -> None:
        """Copies of the host's memory are waited for when they are made."""

    synchronize_outputs = synchronize_inputs


class Session:
    def __init__(self, module: SimulatedOnnxRuntime, graph: str | bytes, options: dict[str, str]) -> None:
        self.module, self.options = module, options
        self.name = Path(graph).stem if isinstance(graph, str) else "a graph"
        quiet = real.SessionOptions()
        quiet.intra_op_num_threads = 1
        self.real = real.InferenceSession(graph, quiet, providers=["CPUExecutionProvider"])
        self.runs: Counter[str] = Counter()  # of each graph of its own
        self.captured: dict[str, dict[str, Any]] = {}
        self.own = None if options["has_user_compute_stream"] == "1" else module.cuda.cudaStreamCreateWithFlags(1)[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __del__(self) -> None:
        if self.own is not None:
            self.module.cuda.cudaStreamDestroy(self.own)

    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {PROVIDER: {name: took for name, took in self.options.items() if name not in self.module.silent}}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        place = "CPUExecutionProvider" if self.name in self.module.elsewhere else PROVIDER
        return [SimpleNamespace(ep_name=place, get_nodes=lambda: [SimpleNamespace(op_type="Conv", name="all")])]

    def run(self, outputs: Any, feeds: dict[str, Any]) -> list[Any]:
        self.module.ran[len(next(iter(feeds.values())))] += 1
        found: list[Any] = self.real.run(outputs, feeds)
        return found

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, run_options: Any = None) -> None:
        cuda = self.module.cuda
        stream = int(self.options["user_compute_stream"]) if self.own is None else int(self.own)
        said = _entries(run_options)
        if self.name in self.module.broken:
            raise RuntimeError(f"CUDNN failure 8 in {self.name}\nat some line")
        if cuda.stream(stream).capture is not None:
            cuda.violate("ONNX Runtime ends the process when its caller captures a run")
        places = dict(binding.places)
        if self.options["enable_cuda_graph"] == "1":
            number = said["gpu_graph_id"]
            if self.runs[number] >= RUNS_BEFORE_CAPTURE and self.captured.setdefault(number, places) != places:
                cuda.violate("a graph of ONNX Runtime's is replayed for other memory than it was captured with")
            self.runs[number] += 1
        (batch,) = {shape[0] for _, _, _, shape, _ in places.values()}
        self.module.ran[batch] += 1
        ranges: dict[bool, list[Range]] = {True: [], False: []}
        for is_input, device, kind, shape, address in places.values():
            if device == "cuda":
                ranges[is_input].append((address, int(np.prod(shape)) * np.dtype(kind).itemsize))

        session = self.real  # not `self`, which would live as long as its stream

        def run() -> None:
            cuda.check([*ranges[True], *ranges[False]])
            bound = session.io_binding()
            for name, (is_input, _, kind, shape, address) in places.items():
                (bound.bind_input if is_input else bound.bind_output)(name, "cpu", 0, kind, shape, address)
            session.run_with_iobinding(bound)

        cuda.enqueue(stream, "engine", run, ranges[True], ranges[False])
        if said["disable_synchronize_execution_providers"] != "1":
            cuda.cudaStreamSynchronize(stream)


def _entries(run_options: Any) -> dict[str, str]:
    found = dict.fromkeys(("disable_synchronize_execution_providers", "gpu_graph_id"), "")
    for name in found if run_options is not None else ():
        try:
            found[name] = run_options.get_run_config_entry(name)
        except RuntimeError:  # there is none
            continue
    return found
