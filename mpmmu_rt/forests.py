"""The forests of a stacking head, as the bundle holds them, and the leaves that embeddings fall into.

Read from the attributes of `TreeEnsembleRegressor` (ai.onnx.ml 3) in the graph `head_onnxruntime`: no pickle, and the
very thresholds that decide on the device. The portable graph has the same ones, as tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._optional import require
from .bundle import Bundle
from .engines import engine
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

    def crossings(self, values: Array, errors: Array) -> Array:
        """In how many trees a case would fall into another leaf: int64 [N, M], of `values` float32 [N, C] with each of
        `errors` [M, C] added in turn.

        It does exactly where a comparison on its own path comes out otherwise: a value leaves the interval between the
        nearest thresholds of its path.
        """
        node = np.broadcast_to(self.roots, (len(values), self.trees)).copy()
        crossed = np.zeros((len(errors), *node.shape), bool)
        for _ in range(self.depth):
            inner, feature, threshold = self.left[node] != node, self.feature[node], self.threshold[node]
            value = np.take_along_axis(values, feature, 1)
            above = value > threshold
            for row, error in enumerate(errors):
                crossed[row] |= inner & ((value + error[feature].astype(np.float32) > threshold) != above)
            node = np.where(above, self.right[node], self.left[node])
        return np.asarray(crossed.sum(2).T)


@dataclass(frozen=True)
class Forests:
    """All forests of a head, and the part of the head that comes before them: `values` says what they compare."""

    forests: tuple[Forest, ...]
    _model: Any
    _threads: int

    @property
    def trees(self) -> int:
        return sum(forest.trees for forest in self.forests)

    def values(self, embedding: Array) -> Mapping[str, Array]:
        """The tensors that the forests read, float32 [N, C] by name, of embeddings float32 [N, D].

        Most read the embedding itself; what others read (products of a PCA, votes) is computed by ONNX Runtime.
        """
        found = {_EMBEDDING: embedding}
        wanted = sorted({forest.source for forest in self.forests} - {_EMBEDDING})
        if wanted:
            onnx = require("onnx", _PURPOSE)
            probe = onnx.ModelProto.FromString(self._model.SerializeToString())
            del probe.graph.output[:]
            probe.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
            )
            found |= _run(probe, embedding, self._threads)
        return found


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
    return Forests(tuple(found), model, threads)


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


def _run(model: Any, embedding: Array, threads: int) -> dict[str, Array]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(model.SerializeToString())
        session = engine(Target("onnxruntime", "fp32")).load(path, "fp32", threads)
        try:
            return session.run({_EMBEDDING: np.ascontiguousarray(embedding)})
        finally:
            session.close()
