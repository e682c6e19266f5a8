"""Which layers of an encoder graph become INT8, and where the activations between them are quantized.

Both are decided by what a node computes, never by what it is called. The placement was chosen by measuring OpenVINO
(`benchmarks/NOTES.md`); it also follows NVIDIA's advice for explicit quantization (TensorRT developer guide,
"Q/DQ layer-placement recommendations": quantize all inputs of weighted operations, and the residual of an addition).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

# VNNI multiplies 4 channels in one instruction and tensor cores 16 or more: with fewer than 8, as in a grey stem
# (1) and in the spatial gate (2 to 1), INT8 saves nothing and costs accuracy where the image enters.
MIN_CHANNELS = 8
# OpenVINO 2026.4 computes strided 1 x 1 convolutions in 8 bits otherwise from call to call: with two threads, without
# AVX-512, up to 56 % of the calls were up to 0.7 of the output off. It seems that a thread gathers its input in vectors
# of 32 or 64 codes and, where the channels are no multiple, into the share of the next (benchmarks/NOTES.md).
_VECTOR = 64


@dataclass(frozen=True)
class Layer:
    """A convolution that may become INT8. `name` is its weight's; convolutions that share a weight are one layer."""

    name: str
    outputs: tuple[str, ...]  # of the convolutions
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """A tensor that is stored as INT8. `signed`: values below 0 are possible."""

    tensor: str
    signed: bool


class Wiring:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producer: dict[str, Any] = {output: node for node in graph.node for output in node.output if output}
        self.consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)


