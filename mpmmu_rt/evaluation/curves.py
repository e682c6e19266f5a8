"""What the plots are drawn from, as lists of JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpmmu_rt.checks import decide
from mpmmu_rt.metrics import bin_of, counts
from mpmmu_rt.spec import Array

from .figures import Answers, share
from .thresholds import rates

MOST = 400  # points of a curve; more are thinned out
BINS = 20


def curves(answers: Answers) -> dict[str, Any]:
    """Of answers with both classes."""
    _, sensitivity, specificity = rates(answers.label, answers.probability)
    malignant = int((answers.label == 1).sum())
    found = sensitivity * malignant
    alarms = (1 - specificity) * (len(answers.label) - malignant)
    return {
        "roc": _points(np.r_[0, 1 - specificity], np.r_[0, sensitivity]),
        "precision_recall": _points(sensitivity, found / (found + alarms)),
        "calibration": calibration(answers),
        "decision": decision_curve(answers.label, answers.probability),
        "histogram": histogram(answers),
    }


def _points(x: Array, y: Array) -> list[list[float]]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(MOST, len(x))).round().astype(int))
    return [[float(a), float(b)] for a, b in zip(x[keep], y[keep], strict=True)]


def calibration(answers: Answers) -> list[dict[str, Any]]:
    """Of each tenth of 0..1 that holds rows: their number, mean probability, share of malignant and its interval."""
    of_row = bin_of(answers.probability)
    found = []
    for number in np.unique(of_row):
        rows = answers.rows(of_row == number)
        seen = share(rows.label == 1, rows.groups)
        mean = float(rows.probability.astype(np.float64).mean())
        found.append({"rows": len(rows.label), "said": mean, "seen": seen.value, "low": seen.low, "high": seen.high})
    return found


def decision_curve(label: Array, probability: Array) -> list[dict[str, float]]:
    """Net benefit by threshold probability p: true positives / N - false positives / N × p / (1 - p), of the model, and
    of calling all malignant; of calling none it is 0 (Vickers and Elkin 2006, Medical Decision Making 26:565)."""
    entry = []
    count, malignant = len(label), float((label == 1).mean())
    for percent in range(1, 100):
        p = percent / 100
        found = counts(label, decide(probability, p))
        hits, alarms = found["true_positive"], found["false_positive"]
        odds = p / (1 - p)
        entry.append(
            {"threshold": p, "model": hits / count - alarms / count * odds, "all": malignant - (1 - malignant) * odds}
        )
    return entry


def histogram(answers: Answers) -> dict[str, list[int]]:
    """Rows of each class in equal bins of 0..1."""
    return {
        name: np.histogram(answers.probability[answers.label == kind], BINS, (0, 1))[0].tolist()
        for kind, name in enumerate(("benign", "malignant"))
    }
