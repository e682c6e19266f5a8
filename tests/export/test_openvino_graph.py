"""Graphs for OpenVINO compute what they were made from: equal in real arithmetic, found by what nodes compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mpmmu_rt.export import openvino_graph
from mpmmu_rt.export.openvino_graph import BLOCK, for_openvino
from mpmmu_rt.export.quantization import calibrate, quantize
from mpmmu_rt.export.tracing import trace
from mpmmu_rt.model.attention import CBAM, ECA
from mpmmu_rt.model.config import AttentionKind
from mpmmu_rt.spec import Array
from tests.export.conftest import Graphs


def traced(module: nn.Module, *shape: int) -> onnx.ModelProto:
    return trace(module.eval(), (torch.zeros(2, *shape),), ["x"], "y")


def said(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """Nothing fused: what the operators say."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, dict(feeds))[0]
    return found


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


class Beside(nn.Module):
    """Gates beside each other, each on rows of its own of one image: one trace for all of them."""

    def __init__(self, gates: Sequence[nn.Module], maps: Sequence[tuple[int, int, int]]) -> None:
        """maps: what each gate is given, C × h × w."""
        super().__init__()
        self.gates, self.maps = nn.ModuleList(gates), [*maps]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, [math.prod(one) for one in self.maps], 1)
        maps = [part.reshape(-1, *one) for part, one in zip(parts, self.maps, strict=True)]
        return torch.cat([gate(one).flatten(1) for gate, one in zip(self.gates, maps, strict=True)], 1)


def gates_say_the_same(fast: onnx.ModelProto, model: onnx.ModelProto, maps: Sequence[tuple[int, int, int]]) -> None:
    """Gate by gate, in batches of 1 and of 3."""
    sizes = [math.prod(one) for one in maps]
    for cases in (1, 3):
        x = np.random.default_rng(cases).normal(size=(cases, sum(sizes))).astype(np.float32)
        got, want = (np.split(said(one, {"x": x}), np.cumsum(sizes)[:-1], 1) for one in (fast, model))
        for one, first, second in zip(maps, got, want, strict=True):
            assert np.ptp(first) > 0
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6, err_msg=str(one))


