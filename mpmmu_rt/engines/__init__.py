"""Engines: what executes a compiled graph, one module per engine behind one small protocol.

To add an engine, write a module with a class that satisfies `Engine` and list it in `_MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mpmmu_rt.bundle import HeadGraph
from mpmmu_rt.errors import EngineError, MpmmuError
from mpmmu_rt.spec import Array, Target


class Session(Protocol):
    """One loaded graph. Not shared between threads; `close` frees it."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Execute the graph; the caller owns the returned arrays. Raises `EngineError`."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """An inference engine. Making one loads nothing; `problem` says whether it can run here."""

    name: str
    precisions: tuple[str, ...]
    head: HeadGraph  # the form of the stacking head that is fastest on it

    def problem(self) -> MpmmuError | None:
        """Why nothing can run on this engine here, or None. Never raises."""
        ...

    def version(self) -> str: ...

    def load(self, graph: Path, precision: str, threads: int) -> Session:
        """Load an ONNX graph. Raises `EngineError`, also when anything but this engine would execute it."""
        ...


_MODULES = {"onnxruntime": "mpmmu_rt.engines.onnxruntime"}


def engine(target: Target) -> Engine:
    """The engine of `target`, checked to be able to run here. Raises `EngineError` or `MissingPackage`."""
    known = engines()
    if target.engine not in known:
        raise EngineError(
            f"target `{target}` names the engine `{target.engine}`, expected one of {', '.join(known)}",
            hint="`mpmmu-rt doctor` lists the targets that work here",
        )
    found = known[target.engine]
    if target.precision not in found.precisions:
        raise EngineError(
            f"target `{target}` asks for {target.precision}, expected one of {', '.join(found.precisions)}",
            hint=f"use `{found.name}:{found.precisions[0]}`",
        )
    if problem := found.problem():
        raise problem
    return found


def engines() -> dict[str, Engine]:
    """Every engine that this version knows, by name, whether or not it can run here."""
    return {name: importlib.import_module(module).ENGINE for name, module in _MODULES.items()}
