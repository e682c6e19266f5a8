"""What a target decides otherwise than a reference, on the same cases. Every Δ is new - reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bundle import Bundle
from .checks import Check, crossing_limit, decide
from .facts import CROSSING_TOLERANCE, PROBABILITY_TOLERANCE
from .metrics import area_under_curve, brier_score, calibration_error, share_interval
from .spec import Array, Target

UNKNOWN = -1  # the label of a case that has none
# What the export calls the limits of a target that rounds (`export/quantization/gate.py`), and what they are here.
_LIMITS = {
    "decisions flipped, share of cases": "flips",
    "probability, mean |Δp|": "mean_difference",
    "AUC loss": "auc_loss",
    "sensitivity loss": "sensitivity_loss",
}


@dataclass(frozen=True)
class Decisions:
    """A pair is (reference, new); None where labels of both classes, or of the one that counts, are missing.

    to_malignant, to_benign: decisions that flipped, and where to. lost, won: malignant cases that the reference finds
    and the new one doesn't, and the reverse. auc to calibration_error: of the labelled cases.
    """

    cases: int
    to_malignant: int
    to_benign: int
    mean_difference: float
    max_difference: float
    labelled: int
    malignant: int
    lost: int
    won: int
    auc: tuple[float, float] | None
    sensitivity: tuple[float, float] | None
    specificity: tuple[float, float] | None
    brier: tuple[float, float] | None
    calibration_error: tuple[float, float] | None

    @property
    def flips(self) -> int:
        return self.to_malignant + self.to_benign

    @property
    def pairs(self) -> Mapping[str, tuple[float, float] | None]:
        return {
            "AUC": self.auc,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "Brier score": self.brier,
            "calibration error": self.calibration_error,
        }

    def to_json(self) -> dict[str, Any]:
        """Δ is new - reference; the interval of the share of flips is that of Clopper and Pearson, 95 %."""
        figures = {
            name.lower().replace(" ", "_"): {"reference": pair[0], "new": pair[1], "delta": pair[1] - pair[0]}
            if pair
            else None
            for name, pair in self.pairs.items()
        }
        return {
            "cases": self.cases,
            "decisions_flipped": self.flips,
            "flipped_interval": list(share_interval(self.flips, self.cases)),
            "to_malignant": self.to_malignant,
            "to_benign": self.to_benign,
            "mean_difference": self.mean_difference,
            "max_difference": self.max_difference,
            "labelled": self.labelled,
            "malignant": self.malignant,
            "malignant_lost": self.lost,
            "malignant_won": self.won,
            **figures,
        }


def compare(reference: Array, new: Array, labels: Array, threshold: float) -> Decisions:
    """probabilities float [N] of both; labels int [N]: 0, 1 or `UNKNOWN`."""
    before, after = decide(reference, threshold), decide(new, threshold)
    difference = np.abs(new.astype(np.float64) - reference)
    known, malignant, benign = labels != UNKNOWN, labels == 1, labels == 0
    truth, pair = labels[known], (reference[known].astype(np.float64), new[known].astype(np.float64))
    areas = [area_under_curve(truth, values) for values in pair]

    def both(figure: Any) -> tuple[float, float] | None:
        return (figure(truth, pair[0]), figure(truth, pair[1])) if known.any() else None

    def rate(of: Array, hits: tuple[Array, Array]) -> tuple[float, float] | None:
        return (float(hits[0][of].mean()), float(hits[1][of].mean())) if of.any() else None

    return Decisions(
        cases=len(new),
        to_malignant=int((after & ~before).sum()),
        to_benign=int((before & ~after).sum()),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        labelled=int(known.sum()),
        malignant=int(malignant.sum()),
        lost=int((before & ~after & malignant).sum()),
        won=int((after & ~before & malignant).sum()),
        auc=None if areas[0] is None or areas[1] is None else (areas[0], areas[1]),
        sensitivity=rate(malignant, (before, after)),
        specificity=rate(benign, (~before, ~after)),
        brier=both(brier_score),
        calibration_error=both(calibration_error),
    )


def limits_of(bundle: Bundle, targets: tuple[Target, ...]) -> Mapping[str, float] | None:
    """What the export held the decisions of `targets` to against FP32, added up for those that round; {} where none
    does. None where one was not judged, so that there is no limit to hold it to."""
    total: dict[str, float] = {}
    for target in targets:
        if target.precision != "fp32":
            checks = recorded(bundle, target).get("checks", ())
            found = {_LIMITS[check["name"]]: float(check["limit"]) for check in checks if check["name"] in _LIMITS}
            if not found:
                return None
            total = {name: total.get(name, 0.0) + limit for name, limit in found.items()}
    return total


def recorded(bundle: Bundle, target: Target) -> Mapping[str, Any]:
    """What the export has measured of the decisions of `target`, which its families store under different keys; {} for
    one that was not judged."""
    report = bundle.proof(target)
    parts: list[Any] = [report, report.get("gate"), report.get("graph")]
    return next((part for part in parts if isinstance(part, dict) and "cases" in part), {})


def checks_of(found: Decisions, reference: Array, new: Array, limits: Mapping[str, float] | None) -> list[Check]:
    """Hold decisions to `limits` as the export did: a share's limit is never below one case.

    limits: of `limits_of`; {} for two targets in FP32, which may differ by crossings of a forest's splits, and never in
    a decision; None holds them to nothing.
    """
    if limits is None:
        return []
    count = found.cases
    if not limits:
        difference = np.abs(new.astype(np.float64) - reference)
        crossed = difference > PROBABILITY_TOLERANCE
        return [
            Check("own cases, split crossings, share of cases", float(crossed.mean()), crossing_limit(count)),
            Check("own cases, split crossings, max |Δp|", float(difference.max()), CROSSING_TOLERANCE),
            Check("own cases, decisions flipped", float(found.flips), 0.0),
        ]
    checks = [
        Check("own cases, decisions flipped, share", found.flips / count, max(limits["flips"], 1 / count)),
        Check("own cases, mean |Δp|", found.mean_difference, limits["mean_difference"]),
    ]
    if found.auc and "auc_loss" in limits:
        checks.append(Check("own cases, AUC lost, -Δ", found.auc[0] - found.auc[1], limits["auc_loss"]))
    if found.malignant and "sensitivity_loss" in limits:
        # Whole cases are subtracted: a difference of quotients may exceed 1 / malignant by its rounding.
        loss = (found.lost - found.won) / found.malignant
        limit = max(limits["sensitivity_loss"], 1 / found.malignant)
        checks.append(Check("own cases, sensitivity lost, -Δ", loss, limit))
    return checks
