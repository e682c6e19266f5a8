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
    """One warning of one image of a manifest, of which it is in the row `row`, counted from 1. grave: of the pair or
    its patient, and not of this image's header alone: said first."""

    manifest: str
    row: int
    modality: Modality
    text: str
    grave: bool = False

    @property
    def kind(self) -> str:
        """The text without what differs from image to image."""
        return f"{self.modality}: {_NUMBER.sub('N', self.text)}"

    def __str__(self) -> str:
        return f"row {self.row} of {self.manifest}, {self.modality}: {self.text}"


def warnings_of(
    manifest: str, row: int, modality: Modality, texts: Iterable[str], *, grave: bool = False
) -> tuple[ImageWarning, ...]:
    """Those of one image, from what `images.read_with_warnings` says of it."""
    return tuple(ImageWarning(manifest, row, modality, " ".join(text.split()), grave) for text in texts)


def summary(warnings: Iterable[ImageWarning]) -> dict[str, Any]:
    """For JSON: how many images are warned of, how often each kind, frequent first, the first in words; grave ones
    before all others, and how many kinds they are of, where there are any.

    A warning that is there twice, of images that serve two ends, counts once.
    """
    found = sorted(dict.fromkeys(warnings), key=lambda one: not one.grave)
    grave = Counter(one.kind for one in found if one.grave)
    others = Counter(one.kind for one in found if not one.grave)
    return {
        "images": len({(one.manifest, one.row, one.modality) for one in found}),
        "kinds": dict(grave.most_common()) | dict(others.most_common()),
        "first": [str(one) for one in found[:SHOWN]],
        **({"grave": len(grave)} if grave else {}),
    }


def lines(report: Mapping[str, Any]) -> Sequence[str]:
    """A `summary` for people; nothing where there are no warnings."""
    if not report["images"]:
        return []
    kinds = [f"{count} x {kind}" for kind, count in report["kinds"].items()]
    most = max(SHOWN, report.get("grave", 0))
    more = [f"and {len(kinds) - most} more kinds"] if len(kinds) > most else []
    return [
        f"warning: the headers of {report['images']} image(s) speak against them:",
        *(f"  {text}" for text in (*kinds[:most], *more)),
        f"  the first: {'; '.join(report['first'])}",
    ]
