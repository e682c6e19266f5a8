from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.model.config import EncoderConfig, reference, tiny
from mpmmu_rt.model.encoder import Encoder, load_backbone

# Parameters and buffers of torchvision's models (torchvision.models.resnet*, without `fc`).
BACKBONE_KEYS = {"resnet18": 120, "resnet34": 216, "resnet50": 318}
BACKBONE_PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


def torchvision_state(arch: str, channels: int = 3) -> dict[str, Tensor]:
    """A state dict with torchvision's names and shapes: those of an encoder without attention, with an RGB stem."""
    torch.manual_seed(3)
    state = Encoder(EncoderConfig(arch=arch, attention="none")).state_dict()  # type: ignore[arg-type]
    state["conv1.weight"] = torch.randn(64, channels, 7, 7)
    state["fc.weight"], state["fc.bias"] = torch.randn(1000, state["fc.weight"].shape[1]), torch.randn(1000)
    return dict(state)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_backbone_has_torchvisions_names_and_size(arch: str) -> None:
    state = Encoder(EncoderConfig(arch=arch, attention="none")).state_dict()  # type: ignore[arg-type]
    backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert len(backbone) == BACKBONE_KEYS[arch]
    pattern = re.compile(
        r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))"
        r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
    )
    assert all(pattern.fullmatch(key) for key in backbone)
    counted = sum(v.numel() for k, v in backbone.items() if "running" not in k and "num_batches" not in k)
    assert counted + 2 * 64 * 49 == BACKBONE_PARAMETERS[arch]  # a grey stem lacks two of three colours


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_grey_stem_gives_what_the_rgb_stem_gives_on_grey(arch: str) -> None:
    state = torchvision_state(arch)
    encoder = Encoder(EncoderConfig(arch=arch, attention="cbam"))  # type: ignore[arg-type]
    report = load_backbone(encoder, state)
    assert report.summed_to_grey == ("conv1.weight",)
    assert report.skipped == ("fc.weight", "fc.bias")
    assert all("attention" in key or key.startswith("fc.") for key in report.fresh)
    assert len(report.loaded) + 1 == BACKBONE_KEYS[arch]
    grey = torch.randn(1, 1, 40, 40)
    rgb = torch.nn.functional.conv2d(grey.expand(1, 3, 40, 40), state["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(encoder.conv1(grey), rgb, rtol=1e-4, atol=1e-4)
    for key in report.loaded:
        assert torch.equal(encoder.state_dict()[key], state[key])
    assert str(report).startswith(f"loaded: {len(report.loaded)} (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, "layer1.0.conv1.weight is missing"),
        ({"layer5.0.conv1.weight": torch.zeros(1)}, "layer5.0.conv1.weight is new"),
        ({"layer1.0.bn1.weight": torch.zeros(3)}, r"layer1.0.bn1.weight is \[3\], expected \[64\]"),
        ({"bn1.running_var": torch.full((64,), torch.nan)}, "bn1.running_var holds numbers that are not finite"),
        ({"bn1.weight": torch.ones(64, dtype=torch.int8)}, "bn1.weight holds int8, strided"),
        ({"bn1.weight": torch.ones(64).to_sparse()}, "bn1.weight holds float32, sparse_coo"),
        ({"bn1.weight": torch.ones(64, device="meta")}, "bn1.weight holds no numbers"),
        ({"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}, "bn1.weight holds numbers that are not finite"),
        ({"conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}, r"conv1.weight holds int8, strided \(1 keys"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {k: v for k, v in (torchvision_state("resnet18") | change).items() if v is not None}
    encoder = Encoder(EncoderConfig(arch="resnet18"))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(encoder, state)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("in_blocks", "in_pool", "gates"), [(True, True, 9), (True, False, 8), (False, True, 1), (False, False, 0)]
)
def test_attention_goes_where_it_is_configured(in_blocks: bool, in_pool: bool, gates: int) -> None:
    encoder = Encoder(EncoderConfig(arch="resnet18", attention="eca", in_blocks=in_blocks, in_pool=in_pool, width=8))
    assert sum(key.endswith("attention.conv.weight") for key in encoder.state_dict()) == gates


def test_shapes_and_scaling() -> None:
    encoder = Encoder(EncoderConfig(arch="resnet18", width=8)).eval()
    pixels = torch.randint(0, 256, (3, 1, 65, 65), dtype=torch.uint8)
    with torch.inference_mode():
        features = encoder.features(pixels)
        assert features.shape == (3, 64, 3, 3)
        assert encoder(pixels).shape == (3, 64)
        torch.testing.assert_close(features, encoder.features_of_grey(pixels.float() / 255))
        assert encoder.logit(pixels.float() / 255).shape == (3,)


def test_residual_block_by_hand() -> None:
    """out = relu(x + gate(bn(conv(relu(bn(conv(x)))))))): attention before the addition."""
    encoder = Encoder(EncoderConfig(arch="resnet18", attention="eca", width=8)).eval()
    block = encoder.get_submodule("layer1.0")
    x = torch.randn(2, 8, 6, 6)
    inner = torch.relu(block.bn1(block.conv1(x)))  # type: ignore[operator]
    gated = block.attention(block.bn2(block.conv2(inner)))  # type: ignore[operator]
    torch.testing.assert_close(block(x), torch.relu(gated + x))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.float8_e4m3fn])
def test_weights_of_other_types_are_numbers_too(kind: torch.dtype) -> None:
    state = torchvision_state("resnet18")
    state["conv1.weight"] = state["conv1.weight"].to(kind)
    state["bn1.weight"] = torch.full((64,), 1.5, dtype=kind)
    load_backbone(encoder := Encoder(EncoderConfig(arch="resnet18")), state)
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"].float().sum(1, keepdim=True))
    assert torch.equal(encoder.bn1.weight, torch.full((64,), 1.5))


def test_weights_of_another_width_and_the_hint_works() -> None:
    """No ResNet of torchvision is as narrow as that of the preset `tiny`."""
    state = torchvision_state("resnet18")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(Encoder(tiny().mammography), state)
    assert "pass --preset reference --arch resnet18" in caught.value.hint
    load_backbone(Encoder(replace(reference().mammography, arch="resnet18")), state)


@pytest.mark.parametrize(
    "change",
    [
        *({"arch": "vgg"}, {"attention": "se"}, {"width": 0}, {"std": 0.0}),
        *({"width": 16.0}, {"in_blocks": "no"}, {"mean": None}, {"mean": True}, {"mean": "0.4"}),
        *({"mean": float("nan")}, {"mean": 1e39}, {"mean": 2**70}, {"std": float("inf")}),
    ],
)
def test_config_is_checked(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=f"`{next(iter(change))}` is .*, expected"):
        EncoderConfig(**change)  # type: ignore[arg-type]


def test_seed_decides_the_weights() -> None:
    def first(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        torch.manual_seed(seed)
        return Encoder(EncoderConfig(arch="resnet18", width=8)).conv1.weight.detach().numpy()

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))
