"""Eight figures of an image's pixels: `modality_check` tells modalities by them, and `learnt_ranges` strange images."""

from __future__ import annotations

import math

import numpy as np

from .spec import Array

FIGURES = (
    *("black", "bright", "mean", "deviation"),  # shares of pixels below 8 and from 200 on; of grey 0..1
    *("fine", "vertical", "fading", "lopsided"),
)


def listed(values: object, what: str) -> Array:
    """float64 [8] of a list of JSON, of the entry `what`. Raises `ValueError` for anything but finite numbers."""
    numbers = values if isinstance(values, list) else []
    if not all(map(is_number, numbers)) or len(numbers) != len(FIGURES):
        raise ValueError(f"`{what}` does not hold {len(FIGURES)} finite numbers each")
    return np.array(numbers, np.float64)


def is_number(value: object) -> bool:
    """Whether that of JSON is finite. Raises `OverflowError` for one that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_list(numbers: Array) -> list[float]:
    """For JSON, float64 [8] in nine digits."""
    return [float(f"{one:.9g}") for one in numbers]


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
