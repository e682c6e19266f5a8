"""Linear classifiers: logistic regression, and those that stochastic gradients, least squares or a perceptron fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn

from .families import DECISIONS, PROBABILITIES, column, refuse, single
from .ir import Clip, Node, Product


def _decision(classifier: Any, x: Node, path: str) -> Node:
    return Product(1, x, column(classifier.coef_)[:, None], column(classifier.intercept_) * np.ones(1))


def _logistic(classifier: Any, x: Node, path: str) -> Node:
    # multi_class="multinomial" of scikit-learn < 1.8 makes softmax(-d, d) of one decision, which is σ(2d).
    multinomial = getattr(classifier, "multi_class", "") == "multinomial"
    if multinomial and "multi_class" not in classifier.get_params():
        refuse(
            classifier,
            path,
            "with multi_class='multinomial' of scikit-learn < 1.8, whose decision counts twice there and once in the "
            f"installed {sklearn.__version__}, expected one that was fitted with the installed version",
            hint="fit it again, or export it with the scikit-learn that it was fitted with",
        )
    return _scaled(classifier, x, 2.0 if multinomial else 1.0, path)


def _scaled(classifier: Any, x: Node, factor: float, path: str) -> Node:
    weight = column(classifier.coef_)[:, None] * factor
    bias = column(classifier.intercept_) * factor * np.ones(1)
    # Where features lie far from zero, a large intercept takes their sum back.
    note = single(classifier.coef_, float(np.abs(bias).max()), path)
    return Product(1, x, weight, bias, "logistic", note=note)


def _stochastic(classifier: Any, x: Node, path: str) -> Node:
    if classifier.loss == "log_loss":
        return _scaled(classifier, x, 1.0, path)
    if classifier.loss != "modified_huber":
        refuse(
            classifier,
            path,
            f"with loss={classifier.loss!r}, which has no probability, expected log_loss or modified_huber",
            hint="fit it with loss='log_loss', or inside CalibratedClassifierCV",
        )
    half = np.full(1, 0.5)  # (clip(d, -1, 1) + 1) / 2
    weight, bias = column(classifier.coef_)[:, None] / 2, column(classifier.intercept_) / 2 + half
    return Clip(1, Product(1, x, weight, bias), 0.0, 1.0)


DECISIONS.update(
    LogisticRegression=_decision,
    LogisticRegressionCV=_decision,
    LinearSVC=_decision,
    SGDClassifier=_decision,
    Perceptron=_decision,
    PassiveAggressiveClassifier=_decision,
    RidgeClassifier=_decision,
    RidgeClassifierCV=_decision,
)
PROBABILITIES.update(LogisticRegression=_logistic, LogisticRegressionCV=_logistic, SGDClassifier=_stochastic)
