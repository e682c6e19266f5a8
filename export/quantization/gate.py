"""The accuracy gate: what INT8 does to decisions, and the limits that it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from mpmmu_rt.checks import Check, decide
from mpmmu_rt.decisions import UNKNOWN
from mpmmu_rt.errors import EngineError, UsageError
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .ranges import hash_of


@dataclass(frozen=True)
class Limits:
    """What INT8 may cost against float on the same engine. All are the user's to set.

    auc_loss: AUC float - INT8, which is -ΔAUC. sensitivity_loss: share of the malignant cases at the operating
    threshold, net of those won. flips: share of cases on the other side of the threshold, in either direction.
    mean_difference: mean |Δp|. float_share: of the layers, at most so many may stay in float before INT8 is given up.

    Flips are no loss as such: rounding moves cases near the threshold both ways, and a forest is a step function. On
    1,000 phantoms the trained tiny model flips 0.5 to 0.9 % in BF16, 1.0 to 3.0 % in INT8, and 10.4 % when trained with
    another seed; 5 % lets rounding pass and stops well before the model is another one.
    """

    auc_loss: float = 0.005
    sensitivity_loss: float = 0.01
    flips: float = 0.05
    mean_difference: float = 0.03
    float_share: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"the INT8 limit {name} is {value}, expected 0 to 1", hint="0.01 is one per cent")


@dataclass(frozen=True)
class Gate:
    """One measurement of INT8 against float, and the limits it was held to. Pairs are (float, INT8), of the cases whose
    label is known: `labelled`, of them `malignant`."""

    checks: tuple[Check, ...]
    cases: int
    labelled: int
    malignant: int
    flips: int
    auc: tuple[float, float] | None  # None without labels of both classes
    sensitivity: tuple[float, float] | None  # None without malignant cases that are known
    max_difference: float
    mean_difference: float

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def basis(self) -> str:
        """What the gate rests on, in words."""
        if self.auc is not None:
            return f"{self.labelled} labelled cases" + (f" of {self.cases}" if self.labelled < self.cases else "")
        known = "malignant cases only" if self.sensitivity is not None else "no labels of both classes"
        return f"{self.cases} cases, {known}: no AUC; flips and |Δp| count"

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "basis": self.basis,
            "cases": self.cases,
            "labelled": self.labelled,
            "malignant": self.malignant,
            "auc_float": self.auc[0] if self.auc else None,
            "auc_int8": self.auc[1] if self.auc else None,
            "auc_delta": self.auc[1] - self.auc[0] if self.auc else None,
            "sensitivity_float": self.sensitivity[0] if self.sensitivity else None,
            "sensitivity_int8": self.sensitivity[1] if self.sensitivity else None,
            "decisions_flipped": self.flips,
            "max_difference": self.max_difference,
            "mean_difference": self.mean_difference,
            "checks": [check.to_json() for check in self.checks],
        }


def compare(want: Array, got: Array, labels: Array | None, threshold: float, limits: Limits) -> Gate:
    """Hold INT8's probabilities `got` [N] to `limits` against the float engine's `want` [N]; labels int [N],
    `UNKNOWN` of a case that has none, or None.

    AUC and sensitivity are of the labelled cases, flips and differences of all. A share's limit is never below one
    case: a set too small to show a smaller share can't refuse it. Raises `EngineError` for probabilities that are
    missing or not in 0..1.
    """
    for name, values in (("float", want), ("INT8", got)):
        if values.shape != want.shape or values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
            raise EngineError(
                f"the {name} engine gave probabilities of shape {values.shape} in {values.min(initial=2):.3g}.."
                f"{values.max(initial=-1):.3g}, expected {want.shape} in 0..1",
                hint="`mpmmu-rt verify BUNDLE` tells whether the engine computes the float model correctly here",
            )
    count = len(want)
    difference = np.abs(got.astype(np.float64) - want)
    flips = int(np.sum(decide(got, threshold) != decide(want, threshold)))
    mean, largest = float(difference.mean()), float(difference.max())
    checks = [
        Check("decisions flipped, share of cases", flips / count, max(limits.flips, 1 / count)),
        Check("probability, mean |Δp|", mean, limits.mean_difference),
    ]
    auc, sensitivity = None, None
    truth = np.full(count, UNKNOWN) if labels is None else labels
    known, malignant = truth != UNKNOWN, truth == 1
    if len(np.unique(truth[known])) == 2:
        auc = (float(roc_auc_score(truth[known], want[known])), float(roc_auc_score(truth[known], got[known])))
        checks.append(Check("AUC loss", auc[0] - auc[1], limits.auc_loss))
    if seen := int(malignant.sum()):
        found = [int(decide(values[malignant], threshold).sum()) for values in (want, got)]
        sensitivity = (found[0] / seen, found[1] / seen)
        # Whole cases are subtracted: a difference of quotients may exceed 1 / seen by its rounding.
        loss = (found[0] - found[1]) / seen
        checks.append(Check("sensitivity loss", loss, max(limits.sensitivity_loss, 1 / seen)))
    return Gate(tuple(checks), count, int(known.sum()), seen, flips, auc, sensitivity, largest, mean)


def require_disjoint(calibration: Mapping[Modality, Array], gate: Mapping[Modality, Array]) -> None:
    """Raise `UsageError` if an image (uint8 [1, S, S], by content) is in both sets."""
    for modality in MODALITIES:
        calibrated = {hash_of([image]) for image in calibration[modality]}
        shared = [row for row, image in enumerate(gate[modality]) if hash_of([image]) in calibrated]
        if shared:
            raise UsageError(
                f"{len(shared)} of the {len(gate[modality])} {modality} images that shall prove INT8 (the first is "
                f"number {shared[0] + 1}) are among the calibration images, expected none",
                hint="split the manifest by patient, so that no image is in both parts",
            )
