"""Encapsulated pixel data: as many frames as the header says, each in its place."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

BASELINE, RLE = "4.50", "5"
Wrap = Callable[..., Any]
Refused = Callable[..., Any]
END = b"\xfe\xff\xdd\xe0\0\0\0\0"
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}


def coded(values: Array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "jpeg", quality=95)
    return out.getvalue() + b"\0" * (len(out.getvalue()) % 2)


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value


def raw(fragments: list[bytes], table: list[int] | None = None) -> bytes:
    return item(struct.pack(f"<{len(table or [])}I", *table or [])) + b"".join(map(item, fragments)) + END


@pytest.fixture
def streams(picture: Array) -> list[bytes]:
    return [coded(np.ascontiguousarray(part)) for part in (picture, picture[::-1], picture[:, ::-1])]


@pytest.fixture
def pictures(streams: list[bytes]) -> list[Array]:
    return [np.asarray(Image.open(io.BytesIO(stream))) for stream in streams]


def places(streams: list[bytes]) -> list[int]:
    return [sum(8 + len(stream) for stream in streams[:i]) for i in range(len(streams))]


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("cut", [None, 300])
def test_each_frame_in_its_place(
    wrap: Wrap, picture: Array, streams: list[bytes], pictures: list[Array], table: bool, cut: int | None
) -> None:
    """One fragment each, or two, with a table of offsets or without."""
    pieces = [[stream] if cut is None else [stream[:cut], stream[cut:]] for stream in streams]
    sizes = [sum(8 + len(part) for part in piece) for piece in pieces]
    offsets = [sum(sizes[:i]) for i in range(3)] if table else None
    data = raw([part for piece in pieces for part in piece], offsets)
    path = wrap([], picture, BASELINE, raw=data, NumberOfFrames=3, **WINDOW)
    for index, expected in enumerate(pictures):
        np.testing.assert_array_equal(read_grey(path, frame=index), expected)


def test_extended_offset_table(
    wrap: Wrap, refused: Refused, picture: Array, streams: list[bytes], pictures: list[Array]
) -> None:
    def tables(offsets: list[int], lengths: list[int]) -> dict[str, Any]:
        return {
            "ExtendedOffsetTable": struct.pack(f"<{len(offsets)}Q", *offsets),
            "ExtendedOffsetTableLengths": struct.pack(f"<{len(lengths)}Q", *lengths),
            "NumberOfFrames": 3,
            **WINDOW,
        }

    offsets, lengths = places(streams), [len(stream) for stream in streams]
    path = wrap([], picture, BASELINE, raw=raw(streams), **tables(offsets, lengths))
    for index, expected in enumerate(pictures):
        np.testing.assert_array_equal(read_grey(path, frame=index), expected)
    for wrong, sizes, message in (
        (offsets[:2], lengths[:2], r"holds 2 frame\(s\) by its extended offset table, expected 3"),
        ([0, offsets[1] + 2, offsets[2]], lengths, "extended offset table that doesn't fit"),
        (offsets, [lengths[0] - 4, *lengths[1:]], "extended offset table that doesn't fit"),
        (offsets, lengths[:2], "lengths are not as many"),
        ([0, offsets[2], offsets[1]], [lengths[0], lengths[2], lengths[1]], "offset table that doesn't fit"),
    ):
        refused(wrap([], picture, BASELINE, raw=raw(streams), **tables(wrong, sizes)), message, frame=0)
    both = wrap([], picture, BASELINE, raw=raw(streams, offsets), **tables(offsets, lengths))
    refused(both, "both a basic and an extended offset table", frame=0)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("says", [None, 1, 2, 4])
def test_more_or_fewer_frames_than_the_header_says(
    wrap: Wrap, refused: Refused, picture: Array, streams: list[bytes], says: int | None, table: bool
) -> None:
    elements = {} if says is None else {"NumberOfFrames": says}
    data = raw(streams, places(streams) if table else None)
    path = wrap([], picture, BASELINE, raw=data, **elements)
    source = "its basic offset table" if table else "where its fragments begin"
    refused(path, rf"holds 3 frame\(s\) by {source}, expected {says or 1},", frame=0)


def test_two_pictures_in_one_fragment(wrap: Wrap, refused: Refused, picture: Array, streams: list[bytes]) -> None:
    path = wrap([], picture, BASELINE, raw=raw([streams[0] + streams[1]]))
    refused(path, "bytes after the end of its JPEG")
    path = wrap([], picture, BASELINE, raw=raw([streams[0] + streams[1]]), NumberOfFrames=2)
    refused(path, r"holds 1 frame\(s\) by where its fragments begin, expected 2", frame=0)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5, 9], "offset table that doesn't fit its fragments"),
        ([8, 9, 10], "offset table that doesn't fit its fragments"),
        ([0, 0, 0], "offset table that doesn't fit its fragments"),
        ([0], r"holds 1 frame\(s\) by its basic offset table, expected 3"),
    ],
)
def test_tables_that_do_not_fit(
    wrap: Wrap, refused: Refused, picture: Array, streams: list[bytes], offsets: list[int], message: str
) -> None:
    path = wrap([], picture, BASELINE, raw=raw(streams, offsets), NumberOfFrames=3)
    refused(path, message, frame=0)


def test_items_that_are_cut(wrap: Wrap, refused: Refused, picture: Array, streams: list[bytes]) -> None:
    path = wrap(streams[0], picture, BASELINE, **WINDOW)
    whole, right = path.read_bytes(), read_grey(path)
    begin = whole.index(b"\xff\xd8\xff")
    for cut in (begin - 20, begin - 8, begin - 4, begin + 9, len(whole) - 9, len(whole) - 20):
        path.write_bytes(whole[:cut])
        refused(path, "without an item|fragment that is cut off|doesn't fit its fragments|no pixel data")
    for cut in range(len(whole) - 8, len(whole)):  # the delimiter holds nothing
        path.write_bytes(whole[:cut])
        np.testing.assert_array_equal(read_grey(path), right)


def test_one_frame_in_many_fragments(wrap: Wrap, picture: Array, streams: list[bytes], pictures: list[Array]) -> None:
    pieces = [streams[0][at : at + 64] for at in range(0, len(streams[0]), 64)]
    np.testing.assert_array_equal(read_grey(wrap([], picture, BASELINE, raw=raw(pieces), **WINDOW)), pictures[0])
