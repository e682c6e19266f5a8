"""Random changes to training images that don't change what they show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How far an image may be changed; zero everywhere for not at all.

    No vertical flip: depth has a direction in ultrasound, and shadows fall downwards.
    """

    flip: bool = True  # left and right
    rotation: float = 10.0  # degrees, either way
    scale: float = 0.1  # 0.1: from 0.9 to 1.1
    shift: float = 0.06  # of the image's side, either way
    brightness: float = 0.08  # of the grey range, either way
    contrast: float = 0.15  # 0.15: from 0.85 to 1.15


def augment(grey: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image of grey float32 [N, 1, S, S] in 0..1 by its own random amount; the same shape and range.

    All randomness comes from `generator`, on the CPU whatever the device of `grey`, and the number of draws
    depends on N alone.
    """
    count = len(grey)
    draws = 2 * torch.rand(7, count, generator=generator) - 1  # -1..1
    mirror = torch.where(draws[0] < 0, -1.0, 1.0) if how.flip else torch.ones(count)
    turn = draws[1] * math.radians(how.rotation)
    size = 1 + draws[2] * how.scale
    cos, sin = size * torch.cos(turn), size * torch.sin(turn)
    # affine_grid maps output to input coordinates, which run from -1 to 1: a side is 2 long.
    rows = [cos * mirror, -sin, 2 * how.shift * draws[3], sin * mirror, cos, 2 * how.shift * draws[4]]
    theta = torch.stack(rows, 1).reshape(count, 2, 3).to(grey.device)
    grid = functional.affine_grid(theta, list(grey.shape), align_corners=False)
    moved = functional.grid_sample(grey, grid, padding_mode="zeros", align_corners=False)
    gain = (1 + draws[5] * how.contrast).reshape(-1, 1, 1, 1).to(grey.device)
    offset = (draws[6] * how.brightness).reshape(-1, 1, 1, 1).to(grey.device)
    return (gain * moved + offset).clamp(0, 1)
