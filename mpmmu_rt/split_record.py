"""Which patients a model has learnt from: digests in a checkpoint's card, which a bundle inherits.

A digest tells who knows an id whether that patient was there; it doesn't hide an id from someone who tries all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KEY = "patients"
PARTS = ("train", "validation", "test")
_DIGITS = 16


def digest(patient: str) -> str:
    return hashlib.sha256(f"mpmmu-rt patient\0{patient}".encode()).hexdigest()[:_DIGITS]


def record(groups: Sequence[str], rows_of_part: Mapping[str, Iterable[int]]) -> dict[str, list[str]]:
    """For the card: of each part the digests of its patients, in no order that tells anything."""
    return {part: sorted({digest(groups[row]) for row in rows}) for part, rows in rows_of_part.items()}


def parts_of(card: Mapping[str, Any]) -> dict[str, str]:
    """Digest to part; {} of a card that says nothing, as those of before."""
    kept = card.get(KEY)
    if not isinstance(kept, Mapping):
        return {}
    return {str(one): part for part in PARTS if isinstance(kept.get(part), list) for one in kept[part]}
