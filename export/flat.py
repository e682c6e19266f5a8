"""Images of which a part is of one grey, as the ground of a mammogram is and nothing in a phantom; and blank ones.

There a module divides by what is about 0, or takes its logarithm, and an epsilon decides: what an engine makes of NaN,
or a graph without that epsilon, no image with texture everywhere shows.

Of a blank image a module may have no number. Then no target may have one: OpenVINO's Relu says 0 of NaN, and so do
maxima of ONNX Runtime, and a probability comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from mpmmu_rt.spec import MODALITIES, Array, Modality

from .cases import Data, Pixels

_GREYS = (0, 255, 128)
_BLANK = (0, 255)  # of another grey, rounding may decide whether a spread is 0, in torch as well


@dataclass(frozen=True)
class Flat:
    """Pixels uint8 [N, 1, S, S] per modality, and what the original says of them: float32 [N, D].

    blank: uint8 [M, 1, S, S], one of each case blank; unanswered: for which of its rows the original has no number.
    """

    pixels: Pixels
    embedding: Array
    blank: Mapping[Modality, Array] = field(default_factory=dict)
    unanswered: frozenset[int] = frozenset()


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


def blanks(cases: Data) -> Data:
    """The first of `cases` again and again, with one of its images black or white."""
    ways = tuple(product(MODALITIES, _BLANK))
    found = {modality: np.repeat(cases.pixels[modality][:1], len(ways), 0) for modality in MODALITIES}
    for row, (modality, grey) in enumerate(ways):
        found[modality][row] = grey
    return Data(found, None, f"{len(ways)} cases with a blank image")
