"""Engines: what executes a compiled graph, one module or folder per engine behind one small protocol.

To add an engine, write a module with a class that satisfies `Engine` and list it in `_MODULES`; what an export makes
and proves for it has the same name in `mpmmu_rt.export.targets`. `shared` holds what several engines use.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, runtime_checkable

from mpmmu_rt.bundle import Bundle, HeadGraph
from mpmmu_rt.errors import MpmmuError, UnknownTarget
from mpmmu_rt.facts import FASTER_HEAD
from mpmmu_rt.spec import Array, Modality, Target


class Session(Protocol):
    """One loaded graph. Threads may share it; `close` frees it."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Execute the graph; the caller owns the returned arrays. Raises `EngineError`."""
        ...

    def close(self) -> None: ...


class Pipeline(Protocol):
    """A bundle loaded on a target, from pixels to probability. Threads may share it; `close` frees it.

    head_target: where the stacking head runs.
    """

    @property
    def head_target(self) -> Target: ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What stands in here for what was asked for, and why: a sentence each. May grow while it runs."""
        ...

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> tuple[dict[str, Array], dict[str, float]]:
        """Fill `embedding` float32 [N, D] from checked pixels uint8 [N, 1, S, S] per modality.

        Returns what the head says, `probability` float32 [N] and, if it has it, `base_probability` float32
        [N, learners], which belong to the caller; and the time of each stage in ms, by name. Raises `EngineError`.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Counted(Protocol):
    """A pipeline, or a part of one, that can say more of itself than how long it takes."""

    def counts(self, cases: int) -> dict[str, int | str]:
        """What noise can't touch, by name, of a call of so many cases that has run before: see `mpmmu_rt.counts`."""
        ...


@dataclass(frozen=True)
class Traits:
    """What sets an engine apart for those that don't know it.

    gpu: it computes on a GPU. names_gpus: an export says for which compute capabilities to build. profiled: what it
    loads is made for a range of batches. case_by_case: every case is computed by itself, so that nothing that shares
    its batch changes a bit of its embedding. licence: what its makers forbid; an export says so.
    """

    gpu: bool = False
    names_gpus: bool = False
    profiled: bool = False
    case_by_case: bool = False
    licence: str = ""


class Engine(Protocol):
    """An inference engine. Making one loads nothing; `problem` says whether it can run here."""

    name: str
    precisions: tuple[str, ...]
    head: HeadGraph  # the form of the stacking head that is fastest on it
    traits: Traits

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        """Why nothing can run on this engine in this precision here, or None. Never raises."""
        ...

    def version(self) -> str: ...

    def load(self, graph: Path, precision: str, threads: int) -> Session:
        """Load an ONNX graph. Raises `EngineError`, also when anything but this engine would execute it."""
        ...

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> Pipeline:
        """Load the whole of `bundle`. Raises as `load` does."""
        ...

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        """The graph of the encoder that `pipeline` runs in `precision`. Raises `BundleError` where there is none."""
        ...


@runtime_checkable
class TellsPrecision(Protocol):
    """An engine that tells in what it computes: what an engine may have besides."""

    def layers_in_8_bits(self, bundle: Bundle, precision: str, threads: int) -> int:
        """How many layers of both encoders it computes in 8 bits in `precision`, by its own word.

        Raises `EngineError`.
        """
        ...


@runtime_checkable
class ShowsTensors(Protocol):
    """An engine that can show what a graph computes on its way: what an engine may have besides."""

    def load_showing(self, graph: Path, tensors: Sequence[str], precision: str, threads: int) -> Session:
        """`load` a graph that gives `tensors` of its own, by name, beside its outputs. Raises as that does."""
        ...


# Name: module, and what in it is the engine.
_MODULES = {
    "onnxruntime": ("mpmmu_rt.engines.onnxruntime", "ENGINE"),
    "openvino": ("mpmmu_rt.engines.openvino", "ENGINE"),
    "tensorrt-rtx": ("mpmmu_rt.engines.tensorrt", "RTX"),
    "tensorrt": ("mpmmu_rt.engines.tensorrt", "TENSORRT"),
    "onnxruntime-cuda": ("mpmmu_rt.engines.onnxruntime_cuda", "ENGINE"),
}


def engine(target: Target) -> Engine:
    """The engine of `target`, checked to be able to run here. Raises `EngineError` or `MissingPackage`."""
    found = known_engine(target)
    if problem := found.problem(target.precision):
        raise problem
    return found


def known_engine(target: Target) -> Engine:
    """The engine of `target`, whether or not it can run here. Raises `UnknownTarget` for one that there is not."""
    known = engines()
    if target.engine not in known:
        near = get_close_matches(target.engine.lower(), known, n=1)
        meant = f"did you mean `{near[0]}:{_precision(known[near[0]], target.precision)}`? " if near else ""
        raise UnknownTarget(
            f"target `{target}` names the engine `{target.engine}`, expected one of {', '.join(known)}",
            hint=f"{meant}`mpmmu-rt doctor` lists the targets that work here",
        )
    found = known[target.engine]
    if target.precision not in found.precisions:
        raise UnknownTarget(
            f"target `{target}` asks for {target.precision}, expected one of {', '.join(found.precisions)}",
            hint=f"use `{found.name}:{_precision(found, target.precision)}`",
        )
    if target.capabilities and not found.traits.names_gpus:
        takes = ", ".join(name for name, engine in known.items() if engine.traits.names_gpus)
        raise UnknownTarget(
            f"target `{target}` names compute capabilities, expected them for {takes} alone",
            hint=f"use `{found.name}:{target.precision}`",
        )
    return found


def _precision(found: Engine, asked: str) -> str:
    """The one of `found` that is most like it, or its first."""
    return next(iter(get_close_matches(asked.lower(), found.precisions, n=1)), found.precisions[0])


def engine_module(name: str) -> str:
    """Where the engine of that name is written: what is made for it at export has the same name there."""
    return _MODULES[name][0]


def head_target(target: Target) -> Target:
    """Where the stacking head of `target` runs: in FP32, and on another engine where one is here that is faster."""
    if target.engine in FASTER_HEAD:
        faster, _ = FASTER_HEAD[target.engine]
        if engines()[faster.engine].problem() is None:
            return faster
    return Target(target.engine, "fp32")


def engines() -> dict[str, Engine]:
    """Every engine that this version knows, by name, whether or not it can run here."""
    return {name: getattr(importlib.import_module(module), engine) for name, (module, engine) in _MODULES.items()}
