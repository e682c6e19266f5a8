"""TensorRT-RTX and TensorRT. Loading and running have **not run on any GPU yet**; building is in `tensorrt_build`.

An engine is a file beside its graph: `mammography.onnx`, `mammography.engine` and the sidecar
`mammography.engine.json`, which is read first. One that was built for another version, GPU, graph or profile is not
loaded: it is built again from the graph, in memory, and the session says why (`rebuilt`, and a warning).
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import MAX_FILE_BYTES, Bundle, HeadGraph
from mpmmu_rt.errors import BundleError, EngineError, MpmmuError
from mpmmu_rt.files import read_bounded
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .host_head import HostHead
from .staged import StagedEmbedder
from .tensorrt_build import RTX_CAPABILITIES, Gpu, build, gpu, library, log
from .tensorrt_sidecar import Flavour, Here, Profile, Sidecar, explain, graph_digest, sidecar_path

_HINT = "`mpmmu-rt verify BUNDLE` tells whether the bundle or the input is at fault"


class EngineRebuilt(RuntimeWarning):
    """An engine could not be loaded and was built again."""


class TensorRtSession:
    """A loaded engine with a stream, an execution context and buffers of its own. Threads take turns.

    Device and pinned host buffers are allocated once, for the profile's largest batch. Batches of `graphs` run as
    CUDA graphs, captured here, from a context of their own: a graph is valid only while its context is untouched.
    """

    def __init__(
        self, trt: Any, engine: bytes, profile: Profile, *, graphs: tuple[int, ...] = (), rebuilt: str | None = None
    ) -> None:
        """engine: bytes whose digest was checked. Raises `EngineError` with TensorRT's log."""
        self._trt = trt
        self._lock = threading.Lock()
        self.rebuilt = rebuilt
        self.profile = profile
        log(trt).clear()
        self._runtime = trt.Runtime(log(trt).logger)
        self._engine = self._need(self._runtime.deserialize_cuda_engine(engine), "can't load the engine")
        self._cupy = require("cupy", "running a TensorRT engine")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])
        pinned = require("cupyx", "running a TensorRT engine").empty_pinned
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._host: dict[str, Array] = {}
        self._device: dict[str, Any] = {}
        for name in names:
            shape = (profile.max, *tuple(self._engine.get_tensor_shape(name))[1:])
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            self._host[name] = pinned(shape, dtype)
            self._device[name] = self._cupy.empty(shape, dtype)
        self._cupy.cuda.get_current_stream().synchronize()
        self._contexts: list[Any] = []  # a CUDA graph is valid only while its context lives
        self._context = self._make_context()
        self._batch = 0  # that the context is set to
        self._captured = {batch: self._capture(batch) for batch in graphs}  # batch → what launches it

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            if not self._device:
                raise EngineError("the session is closed, expected an open one", hint="make another Predictor")
            try:
                return self._run(feeds)
            except self._cupy.cuda.runtime.CUDARuntimeError as error:
                raise EngineError(f"{self._trt.__name__} failed while running: {error}", hint=_HINT) from error

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        batch = self._check(feeds)
        for name, array in feeds.items():
            np.copyto(self._host[name][:batch], array)
            self._device[name][:batch].set(self._host[name][:batch], stream=self._stream)
        if batch in self._captured:
            self._captured[batch]()
        else:
            reset, self._batch = batch != self._batch, 0  # unknown, if this fails midway
            self._enqueue(self._context, batch, reset=reset)
            self._batch = batch
        for name in self.outputs:
            self._device[name][:batch].get(stream=self._stream, out=self._host[name][:batch], blocking=False)
        self._stream.synchronize()
        return {name: self._host[name][:batch].copy() for name in self.outputs}

    def close(self) -> None:
        with self._lock:
            self._captured.clear()
            self._contexts.clear()
            self._context = self._engine = self._runtime = None
            self._device.clear()
            self._host.clear()

    def _make_context(self, *, capturing: bool = False) -> Any:
        config = self._engine.create_runtime_config() if hasattr(self._engine, "create_runtime_config") else None
        if config is not None and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # By default it swaps kernels in the background, and a case's last bits with them.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if capturing:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        made = self._engine.create_execution_context(*(() if config is None else (config,)))
        context = self._need(made, "can't make an execution context")
        for name, array in self._device.items():
            self._need(context.set_tensor_address(name, array.data.ptr), f"does not take a buffer for `{name}`")
        self._contexts.append(context)
        return context

    def _enqueue(self, context: Any, batch: int, *, reset: bool) -> None:
        for name in self.inputs if reset else ():
            shape = (batch, *self._device[name].shape[1:])
            self._need(context.set_input_shape(name, shape), f"does not take {shape} for `{name}`")
        self._need(context.execute_async_v3(self._stream.ptr), "failed while running")

    def _capture(self, batch: int) -> partial[None]:
        """What launches the CUDA graph of one batch."""
        context = self._make_context(capturing=True)
        enqueue = partial(self._enqueue, context, batch, reset=False)
        self._enqueue(context, batch, reset=True)  # what is allocated or compiled at the first run can't be captured
        self._stream.synchronize()
        if hasattr(self._trt, "CudaGraphStrategy"):  # TensorRT-RTX captures on its own
            return enqueue
        with self._stream:
            self._stream.begin_capture(self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
            enqueue()
            graph = self._stream.end_capture()
        graph.upload(stream=self._stream)
        self._stream.synchronize()
        return partial(graph.launch, stream=self._stream)

    def _check(self, feeds: Mapping[str, Array]) -> int:
        if set(feeds) != set(self.inputs):
            raise EngineError(
                f"the engine was fed {', '.join(sorted(feeds)) or 'nothing'}, expected {', '.join(self.inputs)}",
                hint=_HINT,
            )
        batch = len(next(iter(feeds.values())))
        for name, array in feeds.items():
            want = self._host[name]
            if array.dtype != want.dtype or array.shape != (batch, *want.shape[1:]):
                raise EngineError(
                    f"`{name}` is {array.dtype}{list(array.shape)}, expected {want.dtype}{[batch, *want.shape[1:]]}",
                    hint=_HINT,
                )
        if not self.profile.min <= batch <= self.profile.max:
            raise EngineError(
                f"the batch is {batch}, and the engine takes {self.profile.min} to {self.profile.max}",
                hint="use smaller batches, or export for a larger profile",
            )
        return batch

    def _need(self, value: Any, what: str) -> Any:
        """`value`, unless it is TensorRT's way of saying that it failed."""
        if value is None or value is False:
            raise EngineError(f"{self._trt.__name__} {what}: {log(self._trt).text()}", hint=_HINT)
        return value


class TensorRt:
    """`tensorrt-rtx` or `tensorrt`: loads the engine that lies beside a graph, or builds it."""

    precisions = ("fp16", "bf16", "fp32", "int8")
    head: HeadGraph = "head"

    def __init__(self, flavour: Flavour) -> None:
        self.flavour: Flavour = flavour
        self.name = flavour.replace("_", "-")

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        return self._problem(gpu())

    def _problem(self, here: Gpu | None) -> MpmmuError | None:
        try:
            library(self.flavour)
        except MpmmuError as error:
            return error
        if here is None:
            return EngineError(
                f"the target {self.name} needs an NVIDIA GPU and its driver, and there is none here",
                hint="engines can be built here (`mpmmu-rt export`) and run where there is a GPU",
            )
        if self.flavour == "tensorrt_rtx" and here.capability not in RTX_CAPABILITIES:
            return EngineError(
                f"the {here.name} has compute capability {here.capability}, and TensorRT-RTX runs on "
                f"{', '.join(map(str, RTX_CAPABILITIES))}",
                hint="use the target `tensorrt`, with `pip install 'mpmmu-rt[cuda]'`",
            )
        try:
            require("cupy", f"the target {self.name}")
        except MpmmuError as error:
            return error
        return None

    def version(self) -> str:
        return str(library(self.flavour).__version__)

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> HostHead:
        return HostHead.load(
            bundle, Target(self.name, precision), threads, lambda: self._embedder(bundle, precision, threads)
        )

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        return self._graph(bundle, modality, precision)

    def _embedder(self, bundle: Bundle, precision: str, threads: int) -> StagedEmbedder:
        graphs = {name: self._graph(bundle, name, precision) for name in (*MODALITIES, "attention_pool")}
        return StagedEmbedder({name: self.load(path, precision, threads) for name, path in graphs.items()})

    def _graph(self, bundle: Bundle, name: str, precision: str) -> Path:
        """The graph `name` in the types of `precision`. Raises `BundleError` if the bundle does not list it."""
        path = f"{self.folder(precision)}/{name}.onnx"
        if path not in bundle.entry["files"]:
            raise BundleError(
                f"{bundle.path} holds no {path}, expected graphs for {self.name}:{precision}",
                hint=f"export it again with --target {self.name}:{precision}",
            )
        return bundle.path / path

    def folder(self, precision: str) -> str:
        """Where a bundle holds the graphs in `precision`, their weights, and the engines that were built from them."""
        return f"engines/{self.name}-{precision}"

    def load(
        self, graph: Path, precision: str, threads: int, *, batches: tuple[int, int] | None = None
    ) -> TensorRtSession:
        """Load the engine beside `graph`, an ONNX graph whose types are those of `precision`; build it if need be.

        batches: the smallest and the largest that will be asked for; None for whatever the engine takes. Raises
        `EngineError` if nothing can run here, the sidecar is malformed, or the engine can't be built or loaded.
        """
        here = gpu()
        problem = self._problem(here)
        if problem or here is None:
            raise problem or EngineError("there is no GPU, expected one", hint=_HINT)
        engine, profile, reason = self._read(graph, precision, here, batches)
        if engine is None:
            warnings.warn(f"{graph.name} is built anew: {reason}", EngineRebuilt, stacklevel=2)
            engine = self._build(graph, precision, here, profile)
        return TensorRtSession(library(self.flavour), engine, profile, rebuilt=reason)

    def _build(self, graph: Path, precision: str, here: Gpu, profile: Profile) -> bytes:
        named = (here.capability,) if self.flavour == "tensorrt_rtx" else ()
        return build(graph, flavour=self.flavour, precision=precision, capabilities=named, profile=profile).engine

    def _read(
        self, graph: Path, precision: str, device: Gpu, batches: tuple[int, int] | None
    ) -> tuple[bytes | None, Profile, str | None]:
        """The engine beside `graph` if it may be loaded here, else None; the profile to use; why not."""
        wanted = Profile(batches[0], batches[1], batches[1]) if batches else Profile()
        path = graph.with_suffix(".engine")
        if not path.is_file():
            return None, wanted, f"there is no {path.name} beside it"
        sidecar = Sidecar.read(sidecar_path(path))
        engine = read_bounded(path, MAX_FILE_BYTES, EngineError, "export the bundle again")
        here = Here(
            flavour=self.flavour,
            version=self.version(),
            device=device.name,
            capability=device.capability,
            precision=precision,
            graph_sha256=graph_digest(graph),
            engine_sha256=hashlib.sha256(engine).hexdigest(),  # of the very bytes that will be loaded
            engine_bytes=len(engine),
            batches=batches,
        )
        if reason := explain(sidecar, here):
            return None, wanted if batches else sidecar.profile, reason
        return engine, sidecar.profile, None


RTX = TensorRt("tensorrt_rtx")
TENSORRT = TensorRt("tensorrt")
