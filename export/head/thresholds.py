"""Trees behind scalers, folded exactly: thresholds on the embedding's own float32 values.

scikit-learn scales a float32 embedding in its own dtypes, casts to float32 and compares with a float64 threshold.
Scalers are monotone column by column, in floating point too, since correct rounding is monotone. So for every split
there is one largest float32 value θ of the raw column whose scaled value still goes left, and `x ≤ θ` is the same
decision for *every* float32 x. θ is found by bisection over the ordered float32 numbers, asking scikit-learn itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from mpmmu_rt.spec import Array

from .ir import (
    Concat,
    Count,
    Curve,
    Elementwise,
    Embedding,
    Forest,
    Logistic,
    Node,
    Product,
    Select,
    Share,
    Sum,
    Within,
    YeoJohnson,
    walk,
)

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_CELLS = 2**20  # of the matrix in which thresholds are searched at a time, a row for each of one column: bounds memory


Map = Elementwise | Curve | YeoJohnson  # monotone, column by column
_logits: WeakKeyDictionary[Product, Logistic] = WeakKeyDictionary()


@dataclass(frozen=True)
class Route:
    """How a feature comes from a column of the embedding, or of votes: the (map, column) pairs that it passes, in
    order, the first one over `source`."""

    source: Node
    column: int
    maps: tuple[tuple[Map | Share | Logistic, int], ...]

    @property
    def exact(self) -> bool:
        """Whether every float32 value takes its side: curves and powers may fall by a rounding where they rise."""
        return not any(isinstance(node, Curve | YeoJohnson) for node, _ in self.maps)


def route(node: Node, feature: int) -> Route | None:
    """The route of a column of `node`, or None if it is computed from more than one column, or in a float type that
    is not known: beside a computed column, scikit-learn may widen the others before it scales them. A share of votes
    is float64 in scikit-learn, and all beside it then are.

    A probability σ(d) comes from its logit d: near 1 float32 tells no probabilities apart that float64 does, and whose
    logits are far apart.
    """
    maps: list[tuple[Map | Share | Logistic, int]] = []
    widened = False
    while not isinstance(node, Embedding):
        if isinstance(node, Select):
            feature = int(node.index[feature])
            node = node.x
        elif isinstance(node, Share):
            maps.append((node, feature))
            return Route(node.x, feature, tuple(reversed(maps)))
        elif isinstance(node, Product) and node.activation == "logistic":
            logistic = _logits.get(node)
            if logistic is None:
                logistic = _logits[node] = Logistic(node.width, replace(node, activation="identity"))
            maps.append((logistic, feature))
            return Route(logistic.x, feature, tuple(reversed(maps)))
        elif isinstance(node, Map):
            maps.append((node, feature))
            node = node.x
        elif isinstance(node, Concat):
            plain = all(isinstance(below, Embedding | Select | Map | Concat) for below in walk(node))
            widened |= bool(maps) and not plain
            for part in node.parts:
                if feature < part.width:
                    node = part
                    break
                feature -= part.width
        else:
            return None
    return None if widened else Route(node, feature, tuple(reversed(maps)))


def single(node: Node, feature: int) -> bool:
    """Whether scikit-learn has a column in float32, as it came: of the embedding, or from one column of it."""
    found = route(node, feature)
    return found is not None and isinstance(found.source, Embedding)


def exact(node: Node, feature: int) -> bool:
    """Whether the graph has scikit-learn's very values of a column: of the embedding, and steps decided on it."""
    match node:
        case Embedding():
            return True
        case Select():
            return exact(node.x, int(node.index[feature]))
        case Concat():
            for part in node.parts:
                if feature < part.width:
                    return exact(part, feature)
                feature -= part.width
        case Count():
            return all(exact(node.x, block * node.width + feature) for block in range(node.groups))
        case Within():
            asked = int(node.column[feature])
            found = route(node.x, asked)
            return exact(node.x, asked) if found is None else found.exact
        case Product() if isinstance(node.x, Within):  # whether one of some steps was taken
            terms = np.flatnonzero(node.weight[:, feature])
            return all(exact(node.x, int(one)) for one in terms)
    return False


def whole(node: Node) -> bool:
    """Whether a value is exact in any order of float32 sums: the embedding, and votes, which are whole numbers."""
    match node:
        case Embedding():
            return True
        case Forest():
            leaves = np.append(node.trees.value[node.trees.feature < 0], node.bias)
            return bool((leaves == np.round(leaves)).all())
        case Sum():
            return all(weight == round(weight) for weight in node.weights) and all(map(whole, node.parts))
    return False


def side_by_side(origin: Sequence[tuple[Node, int]]) -> tuple[tuple[Node, ...], Array]:
    """The nodes that columns are of, each once, and where each column is in all of these side by side: int64."""
    sources = tuple(dict.fromkeys(source for source, _ in origin))
    starts = dict(zip(sources, np.cumsum([0, *(source.width for source in sources)])[:-1], strict=True))
    return sources, np.array([starts[source] + column for source, column in origin], np.int64)


