"""The latency gate on simulated noise: each kind that runners have, and what slows down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats

from mpmmu_rt import gate
from mpmmu_rt.errors import UsageError
from mpmmu_rt.gate import Rule, Verdict

Noise = Callable[[np.random.Generator], Iterator[float]]
CALLS = 12  # of a turn
MOST_ROUNDS = 60


def white(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield math.exp(rng.normal(0, 0.02))


def drift(rng: np.random.Generator) -> Iterator[float]:
    """The machine gets slower all the time, by a third within a comparison."""
    level = 0.0
    while True:
        level += 0.3 / (2 * CALLS * MOST_ROUNDS)
        yield math.exp(level + rng.normal(0, 0.02))


def bursts(rng: np.random.Generator) -> Iterator[float]:
    """Something else runs now and then, for up to three turns, and takes half of the processor."""
    left = 0
    while True:
        if left == 0 and rng.random() < 0.02:
            left = int(rng.integers(1, 3 * CALLS))
        left = max(0, left - 1)
        yield (1.5 if left else 1.0) * math.exp(rng.normal(0, 0.01))


def two_clocks(rng: np.random.Generator) -> Iterator[float]:
    """Turbo or not, for about two turns at a time."""
    fast = True
    while True:
        if rng.random() < 1 / (2 * CALLS):
            fast = not fast
        yield (1.0 if fast else 1.25) * math.exp(rng.normal(0, 0.01))


def correlated(rng: np.random.Generator) -> Iterator[float]:
    """Calls that follow each other are alike: an autoregressive walk that forgets within about 50 calls."""
    level = 0.0
    while True:
        level = 0.98 * level + rng.normal(0, 0.01)
        yield math.exp(level + rng.normal(0, 0.01))


def heavy_tails(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield 1 + 0.02 * float(abs(rng.standard_t(1.5)))


KINDS: dict[str, Noise] = {one.__name__: one for one in (white, drift, bursts, two_clocks, correlated, heavy_tails)}


def compared(rng: np.random.Generator, noise: Noise, slow: Callable[[int], float], rule: Rule) -> Verdict:
    """A comparison as `compare` makes it, B's i-th call slowed down by `slow(i)`."""
    weather, rounds = noise(rng), list[dict[str, float]]()
    for _ in range(MOST_ROUNDS):
        turns: dict[str, dict[str, float]] = {}
        for side in ("AB", "BA")[int(rng.integers(2))]:
            calls = [next(weather) * (slow(i) if side == "B" else 1.0) for i in range(CALLS)]
            turns[side] = gate.statistics(calls)
        rounds.append({name: math.log(turns["B"][name] / turns["A"][name]) for name in gate.STATISTICS})
        if verdict := gate.judge(rounds, rule):
            return verdict
    return gate.undecided(rounds, rule, "no more rounds")


