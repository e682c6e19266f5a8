"""Operators and parameters of a graph: held to what the package onnx says, of our graphs and of graphs at random."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpmmu_rt.errors import BundleError
from mpmmu_rt.onnx_counts import count_graph

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
COUNT = int(os.environ.get("MPMMU_RT_RANDOM_GRAPHS", "24"))


def want(model: onnx.ModelProto) -> tuple[Counter[str], int]:
    """By the package onnx."""
    operators: Counter[str] = Counter()
    parameters = 0

    def nodes(some: Any) -> None:
        nonlocal parameters
        for node in some:
            operators[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"] += 1
            for attribute in node.attribute:
                parameters += len(attribute.floats)
                parameters += sum(int(np.prod(t.dims)) for t in [attribute.t, *attribute.tensors] if t.data_type)
                if attribute.HasField("sparse_tensor"):
                    parameters += int(np.prod(attribute.sparse_tensor.values.dims))
                for graph in [attribute.g, *attribute.graphs]:
                    inside(graph)

    def inside(graph: onnx.GraphProto) -> None:
        nonlocal parameters
        nodes(graph.node)
        parameters += sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        parameters += sum(int(np.prod(tensor.values.dims)) for tensor in graph.sparse_initializer)

    inside(model.graph)
    for function in model.functions:
        nodes(function.node)
    return operators, parameters


@pytest.mark.parametrize("path", sorted(STORED.rglob("*.onnx")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_graphs_of_a_bundle(path: Path) -> None:
    found = count_graph(path)
    assert (found.operators, found.parameters) == want(onnx.load(str(path), load_external_data=False))
    assert found.parameters > 0


def random_graph(rng: np.random.Generator, depth: int = 0) -> onnx.GraphProto:
    """Scalars, empty and large tensors, sparse ones, attributes of every kind, graphs in attributes."""

    def tensor() -> TensorProto:
        shape = tuple(
            int(n) for n in rng.choice([0, 1, 2, 3, 200], size=int(rng.integers(0, 4)), p=[0.05, 0.3, 0.3, 0.3, 0.05])
        )
        kind: Any = (np.float32, np.int64, np.uint8)[int(rng.integers(3))]
        return numpy_helper.from_array(rng.integers(0, 100, shape).astype(kind), "t")

    def sparse() -> onnx.SparseTensorProto:
        count = int(rng.integers(1, 5))
        values = helper.make_tensor("v", TensorProto.FLOAT, [count], np.ones(count, np.float32))
        return helper.make_sparse_tensor(
            values, helper.make_tensor("i", TensorProto.INT64, [count], range(count)), [99]
        )

    nodes = []
    for _ in range(int(rng.integers(0, 6))):
        domain = str(rng.choice(["", "ai.onnx", "ai.onnx.ml", "own"]))
        node = helper.make_node(str(rng.choice(["Conv", "Add", "Übel", ""])), ["a"], ["b"], domain=domain)
        choices: dict[str, Any] = {
            "floats": [1.5] * int(rng.integers(1, 300)), "ints": [-1, 2**40], "t": tensor(), "tensors": [tensor()] * 2,
            "sparse": sparse(), "s": b"x" * 200, "f": 2.0, "i": -5,
        }  # fmt: skip
        if depth < 3:
            choices |= {"g": random_graph(rng, depth + 1), "graphs": [random_graph(rng, depth + 1)]}
        for name in rng.choice(list(choices), size=int(rng.integers(0, 4)), replace=False):
            node.attribute.append(helper.make_attribute(str(name), choices[name]))
        nodes.append(node)
    graph = helper.make_graph(nodes, "g", [], [], initializer=[tensor() for _ in range(int(rng.integers(0, 4)))])
    if rng.random() < 0.3:
        graph.sparse_initializer.append(sparse())
    return graph


@pytest.mark.parametrize("seed", range(COUNT))
def test_graphs_at_random(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    model = helper.make_model(random_graph(rng))
    if rng.random() < 0.3:
        inner = list(random_graph(rng, 3).node)
        model.functions.append(helper.make_function("own", "F", ["x"], ["y"], inner, [helper.make_opsetid("", 18)]))
    (tmp_path / "x.onnx").write_bytes(data := model.SerializeToString())
    found = count_graph(tmp_path / "x.onnx")
    assert (found.operators, found.parameters) == want(model)
    for _ in range(20):  # damaged: counted, or refused in our own words
        harmed = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        harmed[int(rng.integers(len(harmed)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "x.onnx").write_bytes(harmed)
        with suppress(BundleError):
            count_graph(tmp_path / "x.onnx")


@pytest.mark.parametrize("data", [b"", b"no model", b"\x3a\xff", b"\x3b", b"\x38" + b"\xff" * 12])
def test_what_is_no_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"x\.onnx is no readable ONNX model"):
        count_graph(tmp_path / "x.onnx")
