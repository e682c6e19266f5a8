"""Nearest neighbours are refused: which of two training cases is nearer is decided in the last bits of float64, and
where both are as near by their order in scikit-learn's search. In float32 a vote may go to another case, silently.

Float64 would not do either: scikit-learn takes distances from a matrix product, whose last bits differ with the size of
the batch. Of 8,000 cases beside training cases of which most are there twice, 581 had another probability alone than in
a batch of 400, and 863 as float64 (scikit-learn 1.9, brute force, 5 neighbours); each is a jump of 1 / k or more.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .families import PROBABILITIES, REFUSED, refuse
from .ir import Node


def _refused(neighbours: Any, x: Node, path: str) -> NoReturn:
    refuse(
        neighbours,
        path,
        "whose neighbours are ranked by the last bits of float64 distances, where scikit-learn itself says one thing "
        "of a case alone and another in a batch; expected a classifier whose answer does not jump between neighbours",
        hint="an RBF SVC inside CalibratedClassifierCV votes by distance too, without jumps",
    )


PROBABILITIES.update(KNeighborsClassifier=_refused, RadiusNeighborsClassifier=_refused)
REFUSED.update(("KNeighborsClassifier", "RadiusNeighborsClassifier"))
