"""Images of which a part is of one grey, as the ground of a mammogram is and nothing in a phantom.

There a module divides by what is about 0, or takes its logarithm, and an epsilon decides: what an engine makes of NaN,
or a graph without that epsilon, no image with texture everywhere shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpmmu_rt.spec import MODALITIES, Array

from .cases import Data, Pixels

_GREYS = (0, 255, 128)


@dataclass(frozen=True)
class Flat:
    """Pixels uint8 [N, 1, S, S] per modality, and what the original says of them: float32 [N, D]."""

    pixels: Pixels
    embedding: Array


def flattened(cases: Data) -> Data:
    """Of the first of `cases`, twice for each grey: a third of the image is of it, and all but the middle."""
    count, size = len(cases.pixels["mammography"]), cases.pixels["mammography"].shape[-1]
    rows = np.arange(2 * len(_GREYS)) % count
    third, middle = max(1, size // 3), slice(size // 3, max(size // 3 + 1, 2 * size // 3))
    found = {modality: cases.pixels[modality][rows] for modality in MODALITIES}
    for images in found.values():
        for at, grey in enumerate(_GREYS):
            images[2 * at, :, :, :third] = grey
            kept = images[2 * at + 1, :, middle, middle].copy()
            images[2 * at + 1] = grey
            images[2 * at + 1, :, middle, middle] = kept
    return Data(found, None, f"{len(rows)} images with a part of one grey")
