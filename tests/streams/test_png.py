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


def indexed(values: Array, colours: int, *more: tuple[bytes, bytes], bits: int = 8) -> Chunks:
    """Palette indices of 8 bits; `more` behind the palette."""
    height, width = values.shape
    palette = bytes(range(256)) * 3
    return [
        (b"IHDR", header(width, height, bits, 3)),
        (b"PLTE", palette[: 3 * colours]),
        *more,
        (b"IDAT", zlib.compress(rows(values))),
        (b"IEND", b""),
    ]


ORDER: dict[str, tuple[Callable[[Chunks], Chunks], str]] = {
    "no palette": (lambda c: [c[0], *c[2:]], "colour type 3 with no palette, expected one before its pixels"),
    "a late palette": (lambda c: [c[0], c[2], c[1], c[3]], "a chunk 'PLTE' after its first pixels"),
    "a palette twice": (lambda c: [*c[:2], *c[1:]], "a chunk 'PLTE' twice"),
    "a palette twice, late": (lambda c: [*c[:3], c[1], c[3]], "a chunk 'PLTE' after its first pixels"),
    "a palette after transparency": (lambda c: [c[0], (b"tRNS", b"\0"), *c[1:]], "PLTE after tRNS"),
    "an empty palette": (lambda c: [c[0], (b"PLTE", b""), *c[2:]], "colour type 3 with a palette of 0 bytes"),
    "part of a colour": (lambda c: [c[0], (b"PLTE", c[1][1][:-1]), *c[2:]], "a palette of 767 bytes"),
    "257 colours": (lambda c: [c[0], (b"PLTE", bytes(771)), *c[2:]], "a palette of 771 bytes"),
    "grey with a palette": (
        lambda c: [(b"IHDR", header(70, 48)), *c[1:]],
        "colour type 0 with a palette of 768 bytes, expected none with grey",
    ),
    "late transparency": (lambda c: [*c[:3], (b"tRNS", b"\0"), c[3]], "a chunk 'tRNS' after its first pixels"),
    "transparency twice": (lambda c: [*c[:2], (b"tRNS", b"\0"), (b"tRNS", b"\7"), *c[2:]], "a chunk 'tRNS' twice"),
    "too much transparency": (lambda c: [*c[:2], (b"tRNS", bytes(257)), *c[2:]], "257 bytes of transparency"),
    "a late aspect": (lambda c: [*c[:3], (b"pHYs", bytes(9)), c[3]], "a chunk 'pHYs' after its first pixels"),
    "an aspect twice": (lambda c: [*c[:2], *[(b"pHYs", bytes(9))] * 2, *c[2:]], "a chunk 'pHYs' twice"),
    "an unknown critical chunk": (lambda c: [*c[:2], (b"IDOT", b"a"), *c[2:]], "a chunk 'IDOT', without which"),
}


@pytest.mark.parametrize("name", ORDER)
def test_chunks_that_say_what_pixels_mean(refused: Refused, tmp_path: Path, picture: Array, name: str) -> None:
    change, message = ORDER[name]
    refused(written(tmp_path / "a.png", change(indexed(picture, 256))), message)
    assert read_grey(written(tmp_path / "a.png", indexed(picture, 256))).shape == picture.shape


@pytest.mark.parametrize("length", [0, 1, 4, 6])
def test_transparency_of_another_length(refused: Refused, tmp_path: Path, picture: Array, length: int) -> None:
    first, *others = whole(picture)
    path = written(tmp_path / "a.png", [first, (b"tRNS", bytes(length)), *others])
    refused(path, f"colour type 0 with {length} bytes of transparency, expected 2 with grey")


@pytest.mark.parametrize("colours", [1, 2, 100, 255])
def test_pixels_beyond_the_palette_are_refused(refused: Refused, tmp_path: Path, picture: Array, colours: int) -> None:
    """Pillow makes them black."""
    values = (picture.astype(int) % (colours + 1)).astype(np.uint8)
    values[7, 7] = colours
    path = written(tmp_path / "a.png", indexed(values, colours))
    refused(path, f"has pixels of the colour {colours}, expected less than {colours}, by its palette")
    assert read_grey(written(path, indexed(values, colours + 1))).shape == picture.shape


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_pixels_beyond_the_palette_are_refused(refused: Refused, tmp_path: Path, bits: int) -> None:
    packed = np.random.default_rng(bits).integers(0, 256, (32, 16), np.uint8)
    chunks = indexed(packed, 2**bits - 1, bits=bits)
    chunks[0] = (b"IHDR", header(16 * 8 // bits, 32, bits, 3))
    refused(written(tmp_path / "a.png", chunks), f"has pixels of the colour {2**bits - 1}, expected less")


def test_what_libraries_write_behind_the_pixels_is_read(tmp_path: Path, picture: Array) -> None:
    *before, last = indexed(picture, 256, (b"tRNS", b"\xff"), (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)))
    behind = [
        (b"tIME", bytes(7)),
        (b"tEXt", b"a\0b"),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0"),
        (b"prVt", b"private"),
    ]
    expected = read_grey(written(tmp_path / "a.png", [*before, last]))
    np.testing.assert_array_equal(read_grey(written(tmp_path / "b.png", [*before, *behind, last])), expected)


def test_a_suggested_palette_of_a_colour_image_is_read(tmp_path: Path, colours: Array) -> None:
    height, width = colours.shape[:2]
    data = b"".join(b"\0" + row.tobytes() for row in colours)
    chunks = [(b"IHDR", header(width, height, 8, 2)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    expected = read_grey(written(tmp_path / "a.png", chunks))
    chunks.insert(1, (b"PLTE", bytes(30)))
    np.testing.assert_array_equal(read_grey(written(tmp_path / "b.png", chunks)), expected)


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
