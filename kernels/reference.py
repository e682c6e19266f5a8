"""Attention pooling in float64 NumPy, written from the papers' formulas and sharing no code with the model.

Plain sums over explicit indices: slow, and easy to read next to the papers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Float = np.ndarray[Any, np.dtype[np.float64]]


def sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x)), without overflow for large |x|."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def eca(feature_map: Float, kernel: Float) -> Float:
    """Efficient channel attention (arXiv 1910.03151, equations 9 and 10).

    feature_map: float64 [N, C, h, w]; kernel: float64 [k], k odd. Channel c is weighed by
    σ(Σ_j kernel[j] · y[c + j - k // 2]), where y are the channel means and y outside of 0..C-1 is 0.
    """
    means = feature_map.mean(axis=(2, 3))
    cases, channels = means.shape
    reach = kernel.size // 2
    gate = np.zeros((cases, channels))
    for c in range(channels):
        for j in range(kernel.size):
            if 0 <= c + j - reach < channels:
                gate[:, c] += kernel[j] * means[:, c + j - reach]
    return feature_map * sigmoid(gate)[:, :, None, None]


def cbam(
    feature_map: Float,
    weight1: Float,
    bias1: Float,
    weight2: Float,
    bias2: Float,
    spatial: Float,
) -> Float:
    """Convolutional block attention (arXiv 1807.06521, equations 1 to 3).

    feature_map: float64 [N, C, h, w]; weight1 [C/r, C], bias1 [C/r], weight2 [C, C/r], bias2 [C]: the shared
    MLP; spatial: float64 [2, k, k], the convolution over (mean over channels, max over channels), k odd.
    """

    def mlp(descriptor: Float) -> Float:
        hidden = np.maximum(descriptor @ weight1.T + bias1, 0.0)
        out: Float = hidden @ weight2.T + bias2
        return out

    channel_gate = sigmoid(mlp(feature_map.mean(axis=(2, 3))) + mlp(feature_map.max(axis=(2, 3))))
    gated = feature_map * channel_gate[:, :, None, None]
    maps = np.stack([gated.mean(axis=1), gated.max(axis=1)], axis=1)  # [N, 2, h, w]
    return gated * sigmoid(convolve(maps, spatial))[:, None]


def convolve(maps: Float, kernel: Float) -> Float:
    """[N, M, h, w] by [M, k, k], k odd, with zeros outside: [N, h, w]."""
    size, (height, width) = kernel.shape[1], maps.shape[2:]
    padded = np.pad(maps, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    found = np.zeros((maps.shape[0], height, width))
    for y in range(height):
        for x in range(width):
            found[:, y, x] = (padded[:, :, y : y + size, x : x + size] * kernel).sum(axis=(1, 2, 3))
    return found


def average_pool(feature_map: Float) -> Float:
    """Global average pooling: [N, C, h, w] to [N, C]."""
    pooled: Float = feature_map.mean(axis=(2, 3))
    return pooled
