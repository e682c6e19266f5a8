"""A typed graph on the CPU, with the rounding that its types ask for: a proof of the graph, not of an engine.

ONNX Runtime's CPU provider computes FP16 in float32, drops the casts, and has no BF16 convolution: it would find
neither rounding nor overflow. `onnx.reference` has both and takes up to four times as long (`benchmarks/NOTES.md`). So
the graph is rewritten in float32, with a cast to the type and back behind each operator that rounds, and ONNX Runtime
may change nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference

from mpmmu_rt.errors import ExportError
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.spec import Array

_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
# What they give is one of the values that they get, or zero: it has the type already.
_SELECT = frozenset(
    {
        *("Abs", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Neg", "Pad"),
        *("ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
    }
)


class Rounded:
    """`model` (with its weights, of any types), ready to `run`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises `ExportError` for operators whose types can't be told."""
        wide = in_float32(model)
        of_outputs = {item.name: item.type.tensor_type.elem_type for item in model.graph.output}
        self._outputs = {name: helper.tensor_dtype_to_np_dtype(kind) for name, kind in of_outputs.items()}
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = usable_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            wide.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output, in its type. Each value is rounded to its type; overflow gives infinity, as it would on a
        device."""
        halves = {item.name for item in self._session.get_inputs() if item.type == "tensor(float)"}
        wide = {name: array.astype(np.float32) if name in halves else array for name, array in feeds.items()}
        found = zip(self._outputs, self._session.run(list(self._outputs), wide), strict=True)
        with np.errstate(over="ignore"):
            return {name: array.astype(self._outputs[name], copy=False) for name, array in found}


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with every FP16 and BF16 value in float32, rounded as before. Raises `ExportError`."""
    types = _types(model)
    found = onnx.ModelProto.FromString(model.SerializeToString())
    graph = found.graph
    nodes = [one for node in graph.node for one in _rounded(node, types)]
    weights = [_wide(tensor) for tensor in graph.initializer]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    for item in (*graph.input, *graph.output):
        if item.type.tensor_type.elem_type in _HALF:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    return found


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of each value of the graph. Raises `ExportError` where one can't be told."""
    graph = shape_inference.infer_shapes(model).graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise _unknown(node, "holds a graph of its own")
        if any(name and not types.get(name) for name in node.output):
            raise _unknown(node, "gives values of a type that can't be told")
    return types


def _unknown(node: onnx.NodeProto, what: str) -> ExportError:
    return ExportError(
        f"the {node.op_type} `{node.name}` {what}, expected standard operators, whose rounding is known",
        hint="export for a target that runs here",
    )


def _rounded(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """The node in float32, and behind it the rounding of what it gives."""
    wide = onnx.NodeProto.FromString(node.SerializeToString())
    for attribute in wide.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_wide(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALF:
            attribute.i = TensorProto.FLOAT
    halves = {name: types[name] for name in node.output if name and types[name] in _HALF}
    if node.op_type in _SELECT or not halves:
        yield wide
        return
    names = {name: f"{name}/unrounded" for name in halves}
    wide.output[:] = [names.get(name, name) for name in node.output]
    yield wide
    for name, kind in halves.items():
        yield helper.make_node("Cast", [names[name]], [f"{name}/rounded"], to=kind)
        yield helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)


def _wide(tensor: Any) -> Any:
    """A tensor in float32, if it is of a half type."""
    if tensor.data_type not in _HALF:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
