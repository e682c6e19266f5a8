"""The intermediate form between scikit-learn and ONNX: an expression over the embedding.

Every node is a value of shape [N, width]; nodes are shared, so an expression is a DAG. Families (`linear`, `svm`,
`forest`, …) translate estimators into it, `thresholds` folds preprocessing into trees, `emit` writes it as ONNX.

To add an operator: a node here, a case in `emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.special import expit

from mpmmu_rt.spec import Array

# "identity" | "logistic" | "tanh" | "relu", as in scikit-learn, or "tail": logistic, and as precise near zero.
Activation = str


@dataclass(frozen=True, eq=False)
class Node:
    """A value [N, width]. Nodes are compared by identity: the same object is computed once."""

    width: int


@dataclass(frozen=True, eq=False)
class Embedding(Node):
    """The input, float32 [N, D]."""


@dataclass(frozen=True, eq=False)
class Select(Node):
    """Columns `index` int64 [width] of `x`."""

    x: Node
    index: Array


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """(x - offset) · scale, then clipped to low..high: a monotone, non-decreasing map of each column.

    offset, scale: float64 [width], scale ≥ 0; `divides` says that scikit-learn divides by 1 / scale. `exact` is what
    scikit-learn itself computes, in its own dtypes, for a matrix [K, width]: trees behind it are folded with that, not
    with the formula.
    """

    x: Node
    offset: Array
    scale: Array
    exact: Callable[[Array], Array]
    low: float = -np.inf
    high: float = np.inf
    divides: bool = False


@dataclass(frozen=True, eq=False)
class Curve(Node):
    """Column by column piecewise linear, monotone, with jumps: from edges[j] on, base[j] + (x - start[j]) · slope[j].

    edges, start, slope, base: float64 [width, pieces], edges ascending, the first -inf. `exact` as in `Elementwise`.
    normal: then the quantile of the normal distribution, between ± `clip`; `rest` is then 1 - base, to its own digits.
    precise: x, with as many digits of small probabilities as float32 holds (`tails`).
    """

    x: Node
    precise: Node
    edges: Array
    start: Array
    slope: Array
    base: Array
    rest: Array
    exact: Callable[[Array], Array]
    clip: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class YeoJohnson(Node):
    """Yeo and Johnson's power of each column (Biometrika 87, 2000): powers float64 [width]. `exact` as above."""

    x: Node
    powers: Array
    exact: Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """The columns of `parts`, side by side."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Normalise(Node):
    """Rows divided by their norm ("l1", "l2" or "max"); a row of next to zeros stays. double: scikit-learn has it in
    float64, and takes less for zero."""

    x: Node
    norm: str
    double: bool = False


@dataclass(frozen=True, eq=False)
class Product(Node):
    """activation((x - centre) @ weight + bias): weight float64 [x.width, width], bias [width], centre [x.width]."""

    x: Node
    weight: Array
    bias: Array
    activation: Activation = "identity"
    centre: Array | None = None
    note: str = ""  # what the user should know about it


@dataclass(frozen=True, eq=False)
class Logistic(Node):
    """σ(x), column by column: what trees behind a probability are folded through; never written as it is."""

    x: Node

    def exact(self, x: Array) -> Array:
        """In float64, as scikit-learn has probabilities."""
        found: Array = expit(x.astype(np.float64))
        return found


@dataclass(frozen=True, eq=False)
class Square(Node):
    """x²."""

    x: Node


@dataclass(frozen=True, eq=False)
class Kernel(Node):
    """Of x with each of `vectors` float64 [width, F]: rbf exp(-γ|x-v|²), poly (γ x·v + c)ᵈ, sigmoid tanh(γ x·v + c).

    centre float64 [F]: less the kernel of the centre with each vector, to the difference's own digits.
    """

    x: Node
    vectors: Array
    kind: str
    gamma: float
    coef0: float
    degree: int
    centre: Array | None = None

    def exact(self, x: Array) -> Array:
        """The kernel of x [N, F] in float64, without the centre."""
        if self.kind == "rbf":
            apart = ((x * x).sum(1)[:, None] + (self.vectors**2).sum(1)) - 2 * x @ self.vectors.T
            kernel: Array = np.exp(-self.gamma * np.maximum(0, apart))
        else:
            inner = self.gamma * x @ self.vectors.T + self.coef0
            kernel = np.tanh(inner) if self.kind == "sigmoid" else inner**self.degree
        return kernel


@dataclass(frozen=True, eq=False)
class Trees:
    """Binary trees in flat arrays. Row i: a case at node i goes left if x[feature[i]] ≤ threshold[i].

    feature int64 [M] (-1 at a leaf), threshold float64 [M], left, right int64 [M] (a leaf's are the leaf itself),
    value float64 [M] (of leaves), roots int64 [T].
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    roots: Array


@dataclass(frozen=True, eq=False)
class Forest(Node):
    """The sum of the trees' leaf values, plus `bias`: [N, 1].

    double: scikit-learn compares x in float64; else it casts x to float32 first. at_values: a split is a value of the
    data, which goes right; others are between two.
    """

    x: Node
    trees: Trees
    bias: float = 0.0
    double: bool = False
    at_values: bool = False


@dataclass(frozen=True, eq=False)
class Interpolate(Node):
    """Of x + rest, piecewise linear through (xs, ys), ends held: isotonic calibration. xs ascending float64 [K]."""

    x: Node
    xs: Array
    ys: Array
    rest: Node | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Clip(Node):
    """x clipped to low..high."""

    x: Node
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Logit(Node):
    """log(one + ε) - log(zero + ε) of the probabilities of both classes, [N, 1] each."""

    one: Node
    zero: Node
    epsilon: float


@dataclass(frozen=True, eq=False)
class Coupling(Node):
    """What libsvm makes of Platt's probability of class 1, [N, 1]: see `svm`."""

    x: Node


@dataclass(frozen=True, eq=False)
class Above(Node):
    """1.0 where x > threshold, or ≥ if `inclusive`, else 0.0: a predicted label."""

    x: Node
    threshold: float
    inclusive: bool = False


@dataclass(frozen=True, eq=False)
class Within(Node):
    """1.0 where low ≤ x[column] < high, else 0.0, of each of K columns int64 [K]; low, high: float64 [K]."""

    x: Node
    column: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Count(Node):
    """The sum of `groups` blocks of columns of x, each as wide as this."""

    x: Node
    groups: int


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """The weighted sum of parts [N, 1]."""

    parts: tuple[Node, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Share(Node):
    """x / count, clipped to low..high: votes into a probability, a sum into a mean.

    Division is rounded once, as in scikit-learn; float32(1 / n) · k is not k / n for 269 of n = 1 … 300. Trees behind
    it ask the votes, which are whole numbers where leaves are pure (`thresholds`).
    """

    x: Node
    count: float
    low: float = -np.inf
    high: float = np.inf

    def exact(self, x: Array) -> Array:
        """What scikit-learn makes of x, in float64."""
        return np.clip(x.astype(np.float64) / self.count, self.low, self.high)


def inputs(node: Node) -> tuple[Node, ...]:
    """The nodes that `node` reads."""
    found: list[Node] = []
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Node):
            found.append(value)
        elif item.name == "parts":
            found.extend(value)
    return tuple(found)


def walk(*roots: Node) -> Iterator[Node]:
    """Every node below the roots once, inputs before what reads them."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(inputs(node)))


def select(x: Node, index: Array) -> Node:
    """`Select`, or `x` itself where the selection is all of it in order."""
    index = np.asarray(index, np.int64)
    if len(index) == x.width and (index == np.arange(x.width)).all():
        return x
    if isinstance(x, Select):
        return Select(len(index), x.x, x.index[index])
    return Select(len(index), x, index)


def sigmoid(x: Node, slope: float, offset: float, note: str = "") -> Product:
    """σ(slope · x + offset) of one column: Platt scaling. Of a product it is that product, scaled beforehand, in
    float64: a decision that hardly varies around its intercept would in float32 have lost what a steep slope needs."""
    if isinstance(x, Product) and x.activation == "identity":
        return Product(1, x.x, x.weight * slope, x.bias * slope + offset, "logistic", x.centre, note)
    return Product(1, x, np.array([[slope]]), np.array([offset]), "logistic", note=note)


def tails(node: Node) -> Node:
    """`node` with the digits of small probabilities, where it is made of probabilities: see `Activation`."""
    match node:
        case Product() if node.activation == "logistic":
            return replace(node, activation="tail", note="")
        case Select() | Share() | Clip():
            x = tails(node.x)
            return node if x is node.x else replace(node, x=x)
        case Concat() | Sum():
            parts = tuple(tails(part) for part in node.parts)
            return node if parts == node.parts else replace(node, parts=parts)
    return node


def mean(parts: tuple[Node, ...], weights: Array | None = None, low: float = -np.inf, high: float = np.inf) -> Share:
    """The weighted mean of parts [N, 1], as `np.average` takes it: the sum, then divided. Of probabilities, 0..1: a
    mean of float32 numbers that are all 1 may be 1.0000001."""
    given = np.ones(len(parts)) if weights is None else weights
    return Share(1, Sum(1, parts, tuple(given.tolist())), float(given.sum()), low, high)


def concat(*parts: Node) -> Node:
    """`Concat`, or the one part."""
    return parts[0] if len(parts) == 1 else Concat(sum(part.width for part in parts), parts)