def answers(kind: str, count: int, slow: Callable[[int], float] = lambda i: 1.0, seed: int = 0) -> list[str]:
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    return [compared(rng, KINDS[kind], slow, Rule()).answer for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equals_are_not_called_slower(kind: str) -> None:
    said = answers(kind, 200)
    assert said.count("slower") <= 2  # 1 %; the bound is 0.25 %


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_a_tenth_slower_is_never_let_through(kind: str) -> None:
    said = answers(kind, 100, lambda i: 1.10)
    assert said.count("not slower") <= 5
    if kind in ("white", "drift", "bursts", "two_clocks"):  # where single rounds tell something
        assert said.count("slower") >= 95


@pytest.mark.slow
def test_a_slowdown_that_is_allowed_passes() -> None:
    said = answers("white", 100, lambda i: 1.02)
    assert said.count("slower") <= 1
    assert said.count("not slower") >= 90


@pytest.mark.slow
def test_one_call_of_ten_that_is_slow_is_seen() -> None:
    """The median of the calls sees nothing of it."""
    said = answers("white", 100, lambda i: 1.3 if i % 10 == 9 else 1.0)
    assert said.count("slower") >= 95


def test_equals_on_a_quiet_machine_pass_within_few_rounds() -> None:
    rng = np.random.default_rng(1)
    found = [compared(rng, white, lambda i: 1.0, Rule()) for _ in range(50)]
    assert [one.answer for one in found].count("not slower") >= 49
    assert float(np.median([one.rounds for one in found])) <= 10


# ---------------------------------------------------------------- by hand


def test_evidence_is_the_mean_of_five_likelihood_ratios() -> None:
    coins = np.array([6, 7, 8, 9, 10]) / 10
    for rounds, heads in product(range(12), repeat=2):
        if heads <= rounds:
            ratios = stats.binom.pmf(heads, rounds, coins) / stats.binom.pmf(heads, rounds, 0.5)
            assert gate.evidence(heads, rounds) == pytest.approx(float(ratios.mean()), rel=1e-9)


@pytest.mark.parametrize(("alpha", "rounds"), [(0.05, 6), (0.025, 7)])
def test_so_many_rounds_that_all_agree_are_enough(alpha: float, rounds: int) -> None:
    assert gate.above([0.1] * rounds, 0.0, alpha)
    assert not gate.above([0.1] * (rounds - 1), 0.0, alpha)


def test_evidence_of_fair_coins_is_1_on_average() -> None:
    """What makes it a martingale: heads and tails of the next coin, half of each."""
    for rounds in range(12):
        for heads in range(rounds + 1):
            after = (gate.evidence(heads + 1, rounds + 1) + gate.evidence(heads, rounds + 1)) / 2
            assert after <= gate.evidence(heads, rounds) * (1 + 1e-12)


def test_an_interval_holds_what_is_not_rejected() -> None:
    logs = [0.01 * i for i in range(-15, 16)]
    found = gate.estimate(logs, 0.05)
    assert found.slowdown == pytest.approx(0.0)
    assert found.low < 0 < found.high
    assert not gate.above(logs, found.low + 1e-9, 0.05)
    assert gate.above(logs, found.low - 0.011, 0.05)
    assert gate.below(logs, found.high + 0.011, 0.05)
    few = gate.estimate([0.1, 0.2], 0.05)
    assert (few.low, few.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("seed", range(40))
def test_an_interval_is_all_that_is_not_rejected(seed: int, alpha: float) -> None:
    """At rounds, between them and beyond; with rounds that are equal."""
    drawn = np.random.default_rng(seed)
    logs = [float(one) for one in drawn.normal(0.02, 0.02, int(drawn.integers(1, 40))).round(int(drawn.integers(2, 6)))]
    found = gate.estimate(logs, alpha)
    low, high = (math.log1p(x) if math.isfinite(x) else x for x in (found.low, found.high))
    edges = sorted(set(logs))
    places = [edges[0] - 1, *edges, *((a + b) / 2 for a, b in pairwise(edges)), edges[-1] + 1]
    for place in places:
        kept = not gate.above(logs, math.expm1(place), alpha) and not gate.below(logs, math.expm1(place), alpha)
        if kept:
            assert low - 1e-12 <= place <= high + 1e-12
        elif place not in edges:
            assert not low + 1e-12 < place < high - 1e-12


def test_the_interval_of_seven_rounds_reaches_to_the_outer_ones() -> None:
    """It was cut off at the second and the last but one."""
    for rounds, low, high in ((6, 0.01, 0.06), (7, 0.01, 0.07), (12, 0.02, 0.11)):
        found = gate.estimate([0.01 * i for i in range(1, rounds + 1)], 0.05)
        assert (math.log1p(found.low), math.log1p(found.high)) == pytest.approx((low, high))


def test_an_interval_misses_the_median_no_more_often_than_it_says() -> None:
    drawn = np.random.default_rng(3).normal(size=(4000, 7))
    missed = sum(not one.low <= 0 <= one.high for one in (gate.estimate(list(row), 0.05) for row in drawn))
    assert missed / 4000 < 0.1  # it was 0.125


def rounds_of(*slowdowns: float) -> list[dict[str, float]]:
    return [{"typical": math.log1p(one), "tail": math.log1p(one)} for one in slowdowns]


def test_slower_needs_a_second_run() -> None:
    rule = Rule()
    first = next(n for n in range(1, 30) if gate.judge(rounds_of(*[0.1] * n), rule))
    alone = next(n for n in range(1, 30) if gate.above([0.1] * n, 0.0, rule.alpha / 2))
    assert first == 2 * alone
    contradicted = gate.judge(rounds_of(*[0.1] * alone, *[0.0] * 12), rule)
    assert contradicted is not None
    assert (contradicted.answer, "in the second" in contradicted.reason) == ("cannot tell", True)


def test_slower_needs_size_as_well_as_significance() -> None:
    """3 % in every round is significant, and allowed."""
    said = gate.judge(rounds_of(*[0.03] * 20), Rule())
    assert said is not None
    assert said.answer == "not slower"
    assert gate.judge(rounds_of(*[0.03] * 20), Rule(max_slowdown=0.03)) is None


def test_equal_rounds_say_nothing_of_a_difference() -> None:
    assert not gate.above([0.0] * 40, 0.0, 0.05)
    assert gate.below([0.0] * 8, 0.05, 0.05)


@pytest.mark.parametrize(("slowdown", "alpha"), [(0.0, 0.05), (-0.1, 0.05), (0.05, 0.0), (0.05, 0.7), (math.nan, 0.05)])
def test_rules_that_make_no_sense(slowdown: float, alpha: float) -> None:
    with pytest.raises(UsageError, match="expected more than 0"):
        Rule(slowdown, alpha)


@pytest.mark.parametrize("calls", [[], [1.0, math.nan], [0.0, 1.0]])
def test_turns_without_times_are_refused(calls: list[float]) -> None:
    with pytest.raises(UsageError, match="expected ≥ 1, each of more than 0 ms"):
        gate.statistics(calls)


def test_statistics_of_a_turn() -> None:
    assert gate.statistics([3.0, 1.0, 2.0]) == {"typical": 2.0, "tail": 3.0}
    assert gate.statistics([*range(1, 21)]) == {"typical": 10.5, "tail": 19.5}


def test_an_interval_of_rounds_that_are_equal_is_no_error() -> None:
    """Both tests may reject every span: a tie does not count, and just beside it it does."""
    found = gate.estimate([0.0] * 100 + [0.1] * 30, 0.0025)
    assert (found.low, found.high) == (-math.inf, math.inf)
