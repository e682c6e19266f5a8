"""ONNX Runtime on an NVIDIA GPU, FP32 and FP16: for GPUs that TensorRT here can't serve. **Not run on any GPU yet.**

Every node runs on the CUDA provider or the graph is not loaded: the fallback to the processor is forbidden, and where
each node went is read back. Feature maps stay on the GPU; the embedding comes back to the host, where ONNX Runtime's
CPU provider, which onnxruntime-gpu has as well, runs the stacking head: its tree operator has no CUDA kernel, and the
head that was proven at export is then the very one that runs.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle, HeadGraph, target_folder
from mpmmu_rt.errors import EngineError, MissingPackage, MpmmuError
from mpmmu_rt.spec import MODALITIES, Modality, Target

from . import Traits
from .onnxruntime import EXACT_GRAPHS, OnnxRuntimeSession, installation_problem, session_options
from .shared.gpu import gpu
from .shared.host_head import HostHead
from .shared.onnxruntime_lanes import BoundEmbedder, Memory, first_line

PROVIDER = "CUDAExecutionProvider"
PROVIDER_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",  # FP32 means FP32
    # The kernel for a shape by cuDNN's rules, not by a race: the same in every process, and no search per batch size.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_PURPOSE = "the targets onnxruntime-cuda:fp32 and onnxruntime-cuda:fp16"
_INSTALL = "pip uninstall -y onnxruntime, then pip install 'mpmmu-rt[cuda]'"


class OnnxRuntimeCuda:
    """`onnxruntime-cuda`. FP16 runs graphs of their own, whose types are the precision; the attention pool is FP32."""

    name = "onnxruntime-cuda"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    head: HeadGraph = "head"
    traits = Traits()

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        if problem := installation_problem(_PURPOSE):
            return MissingPackage(str(problem), hint=_INSTALL) if isinstance(problem, MissingPackage) else problem
        runtime = require("onnxruntime", _PURPOSE)
        built_with = runtime.get_available_providers()  # with, not able to run: that is asked below
        if PROVIDER not in built_with:
            return EngineError(
                f"onnxruntime {runtime.__version__} was built with {', '.join(built_with)}, expected {PROVIDER}",
                hint=_INSTALL,
            )
        if not hasattr(runtime.InferenceSession, "get_provider_graph_assignment_info"):
            return EngineError(
                f"onnxruntime-gpu {runtime.__version__} can't tell where the nodes of a graph run, expected a release "
                "that can",
                hint="pip install -U onnxruntime-gpu",
            )
        if gpu() is None:
            return EngineError(
                f"the target {self.name} needs an NVIDIA GPU and its driver, and there is none here",
                hint="graphs can be written here (`mpmmu-rt export`) and run where there is a GPU",
            )
        if reason := _cannot_compute():
            return EngineError(
                f"onnxruntime-gpu {runtime.__version__} can't use the GPU that is here: {reason}",
                hint="pip install 'onnxruntime-gpu[cuda,cudnn]' brings the CUDA libraries; the driver must suit them",
            )
        return None

    def version(self) -> str:
        return str(require("onnxruntime", _PURPOSE).__version__)

    def load(self, graph: Path, precision: str, threads: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self._open(graph, threads), graph)

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> HostHead:
        return HostHead.load(
            bundle, Target(self.name, precision), threads, lambda: self._embedder(bundle, precision, threads)
        )

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        if precision == "fp32":
            return bundle.graph(EXACT_GRAPHS[modality])
        return bundle.target_graph(Target(self.name, precision), modality)

    def folder(self, precision: str) -> str:
        """Where a bundle holds the encoders in `precision`, and their weights; FP32 runs the bundle's own."""
        return target_folder(self.name, precision)

    def _embedder(self, bundle: Bundle, precision: str, threads: int) -> BoundEmbedder:
        graphs: dict[str, Path] = {modality: self.graph(bundle, modality, precision) for modality in MODALITIES}
        graphs["attention_pool"] = bundle.graph(EXACT_GRAPHS["attention_pool"])
        runtime = require("onnxruntime", _PURPOSE)
        memory = Memory("cuda", partial(allocate, runtime, "cuda"))
        return BoundEmbedder({name: self._open(path, threads) for name, path in graphs.items()}, graphs, memory)

    def _open(self, graph: Path, threads: int) -> Any:
        runtime = require("onnxruntime", _PURPOSE)
        _load_libraries()
        options = session_options(runtime, threads)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = runtime.InferenceSession(
                str(graph), options, providers=[(PROVIDER, PROVIDER_OPTIONS)], enable_fallback=0
            )
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime can't load {graph.name} so that all of it runs on the GPU: {first_line(error)}",
                hint="`mpmmu-rt doctor` says whether the GPU can be used; nothing falls back to the processor",
            ) from error
        require_provider(session, graph, PROVIDER)
        return session


def require_provider(session: Any, graph: Path, provider: str) -> None:
    """Raise `EngineError` unless every node of `session`, made from `graph`, runs on `provider`.

    session: made with `session.record_ep_graph_assignment_info`, without which ONNX Runtime raises.
    """
    nodes = [(part.ep_name, node) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    strangers = [f"{node.op_type} `{node.name}` on {found}" for found, node in nodes if found != provider]
    if strangers or not nodes or session.get_providers()[0] != provider:
        got = f"{len(strangers)} nodes elsewhere, {strangers[0]} first" if strangers else f"{len(nodes)} nodes there"
        raise EngineError(
            f"{graph.name} was asked to run on {provider} and got {got} ({', '.join(session.get_providers())})",
            hint="report this: nothing may run on a provider that was not asked for",
        )


def allocate(runtime: Any, device: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[object, int]:
    """Memory of `device`, owned by an `OrtValue`, and its address. Raises `EngineError`."""
    try:
        value = runtime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, device, 0)
        return value, int(value.data_ptr())
    except Exception as error:
        raise EngineError(
            f"ONNX Runtime can't have {dtype}{list(shape)} on `{device}`: {first_line(error)}",
            hint="use smaller batches",
        ) from error


@cache
def _load_libraries() -> tuple[str, ...]:
    """Load CUDA and cuDNN from NVIDIA's packages, or the system; what could not be loaded, in ONNX Runtime's words."""
    runtime = require("onnxruntime", _PURPOSE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints its failures, and raises none
        runtime.preload_dlls()
    return tuple(line for line in said.getvalue().splitlines() if line.startswith("Failed to load"))


@cache
def _cannot_compute() -> str | None:
    """Why no memory of the GPU can be had, which takes its libraries and its driver; None if it can."""
    failures = _load_libraries()
    try:
        allocate(require("onnxruntime", _PURPOSE), "cuda", (1,), np.dtype(np.float32))
    except EngineError as error:
        return "; ".join(failures) or str(error)
    return None


ENGINE = OnnxRuntimeCuda()
