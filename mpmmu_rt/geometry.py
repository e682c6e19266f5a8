"""Pixels that are not square: what any header says about it, as one number.

A lesion's shape is a sign of malignancy ("taller than wide"), so that no image may be squeezed without a word.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ImageError

# 71.9 dpi is written as 72, and 0.0699 mm as 0.07: below 1 %, two pixels of 224, a difference may be mere rounding.
SQUARE_TOLERANCE = 0.01
MAX_ASPECT = 8.0

Stated = tuple[str, float, float]
"""Who says it; the height and the width of a pixel, in any unit that both share."""


def pixel_aspect(stated: Iterable[Stated]) -> float:
    """The height of a pixel over its width: 1.0 where nothing else is stated, or no more than rounding.

    Two zeros state nothing. Raises `ImageError` for values that no pixel can have, and where two that are stated
    contradict each other.
    """
    found: tuple[str, float] | None = None
    for name, height, width in stated:
        if height == width == 0.0:
            continue
        if not (height > 0.0 and width > 0.0 and 1 / MAX_ASPECT <= height / width <= MAX_ASPECT):
            raise ImageError(
                f"states pixels {height:g} high and {width:g} wide by its {name}, expected a ratio from "
                f"1:{MAX_ASPECT:g} to {MAX_ASPECT:g}:1",
                hint="correct what its header says of its pixels, or export it again",
            )
        ratio = height / width
        if found is None:
            found = name, ratio
        elif not _same(ratio, found[1]):
            raise ImageError(
                f"states pixels of {found[1]:.4g}:1 by its {found[0]} and of {ratio:.4g}:1 by its {name}, "
                "expected the same",
                hint="correct or remove the wrong one: which it is can't be seen in the file",
            )
    return 1.0 if found is None or _same(found[1], 1.0) else found[1]


def _same(ratio: float, other: float) -> bool:
    return abs(ratio - other) <= SQUARE_TOLERANCE * max(ratio, other)