def round_down(threshold: Array) -> Array:
    """The largest float32 ≤ each float64 threshold: the same decision for every float32 value."""
    rounded = np.clip(threshold, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
    above = rounded.astype(np.float64) > threshold
    with np.errstate(over="ignore"):  # below the smallest float32 is -inf: no case goes left
        rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def nearest(threshold: Array) -> Array:
    """The float32 next to each float64 threshold: for values that are rounded to float32 here and compared in float64
    by scikit-learn, of which one that equals the threshold goes left."""
    return np.clip(threshold, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)


def lowered(threshold: Array, least: float = 0.0) -> Array:
    """float32 thresholds a little below: for computed values that may equal a split but for their last bits, as they
    do where the split is a value of the data, and are to go right. least: what they are computed from is as large."""
    below: Array = (threshold - np.maximum(np.abs(threshold), least) * np.float32(2.0**-20)).astype(np.float32)
    return below


def raised(threshold: Array, least: float = 0.0) -> Array:
    """A little above, for those that are to go left: HistGradientBoosting splits at values of the data, and takes
    them in."""
    return -lowered(-threshold, least)


def normal(threshold: Array) -> Array:
    """float32 thresholds without subnormal numbers below zero, which OpenVINO takes for zero: then zero would be at
    most the threshold. The same decision for every x that is no subnormal number below zero itself."""
    smallest = np.finfo(np.float32).tiny
    replaced: Array = np.where((threshold < 0) & (threshold > -smallest), -smallest, threshold).astype(np.float32)
    return replaced


def fold(routes: list[Route], threshold: Array, *, double: bool = False) -> Array:
    """θ float32 [M] on the raw columns for `threshold` float64 [M] on the features of `routes`.

    double: scikit-learn compares in float64. -inf where no finite value goes left.
    """
    folded = np.empty(len(routes), np.float32)
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, one in enumerate(routes):
        groups.setdefault(tuple(id(node) for node, _ in one.maps), []).append(position)
    for positions in groups.values():
        if not routes[positions[0]].maps:
            folded[positions] = round_down(threshold[positions])
        else:
            folded[positions] = _fold_group([routes[p] for p in positions], threshold[positions], double)
    return folded


def reach(routes: list[Route], limit: Array) -> Array:
    """float64 [M]: up to which size of its raw column each of `routes` is at most `limit` float64 [M] in size."""
    high = fold(routes, limit, double=True).astype(np.float64)
    low = fold(routes, np.nextafter(-limit, -np.inf), double=True).astype(np.float64)  # the first that is below
    return np.minimum(high, -low)


def _fold_group(routes: list[Route], threshold: Array, double: bool) -> Array:
    """`fold` for routes through the same maps. Each row of a matrix holds one candidate for each column."""
    # What comes from one column shares its cells in every map: such routes are searched in different rows.
    column = np.array([one.maps[0][1] for one in routes])
    order = np.argsort(column, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(column[order])) + 1]
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    folded = np.empty(len(routes), np.float32)
    rows = max(1, _CELLS // max(node.width for node, _ in routes[0].maps))
    for block in range(int(rank.max()) // rows + 1):
        here = np.flatnonzero(rank // rows == block)
        positions = order[here]
        folded[positions] = _bisect([routes[p] for p in positions], rank[here] % rows, threshold[positions], double)
    return folded


def _bisect(routes: list[Route], row: Array, threshold: Array, double: bool) -> Array:
    """The largest float32 candidate per route whose mapped value is ≤ its threshold."""
    maps = [node for node, _ in routes[0].maps]
    columns = [np.array([one.maps[depth][1] for one in routes]) for depth in range(len(maps))]

    def goes_left(candidate: Array) -> Array:
        values: Array = candidate
        for node, column in zip(maps, columns, strict=True):
            matrix = np.zeros((int(row.max()) + 1, node.width), values.dtype)
            matrix[row, column] = np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX)
            with np.errstate(over="ignore", invalid="ignore"):  # scikit-learn adds all up to look for NaN
                values = node.exact(matrix)[row, column]
        with np.errstate(over="ignore"):
            compared = values if double else values.astype(np.float32)
            left: Array = compared.astype(np.float64) <= threshold
        return left

    # Order-preserving integers: float32 bits, with the negatives mirrored.
    low = np.full(len(routes), _to_ordinal(np.float32(-_FLOAT32_MAX)), np.int64)
    high = np.full(len(routes), _to_ordinal(np.float32(_FLOAT32_MAX)), np.int64)
    none = ~goes_left(_from_ordinal(low))
    while (low < high).any():
        middle = (low + high + 1) // 2
        left = goes_left(_from_ordinal(middle))
        low = np.where(left, middle, low)
        high = np.where(left, high, middle - 1)
    found = _from_ordinal(low)
    found[none] = -np.inf
    return found


def _to_ordinal(value: np.float32) -> int:
    bits = int(np.array(value, np.float32).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _from_ordinal(ordinal: Array) -> Array:
    bits = np.where(ordinal >= 0, ordinal, (-ordinal) | 0x80000000).astype(np.uint32)
    return bits.view(np.float32).copy()
