"""Figures of decisions that need NumPy alone: AUC, Brier score, calibration error, exact intervals of shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from .spec import Array

CONFIDENCE = 0.95
CALIBRATION_BINS = 10
FEWEST_PATIENTS = 10
WIDEST_INTERVAL = 0.2


def area_under_curve(label: Array, score: Array) -> float | None:
    """AUC of score float [N] against label int [N]: P(malignant scores higher) + P(equal) / 2, by ranks (Mann and
    Whitney 1947, Ann. Math. Stat. 18:50). None without cases of both classes."""
    malignant, benign = score[label == 1], np.sort(score[label == 0])
    if not len(malignant) or not len(benign):
        return None
    below, below_or_equal = np.searchsorted(benign, malignant, "left"), np.searchsorted(benign, malignant, "right")
    return float(np.sum(below + below_or_equal)) / (2 * len(malignant) * len(benign))


def counts(label: Array, decided: Array) -> dict[str, int]:
    """Of label int [N] and decided bool [N], whether malignant: right and wrong decisions of each kind."""
    truth = label == 1
    return {
        "true_positive": int((decided & truth).sum()),
        "false_positive": int((decided & ~truth).sum()),
        "true_negative": int((~decided & ~truth).sum()),
        "false_negative": int((~decided & truth).sum()),
    }


def bin_of(probability: Array, bins: int = CALIBRATION_BINS) -> Array:
    """int64 [N]: which of `bins` equal bins of 0..1 each probability float [N] lies in; 1 in the last. Computed in
    float64, in which a float32 is what it is."""
    found: Array = np.minimum((np.asarray(probability, np.float64) * bins).astype(np.int64), bins - 1)
    return found


def brier_score(label: Array, probability: Array) -> float:
    """Mean squared difference of probability float [N] and label int [N] (Brier 1950); 0 is perfect."""
    return float(np.mean((probability - label) ** 2))


def calibration_error(label: Array, probability: Array, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error over `bins` equal bins of 0..1 (Naeini et al. 2015, AAAI, section 4)."""
    gaps = np.bincount(bin_of(probability, bins), label - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(label))


def share_interval(hits: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share of which `hits` of `count` were seen: Clopper and Pearson 1934, Biometrika 26:404.

    low solves P(X ≥ hits | low) = (1 - confidence) / 2, high P(X ≤ hits | high) the same, X binomial of `count`: both
    tails are regularised incomplete beta functions, here inverted by bisection, which take an effective number of rows,
    that is no whole one, as well. Covers the true share in at least `confidence` of all samples, whatever it is. (0, 1)
    where nothing was seen.
    """
    if not count:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _bisect(lambda share: _beta(hits, count - hits + 1, share) - tail)
    high = 1.0 if hits == count else _bisect(lambda share: _beta(hits + 1, count - hits, share) - (1 - tail))
    return low, high


def too_few(benign: int, malignant: int, low: float | None, high: float | None) -> str:
    """Why an AUC of so many patients, with the interval `low` to `high`, does not tell a good model; empty if it does.

    Of m patients of a class each is 1 / m of the AUC: of fewer than `FEWEST_PATIENTS` one moves it by more than 0.1.
    """
    if min(benign, malignant) < FEWEST_PATIENTS:
        return f"{malignant} malignant and {benign} benign patients tested, expected {FEWEST_PATIENTS} of each or more"
    if low is None or high is None:
        return "the interval of the AUC can't be estimated"
    if high - low > WIDEST_INTERVAL:
        return f"the interval of the AUC is {high - low:.2f} wide, expected at most {WIDEST_INTERVAL:g}"
    return ""


def poisson_quantile(mean: float, share: float) -> int:
    """The least k for which P(X ≤ k) ≥ share, X Poisson with `mean`. Beyond 10,000 by the normal approximation."""
    if mean > 1e4:
        return max(0, math.ceil(mean + NormalDist().inv_cdf(share) * math.sqrt(mean)))
    total, k = math.exp(-mean) if mean < 700 else 0.0, 0
    while total < share and k < 20_000:
        k += 1
        total += math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) if mean else 0.0
    return k


def _bisect(rising: Callable[[float], float]) -> float:
    """Where a rising function of 0..1 is zero."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b): DLMF 8.17.22, a continued fraction, by Lentz's method."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast
        return 1 - _beta(b, a, 1 - x)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 100_000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + factor * d) or tiny)
            c = (1 + factor / c) or tiny
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return math.exp(log) * value / a
