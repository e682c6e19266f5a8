"""What the headers of many images say against them, in a few lines: `train` and `export` print them, and keep them.

What is kept travels with the model, so that it names rows of a manifest and not the ids of its cases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .spec import Modality

SHOWN = 3  # rows, and kinds
_NUMBER = re.compile(r"\d[\d.]*")


@dataclass(frozen=True)
class ImageWarning:
    """One warning of one image of a manifest, of which it is in the row `row`, counted from 1."""

    manifest: str
    row: int
    modality: Modality
    text: str

    @property
    def kind(self) -> str:
        """The text without what differs from image to image."""
        return f"{self.modality}: {_NUMBER.sub('N', self.text)}"

    def __str__(self) -> str:
        return f"row {self.row} of {self.manifest}, {self.modality}: {self.text}"


def warnings_of(manifest: str, row: int, modality: Modality, texts: Iterable[str]) -> tuple[ImageWarning, ...]:
    """Those of one image, from what `images.read_with_warnings` says of it."""
    return tuple(ImageWarning(manifest, row, modality, " ".join(text.split())) for text in texts)


def summary(warnings: Iterable[ImageWarning]) -> dict[str, Any]:
    """For JSON: how many images are warned of, how often each kind, frequent first, the first in words.

    A warning that is there twice, of images that serve two ends, counts once.
    """
    found = list(dict.fromkeys(warnings))
    return {
        "images": len({(one.manifest, one.row, one.modality) for one in found}),
        "kinds": dict(Counter(one.kind for one in found).most_common()),
        "first": [str(one) for one in found[:SHOWN]],
    }


def lines(report: Mapping[str, Any]) -> Sequence[str]:
    """A `summary` for people; nothing where there are no warnings."""
    if not report["images"]:
        return []
    kinds = [f"{count} x {kind}" for kind, count in report["kinds"].items()]
    more = [f"and {len(kinds) - SHOWN} more kinds"] if len(kinds) > SHOWN else []
    return [
        f"warning: the headers of {report['images']} image(s) speak against them:",
        *(f"  {text}" for text in (*kinds[:SHOWN], *more)),
        f"  the first: {'; '.join(report['first'])}",
    ]
