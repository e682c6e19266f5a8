"""Operating thresholds that are chosen on cases: never on those that are judged."""

from __future__ import annotations

import numpy as np

from mpmmu_rt.spec import Array


def youden(label: Array, probability: Array) -> float:
    """The threshold of the largest sensitivity + specificity - 1 (Youden 1950, Cancer 3:32); of equals the highest."""
    values, sensitivity, specificity = rates(label, probability)
    return float(values[int(np.argmax(sensitivity + specificity))])


def at_sensitivity(label: Array, probability: Array, wished: float) -> float:
    """The highest threshold at which at least the share `wished` of the malignant rows is called malignant."""
    values, sensitivity, _ = rates(label, probability)
    return float(values[int(np.argmax(sensitivity >= wished - 1e-12))])


def rates(label: Array, probability: Array) -> tuple[Array, Array, Array]:
    """Every threshold that decides otherwise than its neighbours, falling, and sensitivity and specificity at it.

    label int [N] with both classes, probability float32 [N]; a row is called malignant at or above the threshold.
    """
    order = np.argsort(-probability, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(probability[order])), len(order) - 1]
    hits = np.cumsum(label[order] == 1)[last]
    alarms = last + 1 - hits
    malignant, benign = int((label == 1).sum()), int((label == 0).sum())
    return probability[order][last], hits / malignant, 1 - alarms / benign
