"""JPEG-LS in DICOM: CharLS holds the scan to its last bit; the head is held against the DICOM header here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: pip install 'mpmmu-rt[codecs]'")
LOSSLESS, NEAR = "4.80", "4.81"
Wrap = Callable[..., Any]
Refused = Callable[..., Any]


def deep(picture: Array) -> Array:
    return picture.astype(np.uint16) * 200 + 77


def stretched(values: Array) -> Array:
    """From its own range, but for 8 unsigned bits, which are grey already."""
    if values.dtype == np.uint8:
        return values
    wide = values.astype(np.float64)
    return np.asarray(np.rint(255 * (wide - wide.min()) / (wide.max() - wide.min())), np.uint8)


def without_spiff(data: bytes) -> bytes:
    return data[:2] + data[data.index(b"\xff\xf7") :]


@pytest.mark.parametrize("spiff", [False, True])
def test_grey(wrap: Wrap, picture: Array, spiff: bool) -> None:
    for values in (picture, deep(picture)):
        data = imagecodecs.jpegls_encode(values)
        path = wrap(data if spiff else without_spiff(data), values, LOSSLESS)
        np.testing.assert_array_equal(read_grey(path), stretched(values))


def test_fill_bytes(wrap: Wrap, picture: Array) -> None:
    """DCMTK makes the length of a stream even with FF in front of its EOI."""
    data = imagecodecs.jpegls_encode(picture)
    at = data.index(b"\xff\xf7")
    filled = data[:at] + b"\xff" + data[at:-2] + b"\xff\xff" + data[-2:]
    np.testing.assert_array_equal(read_grey(wrap(filled, picture, LOSSLESS)), stretched(picture))


def test_near_lossless(wrap: Wrap, refused: Refused, picture: Array) -> None:
    data = imagecodecs.jpegls_encode(picture, level=2)
    path = wrap(data, picture, NEAR, WindowCenter=128, WindowWidth=256)
    assert np.abs(read_grey(path).astype(int) - picture).max() <= 2
    refused(wrap(data, picture, NEAR, PhotometricInterpretation="PALETTE COLOR"), "indices into a palette in lossy")


def test_colour(wrap: Wrap, refused: Refused, colours: Array) -> None:
    data = imagecodecs.jpegls_encode(colours)
    luma = colours.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(read_grey(wrap(data, colours, LOSSLESS)) - luma).max() <= 0.51
    # SPIFF says RGB; without it the header decides.
    as_ybr = {"PhotometricInterpretation": "YBR_FULL"}
    refused(wrap(data, colours, LOSSLESS, **as_ybr), "YBR_FULL in its header and RGB in its JPEG-LS")
    ybr = np.stack([colours[..., 0] // 2 + 60, *[np.full(colours.shape[:2], 128, np.uint8)] * 2], axis=-1)
    path = wrap(without_spiff(imagecodecs.jpegls_encode(ybr)), ybr, LOSSLESS, **as_ybr)
    np.testing.assert_array_equal(read_grey(path), ybr[..., 0])


def test_any_cut_hole_or_addition(wrap: Wrap, refused: Refused, picture: Array) -> None:
    values = deep(picture)
    data = imagecodecs.jpegls_encode(values)
    for at in range(80, len(data) - 2, 397):
        refused(wrap(data[:at] + b"\xff\xd9", values, LOSSLESS), "JPEG-LS stream")
        refused(wrap(data[:at] + bytes(64) + data[at + 64 :], values, LOSSLESS), "JPEG-LS stream")
    for extra in range(1, 10):
        refused(wrap(data[:-2] + b"\x55" * extra + data[-2:], values, LOSSLESS), "JPEG-LS stream that is not whole")
        refused(wrap(data[: -2 - extra] + data[-2:], values, LOSSLESS), "JPEG-LS stream")
    refused(wrap(data[:-2], values, LOSSLESS), "ends before its marker EOI")


def test_the_header_is_another_pictures(wrap: Wrap, refused: Refused, picture: Array, colours: Array) -> None:
    data = imagecodecs.jpegls_encode(picture)
    refused(
        wrap(data, picture, LOSSLESS, Rows=70, Columns=48), "has Rows and Columns 70 and 48 in its header and 48 and"
    )
    refused(wrap(data, colours, LOSSLESS), "has SamplesPerPixel 3 in its header and 1")
    refused(wrap(data, deep(picture), LOSSLESS), "has BitsStored 16 of BitsAllocated 16 in its header and 8 bits")
    refused(wrap(data + data, picture, LOSSLESS), "bytes after the end of its JPEG-LS stream")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, at: d[: at + 8] + b"\x31" + d[at + 9 :], "SPIFF header says otherwise|frame header"),
        (lambda d, at: d[:at] + b"\xff\xe8\0\7mrfx\1" + d[at:], "HP's colour transform"),
        (lambda d, at: d[: at + 13] + b"\xff\xf8\0\6\2\1\1\0" + d[at + 13 :], "a mapping table"),
        (lambda d, at: d[: at + 11] + b"\x21" + d[at + 12 :], "with sampling factors"),
        (lambda d, at: d[: at + 4] + b"\x11" + d[at + 5 :], "17 bits, expected 1 or 3 components of 2 to 16"),
        (lambda d, at: d[:at] + d[at : at + 13] + d[at:], "two frame headers"),
        (lambda d, at: d[:at] + b"junk" + d[at:], "bytes between two segments"),
        (lambda d, at: d[:at] + b"\xff\xd9", "doesn't code each component once"),
        (lambda d, at: d[:at] + b"\xff\xc4\0\3\0" + d[at:], "marker FFC4"),
        (lambda d, at: d[1:], "begins with"),
    ],
)
def test_malformed_streams(wrap: Wrap, refused: Refused, picture: Array, change: Any, message: str) -> None:
    data = imagecodecs.jpegls_encode(picture)
    refused(wrap(change(data, data.index(b"\xff\xf7")), picture, LOSSLESS), message)
