"""Temperature scaling (scikit-learn 1.8): softmax of the logits, times an inverse temperature β.

Of a decision d the logits are ±d, and p = σ(2βd). Of probabilities they are log(p + 10⁻¹²) and log(1 - p + 10⁻¹²), so
that near 0 and 1 the digits of the smaller side count: both sides are computed, neither as 1 minus the other.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from .families import refuse
from .ir import Forest, Logit, Node, Product, Share, Sum, sigmoid

_EPSILON = 1e-12  # scikit-learn's, in `_convert_to_logits`
_BLUNT = 0.75  # p^β of a side that is known to 6e-8 only: at a smaller β that is 1e-5


def scaled(calibrator: Any, raw: Node, learner: Any, method: str, path: str) -> Node:
    """The calibrated probability of what `method` of `learner` said, [N, 1]."""
    beta = float(calibrator.beta_)
    if method == "decision_function":
        return sigmoid(raw, 2 * beta, 0.0)
    sides = None if _single(learner) else _sides(raw)
    if sides is None:
        if beta < _BLUNT:
            refuse(
                calibrator,
                path,
                f"of an inverse temperature of {beta:.2g} on probabilities in float32, of which 1 - p has few digits, "
                f"expected at least {_BLUNT}",
                hint="method='sigmoid', or fit the learner on float64",
            )
        sides = raw, Product(1, raw, -np.ones((1, 1)), np.ones(1))
    return sigmoid(Logit(1, *sides, _EPSILON), beta, 0.0)


def _single(learner: Any) -> bool:
    """Whether a learner itself answers in float32, as those do that were fitted on it; or one of those in it."""
    if type(learner).__name__ in ("VotingClassifier", "BaggingClassifier"):
        return any(_single(one) for one in learner.estimators_)
    asked = np.zeros((1, learner.n_features_in_), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that the zeros don't have
        return bool(learner.predict_proba(asked).dtype == np.float32)


def _sides(node: Node) -> tuple[Node, Node] | None:
    """A probability of class 1 and that of class 0, both to float32's relative precision, or None."""
    if isinstance(node, Product) and node.activation == "logistic":
        one = replace(node, activation="tail")
        return one, replace(one, weight=-node.weight, bias=-node.bias)
    if isinstance(node, Forest) and len(node.trees.roots) == 1 and not node.bias:
        return node, _other(node)
    if not isinstance(node, Share):
        return None
    inner = node.x
    if isinstance(inner, Forest) and node.count == len(inner.trees.roots) and not inner.bias:
        return node, replace(node, x=_other(inner))
    if isinstance(inner, Sum) and np.isclose(sum(inner.weights), node.count, rtol=1e-12):
        pairs = [pair for part in inner.parts if (pair := _sides(part)) is not None]
        if len(pairs) == len(inner.parts):
            sums = [replace(inner, parts=tuple(pair[side] for pair in pairs)) for side in (0, 1)]
            return replace(node, x=sums[0]), replace(node, x=sums[1])
    return None


def _other(forest: Forest) -> Forest:
    """The trees' shares of class 0."""
    return replace(forest, trees=replace(forest.trees, value=1 - forest.trees.value))
