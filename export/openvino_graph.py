"""Graphs as OpenVINO's processor plugin runs them soonest: equal in real arithmetic, in standard operators.

`pooled`        Means and maxima over all places of a map are pooling with a window of the map's size: OpenVINO reduces
                in the layout that the convolution left, and takes half the time for it.
`blocked`       ECA's convolution across the C channel means (arXiv 1910.03151, section 3) has one channel, which matrix
                units fill up to 16 or 32. Channel 32 b + i is written as place b of channel i: the same sums are one
                convolution of 32 channels over C / 32 places, of size 3, as a kernel of up to 65 reaches no further
                than the block before and the one behind.
`tiled`         CBAM's spatial gate makes one channel (arXiv 1807.06521, equation 3). Its values at the 16 places of a
                4 x 4 tile are 16 channels of one convolution of 10 x 10 with a stride of 4, set side by side by
                DepthToSpace.

Found by what a node computes, never by what it is called; anything else is left as it is. What each saves stands in
benchmarks/NOTES.md. On other engines they save nothing, or cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mpmmu_rt.spec import Array

from .quantization.placement import Wiring, shapes
from .quantization.rewrite import replace

BLOCK = 32
SIDES = (4, 2)  # of a tile: the largest that divides height and width
_FEW = 8  # input channels: a convolution of more fills what engines compute together
_POOLING = {"ReduceMean": "AveragePool", "ReduceMax": "MaxPool"}


def for_openvino(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model`, quantized or not, that computes the same. What it holds keeps its name; weights that lie in a
    file stay there."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    _Rewriter(found.graph, shapes(model)).run()
    return found


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto, sizes: Mapping[str, list[int]]) -> None:
        self.graph, self.sizes, self.wiring = graph, sizes, Wiring(graph)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.constants: list[onnx.TensorProto] = []

    def run(self) -> None:
        instead: dict[str, list[onnx.NodeProto]] = {}  # of the node with that first output
        for node in self.graph.node:
            if made := self._blocked(node) or self._tiled(node):
                nodes, old = made
                for one in nodes:
                    one.name = one.output[0]
                instead |= {one.output[0]: [] for one in old}
                instead[old[-1].output[0]] = nodes
        for node in self.graph.node:
            if node.output[0] not in instead and (pool := self._pooled(node)):
                instead[node.output[0]] = [pool]
        kept = [one for node in self.graph.node for one in instead.get(node.output[0], [node])]
        replace(self.graph, kept, self.constants)

    def _pooled(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        size = self.sizes.get(node.input[0], []) if node.input else []
        if node.op_type not in _POOLING or len(size) != 4 or not all(size[2:]):
            return None
        if self._axes(node) != [2, 3] or not _attribute(node, "keepdims", 1):
            return None
        kind = _POOLING[node.op_type]
        return helper.make_node(kind, node.input[:1], node.output, node.name, kernel_shape=size[2:])

    def _blocked(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
        """Of ECA's convolution: what takes the place of all from the mean to the gate [N, C, 1, 1], and that all."""
        kernel = self._kernel(node, dimensions=3)
        if kernel is None or kernel.shape[:2] != (1, 1) or kernel.size // 2 > BLOCK:
            return None
        unsqueezed = self.wiring.producer.get(node.input[0])
        mean = self.wiring.producer.get(unsqueezed.input[0]) if unsqueezed is not None else None
        behind = self._chain(node, "Sigmoid", "Transpose", "Unsqueeze")
        if unsqueezed is None or mean is None or len(behind) != 3:
            return None
        sigmoid, transposed, gate = behind
        size = self.sizes.get(mean.input[0], []) if mean.op_type == "ReduceMean" else []
        as_expected = (
            len(size) == 4
            and all(size[1:])
            and size[1] % BLOCK == 0
            and unsqueezed.op_type == "Unsqueeze"
            and all(len(self.wiring.consumers.get(one.output[0], [])) == 1 for one in (mean, unsqueezed))
            and (self._axes(mean), self._axes(unsqueezed), self._axes(gate)) == ([2, 3], [1], [3])
            and not _attribute(mean, "keepdims", 1)
            and list(_attribute(transposed, "perm", [])) == [0, 2, 1]
        )
        if not as_expected:
            return None
        name, channels = sigmoid.output[0], size[1]
        weight = self._constant(f"{node.input[1]}/blocks", _blocks(kernel[0, 0]))
        apart = self._constant(f"{name}/apart", np.array([0, channels // BLOCK, BLOCK, 1]))
        together = self._constant(f"{name}/together", np.array([0, channels, 1, 1]))
        steps = [f"{name}/{step}" for step in ("mean", "blocks", "channels", "sums", "places")]
        made = [
            helper.make_node("AveragePool", mean.input[:1], steps[:1], kernel_shape=size[2:]),
            helper.make_node("Reshape", [steps[0], apart], steps[1:2]),
            helper.make_node("Transpose", steps[1:2], steps[2:3], perm=[0, 2, 3, 1]),
            helper.make_node("Conv", [steps[2], weight], steps[3:4], kernel_shape=[1, 3], pads=[0, 1, 0, 1]),
            helper.make_node("Sigmoid", steps[3:4], [name]),
            helper.make_node("Transpose", [name], steps[4:], perm=[0, 3, 1, 2]),
            helper.make_node("Reshape", [steps[4], together], gate.output),
        ]
        return made, [mean, unsqueezed, node, sigmoid, transposed, gate]

    def _tiled(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
        """Of a spatial gate: what takes the place of the convolution and its sigmoid, and both."""
        kernel = self._kernel(node, dimensions=4)
        behind = self._chain(node, "Sigmoid")
        if kernel is None or kernel.shape[0] != 1 or kernel.shape[1] >= _FEW or kernel.shape[2] == 1 or not behind:
            return None
        size = self.sizes.get(node.output[0], [])
        side = next((one for one in SIDES if len(size) == 4 and all(size[2:]) and not size[2] % one | size[3] % one), 0)
        if not side:
            return None
        gate = behind[0].output[0]
        tiles = _tiles(kernel[0], side)
        weight, pad = self._constant(f"{node.input[1]}/tiles{side}", tiles), kernel.shape[2] // 2
        made = [
            helper.make_node(
                "Conv",
                [node.input[0], weight],
                [f"{gate}/sums"],
                kernel_shape=list(tiles.shape[2:]),
                strides=[side, side],
                pads=[pad] * 4,
            ),
            # Before they are set side by side: it is then computed with the convolution.
            helper.make_node("Sigmoid", [f"{gate}/sums"], [f"{gate}/tiles"]),
            helper.make_node("DepthToSpace", [f"{gate}/tiles"], [gate], blocksize=side, mode="CRD"),
        ]
        return made, [node, behind[0]]

    def _kernel(self, node: onnx.NodeProto, *, dimensions: int) -> Array | None:
        """The weights float32 of a convolution of one group with a stride of 1, no bias, and a square, odd kernel that
        is padded to keep the size; None for any other node."""
        weight = self.weights.get(node.input[1]) if node.op_type == "Conv" and len(node.input) == 2 else None
        if weight is None or len(weight.dims) != dimensions or weight.data_type != onnx.TensorProto.FLOAT:
            return None
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            return None
        size = set(weight.dims[2:])
        pads, plain = list(_attribute(node, "pads", [])), _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
        ones = [*_attribute(node, "strides", [1]), *_attribute(node, "dilations", [1]), _attribute(node, "group", 1)]
        if len(size) != 1 or not plain or set(ones) != {1} or max(size) % 2 == 0 or set(pads) != {max(size) // 2}:
            return None
        kernel: Array = numpy_helper.to_array(weight)
        return kernel

    def _chain(self, node: onnx.NodeProto, *kinds: str) -> list[onnx.NodeProto]:
        """What follows `node`, if it is of these `kinds`, each the only one to read what is before it; else []."""
        found: list[onnx.NodeProto] = []
        for kind in kinds:
            readers = self.wiring.consumers.get((found[-1] if found else node).output[0], [])
            if len(readers) != 1 or readers[0].op_type != kind:
                return []
            found.append(readers[0])
        return found

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Those of an operator that takes them as its second input, and has them as a constant; else []."""
        constant = self.weights.get(node.input[1]) if len(node.input) == 2 else None
        return [] if constant is None else sorted(numpy_helper.to_array(constant).reshape(-1).tolist())

    def _constant(self, name: str, value: Array) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(value, name)
            self.constants.append(self.weights[name])
        return name


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _blocks(kernel: Array) -> Array:
    """The weights float32 [32, 32, 1, 3] that have channel i of block b read what `kernel` [k] does at 32 b + i."""
    found = np.zeros((BLOCK, BLOCK, 1, 3), kernel.dtype)
    for to in range(BLOCK):
        for j, value in enumerate(kernel):
            block, channel = divmod(to + j - kernel.size // 2, BLOCK)
            found[to, channel, 0, 1 + block] = value
    return found


def _tiles(kernel: Array, side: int) -> Array:
    """`kernel` [C, k, k] at the side² places of a tile, as that many channels [side², C, k + side - 1, k + side - 1].

    The place (i, j) reads the window that begins i rows and j columns further on.
    """
    channels, size, _ = kernel.shape
    reach = size + side - 1
    found = np.zeros((side**2, channels, reach, reach), kernel.dtype)
    for place in range(side**2):
        row, column = divmod(place, side)
        found[place, :, row : row + size, column : column + size] = kernel
    return found
