"""Steps as ONNX: comparisons of columns with float64 edges, decided on the embedding's own float32 values where a
column comes from one of it, and tables that such comparisons lead to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpmmu_rt.spec import Array

from . import ir, thresholds
from .graph import Graph

NameOf = Callable[[ir.Node], str]


def within(graph: Graph, name: NameOf, node: ir.Within) -> str:
    """[N, K]: whether each column is in its interval."""
    picked, low = asked(graph, name, node.x, node.column, node.low)
    found = graph.op("Greater", picked, graph.constant(low))
    if not np.isinf(node.high).all():
        same, high = asked(graph, name, node.x, node.column, node.high)
        found = graph.op("And", found, graph.op("LessOrEqual", same, graph.constant(high)))
    return graph.op("Cast", found, to=1)


def count(graph: Graph, x: str, node: ir.Count) -> str:
    shaped = graph.op("Reshape", x, graph.constant(np.array([-1, node.groups, node.width])))
    return graph.op("ReduceSum", shaped, graph.constant(np.array([1])), keepdims=0)


def asked(graph: Graph, name: NameOf, x: ir.Node, column: Array, edge: Array) -> tuple[str, Array]:
    """A tensor [N, K] of which each value is > its float32 limit [K] where scikit-learn finds x[column] ≥ edge."""
    sources, place, limit = limits(graph, x, column, edge)
    whole = graph.beside([name(source) for source in sources])
    if sources[0].width == len(place) and len(sources) == 1 and (place == np.arange(len(place))).all():
        return whole, limit
    return graph.op("Gather", whole, graph.constant(place), axis=1), limit


def limits(graph: Graph, x: ir.Node, column: Array, edge: Array) -> tuple[tuple[ir.Node, ...], Array, Array]:
    """Where to ask whether x[column] ≥ edge: sources, columns int64 [K] of them side by side, and float32 limits [K]
    that are to be exceeded. On a computed column what equals the edge but for its last bits is in."""
    of_column = {int(one): thresholds.route(x, int(one)) for one in np.unique(column)}
    routes = [of_column[int(one)] for one in column]
    origin = [(x, int(one)) if r is None else (r.source, r.column) for r, one in zip(routes, column, strict=True)]
    sources, place = thresholds.side_by_side(origin)
    below = np.nextafter(edge, -np.inf)  # x ≥ edge is not x ≤ below, in float64
    limit = np.empty(len(edge), np.float32)
    direct = np.flatnonzero([route is not None for route in routes])
    if direct.size:
        found = [route for route in routes if route is not None]
        limit[direct] = thresholds.fold(found, below[direct], double=True)
    known = {int(one): thresholds.exact(x, int(one)) for one in np.unique(column)}
    for position in np.setdiff1d(np.arange(len(edge)), direct):
        one = slice(position, position + 1)
        if known[int(column[position])]:
            limit[one] = thresholds.round_down(below[one])
        else:
            with np.errstate(over="ignore"):  # nothing is below the lowest float32
                limit[one] = np.nextafter(thresholds.nearest(edge[one]), np.float32(-np.inf))
                limit[one] = thresholds.lowered(limit[one])  # an edge is a value of the data, or may be
    return sources, place, thresholds.normal(limit) if graph.portable else limit
