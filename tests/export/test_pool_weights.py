"""The attention pools' weights in the bundle: those of the modules, not of the graphs that were rewritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import ParityError
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.export.pool_weights import pool_weights, require_pools
from mpmmu_rt.kernels.weights import AttentionKind, PoolWeights
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.spec import MODALITIES, Array, Modality

KINDS: dict[Modality, AttentionKind] = {"mammography": "cbam", "ultrasound": "eca"}
FLOAT32 = 1e-5  # torch in float32 against the reference in float64, relative to the largest value


def pools(arrays: dict[str, Array], golden: dict[str, Array]) -> dict[Modality, PoolWeights]:
    channels = {modality: golden[f"{modality}.feature_map"].shape[1] for modality in MODALITIES}
    return {m: PoolWeights.from_arrays(KINDS[m], channels[m], arrays, f"{m}.attention.") for m in MODALITIES}


def test_they_turn_the_golden_feature_maps_into_the_golden_embedding(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    golden = bundle.golden()
    assert bundle.pool_kinds == KINDS
    found = pools(bundle.pool_arrays(), golden)
    got = np.concatenate([found[m].pool(golden[f"{m}.feature_map"]) for m in MODALITIES], axis=1)
    assert np.abs(got - golden["embedding"]).max() <= FLOAT32 * np.abs(golden["embedding"]).max()


def test_they_are_the_modules_own_and_agree_with_the_graph(bundle_folder: Path, small_model: Checkpoint) -> None:
    """In the graph CBAM's second bias is doubled: `PoolWeights` halves it, and not the one here."""
    bundle = Bundle.open(bundle_folder)
    arrays = bundle.pool_arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    for modality in MODALITIES:
        state = small_model.encoders[modality].pool.state_dict()
        assert state
        for name, tensor in state.items():
            np.testing.assert_array_equal(arrays.pop(f"{modality}.{name}"), tensor.numpy())
    assert arrays == {}
    graph = onnx.load(bundle.graph("attention_pool")).graph
    in_graph = pools({item.name: numpy_helper.to_array(item) for item in graph.initializer}, bundle.golden())
    for modality, pool in pools(bundle.pool_arrays(), bundle.golden()).items():
        for field in ("eca", "fc1", "fc1_bias", "fc2", "fc2_bias", "spatial"):
            np.testing.assert_array_equal(getattr(pool, field), getattr(in_graph[modality], field))


def test_weights_that_do_not_pool_as_the_original_does_are_refused(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    arrays, stages = bundle.pool_arrays(), bundle.golden()
    require_pools(KINDS, arrays, stages)
    name = "mammography.attention.channel.fc2.bias"
    assert np.abs(arrays[name]).max() > 0.01
    with pytest.raises(ParityError, match="weights of the attention pools give an embedding that differs"):
        require_pools(KINDS, arrays | {name: 2 * arrays[name]}, stages)


class Own(torch.nn.Module):
    """A user's own encoder, to an embedding."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((2, 3))


def encoder(**options: object) -> Encoder:
    return Encoder(EncoderConfig(arch="resnet18", width=8, **options)).eval()  # type: ignore[arg-type]


def test_a_module_without_a_pool_of_ours_has_none() -> None:
    assert pool_weights(Encoders({"mammography": Own(), "ultrasound": encoder()}, 32)) is None
    odd = encoder()
    odd.pool.attention = torch.nn.Softmax(dim=1)
    assert pool_weights(Encoders({"mammography": encoder(), "ultrasound": odd}, 32)) is None


def test_a_pool_without_attention_is_one() -> None:
    modules = {"mammography": encoder(in_pool=False), "ultrasound": encoder()}
    found = pool_weights(Encoders({modality: modules[modality] for modality in MODALITIES}, 32))
    assert found is not None
    assert found[0] == {"mammography": "none", "ultrasound": "eca"}
    assert list(found[1]) == ["ultrasound.attention.conv.weight"]
