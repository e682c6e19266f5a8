"""Linear classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .families import DECISIONS, PROBABILITIES, column
from .ir import Node, Product


def _decision(classifier: Any, x: Node, path: str) -> Node:
    return Product(1, x, column(classifier.coef_)[:, None], column(classifier.intercept_) * np.ones(1))


def _logistic(classifier: Any, x: Node, path: str) -> Node:
    # multi_class="multinomial" of scikit-learn < 1.8 makes softmax(-d, d) of one decision, which is σ(2d).
    factor = 2.0 if getattr(classifier, "multi_class", "") == "multinomial" else 1.0
    weight = column(classifier.coef_)[:, None] * factor
    return Product(1, x, weight, column(classifier.intercept_) * factor * np.ones(1), "logistic")


DECISIONS.update(LogisticRegression=_decision, LogisticRegressionCV=_decision, LinearSVC=_decision)
PROBABILITIES.update(LogisticRegression=_logistic, LogisticRegressionCV=_logistic)
