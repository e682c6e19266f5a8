"""Q/DQ nodes into an encoder graph: 8 bits with zero point 0 everywhere, standard operators of opset 18."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mpmmu_rt.errors import ExportError
from mpmmu_rt.export.graphs import clean
from mpmmu_rt.spec import Array

from .placement import points, split
from .ranges import Ranges

LEVELS = 127  # symmetric INT8: -127 … 127
UNSIGNED_LEVELS = 255
# An x86 processor without VNNI multiplies 8-bit codes by VPMADDUBSW, which adds two products in 16 bits and saturates:
# with weights of 127, OpenVINO 2026.4 and ONNX Runtime 1.32 give half of a sum or nothing of it, and no error. These
# are exact on every processor, 255 · (64 + 64) < 2¹⁵, and flip about as few (benchmarks/results/weight_codes_*).
WEIGHT_LEVELS = 64


def quantize(
    graph: onnx.ModelProto, ranges: Ranges, keep_float: Collection[str] = (), *, unsigned: bool = False
) -> onnx.ModelProto:
    """`graph` with its layers in INT8, but those named in `keep_float`; `graph` itself is not changed.

    Weights: INT8 per output channel (axis 0), scale = max |w| / 64, rounded half to even. Activations: one scale per
    tensor, limit / 127. Zero points are 0 and biases stay float32: what OpenVINO, TensorRT and ONNX Runtime all take.
    unsigned: for OpenVINO alone. What leaves a ReLU is UINT8 with scale limit / 255 and zero point 0: half the rounding
    error, and faster; TensorRT reads such a graph with a warning and wrong numbers, so that it must never get one.
    Products with gates stay in float (`points`).

    The same graph and ranges give the same bytes. Raises `ExportError` if `ranges` belong to another graph, and
    `KeyError` if `keep_float` names no layer.
    """
    chosen = split(graph, keep_float)
    found = points(graph, chosen, products=not unsigned)
    kinds = {point.tensor: "int8" if point.signed or not unsigned else "uint8" for point in found}
    scales = {tensor: _scale(ranges, tensor, kind) for tensor, kind in kinds.items()}
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = [_quantize_weight(model.graph, weights[layer.name]) for layer in chosen]
    _redirect(model.graph, (*kinds, *(layer.name for layer in chosen)))
    for node in model.graph.node:
        nodes.append(node)
        for output in node.output:
            if output in kinds:
                nodes += _round_trip(output, kinds[output])
    constants = [numpy_helper.from_array(scale, f"{tensor}/scale") for tensor, scale in scales.items()]
    constants += [numpy_helper.from_array(np.array(0, kind), f"zero/{kind}") for kind in sorted(set(kinds.values()))]
    replace(model.graph, nodes, constants)
    return clean(model)


def _scale(ranges: Ranges, tensor: str, kind: str) -> Array:
    """The scale float32 [] of an activation; 1 for one that was 0 in every calibration image."""
    if tensor not in ranges.limit:
        raise ExportError(
            f"the calibration has no range for `{tensor}`, expected ranges of this very graph",
            hint="calibrate the graph again",
        )
    scale = np.float32(ranges.limit[tensor] / (LEVELS if kind == "int8" else UNSIGNED_LEVELS))
    return np.array(scale if scale > 0 else 1, np.float32)


def _quantize_weight(graph: onnx.GraphProto, weight: onnx.TensorProto) -> Any:
    """Store `weight` as INT8; returns the node that brings it back to float32."""
    values = numpy_helper.to_array(weight)
    largest = np.abs(values).reshape(len(values), -1).max(1)
    scale = largest / np.float32(WEIGHT_LEVELS)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)  # also of a channel that is 0 to float32's end
    codes = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1)))
    rounded = codes.clip(-WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    for name, array in (("int8", rounded), ("scale", scale), ("zero", np.zeros(len(scale), np.int8))):
        graph.initializer.append(numpy_helper.from_array(array, f"{weight.name}/{name}"))
    inputs = [f"{weight.name}/{name}" for name in ("int8", "scale", "zero")]
    return helper.make_node("DequantizeLinear", inputs, [f"{weight.name}/float"], f"{weight.name}/dequantize", axis=0)


def _redirect(graph: onnx.GraphProto, tensors: Iterable[str]) -> None:
    """Every node reads what came back from 8 bits instead of the activation or the weight itself."""
    names = {tensor: f"{tensor}/float" for tensor in tensors}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def _round_trip(tensor: str, kind: str) -> list[Any]:
    scale, zero, codes = f"{tensor}/scale", f"zero/{kind}", f"{tensor}/{kind}"
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [codes], f"{tensor}/quantize"),
        helper.make_node("DequantizeLinear", [codes, scale, zero], [f"{tensor}/float"], f"{tensor}/dequantize"),
    ]


def replace(graph: onnx.GraphProto, nodes: list[Any], constants: list[Any]) -> None:
    """Set the nodes, add the constants, drop what nothing reads any more."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    read = {name for node in kept for name in node.input}
    tensors = [tensor for tensor in (*graph.initializer, *constants) if tensor.name in read]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
