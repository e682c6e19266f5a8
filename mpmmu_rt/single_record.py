"""What a bundle says of its heads for one modality alone (`mpmmu_rt.single` runs them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spec import MODALITIES, Array, Modality

KEY = "single_modality"
COLUMN = "modalities"  # of predictions that may rest on one image: `both`, or the modality that there was
BOTH = "both"


@dataclass(frozen=True)
class SingleHead:
    """columns: which part of the embedding it takes, [first, end); threshold: a probability at or above it is called
    malignant."""

    columns: tuple[int, int]
    threshold: float

    def of(self, embedding: Array) -> Array:
        """Its part of embeddings float32 [N, D], contiguous."""
        return np.ascontiguousarray(embedding[:, slice(*self.columns)])

    def to_json(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "threshold": self.threshold}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], width: int) -> SingleHead:
        """width: of the embedding. Raises `ValueError`, `TypeError` or `KeyError` for what makes no sense."""
        columns, threshold = entry["columns"], entry["threshold"]
        if type(columns) is not list or [type(one) for one in columns] != [int, int]:
            raise TypeError(f"a head for one modality takes the columns {columns!r}")
        first, end = columns
        if not 0 <= first < end <= width:
            raise ValueError(f"a head for one modality takes the columns {columns!r} of {width}")
        if not isinstance(threshold, float) or not 0 < threshold < 1:
            raise ValueError(f"a head for one modality has the threshold {threshold!r}, expected a number in 0..1")
        return cls((first, end), threshold)


def read(entry: Mapping[str, Any], width: int) -> dict[Modality, SingleHead]:
    """Those that a `bundle.json` tells of; {} where it tells of none. width: of the embedding. Raises `ValueError`,
    `TypeError` or `KeyError`."""
    found = entry.get(KEY)
    if found is None:
        return {}
    if not isinstance(found, dict) or set(found) != set(MODALITIES):
        raise ValueError(f"`{KEY}` is {found!s:.200}, expected a head for each of {', '.join(MODALITIES)}")
    if missing := [graph_of(modality) for modality in MODALITIES if graph_of(modality) not in entry["graphs"]]:
        raise ValueError(f"`{KEY}` tells of heads and `graphs` lacks `{missing[0]}`")
    return {modality: SingleHead.from_json(found[modality], width) for modality in MODALITIES}


def graph_of(modality: Modality) -> str:
    """What its graph is called in a bundle."""
    return f"head_{modality}"


def golden_of(modality: Modality) -> str:
    """What the original says of the golden cases, in golden.npz: float64 [N]."""
    return f"single.{modality}.probability"
