"""KBinsDiscretizer: which bin a column is in, as a number or as one column for each bin."""

from __future__ import annotations

from typing import Any

import numpy as np

from .families import TRANSFORMERS, column, refuse
from .ir import Count, Node, Within


def _bins(discretizer: Any, x: Node, path: str) -> Node:
    """The number of inner edges at or below x, as `np.searchsorted` counts them on the right."""
    edges = [column(edge)[1:-1] for edge in discretizer.bin_edges_]
    if discretizer.encode == "ordinal":
        return _ordinal(edges, x)
    if discretizer.encode not in ("onehot", "onehot-dense"):
        refuse(discretizer, path, f"with encode={discretizer.encode!r}, expected ordinal, onehot or onehot-dense")
    owner = np.repeat(np.arange(len(edges)), [len(one) + 1 for one in edges])
    low = np.concatenate([np.r_[-np.inf, one] for one in edges])
    high = np.concatenate([np.r_[one, np.inf] for one in edges])
    return Within(len(owner), x, owner, low, high)


def _ordinal(edges: list[Any], x: Node) -> Node:
    most = max(1, *(len(one) for one in edges))
    table = np.full((most, len(edges)), np.inf)  # no number is at or above infinity
    for feature, one in enumerate(edges):
        table[: len(one), feature] = one
    passed = Within(table.size, x, np.tile(np.arange(len(edges)), most), table.ravel(), np.full(table.size, np.inf))
    return Count(len(edges), passed, most)


TRANSFORMERS.update(KBinsDiscretizer=_bins)
