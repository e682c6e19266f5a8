"""An ONNX graph into an engine, with its sidecar: `tensorrt_rtx` and `tensorrt`.

Both libraries have the same calls from 10.3 on, but for what `hasattr` asks below. TensorRT-RTX builds for GPUs that
are named, on a machine without any; TensorRT builds for the GPU that it runs on. Needs neither ONNX nor torch: an
engine that can't be loaded is built again where the model is deployed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mpmmu_rt._optional import require
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.shared.words import in_part
from mpmmu_rt.errors import EngineError, UsageError

from .sidecar import Built, Flavour, Profile, Sidecar, graph_digest

# Of TensorRT-RTX 1.7; its Python binding takes any number, and dies of an unknown one far from where it was given.
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)
_LOG_LINES = 64


def build(
    graph: Path | bytes,
    *,
    flavour: Flavour,
    precision: str,
    capabilities: tuple[int, ...] = (),
    profile: Profile | None = None,
    achieved: Mapping[str, float] | None = None,
) -> Built:
    """Build an engine from an ONNX graph: a file (weights beside it), or bytes that hold their weights.

    The graph's types are the engine's: `precision` and `achieved` are noted, not applied. TF32 is off: FP32 means
    FP32. capabilities: the GPUs to build for, such as (86, 89), for TensorRT-RTX, where they must be named, for only
    then are types checked against them; () for TensorRT, which builds for the GPU that is here. All inputs have the
    batch, and nothing else, dynamic.

    Raises `UsageError` for capabilities that the flavour does not take, `MissingPackage`, and `EngineError` with
    TensorRT's own log for a graph that it can't parse or build.
    """
    _check_capabilities(flavour, capabilities)
    profile = profile or Profile()
    trt = library(flavour)
    with _BUILDING:  # the log is the process's: one build at a time knows which lines are its own
        log(trt).clear()
        # Raised from here and not from within: a traceback keeps its frames' objects alive, and a builder that lives
        # on keeps its logger registered.
        engine, failure = _build(trt, graph, capabilities, profile)
        said = log(trt).text()
    if engine is None:
        where = f" for {', '.join(map(str, capabilities))}" if capabilities else ""
        name = graph.name if isinstance(graph, Path) else "the graph"
        raise EngineError(
            f"{flavour} {trt.__version__} {failure} {name} in {precision}{where}: {said}",
            hint="`docs/edge.md` says which GPU takes which precision",
        )
    here = gpu() if flavour == "tensorrt" else None
    digest = hashlib.sha256(engine).hexdigest()
    sidecar = Sidecar(
        flavour=flavour,
        version=str(trt.__version__),
        capabilities=capabilities if here is None else (here.capability,),
        device=None if here is None else here.name,
        precision=precision,
        achieved=dict(achieved or {}),
        profile=profile,
        graph_sha256=graph_digest(graph),
        engine_sha256=digest,
        engine_bytes=len(engine),
    )
    return Built(engine, sidecar)


def _check_capabilities(flavour: Flavour, capabilities: tuple[int, ...]) -> None:
    if flavour == "tensorrt":
        if capabilities:
            raise UsageError(
                f"TensorRT was asked to build for {', '.join(map(str, capabilities))}, expected no compute capability",
                hint="it builds for the GPU it runs on; `tensorrt-rtx` builds for GPUs that are elsewhere",
            )
        return
    unknown = [one for one in capabilities if one not in RTX_CAPABILITIES]
    if unknown or not capabilities or len(set(capabilities)) != len(capabilities):
        got = ", ".join(map(str, capabilities)) or "none"
        raise UsageError(
            f"TensorRT-RTX was asked to build for the compute capabilities {got}, expected some of "
            f"{', '.join(map(str, RTX_CAPABILITIES))}, each once",
            hint="`docs/edge.md` says which GPU has which; for all others there is the target `tensorrt`",
        )


def _build(
    trt: ModuleType, graph: Path | bytes, capabilities: tuple[int, ...], profile: Profile
) -> tuple[bytes | None, str]:
    """The engine, or None and what it is that failed."""
    logger = log(trt).logger
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind there is, from 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(graph) if isinstance(graph, bytes) else parser.parse_from_file(str(graph))
    if not parsed:
        if parser.num_errors:
            log(trt).clear()  # the same at greater length
        for error in (parser.get_error(index) for index in range(parser.num_errors)):
            log(trt).add(f"{error.node_operator()} `{error.node_name()}`: {error.desc()}")
        return None, "can't parse"
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX captures only what allocates nothing
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(capabilities)
        for index, one in enumerate(capabilities):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{one}"), index):
                return None, f"does not take the compute capability {one} for"
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch != -1 or -1 in rest:
            log(trt).add(f"the input `{tensor.name}` has the shape {(batch, *rest)}")
            return None, "takes only a dynamic batch, and that on axis 0, in"
        shapes.set_shape(tensor.name, *((size, *rest) for size in (profile.min, profile.opt, profile.max)))
    if not shapes or config.add_optimization_profile(shapes) < 0:  # neither raises
        return None, f"does not take the profile {profile} for"
    engine = builder.build_serialized_network(network, config)
    return (None, "can't build") if engine is None else (bytes(engine), "")


class Log:
    """What TensorRT says: the last warnings and errors. One per library and process, as TensorRT keeps the first."""

    def __init__(self, trt: ModuleType) -> None:
        lines: deque[tuple[bool, str]] = deque(maxlen=_LOG_LINES)

        class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # the base has no cooperative one

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.WARNING:
                    lines.append((severity <= trt.ILogger.Severity.ERROR, " ".join(message.split())))

        self._lines = lines
        self.logger = Logger()

    def add(self, line: str) -> None:
        self._lines.append((True, " ".join(line.split())))

    def clear(self) -> None:
        self._lines.clear()

    def text(self) -> str:
        """Its errors; its warnings if there are none."""
        lines = list(self._lines)
        chosen = [line for is_error, line in lines if is_error] or [line for _, line in lines]
        return "; ".join(dict.fromkeys(chosen)) or "it logged nothing here (a logger set up before ours gets it all)"


_LOGS: dict[str, Log] = {}
_BUILDING = threading.Lock()


def log(trt: ModuleType) -> Log:
    """The one log of that library in this process."""
    if trt.__name__ not in _LOGS:
        _LOGS[trt.__name__] = Log(trt)
    return _LOGS[trt.__name__]


def library(flavour: Flavour) -> ModuleType:
    """Import the library, or raise `MissingPackage`, or `EngineError` where it is not whole."""
    found = require(flavour, f"the target {flavour.replace('_', '-')}")
    if not hasattr(found, "__version__"):
        raise in_part(flavour, f"pip install --force-reinstall {flavour.replace('_', '-')}")
    return found
