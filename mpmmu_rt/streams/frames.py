"""DICOM pixel data that are encapsulated (PS3.5 annex A.4), cut into the streams of their frames.

What pydicom guesses is counted here: fragments of one frame that hold two pictures, tables that disagree with the
fragments, more or fewer frames than NumberOfFrames.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from .stream import damaged

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # JPEG and JPEG-LS, JPEG 2000, JP2


def split(data: bytes, frames: int, extended: tuple[bytes, bytes] | None = None) -> list[bytes]:
    """The stream of each frame. `data` is what follows the element's undefined length.

    `extended` is the Extended Offset Table with its lengths, where there is one (PS3.3 C.7.6.3.1.8). Raises
    `ImageError` unless there are as many as `frames`.
    """
    items = _items(data)
    if not items:
        damaged("holds encapsulated pixel data without an item", "an offset table and fragments")
    (table_at, table_length), fragments = items[0], items[1:]
    table = data[table_at : table_at + table_length]
    starts = [at - 8 - (table_at + table_length) for at, _ in fragments]  # as the tables count: from the first item
    if table and extended:
        damaged("has both a basic and an extended offset table", "one of them")
    if table:
        if len(table) % 4:
            damaged("has a basic offset table of a broken length")
        offsets = list(struct.unpack(f"<{len(table) // 4}I", table))
        if len(offsets) != frames:
            _miscounted(len(offsets), frames, "its basic offset table")
    elif extended:
        offsets = _extended(extended, dict(zip(starts, fragments, strict=True)), frames)
    elif len(fragments) == frames:
        offsets = starts
    else:
        offsets = _by_content(data, fragments, starts, frames)
    begins = set(offsets)
    if offsets != sorted(begins) or not begins <= set(starts) or offsets[0] != 0:
        damaged("has an offset table that doesn't fit its fragments", "the place of each frame")
    found: list[list[bytes]] = []
    for (at, length), start in zip(fragments, starts, strict=True):
        if start in begins:
            found.append([])
        found[-1].append(data[at : at + length])
    return [b"".join(parts) for parts in found]


def _items(data: bytes) -> list[tuple[int, int]]:
    """Where each item's value is, and its length."""
    items: list[tuple[int, int]] = []
    at = 0
    while at + 8 <= len(data) and not data.startswith(_END, at):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if not data.startswith(_ITEM, at) or at + 8 + length > len(data):
            damaged("holds encapsulated pixel data with a fragment that is cut off", "items up to the end")
        items.append((at + 8, length))
        at += 8 + length
    return items


def _extended(tables: tuple[bytes, bytes], fragments: dict[int, tuple[int, int]], frames: int) -> list[int]:
    count = len(tables[0]) // 8
    if len(tables[0]) % 8 or len(tables[1]) != len(tables[0]):
        damaged("has an extended offset table whose lengths are not as many as its offsets", "a length for each")
    if count != frames:
        _miscounted(count, frames, "its extended offset table")
    offsets, lengths = (list(struct.unpack(f"<{count}Q", table)) for table in tables)
    for offset, length in zip(offsets, lengths, strict=True):  # a frame is one fragment where this table is
        held = fragments.get(offset, (0, -2))[1]
        if not held - 1 <= length <= held:
            damaged("has an extended offset table that doesn't fit its fragments", "the place of each frame")
    return offsets


def _by_content(data: bytes, fragments: list[tuple[int, int]], starts: list[int], frames: int) -> list[int]:
    """Without a table: a frame begins where a fragment begins with a stream's first markers."""
    begins = [start for start, (at, _) in zip(starts, fragments, strict=True) if data.startswith(_STARTS, at)]
    if len(begins) != frames or begins[0] != starts[0]:
        _miscounted(len(begins) or len(fragments), frames, "where its fragments begin")
    return begins


def _miscounted(seen: int, frames: int, source: str) -> NoReturn:
    damaged(f"holds {seen} frame(s) by {source}", f"{frames}, by its NumberOfFrames")
