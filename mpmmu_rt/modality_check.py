"""Does a pair look as if its images were swapped? No file format but DICOM tells a mammogram from an ultrasound image.

A logistic regression on eight figures of an image's pixels, fitted when the model is trained on the training images of
both modalities (`mpmmu_rt.model.modality_fit`). A pair is suspicious where *both* images look like the other modality:
so that one strange image raises no alarm. It is a warning and no refusal: what it was fitted on decides what it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spec import Array, Modality

FIGURES = (
    *("black", "bright", "mean", "deviation"),  # shares of pixels below 8 and from 200 on; of grey 0..1
    *("fine", "vertical", "fading", "lopsided"),
)
SAYS = "its images look swapped: the mammogram like an ultrasound image, and the ultrasound image like a mammogram"


def figures(pixels: Array) -> Array:
    """float64 [N, 8] of pixels uint8 [N, 1, S, S].

    fine: the mean step between neighbours over the deviation: speckle has much of it. vertical: log of vertical over
    horizontal steps. fading: mean of the upper third less that of the lower, over the deviation. lopsided: the size of
    left less right, over it.
    """
    grey = pixels[:, 0].astype(np.float64) / 255
    mean, deviation = grey.mean((1, 2)), grey.std((1, 2))
    scale = np.maximum(deviation, 1e-3)
    down, right = (np.abs(np.diff(grey, axis=axis)).sum((1, 2)) / grey[0].size for axis in (1, 2))
    third, half = max(1, grey.shape[1] // 3), max(1, grey.shape[2] // 2)
    return np.stack(
        [
            (pixels[:, 0] < 8).mean((1, 2)),
            (pixels[:, 0] >= 200).mean((1, 2)),
            mean,
            deviation,
            (down + right) / scale,
            np.log((down + 1e-4) / (right + 1e-4)),
            (grey[:, :third].mean((1, 2)) - grey[:, -third:].mean((1, 2))) / scale,
            np.abs(grey[:, :, :half].mean((1, 2)) - grey[:, :, -half:].mean((1, 2))) / scale,
        ],
        1,
    )


@dataclass(frozen=True)
class ModalityCheck:
    """weights, means, scales: float64 [8]; log-odds that an image is a mammogram are `weights · (figures - means) /
    scales + intercept`, and a pair is suspicious where those of both images are wrong by more than `margin`."""

    weights: Array
    means: Array
    scales: Array
    intercept: float
    margin: float

    @classmethod
    def from_json(cls, entry: object) -> ModalityCheck | None:
        """What `to_json` wrote; None of a bundle that has none. Raises `ValueError` for anything else."""
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or tuple(entry.get("figures", ())) != FIGURES:
            raise ValueError("`modality_check` is not of the figures that this version computes")
        arrays = [np.asarray(entry[name], np.float64) for name in ("weights", "means", "scales")]
        numbers = [float(entry[name]) for name in ("intercept", "margin")]
        if any(one.shape != (len(FIGURES),) or not np.isfinite(one).all() for one in arrays) or (arrays[2] <= 0).any():
            raise ValueError(f"`modality_check` does not hold {len(FIGURES)} finite numbers each")
        return cls(arrays[0], arrays[1], arrays[2], *numbers)

    def to_json(self) -> dict[str, Any]:
        arrays = {"weights": self.weights, "means": self.means, "scales": self.scales}
        return {
            "figures": list(FIGURES),
            **{name: [float(f"{one:.9g}") for one in array] for name, array in arrays.items()},
            "intercept": self.intercept,
            "margin": self.margin,
        }

    def log_odds(self, pixels: Array) -> Array:
        """float64 [N]: that each of pixels uint8 [N, 1, S, S] is a mammogram."""
        return np.asarray((figures(pixels) - self.means) / self.scales @ self.weights + self.intercept)

    def swapped(self, pixels: Mapping[Modality, Array]) -> Array:
        """bool [N] of pixels uint8 [N, 1, S, S] per modality."""
        return np.asarray(
            (self.log_odds(pixels["mammography"]) < -self.margin) & (self.log_odds(pixels["ultrasound"]) > self.margin)
        )
