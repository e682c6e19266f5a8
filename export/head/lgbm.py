"""LightGBM's classifier, read from the model that its booster dumps.

LightGBM compares float64: x ≤ threshold goes left. p = σ(s · raw), with s its parameter `sigmoid`, and raw the sum of
the leaves; a random forest (boosting_type="rf") has their mean in p and their sum as raw score. An embedding has no
missing values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .families import DECISIONS, LABELS, PROBABILITIES, refuse
from .forest import join
from .ir import Above, Forest, Node, Product, Trees


def _raw(classifier: Any, x: Node, path: str) -> tuple[Node, float]:
    """The raw score, and what σ multiplies it by."""
    model: Mapping[str, Any] = classifier.booster_.dump_model()
    name, _, parameter = str(model.get("objective", "")).partition(" ")
    if name != "binary":
        refuse(
            classifier,
            path,
            f"with the objective {name or 'of its own'}, expected binary",
            hint="fit it with objective='binary'",
        )
    if classifier.get_params().get("pred_early_stop"):
        refuse(
            classifier,
            path,
            "with pred_early_stop, expected all trees in every answer",
            hint="fit it without pred_early_stop",
        )
    parts = [_tree(classifier, entry["tree_structure"], path) for entry in model["tree_info"]]
    factor = float(parameter.partition("sigmoid:")[2] or 1.0)
    return Forest(1, x, join(parts), double=True), factor / len(parts) if model.get("average_output") else factor


def _tree(classifier: Any, root: Mapping[str, Any], path: str) -> Trees:
    rows: list[tuple[int, float, int, int, float]] = []
    for number, (node, children) in enumerate(_numbered(root)):
        if children is None:
            if "leaf_const" in node:
                refuse(classifier, path, "with linear_tree=True, expected constant leaves", hint="linear_tree=False")
            rows.append((-1, 0.0, number, number, float(node["leaf_value"])))
            continue
        if node["decision_type"] != "<=":
            refuse(classifier, path, "with categorical features, expected numbers only", hint="categorical_feature=[]")
        if node["missing_type"] == "Zero":
            refuse(
                classifier,
                path,
                "with zero_as_missing=True, expected False: an embedding has no missing values",
                hint="zero_as_missing=False",
            )
        rows.append((int(node["split_feature"]), float(node["threshold"]), *children, 0.0))
    feature, threshold, left, right, value = zip(*rows, strict=True)
    return Trees(
        feature=np.array(feature, np.int64),
        threshold=np.array(threshold, np.float64),
        left=np.array(left, np.int64),
        right=np.array(right, np.int64),
        value=np.array(value, np.float64),
        roots=np.zeros(1, np.int64),
    )


def _numbered(root: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], tuple[int, int] | None]]:
    """The nodes in the order of their numbers, level by level, and the numbers of their children."""
    level, following = [root], 1
    while level:
        below: list[Mapping[str, Any]] = []
        for node in level:
            if "split_feature" not in node:
                yield node, None
                continue
            yield node, (following, following + 1)
            below += [node["left_child"], node["right_child"]]
            following += 2
        level = below


def _probability(classifier: Any, x: Node, path: str) -> Node:
    raw, factor = _raw(classifier, x, path)
    return Product(1, raw, np.array([[factor]]), np.zeros(1), "logistic")


def _decision(classifier: Any, x: Node, path: str) -> Node:
    """The raw score, which newer releases answer."""
    return _raw(classifier, x, path)[0]


def _label(classifier: Any, x: Node, path: str) -> Node:
    """Class 0 at a tie."""
    return Above(1, _decision(classifier, x, path), 0.0)


PROBABILITIES["LGBMClassifier"] = _probability
DECISIONS["LGBMClassifier"] = _decision
LABELS["LGBMClassifier"] = _label
