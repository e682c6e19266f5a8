"""Whether images are still those that a row was made of: a row of an image that was exchanged since says nothing of it.

A mark is size and times of both files, as they were before they were read. Times alone may be set back, and an
uncompressed image that is exchanged has the same size; that a file was replaced, its change time says where there is
one. Whatever else moves that (permissions, a hard link) costs a row that is made again.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from .cases import Case
from .spec import MODALITIES

ASKING = 16  # threads that look at files: a file system that others share answers late, and many at once
_NOTHING = "-"
_MARK = re.compile(rf"({_NOTHING}|\d+:-?\d+:-?\d+)")


def mark(case: Case) -> str:
    """Of what lies where the images of `case` are named."""
    return " ".join(_of_file(case.image(modality)) for modality in MODALITIES)


def is_mark(text: str) -> bool:
    """Whether `mark` may have given it."""
    parts = text.split(" ")
    return len(parts) == len(MODALITIES) and all(map(_MARK.fullmatch, parts))


def were_exchanged(before: str, case: Case) -> bool:
    """Whether an image of `case` is another one than when `mark` gave `before`. One that is gone is not: a row that is
    there needs no image."""
    now = mark(case).split(" ")
    return any(one not in (_NOTHING, then) for then, one in zip(before.split(" "), now, strict=True))


def written_since(started: str, case: Case) -> bool:
    """Whether an image of `case` was written, or put there, after a process that began at `started` (ISO 8601, to the
    second) began: by the clock of the disk, which may be another machine's."""
    return written_after(int(datetime.fromisoformat(started).timestamp() + 1) * 10**9 - 1, case)


def written_after(time_ns: int, case: Case) -> bool:
    """The same of a time on the disk."""
    marks = (one.split(":") for one in mark(case).split(" ") if one != _NOTHING)
    return any(max(int(written), int(changed)) > time_ns for _, written, changed in marks)


def _of_file(path: Path | None) -> str:
    try:
        found = os.stat(path) if path is not None else None
    except (OSError, ValueError):  # what can't be read says so in its row, and what is no path
        found = None
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}" if found else _NOTHING
