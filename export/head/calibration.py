"""CalibratedClassifierCV, sigmoid or isotonic."""

from __future__ import annotations

from typing import Any

from .families import PROBABILITIES, column, refuse, respond
from .ir import Clip, Interpolate, Node, mean, sigmoid


def _probability(calibrated: Any, x: Node, path: str) -> Node:
    parts = []
    for number, pair in enumerate(calibrated.calibrated_classifiers_):
        (calibrator,) = pair.calibrators
        learner = pair.estimator
        method = "decision_function" if hasattr(learner, "decision_function") else "predict_proba"
        raw = respond(learner, x, f"{path}.calibrated_classifiers_[{number}]", method)
        parts.append(_calibrate(calibrator, raw, path))
    return parts[0] if len(parts) == 1 else mean(tuple(parts), low=0.0, high=1.0)


def _calibrate(calibrator: Any, raw: Node, path: str) -> Node:
    kind = type(calibrator).__name__
    if kind == "_SigmoidCalibration":
        # p = 1 / (1 + exp(a · t + b)) (Platt 1999)
        note = backwards(path) if calibrator.a_ > 0 else ""
        return sigmoid(raw, -float(calibrator.a_), -float(calibrator.b_), note)
    if kind == "IsotonicRegression":
        if calibrator.out_of_bounds != "clip":
            refuse(calibrator, path, f"with out_of_bounds={calibrator.out_of_bounds!r}, expected clip")
        steps = Interpolate(1, raw, column(calibrator.X_thresholds_), column(calibrator.y_thresholds_))
        return Clip(1, steps, 0.0, 1.0)
    refuse(calibrator, path, "as calibrator, expected sigmoid or isotonic")


def backwards(path: str) -> str:
    return f"{path}: the fitted Platt slope runs backwards: its probability falls as its decision value rises"


PROBABILITIES.update(CalibratedClassifierCV=_probability)
