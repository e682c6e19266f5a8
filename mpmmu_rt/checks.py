"""Measured differences, and the limits that they must not pass: what `verify` on a device and `export` both use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .facts import CROSSING_SHARE
from .spec import Array

ENOUGH_TO_CROSS = 20


@dataclass(frozen=True)
class Check:
    """A measured difference and the limit that it must not pass."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return bool(self.value <= self.limit)  # NaN fails

    def to_json(self) -> dict[str, str | float | bool | None]:
        """`value` is None where there is no finite difference, which JSON can't say."""
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "limit": self.limit, "passed": self.passed}


def figure(value: float) -> str:
    """A measured difference or its limit, three digits at the most: 0, 0.02, 2.68e-06."""
    if value == 0:
        return "0"
    if abs(value) >= 1e-3:
        return f"{value:.3g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{power}"


def shortest(value: float | np.float32) -> str:
    """The fewest digits that read back the same float32."""
    return str(np.format_float_positional(np.float32(value), unique=True, trim="0"))


def shown(probability: float | np.float32, threshold: float, style: Literal["f", "g"] = "f", digits: int = 4) -> str:
    """`probability` for people: so many digits, or as many more as tell on which side of `threshold` it is."""
    exact, limit = np.float32(probability), np.float32(threshold)
    for more in range(digits, 10):
        text = f"{exact:.{more}{style}}"
        if bool(np.float32(text) >= limit) == bool(exact >= limit):
            return text
    return shortest(exact)


def decide(probability: Array, threshold: float) -> Array:
    """Malignant or not, bool of the shape of `probability`. Compared as float32, as probabilities are printed: one that
    reads 0.7 is at the threshold 0.7 in every NumPy."""
    return np.asarray(np.asarray(probability, np.float32) >= np.float32(threshold))


def relative_difference(got: Array, want: Array) -> float:
    """max |got - want| / max |want|: the error in units of the tensor's own scale; infinite for other shapes or NaN."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(want).max())
    return float(np.abs(got.astype(np.float64) - want).max() / (scale or 1.0))


def probability_difference(got: Array, want: Array) -> float:
    """max |Δp|; infinite for other shapes or NaN."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - want).max())


def crossing_limit(count: int, *, enough: int = ENOUGH_TO_CROSS) -> float:
    """The share of so many cases that may cross a split of a forest in FP32: at least one case, where there are enough
    that one may; of fewer none, as one of three would say nothing."""
    return max(CROSSING_SHARE, 1 / count) if count >= enough else 0.0
