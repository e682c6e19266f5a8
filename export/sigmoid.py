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
    del found.graph.node[:]
    for node in model.graph.node:
        found.graph.node.extend(_exact(node) if is_gate(node) else [node])
    if any(map(is_gate, model.graph.node)):
        found.graph.initializer.append(numpy_helper.from_array(np.float32(1), _ONE))
    return found


def gate_steps(model: onnx.ModelProto) -> frozenset[str]:
    """The values in `exact_sigmoids(model)` that `model` does not have: what has to stay float32 in FP16, as Exp
    overflows there."""
    before = {name for node in model.graph.node for name in node.output}
    return frozenset(name for node in exact_sigmoids(model).graph.node for name in node.output if name not in before)


def _exact(sigmoid: onnx.NodeProto) -> list[onnx.NodeProto]:
    result = sigmoid.output[0]
    steps = [f"{result}/{step}" for step in ("negative", "exp", "sum")]
    return [
        helper.make_node("Neg", [sigmoid.input[0]], steps[:1]),
        helper.make_node("Exp", steps[:1], steps[1:2]),
        helper.make_node("Add", [steps[1], _ONE], steps[2:]),
        helper.make_node("Reciprocal", steps[2:], [result]),
    ]
