"""Products of what may lie far from zero, summed without the cancellation of float32.

A decision w·x + b of features whose mean is m of their deviations is a small difference of sums that are m times
larger; float32 then loses a factor m: 3e-4 in probability at 500 deviations, where scikit-learn sums in float64. Both
factors are split into slices of few bits, so that the products of slices sum without any rounding, in any order
(Ozaki et al., Numerical Algorithms 59, 2012); only what is left over is rounded.
"""

from __future__ import annotations

import numpy as np

from mpmmu_rt.spec import Array

from . import ir
from .emit_double import two_sum
from .graph import Graph

_SLICES = 2  # of each factor; then the rest
_SLICED = 2.0**90  # what is larger is added as it is: its multiples must be finite
_LARGEST = 2.0**110  # of a contribution; a row with a larger one has no answer (`guard`)


def far(node: ir.Node) -> bool:
    """Whether values of `node` may dwarf their own differences: the embedding, and what keeps its offset. Behind a
    scaler that centres, and behind probabilities, they don't."""
    match node:
        case ir.Embedding():
            return True
        case ir.Elementwise():
            return not node.offset.any() and far(node.x)
        case ir.Product():
            return node.centre is None and node.activation == "identity" and far(node.x)
        case ir.Select() | ir.Concat() | ir.Normalise():
            return any(far(child) for child in ir.inputs(node))
    return False


def splits(product: ir.Product) -> bool:
    """Whether a product is written in slices."""
    return product.centre is None and far(product.x)


def limits(weight: Array) -> Array:
    """Up to which size of each feature, of weight [F, width], no contribution is clipped: float64 [F]."""
    largest: Array = np.where(np.abs(weight).max(axis=1) > 0, _LARGEST / _powers(weight), np.finfo(np.float32).max)
    return np.minimum(largest, np.finfo(np.float32).max)


def _powers(weight: Array) -> Array:
    """The power of two next to the largest weight of each feature: what makes contributions of features."""
    size = np.abs(weight).max(axis=1)
    power: Array = np.exp2(np.where(size > 0, np.round(np.log2(np.maximum(size, 2.0**-126))), 0).clip(-120, 120))
    return power


def affine(graph: Graph, x: str, weight: Array, bias: Array) -> tuple[str, Array, Array]:
    """What x @ weight + bias is a sum of: slices side by side [N, 3 F], a weight float64 [3 F, 3 width] that makes
    three parts of each column, and the bias in two parts [2, width].

    x is first scaled by powers of two, so that its values are contributions, which one grid suits.
    """
    terms = (_SLICES * len(weight)).bit_length()
    bits_w = max(1, (24 - terms - 3) // 2)
    bits_x = max(4, 24 - terms - bits_w)
    power = _powers(weight)
    if (power != 1).any():
        x = graph.op("Mul", x, graph.constant(power))
    x = graph.op("Clip", x, graph.scalar(-_LARGEST), graph.scalar(_LARGEST))
    weight = weight / power[:, None]
    slices = _slices(graph, x, bits_x)
    grid = 2.0**-bits_w
    first = np.round(weight / grid) * grid
    second = np.round((weight - first) / grid**2) * grid**2
    rest, none = weight - first - second, np.zeros_like(weight)
    columns = [[first, none, none], [second, first, none], [rest, second + rest, weight]]
    high = bias.astype(np.float32).astype(np.float64)
    return (
        slices,
        np.concatenate([np.concatenate(one, axis=0) for one in columns], axis=1),
        np.stack([high, bias - high]),
    )


def _slices(graph: Graph, x: str, bits: int) -> str:
    """x as a sum of slices of `bits` bits on one grid for each row, and what is left of it. Exact."""
    size = graph.op("ReduceMax", graph.op("Abs", x), graph.constant(np.array([1])))
    step = graph.op("Where", graph.op("Less", size, graph.scalar(_SLICED)), size, graph.scalar(0.0))
    parts = []
    for number in range(_SLICES):
        # Adding what is 2^(25 - bits) times larger rounds to a grid; at most 2^(2 - bits) of the size is left.
        large = graph.op("Mul", step, graph.scalar(2.0 ** (25 - bits + number * (2 - bits))))
        part = graph.op("Sub", graph.op("Add", x, large), large)
        x = graph.op("Sub", x, part)
        parts.append(part)
    return graph.op("Concat", *parts, x, axis=1)


def total(graph: Graph, parts: str, bias: Array, width: int) -> str:
    """The sum of three parts [N, 3 width] and the bias, each error of rounding added again (`emit_double`)."""
    first, second, rest = (
        graph.op("Gather", parts, graph.constant(np.arange(number * width, (number + 1) * width)), axis=1)
        for number in range(3)
    )
    value, lost = two_sum(graph, first, graph.constant(bias[0]))
    value, more = two_sum(graph, value, second)
    rest = graph.op("Add", rest, graph.op("Add", lost, more))
    if bias[1].any():
        rest = graph.op("Add", rest, graph.constant(bias[1]))
    return graph.op("Add", value, rest)
