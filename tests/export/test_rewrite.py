"""The rewrites change no result: proven in float64, where a rounding can't hide a mistake."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from mpmmu_rt.export.rewrite import (
    REWRITES,
    InnerMeanCBAM,
    InnerMeanECA,
    OneMlpCBAM,
    Rewrite,
    rewrite,
)
from mpmmu_rt.model.config import Arch, AttentionKind, EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from tests.export.conftest import Graphs

# float64 has 53 bits; sums of some 10³ terms in another order lose three digits of its sixteen.
EXACT = 1e-12
SUBSETS: list[tuple[Rewrite, ...]] = [
    (),
    ("batch_norms",),
    ("one_mlp",),
    ("batch_norms", "inner_mean"),
    ("batch_norms", "one_mlp"),
    REWRITES,
]


def settled(arch: Arch, attention: AttentionKind, width: int = 8) -> Encoder:
    """An encoder whose batch norms and gates are far from their initial values, so that no term is 0 or 1."""
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(arch=arch, attention=attention, width=width)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean = torch.randn_like(module.bias) * 0.3
            module.running_var = torch.rand_like(module.bias) + 0.5
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.3)
    return encoder


def grey(size: int) -> torch.Tensor:
    return torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), [("resnet18", 61), ("resnet50", 61), ("resnet50", 224)])
@pytest.mark.parametrize("attention", ["eca", "cbam", "none"])
def test_a_rewritten_encoder_computes_the_same(arch: Arch, attention: AttentionKind, size: int) -> None:
    """In every subset of the rewrites."""
    encoder = settled(arch, attention).double()
    with torch.inference_mode():
        want = encoder.features_of_grey(grey(size))
        expected = encoder.pool(want)
        for subset in SUBSETS:
            fast = rewrite(encoder, subset)
            got, pooled = fast.features_of_grey(grey(size)), fast.pool(want)
            assert float((got - want).abs().max() / want.abs().max()) < EXACT, subset
            assert float((pooled - expected).abs().max() / expected.abs().max()) < EXACT, subset


def test_every_rewrite_is_at_work() -> None:
    def kinds(encoder: Encoder) -> set[type[nn.Module]]:
        return {type(module) for module in encoder.modules()}

    cbam, eca = rewrite(settled("resnet50", "cbam")), rewrite(settled("resnet50", "eca"))
    assert {OneMlpCBAM, InnerMeanCBAM} <= kinds(cbam)
    assert InnerMeanECA in kinds(eca)
    assert nn.BatchNorm2d not in kinds(cbam) | kinds(eca)
    assert isinstance(cbam.pool.attention, OneMlpCBAM)


def test_the_original_is_left_alone() -> None:
    encoder = settled("resnet50", "cbam")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rewrite(encoder)
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gate_that_is_wrong_by_one_channel_would_be_seen() -> None:
    encoder = settled("resnet50", "eca").double()
    fast = rewrite(encoder)
    gate = next(module for module in fast.modules() if isinstance(module, InnerMeanECA))
    gate.inner.weight.data = gate.inner.weight.data.roll(1, 0)
    with torch.inference_mode():
        want, got = encoder.features_of_grey(grey(61)), fast.features_of_grey(grey(61))
    assert float((got - want).abs().max() / want.abs().max()) > 1e6 * EXACT


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eca", "cbam"])
def test_the_graph_has_the_rewritten_gates(attention: AttentionKind, resnet50_graphs: Graphs) -> None:
    """In the traced graph every sigmoid follows a convolution, and CBAM's MLP ends once per block."""
    graph = resnet50_graphs(attention).graph
    made_by = {name: node for node in graph.node for name in node.output}
    sigmoids = [node for node in graph.node if node.op_type == "Sigmoid"]
    assert len(sigmoids) == 16 * (2 if attention == "cbam" else 1)
    assert {made_by[node.input[0]].op_type for node in sigmoids} == {"Conv"}
    # 53 convolutions of the backbone; per block f₁ of mean and peak, f₂ and the spatial one; or ECA's one.
    assert sum(node.op_type == "Conv" for node in graph.node) == 53 + 16 * (4 if attention == "cbam" else 1)
    means = [made_by[node.input[0]].op_type for node in graph.node if node.op_type == "ReduceMean"]
    # CBAM: of the inner tensor, and over the channels of the gated map. ECA: of the inner tensor where that has fewer
    # channels than the map has positions, which at 64 x 64 holds for the first 3 + 4 blocks.
    assert Counter(means) == ({"Relu": 16, "Mul": 16} if attention == "cbam" else {"Relu": 7, "Conv": 9})
