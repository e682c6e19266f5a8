"""Two systems on the same cases: do their decisions differ by more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.spec import Array


@dataclass(frozen=True)
class Discordant:
    """rows: that were compared. first, second: how many of them only the first, or only the second, decides rightly.
    test: which one gave p, None where no row tells them apart."""

    rows: int
    first: int
    second: int
    p: float | None
    test: str


def mcnemar(first: Array, second: Array, groups: Sequence[str]) -> Discordant:
    """Whether one of two is right more often: right bool [N] of each, on the same rows.

    McNemar 1947 (Psychometrika 12:153) in its exact form, the binomial of the discordant rows. Where patients have
    several rows, which are not independent, Obuchowski 1998 (Statistics in Medicine 17:1495): the square of the sum of
    the patients' differences over the sum of their squares, chi-squared with one degree of freedom; for one row each it
    is McNemar's without correction.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    stats = require("scipy.stats", "McNemar's test", "evaluate")
    if not only_first + only_second:
        return Discordant(len(first), 0, 0, None, "no decision differs")
    if len(set(groups)) == len(groups):
        p = float(stats.binomtest(only_second, only_first + only_second, 0.5).pvalue)
        return Discordant(len(first), only_first, only_second, p, "McNemar, exact")
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_row = np.array([names[group] for group in groups])
    by_patient = np.bincount(of_row, second.astype(int) - first.astype(int), minlength=len(names))
    squares = float(by_patient @ by_patient)
    by_chance = float(stats.chi2.sf(by_patient.sum() ** 2 / squares, 1)) if squares else None
    return Discordant(len(first), only_first, only_second, by_chance, "McNemar by patient (Obuchowski)")
