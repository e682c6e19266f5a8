"""How many decisions rounding will flip, told from how far embeddings are from where the head changes its mind.

A case i has the embedding e_i in the reference (FP32), and e_i + d_i on the target. A tree asks on its way down whether
single values are above its thresholds: its leaf is another one exactly where d_i carries one of these values out of the
interval between the nearest thresholds of its path. So crossings follow from the distances of e_i to the thresholds and
the distribution of d alone; and a decision flips where the head says otherwise of e_i + d_i than of e_i.

The distribution of d is measured, not assumed: each d_j of one half of the cases is added to each e_i of the other
half, and the other way round, so that no case forecasts itself. With m errors, F_ij = 1 where e_i flips with d_j:

- expected flips E = Σ_i mean_j F_ij, unbiased where the errors of other cases are like those of one's own;
- its own error: the variance over j of Σ_i F_ij, divided by m. Where no d_j flipped any case the next may still do so,
  with a probability of up to 3.7 / m (0.025 = (1 - p)^m): that much is added to the upper end;
- given E, the flips that happen are a sum of independent indicators of unequal probability (Poisson-binomial), whose
  tails are lighter than Poisson's of the same mean (Hoeffding 1956, Ann. Math. Stat. 27:713). The interval is from
  Poisson's 2.5 % quantile at the lower end of E to its 97.5 % quantile at the upper: it covers in at least 95 %.

Crossings of one case's trees come together (neighbouring thresholds of one value), so that theirs is not Poisson's: the
interval is normal, with the variance over j of each case's crossings, summed over cases, beside that of E.

What happens outside of the interval is not rounding as measured on other cases: an error that depends on the case, such
as a stage that saturates, or rows that are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .forests import Forests
from .metrics import poisson_quantile
from .spec import Array

Z = 1.959964  # of 95 %
LEAST = 16  # cases: with less than 8 errors there is nothing to tell from
_MOST_ERRORS = 64
_MOST_ROWS = 100_000  # that the head is asked
_UNSEEN = -math.log(0.025)


@dataclass(frozen=True)
class Count:
    """A count that was forecast, with its 95 % interval, and what happened."""

    expected: float
    low: float
    high: float
    happened: int

    @property
    def as_forecast(self) -> bool:
        return self.low <= self.happened <= self.high

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"as_forecast": self.as_forecast}


@dataclass(frozen=True)
class Forecast:
    """flips: decisions of `cases`. crossings: leaves, of `cases` times `trees`; None where they can't be read, or where
    the head has none. error, distance: medians of |d| over all values, and of the distance to the nearest threshold of
    a path."""

    cases: int
    errors: int
    flips: Count
    trees: int
    crossings: Count | None
    error: float
    distance: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "flips": self.flips.to_json(),
            "crossings": self.crossings.to_json() if self.crossings else None,
        }


def forecast(
    head: Callable[[Array], Array], forests: Forests | None, reference: Array, new: Array, threshold: float
) -> Forecast | None:
    """What to expect of embeddings `new` instead of `reference`, float32 [N, D], and what happens; None for fewer than
    `LEAST` cases. head: embeddings float32 [N, D] → probabilities [N]. Raises what `head` does."""
    count = len(reference)
    if count < LEAST:
        return None
    errors = min(_MOST_ERRORS, count // 2, max(8, _MOST_ROWS // count))
    halves = np.arange(0, count, 2), np.arange(1, count, 2)
    folds = [(mine, _spread(others, errors)) for mine, others in (halves, halves[::-1])]
    wanted = _decisions(head(reference), threshold)
    happened = int((_decisions(head(new), threshold) != wanted).sum())
    deltas = new - reference
    flipped = []
    for mine, others in folds:
        said = [_decisions(head(reference[mine] + deltas[other]), threshold) != wanted[mine] for other in others]
        flipped.append(np.stack(said, 1))
    crossings, distance = (
        (None, None) if forests is None or not forests.trees else _crossings(forests, reference, new, folds)
    )
    return Forecast(
        cases=count,
        errors=len(folds[0][1]) + len(folds[1][1]),
        flips=_flips(flipped, happened),
        trees=forests.trees if forests else 0,
        crossings=crossings,
        error=float(np.median(np.abs(deltas))),
        distance=distance,
    )


def _spread(rows: Array, count: int) -> Array:
    """`count` of `rows`, evenly over all of them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def _decisions(probability: Array, threshold: float) -> Array:
    return np.asarray(probability, np.float32) >= np.float32(threshold)


def _flips(folds: list[Array], happened: int) -> Count:
    """folds: bool [cases, errors] each."""
    expected, spread, unseen = 0.0, 0.0, 0.0
    for flipped in folds:
        by_error = flipped.sum(0)
        expected += float(by_error.mean())
        spread += float(by_error.var(ddof=1)) / len(by_error)
        unseen += _UNSEEN / len(by_error)
    reach = Z * math.sqrt(spread)
    low = poisson_quantile(max(0.0, expected - reach), 0.025)
    return Count(expected, low, poisson_quantile(expected + reach + unseen, 0.975), happened)


def _crossings(
    forests: Forests, reference: Array, new: Array, folds: list[tuple[Array, Array]]
) -> tuple[Count, float | None]:
    before, after = forests.values(reference), forests.values(new)
    happened, expected, variance, unseen = 0, 0.0, 0.0, 0.0
    by_fold = [np.zeros((len(mine), len(others))) for mine, others in folds]
    nearest = []
    for forest in forests.forests:
        values, moved = before[forest.source], after[forest.source]
        happened += int((forest.leaves(values) != forest.leaves(moved)).sum())
        nearest.append(forest.distances(values).ravel())
        for crossed, (mine, others) in zip(by_fold, folds, strict=True):
            crossed += forest.crossings(values[mine], (moved - values)[others])
    for crossed in by_fold:
        by_error = crossed.sum(0)
        expected += float(by_error.mean())
        variance += float(by_error.var(ddof=1)) / len(by_error) + float(crossed.var(1, ddof=1).sum())
        unseen += _UNSEEN / len(by_error)
    reach = Z * math.sqrt(variance)
    distances = np.concatenate(nearest)
    distances = distances[np.isfinite(distances)]
    return (
        Count(expected, max(0.0, expected - reach), expected + reach + unseen, happened),
        float(np.median(distances)) if len(distances) else None,
    )
