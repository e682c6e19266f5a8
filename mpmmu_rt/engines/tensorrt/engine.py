"""TensorRT-RTX and TensorRT. Loading and running have **not run on any GPU yet**.

An engine is a file beside its graph: `mammography.onnx`, `mammography.engine` and the sidecar
`mammography.engine.json`, which is read first. One that was built for another version, GPU, graph or profile is not
loaded: another is built from the graph, kept in the user's cache (`kept`), where the next start finds it, and
both say so and why (`rebuilt`, and a warning). So is the engine of a bundle that was exported for TensorRT without a
GPU, which holds none.

`build` builds, `run` runs, `device_path` is the way from pixels to probability.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import MAX_FILE_BYTES, Bundle, HeadGraph, target_folder
from mpmmu_rt.engines import Traits
from mpmmu_rt.engines.shared.gpu import Gpu, gpu
from mpmmu_rt.errors import DigestMismatch, EngineError, MpmmuError
from mpmmu_rt.files import read_bounded
from mpmmu_rt.spec import Modality, Target

from . import kept
from .build import RTX_CAPABILITIES, build, library
from .cuda import Resources, Stream
from .device_path import DevicePath, NoKernel, WholeGraph, WholeGraphInstead
from .run import ASKED_NOT_TO, LoadedEngine, TensorRtSession
from .sidecar import (
    LICENCE,
    Built,
    Flavour,
    Here,
    Profile,
    Sidecar,
    explain,
    graph_digest,
    read_profile,
    sidecar_path,
)

_HINT = "`mpmmu-rt verify BUNDLE` tells whether the bundle or the input is at fault"
_Loaded = TypeVar("_Loaded")


class EngineRebuilt(RuntimeWarning):
    """An engine that should be there could not be loaded: it is built again, or was before and kept."""


class TensorRt:
    """`tensorrt-rtx` or `tensorrt`: loads the engine that lies beside a graph, or builds it."""

    precisions = ("fp16", "bf16", "fp32", "int8")
    head: HeadGraph = "head"

    def __init__(self, flavour: Flavour) -> None:
        self.flavour: Flavour = flavour
        self.traits = Traits(gpu=True, names_gpus=flavour == "tensorrt_rtx", profiled=True, licence=LICENCE)
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
            require("cuda.bindings.runtime", f"the target {self.name}")
        except MpmmuError as error:
            return error
        return None

    def version(self) -> str:
        return str(library(self.flavour).__version__)

    def pipeline(
        self,
        bundle: Bundle,
        precision: str,
        threads: int,
        *,
        graphs: bool = True,
        ahead: bool = False,
        whole_graph: bool = False,
    ) -> DevicePath | WholeGraph:
        """The device path, or, where its kernel can't be had, the whole graph: with the warning `WholeGraphInstead`.

        Its `name` says which of the two it is, and `reason` why. graphs: run batches as CUDA graphs. ahead: as of
        `DevicePath`. whole_graph: run that, without a warning. Raises as `load` does.
        """
        target, rebuilt = Target(self.name, precision), dict[str, str]()
        no_graphs = None if graphs else ASKED_NOT_TO
        reason = "it was asked for"
        if not whole_graph:

            def engine(name: str, resources: Resources, stream: Stream) -> LoadedEngine:
                def make(data: bytes, profile: Profile, why: str | None) -> LoadedEngine:
                    made = self._loading(data, profile)(resources)
                    if why:
                        rebuilt[name] = why
                    return made

                return self._find(self._graph(bundle, name, precision), precision, make, bundle=bundle)

            try:
                return DevicePath(bundle, target, engine, no_graphs=no_graphs, rebuilt=rebuilt, ahead=ahead)
            except NoKernel as error:
                reason = str(error)
                warnings.warn(
                    f"{target} runs the whole graph as one engine, without the fused attention pool: {reason}",
                    WholeGraphInstead,
                    stacklevel=2,
                )

        def session(data: bytes, profile: Profile, why: str | None) -> TensorRtSession:
            return TensorRtSession(self._loading(data, profile), no_graphs=no_graphs, rebuilt=why)

        whole = self._find(self._graph(bundle, "model", precision), precision, session, bundle=bundle)
        return WholeGraph(bundle, target, whole, reason)

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        return self._graph(bundle, modality, precision)

    def _graph(self, bundle: Bundle, name: str, precision: str) -> Path:
        """The graph `name` in the types of `precision`. Raises `BundleError` if the bundle does not list it."""
        return bundle.target_graph(Target(self.name, precision), name)

    def folder(self, precision: str) -> str:
        """Where a bundle holds the graphs in `precision`, their weights, and the engines that were built from them."""
        return target_folder(self.name, precision)

    def load(
        self, graph: Path, precision: str, threads: int, *, batches: tuple[int, int] | None = None
    ) -> TensorRtSession:
        """Load the engine beside `graph`, an ONNX graph whose types are those of `precision`; build it if need be.

        batches: the smallest and the largest that will be asked for; None for whatever the engine takes. Raises
        `EngineError` if nothing can run here, the sidecar is malformed, or the engine can't be built or loaded.
        """

        def session(data: bytes, profile: Profile, why: str | None) -> TensorRtSession:
            return TensorRtSession(self._loading(data, profile), rebuilt=why)

        return self._find(graph, precision, session, batches)

    def _loading(self, data: bytes, profile: Profile) -> Callable[[Resources], LoadedEngine]:
        return lambda resources: LoadedEngine(library(self.flavour), data, profile, resources)

    def _find(
        self,
        graph: Path,
        precision: str,
        make: Callable[[bytes, Profile, str | None], _Loaded],
        batches: tuple[int, int] | None = None,
        *,
        bundle: Bundle | None = None,
    ) -> _Loaded:
        """What `make` makes of the engine beside `graph`, or of one that is built here or was before; of its profile;
        and of how it came about, and why, which is None for the engine beside the graph.

        bundle: whose engine it has to be: `DigestMismatch` where the bytes are others than it lists.
        """
        here = gpu()
        problem = self._problem(here)
        if problem or here is None:
            raise problem or EngineError("there is no GPU, expected one", hint=_HINT)
        engine, profile, reason = self._read(graph, precision, here, batches)
        if engine is not None:
            if bundle is not None:
                _check_listed(bundle, graph.with_suffix(".engine"), engine)
            return make(engine, profile, None)
        # TensorRT's engines are missing by design from a bundle that was exported without a GPU, and those of graphs
        # that are for other targets from every bundle.
        missed = graph.with_suffix(".engine").is_file() or (bundle is not None and self.flavour == "tensorrt_rtx")

        def warn(how: str) -> None:
            if missed:
                is_or_was = "is" if how == kept.ANEW else "was"
                warnings.warn(f"{graph.name} {is_or_was} {how}: {reason}", EngineRebuilt, stacklevel=5)

        return kept.kept_or_built(
            kept.facts(
                graph, flavour=self.flavour, version=self.version(), here=here, precision=precision, profile=profile
            ),
            lambda: self._build(graph, precision, here, profile),
            lambda data, how: make(data, profile, f"{how}: {reason}"),
            warn,
        )

    def _build(self, graph: Path, precision: str, here: Gpu, profile: Profile) -> Built:
        named = (here.capability,) if self.flavour == "tensorrt_rtx" else ()
        return build(graph, flavour=self.flavour, precision=precision, capabilities=named, profile=profile)

    def _read(
        self, graph: Path, precision: str, device: Gpu, batches: tuple[int, int] | None
    ) -> tuple[bytes | None, Profile, str | None]:
        """The engine beside `graph` if it may be loaded here, else None; the profile to use; why not."""
        wanted = Profile(batches[0], batches[1], batches[1]) if batches else read_profile(graph.parent)
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


def _check_listed(bundle: Bundle, path: Path, engine: bytes) -> None:
    name = path.relative_to(bundle.root).as_posix()
    if hashlib.sha256(engine).hexdigest() != bundle.entry["files"].get(name, {}).get("sha256"):
        raise DigestMismatch(
            f"{path} is not the engine that was exported, expected the SHA-256 of bundle.json",
            hint="the bundle was altered or damaged: do not use it; copy or export it again",
        )


RTX = TensorRt("tensorrt_rtx")
TENSORRT = TensorRt("tensorrt")
