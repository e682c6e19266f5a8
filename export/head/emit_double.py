"""Twice the precision of float32, of pairs of float32 numbers: what rounding loses is a float32 number too."""

from __future__ import annotations

import numpy as np

from mpmmu_rt.spec import Array

from .graph import Graph

_SPLIT = 2.0**12 + 1  # of 24 bits into 12 and 12 (Dekker, Numerische Mathematik 18, 1971)


def two_sum(graph: Graph, a: str, b: str) -> tuple[str, str]:
    """a + b, rounded, and what that lost (Knuth)."""
    value = graph.op("Add", a, b)
    of_b = graph.op("Sub", value, a)
    of_a = graph.op("Sub", value, of_b)
    return value, graph.op("Add", graph.op("Sub", a, of_a), graph.op("Sub", b, of_b))


def split(graph: Graph, a: str) -> tuple[str, str]:
    """a as a sum of numbers of 12 bits, whose products with such numbers are exact. |a| < 2^115."""
    large = graph.op("Mul", a, graph.scalar(_SPLIT))
    high = graph.op("Sub", large, graph.op("Sub", large, a))
    return high, graph.op("Sub", a, high)


def parts(values: Array) -> tuple[Array, Array, Array]:
    """float64 as a sum of three float32 numbers, the first two of 12 bits."""
    mantissa, exponent = np.frexp(values)
    first = np.ldexp(np.round(np.ldexp(mantissa, 12)), exponent - 12)
    mantissa, exponent = np.frexp(values - first)
    second = np.ldexp(np.round(np.ldexp(mantissa, 12)), exponent - 12)
    return first, second, values - first - second
