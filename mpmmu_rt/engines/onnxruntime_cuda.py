"""ONNX Runtime on an NVIDIA GPU, FP32 and FP16: for GPUs that TensorRT here can't serve.

Every node runs on the CUDA provider or the graph is not loaded: the fallback to the processor is forbidden, and where
each node went is read back. With CuPy it runs the encoders and the head on the device path, around the fused attention
pool. Without, or where the kernel or the head can't be had, feature maps stay on the GPU all the same, but the
attention pool is ONNX Runtime's operators, and the stacking head runs on the host: a warning and a remark say so.
Both ways have run on an H100 (benchmarks/results/nvidia-h100/device_path_onnxruntime.md).

cuDNN chooses how to convolve by the batch, and not always in the precision that was asked for. With `use_tf32=0`, and
its choice by heuristics or by a race, embeddings of 128 cases were 3.5e-4 off in FP32 on an H100 and an H200, those of
32 by 1e-5; with TF32 forbidden to all of NVIDIA's libraries that choice can't be set up. Its default is right at both
(docs/gpu.md): FP32 asks for that, and the sizes that `mpmmu_rt.verify` asks are the only ones that run: `SIZES`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle, HeadGraph, target_folder
from mpmmu_rt.errors import EngineError, MissingPackage, MpmmuError
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from . import Traits
from .onnxruntime import EXACT_GRAPHS, OnnxRuntimeSession, installation_problem, session_options
from .shared.device_code import lacks
from .shared.gpu import gpu
from .shared.host_head import HostHead, InSizes, filled, in_parts
from .shared.onnxruntime_device import NOT_CAPTURED, SessionEngine, on_stream
from .shared.onnxruntime_lanes import BoundEmbedder, Memory, failed, first_line
from .tensorrt.cuda import Resources, Stream
from .tensorrt.device_path import DevicePath, NoKernel
from .tensorrt.sidecar import Profile

PROVIDER = "CUDAExecutionProvider"
PROVIDER_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",  # FP32 means FP32
}
# How cuDNN chooses, by the precision of a graph: never by a race, whose winner may be another in every process. What
# one case says in FP16 was another in each session on an H100 all the same (docs/edge.md).
SEARCHES = {"fp32": "DEFAULT", "fp16": "HEURISTIC"}
_PURPOSE = "the targets onnxruntime-cuda:fp32 and onnxruntime-cuda:fp16"
_INSTALL = "pip uninstall -y onnxruntime, then pip install 'mpmmu-rt[cuda-ort]'"
SIZES = (1, 2, 8, 32)  # what `mpmmu_rt.verify.BATCHES` comes to: 7 is filled up to 8, and 35 is 32 and 3, filled up
# x uint8 [1, 1, 1, 4] ─ Cast, a kernel of ONNX Runtime's own ─ 1x1 Conv, of cuDNN, weight 3 ─ y float32 [1, 1, 1, 4]
_PROBE = base64.b64decode(
    "CAoSADp8ChcKAXgSAWEiBENhc3QqCQoCdG8YAaABAgoPCgFhCgF3EgF5IgRDb252EgFwKhMIAQgBCAEIARABQgF3SgQAAEBAWhsKAXgSFgoUCAIS"
    "EAoCCAEKAggBCgIIAQoCCARiGwoBeRIWChQIARIQCgIIAQoCCAEKAggBCgIIBEIECgAQEg=="
)


class HostHeadInstead(RuntimeWarning):
    """The device path can't run here: the attention pool is ONNX Runtime's, and the head runs on the host."""


class OnnxRuntimeCuda:
    """`onnxruntime-cuda`. FP16 runs graphs of their own, whose types are the precision; the attention pool is FP32."""

    name = "onnxruntime-cuda"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    head: HeadGraph = "head"
    traits = Traits(gpu=True)

    def __init__(self, **options: str) -> None:
        """options: of the CUDA provider, instead of what is chosen here: for what is measured and not chosen yet."""
        self._options = options

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
        if (here := gpu()) is None:
            return EngineError(
                f"the target {self.name} needs an NVIDIA GPU and its driver, and there is none here",
                hint="graphs can be written here (`mpmmu-rt export`) and run where there is a GPU",
            )
        if reason := _lacks(here.capability):
            return EngineError(
                f"onnxruntime-gpu {runtime.__version__} has nothing that runs on the {here.name}: {reason}",
                hint="use the target `tensorrt`, or another release of onnxruntime-gpu",
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
        return SizedSession(self._open(graph, threads, precision), graph)

    def pipeline(
        self, bundle: Bundle, precision: str, threads: int, *, host_head: bool = False
    ) -> DevicePath | HostHead:
        """The device path, or, where it can't be had, encoders and pool as sessions and the head on the host: with the
        warning `HostHeadInstead`. host_head: that, without a warning. Raises as `load` does."""
        target, reason = Target(self.name, precision), "it was asked for"
        if not host_head:
            try:
                return self._device_path(bundle, target, threads)
            except NoKernel as error:
                reason = str(error)
                warnings.warn(
                    f"{target} runs without the fused attention pool, and the head on the host: {reason}",
                    HostHeadInstead,
                    stacklevel=2,
                )
        remark = f"the attention pool runs as operators of ONNX Runtime, and the head on the host: {reason}"

        def embedder() -> InSizes:
            return InSizes(self.embedder(bundle, precision, threads), SIZES)

        return HostHead.load(bundle, target, threads, embedder, (remark,))

    def _device_path(self, bundle: Bundle, target: Target, threads: int) -> DevicePath:
        """Raises `NoKernel` where it can't be had."""
        try:
            require("cuda.bindings.runtime", "the device path", "cuda-ort")
        except MissingPackage as error:
            raise NoKernel(str(error)) from error

        def engine(name: str, resources: Resources, stream: Stream) -> SessionEngine:
            modality = next((one for one in MODALITIES if one == name), None)
            graph = self.graph(bundle, modality, target.precision) if modality else bundle.graph(self.head)
            try:
                session = self._open(graph, threads, target.precision if modality else "fp32", on_stream(stream))
            except EngineError as error:
                if modality:
                    raise
                raise NoKernel(f"the stacking head can't run on the GPU: {error}") from error
            runtime, profile = require("onnxruntime", _PURPOSE), Profile(SIZES[0], SIZES[-1], SIZES[-1])
            own_graphs = self._options.get("enable_cuda_graph") == "1"
            return SessionEngine(runtime, session, graph, profile, stream, own_graphs=own_graphs)

        return DevicePath(bundle, target, engine, no_graphs=NOT_CAPTURED, sizes=SIZES)

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        if precision == "fp32":
            return bundle.graph(EXACT_GRAPHS[modality])
        return bundle.target_graph(Target(self.name, precision), modality)

    def folder(self, precision: str) -> str:
        """Where a bundle holds the encoders in `precision`, and their weights; FP32 runs the bundle's own."""
        return target_folder(self.name, precision)

    def embedder(self, bundle: Bundle, precision: str, threads: int) -> BoundEmbedder:
        """Encoders and pool as sessions, for whatever batch they are given: `pipeline` gives them `SIZES` alone."""
        graphs: dict[str, Path] = {modality: self.graph(bundle, modality, precision) for modality in MODALITIES}
        graphs["attention_pool"] = bundle.graph(EXACT_GRAPHS["attention_pool"])
        runtime = require("onnxruntime", _PURPOSE)
        memory = Memory("cuda", partial(allocate, runtime, "cuda"))
        sessions = {
            name: self._open(path, threads, precision if name in MODALITIES else "fp32")
            for name, path in graphs.items()
        }
        return BoundEmbedder(sessions, graphs, memory)

    def _open(self, graph: Path, threads: int, precision: str, more: Mapping[str, str] | None = None) -> Any:
        """precision: of the graph."""
        runtime = require("onnxruntime", _PURPOSE)
        _load_libraries()
        asked = {**PROVIDER_OPTIONS, "cudnn_conv_algo_search": SEARCHES[precision], **self._options}
        try:
            session = _session(runtime, str(graph), threads, asked | dict(more or {}))
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime can't load {graph.name} so that all of it runs on the GPU: {first_line(error)}",
                hint="`mpmmu-rt doctor` says whether the GPU can be used; nothing falls back to the processor",
            ) from error
        require_provider(session, graph, PROVIDER)
        require_options(session, graph, asked)
        return session


