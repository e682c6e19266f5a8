"""Encoders rewritten for inference: equal in real arithmetic, cheaper on every engine.

`batch_norms`   are folded into the convolutions before them.
`one_mlp`       CBAM's shared MLP f₂(relu f₁(·)) is applied to the mean and to the peak, and both results are added
                (arXiv 1807.06521, equation 2). f₂ is affine, so it may be applied once, to the sum, with its bias
                twice: f₂(a) + f₂(b) = W₂(a + b) + 2b₂. The sigmoid then follows a convolution directly, and engines
                compute it once per channel as part of that convolution. Behind an addition, OpenVINO fuses it into the
                product with the feature map instead and computes it again at every one of its h · w positions.
`inner_mean`    Global average pooling commutes with a bottleneck's last 1 × 1 convolution and batch norm:
                mean(W x + b) = W mean(x) + b. The gate's mean is taken of the inner tensor x, which has four times
                fewer channels, and W is multiplied into the gate's own first layer.

What each saves is measured by `benchmarks/cpu/targets.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mpmmu_rt.model.attention import CBAM, ECA
from mpmmu_rt.model.encoder import BasicBlock, Bottleneck, Encoder

Rewrite = Literal["batch_norms", "one_mlp", "inner_mean"]
REWRITES: tuple[Rewrite, ...] = get_args(Rewrite)


def rewrite(encoder: Encoder, rewrites: Collection[Rewrite] = REWRITES) -> Encoder:
    """A copy of `encoder`, in evaluation mode, that computes the same and is cheaper to run.

    `inner_mean` needs the folded weights, and for CBAM the single MLP: without `batch_norms` it has no effect, nor
    without `one_mlp` on CBAM.
    """
    out = copy.deepcopy(encoder).eval()
    if "batch_norms" in rewrites:
        out.conv1 = fuse_conv_bn_eval(out.conv1, out.bn1)
        out.add_module("bn1", nn.Identity())
    for number in range(1, 5):
        layer = cast("nn.Sequential", out.get_submodule(f"layer{number}"))
        for index, block in enumerate(layer):
            layer[index] = _block(cast("BasicBlock | Bottleneck", block), rewrites)
    out.pool.attention = _gate(out.pool.attention, rewrites)
    return out


def _block(block: BasicBlock | Bottleneck, rewrites: Collection[Rewrite]) -> nn.Module:
    block.attention = _gate(block.attention, rewrites)
    if "batch_norms" not in rewrites:
        return block
    for number in range(1, 4 if isinstance(block, Bottleneck) else 3):
        conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
        setattr(block, f"bn{number}", nn.Identity())
    if isinstance(block.downsample, nn.Sequential):
        conv, norm = cast("nn.Conv2d", block.downsample[0]), cast("nn.BatchNorm2d", block.downsample[1])
        block.downsample = fuse_conv_bn_eval(conv, norm)
    if "inner_mean" in rewrites and isinstance(block, Bottleneck):
        if isinstance(block.attention, ECA):
            return InnerMeanBottleneck(block, InnerMeanECA(block.attention, block.conv3))
        if isinstance(block.attention, OneMlpCBAM):
            return InnerMeanBottleneck(block, InnerMeanCBAM(block.attention, block.conv3))
    return block


def _gate(gate: nn.Module, rewrites: Collection[Rewrite]) -> nn.Module:
    return OneMlpCBAM(gate) if "one_mlp" in rewrites and isinstance(gate, CBAM) else gate


class OneMlpCBAM(nn.Module):
    """CBAM whose channel MLP ends in one convolution for both descriptors. See `one_mlp` above."""

    def __init__(self, gate: CBAM) -> None:
        super().__init__()
        self.fc1 = gate.channel.fc1
        self.fc2 = copy.deepcopy(gate.channel.fc2)
        with torch.no_grad():
            cast("Tensor", self.fc2.bias).mul_(2)
        self.spatial = gate.spatial

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.gated(feature_map, self.fc1(feature_map.mean((2, 3), keepdim=True)))

    def gated(self, feature_map: Tensor, mean: Tensor) -> Tensor:
        """The gated feature map; `mean` float32 [N, C / r, 1, 1] is f₁ of the channel means."""
        peak = self.fc1(feature_map.amax((2, 3), keepdim=True))
        channel = torch.sigmoid(self.fc2(torch.relu(mean) + torch.relu(peak)))
        feature_map = feature_map * channel
        out: Tensor = feature_map * self.spatial(feature_map)
        return out


class InnerMeanCBAM(nn.Module):
    """`OneMlpCBAM` that takes the channel means from the tensor before the block's last convolution."""

    def __init__(self, gate: OneMlpCBAM, last: nn.Conv2d) -> None:
        super().__init__()
        self.gate = gate
        bias = cast("Tensor", gate.fc1.bias)
        self.inner_fc1 = _after(gate.fc1.weight[:, :, 0, 0], last, bias)

    def forward(self, inner: Tensor, feature_map: Tensor) -> Tensor:
        return self.gate.gated(feature_map, self.inner_fc1(inner.mean((2, 3), keepdim=True)))


class InnerMeanECA(nn.Module):
    """ECA that takes the channel means from the tensor before the block's last convolution.

    The convolution across channels is a banded matrix, which is multiplied with W into one 1 × 1 convolution of
    C² / 4 weights. It pays where these are fewer than the values of the feature map, C · h · w; elsewhere ECA is kept.
    """

    def __init__(self, gate: ECA, last: nn.Conv2d) -> None:
        super().__init__()
        self.gate = gate
        self.inner = _after(_banded(gate.conv.weight[0, 0], last.out_channels), last)

    def forward(self, inner: Tensor, feature_map: Tensor) -> Tensor:
        if inner.shape[1] >= inner.shape[2] * inner.shape[3]:
            kept: Tensor = self.gate(feature_map)
            return kept
        return feature_map * torch.sigmoid(self.inner(inner.mean((2, 3), keepdim=True)))


class InnerMeanBottleneck(nn.Module):
    """A bottleneck whose gate sees the input of the last convolution as well as its output."""

    def __init__(self, block: Bottleneck, gate: InnerMeanECA | InnerMeanCBAM) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = block.conv1, block.conv2, block.conv3
        self.attention = gate
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        gated: Tensor = self.attention(inner, self.conv3(inner))
        return torch.relu(gated + self.downsample(x))


def _after(matrix: Tensor, conv: nn.Conv2d, bias: Tensor | None = None) -> nn.Conv2d:
    """`matrix` [M, C] (and `bias` [M]) after the 1 × 1 convolution `conv` [C, K], as one 1 × 1 convolution [M, K].

    Multiplied in float64, so that the product is rounded once.
    """
    weight = matrix.double() @ conv.weight[:, :, 0, 0].double()
    offset = matrix.double() @ cast("Tensor", conv.bias).double() + (0 if bias is None else bias.double())
    out = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    out.weight = nn.Parameter(weight[:, :, None, None].to(conv.weight), requires_grad=False)
    out.bias = nn.Parameter(offset.to(conv.weight), requires_grad=False)
    return out


def _banded(kernel: Tensor, size: int) -> Tensor:
    """The matrix [size, size] of a zero-padded convolution with an odd `kernel`: kernel[j] at (c, c + j - k // 2)."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for j, value in enumerate(kernel.double()):
        offset = j - kernel.numel() // 2
        matrix += torch.diag(value.expand(max(0, size - abs(offset))), offset)
    return matrix
