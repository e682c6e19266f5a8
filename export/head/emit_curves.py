"""Monotone maps of columns as ONNX: pieces of a table, quantiles of the normal distribution, powers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpmmu_rt.spec import Array

from . import ir, thresholds
from .emit_double import parts, split, two_sum
from .emit_steps import NameOf, limits
from .graph import Graph

INT32 = 6
LARGEST = 2.0**113  # of what is split in halves, see `emit_double`
# Wichura, Applied Statistics 37 (1988), algorithm AS 241, PPND7: relative error 1e-7.
_CENTRE = ((3.3871327179, 50.434271938, 159.29113202, 59.109374720), (1.0, 17.895169469, 78.757757664, 67.187563600))
_TAIL = ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1.0, 0.73700164250, 0.12021132975))


def curve(graph: Graph, name: NameOf, node: ir.Curve) -> str:
    """The piece of each column is found by bisection, then evaluated from its start, which is exact near it.

    Of float32 columns scikit-learn rounds p to float32 before it goes on, so that 1 - p loses digits where it is small:
    the same p then, to the bit, gives the same quantile.
    """
    piece = _piece(graph, name, node)
    high = node.start.astype(np.float32)

    def picked(table: Array) -> str:
        return graph.op("Gather", graph.constant(table.ravel()), piece, axis=0)

    if all(thresholds.single(node, column) for column in range(node.width)):
        one = _clipped(graph, _rounded_once(graph, name(node.precise), picked, node))
        if not node.clip:
            return one
        return _normal(graph, one, graph.op("Sub", graph.scalar(1.0), one), node.clip)
    run = graph.op("Sub", name(node.precise), picked(high))
    run = graph.op("Sub", run, picked(node.start - high))
    rise = graph.op("Mul", run, picked(node.slope))
    one = _clipped(graph, graph.op("Add", rise, picked(node.base)))
    if not node.clip:
        return one
    zero = _clipped(graph, graph.op("Sub", picked(node.rest), rise))
    return _normal(graph, one, zero, node.clip)


def _rounded_once(graph: Graph, x: str, picked: Callable[[Array], str], node: ir.Curve) -> str:
    """base + (x - start) · slope, computed in pairs of float32 numbers."""
    base = node.base.astype(np.float32)
    high, low = (-node.start).astype(np.float32), (-node.start - (-node.start).astype(np.float32)).astype(np.float32)
    run, lost = two_sum(graph, x, picked(high))
    run, more = two_sum(graph, run, picked(low))
    lost = graph.op("Add", lost, graph.op("Add", more, picked(-node.start - high - low)))
    run_parts = split(graph, run)
    slopes = [picked(part) for part in parts(node.slope)]
    rise = graph.op("Mul", run_parts[0], slopes[0])
    small = [graph.op("Mul", run_parts[a], slopes[b]) for a, b in ((0, 1), (1, 0))]
    value, more = two_sum(graph, picked(base), rise)
    for one in small:
        value, again = two_sum(graph, value, one)
        more = graph.op("Add", more, again)
    rest = [graph.op("Mul", run_parts[1], slopes[1]), graph.op("Mul", run, slopes[2])]
    rest += [graph.op("Mul", lost, slopes[0]), picked(node.base - base)]
    for one in rest:
        more = graph.op("Add", more, one)
    return graph.op("Add", value, more)


def _clipped(graph: Graph, x: str) -> str:
    return graph.op("Clip", x, graph.scalar(0.0), graph.scalar(1.0))


def _piece(graph: Graph, name: NameOf, node: ir.Curve) -> str:
    """Where each column's piece is in the flat tables, [N, width]."""
    width, pieces = node.edges.shape
    steps = max(1, int(np.ceil(np.log2(pieces))))
    column = np.repeat(np.arange(width), pieces)
    sources, place, limit = limits(graph, node.x, column, node.edges.ravel())
    whole = graph.beside([name(source) for source in sources])
    asked = graph.op("Gather", whole, graph.constant(place[::pieces]), axis=1)
    table = np.full((width, 2**steps), np.float32(np.inf))
    table[:, :pieces] = limit.reshape(width, pieces)
    edges = graph.constant(table.ravel().astype(np.float32))
    at = graph.constant((np.arange(width) * 2**steps).astype(np.int32)[None])
    for step in range(steps - 1, -1, -1):
        ahead = graph.op("Add", at, graph.constant(np.array(2**step, np.int32)))
        beyond = graph.op("Greater", asked, graph.op("Gather", edges, ahead, axis=0))
        at = graph.op("Where", beyond, ahead, at)
    return graph.op("Sub", at, graph.constant((np.arange(width) * (2**steps - pieces)).astype(np.int32)[None]))


