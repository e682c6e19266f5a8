"""How good a set of probabilities is: AUC with confidence interval, operating point, calibration.

What can't be estimated (one class missing, no malignant decision, …) is `None` with a reason beside it, never
a zero and never an exception: a test set of few patients is a fact, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from mpmmu_rt.metrics import CONFIDENCE, brier_score, calibration_error
from mpmmu_rt.spec import Array


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve and its 95 % confidence interval; `reason` says why something is `None`."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


def estimate_auc(label: Array, score: Array, groups: Sequence[str]) -> Auc:
    """AUC of score float [N] against label int [N], whose rows of one patient (`groups`) are not independent.

    The AUC is P(malignant row scores higher) + P(equal) / 2. Its variance is that of Obuchowski 1997,
    "Nonparametric analysis of clustered receiver operating characteristic curve data", Biometrics 53:567,
    which for one row per patient is DeLong's (1988, Biometrics 44:837). The interval is made on the logit
    scale, so that it stays within 0..1 (Pepe 2003, section 5.2.4).
    """
    malignant, benign = score[label == 1], score[label == 0]
    if not len(malignant) or not len(benign):
        return Auc(None, None, None, f"{len(malignant)} malignant and {len(benign)} benign rows: no pair to rank")
    # Placements: for every row, the share of the other class that it is ranked correctly against.
    v10, v01 = _placement(malignant, benign), 1 - _placement(benign, malignant)
    area = float(v10.mean())
    if area in (0.0, 1.0):
        return Auc(area, None, None, "every pair is ranked alike: the variance can't be estimated")
    clusters = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_row = np.array([clusters[group] for group in groups])
    sums, present = [], []
    for kind, placement in ((1, v10), (0, v01)):
        member = of_row[label == kind]
        sums.append(np.bincount(member, placement - area, minlength=len(clusters)))
        present.append(len(np.unique(member)))
    if min(present) < 2:
        return Auc(area, None, None, f"{present[0]} malignant and {present[1]} benign patients, expected 2 of each")
    m, n, count = len(v10), len(v01), len(clusters)
    variance = (
        present[0] / (present[0] - 1) * float(sums[0] @ sums[0]) / m**2
        + present[1] / (present[1] - 1) * float(sums[1] @ sums[1]) / n**2
        + 2 * count / (count - 1) * float(sums[0] @ sums[1]) / (m * n)
    )
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = math.log(area / (1 - area))
    reach = z * math.sqrt(max(variance, 0.0)) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(centre + side * reach))) for side in (-1, 1))
    return Auc(area, low, high)


def _placement(score: Array, others: Array) -> Array:
    """For each of `score`, the share of `others` below it plus half the share equal to it: float64."""
    ranked = np.sort(others)
    below, below_or_equal = np.searchsorted(ranked, score, "left"), np.searchsorted(ranked, score, "right")
    out: Array = (below + below_or_equal) / (2 * len(others))
    return out


@dataclass(frozen=True)
class OperatingPoint:
    """Decisions at a threshold: counts, and the rates that they define (`None` for a rate of nothing)."""

    threshold: float
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None
    f1: float | None


def operating_point(label: Array, probability: Array, threshold: float) -> OperatingPoint:
    """Decide malignant where probability float [N] ≥ threshold and compare with label int [N]."""
    decided, truth = probability >= threshold, label == 1
    tp, fp = int((decided & truth).sum()), int((decided & ~truth).sum())
    tn, fn = int((~decided & ~truth).sum()), int((~decided & truth).sum())

    def rate(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return OperatingPoint(
        threshold, tp, fp, tn, fn,
        sensitivity=rate(tp, tp + fn), specificity=rate(tn, tn + fp),
        ppv=rate(tp, tp + fp), npv=rate(tn, tn + fn), f1=rate(2 * tp, 2 * tp + fp + fn),
    )  # fmt: skip


def evaluate(label: Array, probability: Array, groups: Sequence[str], threshold: float) -> dict[str, Any]:
    """Every metric of this module for label int [N] and probability float [N], ready for JSON."""
    return {
        "auc": asdict(estimate_auc(label, probability, groups)),
        **asdict(operating_point(label, probability, threshold)),
        "brier": brier_score(label, probability),
        "calibration_error": calibration_error(label, probability),
    }
