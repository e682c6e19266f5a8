"""Is an image unlike those that the model has learnt from? A network answers of any pixels, and as surely as of others.

Of each of the eight figures of an image (`image_figures`) it is known between what values nearly all training images
lie (`mpmmu_rt.model.modality_fit`); an image is strange where one of its own lies far outside. That finds images that
are inverted, saturated, cropped, scrambled or of another kind; one that is mirrored, or of another woman, looks like
all others here. It is a warning and no refusal: what it was fitted on decides what it knows (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .image_figures import FIGURES, listed, to_list
from .spec import MODALITIES, Array, Modality

UNLIKE = "unlike the images that the model has learnt from"
_NAMES = {
    "black": "its share of black pixels",
    "bright": "its share of bright pixels",
    "mean": "its mean grey",
    "deviation": "its contrast",
    "fine": "the fineness of its texture",
    "vertical": "its vertical against its horizontal texture",
    "fading": "how it fades from top to bottom",
    "lopsided": "the difference of its left and right",
}


@dataclass(frozen=True)
class LearntRange:
    """Of one modality. lowest, highest: float64 [8], between which nearly all training images lie. margin: float64 [8],
    by how much an image may lie outside."""

    lowest: Array
    highest: Array
    margin: Array

    def outside(self, figures: Array) -> Array:
        """float64 [N, 8] of figures [N, 8]: by how many margins each lies beyond what is allowed; 0 or less: it does
        not."""
        beyond = np.maximum(self.lowest - figures, figures - self.highest)
        return np.asarray(beyond / self.margin - 1)

    def strange(self, figures: Array) -> Array:
        """bool [N] of figures [N, 8]."""
        return np.asarray((self.outside(figures) > 0).any(1))

    def against(self, figures: Array) -> str:
        """What is to be said against the image of figures float64 [8]; "" if nothing."""
        outside = self.outside(figures[None])[0]
        if not (outside > 0).any():
            return ""
        worst, others = int(outside.argmax()), int((outside > 0).sum()) - 1
        is_, low, high = (_shown(array[worst]) for array in (figures, self.lowest, self.highest))
        more = f" (and {others} other figure{'s' * (others > 1)})" if others else ""
        return f"{UNLIKE}: {_NAMES[FIGURES[worst]]} is {is_}, theirs {low} to {high}{more}"

    def to_json(self) -> dict[str, list[float]]:
        arrays = {"lowest": self.lowest, "highest": self.highest, "margin": self.margin}
        return {name: to_list(array) for name, array in arrays.items()}


def _shown(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def from_json(entry: object) -> Mapping[Modality, LearntRange] | None:
    """What `to_json` wrote of each modality; None of a model that has none. Raises `ValueError` for anything else."""
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or set(entry) != set(MODALITIES):
        raise ValueError(f"`learnt` is not of {' and '.join(MODALITIES)}")
    return {modality: _of_json(entry[modality]) for modality in MODALITIES}


def _of_json(entry: Mapping[str, Any]) -> LearntRange:
    lowest, highest, margin = (listed(entry[name], "learnt") for name in ("lowest", "highest", "margin"))
    if (lowest > highest).any() or (margin <= 0).any():
        raise ValueError("`learnt` has a range that ends before it begins, or a margin that is not above 0")
    return LearntRange(lowest, highest, margin)
