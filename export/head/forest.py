"""Decision trees, bagged and boosted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import DECISIONS, LABELS, PROBABILITIES, refuse
from .ir import Above, Forest, Node, Product, Share, Trees


def _forest(forest: Any, x: Node, path: str) -> Node:
    """The trees' sum, then divided: the votes of pure leaves are whole numbers, whose float32 sum is exact. Of 1000
    thousandths it is 1e-5 off."""
    votes = Forest(1, x, join([classifier_tree(tree.tree_) for tree in forest.estimators_]))
    return Share(1, votes, len(forest.estimators_), 0.0, 1.0)


def _tree(classifier: Any, x: Node, path: str) -> Node:
    return Forest(1, x, classifier_tree(classifier.tree_))


def classifier_tree(tree: Any) -> Trees:
    """A tree's arrays; its values are the shares of class 1."""
    counts = np.asarray(tree.value, np.float64)[:, 0, :]
    return _arrays(tree, counts[:, 1] / counts.sum(axis=1))


def _arrays(tree: Any, value: Array) -> Trees:
    leaf = tree.children_left < 0
    own = np.arange(tree.node_count)
    return Trees(
        feature=np.where(leaf, -1, tree.feature),
        threshold=np.where(leaf, 0.0, tree.threshold),
        left=np.where(leaf, own, tree.children_left),
        right=np.where(leaf, own, tree.children_right),
        value=value,
        roots=np.zeros(1, np.int64),
    )


def reachable(trees: Trees) -> Trees:
    """One tree without the nodes that no path leads to: some libraries keep what they pruned."""
    nodes, kept = trees.roots, [trees.roots]
    while (parents := nodes[trees.feature[nodes] >= 0]).size:
        nodes = np.stack([trees.left[parents], trees.right[parents]], 1).ravel()
        kept.append(nodes)
    old = np.concatenate(kept)
    new = np.empty(len(trees.feature), np.int64)
    new[old] = np.arange(len(old))
    left, right = new[trees.left[old]], new[trees.right[old]]
    return Trees(trees.feature[old], trees.threshold[old], left, right, trees.value[old], new[trees.roots])


def join(parts: Sequence[Trees]) -> Trees:
    """Several trees' arrays, one after the other."""
    starts = np.cumsum([0, *(len(part.feature) for part in parts)])[:-1]
    return Trees(
        feature=np.concatenate([part.feature for part in parts]),
        threshold=np.concatenate([part.threshold for part in parts]),
        left=np.concatenate([part.left + start for part, start in zip(parts, starts, strict=True)]),
        right=np.concatenate([part.right + start for part, start in zip(parts, starts, strict=True)]),
        value=np.concatenate([part.value for part in parts]),
        roots=np.concatenate([part.roots + start for part, start in zip(parts, starts, strict=True)]),
    )


def _boosting_raw(boosting: Any, x: Node, path: str) -> Node:
    init = boosting.init_
    if not (isinstance(init, str) and init == "zero") and type(init).__name__ != "DummyClassifier":
        refuse(boosting, path, f"with init={type(init).__name__}, expected the prior or zero")
    if getattr(init, "strategy", "") == "stratified":
        refuse(boosting, path, "with a random init, expected the prior or zero")
    start = boosting._raw_predict_init(np.zeros((1, x.width), np.float32))
    parts = [
        _arrays(tree.tree_, boosting.learning_rate * np.asarray(tree.tree_.value, np.float64)[:, 0, 0])
        for tree in boosting.estimators_[:, 0]
    ]
    return Forest(1, x, join(parts), float(np.ravel(start)[0]))


def _boosting_label(boosting: Any, x: Node, path: str) -> Node:
    """Class 1 at a tie."""
    return Above(1, _boosting_raw(boosting, x, path), 0.0, inclusive=True)


def _boosting(boosting: Any, x: Node, path: str) -> Node:
    factor = 2.0 if boosting.loss == "exponential" else 1.0
    return Product(1, _boosting_raw(boosting, x, path), np.array([[factor]]), np.zeros(1), "logistic")


PROBABILITIES.update(
    RandomForestClassifier=_forest,
    ExtraTreesClassifier=_forest,
    DecisionTreeClassifier=_tree,
    ExtraTreeClassifier=_tree,
    GradientBoostingClassifier=_boosting,
)
LABELS.update(GradientBoostingClassifier=_boosting_label)
DECISIONS.update(GradientBoostingClassifier=_boosting_raw)
