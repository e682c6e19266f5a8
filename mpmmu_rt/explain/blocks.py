"""The gates of the encoders' blocks: what the deployed graphs compute for them on their way to the feature map.

In each residual block ECA weighs the channels, and CBAM the channels, then the places (arXiv 1910.03151, figure 2;
arXiv 1807.06521, figure 3). A gate is a sigmoid whose convolution has weights that the export has named after the
block, as in torch's state_dict: `layer2.0` is the first block of the second stage. The target gives these tensors as
outputs beside its own; what an engine fuses can change by that, so that the feature map is held to the one without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.onnx_wire import Node, nodes
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality

# Of a feature map, in shares of its largest value. FP32: float32 is rounded in another order, 1e-7 at each of some 50
# layers. Where values have 8 bits, one that is rounded the other way is 1/256 off, and so is what follows from it.
ROUNDING: Mapping[str, float] = {"fp32": 1e-4, "bf16": 2e-2, "int8": 2e-2, "int8-bf16": 2e-2}
_WEIGHT = re.compile(r"module\.(layer\d+\.\d+)\.attention\.(?:gate\.)?(fc2|inner|conv|spatial\.conv)\.weight")
_SPATIAL = "spatial.conv"
_IN_ORDER = ("Transpose", "Reshape", "Unsqueeze", "DepthToSpace")
_SAME_NUMBERS = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass(frozen=True)
class Block:
    """A block whose attention the graph computes, and the tensors that are its gates; spatial: CBAM's alone."""

    name: str
    channel: str
    spatial: str | None


@dataclass(frozen=True)
class BlockGates:
    """Of one case: channel float32 [C] in 0..1; spatial float32 [h, w] in 0..1, None where the kind has none."""

    name: str
    channel: Array
    spatial: Array | None


@dataclass(frozen=True)
class InnerGates:
    """Of one case and encoder, in the graph's order. difference: of the feature map beside them from the one without,
    in shares of its largest value. not_read: why there are none, where the model has them or may have them."""

    graph: str
    blocks: tuple[BlockGates, ...] = field(default=())
    difference: float | None = None
    not_read: str = ""

    @property
    def kind(self) -> str:
        return "cbam" if any(one.spatial is not None for one in self.blocks) else "eca"


def inner_gates(
    predictor: Predictor, pixels: Mapping[Modality, Array], feature_maps: Mapping[Modality, Array]
) -> dict[Modality, InnerGates]:
    """Of each encoder that has gates in its blocks, or may have them.

    pixels: of one case, uint8 [1, 1, S, S] each; feature_maps: what `Predictor.feature_maps` says of them. Raises
    `EngineError` where the engine fails.
    """
    found: dict[Modality, InnerGates] = {}
    for modality in MODALITIES:
        graph = predictor.encoder_graph(modality)
        expected = _expected(predictor.bundle, modality)
        if not predictor.shows_tensors:
            if expected:
                reason = f"{predictor.target} can't show what its graphs compute on the way; onnxruntime:fp32 can"
                found[modality] = InnerGates(graph.name, not_read=reason)
            continue
        blocks = find_blocks(graph)
        if why := problem(blocks, expected):
            found[modality] = InnerGates(graph.name, not_read=f"{graph.name} {why}")
        elif blocks:
            found[modality] = _read(predictor, pixels, feature_maps[modality], modality, blocks)
    return found


def find_blocks(graph: Path) -> tuple[Block, ...]:
    """The blocks of an encoder's graph whose gates it names, in its order; a channel gate that is missing is ""."""
    return blocks_of(graph.read_bytes())


def blocks_of(model: bytes) -> tuple[Block, ...]:
    """`find_blocks` of the bytes of an ONNX file."""
    made = nodes(model)
    by_output = {name: node for node in made for name in node.outputs}
    readers: dict[str, list[Node]] = {}
    for node in made:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    gates: list[tuple[str, dict[bool, str]]] = []
    for node in made:
        if weight := _weight(node, by_output):
            block, spatial = weight[0], weight[1] == _SPATIAL
            # Twice the same gate: weights that were stored once for two blocks. Then these are two of one name.
            if not gates or gates[-1][0] != block or spatial in gates[-1][1]:
                gates.append((block, {}))
            gates[-1][1][spatial] = _as_it_is_multiplied(node.outputs[0], readers)
    return tuple(Block(name, of.get(False, ""), of.get(True)) for name, of in gates)


