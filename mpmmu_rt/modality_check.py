"""Does a pair look as if its images were swapped? No file format but DICOM tells a mammogram from an ultrasound image.

A logistic regression on eight figures of an image's pixels, fitted when the model is trained on the training images of
both modalities (`mpmmu_rt.model.modality_fit`). A pair is suspicious where *both* images look like the other modality:
so that one strange image raises no alarm. It is a warning and no refusal: what it was fitted on decides what it knows.
"""

from __future__ import annotations

import math
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
    return np.stack([_of_image(image) for image in pixels[:, 0]])


def _of_image(grey: Array) -> Array:
    """float64 [8] of uint8 [S, S]. Sums are of integers: `run` asks for every image, and floats take longer."""
    size, (height, width) = grey.size, grey.shape
    rows, columns = grey.sum(1, dtype=np.uint32), grey.sum(0, dtype=np.uint32)
    mean = float(rows.sum(dtype=np.uint64)) / size
    squares = float(np.square(grey, dtype=np.uint16).sum(dtype=np.uint64)) / size
    deviation = max(0.0, squares - mean * mean) ** 0.5 / 255
    scale = max(deviation, 1e-3)
    down, right = _steps(grey[1:], grey[:-1], size), _steps(grey[:, 1:], grey[:, :-1], size)
    third, half = max(1, height // 3), max(1, width // 2)
    fading = float(rows[:third].mean() - rows[-third:].mean()) / width / 255
    lopsided = abs(float(columns[:half].mean() - columns[-half:].mean())) / height / 255
    black, bright = np.count_nonzero(grey < 8) / size, np.count_nonzero(grey >= 200) / size
    fine, vertical = (down + right) / scale, math.log((down + 1e-4) / (right + 1e-4))
    return np.array([black, bright, mean / 255, deviation, fine, vertical, fading / scale, lopsided / scale])


def _steps(one: Array, other: Array, size: int) -> float:
    """The mean step between neighbours, of grey 0..1."""
    return float((np.maximum(one, other) - np.minimum(one, other)).sum(dtype=np.uint64)) / size / 255


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
        sound = all(one.shape == (len(FIGURES),) and np.isfinite(one).all() for one in arrays)
        if not sound or not all(map(math.isfinite, numbers)) or (arrays[2] <= 0).any():
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
