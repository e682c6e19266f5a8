"""What of an encoder's graph the torch engine runs fused: in-block attention by our kernels, ReLU in its convolution.

`find` recognises attention as the exporter writes it; `Attended` runs it. Nothing is fused that the graph uses in
another place as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mpmmu_rt.kernels.block_attention import ARRAYS, BlockAttention, BlockShape, BlockWeights
from mpmmu_rt.kernels.block_check import reference
from mpmmu_rt.kernels.plan import ElementType
from mpmmu_rt.spec import Array

ELEMENTS: Mapping[torch.dtype, ElementType] = {torch.float32: "float32", torch.float16: "float16"}


@dataclass(frozen=True)
class Fragment:
    """Nodes that become one. output: of the last of them; inputs: in the order that the one takes them."""

    inputs: tuple[str, ...]
    output: str
    nodes: frozenset[int]  # by their places in the graph


@dataclass(frozen=True)
class Attention(Fragment):
    """inputs: inner, x and the residual."""

    weights: BlockWeights


class _Graph:
    def __init__(self, graph: onnx.GraphProto, constants: Mapping[str, Array]) -> None:
        self.nodes, self.constants = list(graph.node), constants
        self.maker = {name: place for place, node in enumerate(self.nodes) for name in node.output}
        self.uses = Counter(name for node in self.nodes for name in node.input)
        self.uses.update(one.name for one in graph.output)

    def made_by(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of that kind which makes `name`."""
        node = self.nodes[self.maker[name]] if name in self.maker else None
        return node if node is not None and node.op_type == kind else None

    def chain(self, name: str, *kinds: str) -> list[onnx.NodeProto] | None:
        """From `name` back over first inputs."""
        found = []
        for kind in kinds:
            node = self.made_by(name, kind)
            if node is None:
                return None
            found.append(node)
            name = node.input[0]
        return found

    def linear(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        """Weights [in, out] and bias [out] of a 1 x 1 convolution over one position, float32."""
        weight = self.constants[node.input[1]].astype(np.float32)
        bias = self.constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.zeros(len(weight))
        return np.ascontiguousarray(weight.reshape(len(weight), -1).T), bias.astype(np.float32)

    def alone(self, fragment: list[onnx.NodeProto]) -> frozenset[int] | None:
        """Places of the nodes; None where what one makes, but for the first, is used by others as well."""
        places = {self.maker[node.output[0]] for node in fragment}
        inside = Counter(name for place in places for name in self.nodes[place].input)
        if any(self.uses[node.output[0]] != inside[node.output[0]] for node in fragment[1:]):
            return None
        return frozenset(places)


def find(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> list[Attention]:
    """Attention, the residual's addition and ReLU: one for each block of an encoder."""
    source = _Graph(graph, constants)
    found = []
    for node in source.nodes:
        added = source.made_by(node.input[0], "Add") if node.op_type == "Relu" else None
        for attended, residual in ((0, 1), (1, 0)) if added is not None else ():
            assert added is not None
            one = _cbam(source, added.input[attended]) or _eca(source, added.input[attended])
            if one is None:
                continue
            inner, x, weights, fragment = one
            places = source.alone([node, added, *fragment])
            if places is not None and added.input[residual] != x:
                found.append(Attention((inner, x, added.input[residual]), node.output[0], places, weights))
                break
    return found


Found = tuple[str, str, BlockWeights, list[onnx.NodeProto]]


def _eca(source: _Graph, name: str) -> Found | None:
    product = source.made_by(name, "Mul")
    if product is None:
        return None
    gate = source.chain(product.input[1], "Sigmoid", "Conv", "ReduceMean")
    if gate is not None:
        weight, bias = source.linear(gate[1])
        weights = BlockWeights("composed", weight.shape[1], weight, bias)
        return gate[2].input[0], product.input[0], weights, [product, *gate]
    gate = source.chain(product.input[1], "Unsqueeze", "Transpose", "Sigmoid", "Conv", "Unsqueeze", "ReduceMean")
    maker = source.made_by(product.input[0], "Conv")
    if gate is None or maker is None or gate[-1].input[0] != product.input[0]:
        return None
    kernel = source.constants[gate[3].input[1]].astype(np.float32).ravel()
    weights = BlockWeights("eca", len(source.constants[maker.input[1]]), kernel=kernel)
    return product.input[0], product.input[0], weights, [product, *gate]


def _cbam(source: _Graph, name: str) -> Found | None:
    product = source.made_by(name, "Mul")
    spatial = source.chain(product.input[1], "Sigmoid", "Conv", "Concat") if product is not None else None
    gated = source.made_by(product.input[0], "Mul") if product is not None else None
    gate = source.chain(gated.input[1], "Sigmoid", "Conv", "Add") if gated is not None else None
    if product is None or spatial is None or gated is None or gate is None:
        return None
    if len(spatial[2].input) != 2:
        return None
    means, peaks = source.made_by(spatial[2].input[0], "ReduceMean"), source.made_by(spatial[2].input[1], "ReduceMax")
    inner = source.chain(gate[2].input[0], "Relu", "Conv", "ReduceMean")
    peak = source.chain(gate[2].input[1], "Relu", "Conv", "ReduceMax")
    if means is None or peaks is None or inner is None or peak is None:
        return None
    x = gated.input[0]
    if {means.input[0], peaks.input[0]} != {gated.output[0]} or peak[2].input[0] != x or len(spatial[1].input) > 2:
        return None
    kernel = source.constants[spatial[1].input[1]].astype(np.float32)[0]
    (inner_weight, *first), (gate_weight, gate_bias) = source.linear(inner[1]), source.linear(gate[1])
    arrays = (inner_weight, *first, *source.linear(peak[1]), gate_weight, gate_bias, kernel)
    weights = BlockWeights("cbam", gate_bias.size, *arrays)
    return inner[2].input[0], x, weights, [product, *spatial, means, peaks, gated, *gate, *inner, *peak]


def find_relus(graph: onnx.GraphProto, constants: Mapping[str, Array], taken: frozenset[int]) -> list[Fragment]:
    """Convolutions along two axes, and the ReLU behind them."""
    source = _Graph(graph, constants)
    found = []
    for node in source.nodes:
        pair = source.chain(node.output[0], "Relu", "Conv") if node.op_type == "Relu" else None
        if pair is None or constants[pair[1].input[1]].ndim != 4:
            continue
        places = source.alone(pair)
        if places is not None and not places & taken:
            found.append(Fragment(tuple(pair[1].input), node.output[0], places))
    return found


class Attended(nn.Module):
    """inner, x, residual, float [N, C, h, w] with channels last, to y like x. cases: the most that come at once."""

    def __init__(self, weights: BlockWeights, cases: int) -> None:
        super().__init__()
        self.weights, self.cases = weights, cases
        self.made: dict[tuple[int, int, torch.dtype], BlockAttention] = {}

    def forward(self, inner: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        given = [one.contiguous(memory_format=torch.channels_last) for one in (inner, x, residual)]
        y = torch.empty_like(given[1])
        shape = BlockShape(self.weights, x.shape[2], x.shape[3], ELEMENTS[x.dtype])
        if x.device.type == "cpu":  # for tests: the float64 reference
            maps = [one.permute(0, 2, 3, 1).numpy() for one in given]
            return y.copy_(torch.from_numpy(reference(shape, (maps[0], maps[1], maps[2]))).permute(0, 3, 1, 2))
        key = (x.shape[2], x.shape[3], x.dtype)
        if key not in self.made:
            self.made[key] = BlockAttention(shape, self.cases)
        addresses = (given[0].data_ptr(), given[1].data_ptr(), given[2].data_ptr())
        self.made[key].launch(addresses, y.data_ptr(), len(x), current_stream())
        return y

    def extra_repr(self) -> str:
        return f"{self.weights.kind}, {', '.join(str(getattr(self.weights, name).shape) for name in ARRAYS)}"


def current_stream() -> Any:
    """torch's current stream, as CuPy knows it."""
    import cupy

    return cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """options: strides, pads, dilations, groups, as `torch_graph.conv` takes them."""
    if x.device.type == "cpu":
        return torch.relu(nn.functional.conv2d(x, weight, bias, *options))
    strides, pads, dilations = ([one, one] if isinstance(one, int) else one for one in options[:3])
    found: Tensor = torch.cudnn_convolution_relu(x, weight, bias, strides, pads, dilations, options[3])
    return found
