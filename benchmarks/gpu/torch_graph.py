"""An ONNX graph of a bundle as a torch module: each operator becomes torch's own, in code that `torch.fx` writes.

What the graphs of this project hold, and no more: anything else is refused by its name. Shapes, axes and slices are
read when the module is made, so that nothing is asked of the device while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, fx, nn

from benchmarks.gpu import torch_blocks
from benchmarks.gpu.torch_blocks import Attention, Fragment
from mpmmu_rt.errors import EngineError
from mpmmu_rt.spec import Array

TYPES: Mapping[int, tuple[str, torch.dtype]] = {
    onnx.TensorProto.FLOAT: ("float32", torch.float32),
    onnx.TensorProto.FLOAT16: ("float16", torch.float16),
    onnx.TensorProto.UINT8: ("uint8", torch.uint8),
    onnx.TensorProto.INT64: ("int64", torch.int64),
    onnx.TensorProto.INT32: ("int32", torch.int32),
    onnx.TensorProto.BOOL: ("bool", torch.bool),
}
Attributes = Mapping[str, Any]
# Operators whose inputs from this one on say how to compute and not what with.
_PARAMETERS = {"Reshape": 1, "Slice": 1, "Unsqueeze": 1, "ReduceMean": 1, "ReduceMax": 1, "ReduceSum": 1}


@dataclass(frozen=True)
class Options:
    """channels_last: weights of convolutions lie so, and what is computed follows them. blocks: in-block attention by
    our kernels; relus: ReLU in the convolution before it. cases: the most that come at once."""

    channels_last: bool = False
    blocks: bool = False
    relus: bool = False
    cases: int = 1


def load(path: Path, device: str, options: Options = Options()) -> nn.Module:
    """The module of the graph in the file `path`: takes its inputs in order, returns a tuple of its outputs.

    Raises `EngineError` for what the graph holds and this module does not know.
    """
    model = onnx.load(str(path))
    return _Builder(model.graph, device, options).module(path.name)


class _Builder:
    def __init__(self, graph: onnx.GraphProto, device: str, options: Options) -> None:
        self.source, self.device, self.options = graph, device, options
        self.constants: dict[str, Array] = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.root = nn.Module()
        self.code = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def module(self, name: str) -> nn.Module:
        for item in self.source.input:
            self.values[item.name] = self.code.placeholder(_identifier(item.name))
        fused, left_out = self._fused(), set[int]()
        for fragment in fused.values():
            left_out |= fragment.nodes
        for place, node in enumerate(self.source.node):
            if node.output[0] in fused:
                self._add_fused(fused[node.output[0]])
            elif place not in left_out:
                self._add(node)
        self.code.output(tuple(self._value(item.name) for item in self.source.output))
        return fx.GraphModule(self.root, self.code, _identifier(name)).eval()

    def _fused(self) -> dict[str, Fragment]:
        """By what they make."""
        found: list[Fragment] = []
        if self.options.blocks:
            found += torch_blocks.find(self.source, self.constants)
        if self.options.relus:
            taken = frozenset().union(*(one.nodes for one in found))
            found += torch_blocks.find_relus(self.source, self.constants, taken)
        return {one.output: one for one in found}

    def _add_fused(self, fragment: Fragment) -> None:
        values = [self._value(name) for name in fragment.inputs]
        if isinstance(fragment, Attention):
            key = f"attended_{len(self.values)}"
            self.root.add_module(key, torch_blocks.Attended(fragment.weights, self.options.cases))
            self.values[fragment.output] = self.code.call_module(key, tuple(values))
            return
        node = next(self.source.node[place] for place in fragment.nodes if self.source.node[place].op_type == "Conv")
        _, extra = _conv(_attributes(node), [], len(values))
        self.values[fragment.output] = self.code.call_function(torch_blocks.conv_relu, (*values, *extra))

    def _add(self, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        if node.op_type == "Constant":
            self.constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
            return
        if node.op_type not in _OPERATORS or node.domain or len(node.output) != 1:
            raise EngineError(
                f"the graph has the operator {node.domain or 'onnx'}.{node.op_type} with {len(node.output)} outputs, "
                f"expected one of {', '.join(sorted(_OPERATORS))}",
                hint="add it to benchmarks/gpu/torch_graph.py",
            )
        first = _PARAMETERS.get(node.op_type, len(node.input))
        values = [self._value(name) if name else None for name in node.input[:first]]
        parameters = [self._parameter(node, name) for name in node.input[first:]]
        function, extra = _OPERATORS[node.op_type](attributes, parameters, len(values))
        self.values[node.output[0]] = self.code.call_function(function, (*values, *extra))

    def _parameter(self, node: onnx.NodeProto, name: str) -> list[int] | None:
        if not name:
            return None
        if name not in self.constants:
            raise EngineError(
                f"the {node.op_type} `{node.name}` computes its parameter `{name}`, expected a constant",
                hint="export the model again: only the batch may be dynamic",
            )
        return [int(value) for value in self.constants[name].reshape(-1)]

    def _value(self, name: str) -> fx.Node:
        """What a node makes, or a constant, which becomes a buffer on the device."""
        if name not in self.values:
            tensor = torch.from_numpy(np.array(self.constants[name])).to(self.device)
            if self.options.channels_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            key = f"weight_{len(self.values)}"
            self.root.register_buffer(key, tensor)
            self.values[name] = self.code.get_attr(key)
        return self.values[name]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _identifier(name: str) -> str:
    return "".join(one if one.isalnum() else "_" for one in name)


# ------------------------------------------------------------ operators
# Each: (attributes, parameters, number of tensors) to a function of the tensors, and what follows them in its call.

Emitted = tuple[Callable[..., Any], tuple[Any, ...]]
Emit = Callable[[Attributes, Sequence[list[int] | None], int], Emitted]


def _plain(function: Callable[..., Any]) -> Emit:
    return lambda attributes, parameters, count: (function, ())


def _symmetric(attributes: Attributes, dims: int) -> list[int]:
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if pads[:dims] != pads[dims:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise EngineError(f"a window is padded by {pads}, expected the same on both sides", hint="pad with Pad")
    return pads[:dims]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Along as many axes as the weights have: a graph need not say how many."""
    found: Tensor = (F.conv1d, F.conv2d)[weight.ndim - 3](x, weight, bias, *options)
    return found


