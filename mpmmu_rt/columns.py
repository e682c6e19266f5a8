"""Names of columns that people write for those that a manifest has: what they probably meant.

A column of another name is ignored. So a person's rows that are not known to be one person's would lie on both sides of
a split: that a name was a near miss must be said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

# Lower case, letters and digits alone; beside them what is spelt nearly like a column.
_PEOPLE = ("patient", "subject", "person", "participant", "woman")
_KEYS = ("", "id", "ids", "no", "nr", "number", "uid", "key", "code", "name", "hash", "pseudonym")
_OTHERS: Mapping[str, frozenset[str]] = {
    "case_id": frozenset(("case", "id", "cases", "caseno", "casenumber", "lesion", "lesionid", "identifier")),
    "mammography": frozenset(("mammogram", "mammo", "mg", "mammographypath", "mammogrampath", "mgpath")),
    "ultrasound": frozenset(("us", "bus", "sonogram", "sonography", "ultrasonography", "ultrasoundpath", "uspath")),
    "label": frozenset(
        ("class", "target", "diagnosis", "malignant", "malignancy", "outcome", "groundtruth", "truth", "y", "pathology")
    ),
    "patient": frozenset((*(f"{one}{key}" for one in _PEOPLE for key in _KEYS), "pid", "mrn")) - {"patient"},
}


def near_misses(header: Iterable[str]) -> dict[str, str]:
    """By known column that `header` does not have, the one of it that was probably meant."""
    given = list(header)
    folded = {re.sub(r"[^a-z0-9]", "", name.casefold()): name for name in reversed(given)}
    known = {re.sub(r"[^a-z0-9]", "", name): name for name in _OTHERS}
    free = [one for one in folded if folded[one] not in known.values()]
    found: dict[str, str] = {}
    for plain, name in known.items():
        if name not in given and (near := _nearest(plain, _OTHERS[name], free)):
            found[name] = folded[near]
    return found


def _nearest(plain: str, others: frozenset[str], free: Sequence[str]) -> str | None:
    exact = [one for one in free if one == plain or one in others]
    # What has the whole name and more is another thing about it, as an age, but for a plural.
    spelt = [one for one in free if not one.startswith(plain) or one == f"{plain}s"]
    return next(iter([*exact, *get_close_matches(plain, spelt, n=1, cutoff=0.8)]), None)
