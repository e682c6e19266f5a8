"""The forests of a stacking head, as the bundle holds them, and the leaves that embeddings fall into.

Read from the attributes of `TreeEnsembleRegressor` (ai.onnx.ml 3) in the graph `head_onnxruntime`: no pickle, and the
very thresholds that decide on the device. The portable graph has the same ones, as tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ._optional import require
from .bundle import Bundle
from .engines import Session, engine
from .errors import BundleError
from .spec import Array, Target

_PURPOSE = "the forecast of leaf crossings, which reads the thresholds out of the bundle's graph,"
_EMBEDDING = "embedding"
_OPERATOR = "TreeEnsembleRegressor"


@dataclass(frozen=True)
class Forest:
    """Trees over the columns of one tensor of the head.

    feature, left, right: int64 [nodes]; threshold: float32 [nodes]. A case goes right where its value is above the
    threshold. A leaf has itself as both children. roots: int64 [trees]. depth: of the deepest tree, in decisions.
    """

    source: str
    feature: Array
    threshold: Array
    left: Array
    right: Array
    roots: Array
    depth: int

    @property
    def trees(self) -> int:
        return len(self.roots)

    def leaves(self, values: Array) -> Array:
        """The leaf of each tree: int64 [N, trees], of `values` float32 [N, columns of `source`]."""
        node = np.broadcast_to(self.roots, (len(values), self.trees)).copy()
        for _ in range(self.depth):
            above = np.take_along_axis(values, self.feature[node], 1) > self.threshold[node]
            node = np.where(above, self.right[node], self.left[node])
        return node

    def distances(self, values: Array) -> Array:
        """How far the nearest threshold on its path is from each case, in each tree: float32 [N, trees]; infinite for
        trees that ask nothing."""
        node = np.broadcast_to(self.roots, (len(values), self.trees)).copy()
        nearest = np.full(node.shape, np.inf, np.float32)
        for _ in range(self.depth):
            inner = self.left[node] != node
            value = np.take_along_axis(values, self.feature[node], 1)
            np.minimum(nearest, np.abs(value - self.threshold[node]), out=nearest, where=inner)
            node = np.where(value > self.threshold[node], self.right[node], self.left[node])
        return nearest


class Forests:
    """All forests of a head. Use it as a context manager, or call `close`."""

    def __init__(self, forests: Sequence[Forest], probe: Session | None) -> None:
        """probe: gives the tensors that forests read which are not the embedding itself (products of a PCA, votes)."""
        self.forests = tuple(forests)
        self._probe = probe

    @property
    def trees(self) -> int:
        return sum(forest.trees for forest in self.forests)

    def values(self, embedding: Array) -> Mapping[str, Array]:
        """The tensors that the forests compare, float32 [N, C] by name, of embeddings float32 [N, D]."""
        found: dict[str, Array] = {_EMBEDDING: embedding}
        if self._probe is not None:
            found |= self._probe.run({_EMBEDDING: np.ascontiguousarray(embedding)})
        return found

    def leaves(self, embedding: Array) -> Array:
        """The leaf of each tree: int64 [N, trees]."""
        values = self.values(embedding)
        return np.concatenate([forest.leaves(values[forest.source]) for forest in self.forests], 1)

    def distances(self, embedding: Array) -> Array:
        """float32 [N, trees]: see `Forest.distances`."""
        values = self.values(embedding)
        return np.concatenate([forest.distances(values[forest.source]) for forest in self.forests], 1)

    def close(self) -> None:
        if self._probe is not None:
            self._probe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_forests(bundle: Bundle, threads: int = 1) -> Forests:
    """The forests of the head of `bundle`, none where it has none. Raises `MissingPackage` without onnx, and
    `BundleError` for trees that compare otherwise than those that an export writes."""
    onnx = require("onnx", _PURPOSE)
    path = bundle.graph("head_onnxruntime")
    model = onnx.load(str(path))
    found = []
    for node in model.graph.node:
        if node.op_type == _OPERATOR:
            facts = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            found.append(_forest(node.input[0], facts, path))
    wanted = sorted({forest.source for forest in found} - {_EMBEDDING})
    if not wanted:
        return Forests(found, None)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.onnx"
        probe.write_bytes(model.SerializeToString())
        return Forests(found, engine(Target("onnxruntime", "fp32")).load(probe, "fp32", threads))


def _forest(source: str, facts: Mapping[str, Any], path: Path) -> Forest:
    modes = np.array([mode.decode() for mode in facts["nodes_modes"]])
    if strange := set(modes.tolist()) - {"BRANCH_GT", "LEAF"}:
        raise BundleError(
            f"{path} has trees that decide by {min(strange)}, expected BRANCH_GT",
            hint="export the bundle again with `mpmmu-rt export`",
        )
    tree, number = (np.array(facts[f"nodes_{name}"], np.int64) for name in ("treeids", "nodeids"))
    width = int(number.max()) + 1
    key = tree * width + number
    order = np.argsort(key)

    def child(name: str) -> Array:
        wanted = tree * width + np.array(facts[f"nodes_{name}nodeids"], np.int64)
        at = order[np.searchsorted(key, wanted, sorter=order).clip(max=len(order) - 1)]
        return np.where(modes == "LEAF", np.arange(len(key)), at)

    right, left = child("true"), child("false")
    roots = np.flatnonzero(number == 0)  # as the operator has it: a tree's first node
    return Forest(
        source,
        np.array(facts["nodes_featureids"], np.int64),
        np.array(facts["nodes_values"], np.float32),
        left,
        right,
        roots,
        _depth(roots, left, right),
    )


def _depth(roots: Array, left: Array, right: Array) -> int:
    nodes, depth = roots, 0
    while (nodes := nodes[left[nodes] != nodes]).size and depth < len(left):
        nodes, depth = np.unique(np.concatenate([left[nodes], right[nodes]])), depth + 1
    return depth
