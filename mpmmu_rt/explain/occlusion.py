"""Occlusion: a window of one image is covered, and the change of the probability is credited to what was covered.

Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks" (arXiv 1311.2901, section 4.2). It asks
the deployed model alone and needs no gradient, so that it is the same for every target, INT8 included. What it can't
see: evidence that stands in two places, of which either is enough (`shapley` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import Array, Modality

WINDOWS = 7  # to a side of the model's square; each is moved by half of itself
BATCH = 32


@dataclass(frozen=True)
class Box:
    """Where an image lies in the model's square, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def windows(size: int, box: Box) -> Iterator[tuple[slice, slice]]:
    """Windows of a square of `size` that cover some of `box`, clipped to it: padding is no part of the image."""
    side = max(1, round(size / WINDOWS))
    stride = max(1, side // 2)
    rows, columns = box.slices
    for top in range(rows.start - side + stride, rows.stop, stride):
        for left in range(columns.start - side + stride, columns.stop, stride):
            y = slice(max(top, rows.start), min(top + side, rows.stop))
            x = slice(max(left, columns.start), min(left + side, columns.stop))
            if y.start < y.stop and x.start < x.stop:
                yield y, x


def occlusion(
    predictor: Predictor,
    pixels: Mapping[Modality, Array],
    modality: Modality,
    box: Box,
    progress: Progress = silent,
    *,
    before: float | None = None,
) -> Array:
    """float32 [S, S]: by how much the probability falls, on average, when a window over that pixel of `modality` is
    covered with the image's median grey; positive speaks for malignant, negative for benign; 0 outside of `box`.

    pixels: of one case, uint8 [1, 1, S, S] each. before: its probability, where it is known. Raises what
    `Predictor.predict` raises.
    """
    image = pixels[modality][0, 0]
    size = image.shape[-1]
    places = list(windows(size, box))
    fill = np.uint8(np.median(image[box.slices]))
    if before is None:
        before = float(predictor.predict(pixels).probability[0])
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for start in range(0, len(places), BATCH):
        part = places[start : start + BATCH]
        asked: dict[Modality, Array] = {name: np.repeat(array, len(part), 0) for name, array in pixels.items()}
        for row, place in enumerate(part):
            asked[modality][(row, 0, *place)] = fill
        for place, after in zip(part, predictor.predict(asked).probability, strict=True):
            total[place] += before - float(after)
            count[place] += 1
        progress(f"covering the {modality} image", min(start + BATCH, len(places)), len(places), "windows")
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0).astype(np.float32)
