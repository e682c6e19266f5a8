"""The area under the ROC curve, its interval, and the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.metrics import CONFIDENCE
from mpmmu_rt.spec import Array

# A variance at or below it is rounding, or less than none (Obuchowski's may be): an interval of it would have no width.
_ROUNDING = 1e-17


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve and its 95 % confidence interval; `reason` says why something is `None`."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """Second AUC minus first, on the same cases, its 95 % interval and the p-value of no difference."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    reason: str = ""


def estimate_auc(label: Array, score: Array, groups: Sequence[str]) -> Auc:
    """AUC of score float [N] against label int [N], whose rows of one patient (`groups`) are not independent.

    The interval is made on the logit scale, so that it stays within 0..1 (Pepe 2003, section 5.2.4), with Student's t
    of the patients of the smaller class less one: with the normal law, and with a percentile bootstrap, intervals of
    few patients are too narrow (docs/evaluation.md has what was measured).
    """
    found = _covariance(label, [score], groups)
    if isinstance(found, str):
        return Auc(None, None, None, found)
    areas, covariance, patients = found
    area = float(areas[0])
    if area in (0.0, 1.0):
        return Auc(area, None, None, "every pair is ranked alike: the variance can't be estimated")
    if covariance is None:
        return Auc(area, None, None, f"{patients[1]} malignant and {patients[0]} benign patients, expected 2 of each")
    variance = float(covariance[0, 0])
    if variance <= _ROUNDING:
        return Auc(area, None, None, "all patients are ranked alike: the variance can't be estimated")
    centre = math.log(area / (1 - area))
    reach = _quantile(patients) * math.sqrt(variance) / (area * (1 - area))
    low, high = (_logistic(centre + side * reach) for side in (-1, 1))
    return Auc(area, low, high)


def compare_auc(label: Array, first: Array, second: Array, groups: Sequence[str]) -> Difference:
    """Second minus first of two scores float [N] of the same rows: DeLong's test, by patient."""
    found = _covariance(label, [first, second], groups)
    if isinstance(found, str):
        return Difference(None, None, None, None, found)
    areas, covariance, patients = found
    value = float(areas[1] - areas[0])
    if covariance is None:
        reason = f"{patients[1]} malignant and {patients[0]} benign patients, expected 2 of each"
        return Difference(value, None, None, None, reason)
    size = float(covariance[0, 0] + covariance[1, 1])
    variance = size - 2 * float(covariance[0, 1])
    if variance <= max(_ROUNDING, 1e-12 * size):
        alike = "both rank all these cases alike: there is no variance"
        differ = "every patient adds the same to the difference: the variance can't be estimated"
        return Difference(value, None, None, None, differ if abs(value) > 1e-12 else alike)
    reach = _quantile(patients) * math.sqrt(variance)
    law = require("scipy.stats", "an interval of an AUC", "evaluate").t(min(patients) - 1)
    p = float(2 * law.sf(abs(value) / math.sqrt(variance)))
    return Difference(value, max(-1.0, value - reach), min(1.0, value + reach), p)


def _covariance(
    label: Array, scores: Sequence[Array], groups: Sequence[str]
) -> tuple[Array, Array | None, tuple[int, int]] | str:
    """Areas, their covariance (None for fewer than two patients of a class), the patients (benign, malignant); or why
    there is no area.

    An area is P(malignant row scores higher) + P(equal) / 2. The covariance is that of DeLong et al. 1988 (Biometrics
    44:837) from placements by sorting, N log N as in Sun and Xu 2014 (IEEE Signal Processing Letters 21:1389); of
    patients with several rows that of Obuchowski 1997 ("Nonparametric analysis of clustered receiver operating
    characteristic curve data", Biometrics 53:567), which for one row each is DeLong's.
    """
    m, n = int((label == 1).sum()), int((label == 0).sum())
    if not m or not n:
        return f"{m} malignant and {n} benign rows: no pair to rank"
    clusters = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_row = np.array([clusters[group] for group in groups])
    patients = (len(np.unique(of_row[label == 0])), len(np.unique(of_row[label == 1])))
    areas, of_malignant, of_benign = [], [], []
    for score in scores:
        malignant, benign = score[label == 1], score[label == 0]
        # Placements: for every row, the share of the other class that it is ranked correctly against.
        v10, v01 = _placement(malignant, benign), 1 - _placement(benign, malignant)
        area = float(v10.mean())
        areas.append(area)
        of_malignant.append(np.bincount(of_row[label == 1], v10 - area, minlength=len(clusters)) / m)
        of_benign.append(np.bincount(of_row[label == 0], v01 - area, minlength=len(clusters)) / n)
    if min(patients) < 2:
        return np.array(areas), None, patients
    a, b = np.array(of_malignant), np.array(of_benign)
    both = a @ b.T
    covariance: Array = (
        patients[1] / (patients[1] - 1) * (a @ a.T)
        + patients[0] / (patients[0] - 1) * (b @ b.T)
        + len(clusters) / (len(clusters) - 1) * (both + both.T)
    )
    return np.array(areas), covariance, patients


def _placement(score: Array, others: Array) -> Array:
    """For each of `score`, the share of `others` below it plus half the share equal to it: float64."""
    ranked = np.sort(others)
    below, below_or_equal = np.searchsorted(ranked, score, "left"), np.searchsorted(ranked, score, "right")
    out: Array = (below + below_or_equal) / (2 * len(others))
    return out


def _quantile(patients: tuple[int, int]) -> float:
    stats = require("scipy.stats", "an interval of an AUC", "evaluate")
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, min(patients) - 1))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