def test_eca_in_blocks() -> None:
    """Kernels that reach a whole block, and further than the map; one block, two, three and many."""
    shapes = [(32, size) for size in (1, 3, 5, 9, 31, 65)]
    shapes += [(64, 9), (64, 65), (96, 1), (96, 5), (96, 65), (512, 3), (512, 31)]
    gates = []
    for channels, size in shapes:
        torch.manual_seed(size)
        gate = ECA(channels)
        gate.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        gates.append(drawn(gate))
    maps = [(channels, 5, 4) for channels, _ in shapes]
    model = traced(Beside(gates, maps), sum(map(math.prod, maps)))
    fast = for_openvino(model)
    onnx.checker.check_model(fast, full_check=True)
    assert kinds(model)["ReduceMean"] == kinds(fast)["AveragePool"] == len(gates)
    assert kinds(fast)["ReduceMean"] == kinds(fast)["Unsqueeze"] == 0
    convs = [node for node in fast.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor for tensor in fast.graph.initializer}
    assert [list(weights[conv.input[1]].dims) for conv in convs] == [[BLOCK, BLOCK, 1, 3]] * len(gates)
    gates_say_the_same(fast, model, maps)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_blocks_are_the_banded_matrix(size: int) -> None:
    kernel, channels = np.random.default_rng(size).normal(size=size), 4 * BLOCK
    weights = openvino_graph._blocks(kernel)[:, :, 0]
    dense = np.zeros((channels, channels))
    for to in range(channels):
        for j, value in enumerate(kernel):
            if 0 <= (source := to + j - size // 2) < channels:
                dense[to, source] = value
    mean = np.random.default_rng(0).normal(size=channels)
    padded = np.pad(mean.reshape(-1, BLOCK), ((1, 1), (0, 0)))
    got = sum(padded[tap : tap + channels // BLOCK] @ weights[:, :, tap].T for tap in range(3))
    np.testing.assert_allclose(np.ravel(got), dense @ mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [3, 7])
def test_cbam_in_tiles(size: int) -> None:
    sides = {(8, 12): 4, (56, 56): 4, (14, 14): 2, (6, 8): 2, (7, 7): 0, (4, 6): 2}
    gates = []
    for height, _ in sides:
        torch.manual_seed(height)
        gates.append(drawn(CBAM(16, size=size)))
    maps = [(16, *shape) for shape in sides]
    model = traced(Beside(gates, maps), sum(map(math.prod, maps)))
    fast = for_openvino(model)
    onnx.checker.check_model(fast, full_check=True)
    assert (kinds(fast)["AveragePool"], kinds(fast)["MaxPool"]) == (len(gates), len(gates))
    assert (kinds(fast)["ReduceMean"], kinds(fast)["ReduceMax"]) == (len(gates), len(gates)), "those over channels stay"
    tiles = [node for node in fast.graph.node if node.op_type == "DepthToSpace"]
    found = [{one.name: one.i for one in tile.attribute}["blocksize"] for tile in tiles]
    assert found == [side for side in sides.values() if side]
    gates_say_the_same(fast, model, maps)


class Kept(nn.Module):
    """A convolution of one channel each way and its sigmoid, both of which something else reads too, or not."""

    def __init__(self, conv: nn.Module, *, read_twice: bool = False) -> None:
        super().__init__()
        self.conv, self.read_twice = conv, read_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sums = self.conv(x)
        gated = x * torch.sigmoid(sums)
        return gated + sums if self.read_twice else gated


class Mean(nn.Module):
    def __init__(self, dims: tuple[int, ...], *, keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self.dims, keepdim=self.keepdim)


def test_what_is_no_gate_stays() -> None:
    """Beside a gate of each kind that does not stay, in one trace."""
    stay: list[tuple[nn.Module, tuple[int, int, int]]] = [
        (Kept(nn.Conv2d(1, 1, 3, padding=1)), (1, 8, 8)),  # a bias
        (Kept(nn.Conv2d(1, 1, 3, padding=1, bias=False), read_twice=True), (1, 8, 8)),
        (Kept(nn.Conv2d(1, 1, 3, padding=2, dilation=2, bias=False)), (1, 8, 8)),
        (Kept(nn.Conv2d(1, 1, 1, bias=False)), (1, 8, 8)),
        (Kept(nn.Conv2d(1, 8, 3, padding=1, bias=False)), (1, 8, 8)),
        (Mean((1,), keepdim=True), (4, 8, 8)),
        (Mean((2, 3), keepdim=False), (4, 8, 8)),
        (Mean((1, 2, 3), keepdim=True), (4, 8, 8)),
        (ECA(8), (8, 4, 4)),  # channels that make no blocks
        (ECA(48), (48, 4, 4)),
    ]
    change: list[tuple[nn.Module, tuple[int, int, int]]] = [
        (Kept(nn.Conv2d(1, 1, 3, padding=1, bias=False)), (1, 8, 8)),
        (ECA(32), (32, 4, 4)),
    ]
    gates, maps = zip(*stay, *change, strict=True)
    model = traced(Beside(gates, maps), sum(map(math.prod, maps)))
    after = {node.SerializeToString() for node in for_openvino(model).graph.node}
    lost = [node for node in model.graph.node if node.SerializeToString() not in after]
    convolved = [node.input[1] for node in lost if node.op_type == "Conv"]
    assert convolved == ["gates.10.conv.weight", "gates.11.conv.weight"]
    assert Counter(node.op_type for node in lost) == Counter(
        ["Conv", "Sigmoid", "ReduceMean", "Unsqueeze", "Conv", "Sigmoid", "Transpose", "Unsqueeze"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cbam", "eca"])
def test_whole_encoders(kind: AttentionKind, resnet50_graphs: Graphs) -> None:
    """In float and quantized; a second time changes nothing more. Every export of the tests' small model proves the
    same of ResNet-18."""
    graph = resnet50_graphs(kind)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64), dtype=np.uint8)
    ranges = calibrate(graph, pixels)
    for model in (graph, quantize(graph, ranges, unsigned=True)):
        before = model.SerializeToString()
        fast = for_openvino(model)
        assert model.SerializeToString() == before
        assert kinds(fast)["AveragePool"] >= 6
        assert for_openvino(fast).SerializeToString() == fast.SerializeToString()
        want, got = said(model, {"pixels": pixels}), said(fast, {"pixels": pixels})
        # A value next to a step of 8 bits may fall on its other side.
        tolerance = 1e-5 if model is graph else 2e-2
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.slow
def test_weights_that_lie_in_a_file_stay_there(bundle_folder: Any) -> None:
    path = bundle_folder / "onnx" / "mammography.onnx"
    model = onnx.load(str(path), load_external_data=False)
    fast = for_openvino(model)
    external = [one.name for one in fast.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    assert external == [one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    stored = onnx.load(str(bundle_folder / "onnx" / "mammography_openvino.onnx"), load_external_data=False)
    assert kinds(stored) == kinds(fast)
    for tensor in stored.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.EXTERNAL or numpy_helper.to_array(tensor).nbytes < 1024


class Shared(nn.Module):
    """One gate for maps of two sizes, of which one is cut into tiles of 4 and the other of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            x = nn.functional.avg_pool2d(x * torch.sigmoid(self.gate(both)), 2)[..., :6, :6]
        return x


def test_a_gate_for_maps_of_two_sizes_has_tiles_of_both() -> None:
    model = traced(drawn(Shared()), 4, 16, 16)
    fast = for_openvino(model)
    onnx.checker.check_model(fast, full_check=True)
    assert kinds(fast)["DepthToSpace"] == 2
    x = np.random.default_rng(1).normal(size=(2, 4, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(said(fast, {"x": x}), said(model, {"x": x}), rtol=1e-4, atol=1e-6)
