from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from mpmmu_rt.errors import UsageError
from mpmmu_rt.latency import Effort, Latency, sample, summarise

SHORT = Effort(warmup_ms=0, measure_ms=0.001, min_samples=5, max_samples=50)


def test_percentiles_by_hand() -> None:
    latency = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    # position p · (n - 1) in the sorted samples, linear between neighbours
    assert (latency.p50, latency.p90, latency.p99) == pytest.approx((3.0, 4.6, 4.96))
    assert (latency.mean, latency.n) == (3.0, 5)


def test_percentiles_against_numpy_on_a_skewed_sample() -> None:
    samples = np.random.default_rng(3).lognormal(1.0, 0.7, 997)
    latency = summarise(samples.tolist())
    assert [latency.p50, latency.p90, latency.p99] == np.percentile(samples, [50, 90, 99]).tolist()
    assert latency.mean == pytest.approx(samples.sum() / 997, rel=1e-12)


def test_an_outlier_is_not_clipped() -> None:
    assert summarise([1.0] * 99 + [1000.0]).mean == pytest.approx(10.99)
    assert summarise([1.0] * 99 + [1000.0]).p99 == pytest.approx(1.0 + 0.01 * 999)


def test_one_sample_is_every_percentile() -> None:
    assert summarise([7.5]) == Latency(7.5, 7.5, 7.5, 7.5, 1, 0.0)


def test_the_json_keys_are_those_of_the_issue() -> None:
    assert summarise([1.0, 2.0]).to_json() == {"p50": 1.5, "p90": 1.9, "p99": 1.99, "mean": 1.5, "n": 2}


@pytest.mark.parametrize(
    ("samples", "drift", "stable"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0, True),
        ([100.0, 100.0, 104.0, 104.0], 0.04, True),
        ([100.0, 100.0, 106.0, 106.0], 0.06, False),
        ([106.0, 106.0, 100.0, 100.0], 6 / 106, False),
    ],
)
def test_drift_compares_the_two_halves(samples: list[float], drift: float, stable: bool) -> None:
    latency = summarise(samples)
    assert latency.drift == pytest.approx(drift)
    assert latency.stable is stable


def test_two_warm_up_calls_and_the_asked_number_of_samples() -> None:
    calls = itertools.count()
    assert len(sample(lambda: next(calls), SHORT)) == 5
    assert next(calls) == 2 + 5


def test_the_maximum_ends_it() -> None:
    calls = itertools.count()
    assert len(sample(lambda: next(calls), Effort(0, 1e9, 1, 7))) == 7


def test_a_sample_is_in_milliseconds() -> None:
    samples = sample(lambda: time.sleep(0.005), Effort(0, 0.001, 3, 3))
    assert min(samples) >= 5.0
    assert min(samples) < 500.0


def test_warm_up_lasts_as_long_as_asked() -> None:
    calls = itertools.count()

    def call() -> None:
        next(calls)
        time.sleep(0.002)

    sample(call, Effort(warmup_ms=20, measure_ms=0.001, min_samples=1, max_samples=1))
    assert next(calls) >= 1 + 3


def test_progress_ends_at_one_and_never_goes_back() -> None:
    shares: list[float] = []
    sample(lambda: None, SHORT, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    "wrong",
    [
        {"measure_ms": 0.0},
        {"measure_ms": float("nan")},
        {"warmup_ms": -1.0},
        {"min_samples": 0},
        {"min_samples": 3, "max_samples": 2},
    ],
)
def test_an_effort_that_can_not_be_made_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="effort is Effort"):
        Effort(**wrong)  # type: ignore[arg-type]
