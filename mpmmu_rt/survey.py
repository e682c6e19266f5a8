"""Every target of a bundle on this machine, fastest first, and which to take: what `bench` shows where none is named.

All are loaded and take turns of `TURN_MS`, so that what else the machine does meets all alike, and are ranked by the
median of their calls. `compare` says whether a small difference is real.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .decisions import recorded
from .engines import engines
from .errors import EngineError, MpmmuError
from .predictor import DEFAULT_TARGET, Predictor
from .progress import Progress, silent
from .spec import Array, Modality, Target
from .tiles import hold_to_golden, tile

TURN_MS = 100.0  # of a target, or one call where that takes longer
TURNS = 4  # at least


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


def first_target(bundle: Bundle) -> Target:
    """The default target; of a bundle of which that can't run here, the first that can."""
    usable = [target for target in map(Target.parse, bundle.targets) if _problem(target) is None]
    default = Target.parse(DEFAULT_TARGET)
    return default if default in usable or not usable else usable[0]


def survey(path: Path, batch: int, *, seconds: float = 1.0, progress: Progress = silent) -> dict[str, Any]:
    """`targets` of `bench`'s JSON document: rows as `Timed`, fastest first, and what is recommended.

    seconds: of each target, or longer if `TURNS` calls take longer. Raises what opening `path` raises; a target that
    fails is a row that says why.
    """
    bundle = Bundle.open(path)
    targets = list(map(Target.parse, bundle.targets))
    problems: dict[Target, MpmmuError] = {}
    samples: dict[Target, list[float]] = {}
    with ExitStack() as stack:
        loaded = {}
        for done, target in enumerate(targets):
            progress("loading all targets", done, len(targets), "targets")
            try:
                loaded[target] = stack.enter_context(_Timing(bundle, target, batch))
            except MpmmuError as error:
                problems[target] = error
        progress("loading all targets", len(targets), len(targets), "targets")
        turns = max(TURNS, round(seconds * 1e3 / TURN_MS))
        started = time.perf_counter()
        for turn in range(turns):
            if turn >= TURNS and time.perf_counter() - started > seconds * len(loaded):
                break
            progress("all targets in turn", turn, turns, "turns")
            for target in [one for one in loaded if one not in problems]:
                try:
                    samples.setdefault(target, []).extend(loaded[target].turn())
                except MpmmuError as error:
                    problems[target] = error
        progress("all targets in turn", turns, turns, "turns")
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


class _Timing:
    """A loaded target that says the golden answers, and how long its calls take."""

    def __init__(self, bundle: Bundle, target: Target, batch: int) -> None:
        if problem := _problem(target):
            raise problem
        golden = bundle.golden()
        self._pixels: dict[Modality, Array] = tile(golden, batch)
        self._predictor = Predictor(bundle, target)
        try:
            for _ in range(2):  # what an engine compiles on first use
                answer = self._predictor.predict(self._pixels).probability
            hold_to_golden(target, [answer], golden)
        except BaseException:
            self._predictor.close()
            raise

    def __enter__(self) -> _Timing:
        return self

    def __exit__(self, *_: object) -> None:
        self._predictor.close()

    def turn(self) -> list[float]:
        """Wall times in ms of at least one call."""
        spent: list[float] = []
        while not spent or sum(spent) < TURN_MS:
            start = time.perf_counter()
            self._predictor.predict(self._pixels)
            spent.append((time.perf_counter() - start) * 1e3)
        return spent


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
