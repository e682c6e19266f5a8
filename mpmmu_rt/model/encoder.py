"""Attention ResNets whose parameters carry torchvision's names.

The residual blocks are those of arXiv 1512.03385 with the stride on the 3 × 3 convolution ("v1.5"), as in
torchvision, and attention on the residual branch before the addition (arXiv 1910.03151, figure 2; arXiv
1807.06521, figure 3). The stem takes one grey channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpmmu_rt.errors import CheckpointError

from .attention import AttentionPool, attention
from .config import AttentionKind, EncoderConfig

_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, kind: AttentionKind) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.attention = attention(kind, planes)
        self.downsample = _downsample(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        return torch.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, kind: AttentionKind) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.attention = attention(kind, outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        return torch.relu(out + self.downsample(x))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Encoder(nn.Module):
    """Pixels uint8 [N, 1, S, S] to a feature map [N, C, S/32, S/32] and, pooled, to an embedding [N, C].

    `fc` is the classifier of training's first stage; the deployed model ends at the embedding.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        block = Bottleneck if config.arch == "resnet50" else BasicBlock
        kind = config.attention if config.in_blocks else "none"
        self.conv1 = nn.Conv2d(1, config.width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = config.width
        for number, depth in enumerate(_DEPTHS[config.arch]):
            planes = config.width * 2**number
            layer = nn.Sequential()
            for index in range(depth):
                layer.append(block(channels, planes, 2 if number > 0 and index == 0 else 1, kind))
                channels = planes * block.expansion
            self.add_module(f"layer{number + 1}", layer)
        self.channels = channels
        self.pool = AttentionPool(config.attention if config.in_pool else "none", channels)
        self.fc = nn.Linear(channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [N, 1, S, S] to the last feature map float32 [N, C, h, w]."""
        return self.features_of_grey(pixels.to(torch.float32) / 255.0)

    def features_of_grey(self, grey: Tensor) -> Tensor:
        """Grey float32 [N, 1, S, S] in 0..1 (augmented training images) to the last feature map."""
        x: Tensor = (grey - self.config.mean) / self.config.std
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [N, 1, S, S] to the embedding float32 [N, C]."""
        embedding: Tensor = self.pool(self.features(pixels))
        return embedding

    def logit(self, grey: Tensor) -> Tensor:
        """Grey float32 [N, 1, S, S] in 0..1 to the first stage's logit [N]; for training only."""
        out: Tensor = self.fc(self.pool(self.features_of_grey(grey)))
        return out.squeeze(1)


@dataclass(frozen=True)
class LoadReport:
    """What became of every key when a backbone's state dict was loaded."""

    loaded: tuple[str, ...]
    summed_to_grey: tuple[str, ...]
    skipped: tuple[str, ...]  # in the file, of no use here: the 1000-class classifier
    fresh: tuple[str, ...]  # not in the file: attention gates and our classifier keep their initial values

    def __str__(self) -> str:
        rows = (
            ("loaded", self.loaded),
            ("summed to grey", self.summed_to_grey),
            ("skipped", self.skipped),
            ("fresh", self.fresh),
        )
        return "\n".join(f"{verb}: {len(keys)} ({', '.join(keys) or '-'})" for verb, keys in rows)


def load_backbone(encoder: Encoder, state: Mapping[str, Tensor]) -> LoadReport:
    """Load a torchvision ResNet state dict into `encoder` and say, key by key, what was done with it.

    An RGB stem [64, 3, 7, 7] is summed over its colours, which is exact for a grey image shown as three
    equal channels. Raises `CheckpointError` when a backbone key is missing, unknown, of another shape or without
    finite numbers: a network that is half random must not pass for a pretrained one.
    """
    own = encoder.state_dict()
    summed = [key for key in state if key == "conv1.weight" and state[key].shape[1:2] == (3,)]
    skipped = [key for key in state if key.startswith("fc.")]
    usable = {key: value for key, value in state.items() if key not in skipped}
    useless = {key: what for key, value in usable.items() if (what := _no_weights(key, value))}
    usable |= {key: state[key].float().sum(1, keepdim=True) for key in summed if key not in useless}
    fresh = [key for key in own if key not in usable]
    wrong = [f"{key} is new" for key in usable if key not in own]
    wrong += [f"{key} is missing" for key in fresh if "attention" not in key and not key.startswith("fc.")]
    wrong += [f"{key} holds {what}" for key, what in useless.items()]
    wrong += [
        f"{key} is {list(value.shape)}, expected {list(own[key].shape)}"
        for key, value in usable.items()
        if key in own and key not in useless and value.shape != own[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"the state dict does not fit {encoder.config.arch}: {'; '.join(wrong[:3])} ({len(wrong)} keys in all)",
            hint=_fitting(encoder.config),
        )
    encoder.load_state_dict(own | usable)
    return LoadReport(tuple(key for key in usable if key not in summed), tuple(summed), tuple(skipped), tuple(fresh))


def _no_weights(key: str, value: Tensor) -> str:
    """What a tensor holds that no training can start from; "" for weights. BatchNorm counts its batches in integers."""
    if value.is_meta:
        return "no numbers"
    if key.endswith("num_batches_tracked"):
        return ""
    if not value.is_floating_point() or value.layout is not torch.strided:
        return f"{value.dtype}, {value.layout}".replace("torch.", "")
    # In the encoder's own type: 1e300 is none there, and of 8 bits torch can't tell.
    return "" if value.float().isfinite().all() else "numbers that are not finite"


def _fitting(config: EncoderConfig) -> str:
    if config.width == 64:
        return f"load the weights of torchvision's {config.arch} at width 64"
    return (
        f"torchvision's {config.arch} has width 64, this one {config.width}: pass --preset reference "
        f"--arch {config.arch}, or leave --weights out"
    )
