"""FixedThresholdClassifier and TunedThresholdClassifierCV: probabilities as of what they hold, labels by a threshold of
their own, which becomes the bundle's where such a classifier is the whole head, or what a stack asks last.

A probability that equals the threshold is class 1, in scikit-learn and in a bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import HOLDERS, LABELS, decision, ours, probability, refuse, unwrap
from .ir import Above, Clip, Embedding, Forest, Interpolate, Node, Share, Sum

_KINDS = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")
# Whose own `predict` is that of a part, which is asked about something else than the embedding.
_LEAVES_IT_TO = {"StackingClassifier": "final_estimator_", "RFE": "estimator_", "RFECV": "estimator_"}


def operating_threshold(estimator: Any) -> float | None:
    """The probability from which on a head's own `predict` says class 1, if it has a threshold of its own; else None.

    A float64 whose float32 decides as scikit-learn decides in float64, also for probabilities that equal it.
    Raises `UnsupportedEstimator` for a threshold on decision_function, of class 0, or outside of 0..1.
    """
    path = "head"
    while True:
        estimator, path = unwrap(estimator, path, LABELS)
        kind = type(estimator).__name__
        if kind == "Pipeline" and ours(estimator):
            name, estimator = estimator.steps[-1]
        elif (name := _LEAVES_IT_TO.get(kind, "")) and ours(estimator) and hasattr(estimator, name):
            estimator = getattr(estimator, name)
        else:
            break
        path = f"{path}.{name}"
    if type(estimator).__name__ not in _KINDS or not ours(estimator):
        return None
    method, threshold = _rule(estimator, path)
    if method != "predict_proba":
        refuse(
            estimator,
            path,
            "with a threshold on decision_function, expected one on predict_proba: a bundle decides by probability",
            hint="response_method='predict_proba'",
        )
    if not 0 < threshold < 1:
        refuse(
            estimator,
            path,
            f"with the threshold {threshold:g}, expected a probability between 0 and 1",
            hint="0.5, if unsure; or export the estimator that it holds",
        )
    inner, inner_path = HOLDERS[type(estimator).__name__](estimator, path)
    width = getattr(inner, "n_features_in_", None)
    if width is None:  # not fitted, or of no known width: `lower` says what is wrong
        return threshold
    return border(probability(inner, Embedding(width), inner_path), threshold)


def border(value: Node, threshold: float) -> float:
    """`threshold`, or the next float32 above it where some value of `value` is below it and the same float32."""
    nearest = np.float32(threshold)
    values = _attainable(value, threshold)
    alike = values[values.astype(np.float32) == nearest]
    if alike.size and alike.max() < threshold:
        return float(np.nextafter(nearest, np.float32(np.inf)))
    return threshold


def _attainable(node: Node, near: float) -> Array:
    """Values around `near` that a step function takes, as scikit-learn computes them, as far as they are known: shares
    of whole votes, the leaves of one tree, the plateaus of isotonic calibration."""
    match node:
        case Share() if _whole(node.x):
            votes = np.floor(near * node.count) + np.arange(-1, 3)
            return np.unique(node.exact(votes.clip(0)))
        case Clip():
            return _attainable(node.x, near).clip(node.low, node.high)
        case Interpolate():
            return node.ys
        case Forest() if len(node.trees.roots) == 1:
            values: Array = node.trees.value[node.trees.feature < 0] + node.bias
            return values
    return np.zeros(0)


def _whole(node: Node) -> bool:
    if isinstance(node, Sum):
        return set(node.weights) == {1.0} and all(_whole(part) for part in node.parts)
    if not isinstance(node, Forest) or node.bias:
        return False
    leaves = node.trees.value[node.trees.feature < 0]
    return bool((leaves == np.round(leaves)).all())


def _rule(estimator: Any, path: str) -> tuple[str, float]:
    """What it compares, and with what: class 1 where it is at least that."""
    fixed = type(estimator).__name__ == "FixedThresholdClassifier"
    inner, _ = HOLDERS[type(estimator).__name__](estimator, path)
    method = estimator.response_method
    if method == "auto":
        method = "predict_proba" if hasattr(inner, "predict_proba") else "decision_function"
    positive = estimator.pos_label if fixed else estimator._curve_scorer._get_pos_label()
    if positive is not None and positive != 1:
        refuse(
            estimator,
            path,
            f"with a threshold for class {positive!r}, expected one for class 1 (malignant)",
            hint="pos_label=1, and 1 - threshold",
        )
    threshold = estimator.threshold if fixed else estimator.best_threshold_
    if isinstance(threshold, str):  # "auto"
        return method, 0.5 if method == "predict_proba" else 0.0
    return method, float(threshold)


def _held(estimator: Any, path: str) -> tuple[Any, str]:
    """What is asked: the fitted copy, else, of one that was never fitted itself, the estimator that was given."""
    return getattr(estimator, "estimator_", estimator.estimator), f"{path}.estimator_"


def _label(estimator: Any, x: Node, path: str) -> Node:
    method, threshold = _rule(estimator, path)
    inner, inner_path = _held(estimator, path)
    if method == "decision_function":
        return Above(1, decision(inner, x, inner_path), threshold, inclusive=True)
    value = probability(inner, x, inner_path)
    return Above(1, value, border(value, threshold), inclusive=True)


for _kind in _KINDS:
    HOLDERS[_kind] = _held
    LABELS[_kind] = _label