def _weight(node: Node, by_output: Mapping[str, Node]) -> tuple[str, str] | None:
    """Block and part of the convolution whose sigmoid `node` ends, written as one operator or as 1 / (1 + exp(-x))."""
    steps = {"Sigmoid": (), "Reciprocal": ("Add", "Exp", "Neg")}.get(node.kind)
    for step in steps or ():
        before = by_output.get(node.inputs[0])
        if before is None or before.kind != step:
            return None
        node = before
    if steps is None:
        return None
    convolution = _maker(node.inputs[0], by_output)[1]
    if convolution is None or convolution.kind != "Conv":
        return None
    found = _WEIGHT.match(_maker(convolution.inputs[1], by_output)[0])
    return None if found is None else (found[1], found[2])


def _as_it_is_multiplied(name: str, readers: Mapping[str, list[Node]]) -> str:
    """The gate [1, C, 1, 1] or [1, 1, h, w] that a block is multiplied by: graphs for OpenVINO compute it in blocks of
    channels or in tiles, and set these in order afterwards."""
    while len(following := readers.get(name, [])) == 1 and following[0].kind in _IN_ORDER:
        name = following[0].outputs[0]
    return name


def _maker(name: str, by_output: Mapping[str, Node]) -> tuple[str, Node | None]:
    """The tensor that `name` holds the numbers of, in another type at most, and what makes it."""
    node = by_output.get(name)
    while node is not None and node.kind in _SAME_NUMBERS:
        name = node.inputs[0]
        node = by_output.get(name)
    return name, node


def _expected(bundle: Bundle, modality: Modality) -> str:
    """The kind of attention that the blocks have by the bundle's word; "" for none, and for modules of the user's."""
    of = bundle.entry.get("model", {}).get(modality)
    kind = str(of.get("attention", "none")) if isinstance(of, Mapping) and of.get("in_blocks") else "none"
    return "" if kind == "none" else kind


def problem(blocks: tuple[Block, ...], expected: str) -> str:
    """Why the gates that were found are not all that there are, or "". expected: the kind, "" where it is not known."""
    if not blocks:
        return "names no block with attention, and the model has them" if expected else ""
    spatial = {block.spatial is not None for block in blocks}
    if not all(block.channel for block in blocks) or len(spatial) > 1 or (expected and spatial != {expected == "cbam"}):
        return "names gates of some blocks and not of others"
    names = [tuple(map(int, block.name.removeprefix("layer").split("."))) for block in blocks]
    stages = [[index for stage, index in names if stage == number] for number in range(1, 5)]
    if names != sorted(names) or any(of != list(range(len(of))) or not of for of in stages):
        return f"names the blocks {', '.join(block.name for block in blocks)}, expected all of four stages"
    return ""


def _read(
    predictor: Predictor,
    pixels: Mapping[Modality, Array],
    feature_map: Array,
    modality: Modality,
    blocks: tuple[Block, ...],
) -> InnerGates:
    name = predictor.encoder_graph(modality).name
    wanted = [tensor for block in blocks for tensor in (block.channel, block.spatial) if tensor]
    said = predictor.tensors(pixels, {modality: wanted})[modality]
    largest = float(np.abs(feature_map).max())
    difference = float(np.abs(said["feature_map"] - feature_map).max()) / (largest or 1.0)
    allowed = ROUNDING[predictor.target.precision]
    if not difference <= allowed:
        reason = (
            f"with its gates as outputs, {name} gives a feature map that is {difference:.1e} of its largest value off, "
            f"expected {allowed:g} at most"
        )
        return InnerGates(name, difference=difference, not_read=reason)
    gates = tuple(
        BlockGates(one.name, said[one.channel].reshape(-1), said[one.spatial][0, 0] if one.spatial else None)
        for one in blocks
    )
    return InnerGates(name, gates, difference)
