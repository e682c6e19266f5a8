"""Which images a model was trained on: a digest of each, so that a proof on them can be told from one on others.

A digest is the first 48 bits of the SHA-256 of an image's pixels as the model sees them, so it knows an image again
under any name and in any manifest. Of a person it says nothing to who does not have her images; that another image is
the same person's, it can't tell. By chance one of 10⁵ images is taken for one of 10⁵ others once in 28,000 manifests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .spec import MODALITIES, Array, Modality
from .split_record import PARTS

_DIGITS = 12


def digest(image: Array) -> str:
    """Of pixels uint8 [1, S, S]."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:_DIGITS]


def listing(images: Iterable[Array]) -> str:
    """Digests of images as JSON holds them: in order, one behind the other."""
    return "".join(sorted({digest(image) for image in images}))


@dataclass(frozen=True)
class KnownImages:
    """Digests by part of the split; empty where a model does not say what it was trained on."""

    parts: Mapping[str, frozenset[str]]

    @classmethod
    def from_json(cls, entry: object) -> KnownImages:
        """What `listing` gave for each part; anything else counts for nothing."""
        texts = entry if isinstance(entry, Mapping) else {}
        return cls({part: _split(texts.get(part)) for part in PARTS})

    @property
    def known(self) -> bool:
        return any(self.parts.values())

    def learnt(self, pixels: Mapping[Modality, Array]) -> Array:
        """bool [N]: which cases show an image that the model was trained, or its epoch or head chosen, on.

        pixels: uint8 [N, 1, S, S] of each modality, preprocessed as for the model.
        """
        rows = zip(*(pixels[modality] for modality in MODALITIES), strict=True)
        return np.array([self.shows(row) for row in rows], bool)

    def shows(self, images: Iterable[Array]) -> bool:
        """The same of one case: whether any of its images, uint8 [1, S, S], was learnt."""
        return bool(self._learnt) and self.among({digest(image) for image in images})

    def among(self, digests: Set[str]) -> bool:
        """The same of digests that are known already."""
        return not self._learnt.isdisjoint(digests)

    @cached_property
    def _learnt(self) -> frozenset[str]:
        return self.parts["train"] | self.parts["validation"]


def _split(text: Any) -> frozenset[str]:
    if not isinstance(text, str):
        return frozenset()
    return frozenset(text[start : start + _DIGITS] for start in range(0, len(text), _DIGITS))
