"""RLE Lossless: a segment for each byte, each of exactly the frame's bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

RLE = "5"
Wrap = Callable[..., Any]
Refused = Callable[..., Any]


def packed(plane: Array) -> bytes:
    """PackBits, row by row: a run where three bytes are equal, else what is."""
    out = b""
    for row in plane.tolist():
        at = 0
        while at < len(row):
            run = next(
                (n for n in range(1, min(128, len(row) - at)) if row[at + n] != row[at]), min(128, len(row) - at)
            )
            if run > 2:
                out += bytes([257 - run, row[at]])
            else:
                run = min(2, len(row) - at)
                out += bytes([run - 1, *row[at : at + run]])
            at += run
    return out + b"\0" * (len(out) % 2)


def frame(segments: list[bytes]) -> bytes:
    offsets = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def segments(values: Array) -> list[bytes]:
    planes = values.reshape(*values.shape[:2], -1)
    shifts = range(8 * (values.itemsize - 1), -1, -8)
    return [
        packed((planes[..., i].astype(f"u{values.itemsize}") >> s & 255).astype(np.uint8))
        for i in range(planes.shape[-1])
        for s in shifts
    ]


def stretched(values: Array) -> Array:
    """From its own range, but for 8 unsigned bits, which are grey already."""
    if values.dtype == np.uint8:
        return values
    wide = values.astype(np.float64)
    return np.asarray(np.rint(255 * (wide - wide.min()) / (wide.max() - wide.min())), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32])
def test_grey(wrap: Wrap, picture: Array, dtype: Any) -> None:
    values = (picture.astype(dtype) - (100 if dtype == np.int16 else 0)) * (1 if dtype == np.uint8 else 90)
    values[20:30] = values[20, 0]
    np.testing.assert_array_equal(read_grey(wrap(frame(segments(values)), values, RLE)), stretched(values))


def test_colour(wrap: Wrap, refused: Refused, colours: Array) -> None:
    luma = colours.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(read_grey(wrap(frame(segments(colours)), colours, RLE)) - luma).max() <= 0.51
    path = wrap(frame(segments(colours)), colours, RLE, PhotometricInterpretation="YBR_RCT")
    refused(path, "YBR_RCT in its header and components in its RLE stream")
    bits = wrap(frame(segments(colours)), colours, RLE, BitsStored=6)
    refused(bits, "has values of more than 6 bits in its RLE stream")


def test_rows_and_columns_exchanged(wrap: Wrap, refused: Refused, picture: Array) -> None:
    path = wrap(frame(segments(picture)), picture, RLE, Rows=70, Columns=48)
    refused(path, "has RLE runs that keep to rows of 70 pixels, expected rows of 48, by its Columns")


def test_runs_that_cross_rows_anywhere_are_read(wrap: Wrap, picture: Array) -> None:
    values = picture.copy()
    values[10:12] = 7
    whole = frame([packed(values.reshape(1, -1))])
    np.testing.assert_array_equal(read_grey(wrap(whole, values, RLE)), stretched(values))


@pytest.mark.parametrize("rows", [47, 49])
def test_other_rows(wrap: Wrap, refused: Refused, picture: Array, rows: int) -> None:
    path = wrap(frame(segments(picture)), picture, RLE, Rows=rows)
    refused(path, r"has an RLE segment 1 (that gives \d+ bytes|with \d+ bytes left over)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: frame(s[:1]), "of 1 segments, expected 2, by its SamplesPerPixel and BitsAllocated"),
        (lambda s: frame([*s, s[0]]), "of 3 segments, expected 2"),
        (lambda s: frame([s[0][:-40], s[1]]), r"segment 1 that gives \d+ bytes, expected 3360"),
        (lambda s: frame([s[0], s[1][:-40]]), r"segment 2 that gives \d+ bytes, expected 3360"),
        (lambda s: frame([s[0] + b"\0\0", s[1]]), "segment 1 with [23] bytes left over"),
        (lambda s: frame([s[0], s[1] + b"\1\2\3\4"]), "segment 2 with [45] bytes left over"),
        (lambda s: frame(s)[:60], "of 60 bytes, expected a header of 64"),
        (lambda s: frame(s)[:4] + b"\x42" + frame(s)[5:], "segments don't follow each other"),
        (lambda s: frame(s)[:8] + b"\0\0\0\1" + frame(s)[12:], "segments don't follow each other"),
        (lambda s: frame(s)[:12] + b"\x50\0\0\0" + frame(s)[16:], "segments don't follow each other"),
    ],
)
def test_damaged_frames(wrap: Wrap, refused: Refused, picture: Array, change: Any, message: str) -> None:
    values = picture.astype(np.uint16) * 77
    refused(wrap(change(segments(values)), values, RLE), message)


@pytest.mark.parametrize("at", [700, 701])
def test_a_hole_that_reads_as_zeros(wrap: Wrap, refused: Refused, at: int) -> None:
    """Of a writer that codes runs; of one that codes every byte by itself, zeros may be right."""
    values = np.random.default_rng(4).integers(1, 255, (40, 50), np.uint8)
    one_by_one = b"".join(bytes([0, value]) for value in values.ravel())
    runs = b"".join(bytes([206 + 1, row]) for row in range(40, 80))  # 40 rows of 50 times one value
    values = np.concatenate([values, np.repeat(np.arange(40, 80, dtype=np.uint8)[:, None], 50, axis=1)])
    np.testing.assert_array_equal(read_grey(wrap(frame([one_by_one + runs]), values, RLE)), stretched(values))
    holed = one_by_one[:at] + bytes(64) + one_by_one[at + 64 :]
    refused(wrap(frame([holed + runs]), values, RLE), "RLE frame with a hole")
    assert not read_grey(wrap(frame([holed]), values[:40], RLE))[7, 1:30].any()


def test_bits_that_do_not_fit(wrap: Wrap, refused: Refused, picture: Array) -> None:
    refused(wrap(frame(segments(picture)), picture, RLE, BitsStored=12), "has 12 bits stored of 8 allocated")
    path = wrap(frame(segments(picture)), picture, RLE, BitsAllocated=16, BitsStored=8)
    refused(path, "of 1 segments, expected 2")
