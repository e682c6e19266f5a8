"""PNG: every checksum, and exactly the rows of the header."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunks = list[tuple[bytes, bytes]]
Refused = Callable[..., Any]


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def header(width: int, height: int, bits: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)


def rows(values: Array) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def whole(values: Array) -> Chunks:
    height, width = values.shape
    return [(b"IHDR", header(width, height)), (b"IDAT", zlib.compress(rows(values))), (b"IEND", b"")]


def written(path: Path, chunks: Chunks) -> Path:
    path.write_bytes(SIGNATURE + b"".join(chunk(*one) for one in chunks))
    return path


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_pixels_in_any_number_of_chunks(tmp_path: Path, picture: Array, pieces: int) -> None:
    data = zlib.compress(rows(picture), 0)
    size = -(-len(data) // pieces)
    parts = [(b"IDAT", data[at : at + size]) for at in range(0, len(data), size)]
    first, _, last = whole(picture)
    path = written(tmp_path / "a.png", [first, *parts[:3], (b"IDAT", b""), *parts[3:], last])
    np.testing.assert_array_equal(read_grey(path), picture)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("level", [0, 9])
def test_stored_anew_nothing_changes(tmp_path: Path, mode: str, level: int) -> None:
    y, x = np.mgrid[:90, :300]
    values = ((x * 3 + y * 7) % 256).astype(np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values)
    if mode != "I;16":
        image = image.convert(mode)
    image.save(tmp_path / "a.png", compress_level=level)
    expected = np.asarray(image.convert("L")) if mode == "1" else values
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (16, 61)])
def test_interlaced(tmp_path: Path, bits: int, size: tuple[int, int]) -> None:
    """Adam7, written here: each pass is a picture of its own."""
    height, width = size
    values = np.random.default_rng(bits).integers(0, 2**bits, size)
    data = b""
    for x, y, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for row in values[y::down, x::across]:
            if len(row):
                digits = "".join(f"{value:0{bits}b}" for value in row)
                data += b"\0" + int(digits.ljust(-(-len(digits) // 8) * 8, "0"), 2).to_bytes(
                    -(-len(digits) // 8), "big"
                )
    chunks = [(b"IHDR", header(width, height, bits, 0, 1)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    grey = read_grey(written(tmp_path / "a.png", chunks))
    low, high = (values.min(), values.max()) if bits == 16 else (0, 2**bits - 1)
    np.testing.assert_array_equal(grey, np.rint(255 * (values - low) / (high - low)))


@pytest.mark.parametrize("split", [None, 1, 4, 9])
def test_one_pixel_changed_and_no_checksum_right(
    refused: Refused, tmp_path: Path, picture: Array, split: int | None
) -> None:
    data = bytearray(zlib.compress(rows(picture), 0))
    data[len(data) // 2] ^= 0x40
    parts = [bytes(data)] if split is None else [bytes(data[:-split]), bytes(data[-split:])]
    for checksum in (1, None):  # wrong in the chunk too, or in zlib's stream alone
        chunks = b"".join(chunk(b"IDAT", part, checksum) for part in parts)
        path = tmp_path / "a.png"
        path.write_bytes(SIGNATURE + chunk(*whole(picture)[0]) + chunks + chunk(b"IEND", b""))
        refused(path, "checksum is wrong|damaged pixels .*incorrect data check")


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND", b"tEXt", b"tRNS", b"eXIf"])
def test_every_checksum_counts(refused: Refused, tmp_path: Path, picture: Array, kind: bytes) -> None:
    first, pixels, last = whole(picture)
    chunks = [first, (b"tRNS", b"\0\5"), (b"tEXt", b"a\0b"), (b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0"), pixels, last]
    path = tmp_path / "a.png"
    path.write_bytes(SIGNATURE + b"".join(chunk(name, body, 7 if name == kind else None) for name, body in chunks))
    refused(path, rf"is a PNG file with a chunk {kind.decode()!r} whose checksum is wrong", "damaged")
    assert read_grey(written(path, chunks)).shape == picture.shape


def test_a_header_of_another_size(refused: Refused, tmp_path: Path, picture: Array) -> None:
    _, pixels, last = whole(picture)
    for width, height in ((48, 70), (70, 47), (70, 49), (69, 48), (71, 48)):
        path = written(tmp_path / "a.png", [(b"IHDR", header(width, height)), pixels, last])
        expected = height * (width + 1)
        refused(path, rf"with \d+ bytes (or more )?of pixels, expected exactly {expected}, by its header")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c[0], (b"IDAT", c[1][1][:-1]), c[2]], "bytes of pixels, expected exactly"),
        (lambda c: [c[0], (b"IDAT", c[1][1][:-4]), c[2]], "bytes of pixels, expected exactly"),
        (lambda c: [c[0], (b"IDAT", c[1][1][:400]), c[2]], "bytes of pixels, expected exactly"),
        (lambda c: [c[0], (b"IDAT", c[1][1] + b"more"), c[2]], "data after its pixels"),
        (lambda c: [c[0], c[1], (b"IDAT", b"more"), c[2]], "data after its pixels"),
        (lambda c: [c[0], (b"IDAT", b"\0" * 99), c[2]], "damaged pixels"),
        (lambda c: [c[0], c[2]], "bytes of pixels, expected exactly"),
        (lambda c: c[:2], "ends before its chunk IEND"),
        (lambda c: c[1:], "header that is not first"),
        (lambda c: [c[0], *c], "header that is not first, or twice"),
        (lambda c: [*c, c[1], c[2]], "bytes after its end, expected IEND to be the last"),
        (lambda c: [(b"IHDR", header(70, 48, 3)), *c[1:]], "colour type 0 with 3 bits"),
        (lambda c: [(b"IHDR", header(70, 48, 8, 5)), *c[1:]], "colour type 5 with 8 bits"),
    ],
)
def test_damaged_files(refused: Refused, tmp_path: Path, picture: Array, change: Any, message: str) -> None:
    refused(written(tmp_path / "a.png", change(whole(picture))), message, "damaged")


def test_zeros_after_the_end_are_padding(tmp_path: Path, picture: Array) -> None:
    path = written(tmp_path / "a.png", whole(picture))
    path.write_bytes(path.read_bytes() + bytes(300))
    np.testing.assert_array_equal(read_grey(path), picture)


def test_what_inflates_without_bound_is_not_inflated(refused: Refused, tmp_path: Path, picture: Array) -> None:
    bomb = zlib.compress(bytes(60_000_000), 9)
    first, _, last = whole(picture)
    refused(written(tmp_path / "a.png", [first, (b"IDAT", bomb), last]), "bytes or more of pixels, expected exactly")


def test_each_frame_of_an_animation(refused: Refused, tmp_path: Path, picture: Array) -> None:
    images = [Image.fromarray(np.ascontiguousarray(part)) for part in (picture, picture[::-1])]
    out = io.BytesIO()
    images[0].save(out, "png", save_all=True, append_images=images[1:])
    (tmp_path / "a.png").write_bytes(out.getvalue())
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", frame=1), picture[::-1])
    data = out.getvalue()
    at = data.index(b"fdAT") - 4
    (length,) = struct.unpack_from(">I", data, at)
    body = data[at + 8 : at + 8 + length]
    for damaged in (body[:-40], body[:4] + zlib.compress(b"\0" * 99)):
        (tmp_path / "a.png").write_bytes(data[:at] + chunk(b"fdAT", damaged) + data[at + 12 + length :])
        refused(tmp_path / "a.png", "bytes of pixels, expected exactly", frame=1)
