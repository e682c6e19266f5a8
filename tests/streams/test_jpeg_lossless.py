"""JPEG Lossless, coded here by the standard's own rules: that every sample is there, and is what was coded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array
from mpmmu_rt.streams import jpeg_header, jpeg_lossless

imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: pip install 'mpmmu-rt[codecs]'")
LOSSLESS_SV1 = "4.70"
Wrap = Callable[..., Any]
Refused = Callable[..., Any]


def coded(
    values: Array, bits: int, predictor: int = 1, shift: int = 0, restart_lines: int = 0, ids: bytes = b"\1\2\3"
) -> bytes:
    """T.81 annex H, slowly: 5-bit codes for all categories, components interleaved."""
    planes = np.atleast_3d(values).astype(np.int64) >> shift
    height, width, count = planes.shape
    out, pieces = "", []
    for y in range(height):
        first = y % restart_lines == 0 if restart_lines else y == 0
        if first and y:
            pieces.append(out)
            out = ""
        for x in range(width):
            for plane in np.moveaxis(planes, -1, 0):
                if first:
                    predicted = int(plane[y, x - 1]) if x else 1 << (bits - shift - 1)
                elif x == 0:
                    predicted = int(plane[y - 1, 0])
                else:
                    a, b, c = int(plane[y, x - 1]), int(plane[y - 1, x]), int(plane[y - 1, x - 1])
                    predicted = (a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[
                        predictor - 1
                    ]
                difference = (int(plane[y, x]) - predicted + 32767) % 65536 - 32767
                category = abs(difference).bit_length()
                out += f"{category:05b}"
                if 0 < category < 16:
                    out += f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
    scan = b""
    for number, piece in enumerate([*pieces, out]):
        if number:
            scan += bytes([0xFF, 0xD0 + (number - 1) % 8])
        padded = piece + "1" * (-len(piece) % 8)
        scan += int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", bits, height, width, count) + b"".join(bytes([i, 0x11, 0]) for i in ids[:count])
    parts = [(0xC3, frame), (0xC4, b"\0" + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17)))]
    if restart_lines:
        parts.append((0xDD, struct.pack(">H", restart_lines * width)))
    chosen = b"".join(bytes([i, 0]) for i in ids[:count])
    parts.append((0xDA, bytes([count]) + chosen + bytes([predictor, 0, shift])))
    body = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(part) + 2) + part for marker, part in parts)
    return b"\xff\xd8" + body + scan + b"\xff\xd9"


def noise(bits: int, *shape: int) -> Array:
    values = np.random.default_rng(bits).integers(0, 2**bits, shape)
    values[: shape[0] // 2] = values[: shape[0] // 2] // 9 + np.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    return np.asarray(values % 2**bits, np.uint8 if bits <= 8 else np.uint16)


def stretched(values: Array) -> Array:
    wide = values.astype(np.float64)
    return np.asarray(np.rint(255 * (wide - wide.min()) / (wide.max() - wide.min())), np.uint8)


@pytest.mark.parametrize("restart_lines", [0, 1, 5])
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_what_was_coded_and_nothing_less_or_more(bits: int, predictor: int, restart_lines: int) -> None:
    values = noise(bits, 17, 19)
    data = coded(values, bits, predictor, restart_lines=restart_lines)
    np.testing.assert_array_equal(jpeg_lossless.decode(data, jpeg_header.parse(data)), values)
    for _, end in jpeg_header.intervals(data, jpeg_header.parse(data).scans[0]):
        last = 2 if data[end - 2 : end] == b"\xff\0" else 1
        for damaged in (data[: end - last] + data[end:], data[:end] + b"\x5a" + data[end:]):
            with pytest.raises(ImageError, match=r"has a lossless JPEG stream with \d+ bytes where its 19 x 17 pixels"):
                jpeg_lossless.decode(damaged, jpeg_header.parse(damaged))


@pytest.mark.parametrize("shift", [1, 4])
def test_point_transform(shift: int) -> None:
    values = noise(12, 16, 18)
    data = coded(values, 12, 4, shift)
    decoded = jpeg_lossless.decode(data, jpeg_header.parse(data))
    np.testing.assert_array_equal(decoded, values >> shift << shift)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_three_components(bits: int) -> None:
    values = noise(bits, 16, 17, 3)
    data = coded(values, bits, 6, restart_lines=3)
    np.testing.assert_array_equal(jpeg_lossless.decode(data, jpeg_header.parse(data)), values)


def test_a_strip_begins_within_an_interval() -> None:
    values = noise(12, 150, 16)
    data = coded(values, 12, 7, restart_lines=40)
    np.testing.assert_array_equal(jpeg_lossless.decode(data, jpeg_header.parse(data)), values)


@pytest.mark.parametrize(("bits", "stored"), [(12, 12), (16, 12), (16, 16)])
def test_a_mammogram(wrap: Wrap, bits: int, stored: int) -> None:
    values = noise(12, 30, 40)
    path = wrap(coded(values, bits), values, LOSSLESS_SV1, BitsStored=stored)
    np.testing.assert_array_equal(read_grey(path), stretched(values))


@pytest.mark.parametrize("filled", [False, True])
def test_signed_values_with_and_without_their_sign_in_the_bits_above(wrap: Wrap, filled: bool) -> None:
    values = noise(12, 30, 40).astype(np.int16) - 2048
    raw = values.view(np.uint16) if filled else values.view(np.uint16) & 0xFFF
    path = wrap(coded(raw, 16), values, LOSSLESS_SV1, BitsStored=12)
    np.testing.assert_array_equal(read_grey(path), stretched(values))


def test_values_of_more_bits_than_are_stored(wrap: Wrap, refused: Refused) -> None:
    values = noise(13, 30, 40)
    path = wrap(coded(values, 16), values, LOSSLESS_SV1, BitsStored=12)
    refused(path, r"has values of more than 12 bits in its JPEG \(lossless\) stream, expected at most BitsStored")


def test_values_of_more_bits_than_the_stream_says(wrap: Wrap, refused: Refused) -> None:
    """Differences are modulo 2**16: only a damaged stream leaves its own precision."""
    path = wrap(coded(noise(11, 30, 40), 10), noise(11, 30, 40), LOSSLESS_SV1, BitsStored=10)
    refused(path, "has a lossless JPEG stream of 10 bits whose values need more")


def test_colour_is_what_the_header_says(wrap: Wrap, refused: Refused) -> None:
    values = noise(8, 24, 20, 3)
    values[..., 1:] = values[..., 1:] // 8 + 112
    luma = values.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(read_grey(wrap(coded(values, 8), values, LOSSLESS_SV1)) - luma).max() <= 0.51
    path = wrap(coded(values, 8), values, LOSSLESS_SV1, PhotometricInterpretation="YBR_FULL")
    in_gamut = (values[..., 0] > 40) & (values[..., 0] < 215)
    assert np.abs(read_grey(path).astype(int) - values[..., 0])[in_gamut].max() <= 1
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    marked = coded(values, 8)[:2] + adobe + coded(values, 8)[2:]
    refused(wrap(marked, values, LOSSLESS_SV1, PhotometricInterpretation="YBR_FULL"), "YBR_FULL in its header and RGB")


def test_half_a_scan_and_other_sizes(wrap: Wrap, refused: Refused) -> None:
    values = noise(12, 40, 30)
    data = coded(values, 12)
    refused(
        wrap(data[: len(data) // 2] + b"\xff\xd9", values, LOSSLESS_SV1, BitsStored=12),
        "bytes where its 30 x 40 pixels take",
    )
    refused(
        wrap(data, values, LOSSLESS_SV1, Rows=30, Columns=40, BitsStored=12),
        "Rows and Columns 30 and 40 in its header and 40 and",
    )
    refused(
        wrap(data, values.astype(np.uint8), LOSSLESS_SV1), "BitsStored 8 of BitsAllocated 8 in its header and 12 bits"
    )
    for line in (-1, 1):  # the stream's own size is wrong, and the header agrees with it
        other = bytearray(data)
        other[data.index(b"\xff\xc3") + 6] += line
        refused(wrap(bytes(other), values, LOSSLESS_SV1, Rows=40 + line, BitsStored=12), "bytes where its 30 x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\xff\xda\0\x08\1\1\0\1\0\0", b"\xff\xda\0\x08\1\1\0\0\0\0", "predictor 0, expected 1 to 7"),
        (b"\xff\xda\0\x08\1\1\0\1\0\0", b"\xff\xda\0\x08\1\1\0\1\0\x0c", "leaves out all bits"),
        (b"\xff\xda\0\x08\1\1\0\1\0\0", b"\xff\xda\0\x08\1\1\x10\1\0\0", "without its Huffman table|can't be decoded"),
    ],
)
def test_malformed_scans(wrap: Wrap, refused: Refused, old: bytes, new: bytes, message: str) -> None:
    values = noise(12, 20, 20)
    data = coded(values, 12)
    assert data.count(old) == 1
    refused(wrap(data.replace(old, new), values, LOSSLESS_SV1, BitsStored=12), message)
