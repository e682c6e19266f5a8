"""Pool weights against the torch original and the exported graph, and the reference that they define."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import UsageError
from mpmmu_rt.kernels.attention_pool import MODALITY, PROBLEM, Pool, kernel_weights, problem
from mpmmu_rt.kernels.check import SMALL
from mpmmu_rt.kernels.plan import Device, blocks, choose
from mpmmu_rt.kernels.weights import AttentionKind, PoolWeights
from mpmmu_rt.model.attention import AttentionPool
from mpmmu_rt.spec import MODALITIES

FLOAT32 = 1e-5  # torch in float32 against the reference in float64, relative to the largest value


@pytest.mark.parametrize("kind", ["eca", "cbam", "none"])
def test_of_a_torch_pool(kind: AttentionKind) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(kind, 48)
    arrays = {name: tensor.numpy() for name, tensor in pool.state_dict().items()}
    weights = PoolWeights.from_arrays(kind, 48, arrays, "attention.")
    x = torch.randn(3, 48, 5, 4)
    with torch.no_grad():
        want = pool(x).numpy()
    got = weights.pool(x.numpy())
    assert got.dtype == np.float64
    assert np.abs(got - want).max() <= FLOAT32 * np.abs(want).max()


def test_of_a_bundle(bundle_folder: Path) -> None:
    """The initialisers of `attention_pool.onnx` give the embedding that the bundle's golden vectors hold."""
    golden = Bundle.open(bundle_folder).golden()
    graph = onnx.load(bundle_folder / "onnx" / "attention_pool.onnx").graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    embedding = []
    kinds: tuple[AttentionKind, ...] = ("cbam", "eca")
    for modality, kind in zip(MODALITIES, kinds, strict=True):
        x = golden[f"{modality}.feature_map"]
        weights = PoolWeights.from_arrays(kind, x.shape[1], arrays, f"{modality}.attention.")
        embedding.append(weights.pool(x))
    want = golden["embedding"]
    assert np.abs(np.concatenate(embedding, axis=1) - want).max() <= FLOAT32 * np.abs(want).max()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    pool = AttentionPool("cbam", 32)
    arrays = {name: tensor.numpy() for name, tensor in pool.state_dict().items()}
    with pytest.raises(UsageError, match=r"expected \[\] for none"):
        PoolWeights.from_arrays("none", 32, arrays, "attention.")
    with pytest.raises(UsageError, match=r"expected \['conv.weight'\] for eca"):
        PoolWeights.from_arrays("eca", 32, arrays, "attention.")
    with pytest.raises(UsageError, match=r"`fc1` of cbam is float32\[2, 32\], expected float32\[2, 33\]"):
        PoolWeights.from_arrays("cbam", 33, arrays, "attention.")
    with pytest.raises(UsageError, match=r"kernel size 4 .* expected an odd size"):
        PoolWeights.from_arrays("eca", 32, {"attention.conv.weight": np.ones((1, 1, 4))}, "attention.")


def test_the_struct_is_what_the_kernel_expects() -> None:
    """Eleven addresses and 13 numbers for each modality, beside them two and six; `run.cpp` checks the size too."""
    assert MODALITY.itemsize == 11 * 8 + 14 * 4  # the last fills up
    assert PROBLEM.itemsize == 2 * MODALITY.itemsize + 2 * 8 + 6 * 4
    pools = SMALL[0].pools()
    device = Device((9, 0), 64, 1 << 20, 1 << 21, 1 << 25)
    strategy = choose((pools[0].branch, pools[1].branch), 3, "float32", False, device)
    record = problem(pools, strategy, 3)[0]
    assert (record["cases"], record["columns"]) == (3, 64)
    assert record["modality"]["column"].tolist() == [0, 24]
    assert record["modality"]["kind"].tolist() == [2, 1]
    assert record["modality"]["slice"].tolist() == [layout.slice for layout in strategy.layouts]
    counts = blocks(strategy.layouts[0], pools[0].branch, 3, strategy.threads)
    assert record["first"].tolist() == list(counts)


def test_matrices_are_transposed_and_padded() -> None:
    weights = SMALL[1].pools()[0].weights
    arrays = kernel_weights(weights)
    assert arrays["fc1"].shape == (13, 4)
    assert (arrays["fc1"][:, :3] == weights.fc1.T).all()
    assert not arrays["fc1"][:, 3].any()
    assert arrays["fc2"].shape == (3, 16)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in arrays.values())
    assert set(kernel_weights(Pool(SMALL[3].pools()[0].weights, 1, 1).weights)) == set()
