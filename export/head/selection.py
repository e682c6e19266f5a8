"""Selectors of columns; recursive elimination is also the classifier that it was fitted with, on what it selects."""

from __future__ import annotations

from typing import Any

from .families import DECISIONS, LABELS, PROBABILITIES, TRANSFORMERS, Translate, decision, label, probability
from .ir import Node, select

_SELECTORS = (
    *("SelectKBest", "SelectPercentile", "SelectFpr", "SelectFdr", "SelectFwe", "GenericUnivariateSelect"),
    *("SelectFromModel", "SequentialFeatureSelector", "VarianceThreshold", "RFE", "RFECV"),
)


def _selected(selector: Any, x: Node, path: str) -> Node:
    return select(x, selector.get_support(indices=True))


def _eliminated(translate: Translate) -> Translate:
    def of_the_rest(elimination: Any, x: Node, path: str) -> Node:
        return translate(elimination.estimator_, _selected(elimination, x, path), f"{path}.estimator_")

    return of_the_rest


TRANSFORMERS.update(dict.fromkeys(_SELECTORS, _selected))
for _table, _translate in ((PROBABILITIES, probability), (DECISIONS, decision), (LABELS, label)):
    _table.update(dict.fromkeys(("RFE", "RFECV"), _eliminated(_translate)))
