"""Precision in the graph: an FP32 graph to FP16 or BF16, and how much of a graph computes in what.

TensorRT 11 has no FP16 flag: an engine computes in the types that its graph has. One pass writes both types, as the
converters at hand write FP16 only (onnxruntime.transformers, onnxconverter-common); the tests hold it against the
first of them. What stays FP32, whoever asks for less:

- what comes before the first product (normalising the pixels: three operations per pixel),
- what follows the embedding (the stacking head, whose thresholds decide in float32),
- the values of `islands`: those that real images drive near the end of FP16's range.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpmmu_rt.errors import ExportError
from mpmmu_rt.spec import Array

from .graphs import IR_VERSION

Half = Literal["fp16", "bf16"]
FP16_MAX = 65504.0  # IEEE 754 binary16
# Images that nobody has seen yet may drive a value further than those at hand: three of FP16's sixteen octaves above 1.
RANGE_MARGIN = 8.0
BF16_OPSET = 22  # the first in which Conv and the pools take BF16
EMBEDDING = "embedding"  # the tensor at which the head begins
_TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_half(
    model: onnx.ModelProto, precision: Half, keep_float: Collection[str] = (), *, half_outputs: bool = False
) -> onnx.ModelProto:
    """A copy of the FP32 graph `model` that computes in `precision`; inputs and outputs keep their types.

    keep_float: names of values (outputs of nodes, or weights) that stay float32, with the nodes that make and read
    them: see `islands`. half_outputs: outputs that are computed in `precision` leave the graph in it. The model holds
    its weights (`onnx.load` reads them in).

    Raises `ExportError` for a precision that is not one of these, an unknown value, a weight beyond FP16's range that
    is not kept, operators with graphs of their own or already quantized, and a result that is not a valid graph.
    """
    if precision not in get_args(Half):
        raise ExportError(f"the precision is `{precision}`, expected fp16 or bf16", hint="fp32 needs no conversion")
    if precision == "bf16" and max(opset.version for opset in model.opset_import) < BF16_OPSET:
        source = onnx.version_converter.convert_version(_one_opset(model), BF16_OPSET)
    else:
        source = onnx.ModelProto.FromString(model.SerializeToString())
    source.ir_version = IR_VERSION
    _check_convertible(source)
    types = _types(source)
    if unknown := sorted(set(keep_float).difference(types)):
        raise ExportError(
            f"`{unknown[0]}` was to stay float32 and is no value of the graph, expected names as `islands` gives them",
            hint="find the islands of this very graph",
        )
    nodes = list(_half_nodes(source.graph, types, keep_float))
    _Rewrite(source.graph, precision, types, half_outputs=half_outputs).run(nodes)
    try:
        onnx.checker.check_model(source, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph is not valid in {precision}: {next(iter(str(error).splitlines()), '')}",
            hint="name the values of that operator in keep_float",
        ) from error
    return source


def islands(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> frozenset[str]:
    """The values of the FP32 graph `model` that are too large for FP16: |value| > FP16_MAX / RANGE_MARGIN.

    Found by running `feeds` (every input, cases on axis 0: real images, as many as there are) through the graph on
    ONNX Runtime, case by case; weights count as they are. For BF16 there are none: it has the range of float32. The
    head is left out: it is FP32 without being asked, and its trees use infinity. Raises `ExportError` if a value is
    not finite in float32 either.
    """
    import onnxruntime  # of the extra `cpu`, not `export`

    limit = FP16_MAX / RANGE_MARGIN
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    types = _types(probe)
    nodes = [node for node, in_head in zip(probe.graph.node, _in_head(probe.graph), strict=True) if not in_head]
    read = {name for node in nodes for name in node.input}
    weights = [item for item in probe.graph.initializer if item.name in read]
    found = {item.name for item in weights if _largest(numpy_helper.to_array(item)) > limit}
    kept = {item.name for item in probe.graph.output}
    made = {name for node in nodes for name in node.output if types.get(name) == TensorProto.FLOAT}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(made.difference(kept))
    )
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    names = sorted(made)
    for row in range(len(next(iter(feeds.values())))):
        values = session.run(names, {name: array[row : row + 1] for name, array in feeds.items()})
        largest = {name: _largest(value) for name, value in zip(names, values, strict=True)}
        if broken := [name for name, value in largest.items() if not np.isfinite(value)]:
            raise ExportError(
                f"the value `{broken[0]}` is not finite for case {row} in float32, expected finite numbers",
                hint="the model itself fails on this image: `mpmmu-rt verify` it first",
            )
        found |= {name for name, value in largest.items() if value > limit}
    return frozenset(found)


def shares(model: onnx.ModelProto, part: Literal["all", "encoders", "head"] = "all") -> dict[str, float]:
    """The share of multiply-accumulates (of convolutions and matrix products) in each precision, by the graph's types.

    {"fp16": 0.998, "fp32": 0.002}: of one case; empty where there are no products. A product whose two operands are
    dequantized counts as int8. part: "encoders" counts what comes before the embedding, the attention pool with it,
    "head" what follows it. What an engine makes of it can be told only where it runs; TensorRT engines are
    strongly typed: they compute in the graph's types. Raises `ExportError` for shapes that can't be inferred.
    """
    inferred = _inferred(model)
    types, shapes = _types(inferred), _shapes(inferred)
    dequantized = {node.output[0] for node in inferred.graph.node if node.op_type == "DequantizeLinear"}
    counted: dict[str, int] = defaultdict(int)
    for node, in_head in zip(inferred.graph.node, _in_head(inferred.graph), strict=True):
        if node.op_type not in _PRODUCTS or part == ("encoders" if in_head else "head"):
            continue
        is_int8 = dequantized.issuperset(node.input[:2])
        name = "int8" if is_int8 else _NAMES.get(types[node.output[0]], "integer")
        counted[name] += _accumulates(node, shapes)
    total = sum(counted.values())
    return {name: count / total for name, count in sorted(counted.items())}


def _accumulates(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    try:
        left, right, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as error:
        raise ExportError(
            f"the shape of `{error.args[0]}` at the {node.op_type} `{node.name}` is unknown, expected a static one",
            hint="export the model again: only the batch may be dynamic",
        ) from error
    if node.op_type == "Conv":  # weights [output channels, input channels of a group, kernel…]
        return prod(output) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return prod(output) * (left[0] if transposed else left[-1])


def _check_convertible(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
            reason = "has a graph of its own"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            reason = "is of a quantized model"
        else:
            continue
        raise ExportError(
            f"the operator {node.op_type} `{node.name}` {reason}, expected a plain FP32 graph",
            hint="export for fp32",
        )


def _half_nodes(graph: onnx.GraphProto, types: Mapping[str, int], keep_float: Collection[str]) -> Iterator[bool]:
    """For each node whether it computes in half: behind a product, before the embedding, and on no island."""
    kept = set(keep_float)
    behind_product: set[str] = set()
    for node, in_head in zip(graph.node, _in_head(graph), strict=True):
        if node.op_type in _PRODUCTS or behind_product.intersection(node.input):
            behind_product.update(node.output)
        floats = any(types.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))
        yield (
            floats
            and behind_product.issuperset(node.output)
            and not in_head
            and not kept.intersection((*node.input, *node.output))
        )


def _in_head(graph: onnx.GraphProto) -> Iterator[bool]:
    """For each node whether it follows the embedding."""
    # In the head's own graph the embedding is an input.
    behind = {item.name for item in graph.input if item.name == EMBEDDING}
    for node in graph.node:
        in_head = not behind.isdisjoint(node.input)
        if in_head or EMBEDDING in node.output:
            behind.update(node.output)
        yield in_head


class _Rewrite:
    """Writes a graph anew, with a cast wherever a value crosses between float32 and half."""

    def __init__(
        self, graph: onnx.GraphProto, precision: Half, types: Mapping[str, int], *, half_outputs: bool
    ) -> None:
        self.graph = graph
        self.precision = precision
        self.type = _TYPES[precision]
        self.types = types
        self.weights = {item.name: item for item in graph.initializer}
        self.outputs = {item.name for item in graph.output}
        self.typed_outputs = set() if half_outputs else self.outputs  # those that keep their type
        self.in_half: set[str] = set()  # values that a half node makes, under their own names
        self.nodes: list[onnx.NodeProto] = []
        self.cast: dict[str, str] = {}  # value → the same in the other type

    def run(self, half: list[bool]) -> None:
        for node, is_half in zip(self.graph.node, half, strict=True):
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.input[:] = [self._read(name, is_half) for name in node.input]
            self.nodes.append(copy)
            if is_half:
                self._make_half(copy)
        used = {name for node in self.nodes for name in node.input} | self.outputs
        kept = [item for item in self.weights.values() if item.name in used]
        for field, values in (("node", self.nodes), ("initializer", kept)):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)
        self.graph.ClearField("value_info")  # of the types that were
        for item in self.graph.output:
            if item.name in self.in_half:
                item.type.tensor_type.elem_type = self.type

    def _read(self, name: str, is_half: bool) -> str:
        if self.types.get(name) != TensorProto.FLOAT or (name in self.in_half) == is_half:
            return name
        if name not in self.cast:
            self.cast[name] = f"{name}/{self.precision if is_half else 'fp32'}"
            if name in self.weights:
                self.weights[self.cast[name]] = self._weight(self.weights[name], self.cast[name])
            else:
                self._add_cast(name, self.cast[name], self.type if is_half else TensorProto.FLOAT)
        return self.cast[name]

    def _make_half(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = self.type
        for index, name in enumerate(node.output):
            if self.types.get(name) != TensorProto.FLOAT:
                continue
            if (
                name in self.typed_outputs
            ):  # keeps its name and its type; half nodes behind it read the one before the cast
                node.output[index] = self.cast[name] = f"{name}/{self.precision}"
                self._add_cast(self.cast[name], name, TensorProto.FLOAT)
            else:
                self.in_half.add(name)

    def _add_cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=to))

    def _weight(self, weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(weight)
        if self.precision == "fp16" and _largest(values) > FP16_MAX:
            raise ExportError(
                f"the weight `{weight.name}` holds {_largest(values):.3g}, expected at most {FP16_MAX:.0f} for fp16",
                hint="pass the result of `islands` as keep_float, or export for bf16",
            )
        return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(self.type)), name)


def _one_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that imports each domain once: graphs that were joined repeat it, which the version converter refuses."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    versions = {opset.domain: opset.version for opset in model.opset_import}
    copy.ClearField("opset_import")
    copy.opset_import.extend(helper.make_opsetid(*item) for item in versions.items())
    return copy


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"the shapes of the graph can't be inferred: {next(iter(str(error).splitlines()), '')}",
            hint="export the model again",
        ) from error


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value and weight."""
    graph = _inferred(model).graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}
    return types | {item.name: item.data_type for item in graph.initializer}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes that are known but for the batch, which counts as 1."""
    graph = model.graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.value_info, *graph.input, *graph.output):
        if item.type.tensor_type.HasField("shape"):
            dims = item.type.tensor_type.shape.dim
            shapes[item.name] = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims)
    return shapes


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0)) if values.dtype.kind == "f" else 0.0