def _normal(graph: Graph, one: str, zero: str, clip: float) -> str:
    """The quantile of the normal distribution of p = one = 1 - zero."""
    half = graph.op("Mul", graph.op("Sub", one, zero), graph.scalar(0.5))  # p - 1/2
    square = graph.op("Sub", graph.scalar(0.180625), graph.op("Mul", half, half))
    centre = graph.op("Mul", half, _ratio(graph, square, _CENTRE))
    least = graph.op("Max", graph.op("Min", one, zero), graph.scalar(1e-30))
    depth = graph.op("Sqrt", graph.op("Mul", graph.op("Log", least), graph.scalar(-1.0)))
    tail = _ratio(graph, graph.op("Sub", depth, graph.scalar(1.6)), _TAIL)
    below = graph.op("Less", half, graph.scalar(0.0))
    signed = graph.op("Where", below, graph.op("Mul", tail, graph.scalar(-1.0)), tail)
    central = graph.op("LessOrEqual", graph.op("Abs", half), graph.scalar(0.425))
    value = graph.op("Where", central, centre, signed)
    return graph.op("Clip", value, graph.scalar(-clip), graph.scalar(clip))


def _ratio(graph: Graph, x: str, polynomials: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    return graph.op("Div", *(_polynomial(graph, x, coefficients) for coefficients in polynomials))


def _polynomial(graph: Graph, x: str, coefficients: tuple[float, ...]) -> str:
    """Horner's scheme; the coefficient of x⁰ first."""
    value = graph.scalar(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = graph.op("Add", graph.op("Mul", value, x), graph.scalar(coefficient))
    return value


def yeo_johnson(graph: Graph, x: str, powers: Array) -> str:
    """sign(x) · expm1(μ log1p|x|) / μ, with μ = λ or, of negative numbers, 2 - λ; log1p|x| where μ = 0."""
    size = graph.op("Abs", x)
    below = graph.op("Less", x, graph.scalar(0.0))
    power = graph.op("Where", below, graph.constant((2 - powers)[None]), graph.constant(powers[None]))
    length = _log1p(graph, size)
    y = graph.op("Mul", power, length)
    small, series = _exponential_series(graph, y)
    apart = graph.op("Where", small, graph.scalar(1.0), y)
    quotient = graph.op("Div", graph.op("Sub", graph.op("Exp", apart), graph.scalar(1.0)), apart)
    value = graph.op("Mul", length, graph.op("Where", small, series, quotient))
    return graph.op("Where", below, graph.op("Mul", value, graph.scalar(-1.0)), value)


def exp_minus_one(graph: Graph, x: str) -> str:
    """exp(x) - 1, to its own digits."""
    small, series = _exponential_series(graph, x)
    far = graph.op("Sub", graph.op("Exp", x), graph.scalar(1.0))
    return graph.op("Where", small, graph.op("Mul", x, series), far)


def _exponential_series(graph: Graph, y: str) -> tuple[str, str]:
    """Where y is so small that exp(y) - 1 would cancel, and (exp(y) - 1) / y there, by its series."""
    series = _polynomial(graph, y, tuple(1 / float(factorial) for factorial in (1, 2, 6, 24, 120, 720, 5040, 40320)))
    return graph.op("Less", graph.op("Abs", y), graph.scalar(0.5)), series


def _log1p(graph: Graph, x: str) -> str:
    """log(1 + x) of x ≥ 0, by 2 artanh(x / (2 + x)) where 1 + x would round x away."""
    s = graph.op("Div", x, graph.op("Add", x, graph.scalar(2.0)))
    square = graph.op("Mul", s, s)
    series = _polynomial(graph, square, tuple(2 / odd for odd in (1.0, 3.0, 5.0, 7.0, 9.0, 11.0)))
    small = graph.op("Less", x, graph.scalar(0.5))
    return graph.op("Where", small, graph.op("Mul", s, series), graph.op("Log", graph.op("Add", x, graph.scalar(1.0))))
