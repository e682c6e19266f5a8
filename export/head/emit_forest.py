"""Trees as ONNX: one `ai.onnx.ml` operator, a traversal by gathers, or matrix products.

Which form a forest gets is decided by `choose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpmmu_rt.spec import Array

from .graph import ML_DOMAIN, Graph
from .ir import Trees

_INFINITY = np.float32(np.inf)
_DECISIONS_PER_LEVEL = 400  # that a product form may take for each level that a traversal would, see `choose`
_PATHS = 2_000_000  # elements of its path matrices, at most: 8 MB
_LARGE = 128  # trees from which a forest is an operator of its own
_CUT = 0.5  # a cut costs two operators: made when so few trees are left, of those that were there at the last one


@dataclass(frozen=True)
class Folded:
    """Trees over the columns of one tensor, with float32 thresholds that are exact for it; ready to be written.

    left and right are as in `Trees`. `output` int64 [T] says to which forest a tree adds; `bias` [forests].
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    roots: Array
    output: Array
    bias: Array

    @property
    def depth(self) -> int:
        """The largest number of decisions on a path."""
        return int(_depths(self).max())


def merge(parts: Sequence[tuple[Trees, Array, Array, float]]) -> Folded:
    """Forests (trees, feature in the tensor, float32 threshold, bias) over one tensor as one, an output each."""
    starts = np.cumsum([0, *(len(trees.feature) for trees, *_ in parts)])[:-1]
    pairs = list(zip(parts, starts, strict=True))
    return Folded(
        feature=np.concatenate([feature for (_, feature, _, _), _ in pairs]),
        threshold=np.concatenate([threshold for (_, _, threshold, _), _ in pairs]),
        left=np.concatenate([trees.left + start for (trees, *_), start in pairs]),
        right=np.concatenate([trees.right + start for (trees, *_), start in pairs]),
        value=np.concatenate([trees.value for (trees, *_), _ in pairs]),
        roots=np.concatenate([trees.roots + start for (trees, *_), start in pairs]),
        output=np.concatenate([np.full(len(trees.roots), number) for number, ((trees, *_), _) in enumerate(pairs)]),
        bias=np.array([bias for *_, bias in parts]),
    )


def choose(forest: Folded, engine: str) -> str:
    """`operator`, `product` or `traversal`.

    A traversal costs about seven small operators per level; the product form costs a dozen in all, but decides and
    multiplies for all inner nodes of all trees, padded to the largest (I). So products pay for deep trees of few
    nodes, where T · I ≤ 400 · (depth - 2). The constant is measured, on OpenVINO and ONNX Runtime at batches 1 to 32
    (`benchmarks/results/head_forests_*`; on TensorRT it was not): the chosen form takes 5 % longer than the faster one,
    on average.
    """
    if engine == "onnxruntime":
        return "operator"
    trees, inner = len(forest.roots), _inner_per_tree(forest)
    pays = trees * inner <= _DECISIONS_PER_LEVEL * (forest.depth - 2)
    return "product" if pays and trees * inner * (inner + 1) <= _PATHS else "traversal"


def _inner_per_tree(forest: Folded) -> int:
    tree = _tree_of(forest)
    return int(np.bincount(tree[forest.feature >= 0], minlength=1).max(initial=0))


def _tree_of(forest: Folded) -> Array:
    """Which tree each node belongs to."""
    tree = np.empty(len(forest.feature), np.int64)
    nodes, owner = forest.roots, np.arange(len(forest.roots))
    while len(nodes):
        tree[nodes] = owner
        inner = forest.feature[nodes] >= 0
        parents, owner = nodes[inner], np.tile(owner[inner], 2)
        nodes = np.concatenate([forest.left[parents], forest.right[parents]])
    return tree


def write(graph: Graph, x: str, forest: Folded, strategy: str) -> list[str]:
    """Write the forests over the tensor `x`; returns the name of each one's value, [N, 1]."""
    if not (forest.feature >= 0).any():
        return _columns(graph, _only_leaves(graph, x, forest), forest.bias)
    writer = {"operator": _operator, "product": _product, "traversal": _traversal}[strategy]
    return writer(graph, x, forest)


def _columns(graph: Graph, sums: str, bias: Array) -> list[str]:
    """The columns of [N, forests], biases added."""
    if bias.any():
        sums = graph.op("Add", sums, graph.constant(bias))
    if len(bias) == 1:
        return [sums]
    return [graph.op("Gather", sums, graph.constant(np.array([k])), axis=1) for k in range(len(bias))]


