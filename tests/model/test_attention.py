"""The torch gates against the papers' formulas in float64 (mpmmu_rt.kernels.reference), on odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mpmmu_rt.kernels import reference
from mpmmu_rt.model.attention import CBAM, ECA, AttentionPool, attention, eca_kernel_size
from mpmmu_rt.spec import Array

# FP32 sums of up to some thousand terms, relative to outputs of order 1.
TOLERANCE = 2e-6
SHAPES = [(1, 16, 1, 1), (2, 32, 7, 7), (3, 48, 5, 3), (1, 17, 2, 9), (2, 512, 4, 4)]


def feature_map(shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Non-uniform, of both signs, seeded by its shape."""
    return np.random.default_rng(sum(shape)).normal(0.3, scale, shape)


def as_float64(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


def eca_reference(gate: ECA, values: Array) -> Array:
    return reference.eca(values, as_float64(gate.conv.weight)[0, 0])


def cbam_reference(gate: CBAM, values: Array) -> Array:
    fc1, fc2 = gate.channel.fc1, gate.channel.fc2
    assert fc1.bias is not None
    assert fc2.bias is not None
    return reference.cbam(
        values,
        as_float64(fc1.weight)[:, :, 0, 0],
        as_float64(fc1.bias),
        as_float64(fc2.weight)[:, :, 0, 0],
        as_float64(fc2.bias),
        as_float64(gate.spatial.conv.weight)[0],
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])  # 50: gates saturate
@pytest.mark.parametrize("shape", SHAPES)
def test_eca_is_the_formula(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    gate, values = ECA(shape[1]), feature_map(shape, scale)
    got = as_float64(gate(torch.from_numpy(values).float()))
    np.testing.assert_allclose(got, eca_reference(gate, values), rtol=0, atol=TOLERANCE * np.abs(values).max())
    assert np.abs(got - values).max() > 1e-3 * scale  # it gates at all


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_cbam_is_the_formula(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(1)
    gate, values = CBAM(shape[1]), feature_map(shape, scale)
    got = as_float64(gate(torch.from_numpy(values).float()))
    # FP32 logits of the gates grow with the scale, and with them their rounding.
    tolerance = TOLERANCE * np.abs(values).max() * max(1.0, scale)
    np.testing.assert_allclose(got, cbam_reference(gate, values), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_pool_is_attention_then_the_mean(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    pool, values = AttentionPool("cbam", shape[1]), feature_map(shape)
    assert isinstance(pool.attention, CBAM)
    want = reference.average_pool(cbam_reference(pool.attention, values))
    np.testing.assert_allclose(as_float64(pool(torch.from_numpy(values).float())), want, rtol=0, atol=4 * TOLERANCE)


def test_none_passes_through() -> None:
    values = torch.from_numpy(feature_map((2, 8, 3, 3)))
    assert attention("none", 8)(values) is values


def test_nan_stays_nan() -> None:
    values = torch.from_numpy(feature_map((1, 16, 3, 3))).float()
    values[0, 5, 1, 1] = float("nan")
    for kind in ("eca", "cbam"):
        assert torch.isnan(AttentionPool(kind, 16)(values)).any()


@pytest.mark.parametrize(
    ("channels", "size"),
    [(16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_eca_kernel_size_is_the_papers(channels: int, size: int) -> None:
    """ψ(C) = |log2(C)/2 + 1/2|, made odd as in the authors' code: 64 → 3, 128 → 5, 2048 → 7."""
    assert eca_kernel_size(channels) == size


def test_references_disagree_with_a_shifted_kernel() -> None:
    """The oracle itself notices a kernel that is off by one channel: it is no tautology."""
    values = feature_map((2, 16, 3, 3))
    kernel = np.array([0.1, 0.7, -0.4])
    assert np.abs(reference.eca(values, kernel) - reference.eca(values, np.roll(kernel, 1))).max() > 1e-2


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        got = reference.sigmoid(np.array([-700.0, -1.0, 0.0, 1.0, 700.0]))
    np.testing.assert_allclose(got, [0.0, 0.2689414213699951, 0.5, 0.7310585786300049, 1.0], atol=1e-15)
