"""Gates on ONNX Runtime: as exact in the tails as in the middle."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mpmmu_rt.engines.onnxruntime import PROVIDER
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.export.sigmoid import exact_sigmoids
from mpmmu_rt.spec import Array


class Gated(nn.Module):
    """Pixels uint8 [N, 1, 4, 4] to [N, 16]: one, gated by σ(the pixel - 128)."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        grey = pixels.flatten(1).float() - 128
        return torch.sigmoid(grey) * torch.ones_like(grey)


class Activated(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(pixels.flatten(1).float())


def graph_of(module: nn.Module) -> onnx.ModelProto:
    return Encoders({"mammography": module, "ultrasound": module}, 4).features_graph("mammography")


def on_onnxruntime(model: onnx.ModelProto, pixels: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(model.SerializeToString(), providers=[PROVIDER]).run(
        None, {"pixels": pixels}
    )[0]
    return found


@pytest.mark.slow
def test_every_gate_has_the_precision_of_float32() -> None:
    graph = graph_of(Gated())
    exact = exact_sigmoids(graph)
    onnx.checker.check_model(exact, full_check=True)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 1, 4, 4)
    want = 1 / (1 + np.exp(128 - pixels.reshape(16, 16).astype(np.float64)))
    got = on_onnxruntime(exact, pixels)
    relative = np.abs(got - want) / want
    normal = want > np.finfo(np.float32).tiny
    assert relative[normal].max() < 5e-7
    assert got[~normal].max() < np.finfo(np.float32).tiny  # zero or subnormal, and not infinite or NaN
    assert (got >= 0).all()


class Mixed(nn.Module):
    """Gates in double, in half and in single precision, as a user's module may have them."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        grey = pixels.flatten(1).float() / 255 - 0.5
        gates = [torch.sigmoid(4 * grey.to(kind)).float() for kind in (torch.float64, torch.float16, torch.float32)]
        return gates[0] * gates[1] * gates[2]


@pytest.mark.slow
def test_a_gate_keeps_its_type() -> None:
    graph = graph_of(Mixed())
    exact = exact_sigmoids(graph)
    onnx.checker.check_model(exact, full_check=True)
    assert not [node for node in exact.graph.node if node.op_type == "Sigmoid"]
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 1, 4, 4)
    want = Mixed()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(on_onnxruntime(exact, pixels), want, rtol=2e-3)  # a half has 11 bits


@pytest.mark.slow
def test_the_given_graph_is_left_alone() -> None:
    graph = graph_of(Gated())
    before = graph.SerializeToString()
    exact_sigmoids(graph)
    assert graph.SerializeToString() == before


@pytest.mark.slow
def test_an_activation_is_no_gate() -> None:
    graph = graph_of(Activated())
    assert "Sigmoid" in {node.op_type for node in graph.graph.node}
    assert exact_sigmoids(graph).SerializeToString() == graph.SerializeToString()
