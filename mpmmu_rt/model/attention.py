"""Attention gates for feature maps, and the attention pool that ends an encoder.

Every gate maps a feature map [N, C, h, w] to one of the same shape. Only operators that TensorRT, OpenVINO
and ONNX Runtime all have are used, and the channel MLP is written as 1 × 1 convolutions: an FP32 GEMM can't
be built for compute capability 7.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import AttentionKind


def eca_kernel_size(channels: int, gamma: int = 2, b: int = 1) -> int:
    """k = |log2(C) / γ + b / γ| to the nearest odd number (arXiv 1910.03151, equation 12)."""
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


class ECA(nn.Module):
    """Efficient channel attention: a 1-D convolution across the channel means (arXiv 1910.03151, section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_kernel_size(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        mean = feature_map.mean((2, 3)).unsqueeze(1)  # [N, 1, C]
        gate = torch.sigmoid(self.conv(mean))
        return feature_map * gate.transpose(1, 2).unsqueeze(3)


class ChannelGate(nn.Module):
    """σ(MLP(mean) + MLP(max)) with one shared MLP (arXiv 1807.06521, equation 2)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        mean = feature_map.mean((2, 3), keepdim=True)
        peak = feature_map.amax((2, 3), keepdim=True)
        return torch.sigmoid(self._mlp(mean) + self._mlp(peak))  # [N, C, 1, 1]

    def _mlp(self, descriptor: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.fc1(descriptor)))
        return out


class SpatialGate(nn.Module):
    """σ(f⁷ˣ⁷([mean over C; max over C])) (arXiv 1807.06521, equation 3)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        mean = feature_map.mean(1, keepdim=True)
        peak = feature_map.amax(1, keepdim=True)
        return torch.sigmoid(self.conv(torch.cat([mean, peak], 1)))  # [N, 1, h, w]


class CBAM(nn.Module):
    """Channel gate, then spatial gate (arXiv 1807.06521, equation 1)."""

    def __init__(self, channels: int, reduction: int = 16, size: int = 7) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction)
        self.spatial = SpatialGate(size)

    def forward(self, feature_map: Tensor) -> Tensor:
        feature_map = feature_map * self.channel(feature_map)
        gated: Tensor = feature_map * self.spatial(feature_map)
        return gated


def attention(kind: AttentionKind, channels: int) -> nn.Module:
    """The gate of that kind for `channels` channels; `none` passes the feature map through."""
    if kind == "eca":
        return ECA(channels)
    if kind == "cbam":
        return CBAM(channels)
    return nn.Identity()


class AttentionPool(nn.Module):
    """Attention on the last feature map, then global average pooling: [N, C, h, w] to [N, C]."""

    def __init__(self, kind: AttentionKind, channels: int) -> None:
        super().__init__()
        self.attention = attention(kind, channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        pooled: Tensor = self.attention(feature_map).mean((2, 3))
        return pooled
