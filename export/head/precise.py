"""Sums of trees in twice the precision of float32, for what is steep in them: isotonic calibration, votes at a tie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpmmu_rt.spec import Array

from .ir import Forest, Node, Share, Sum

_BITS = 24  # of a float32 number


def halves(node: Node) -> tuple[Node, Node | None, float] | None:
    """A sum or mean of trees as (high, low, count), [N, 1] each: it is (high + low) / count. None if it is no such sum.

    high is on a grid so coarse that float32 adds it without rounding in any order; low is what is left, of which
    float32 keeps 2⁻⁴⁰ of the whole or less. There is no low for votes, which are whole numbers.
    """
    count = 1.0
    while isinstance(node, Share):  # its limits are no limits for a mean of probabilities
        count *= node.count
        node = node.x
    found = _forests(node, 1.0)
    if found is None:
        return None
    grid = _grid(found)
    high, low = ([_rounded(forest, grid, part) for forest in found] for part in ("high", "low"))
    needed = any(forest.trees.value.any() or forest.bias for forest in low)
    return _sum(high), _sum(low) if needed else None, count


def _forests(node: Node, factor: float) -> list[Forest] | None:
    """The forests that `node` is the sum of, their values scaled by what divides or weighs them."""
    match node:
        case Forest():
            values = replace(node.trees, value=node.trees.value * factor)
            return [replace(node, trees=values, bias=node.bias * factor)]
        case Share():
            return _forests(node.x, factor / node.count)
        case Sum():
            parts = [_forests(part, factor * weight) for part, weight in zip(node.parts, node.weights, strict=True)]
            return None if any(part is None for part in parts) else [one for part in parts if part for one in part]
    return None


def _grid(forests: list[Forest]) -> float:
    size = sum(abs(forest.bias) + _largest(forest) for forest in forests)
    return float(np.exp2(np.ceil(np.log2(max(size, 1e-30))) + 1 - _BITS))


def _largest(forest: Forest) -> float:
    """What the trees may add up to, at most: each one's largest leaf."""
    trees = forest.trees
    ends = np.append(np.sort(trees.roots)[1:], len(trees.feature))
    return float(sum(np.abs(trees.value[a:b]).max() for a, b in zip(np.sort(trees.roots), ends, strict=True)))


def _rounded(forest: Forest, grid: float, part: str) -> Forest:
    def half(values: Array) -> Array:
        high = np.round(values / grid) * grid
        return high if part == "high" else values - high

    trees = replace(forest.trees, value=half(forest.trees.value))
    return replace(forest, trees=trees, bias=float(half(np.array(forest.bias))))


def _sum(parts: list[Forest]) -> Node:
    return parts[0] if len(parts) == 1 else Sum(1, tuple(parts), (1.0,) * len(parts))
