"""Whether two ids are one person's, written in two ways.

Tables lose leading zeros, make 17.0 of 17, and are typed by hand: `P007`, `p7 ` and `P7` are hardly three persons.
Where they count as such, one person lies on both sides of a split, and intervals count more patients than there are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def plain(name: str) -> str:
    """The id without what a table changes: width and composition of letters (NFKC), case, blanks and signs that aren't
    seen, a hyphen that became a dash, leading zeros of each number, and the fraction of a whole number."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    hyphens = ("-" if unicodedata.category(one) == "Pd" or one == "\u2212" else one for one in folded)
    seen = "".join(one for one in hyphens if unicodedata.category(one) not in ("Cc", "Cf"))
    joined = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", seen)  # `1 12` is another number than `11 2`
    whole = re.sub(r"^(\d+)\.0+$", r"\1", joined)
    return re.sub(r"(?<!\d)0+(?=\d)", "", whole)


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two of `names` that differ in nothing but that; None where there are none."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if (other := seen.setdefault(plain(name), name)) != name:
            return other, name
    return None
