"""Multilayer perceptrons."""

from __future__ import annotations

from typing import Any

import numpy as np

from .families import PROBABILITIES, column, refuse
from .ir import Node, Product


def _probability(mlp: Any, x: Node, path: str) -> Node:
    if mlp.out_activation_ != "logistic":
        refuse(mlp, path, f"with the output activation {mlp.out_activation_!r}, expected logistic")
    layers = list(zip(mlp.coefs_, mlp.intercepts_, strict=True))
    for number, (weight, bias) in enumerate(layers):
        activation = mlp.activation if number + 1 < len(layers) else "logistic"
        x = Product(len(bias), x, np.asarray(weight, np.float64), column(bias), activation)
    return x


PROBABILITIES.update(MLPClassifier=_probability)