def _only_leaves(graph: Graph, x: str, forest: Folded) -> str:
    """Trees that ask nothing: their values, for as many cases as `x` has."""
    sums = np.zeros((1, len(forest.bias)))
    np.add.at(sums[0], forest.output, forest.value[forest.roots])
    first = graph.op("Gather", x, graph.constant(np.array([0])), axis=1)
    return graph.op("Add", graph.op("Mul", first, graph.scalar(0.0)), graph.constant(sums))


def _operator(graph: Graph, x: str, forest: Folded) -> list[str]:
    """TreeEnsembleRegressor (ai.onnx.ml 3): one of a single target for each large forest, one for all the others,
    with a target for each: what ONNX Runtime does fastest, of what was tried (`benchmarks/NOTES.md`)."""
    tree = _tree_of(forest)
    order = np.argsort(tree, kind="stable")
    first = np.searchsorted(tree[order], np.arange(len(forest.roots)))
    number = np.empty(len(tree), np.int64)  # of a node within its tree
    number[order] = np.arange(len(tree)) - first[tree[order]]
    if number[forest.roots].any():  # the operator takes a tree's first node for its root
        raise ValueError("a root is not its tree's first node")
    large = np.bincount(forest.output) >= _LARGE
    names: dict[int, str] = {}
    for targets in (*np.flatnonzero(large)[:, None], np.flatnonzero(~large)):
        nodes = order[np.isin(forest.output[tree[order]], targets)]
        if nodes.size:
            sums = _ensemble(graph, x, forest, targets, nodes, tree[nodes], number)
            names.update(zip(targets.tolist(), _columns(graph, sums, forest.bias[targets]), strict=True))
    return [names[k] for k in range(len(forest.bias))]


def _ensemble(graph: Graph, x: str, forest: Folded, targets: Array, nodes: Array, trees: Array, number: Array) -> str:
    """One operator: the sums of `targets`, ascending, [N, targets]. Of each of `nodes`, tree by tree: its tree."""
    leaf = forest.feature[nodes] < 0
    leaves, tree_of_leaf = nodes[leaf], trees[leaf]
    return graph.op(
        "TreeEnsembleRegressor",
        x,
        domain=ML_DOMAIN,
        n_targets=len(targets),
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=trees,
        nodes_nodeids=number[nodes],
        nodes_featureids=np.where(leaf, 0, forest.feature[nodes]),
        # ONNX Runtime lays a "false" child beside its parent: the left one, taken more often after a ReLU.
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_GT").tolist(),
        nodes_values=np.where(leaf, 0.0, forest.threshold[nodes]).astype(np.float32).tolist(),
        nodes_truenodeids=np.where(leaf, 0, number[forest.right[nodes]]),
        nodes_falsenodeids=np.where(leaf, 0, number[forest.left[nodes]]),
        target_treeids=tree_of_leaf,
        target_nodeids=number[leaves],
        target_ids=np.searchsorted(targets, forest.output[tree_of_leaf]),
        target_weights=forest.value[leaves].astype(np.float32).tolist(),
    )


def _traversal(graph: Graph, x: str, forest: Folded) -> list[str]:
    """Every tree takes one step per level: the node's feature, its threshold, and on to a child.

    Nodes are renumbered so that a right child follows its left one: a step is one gather and an addition. A leaf's
    threshold is +inf and its left child is itself, so that a case that has arrived stays. The deepest trees come
    first, so that the shallower ones can leave the table, in a few cuts, once they have all arrived.
    """
    depth = _depths(forest)
    order = np.argsort(-depth, kind="stable")
    forest, depth = _adjacent(forest, order), depth[order]
    inner = forest.feature >= 0
    feature = np.where(inner, forest.feature, 0).astype(np.int32)
    threshold = np.where(inner, forest.threshold, _INFINITY).astype(np.float32)
    left = forest.left.astype(np.int32)
    tables = [graph.constant(table) for table in (feature, threshold, left) if depth[0] > 1]
    roots = forest.roots
    # The first step starts from constants.
    value = graph.op("Gather", x, graph.constant(feature[roots]), axis=1)
    node = _step(graph, value, graph.constant(threshold[roots]), graph.constant(left[roots]))
    width, arrived = len(roots), []
    for level in range(1, int(depth[0])):
        active = int((depth > level).sum())
        if active <= _CUT * width:
            arrived.append(_slice(graph, node, active, width))
            node, width = _slice(graph, node, 0, active), active
        asked, bound, child = (graph.op("Gather", table, node, axis=0) for table in tables)
        node = _step(graph, graph.op("GatherElements", x, asked, axis=1), bound, child)
    everywhere = graph.op("Concat", node, *reversed(arrived), axis=1) if arrived else node
    leaves = graph.op("Gather", graph.constant(forest.value), everywhere, axis=0)  # [N, T]
    axes = graph.constant(np.array([1]))
    names = []
    for number, bias in enumerate(forest.bias):
        own = np.flatnonzero(forest.output == number)
        part = leaves if len(forest.bias) == 1 else graph.op("Gather", leaves, graph.constant(own), axis=1)
        total = graph.op("ReduceSum", part, axes)
        names.append(graph.op("Add", total, graph.scalar(float(bias))) if bias else total)
    return names


