"""Which numbers have to be finite for a row to have an answer: `finite`.

What compares, clips or saturates makes an answer of NaN and of infinity that looks right: a tree sends them left or
right, a label is 0, and OpenVINO's Relu and Clip say 0 of NaN. So whatever such an operator reads is asked whether it
is finite, once for all of a graph, unless it is so by the size of its weights. A scaler that is folded into a tree is
computed nowhere: there the embedding is asked, up to which size scikit-learn's own scaler stays finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpmmu_rt.spec import Array

from . import emit_curves, emit_split, ir, thresholds
from .emit import Emitter

_MAX = float(np.finfo(np.float32).max)
_LOGIT = 64.0  # above the largest of log(p + ε), of any ε that float32 holds


def finite(emitter: Emitter, roots: list[ir.Node], embedding: ir.Embedding, parts: list[str]) -> str:
    """Whether all that matters of a row is finite, and each of `parts` [N, 1]: the name of a bool [N, 1]. To be called
    when `roots` are written."""
    found = _Demands(emitter, embedding.width)
    with np.errstate(over="ignore", invalid="ignore"):  # bounds may be infinite, and NaN of two that are
        for node in ir.walk(*roots):
            if isinstance(node, thresholds.Map):
                found.scaled(node)
            if id(node) in emitter.names:
                found.add(node)
    graph = emitter.graph
    columns = [_total(emitter, "embedding", found.limit), *parts]
    for name, limit in found.watched.items():
        columns.append(name if len(limit) == 1 and limit[0] == _MAX else _total(emitter, name, limit))
    columns = list(dict.fromkeys(columns))
    row = graph.op("Concat", *columns, axis=1)
    size = graph.op("Abs", _total(emitter, row, np.full(len(columns), _MAX)))
    return graph.op("LessOrEqual", size, graph.scalar(_MAX))


def _total(emitter: Emitter, x: str, limit: Array) -> str:
    """The sum of x [N, width], scaled so that a value beyond its limit, NaN or infinity makes it no finite number.
    Values within limits of `_MAX` can't; those within smaller ones may from a width'th of them on. [N, 1]."""
    graph = emitter.graph
    plain = 2.0 ** -len(limit).bit_length()
    scale = np.where(limit < _MAX, (_MAX / np.maximum(limit, 1.0) * (1 + 2.0**-20)).clip(max=_MAX), plain)
    constant = graph.constant(scale) if (limit < _MAX).any() else graph.scalar(plain)
    return graph.op("ReduceSum", graph.op("Mul", x, constant), graph.constant(np.array([1])))


class _Demands:
    """Collects limits: float64 [D] of the embedding's columns, and by name those of the columns of other values."""

    def __init__(self, emitter: Emitter, width: int) -> None:
        self.emitter = emitter
        self.limit = np.full(width, _MAX)
        self.watched: dict[str, Array] = {}
        self._bounds: dict[int, tuple[ir.Node, Array]] = {}

    def scaled(self, node: thresholds.Map) -> None:
        """What a map makes of the embedding is to be finite, written or not, read or not: scikit-learn looks at all."""
        self._of_embedding(node, {column: thresholds.route(node, column) for column in range(node.width)}, _MAX)

    def add(self, node: ir.Node) -> None:
        """What a written node needs to be finite."""
        match node:
            case ir.Product() if emit_split.splits(node):
                self._need(node.x, emit_split.limits(node.weight))
            case ir.Kernel() if node.kind == "sigmoid":
                size = np.abs(node.gamma * node.vectors).max(axis=0) * node.x.width
                self._need(node.x, _MAX / np.maximum(size, 1.0))
            case ir.Curve():
                for x in (node.x, node.precise):
                    self._need(x, np.full(x.width, emit_curves.LARGEST))
            case ir.Interpolate() | ir.Within() | ir.YeoJohnson() | ir.Above() | ir.Clip():
                for x in ir.inputs(node):
                    self._need(x, np.full(x.width, _MAX))
            case ir.Forest() | ir.Elementwise() | ir.Share():
                self._need(node.x, np.full(node.x.width, _MAX))
        if isinstance(node, ir.Product) and node.activation != "identity":
            self._watch(self.emitter.inside[id(node)], self._affine(node), np.full(node.width, _MAX))
        elif isinstance(node, ir.Normalise):
            size = self._bound(node.x)
            norm = np.array([(size**2).sum() if node.norm == "l2" else size.sum()])
            self._watch(self.emitter.inside[id(node)], norm, np.full(1, _MAX))

    def _watch(self, name: str, bound: Array, limit: Array) -> None:
        if not (bound <= limit).all():  # NaN is above
            self.watched[name] = np.minimum(self.watched.get(name, limit), limit)

    def _need(self, x: ir.Node, limit: Array) -> None:
        """Columns of x are to be within `limit`; infinity asks for nothing."""
        if isinstance(x, ir.Select):
            below = np.full(x.x.width, np.inf)
            np.minimum.at(below, x.index, limit)
            return self._need(x.x, below)
        if isinstance(x, ir.Concat):
            for part, own in zip(x.parts, np.split(limit, np.cumsum([one.width for one in x.parts])[:-1]), strict=True):
                self._need(part, own)
            return None
        routes = {int(column): thresholds.route(x, int(column)) for column in np.flatnonzero(np.isfinite(limit))}
        direct = self._of_embedding(x, routes, limit)
        for source in dict.fromkeys(x if one is None else one.source for at, one in routes.items() if at not in direct):
            if id(source) in self.emitter.names:
                own = np.minimum(limit, _MAX) if source is x else np.full(source.width, _MAX)
                self._watch(self.emitter.names[id(source)], self._bound(source), own)
        return None

    def _of_embedding(
        self, x: ir.Node, routes: Mapping[int, thresholds.Route | None], limit: Array | float
    ) -> set[int]:
        """Limit the embedding so that columns of x are within `limit`, and return those that are of it."""
        found = {at: one for at, one in routes.items() if one is not None and isinstance(one.source, ir.Embedding)}
        if found and not (self._bound(x) <= limit).all():
            most = np.broadcast_to(limit, (x.width,))[list(found)]
            reached = thresholds.reach(list(found.values()), most)
            np.minimum.at(self.limit, [one.column for one in found.values()], reached)
        return set(found)

    def _bound(self, node: ir.Node) -> Array:
        """What each column is at most, by its size: float64 [width]; infinite where weights don't say."""
        if id(node) not in self._bounds:
            self._bounds[id(node)] = node, self._computed(node) * np.ones(node.width)
        return self._bounds[id(node)][1]

    def _computed(self, node: ir.Node) -> Array | float:
        match node:
            case ir.Embedding():
                return _MAX
            case ir.Select():
                return self._bound(node.x)[node.index]
            case ir.Concat():
                return np.concatenate([self._bound(part) for part in node.parts])
            case ir.Product():
                return 1.0 if node.activation in ("logistic", "tanh", "tail") else self._affine(node)
            case ir.Elementwise() | ir.Clip() | ir.Share() if np.isfinite([node.low, node.high]).all():
                return max(abs(node.low), abs(node.high))
            case ir.Elementwise():
                return (self._bound(node.x) + np.abs(node.offset)) * node.scale
            case ir.Curve():
                return node.clip or 1.0
            case ir.Square():
                return self._bound(node.x) ** 2
            case ir.Kernel():
                return self._kernel(node)
            case ir.Forest():
                return float(np.abs(node.trees.value).max(initial=0.0)) * len(node.trees.roots) + abs(node.bias)
            case ir.Sum():
                pairs = zip(node.parts, node.weights, strict=True)
                return sum((abs(weight) * self._bound(part) for part, weight in pairs), np.zeros(1))
            case ir.Share():
                return self._bound(node.x) / node.count
            case ir.Interpolate():
                return float(np.abs(node.ys).max())
            case ir.Logit():
                return _LOGIT
            case ir.Count():
                return float(node.groups)
            case ir.Above() | ir.Within() | ir.Normalise() | ir.Coupling():
                return 1.0
        return np.inf

    def _affine(self, product: ir.Product) -> Array:
        """Of a product before its activation. A sliced one reads what is within limits."""
        size = self._bound(product.x)
        if emit_split.splits(product):
            size = np.minimum(size, emit_split.limits(product.weight))
        if product.centre is not None:
            size = size + np.abs(product.centre)
        found: Array = np.abs(product.weight).T @ size + np.abs(product.bias)
        return found

    def _kernel(self, kernel: ir.Kernel) -> float:
        """Of vectors and x that are small enough, also in between."""
        x, vectors = self._bound(kernel.x), np.abs(kernel.vectors).max(axis=0)
        if kernel.centre is not None:
            vectors = vectors + np.abs(kernel.centre)
        inner = kernel.gamma * float(((x + vectors) ** 2).sum()) + abs(kernel.coef0)
        if kernel.kind == "poly":
            return float(np.float64(max(1.0, inner)) ** kernel.degree) * (1 + kernel.degree)
        return 2.0 if inner < _MAX else np.inf
