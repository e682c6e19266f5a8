"""Which patients a model has learnt from: digests in a checkpoint's card, which a bundle inherits.

A digest tells who knows an id whether that patient was there; it doesn't hide an id from someone who tries all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .people import plain

KEY = "patients"
PARTS = ("train", "validation", "test")
_DIGITS = 16


def digest(patient: str) -> str:
    return hashlib.sha256(f"mpmmu-rt patient\0{patient}".encode()).hexdigest()[:_DIGITS]


def record(groups: Sequence[str], rows_of_part: Mapping[str, Iterable[int]]) -> dict[str, list[str]]:
    """For the card: of each part the digests of its patients, in no order that tells anything; of an id that another
    table may write otherwise (`people.plain`) that of the plain one, too."""
    return {
        part: sorted({digest(name) for row in rows for name in (groups[row], plain(groups[row]))})
        for part, rows in rows_of_part.items()
    }


def parts_of(card: Mapping[str, Any]) -> dict[str, str]:
    """Digest to part; {} of a card that says nothing, as those of before. What is in two is in the one that was learnt
    from."""
    kept = card.get(KEY)
    if not isinstance(kept, Mapping):
        return {}
    parts = reversed(PARTS)
    return {str(one): part for part in parts if isinstance(kept.get(part), list) for one in kept[part]}


def part_of(known: Mapping[str, str], patient: str) -> str:
    """Of what `parts_of` gave the part of `patient`, as the id is written or as a table changes it; "" for none."""
    return known.get(digest(patient)) or known.get(digest(plain(patient)), "")
