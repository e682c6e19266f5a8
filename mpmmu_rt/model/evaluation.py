"""How good a set of probabilities is: AUC with confidence interval, operating point, calibration.

What can't be estimated (one class missing, no malignant decision, …) is `None` with a reason beside it, never
a zero and never an exception: a test set of few patients is a fact, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpmmu_rt.checks import decide
from mpmmu_rt.evaluation.auc import estimate_auc
from mpmmu_rt.metrics import brier_score, calibration_error, counts
from mpmmu_rt.spec import Array


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
    """Decide malignant where probability float [N] ≥ threshold, as the runtime does, and compare with label int [N]."""
    found = counts(label, decide(probability, threshold))
    tp, fp, tn, fn = found.values()

    def rate(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return OperatingPoint(
        threshold, **found,
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
