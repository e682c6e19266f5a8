"""The gates of the encoders' blocks: those of the torch model, read beside an answer that stays the same."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor

from mpmmu_rt import load
from mpmmu_rt.engines import ShowsTensors, engines
from mpmmu_rt.errors import EngineError
from mpmmu_rt.explain import block_parts, blocks
from mpmmu_rt.explain.blocks import BlockGates, InnerGates, find_blocks, inner_gates
from mpmmu_rt.explain.occlusion import Box
from mpmmu_rt.explain.study import blocks_json
from mpmmu_rt.export.encoders import Features
from mpmmu_rt.export.openvino_graph import for_openvino
from mpmmu_rt.export.rewrite import rewrite
from mpmmu_rt.export.sigmoid import exact_sigmoids
from mpmmu_rt.export.tracing import trace
from mpmmu_rt.grey import GreyImage
from mpmmu_rt.model.attention import CBAM, ECA
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.onnx_wire import nodes, with_outputs
from mpmmu_rt.spec import MODALITIES, Array, Modality

STORED = Path(__file__).parents[1] / "data" / "bundle_613dfc9" / "onnx"


def noise(size: int, cases: int = 1) -> dict[Modality, Array]:
    """Coarse and unlike from place to place."""
    rng = np.random.default_rng(7)
    pixels: dict[Modality, Array] = {}
    for modality in MODALITIES:
        coarse = rng.integers(0, 256, (cases, 1, size // 6 + 1, size // 6 + 1))
        pixels[modality] = np.kron(coarse, np.ones((6, 6)))[:, :, :size, :size].astype(np.uint8)
    return pixels


def of_torch(encoder: Encoder, pixels: Array) -> dict[str, tuple[Array, Array | None]]:
    """By block the channel gate [C] and the spatial gate [h, w]: what multiplies the feature map in torch, of one
    case, by the papers' formulas on the inputs that each block's attention gets."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in encoder.named_modules():
        if isinstance(module, ECA | CBAM) and name.startswith("layer"):
            block = name.removesuffix(".attention")
            keep = lambda _module, inputs, block=block: seen.update({block: inputs[0]})  # noqa: E731
            hooks.append((module, module.register_forward_pre_hook(keep)))
    with torch.no_grad():
        encoder.features(torch.from_numpy(pixels))
        found: dict[str, tuple[Array, Array | None]] = {}
        for (module, hook), (block, x) in zip(hooks, seen.items(), strict=True):
            hook.remove()
            if isinstance(module, ECA):
                found[block] = torch.sigmoid(module.conv(x.mean((2, 3)).unsqueeze(1)))[0, 0].numpy(), None
            elif isinstance(module, CBAM):
                channel = module.channel(x)
                found[block] = channel[0, :, 0, 0].numpy(), module.spatial(x * channel)[0, 0].numpy()
    return found


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_gates_are_those_of_the_torch_model(bundle_folder: Path, small_model: Checkpoint, target: str) -> None:
    pytest.importorskip(target.partition(":")[0], reason="the engine is not installed")
    with load(bundle_folder, target) as predictor:
        pixels = noise(predictor.bundle.preprocessing.size)
        found = inner_gates(predictor, pixels, predictor.feature_maps(pixels))
    assert [found[modality].kind for modality in MODALITIES] == ["cbam", "eca"]
    for modality in MODALITIES:
        want = of_torch(small_model.encoders[modality], pixels[modality])
        inner = found[modality]
        assert inner.not_read == ""
        assert inner.difference is not None
        assert inner.difference <= blocks.ROUNDING["fp32"]
        assert [one.name for one in inner.blocks] == list(want)
        assert len(want) == 8
        for one in inner.blocks:
            channel, spatial = want[one.name]
            assert channel.std() > 0
            np.testing.assert_allclose(one.channel, channel, rtol=1e-4, atol=1e-6)
            assert (one.spatial is None) == (spatial is None)
            if spatial is not None and one.spatial is not None:
                np.testing.assert_allclose(one.spatial, spatial, rtol=1e-4, atol=1e-6)


