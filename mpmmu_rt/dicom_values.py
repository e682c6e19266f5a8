"""Values of DICOM elements as they are stored, without pydicom's conversions.

These warn about what is harmless here (decimal strings of more than 16 characters are everywhere in rescale and
window), and guess the sign of look-up table descriptors, where the standard has rules of its own.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

import numpy as np

from .errors import ImageError
from .spec import Array


def text(dataset: Any, keyword: str) -> str:
    """The undecoded value of a text or number element, "" when absent or empty."""
    if keyword not in dataset:
        return ""
    value = dataset.get_item(keyword).value or b""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")


def is_uid(value: str) -> bool:
    """By its form (PS3.5 9.1)."""
    return re.fullmatch(r"[0-9.]{1,64}", value) is not None


def shown(value: object, most: int = 16) -> str:
    """What a message shows of a value: its text, which a length that is damaged makes half of the file, with the
    patient's name in it."""
    words = str(value)
    head = "".join(takewhile(str.isprintable, words))[:most]
    return head if head == words else f"{head}…"


def numbers(dataset: Any, keyword: str) -> tuple[float, ...]:
    """The values of a decimal or integer string, () when absent or empty. Raises `ImageError`."""
    parts = [part.strip(" \0") for part in text(dataset, keyword).split("\\")]
    try:
        found = tuple(float(part) for part in parts if part)
    except ValueError:
        found = (float("nan"),)
    if not np.isfinite(found).all():
        raise ImageError(
            f"has the {keyword} {shown(text(dataset, keyword), 40)}, expected finite numbers", hint="export it again"
        )
    return found


def number(dataset: Any, keyword: str) -> float | None:
    """The first value of a decimal string (of several windows, the first counts); None if absent or empty."""
    if not text(dataset, keyword).split("\\")[0].strip(" \0"):
        return None
    return numbers(dataset, keyword)[0]


def group(header: Any, frame: int, macro: str) -> Any:
    """Where an attribute is: the frame's or the shared `macro` of an enhanced image, else the header."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(groups)
        if items and len(items) > index and items[index].get(macro):
            return items[index].get(macro)[0]
    return header


def descriptor(dataset: Any, keyword: str, *, signed: bool) -> tuple[int, int, int]:
    """(number of entries, first value mapped, bits of an entry) of a look-up table.

    The first and third are unsigned whatever the VR; the second is what an explicit VR says, else `signed` by the rules
    of PS3.3 C.7.6.3.1.5, C.11.1.1.1 and C.11.2.1.1. Raises `ImageError`.
    """
    element = _stored(dataset, keyword)
    if len(element.value) != 6:
        raise ImageError(
            f"has a {keyword} of {len(element.value)} bytes, expected three values of two bytes",
            hint="export it again: its look-up table is damaged",
        )
    words = np.frombuffer(element.value, "<u2" if element.is_little_endian else ">u2")
    if element.VR in ("US", "SS"):
        signed = element.VR == "SS"
    first = words[1].astype(np.int16) if signed else words[1]
    return int(words[0]) or 2**16, int(first), int(words[2])


def entries(dataset: Any, keyword: str, count: int, bits: int) -> Array:
    """The `count` entries of a look-up table as integers [count].

    Entries of up to 8 bits may be stored in one byte or in two (the note of PS3.3 C.11.1.1.1): their length tells.
    Raises `ImageError` if there are more or fewer, or if one has more than `bits` bits.
    """
    element = _stored(dataset, keyword)
    data, little = element.value, element.is_little_endian
    packed = bits <= 8 and len(data) == count + count % 2 and len(data) != 2 * count
    table: Array = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    if packed:  # in OW, two to a word, the first in its lower half
        in_words = not little and element.VR != "OB"
        table = (table.astype("<u2").view(np.uint8) if in_words else np.frombuffer(data, np.uint8))[:count]
    top = table.max(initial=0)
    if len(table) != count or not 1 <= bits <= 16 or top >= 2**bits:
        raise ImageError(
            f"has a LUT of {len(table)} entries up to {top}, expected {count} of {bits} bits",
            hint="export it again: its LUT is damaged",
        )
    return table.astype(np.int64)


def _stored(dataset: Any, keyword: str) -> Any:
    element = dataset.get_item(keyword) if keyword in dataset else None
    if element is None or not element.value:
        raise ImageError(
            f"has a look-up table without {keyword}, expected its descriptor and its data",
            hint="export it again: its look-up table is damaged",
        )
    return element
