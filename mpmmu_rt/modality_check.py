"""Does a pair look as if its images were swapped? No file format but DICOM tells a mammogram from an ultrasound image.
And does either look unlike those that the model has learnt from (`learnt_ranges`)?

A logistic regression on eight figures of an image's pixels, fitted when the model is trained on the training images of
both modalities (`mpmmu_rt.model.modality_fit`). A pair is suspicious where *both* images look like the other modality:
one strange image alone is no swap. It is a warning and no refusal: what it was fitted on decides what it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import learnt_ranges
from .image_figures import FIGURES, figures, is_number, listed, to_list
from .learnt_ranges import LearntRange
from .spec import MODALITIES, Array, Modality

SAYS = "its images look swapped: the mammogram like an ultrasound image, and the ultrasound image like a mammogram"


@dataclass(frozen=True)
class ModalityCheck:
    """weights, means, scales: float64 [8]; log-odds that an image is a mammogram are `weights · (figures - means) /
    scales + intercept`, and a pair is suspicious where those of both images are wrong by more than `margin`. learnt:
    between what values the figures of training images lie; None where there were too few, or by an earlier version."""

    weights: Array
    means: Array
    scales: Array
    intercept: float
    margin: float
    learnt: Mapping[Modality, LearntRange] | None = None

    @classmethod
    def from_json(cls, entry: object) -> ModalityCheck | None:
        """What `to_json` wrote; None of a bundle that has none. Raises `ValueError` for anything else."""
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or tuple(entry.get("figures", ())) != FIGURES:
            raise ValueError("`modality_check` is not of the figures that this version computes")
        weights, means, scales = (listed(entry[name], "modality_check") for name in ("weights", "means", "scales"))
        intercept, margin = entry["intercept"], entry["margin"]
        if not is_number(intercept) or not is_number(margin) or (scales <= 0).any():
            raise ValueError(f"`modality_check` does not hold {len(FIGURES)} finite numbers each")
        learnt = learnt_ranges.from_json(entry.get("learnt"))
        return cls(weights, means, scales, float(intercept), float(margin), learnt)

    def to_json(self) -> dict[str, Any]:
        arrays = {"weights": self.weights, "means": self.means, "scales": self.scales}
        return {
            "figures": list(FIGURES),
            **{name: to_list(array) for name, array in arrays.items()},
            "intercept": self.intercept,
            "margin": self.margin,
            "learnt": self.learnt and {modality: found.to_json() for modality, found in self.learnt.items()},
        }

    def against(self, pixels: Mapping[Modality, Array]) -> tuple[tuple[str, ...], ...]:
        """What is to be said against each case of pixels uint8 [N, 1, S, S], of both modalities or of one. A pair that
        looks swapped is said to be that alone."""
        found = figures_of(pixels)
        swapped = self.swapped(found) if len(found) == len(MODALITIES) else np.zeros(len(next(iter(found.values()))))
        return tuple((SAYS,) if one else self._unlike(found, case) for case, one in enumerate(swapped))

    def _unlike(self, found: Mapping[Modality, Array], case: int) -> tuple[str, ...]:
        said = {} if self.learnt is None else {name: self.learnt[name].against(of[case]) for name, of in found.items()}
        return tuple(f"{modality}: {text}" for modality, text in said.items() if text)

    def log_odds(self, found: Array) -> Array:
        """float64 [N]: that images of figures [N, 8] are mammograms."""
        return np.asarray((found - self.means) / self.scales @ self.weights + self.intercept)

    def swapped(self, found: Mapping[Modality, Array]) -> Array:
        """bool [N] of figures [N, 8] of both modalities."""
        odds = {modality: self.log_odds(of) for modality, of in found.items()}
        return np.asarray((odds["mammography"] < -self.margin) & (odds["ultrasound"] > self.margin))


def figures_of(pixels: Mapping[Modality, Array]) -> dict[Modality, Array]:
    """float64 [N, 8] of pixels uint8 [N, 1, S, S] of each modality that is there."""
    return {modality: figures(pixels[modality]) for modality in MODALITIES if modality in pixels}