def _conv(attributes: Attributes, parameters: Sequence[list[int] | None], count: int) -> Emitted:
    strides, dilations = (list(attributes[name]) if name in attributes else 1 for name in ("strides", "dilations"))
    pads = _symmetric(attributes, len(attributes["pads"]) // 2) if "pads" in attributes else 0
    extra = (strides, pads, dilations, int(attributes.get("group", 1)))
    return conv, extra if count == 3 else (None, *extra)


def _max_pool(attributes: Attributes, parameters: Sequence[list[int] | None], count: int) -> Emitted:
    kernel = list(attributes["kernel_shape"])
    strides = list(attributes.get("strides", [1, 1]))
    dilations = list(attributes.get("dilations", [1, 1]))
    return F.max_pool2d, (
        kernel,
        strides,
        _symmetric(attributes, 2),
        dilations,
        bool(attributes.get("ceil_mode", 0)),
    )


def gemm(
    x: Tensor, weight: Tensor, bias: Tensor | None, turned: tuple[bool, bool], factors: tuple[float, float]
) -> Tensor:
    product = (x.T if turned[0] else x) @ (weight.T if turned[1] else weight)
    product = product if factors[0] == 1 else product * factors[0]
    return product if bias is None else product + (bias if factors[1] == 1 else bias * factors[1])


def _gemm(attributes: Attributes, parameters: Sequence[list[int] | None], count: int) -> Emitted:
    turned = (bool(attributes.get("transA", 0)), bool(attributes.get("transB", 0)))
    extra = (turned, (float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))))
    return gemm, extra if count == 3 else (None, *extra)


def _reduce(function: Callable[..., Any]) -> Emit:
    def emit(attributes: Attributes, parameters: Sequence[list[int] | None], count: int) -> Emitted:
        axes = (parameters[0] if parameters else None) or list(attributes.get("axes", ()))
        if not axes:
            raise EngineError("a reduction names no axes, expected some", hint="export the model again")
        return function, (tuple(axes), bool(attributes.get("keepdims", 1)))

    return emit


def gather(x: Tensor, at: Tensor, axis: int) -> Tensor:
    axis %= x.ndim
    at = torch.where(at < 0, at + x.shape[axis], at)
    return x.index_select(axis, at.reshape(-1)).reshape(*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, at: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, torch.where(at < 0, at + x.shape[axis], at).to(torch.int64))


def cut(x: Tensor, cuts: tuple[tuple[int, int, int], ...]) -> Tensor:
    """cuts: axis, start and end of each, as ONNX has them: they may lie beyond the tensor."""
    for axis, start, end in cuts:
        length = x.shape[axis]
        start, end = (min(max(at + length if at < 0 else at, 0), length) for at in (start, end))
        x = x.narrow(axis, start, max(end - start, 0))
    return x


def _slice(attributes: Attributes, parameters: Sequence[list[int] | None], count: int) -> Emitted:
    starts, ends, axes, steps = (*parameters, None, None)[:4]
    assert starts is not None
    assert ends is not None
    if any(step != 1 for step in steps or ()):
        raise EngineError(f"a slice has the steps {steps}, expected 1", hint="add it to benchmarks/gpu/torch_graph.py")
    return cut, (tuple(zip(axes or range(len(starts)), starts, ends, strict=True)),)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """0 in `shape` is the length that is there, as in ONNX."""
    return x.reshape([x.shape[axis] if length == 0 else length for axis, length in enumerate(shape)])


def unsqueeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def concat(*values: Any) -> Tensor:
    """The tensors, and at last the axis."""
    return torch.cat(values[:-1], values[-1])


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def permute(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.permute(order)


_OPERATORS: Mapping[str, Emit] = {
    **{name: _plain(getattr(torch, name.lower())) for name in ("Relu", "Sigmoid", "Exp", "Tanh", "Abs", "Where")},
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "Neg": _plain(torch.neg),
    "Reciprocal": _plain(torch.reciprocal),
    "Clip": _plain(torch.clamp),
    "Equal": _plain(torch.eq),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Less": _plain(torch.lt),
    "Sqrt": _plain(torch.sqrt),
    "LessOrEqual": _plain(torch.le),
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Gemm": _gemm,
    "MatMul": _plain(torch.matmul),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMax": _reduce(torch.amax),
    "ReduceSum": _reduce(torch.sum),
    "Gather": lambda attributes, parameters, count: (gather, (int(attributes.get("axis", 0)),)),
    "GatherElements": lambda attributes, parameters, count: (gather_elements, (int(attributes.get("axis", 0)),)),
    "Slice": _slice,
    "Concat": lambda attributes, parameters, count: (concat, (int(attributes["axis"]),)),
    "Transpose": lambda attributes, parameters, count: (permute, (tuple(attributes["perm"]),)),
    "Reshape": lambda attributes, parameters, count: (reshape, (tuple(parameters[0] or ()),)),
    "Unsqueeze": lambda attributes, parameters, count: (unsqueeze, (tuple(parameters[0] or ()),)),
    "Cast": lambda attributes, parameters, count: (cast, (TYPES[attributes["to"]][1],)),
}
