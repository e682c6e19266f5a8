"""Latency: how it is sampled and what is said about it.

Warm-up. It ends when it has been seen to end, and no later than a bound: the last third of all calls so far is held to
the third before it, and their medians have to agree within 2 %, twice in a row, the second time with a fifth more
calls. A trend of the window's length shows up, and a single slow call does not. Two windows of one chain, an early and
a late one, are how Geweke looks for burn-in (1992, "Evaluating the accuracy of sampling-based approaches to the
calculation of posterior moments"); that the calls themselves have to show it, and that some runs never settle, so that
a bound is needed and a run that hit it must say so, is what Barrett et al. found (2017, "Virtual machine warmup blows
hot and cold", doi 10.1145/3133876).

Percentiles. One is told where its 95 % confidence interval lies between samples. The interval's ends are order
statistics, whose ranks follow from the binomial distribution alone, whatever the samples' is (David and Nagaraja 2003,
"Order statistics", section 7.1). With fewer samples the slowest one stands for whatever may be slower: p50 takes 6
samples, p90 36, p99 368 and p99.9 3,688.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from .errors import UsageError

# Medians of the first and second half of a run that differ by more mean that the machine was not settled.
STABLE_DRIFT = 0.05
# Of the two windows of a warm-up, whose medians agree that well when it has ended; and how few calls can't show it.
SETTLED = 0.02
FEWEST_TO_SETTLE = 15
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Percentiles of latency samples, in milliseconds; None where there are too few samples (see the module).

    Nothing is clipped: a slow call is part of the truth. intervals: of each percentile that is told, 95 %.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    mean: float
    n: int
    drift: float  # |median of the second half / median of the first half - 1|
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def stable(self) -> bool:
        return self.drift <= STABLE_DRIFT

    @property
    def missing(self) -> dict[str, int]:
        """Percentiles that are not told, and how many samples each takes."""
        return {name: fewest(p) for name, p in PERCENTILES.items() if getattr(self, name) is None}

    def to_json(self) -> dict[str, Any]:
        """JSON values; a percentile that can't be told is null."""
        return {
            **{name: getattr(self, name) for name in PERCENTILES},
            "mean": self.mean,
            "n": self.n,
            "intervals_95": {name: list(ends) for name, ends in self.intervals.items()},
        }


def summarise(samples_ms: Sequence[float]) -> Latency:
    """Percentiles by linear interpolation between order statistics (NumPy's default) of ≥ 1 samples in ms."""
    samples = np.sort(np.asarray(samples_ms, dtype=np.float64))
    told: dict[str, float | None] = {}
    intervals = {}
    for name, p in PERCENTILES.items():
        ends = ranks(samples.size, p)
        told[name] = float(np.quantile(samples, p)) if ends else None
        if ends:
            intervals[name] = float(samples[ends[0]]), float(samples[ends[1]])
    half = samples.size // 2
    early, late = np.asarray(samples_ms[:half]), np.asarray(samples_ms[half:])
    drift = abs(float(np.median(late) / np.median(early)) - 1) if half else 0.0
    return Latency(**told, mean=float(samples.mean()), n=int(samples.size), drift=drift, intervals=intervals)


@cache
def ranks(count: int, p: float) -> tuple[int, int] | None:
    """Ranks, from 0, of the sorted samples between which the p-quantile lies with 95 % confidence; None for too few.

    The number of samples below the quantile is binomial (count, p): each end leaves out at most half of 5 %.
    """
    each = (1 - CONFIDENCE) / 2
    log = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    k = np.arange(count + 1)
    below = np.cumsum(np.exp(np.asarray(log) + k * math.log(p) + (count - k) * math.log1p(-p)))  # P(≤ k samples below)
    low = int(np.searchsorted(below, each, side="right")) - 1
    high = int(np.searchsorted(below, 1 - each, side="left"))
    return (low, high) if low >= 0 and high < count else None


@cache
def fewest(p: float) -> int:
    """Samples that the p-quantile takes, p ≥ 1/2: of so many one lies above it with 97.5 % probability."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(p))


@dataclass(frozen=True)
class Effort:
    """How long to measure: warm up, then sample until both the time and the count are reached.

    The warm-up lasts `warmup_ms`, and on until it has settled or `max_warmup_ms` are over; 0: not longer.
    """

    warmup_ms: float = 500.0
    measure_ms: float = 3000.0
    min_samples: int = 10
    max_samples: int = 5000
    max_warmup_ms: float = 5000.0

    def __post_init__(self) -> None:
        times = self.warmup_ms >= 0 and self.measure_ms > 0 and self.max_warmup_ms >= 0
        if not (times and 1 <= self.min_samples <= self.max_samples):
            raise UsageError(
                f"effort is {self}, expected warmup_ms ≥ 0, max_warmup_ms ≥ 0, measure_ms > 0 and "
                "1 ≤ min_samples ≤ max_samples",
                hint="Effort() measures for 3 s",
            )


@dataclass(frozen=True)
class Measured:
    """Wall times in ms of each call, those of the warm-up apart. settled: whether it was seen to end; None where it
    had too few calls to tell."""

    samples_ms: list[float]
    warmup_ms: list[float]
    settled: bool | None

    @property
    def warmup(self) -> str:
        """In a few words."""
        spent = f"{len(self.warmup_ms)} calls in {sum(self.warmup_ms) / 1e3:.1f} s"
        ended = {True: "which settled", False: "which did not settle", None: "too few to tell whether it settled"}
        return f"{spent}, {ended[self.settled]}"


def measure(
    call: Callable[[], object],
    effort: Effort,
    progress: Callable[[float], None] = lambda share: None,
    warm: Callable[[], object] = lambda: None,
) -> Measured:
    """Time each `call` on the monotonic clock; it must return only when its work is done.

    At least two warm-up calls run first; `warm` is called once, between them and the first sample. `progress` gets the
    share done, 0..1, between calls.
    """
    warmup_ms, settled = _warm_up(call, effort)
    warm()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < effort.max_samples:
        samples.append(_timed(call))
        elapsed = _since_ms(started)
        if len(samples) >= effort.min_samples and elapsed >= effort.measure_ms:
            break
        progress(min(1.0, elapsed / effort.measure_ms, len(samples) / effort.min_samples))
    progress(1.0)
    return Measured(samples, warmup_ms, settled)


def sample(
    call: Callable[[], object], effort: Effort, progress: Callable[[float], None] = lambda share: None
) -> list[float]:
    """The samples of `measure` alone."""
    return measure(call, effort, progress).samples_ms


def _warm_up(call: Callable[[], object], effort: Effort) -> tuple[list[float], bool | None]:
    started = time.perf_counter()
    spent: list[float] = []
    agreed, settled, again = False, False, FEWEST_TO_SETTLE
    while True:
        spent.append(_timed(call))
        elapsed = _since_ms(started)
        if len(spent) >= again:
            agrees = settles(spent)
            settled, agreed, again = agreed and agrees, agrees, math.ceil(len(spent) * 1.2)
        if len(spent) >= 2 and elapsed >= effort.warmup_ms and (settled or elapsed >= effort.max_warmup_ms):
            return spent, settled if len(spent) >= FEWEST_TO_SETTLE else None


def settles(calls_ms: Sequence[float]) -> bool:
    """Whether the medians of the last third and of the third before agree within 2 %; of ≥ 3 calls."""
    window = len(calls_ms) // 3
    before, last = np.median(calls_ms[-2 * window : -window]), np.median(calls_ms[-window:])
    return abs(float(last / before) - 1) <= SETTLED


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return _since_ms(start)


def _since_ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