def _depths(forest: Folded) -> Array:
    """The largest number of decisions on a path, of each tree: int64 [T]."""
    depth = np.zeros(len(forest.roots), np.int64)
    nodes, owner = forest.roots, np.arange(len(forest.roots))
    while (inner := forest.feature[nodes] >= 0).any():
        parents, owner = nodes[inner], np.tile(owner[inner], 2)
        depth[owner] += 1
        nodes = np.concatenate([forest.left[parents], forest.right[parents]])
    return depth


def _step(graph: Graph, value: str, threshold: str, left: str) -> str:
    right = graph.op("Cast", graph.op("Greater", value, threshold), to=6)
    return graph.op("Add", left, right)


def _slice(graph: Graph, x: str, start: int, stop: int) -> str:
    bounds = (graph.constant(np.array([number])) for number in (start, stop, 1))
    return graph.op("Slice", x, *bounds)


def _adjacent(forest: Folded, trees: Array) -> Folded:
    """The same forest, its trees in the order `trees`, with right = left + 1, level by level."""
    nodes = forest.roots[trees]
    order = [nodes]
    while len(parents := nodes[forest.feature[nodes] >= 0]):
        nodes = np.stack([forest.left[parents], forest.right[parents]], 1).ravel()
        order.append(nodes)
    old = np.concatenate(order)
    new = np.empty(len(forest.feature), np.int64)
    new[old] = np.arange(len(old))
    return Folded(
        forest.feature[old],
        forest.threshold[old],
        new[forest.left[old]],
        new[forest.right[old]],
        forest.value[old],
        new[forest.roots[trees]],
        forest.output[trees],
        forest.bias,
    )


def _product(graph: Graph, x: str, forest: Folded) -> list[str]:
    """All decisions at once, then the leaf whose path they are, by matrix products over small whole numbers.

    bits [T, N, I] of all inner nodes (1: right) times paths [T, I, L] (+1: the leaf lies to the right of the node,
    -1: to the left) equals the number of right turns to a leaf only for the leaf that is reached (arXiv 2010.04804,
    section 4.1). Float32 sums of whole numbers this small are exact.
    """
    trees, inner = len(forest.roots), _inner_per_tree(forest)
    feature = np.zeros((trees, inner), np.int64)
    threshold = np.full((trees, inner), _INFINITY)
    paths = np.zeros((trees, inner, inner + 1), np.float32)
    turns = np.full((trees, 1, inner + 1), -1, np.float32)  # no sum of an absent leaf, which is 0, equals it
    value = np.zeros((trees, inner + 1, len(forest.bias)), np.float32)
    for tree, root in enumerate(forest.roots):
        slots = leaves = 0
        stack: list[tuple[int, list[tuple[int, float]]]] = [(int(root), [])]
        while stack:
            node, path = stack.pop()
            if forest.feature[node] < 0:
                for slot, side in path:
                    paths[tree, slot, leaves] = side
                turns[tree, 0, leaves] = sum(side > 0 for _, side in path)
                value[tree, leaves, forest.output[tree]] = forest.value[node]
                leaves += 1
                continue
            feature[tree, slots], threshold[tree, slots] = forest.feature[node], forest.threshold[node]
            stack.append((int(forest.left[node]), [*path, (slots, -1.0)]))
            stack.append((int(forest.right[node]), [*path, (slots, 1.0)]))
            slots += 1
    picked = graph.op("Gather", x, graph.constant(feature.ravel()), axis=1)
    bits = graph.op("Cast", graph.op("Greater", picked, graph.constant(threshold.ravel().astype(np.float32))), to=1)
    shaped = graph.op("Reshape", bits, graph.constant(np.array([-1, trees, inner])))
    by_tree = graph.op("Transpose", shaped, perm=[1, 0, 2])
    reached = graph.op("Equal", graph.op("MatMul", by_tree, graph.constant(paths)), graph.constant(turns))
    sums = graph.op("MatMul", graph.op("Cast", reached, to=1), graph.constant(value))  # [T, N, forests]
    total = graph.op("ReduceSum", sums, graph.constant(np.array([0])), keepdims=0)
    return _columns(graph, total, forest.bias)