def test_eight_bits_have_gates_of_their_own(int8_folder: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    read = {}
    for target in ("onnxruntime:fp32", "openvino:int8"):
        with load(int8_folder, target) as predictor:
            pixels = noise(predictor.bundle.preprocessing.size)
            read[target] = inner_gates(predictor, pixels, predictor.feature_maps(pixels))
    for modality in MODALITIES:
        exact, coarse = read["onnxruntime:fp32"][modality], read["openvino:int8"][modality]
        assert coarse.not_read == ""
        assert coarse.graph == f"{modality}.int8.onnx"
        pairs = list(zip(exact.blocks, coarse.blocks, strict=True))
        assert max(np.abs(a.channel - b.channel).max() for a, b in pairs) < 0.2
        assert max(np.abs(a.channel - b.channel).max() for a, b in pairs) > 1e-5, "not those of FP32"


@pytest.mark.parametrize("kind", ["cbam", "eca"])
@pytest.mark.parametrize("form", [lambda graph: graph, exact_sigmoids, for_openvino])
@pytest.mark.slow
def test_blocks_with_an_inner_mean(kind: Any, form: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """ResNet-50's blocks, whose first ones take the mean of the tensor before the last convolution."""
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(arch="resnet50", width=4, attention=kind)).eval()
    fast = Features(rewrite(encoder), cut=True)
    graph = trace(fast, (torch.zeros(2, 1, 64, 64, dtype=torch.uint8),), ["pixels"], "feature_map")
    names = [f"layer{stage}.{index}" for stage, depth in enumerate((3, 4, 6, 3), 1) for index in range(depth)]
    model = form(graph)
    found = blocks.blocks_of(model.SerializeToString())
    assert [one.name for one in found] == names
    assert blocks.problem(found, kind) == ""
    weights = {tensor.name for tensor in graph.graph.initializer}
    assert any(".attention.inner" in name for name in weights), "the form that this test is about"
    pixels = noise(64)["mammography"]
    want = of_torch(encoder, pixels)
    said = run(model, found, pixels)
    for one in found:
        channel, spatial = want[one.name]
        np.testing.assert_allclose(said[one.channel].ravel(), channel, rtol=1e-3, atol=1e-5)
        if one.spatial is not None and spatial is not None:
            np.testing.assert_allclose(said[one.spatial][0, 0], spatial, rtol=1e-3, atol=1e-5)


def run(model: onnx.ModelProto, found: tuple[blocks.Block, ...], pixels: Array) -> dict[str, Array]:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    names = [name for one in found for name in (one.channel, one.spatial) if name]
    shown = with_outputs(model.SerializeToString(), names)
    session = runtime.InferenceSession(shown, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


ENCODERS = sorted(path for path in STORED.glob("*.onnx") if path.stem.startswith(MODALITIES))


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_bundles_of_before_name_their_blocks(path: Path) -> None:
    kind = "cbam" if path.stem.startswith("mammography") else "eca"
    assert blocks.problem(find_blocks(path), kind) == ""
    assert len(find_blocks(path)) == 8


@pytest.mark.parametrize("count", [0, 1, 40])
def test_outputs_are_added_as_the_package_onnx_adds_them(count: int) -> None:
    data = (STORED / "mammography.onnx").read_bytes()
    model = onnx.ModelProto.FromString(data)
    names = [name for node in model.graph.node for name in node.output][:count]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    assert onnx.ModelProto.FromString(with_outputs(data, names)) == model
    assert [(n.kind, n.inputs, n.outputs) for n in nodes(data)] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]


def shared(model: onnx.ModelProto) -> None:
    """As an exporter would that stores equal weights once."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("layer4.1.attention", "layer4.0.attention")


def unnamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("attention", "a")


def half(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("layer2.1.attention.spatial", "a")


@pytest.mark.parametrize(
    ("change", "says"),
    [(shared, "expected all of four stages"), (unnamed, "names no block"), (half, "of some blocks and not of others")],
)
def test_gates_that_are_not_all_there_are_not_shown(change: Callable[[onnx.ModelProto], None], says: str) -> None:
    model = onnx.load(str(STORED / "mammography.onnx"), load_external_data=False)
    change(model)
    assert says in blocks.problem(blocks.blocks_of(model.SerializeToString()), "cbam")


def test_an_answer_that_changes_beside_its_gates_is_not_shown(bundle_folder: Path) -> None:
    with load(bundle_folder) as predictor:
        pixels = noise(predictor.bundle.preprocessing.size)
        maps = predictor.feature_maps(pixels)
        other = {name: one + 1e-3 * np.abs(one).max() for name, one in maps.items()}
        found = inner_gates(predictor, pixels, other)
    for modality in MODALITIES:
        assert found[modality].blocks == ()
        assert found[modality].difference == pytest.approx(1e-3, rel=0.05)
        assert "of its largest value off, expected 0.0001 at most" in found[modality].not_read


class Silent:
    """An engine that shows nothing of what its graphs compute on the way."""

    def __init__(self, of: Any) -> None:
        self.graph, self.load = of.graph, of.load


def test_an_engine_that_cannot_show_them_says_so(bundle_folder: Path) -> None:
    assert [name for name, one in engines().items() if isinstance(one, ShowsTensors)] == ["onnxruntime", "openvino"]
    with load(bundle_folder) as predictor:
        predictor._engine = Silent(predictor._engine)  # type: ignore[assignment]
        pixels = noise(predictor.bundle.preprocessing.size)
        found = inner_gates(predictor, pixels, predictor.feature_maps(pixels))
        with pytest.raises(EngineError, match="can't show what its graphs compute"):
            predictor.tensors(pixels, {"mammography": ["sigmoid"]})
    assert {one.not_read.partition(" ")[0] for one in found.values()} == {"onnxruntime:fp32"}
    card = block_parts.card("a", blocks_json(found["mammography"]), {})
    assert "Not shown: onnxruntime:fp32 can&#x27;t show" in card


def test_a_tensor_that_there_is_not(bundle_folder: Path) -> None:
    for target in ("onnxruntime:fp32", "openvino:fp32"):
        pytest.importorskip(target.partition(":")[0], reason="the engine is not installed")
        with load(bundle_folder, target) as predictor, pytest.raises(EngineError, match="can't load mammography"):
            predictor.tensors(noise(predictor.bundle.preprocessing.size), {"mammography": ["nothing"]})


def test_figures_and_pictures_of_gates_by_hand() -> None:
    flat, steep = np.full((2, 2), 0.5, np.float32), np.array([[0.1, 0.9], [0.1, 0.1]], np.float32)
    channel = np.array([0.05, 0.2, 0.4, 0.95, 0.99], np.float32)
    inner = InnerGates("m.onnx", (BlockGates("layer1.0", channel, flat), BlockGates("layer1.1", channel, steep)), 0.0)
    first = blocks_json(inner)["gates"][0]
    assert first["channel"]["nearly_shut"] == 0.2
    assert first["channel"]["nearly_open"] == 0.4
    assert first["channel"]["median"] == pytest.approx(0.4)
    image = GreyImage(np.full((60, 30), 100, np.uint8))  # twice as high as wide: a strip in the square's middle
    drawn = block_parts.strips(image, Box(0, 16, 64, 32), inner, 64)
    assert list(drawn) == ["layer1"]
    with Image.open(io.BytesIO(drawn["layer1"])) as picture:
        strip = np.asarray(picture).astype(int)
    assert strip.shape == (160, 80 + 4 + 80, 3)
    assert (strip[:, :80] == 100).all(), "a map that is the same everywhere has no colour"
    assert (strip[:, 80:84] == 255).all()
    assert strip[10, -5, 0] - strip[10, -5, 2] > 40, "above on the right"
    assert strip[150, -5, 0] - strip[150, -5, 2] < 10
    card = block_parts.card("Mammography", blocks_json(inner), drawn)
    assert "layer1, 2 by 2 places: 0.50 to 0.50, 0.10 to 0.90" in card
    assert card.count("<img") == 1
    assert "the same to the bit" in card
    eca = InnerGates("u.onnx", (BlockGates("layer1.0", channel, None),), 3e-6)
    assert block_parts.strips(image, Box(0, 16, 64, 32), eca, 64) == {}
    assert "3e-06 of its largest value off" in block_parts.card("Ultrasound", blocks_json(eca), {})
