"""CalibratedClassifierCV: sigmoid, isotonic, or by `temperature`."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from . import temperature
from .families import PROBABILITIES, PROMISE, column, platt_note, refuse, respond
from .ir import Clip, Interpolate, Node, mean, sigmoid
from .precise import halves
from .svm import lost

_ROUNDED = 2.0**-22  # of the largest decision, a few of float32's units: what sums of some hundred terms are off by


def _probability(calibrated: Any, x: Node, path: str) -> Node:
    parts = []
    for number, pair in enumerate(calibrated.calibrated_classifiers_):
        (calibrator,) = pair.calibrators
        learner = pair.estimator
        method = "decision_function" if hasattr(learner, "decision_function") else "predict_proba"
        raw = respond(learner, x, f"{path}.calibrated_classifiers_[{number}]", method)
        if type(calibrator).__name__ == "_TemperatureScaling":
            parts.append(temperature.scaled(calibrator, raw, learner, method, path))
        else:
            parts.append(_calibrate(calibrator, raw, path))
    return parts[0] if len(parts) == 1 else mean(tuple(parts), low=0.0, high=1.0)


def _calibrate(calibrator: Any, raw: Node, path: str) -> Node:
    kind = type(calibrator).__name__
    if kind == "_SigmoidCalibration":
        # p = 1 / (1 + exp(a · t + b)) (Platt 1999)
        slope, offset = -float(calibrator.a_), -float(calibrator.b_)
        return sigmoid(raw, slope, offset, platt_note(slope, lost(raw), path))
    if kind == "IsotonicRegression":
        if calibrator.out_of_bounds != "clip":
            refuse(calibrator, path, f"with out_of_bounds={calibrator.out_of_bounds!r}, expected clip")
        return Clip(
            1, _isotonic(raw, column(calibrator.X_thresholds_), column(calibrator.y_thresholds_), path), 0.0, 1.0
        )
    refuse(calibrator, path, "as calibrator, expected sigmoid, isotonic or temperature")


def _isotonic(raw: Node, xs: Array, ys: Array, path: str) -> Interpolate:
    """Of a sum of trees in twice float32's precision: its steps may be as steep as two values are close."""
    parts = halves(raw)
    if parts is not None:
        high, low, count = parts
        return Interpolate(1, high, xs * count, ys, low)
    return Interpolate(1, raw, xs, ys, note=_steep(raw, xs, ys, path))


def _steep(raw: Node, xs: Array, ys: Array, path: str) -> str:
    """A note, if rounding of a decision in float32 may move the probability by more than the head's promise."""
    if len(xs) < 2:
        return ""
    unsure = max(_ROUNDED * float(np.abs(xs).max()), lost(raw))
    moved = float((np.diff(ys) * np.minimum(1, unsure / np.diff(xs))).max())
    if moved <= PROMISE:
        return ""
    return (
        f"{path}: isotonic calibration rises so steeply that rounding of its decision in float32 may move the "
        f"probability by {moved:.1g} near a step; method='sigmoid' has no steps"
    )


PROBABILITIES.update(CalibratedClassifierCV=_probability)
