"""The latency gate: is B slower than A? Pure functions of samples; `compare.py` takes them.

A *round* is one turn of A and one of B in an order drawn by lot, each in a process of its own; a turn is several calls.
What is judged is d = log(B / A) of each round, of two statistics of a turn's calls: the median ("typical") and the mean
of the slowest tenth ("tail", which sees what slows down one call of ten).

Test. If B takes (1 + s) times what A does, and else the two differ by nothing, then whichever of the two came first by
lot is as likely to be the one that was lucky: d - log(1 + s) is as likely above 0 as below in every round, whatever
the noise is: drift, bursts, clocks with two speeds, rounds that depend on each other. So the count of rounds above 0
is held to a fair coin. No distribution is assumed, and no variance estimated.

Sequential. The evidence against the coin is the mixture likelihood ratio over five coins, p = 0.6, 0.7, 0.8, 0.9 and 1,
each with a fifth of the weight,

    E(n, k) = mean over p of (2p)^k (2(1 - p))^(n - k),

a non-negative supermartingale that begins at 1: by Ville's inequality it ever reaches 1 / alpha with probability alpha
at the most, so that looking after every round costs nothing (Ville 1939; Robbins 1970, "Statistical methods related to
the law of the iterated logarithm"; Howard and Ramdas 2022, "Sequential estimation of quantiles", section 3). Six rounds
that all say the same are enough at alpha = 0.05, seven at half of it.

Answers. `not slower`: "B is slower by max_slowdown or more" is rejected for the typical call, and the tail's median
ratio is within it. `slower`: "B is not slower at all" is rejected, for the typical call or the tail, and the median of
the rounds' ratios is beyond max_slowdown, and a second run of fresh rounds says the same of the same statistic.
`cannot tell`: neither before the rounds end, or the two runs contradict each other. At alpha = 0.05: of comparisons of
equals at most 0.25 % are called slower (0.05 in each of two runs, half of it for each statistic); of those whose
typical call is slower by max_slowdown or more at most 5 % not slower.

Where one side is a stored baseline nothing was drawn by lot, and the coin is fair by assumption alone: exchangeable
days. `baseline.py` says what that costs, and what it does about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from .errors import UsageError

Answer = Literal["not slower", "slower", "cannot tell"]
STATISTICS = ("typical", "tail")
# Against all coins from 1/2 to 1 alike these take a round less where all agree, and none more where few do: NOTES.
_COINS = (0.6, 0.7, 0.8, 0.9, 1.0)
MOST_SLOWDOWN = 10.0


@dataclass(frozen=True)
class Rule:
    """max_slowdown: what is allowed, 0.05 for 5 %. alpha: error rate of each run, see the module."""

    max_slowdown: float = 0.05
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.max_slowdown <= MOST_SLOWDOWN and 0 < self.alpha < 0.5):
            raise UsageError(
                f"max_slowdown is {self.max_slowdown:g} and alpha {self.alpha:g}, expected more than 0 and at most "
                f"{MOST_SLOWDOWN:g}, and more than 0 and less than 0.5",
                hint="5 % is 0.05",
            )


@dataclass(frozen=True)
class Estimate:
    """Of one statistic over some rounds: the median of B / A - 1, and a confidence interval at 1 - 2 alpha that holds
    at every look; infinite ends where there are too few rounds."""

    slowdown: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """The answer, why, and what was estimated of each statistic, by name, over all rounds."""

    answer: Answer
    reason: str
    rounds: int
    estimates: dict[str, Estimate]

    def estimates_json(self) -> dict[str, dict[str, float | None]]:
        """JSON values; an end of an interval that is not known is null."""
        return {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(one).items()}
            for name, one in self.estimates.items()
        }


def statistics(calls_ms: Sequence[float]) -> dict[str, float]:
    """Of the calls of one turn, in ms: `typical` their median, `tail` the mean of the slowest tenth, at least one."""
    calls = np.sort(np.asarray(calls_ms, dtype=np.float64))
    if calls.size == 0 or not np.isfinite(calls).all() or calls[0] <= 0:
        raise UsageError(f"a turn has {calls.size} calls, expected ≥ 1, each of more than 0 ms")
    slowest = max(1, calls.size // 10)
    return {"typical": float(np.median(calls)), "tail": float(calls[-slowest:].mean())}


def evidence(above: int, rounds: int) -> float:
    """E(n, k) of the module: of n = `rounds` coins that are fair or worse, k = `above` heads."""
    return sum((2 * p) ** above * (2 * (1 - p)) ** (rounds - above) for p in _COINS) / len(_COINS)


def above(logs: Sequence[float], slowdown: float, alpha: float) -> bool:
    """Is "B is slower by `slowdown` at the most" rejected by the rounds' log(B / A)? Equal rounds don't count."""
    return _rejects_at_most(logs, math.log1p(slowdown), alpha)


def below(logs: Sequence[float], slowdown: float, alpha: float) -> bool:
    """Is "B is slower by `slowdown` at the least" rejected?"""
    return _rejects_at_least(logs, math.log1p(slowdown), alpha)


def _rejects_at_most(logs: Sequence[float], edge: float, alpha: float) -> bool:
    signs = [value > edge for value in logs if value != edge]
    return bool(signs) and evidence(sum(signs), len(signs)) >= 1 / alpha


def _rejects_at_least(logs: Sequence[float], edge: float, alpha: float) -> bool:
    return _rejects_at_most([-value for value in logs], -edge, alpha)


def estimate(logs: Sequence[float], alpha: float) -> Estimate:
    """The median, and all slowdowns that neither `above` nor `below` rejects."""
    rounds = sorted(set(logs))
    # What is rejected is the same everywhere between two rounds; at a round itself it is not, as that counts as a tie.
    edges = [-math.inf, *rounds, math.inf]
    spans = [(x, x, x) for x in rounds]
    for low, high in pairwise(edges):
        inside = rounds[0] - 1 if low == -math.inf else rounds[-1] + 1 if high == math.inf else (low + high) / 2
        spans.append((low, inside, high))
    kept = [
        one for one in spans if not any(test(logs, one[1], alpha) for test in (_rejects_at_most, _rejects_at_least))
    ]
    ends = -math.inf, math.inf
    if kept:  # of many rounds that are equal to the bit, both tests may reject all there is
        ends = min(low for low, _, _ in kept), max(high for _, _, high in kept)
    return Estimate(*(math.expm1(x) if math.isfinite(x) else x for x in (float(np.median(logs)), *ends)))


def judge(rounds: Sequence[dict[str, float]], rule: Rule) -> Verdict | None:
    """After the latest of `rounds`, each log(B / A) of both statistics; None while more rounds may tell.

    Call it after every round, or now and then: the error rates hold either way.
    """
    first, suspect = _first_run(rounds, rule)
    if suspect is None:
        return _told("not slower", "shown to be within what is allowed", rounds, rule) if first else None
    second = [one[suspect] for one in rounds[first:]]
    for count in range(1, len(second) + 1):
        if _slower(second[:count], rule):
            return _told("slower", f"the {suspect} call, in two runs", rounds, rule)
        if below(second[:count], rule.max_slowdown, rule.alpha):
            why = f"the {suspect} call was slower in the first run, and not in the second"
            return _told("cannot tell", why, rounds, rule)
    return None


def undecided(rounds: Sequence[dict[str, float]], rule: Rule, reason: str) -> Verdict:
    """Where no more rounds can be had."""
    return _told("cannot tell", reason, rounds, rule)


def within(calls_ms: Sequence[float], limit_ms: float, share: float = 0.99, alpha: float = 0.05) -> bool | None:
    """Whether `share` of all calls take at most `limit_ms`: None while these can't tell.

    Wald's sequential test (1945, "Sequential tests of statistical hypotheses") of the probability p that a call takes
    longer, 1 - share, against a tenth of it and against five times it: for any larger, or smaller, p the likelihood
    ratio is a supermartingale too, so that looking after every call costs nothing. At most alpha of those beyond are
    called within, and the other way round. It takes the calls for independent: a burst counts as many calls.
    """
    over, p = sum(ms > limit_ms for ms in calls_ms), 1 - share
    fits = len(calls_ms) - over
    for other, said in ((p / 10, True), (min(5 * p, (1 + p) / 2), False)):
        if over * math.log(other / p) + fits * math.log((1 - other) / (1 - p)) >= math.log(1 / alpha):
            return said
    return None


def _first_run(rounds: Sequence[dict[str, float]], rule: Rule) -> tuple[int, str | None]:
    """How many rounds the first run took, 0 while it goes on, and the statistic that it calls slower."""
    for count in range(1, len(rounds) + 1):
        seen = {name: [one[name] for one in rounds[:count]] for name in STATISTICS}
        for name, logs in seen.items():
            if _slower(logs, rule):
                return count, name
        within = float(np.median(seen["tail"])) <= math.log1p(rule.max_slowdown)
        if within and below(seen["typical"], rule.max_slowdown, rule.alpha):
            return count, None
    return 0, None


def _slower(logs: Sequence[float], rule: Rule) -> bool:
    """Significant, and more than what is allowed; each statistic has half of the error rate."""
    return above(logs, 0.0, rule.alpha / len(STATISTICS)) and float(np.median(logs)) > math.log1p(rule.max_slowdown)


def _told(answer: Answer, reason: str, rounds: Sequence[dict[str, float]], rule: Rule) -> Verdict:
    estimates = {name: estimate([one[name] for one in rounds], rule.alpha) for name in STATISTICS if rounds}
    return Verdict(answer, reason, len(rounds), estimates)
