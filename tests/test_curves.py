from __future__ import annotations

import time

import pytest

from mpmmu_rt.curves import REPEATS, Step, idle_gaps, knee, sweep, sweep_json
from mpmmu_rt.errors import UsageError
from mpmmu_rt.latency import Effort


def steps(**rates: float) -> list[Step]:
    return [Step(int(name[1:]), 1.0, 1.0, rate, 10, True) for name, rate in rates.items()]


def test_the_knee_is_the_smallest_batch_that_reaches_95_percent_of_the_best() -> None:
    assert knee(steps(b1=10, b2=94.9, b4=95, b8=100, b16=99)).batch == 4
    assert knee(steps(b16=99, b8=100, b1=10)).batch == 8  # whatever their order
    assert knee(steps(b1=100, b2=50)).batch == 1
    assert sweep_json(steps(b1=10, b2=100))["knee"] == 2


def test_a_sweep_takes_each_batch_once_the_smallest_first() -> None:
    asked: list[int] = []
    effort = Effort(0, 0.001, 6, 6, 0)
    shares: list[float] = []
    found = sweep(asked.append, [4, 1, 4], effort, shares.append)
    assert [step.batch for step in found] == [1, 4]
    assert asked == [1] * 8 + [4] * 8
    assert shares == [0.5, 1.0]
    assert all(step.pairs_per_s == pytest.approx(step.batch / step.mean_ms * 1e3) for step in found)


def test_the_call_after_a_silence_is_what_is_timed() -> None:
    """A machine that falls asleep: the first call after 20 ms takes 20 ms longer."""
    last = time.perf_counter()

    def call() -> None:
        nonlocal last
        if time.perf_counter() - last > 0.015:
            time.sleep(0.02)
        last = time.perf_counter()

    shares: list[float] = []
    at_once, later = idle_gaps(call, [0.02, 0, 0.02], shares.append)
    assert (at_once.seconds, later.seconds) == (0, 0.02)
    assert len(at_once.samples_ms) == len(later.samples_ms) == REPEATS
    assert at_once.median_ms < 10 < 20 <= later.median_ms
    assert shares[-1] == 1.0


@pytest.mark.parametrize("gap", [-1.0, 601.0, float("nan"), float("inf")])
def test_a_silence_that_makes_no_sense(gap: float) -> None:
    with pytest.raises(UsageError, match="expected 0 to 600 s"):
        idle_gaps(lambda: None, [gap])
