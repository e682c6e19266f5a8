"""Latency: how it is sampled and what is said about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UsageError

# Medians of the first and second half of a run that differ by more mean that the machine was not settled.
STABLE_DRIFT = 0.05


@dataclass(frozen=True)
class Latency:
    """Percentiles of latency samples, in milliseconds. Nothing is clipped: a slow call is part of the truth."""

    p50: float
    p90: float
    p99: float
    mean: float
    n: int
    drift: float  # |median of the second half / median of the first half - 1|

    @property
    def stable(self) -> bool:
        return self.drift <= STABLE_DRIFT

    def to_json(self) -> dict[str, float | int]:
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "mean": self.mean, "n": self.n}


def summarise(samples_ms: Sequence[float]) -> Latency:
    """Percentiles by linear interpolation between order statistics (NumPy's default) of ≥ 1 samples in ms."""
    samples = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    half = samples.size // 2
    drift = abs(np.median(samples[half:]) / np.median(samples[:half]) - 1) if half else 0.0
    return Latency(float(p50), float(p90), float(p99), float(samples.mean()), int(samples.size), float(drift))


@dataclass(frozen=True)
class Effort:
    """How long to measure: warm up, then sample until both the time and the count are reached."""

    warmup_ms: float = 500.0
    measure_ms: float = 3000.0
    min_samples: int = 10
    max_samples: int = 5000

    def __post_init__(self) -> None:
        if not (self.warmup_ms >= 0 and self.measure_ms > 0 and 1 <= self.min_samples <= self.max_samples):
            raise UsageError(
                f"effort is {self}, expected warmup_ms ≥ 0, measure_ms > 0 and 1 ≤ min_samples ≤ max_samples",
                hint="Effort() measures for 3 s",
            )


def sample(
    call: Callable[[], object], effort: Effort, progress: Callable[[float], None] = lambda share: None
) -> list[float]:
    """Wall time in ms of each `call`, on the monotonic clock; `call` must return only when its work is done.

    At least two warm-up calls run first. `progress` gets the share done, 0..1, between calls.
    """
    started = time.perf_counter()
    calls = 0
    while calls < 2 or _since_ms(started) < effort.warmup_ms:
        call()
        calls += 1
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < effort.max_samples:
        before = time.perf_counter()
        call()
        samples.append(_since_ms(before))
        elapsed = _since_ms(started)
        if len(samples) >= effort.min_samples and elapsed >= effort.measure_ms:
            break
        progress(min(1.0, elapsed / effort.measure_ms, len(samples) / effort.min_samples))
    progress(1.0)
    return samples


def _since_ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
