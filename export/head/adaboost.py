"""AdaBoost by SAMME (Zhu et al. 2009): learners vote by their labels, each with its weight; p = σ(d), a tie is class 0.

SAMME.R, the default before scikit-learn 1.6, is another algorithm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import DECISIONS, LABELS, PROBABILITIES, column, label, ours, refuse, require_finite, unwrap
from .forest import classifier_tree, join
from .ir import Above, Forest, Node, Product, Sum, Trees, concat
from .precise import halves


def _decision(boosting: Any, x: Node, path: str) -> Node:
    """Σ ± w of what each learner says, twice, divided by the sum of the weights."""
    if getattr(boosting, "algorithm", "SAMME") == "SAMME.R":
        refuse(boosting, path, "with algorithm='SAMME.R', expected SAMME", hint="fit it again with algorithm='SAMME'")
    weights = column(boosting.estimator_weights_)
    weights = 2 * weights[: len(boosting.estimators_)] / weights.sum()
    require_finite(boosting, path, weights)
    learners = [unwrap(one, f"{path}.estimators_[{number}]") for number, one in enumerate(boosting.estimators_)]
    if all(_is_tree(one) for one, _ in learners):
        trees = [_vote(one.tree_, w) for (one, _), w in zip(learners, weights, strict=True)]
        return Forest(1, x, join(trees))
    labels = concat(*(label(one, x, where) for one, where in learners))
    return Product(1, labels, 2 * weights[:, None], np.array([-weights.sum()]))


def _is_tree(learner: Any) -> bool:
    return type(learner).__name__ in ("DecisionTreeClassifier", "ExtraTreeClassifier") and ours(learner)


def _vote(tree: Any, weight: float) -> Trees:
    """± weight for the class that a leaf has more of."""
    value: Array = np.where(tree.value[:, 0, 1] > tree.value[:, 0, 0], weight, -weight)
    return replace(classifier_tree(tree), value=value)


def _probability(boosting: Any, x: Node, path: str) -> Node:
    return Product(1, _decision(boosting, x, path), np.ones((1, 1)), np.zeros(1), "logistic")


def _label(boosting: Any, x: Node, path: str) -> Node:
    """By the sign of the decision; of trees in twice float32's precision: votes may tie but for their last digits."""
    raw = _decision(boosting, x, path)
    parts = halves(raw)
    if parts is None or parts[1] is None:
        return Above(1, raw, 0.0)
    return Above(1, Sum(1, (parts[0], parts[1]), (1.0, 1.0)), 0.0)


PROBABILITIES.update(AdaBoostClassifier=_probability)
DECISIONS.update(AdaBoostClassifier=_decision)
LABELS.update(AdaBoostClassifier=_label)
