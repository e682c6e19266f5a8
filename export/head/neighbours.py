"""Nearest neighbours are refused: which of two training cases is nearer is decided in the last bits of float64, and
where both are as near by their order in scikit-learn's search. In float32 a vote may go to another case, silently."""

from __future__ import annotations

from typing import Any, NoReturn

from .families import PROBABILITIES, REFUSED, refuse
from .ir import Node


def _refused(neighbours: Any, x: Node, path: str) -> NoReturn:
    refuse(
        neighbours,
        path,
        "whose neighbours are ranked by float64 distances, which float32 can't tell apart; expected a classifier whose "
        "answer does not jump between them",
        hint="an RBF SVC inside CalibratedClassifierCV votes by distance too, without jumps",
    )


PROBABILITIES.update(KNeighborsClassifier=_refused, RadiusNeighborsClassifier=_refused)
REFUSED.update(("KNeighborsClassifier", "RadiusNeighborsClassifier"))