def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The convolutions worth INT8, in the graph's order: [N, ≥ 8, h, w] to [N, ≥ 8, h, w] with h · w > 1.

    But for strided 1 × 1 ones of other than 64, 128, … channels, which OpenVINO does not compute reliably.

    The attention gates stay in float because of what they are: 1 × 1 convolutions of pooled descriptors [N, C, 1, 1],
    a 1-D convolution (ECA), a convolution of 2 channels to 1 (CBAM's spatial gate). So does every layer whose output
    shape is unknown.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = shapes(model)
    found: dict[str, list[Any]] = {}
    refused = set()
    for node in model.graph.node:
        for name in node.input:
            weight = weights.get(name)
            if weight is None or len(weight.dims) != 4:
                continue
            of_constant = node.input[0] in weights  # the same for every image, as of a map of positions
            is_layer = node.op_type == "Conv" and node.input[1] == name and not of_constant
            if is_layer and _worth_it(node, weight, sizes):
                found.setdefault(name, []).append(node)
            else:
                refused.add(name)
    return tuple(
        Layer(name, tuple(node.output[0] for node in nodes), tuple(node.input[0] for node in nodes))
        for name, nodes in found.items()
        if name not in refused
    )


def _worth_it(node: Any, weight: onnx.TensorProto, sizes: Mapping[str, list[int]]) -> bool:
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    strides = next((attribute.ints for attribute in node.attribute if attribute.name == "strides"), ())
    shape = sizes.get(node.output[0], [])
    if max(weight.dims[2:]) == 1 < max(strides, default=1) and weight.dims[1] % _VECTOR:
        return False
    if weight.data_type != onnx.TensorProto.FLOAT or len(shape) != 4 or not all(shape[2:]):
        return False
    return min(weight.dims[0], weight.dims[1] * group) >= MIN_CHANNELS and shape[2] * shape[3] > 1


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The dimensions of every tensor that is known; 0 for a dimension that is not."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


def candidates(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that `points` may name for any choice of layers: those to calibrate."""
    wiring = Wiring(model.graph)
    known = layers(model)
    found = dict.fromkeys(_inputs_and_shared(known, wiring))
    outputs = {tensor for layer in known for tensor in layer.outputs}
    convolved = {tensor for tensor, node in wiring.producer.items() if node.op_type == "Conv"}
    for operands, _ in _additions(model.graph, wiring):
        if any(tensor in found or tensor in outputs or tensor in convolved for tensor in operands):
            found |= dict.fromkeys(operands)
    return tuple(found)


def points(model: onnx.ModelProto, chosen: Iterable[Layer], *, products: bool = True) -> tuple[Point, ...]:
    """The tensors to quantize if `chosen` run in INT8. products: whether those with gates may be among them.

    1. The input of every chosen layer; whatever else reads that tensor reads the INT8 one too, so that it is stored
       once. After a max pooling, not before it: that would give the same numbers hardly sooner, but OpenVINO 2026.4
       then computes something else where the pooled tensor is also a residual (20 % off on the tiny preset).
    2. The output of a layer, and its product with a gate, where more than one node reads it: attention then reads a
       quarter of the bytes.
    3. Of an addition that reads one of these, or a chosen layer directly: every operand but the layer's, which engines
       add, with the ReLU, in the pass of the convolution. With an operand in float, OpenVINO takes passes of their own
       to convert the others to float. So too where the layer is not chosen but the sum is quantized: OpenVINO 2026.4
       fails on a convolution in BF16 that adds a float tensor and writes INT8 ("object is not initialized").

    Without `products` a sum that has one adds no point, but where its other operand is a convolution in float, for the
    reason above. OpenVINO multiplies, adds and quantizes in one pass, in float: what is rounded between is work,
    and a product that CBAM's spatial gate reads as well is written three times, in float for the sum and twice in 8
    bits.
    """
    wiring = Wiring(model.graph)
    known, chosen = {tensor for layer in layers(model) for tensor in layer.outputs}, tuple(chosen)
    found = dict.fromkeys(_inputs_and_shared(chosen, wiring, products=products))
    outputs = {tensor for layer in chosen for tensor in layer.outputs}
    convolved = {tensor for tensor, node in wiring.producer.items() if node.op_type == "Conv"}
    for operands, result in _additions(model.graph, wiring):
        if products:
            fused = known if result in found else outputs
        else:
            kinds = {wiring.producer[tensor].op_type for tensor in operands}
            fused = convolved if result in found else outputs
            if "Mul" in kinds and not (result in found and convolved.intersection(operands) - outputs):
                continue
        if any(tensor in found or tensor in fused for tensor in operands):
            direct = [tensor for tensor in operands if tensor in fused and tensor not in found]
            found |= dict.fromkeys(tensor for tensor in operands if tensor not in direct[:1])
    return tuple(Point(tensor, signed=not _at_least_zero(tensor, wiring)) for tensor in found)


def _inputs_and_shared(chosen: Iterable[Layer], wiring: Wiring, *, products: bool = True) -> list[str]:
    """What rules 1 and 2 name."""
    found: list[str] = []
    for layer in chosen:
        found += layer.inputs
        for tensor in layer.outputs:
            shared = _shared(tensor, wiring)
            found += shared if products else shared[:1]
    return found


def _shared(tensor: str, wiring: Wiring) -> list[str]:
    """`tensor` and its products with gates, as far as more than one node reads them."""
    readers = wiring.consumers.get(tensor, [])
    if len(readers) < 2:
        return []
    products = [node.output[0] for node in readers if node.op_type == "Mul"]
    return [tensor, *(name for product in products for name in _shared(product, wiring))]


def _additions(graph: onnx.GraphProto, wiring: Wiring) -> list[tuple[list[str], str]]:
    """The operands of every addition of two computed tensors, and the result behind its ReLU, if it has one."""
    found = []
    for node in graph.node:
        operands = [name for name in node.input if name in wiring.producer]
        if node.op_type == "Add" and len(operands) == 2:
            readers = wiring.consumers.get(node.output[0], [])
            relu = len(readers) == 1 and readers[0].op_type == "Relu"
            found.append((operands, readers[0].output[0] if relu else node.output[0]))
    return found


def _at_least_zero(tensor: str, wiring: Wiring) -> bool:
    node = wiring.producer.get(tensor)
    if node is not None and node.op_type == "MaxPool":
        return _at_least_zero(node.input[0], wiring)
    return node is not None and node.op_type in ("Relu", "Sigmoid")


def split(model: onnx.ModelProto, keep_float: Collection[str]) -> tuple[Layer, ...]:
    """The layers but those of `keep_float`. Raises `KeyError` for a name that is no layer's."""
    known = layers(model)
    if unknown := set(keep_float) - {layer.name for layer in known}:
        raise KeyError(", ".join(sorted(unknown)))
    return tuple(layer for layer in known if layer.name not in keep_float)
