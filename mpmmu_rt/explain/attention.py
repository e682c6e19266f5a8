"""The gates of the attention pool: how much of each channel, and of each place, reaches the embedding.

Of the feature maps that the target itself computes; the gates are computed in float64 from the bundle's own weights
(CBAM: arXiv 1807.06521, equations 2 and 3; ECA: arXiv 1910.03151, equation 9). Gates of the blocks before it: `blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.spec import MODALITIES, Array, Modality

if TYPE_CHECKING:
    from mpmmu_rt.kernels.weights import PoolWeights


@dataclass(frozen=True)
class Gates:
    """Of N cases: channel float64 [N, C] in 0..1; spatial float64 [N, h, w] in 0..1, None where the kind has none."""

    kind: str
    channel: Array
    spatial: Array | None


def gates(bundle: Bundle, feature_maps: Mapping[Modality, Array]) -> dict[Modality, Gates]:
    """Of each modality whose pool has attention; {} for modules of the user's own, whose pools are not known.

    feature_maps: float32 [N, C, h, w], of `Predictor.feature_maps`.
    """
    kinds = bundle.pool_kinds
    if kinds is None:
        return {}
    from mpmmu_rt.kernels.weights import PoolWeights

    arrays = bundle.pool_arrays()
    found: dict[Modality, Gates] = {}
    for modality in MODALITIES:
        kind, x = kinds[modality], feature_maps[modality].astype(np.float64)
        if kind == "cbam":
            weights = PoolWeights.from_arrays("cbam", x.shape[1], arrays, f"{modality}.attention.")
            found[modality] = Gates(kind, *_cbam(x, weights))
        elif kind == "eca":
            weights = PoolWeights.from_arrays("eca", x.shape[1], arrays, f"{modality}.attention.")
            found[modality] = Gates(kind, _eca(x, weights.eca), None)
    return found


def _eca(x: Array, kernel: Array) -> Array:
    from mpmmu_rt.kernels.reference import sigmoid

    means = np.pad(x.mean((2, 3)), ((0, 0), (kernel.size // 2, kernel.size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(means, kernel.size, axis=1)
    return sigmoid(windows @ kernel.astype(np.float64))


def _cbam(x: Array, weights: PoolWeights) -> tuple[Array, Array]:
    from mpmmu_rt.kernels.reference import convolve, sigmoid

    def mlp(descriptor: Array) -> Array:
        out: Array = np.maximum(descriptor @ weights.fc1.T + weights.fc1_bias, 0.0) @ weights.fc2.T + weights.fc2_bias
        return out

    channel = sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))
    gated = x * channel[:, :, None, None]
    maps = np.stack([gated.mean(1), gated.max(1)], 1)
    return channel, sigmoid(convolve(maps, weights.spatial.astype(np.float64)))
