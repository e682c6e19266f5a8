"""Sigmoids that ONNX Runtime computes as exactly as torch and OpenVINO do theirs.

ONNX Runtime's CPU provider approximates Sigmoid with an error of some 1e-7 (MLAS, `MlasLogisticKernel`): nothing for a
probability, but a gate of σ(-15) is 17 % off and below σ(-18) it is zero. A channel that its gate nearly shuts keeps
values of 1e-8; a forest may split there, and such trees then took the other side: 8 of 200 phantoms moved, by up to
0.033, and one decision flipped. Written with Exp, the error is that of float32. The CUDA provider's kernel computes
1 - 1 / (1 + exp(x)) below zero (activations_impl.cu), with the same loss: by that formula 11 of 200 moved. What
TensorRT does is not measured.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_ONE = "exact_sigmoid/one"


def exact_sigmoids(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model`, its weights included, with 1 / (1 + exp(-x)) for each gate σ(x).

    A sigmoid that multiplies its own input is left alone: xσ(x), SiLU, is an activation of whole feature maps, and an
    error of 1e-7 is rounding there. Where exp(-x) is infinite, below -88, σ(x) is 4e-39, and 0 comes out.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_gate(node: onnx.NodeProto) -> bool:
        return node.op_type == "Sigmoid" and not any(
            node.input[0] in reader.input for reader in readers.get(node.output[0], [])
        )

    found = onnx.ModelProto.FromString(model.SerializeToString())
    gates = {node.output[0] for node in model.graph.node if is_gate(node)}
    if not gates:
        return found
    types = _types(model)
    ones: dict[int, str] = {}  # a constant of 1 in the type of each gate: a user's module may compute in double
    del found.graph.node[:]
    for node in model.graph.node:
        if node.output[0] in gates:
            kind = types.get(node.input[0], onnx.TensorProto.FLOAT)
            one = ones.setdefault(kind, f"{_ONE}/{len(ones)}" if ones else _ONE)
            found.graph.node.extend(_exact(node, one))
        else:
            found.graph.node.append(node)
    for kind, name in ones.items():
        value = np.ones((), helper.tensor_dtype_to_np_dtype(kind))
        found.graph.initializer.append(numpy_helper.from_array(value, name))
    return found


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value that has one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def gate_steps(model: onnx.ModelProto) -> frozenset[str]:
    """The values in `exact_sigmoids(model)` that `model` does not have: what has to stay float32 in FP16, as Exp
    overflows there."""
    before = {name for node in model.graph.node for name in node.output}
    return frozenset(name for node in exact_sigmoids(model).graph.node for name in node.output if name not in before)


def _exact(sigmoid: onnx.NodeProto, one: str) -> list[onnx.NodeProto]:
    result = sigmoid.output[0]
    steps = [f"{result}/{step}" for step in ("negative", "exp", "sum")]
    return [
        helper.make_node("Neg", [sigmoid.input[0]], steps[:1]),
        helper.make_node("Exp", steps[:1], steps[1:2]),
        helper.make_node("Add", [steps[1], one], steps[2:]),
        helper.make_node("Reciprocal", steps[2:], [result]),
    ]
