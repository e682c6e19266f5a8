"""Every target of a bundle on this machine, fastest first, and which to take: what `bench` shows where none is named.

All take turns, each in a fresh process: what else the machine does meets all alike, and none is slowed down by the
threads of another, as engines that are loaded side by side are. They are ranked by the median of their calls; `compare`
says whether a small difference is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .bundle import Bundle
from .compare import Side, require_same, take_turn
from .decisions import recorded
from .engines import engines
from .errors import EngineError, MpmmuError
from .progress import Progress, silent
from .spec import Target

TURNS = 2  # of each target


@dataclass(frozen=True)
class Timed:
    """A target and what its calls took; `median_ms` is None, and `problem` says why, where it can't run.

    flipped, cases: decisions that it changed at export, where that was counted. proven: False for engines that were
    built and never run. pairs_per_s: of the median.
    """

    target: str
    proven: bool
    flipped: int | None
    cases: int | None
    median_ms: float | None
    pairs_per_s: float | None
    n: int
    problem: str

    @property
    def exact(self) -> bool:
        """Whether it computes in FP32."""
        return Target.parse(self.target).precision == "fp32"


def survey(bundle: Bundle, batch: int, *, seconds: float = 1.0, progress: Progress = silent) -> dict[str, Any]:
    """`targets` of `bench`'s JSON document: rows as `Timed`, fastest first, and what is recommended.

    seconds: of the calls of each target, at least three a turn. A target that can't run, fails or says something else
    than the golden answers is a row that says why. Raises what `require_same` does.
    """
    targets = list(map(Target.parse, bundle.targets))
    problems = {target: problem for target in targets if (problem := _problem(target))}
    samples: dict[Target, list[float]] = {target: [] for target in targets}
    for number, target in enumerate(targets * TURNS):
        progress("all targets in turn", number, len(targets) * TURNS, "turns")
        if target not in problems:
            try:
                samples[target] += take_turn(Side(bundle.root, target), batch, seconds / TURNS)
            except MpmmuError as error:
                problems[target] = error
    progress("all targets in turn", len(targets) * TURNS, len(targets) * TURNS, "turns")
    require_same(bundle)
    rows = [
        _timed(bundle, target, [] if target in problems else samples[target], batch, problems.get(target))
        for target in targets
    ]
    rows.sort(key=lambda row: (row.median_ms is None, row.median_ms or 0.0))
    return {"rows": [asdict(row) for row in rows], "recommended": recommend(rows)}


def recommend(rows: Sequence[Timed]) -> dict[str, str | None]:
    """`exact`: the fastest that was proven and computes in FP32; `rounding`: one that rounds and is faster than that.

    rows: fastest first. None where there is none.
    """
    ran = [row for row in rows if row.median_ms is not None and row.proven]
    exact = next((row for row in ran if row.exact), None)
    faster = ran[: ran.index(exact)] if exact else ran
    return {"exact": exact.target if exact else None, "rounding": faster[0].target if faster else None}


def _problem(target: Target) -> MpmmuError | None:
    known = engines().get(target.engine)
    return known.problem(target.precision) if known else EngineError(f"{target} is unknown to this version")


def _timed(bundle: Bundle, target: Target, calls: list[float], batch: int, problem: MpmmuError | None) -> Timed:
    seen = recorded(bundle, target)
    median = float(np.median(calls)) if calls else None
    return Timed(
        target=str(target),
        proven=bool(bundle.proof(target).get("passed")),
        flipped=seen.get("decisions_flipped"),
        cases=seen.get("cases"),
        median_ms=median,
        pairs_per_s=batch / median * 1e3 if median else None,
        n=len(calls),
        problem=" ".join(str(problem).split()) if problem else "",
    )
