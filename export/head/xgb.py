"""XGBoost's classifiers, read from the JSON that their booster saves: trees, dropped-out trees (dart), linear ones.

XGBoost compares float32 with float32: x < threshold goes left. The margin is the sum of the leaves and of the logit of
`base_score`, and p = σ(margin). An embedding has no missing values, so default directions are never taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import LABELS, PROBABILITIES, refuse
from .forest import join, reachable
from .ir import Above, Forest, Node, Product, Trees


def _model(classifier: Any, path: str) -> Mapping[str, Any]:
    missing = classifier.missing
    if missing is not None and not np.isnan(missing):
        refuse(
            classifier,
            path,
            f"with missing={missing!r}, expected NaN: an embedding has no missing values",
            hint="fit it with missing=nan",
        )
    model: Mapping[str, Any] = json.loads(classifier.get_booster().save_raw(raw_format="json"))["learner"]
    if model["objective"]["name"] != "binary:logistic":
        refuse(
            classifier,
            path,
            f"with the objective {model['objective']['name']}, expected binary:logistic",
            hint="fit it with objective='binary:logistic'",
        )
    return model


def _margin(classifier: Any, x: Node, path: str) -> Node:
    model = _model(classifier, path)
    score = np.ravel(json.loads(str(model["learner_model_param"]["base_score"])))[0]
    start = float(np.log(score) - np.log1p(-score))
    booster = model["gradient_booster"]
    if booster["name"] == "gblinear":
        weights = np.array(booster["model"]["weights"], np.float32).astype(np.float64)
        return Product(1, x, weights[:-1, None], weights[-1:] + start)
    drop = np.array(booster.get("weight_drop", ()), np.float32).astype(np.float64)
    trees = booster.get("gbtree", booster)["model"]
    parts = []
    for number, tree in enumerate(trees["trees"][: _used(classifier, trees)]):
        if any(tree["split_type"]):
            refuse(
                classifier, path, "with categorical features, expected numbers only", hint="enable_categorical=False"
            )
        parts.append(_tree(tree, float(drop[number]) if drop.size else 1.0))
    return Forest(1, x, join(parts), start, at_values=True)


def _used(classifier: Any, trees: Mapping[str, Any]) -> int:
    """The number of trees that it predicts with: up to the best iteration, if it stopped early."""
    try:
        last = int(classifier.best_iteration)
    except AttributeError:
        return len(trees["trees"])
    if "iteration_indptr" in trees:
        return int(trees["iteration_indptr"][last + 1])
    return (last + 1) * max(1, int(trees["gbtree_model_param"]["num_parallel_tree"]))


def _tree(tree: Mapping[str, Any], weight: float) -> Trees:
    left, right = np.array(tree["left_children"], np.int64), np.array(tree["right_children"], np.int64)
    condition = np.array(tree["split_conditions"], np.float32)
    leaf, own = left < 0, np.arange(len(left))
    below: Array = np.nextafter(condition, np.float32(-np.inf))  # x < condition is x ≤ the float32 before it
    return reachable(
        Trees(
            feature=np.where(leaf, -1, np.array(tree["split_indices"], np.int64)),
            threshold=np.where(leaf, 0.0, below.astype(np.float64)),
            left=np.where(leaf, own, left),
            right=np.where(leaf, own, right),
            value=np.where(leaf, condition.astype(np.float64) * weight, 0.0),
            roots=np.zeros(1, np.int64),
        )
    )


def _probability(classifier: Any, x: Node, path: str) -> Node:
    return Product(1, _margin(classifier, x, path), np.ones((1, 1)), np.zeros(1), "logistic")


def _label(classifier: Any, x: Node, path: str) -> Node:
    """Class 0 at a tie."""
    return Above(1, _margin(classifier, x, path), 0.0)


for _kind in ("XGBClassifier", "XGBRFClassifier"):
    PROBABILITIES[_kind] = _probability
    LABELS[_kind] = _label
