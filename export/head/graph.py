"""A small builder of ONNX graphs: operators by name, every constant stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpmmu_rt.spec import Array

ML_DOMAIN = "ai.onnx.ml"


class Graph:
    """Grows an ONNX graph; values are named by strings. portable: for every engine, not ONNX Runtime alone."""

    def __init__(self, *, portable: bool = True) -> None:
        self.portable = portable
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def constant(self, array: Array) -> str:
        """`array` as an initializer; float64 becomes float32, int64 stays."""
        array = np.ascontiguousarray(array, np.float32 if array.dtype == np.float64 else array.dtype)
        key = hashlib.sha256(repr((array.dtype, array.shape)).encode() + array.tobytes()).hexdigest()
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return str(self._constants[key].name)

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def op(self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add an operator with one output and return that output's name."""
        self._count += 1
        name = output or f"{kind.lower()}_{self._count}"
        node = helper.make_node(kind, list(inputs), [name], name=f"{kind}_{self._count}", domain=domain, **attributes)
        self._nodes.append(node)
        return name

    def beside(self, names: Sequence[str]) -> str:
        """The columns of values, side by side; the value itself, if it is one."""
        return names[0] if len(names) == 1 else self.op("Concat", *names, axis=1)

    def model(self, n_features: int, n_learners: int, opset: int, ml_opset: int) -> onnx.ModelProto:
        """The graph as a model: `embedding` [N, n_features] to `probability` [N] and `base_probability`."""
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "head",
            [helper.make_tensor_value_info("embedding", floats, ["N", n_features])],
            [
                helper.make_tensor_value_info("probability", floats, ["N"]),
                helper.make_tensor_value_info("base_probability", floats, ["N", n_learners]),
            ],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        if any(node.domain == ML_DOMAIN for node in self._nodes):
            opsets.append(helper.make_opsetid(ML_DOMAIN, ml_opset))
        return helper.make_model(graph, opset_imports=opsets)
