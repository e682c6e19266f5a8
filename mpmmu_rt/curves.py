"""How latency depends on the silence before a call, and throughput on the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import UsageError
from .latency import Effort, measure, summarise

REPEATS = 3
ENOUGH = 0.95  # of the best throughput: what the knee reaches
MOST_IDLE_S = 600.0


@dataclass(frozen=True)
class Gap:
    """The first call after so many seconds in which nothing was asked, several times over; ms."""

    seconds: float
    samples_ms: list[float]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "median_ms": self.median_ms, "samples_ms": self.samples_ms}


@dataclass(frozen=True)
class Step:
    """One batch of a sweep. p50_ms: None where there were too few calls."""

    batch: int
    p50_ms: float | None
    mean_ms: float
    pairs_per_s: float
    n: int
    settled: bool | None


def check_gaps(gaps_s: Sequence[float]) -> None:
    """Raise `UsageError` unless each is from 0 s to 10 minutes."""
    for gap in gaps_s:
        if not 0 <= gap <= MOST_IDLE_S:
            raise UsageError(f"a silence of {gap:g} s, expected 0 to {MOST_IDLE_S:g} s", hint="--idle 0,1,10")


def idle_gaps(
    call: Callable[[], object], gaps_s: Sequence[float], progress: Callable[[float], None] = lambda share: None
) -> list[Gap]:
    """After each silence one call is timed, and another follows that is not: the silence is all that differs."""
    check_gaps(gaps_s)
    found: list[Gap] = []
    for number, gap in enumerate(sorted(set(gaps_s))):
        samples = []
        for repeat in range(REPEATS):
            call()
            time.sleep(gap)
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
            progress((number + (repeat + 1) / REPEATS) / len(set(gaps_s)))
        found.append(Gap(gap, samples))
    return found


def sweep(
    call: Callable[[int], object],
    batches: Sequence[int],
    effort: Effort,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Step]:
    """Each batch with that effort, the smallest first. Throughput is of the mean: slow calls cost it too."""
    found: list[Step] = []
    ordered = sorted(set(batches))
    for number, batch in enumerate(ordered):
        done = measure(lambda size=batch: call(size), effort)  # type: ignore[misc]
        latency = summarise(done.samples_ms)
        rate = batch / latency.mean * 1e3
        found.append(Step(batch, latency.p50, latency.mean, rate, latency.n, done.settled))
        progress((number + 1) / len(ordered))
    return found


def knee(steps: Sequence[Step]) -> Step:
    """The smallest batch that reaches 95 % of the best throughput: a larger one costs latency and brings little."""
    best = max(step.pairs_per_s for step in steps)
    return min((step for step in steps if step.pairs_per_s >= ENOUGH * best), key=lambda step: step.batch)


def sweep_json(steps: Sequence[Step]) -> dict[str, Any]:
    return {"steps": [asdict(step) for step in steps], "knee": knee(steps).batch, "enough": ENOUGH}