def _session(runtime: Any, graph: str | bytes, threads: int, provider: Mapping[str, str]) -> Any:
    options = session_options(runtime, threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return runtime.InferenceSession(graph, options, providers=[(PROVIDER, dict(provider))], enable_fallback=0)


def require_options(session: Any, graph: Path, asked: Mapping[str, str]) -> None:
    """Raise `EngineError` where the CUDA provider of `session` says that it took something else than was asked of it,
    or does not say what: TF32 is off, or the graph is not loaded."""
    took = session.get_provider_options().get(PROVIDER, {})
    for name, want in asked.items():
        if (got := took.get(name)) is None or str(got) != want:
            raise EngineError(
                f"{graph.name} was to run with {name} {want} on {PROVIDER}, which says {got or 'nothing of it'}",
                hint="report this, with the version of onnxruntime-gpu: results would be others than were proven",
            )


class SizedSession(OnnxRuntimeSession):
    """Runs batches of `SIZES` alone: parts of larger ones, and the last part filled up with zeros."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        lengths = {name: len(array) for name, array in feeds.items()}
        if len(set(lengths.values())) != 1:  # else zeros would take the place of what is missing
            got = ", ".join(f"{count} of {name}" for name, count in lengths.items()) or "nothing"
            raise failed(self._graph.name, ValueError(f"it is given {got}, expected as many cases of each input"))
        parts: list[dict[str, Array]] = []
        for rows, size in in_parts(next(iter(lengths.values())), SIZES):
            found = super().run({name: filled(array[rows], size) for name, array in feeds.items()})
            parts.append({name: array[: rows.stop - rows.start] for name, array in found.items()})
        if not parts:  # of no cases
            return super().run(feeds)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}


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
def _lacks(capability: int) -> str | None:
    """Why onnxruntime-gpu has no code for the GPU, by its own library; None if it has, or if nobody can tell."""
    folder = Path(str(require("onnxruntime", _PURPOSE).__file__)).parent / "capi"
    return lacks(folder / "libonnxruntime_providers_cuda.so", capability)


@cache
def _cannot_compute() -> str | None:
    """Why nothing can be computed on the GPU, or None: asked with a convolution, as ONNX Runtime loads without cuDNN,
    and with a kernel of its own."""
    failures, runtime = _load_libraries(), require("onnxruntime", _PURPOSE)
    given = np.arange(4, dtype=np.uint8).reshape(1, 1, 1, 4)
    try:
        session = _session(runtime, _PROBE, 1, PROVIDER_OPTIONS)
        require_provider(session, Path("a convolution"), PROVIDER)
        (got,) = session.run(None, {"x": given})
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's share no base; all mean that nothing runs
        return "; ".join(failures) or first_line(error)
    if not np.array_equal(got, 3 * given.astype(np.float32)):
        return f"3 times {given.ravel().tolist()} came out as {np.ravel(got).tolist()}"
    return None


ENGINE = OnnxRuntimeCuda()
