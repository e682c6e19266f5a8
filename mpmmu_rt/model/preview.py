"""What augmentation makes of training images, as a picture to look at before hours of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mpmmu_rt.files import atomic_file
from mpmmu_rt.spec import MODALITIES

from .augmentation import Augmentation, augment
from .data import TrainingData

IMAGES, CHANGED, GAP = 4, 5, 4


def write_preview(data: TrainingData, how: Augmentation, path: Path, *, seed: int) -> None:
    """A PNG: of each modality `IMAGES` rows, the image as the model gets it and `CHANGED` changes of it."""
    side = data.preprocessing.size + GAP
    sheet = np.full((2 * IMAGES * side + GAP, (1 + CHANGED) * side + GAP), 96, np.uint8)
    generator = torch.Generator().manual_seed(seed)
    for band, modality in enumerate(MODALITIES):
        pixels = data.pixels[modality]
        chosen = np.linspace(0, len(pixels) - 1, min(IMAGES, len(pixels))).round().astype(int)
        grey = torch.from_numpy(pixels[chosen]).float() / 255
        columns = [grey, *(augment(grey, how, generator) for _ in range(CHANGED))]
        for column, images in enumerate(columns):
            for row, image in enumerate((images[:, 0] * 255).round().byte().numpy()):
                top, left = (band * IMAGES + row) * side + GAP, column * side + GAP
                sheet[top : top + side - GAP, left : left + side - GAP] = image
    with atomic_file(path) as partial:
        Image.fromarray(sheet).save(partial, format="PNG")
