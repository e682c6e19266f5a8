from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import numpy as np
import pytest
from scipy import stats

from mpmmu_rt.errors import UsageError
from mpmmu_rt.latency import PERCENTILES, Effort, Latency, Measured, measure, ranks, sample, settles, summarise

SHORT = Effort(warmup_ms=0, measure_ms=0.001, min_samples=5, max_samples=50, max_warmup_ms=0)


def test_percentiles_by_hand() -> None:
    found = summarise([4.0, 1.0, 3.0, 2.0, 6.0, 5.0])
    # position p · (n - 1) in the sorted samples, linear between neighbours
    assert (found.p50, found.mean, found.n) == (3.5, 3.5, 6)


def test_percentiles_against_numpy_on_a_skewed_sample() -> None:
    samples = np.random.default_rng(3).lognormal(1.0, 0.7, 4000)
    found = summarise(samples.tolist())
    want = np.percentile(samples, [50, 90, 99, 99.9]).tolist()
    assert [found.p50, found.p90, found.p99, found.p999] == pytest.approx(want, rel=1e-12)
    assert found.mean == pytest.approx(samples.sum() / 4000, rel=1e-12)


def test_an_outlier_is_not_clipped() -> None:
    assert summarise([1.0] * 99 + [1000.0]).mean == pytest.approx(10.99)
    assert summarise([1.0] * 396 + [1000.0] * 4).p99 == pytest.approx(1.0 + 0.01 * 999)


@pytest.mark.parametrize(("name", "count"), [("p50", 6), ("p90", 36), ("p99", 368), ("p999", 3688)])
def test_a_percentile_is_told_from_so_many_samples_on(name: str, count: int) -> None:
    """0.975 = P(one of n samples or more lies above the quantile), by p^n ≤ 0.025."""
    samples = np.arange(1.0, count + 1).tolist()
    assert getattr(summarise(samples), name) == np.quantile(samples, PERCENTILES[name])
    few = summarise(samples[:-1])
    assert getattr(few, name) is None
    assert few.missing[name] == count


@pytest.mark.parametrize(("count", "p"), [(6, 0.5), (101, 0.5), (40, 0.9), (400, 0.99), (5000, 0.999)])
def test_intervals_against_the_binomial_distribution(count: int, p: float) -> None:
    found = ranks(count, p)
    assert found is not None
    low, high = found
    assert stats.binom.cdf(low, count, p) <= 0.025 < stats.binom.cdf(low + 1, count, p)
    assert stats.binom.cdf(high - 1, count, p) < 0.975 <= stats.binom.cdf(high, count, p)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    held = {"p50": 0, "p90": 0}
    for _ in range(400):
        for name, (low, high) in summarise(rng.exponential(1.0, 60).tolist()).intervals.items():
            held[name] += low <= -np.log(1 - PERCENTILES[name]) <= high
    assert min(held.values()) >= 370, held  # 0.95 of 400, and three standard deviations less are 367


def test_one_sample_is_no_percentile() -> None:
    assert summarise([7.5]) == Latency(None, None, None, None, 7.5, 1, 0.0)


def test_the_json() -> None:
    assert summarise([1.0, 2.0]).to_json() == {
        **dict.fromkeys(PERCENTILES),
        "mean": 1.5,
        "n": 2,
        "intervals_95": {},
    }
    assert summarise([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).to_json()["intervals_95"] == {"p50": [1.0, 6.0]}


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
    found = summarise(samples)
    assert found.drift == pytest.approx(drift)
    assert found.stable is stable


def test_two_warm_up_calls_and_the_asked_number_of_samples() -> None:
    calls = itertools.count()
    assert len(sample(lambda: next(calls), SHORT)) == 5
    assert next(calls) == 2 + 5


def test_the_maximum_ends_it() -> None:
    calls = itertools.count()
    assert len(sample(lambda: next(calls), Effort(0, 1e9, 1, 7, 0))) == 7


def test_a_sample_is_in_milliseconds() -> None:
    samples = sample(lambda: time.sleep(0.005), Effort(0, 0.001, 3, 3, 0))
    assert min(samples) >= 5.0
    assert min(samples) < 500.0


def test_warm_up_lasts_as_long_as_asked() -> None:
    calls = itertools.count()

    def call() -> None:
        next(calls)
        time.sleep(0.002)

    sample(call, Effort(warmup_ms=20, measure_ms=0.001, min_samples=1, max_samples=1, max_warmup_ms=0))
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
        {"max_warmup_ms": -1.0},
        {"min_samples": 0},
        {"min_samples": 3, "max_samples": 2},
    ],
)
def test_an_effort_that_can_not_be_made_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="effort is Effort"):
        Effort(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- warm-up


class Clock:
    """`time.perf_counter` of a machine whose k-th call takes so many ms."""

    def __init__(self, ms: Iterable[float]) -> None:
        self.ms, self.now, self.calls = iter(ms), 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += next(self.ms) / 1e3
        self.calls += 1


UNTIL = Effort(warmup_ms=100, measure_ms=1, min_samples=1, max_samples=1, max_warmup_ms=20_000)


def warmed(monkeypatch: pytest.MonkeyPatch, ms: Iterable[float], effort: Effort = UNTIL) -> Measured:
    clock = Clock(ms)
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    return measure(clock.call, effort)


def test_a_warm_up_that_is_none_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    found = warmed(monkeypatch, (10 * rng.lognormal(0, 0.03) for _ in itertools.count()))
    assert found.settled
    assert 15 < len(found.warmup_ms) < 70
    assert found.warmup.endswith("which settled")


@pytest.mark.parametrize("seed", range(10))
def test_a_warm_up_is_waited_for(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Half as long again at first, and less by the 30th part of the rest with each call: 2 % are left after 97."""
    rng = np.random.default_rng(seed)
    found = warmed(monkeypatch, (10 * (1 + 0.5 * np.exp(-k / 30)) * rng.lognormal(0, 0.03) for k in itertools.count()))
    assert found.settled
    assert 97 < len(found.warmup_ms) < 500


def test_a_slow_call_is_no_trend() -> None:
    assert settles([10.0] * 14 + [500.0])
    assert not settles([10.0] * 10 + [11.0] * 5)


def test_a_warm_up_that_never_ends_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = warmed(monkeypatch, (10 * 1.01**k for k in itertools.count()))
    assert found.settled is False
    assert 20_000 <= sum(found.warmup_ms) < 21_000
    assert found.warmup.endswith("which did not settle")


def test_calls_that_are_too_few_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    found = warmed(monkeypatch, itertools.repeat(9000.0))
    assert (found.settled, len(found.warmup_ms)) == (None, 3)
    assert found.warmup == "3 calls in 27.0 s, too few to tell whether it settled"


def test_warm_up_calls_are_no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(float(k) for k in range(1, 1000))
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    told: list[int] = []
    effort = Effort(warmup_ms=5, measure_ms=1, min_samples=4, max_samples=4, max_warmup_ms=0)
    found = measure(clock.call, effort, warm=lambda: told.append(clock.calls))
    assert found.warmup_ms == pytest.approx([1, 2, 3])
    assert found.samples_ms == pytest.approx([4, 5, 6, 7])
    assert told == [3]
