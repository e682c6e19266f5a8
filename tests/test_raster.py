"""PNG, JPEG and BMP: transparency and depth of samples, pixels that are not square. The rest is in test_images.py."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import Preprocessing, preprocess, read_grey, read_image, read_pixels
from mpmmu_rt.spec import Array

H, W = 40, 52


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(samples: Array, bits: int, colour_type: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """Samples [H, W, C] of `bits` bits each, packed; `chunks` before the data."""
    height, width = samples.shape[:2]
    passes = [samples[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [samples]
    rows = b""
    for one in passes:
        flat = one.reshape(len(one), -1).astype(np.uint16)
        planes = (flat[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(len(one), -1)
        rows += b"".join(b"\0" + row.tobytes() for row in np.packbits(planes, axis=1))
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pattern(top: int, height: int = H, width: int = W) -> Array:
    y, x = np.mgrid[:height, :width]
    return np.asarray((x * 7 + y * 13 + x * y // 3) % 256 * top // 255)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_grey(path)
    assert "\n" not in str(caught.value) + caught.value.hint


# transparency ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("beyond", [0, 0xFF00])
def test_one_transparent_grey_value_of_any_depth(tmp_path: Path, bits: int, beyond: int) -> None:
    """`beyond`: bits above the depth of the samples, which PNG 11.3.2.1 says are to be masked."""
    top = 2**bits - 1
    samples = pattern(top)
    for see_through in {0, 1, top // 2, top}:
        transparent = chunk(b"tRNS", struct.pack(">H", see_through | (beyond if bits == 8 else beyond >> 8 << bits)))
        (tmp_path / "a.png").write_bytes(png(samples, bits, 0, transparent))
        expected = np.where(samples == see_through, 0, samples * 255 // top)
        if expected.any():
            np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("beyond", [0, 0x1100])
def test_one_transparent_colour(tmp_path: Path, beyond: int) -> None:
    rgb = np.stack([pattern(255), pattern(255)[::-1], pattern(255)[:, ::-1]], axis=-1)
    rgb[3:9, 5:20] = (10, 200, 30)
    transparent = chunk(b"tRNS", struct.pack(">3H", 10 | beyond, 200 | beyond, 30 | beyond))
    (tmp_path / "a.png").write_bytes(png(rgb, 8, 2, transparent))
    grey = read_grey(tmp_path / "a.png")
    assert not grey[3:9, 5:20].any()
    opaque = (rgb != (10, 200, 30)).any(-1)
    assert np.abs(grey - rgb @ [0.299, 0.587, 0.114])[opaque].max() <= 0.51


def test_one_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow compares it with the upper halves of the samples."""
    rgb = np.repeat(pattern(65535)[..., None], 3, axis=-1)
    (tmp_path / "a.png").write_bytes(png(rgb, 16, 2, chunk(b"tRNS", struct.pack(">3H", 1, 1, 1))))
    refused(tmp_path / "a.png", "has 16 bits per colour channel and one transparent colour")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_with_transparency_of_any_depth(tmp_path: Path, bits: int) -> None:
    index = pattern(2**bits - 1)
    colours = np.random.default_rng(6).integers(30, 256, (2**bits, 3))
    alpha = np.random.default_rng(7).integers(0, 256, 2**bits)
    chunks = chunk(b"PLTE", colours.astype(np.uint8).tobytes()), chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    (tmp_path / "a.png").write_bytes(png(index, bits, 3, *chunks))
    expected = (colours @ [0.299, 0.587, 0.114] * alpha / 255)[index]
    assert np.abs(read_grey(tmp_path / "a.png") - expected).max() <= 1.01


# depth ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (3, 2), (4, 6)])
@pytest.mark.parametrize("top", [1000, 3800, 16000, 30000])
@pytest.mark.parametrize("marker", [(1, 1), (3, 3), (10, 20)])
def test_16_bit_colour_of_fewer_bits_with_a_white_marker_is_refused(
    tmp_path: Path, channels: int, colour_type: int, top: int, marker: tuple[int, int]
) -> None:
    samples = np.repeat(pattern(top)[..., None], channels, axis=-1)
    samples[: marker[0], : marker[1]] = 65535
    if channels != 3:
        samples[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, 16, colour_type))
    refused(tmp_path / "a.png", "has 16 bits per colour channel and grey values up to")


@pytest.mark.parametrize("marker", [0, 3])
def test_16_bit_colour_of_16_bits_is_read(tmp_path: Path, marker: int) -> None:
    samples = np.repeat(pattern(40000)[..., None], 3, axis=-1)
    samples[:marker, :marker] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, 16, 2))
    assert np.abs(read_grey(tmp_path / "a.png").astype(int) - (samples[..., 0] >> 8)).max() <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (3, 2), (4, 6)])
def test_16_bit_colour_is_rounded_and_not_cut(
    tmp_path: Path, channels: int, colour_type: int, turned: bool, interlaced: bool
) -> None:
    """As in TIFF and DICOM. Upper bytes alone are half a grey value darker, on which a decision can hang."""
    samples = np.random.default_rng(channels).integers(0, 65536, (H, W, channels))
    samples[0, 0] = 255  # 1 of 255, and 0 of its upper byte
    alpha = channels in (2, 4)
    if alpha:
        samples[..., -1] = np.random.default_rng(9).choice([65535, 32639, 128, 0], (H, W))
    exif = [chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0")] if turned else []
    (tmp_path / "a.png").write_bytes(png(samples, 16, colour_type, *exif, interlaced=interlaced))
    rounded = np.rint(samples / 257).astype(np.uint8)
    shown = Image.fromarray(rounded[..., [0, 0, 0, 1]] if channels == 2 else rounded)
    if alpha:
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, (0, 0, 0, 255)), shown).convert("RGB")
    wanted = np.asarray(shown.convert("L"))
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), wanted[::-1, ::-1] if turned else wanted)


def test_16_bit_colour_of_png_is_that_of_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: pip install 'mpmmu-rt[dev]'")
    samples = np.random.default_rng(1).integers(0, 65536, (H, W, 3))
    (tmp_path / "a.png").write_bytes(png(samples, 16, 2))
    tifffile.imwrite(tmp_path / "a.tif", samples.astype(np.uint16), photometric="rgb")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), read_grey(tmp_path / "a.tif"))


def test_frames_of_16_bit_colour_are_refused(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(0, 65536, (H, W, 3))
    control = struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 10, 0, 0)
    again = struct.pack(">IIIIIHHBB", 1, W, H, 0, 0, 1, 10, 0, 0)
    data = png(samples, 16, 2, chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", control))
    at = data.index(b"IDAT") - 4
    body = data[at + 8 : at + 8 + int.from_bytes(data[at : at + 4], "big")]
    second = chunk(b"fcTL", again) + chunk(b"fdAT", struct.pack(">I", 2) + body)
    (tmp_path / "a.png").write_bytes(data[:-12] + second + data[-12:])
    with pytest.raises(ImageError, match="has 16 bits per colour channel and several frames, expected one"):
        read_grey(tmp_path / "a.png", frame=1)


@pytest.mark.parametrize("top", [1000, 3800, 5000])
def test_16_bit_grey_of_fewer_bits_with_a_white_marker_is_refused(tmp_path: Path, top: int) -> None:
    samples = pattern(top)
    samples[:3, :3] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, 16, 0))
    refused(tmp_path / "a.png", "has 99 % of its pixels in the grey values")


def test_a_dark_picture_with_a_bright_lesion_is_read(tmp_path: Path) -> None:
    """Most of it is background and dark tissue; the lesion is 3 % of what is not background."""
    samples = np.where(pattern(99) < 40, 0, 200 + pattern(300))
    samples[10:16, 10:22] = 3000 + pattern(900, 6, 12)
    (tmp_path / "a.png").write_bytes(png(samples, 16, 0))
    grey = read_grey(tmp_path / "a.png").astype(int)
    np.testing.assert_array_equal(grey, np.rint(255 * samples / samples.max()))


# pixels that are not square ────────────────────────────────────────────────────────────────────────


def circle() -> Array:
    y, x = np.mgrid[:128, :256]
    return np.where(((y - 64) * 2.0) ** 2 + (x - 128.0) ** 2 < 80**2, 220, 20).astype(np.uint8)


def phys(x: int, y: int, unit: int) -> bytes:
    return chunk(b"pHYs", struct.pack(">IIB", x, y, unit))


def jfif(path: Path, unit: int, x: int, y: int) -> None:
    Image.fromarray(circle()).save(path, quality=95)
    data = bytearray(path.read_bytes())
    at = data.index(b"JFIF\0") + 7
    data[at : at + 5] = struct.pack(">BHH", unit, x, y)
    path.write_bytes(data)


def write(path: Path, kind: str, numerator: int, denominator: int) -> None:
    """`circle` with pixels of numerator:denominator."""
    if kind.startswith("pHYs"):
        path.write_bytes(png(circle(), 8, 0, phys(100 * numerator, 100 * denominator, int(kind[-1]))))
    elif kind.startswith("JFIF"):
        jfif(path, int(kind[-1]), 100 * numerator, 100 * denominator)
    elif kind == "BMP":
        Image.fromarray(circle()).save(path, format="BMP", dpi=(100 * numerator, 100 * denominator))
    else:
        exif = Image.Exif()
        exif[0x011A], exif[0x011B] = 100.0 * numerator, 100.0 * denominator
        Image.fromarray(circle()).save(path, format="PNG", exif=exif)


KINDS = ["pHYs 0", "pHYs 1", "JFIF 0", "JFIF 1", "JFIF 2", "BMP", "Exif"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_circle_stays_round(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    write(path, kind, 2, 1)
    assert read_image(path).pixel_aspect == pytest.approx(2.0, abs=0.002)
    seen = read_pixels(path, Preprocessing(224))[0] > 120
    assert abs(int(seen.any(1).sum()) - int(seen.any(0).sum())) <= 2
    write(path, kind, 1, 2)
    assert read_image(path).pixel_aspect == pytest.approx(0.5, abs=0.002)
    write(path, kind, 1, 1)
    np.testing.assert_array_equal(read_pixels(path, Preprocessing(64)), preprocess(read_grey(path), Preprocessing(64)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_that_no_pixel_has_is_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.jpg", kind, 9, 1)
    refused(tmp_path / "a.jpg", "expected a ratio from 1:8 to 8:1")


@pytest.mark.parametrize("kind", ["pHYs 0", "pHYs 1", "JFIF 0"])
def test_two_zeros_state_nothing_and_one_is_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.jpg", kind, 0, 0)
    assert read_image(tmp_path / "a.jpg").pixel_aspect == 1.0
    write(tmp_path / "a.jpg", kind, 0, 1)
    refused(tmp_path / "a.jpg", "states pixels 0 high")


def test_rounded_resolutions_are_square(tmp_path: Path) -> None:
    for x, y in ((2834, 2835), (72, 72), (2835, 2828)):
        (tmp_path / "a.png").write_bytes(png(circle(), 8, 0, phys(x, y, 1)))
        assert read_image(tmp_path / "a.png").pixel_aspect == 1.0


def test_two_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B] = 300.0, 150.0
    Image.fromarray(circle()).save(tmp_path / "a.jpg", exif=exif, dpi=(72, 72))
    refused(tmp_path / "a.jpg", "states pixels of 1:1 by its JFIF density and of 2:1 by its Exif resolution")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_aspect_turns_with_the_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(circle()).save(tmp_path / "a.png", exif=exif, dpi=(300, 150))
    image = read_image(tmp_path / "a.png")
    assert image.pixel_aspect == pytest.approx(2.0 if orientation < 5 else 0.5, abs=0.001)
    assert image.grey.shape == ((128, 256) if orientation < 5 else (256, 128))


# messages ──────────────────────────────────────────────────────────────────────────────────────────


def kinds_of_bmp() -> dict[str, Any]:
    plain = 14 + 40
    return {
        "compression 9": (plain - 24, struct.pack("<I", 9)),
        "3 bits": (28, struct.pack("<H", 3)),
        "a header of 99 bytes": (14, struct.pack("<I", 99)),
    }


@pytest.mark.parametrize("name", kinds_of_bmp())
def test_what_is_not_supported_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    at, value = kinds_of_bmp()[name]
    Image.fromarray(circle()).save(tmp_path / "a.bmp")
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    data[at : at + len(value)] = value
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(ImageError, match=r"can't be read \(a kind of its format that is not supported\)") as caught:
        read_grey(tmp_path / "a.bmp")
    assert caught.value.hint == "save it as 8-bit or 16-bit grey PNG, without loss"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_bmp_that_ends_early_is_refused_whatever_pillow_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Other libraries in the process set this, and Pillow then makes the rest black."""
    grey = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    path = tmp_path / "a.bmp"
    Image.fromarray(grey).convert(mode).save(path)
    whole = read_grey(path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    np.testing.assert_array_equal(read_grey(path), whole)
    data = path.read_bytes()
    for cut in (1, 64, len(data) // 3):
        path.write_bytes(data[:-cut])
        with pytest.raises(ImageError, match="it ends before its image does"):
            read_grey(path)


# BMP: uncompressed rows that end with the file ─────────────────────────────────────────────────────


def bmp(grey: Array, bits: int = 8, entries: int = 256, header: int = 40, behind: bytes = b"", **stated: int) -> bytes:
    """uint8 [H, W] that fits into `bits`; the palette is the negative, so that it counts."""
    height, width = grey.shape
    samples = np.repeat(grey[..., None], 3, axis=-1) if bits == 24 else grey[..., None]
    flat = samples.reshape(height, -1)
    deep = 8 if bits == 24 else bits
    planes = (flat[..., None] >> np.arange(deep - 1, -1, -1) & 1).astype(np.uint8).reshape(height, -1)
    stride = (width * bits + 31) // 32 * 4
    rows = b"".join(row.tobytes().ljust(stride, b"\0") for row in np.packbits(planes, axis=1)[::-1])
    table = b"".join(bytes([255 - index] * 3) + (b"" if header == 12 else b"\0") for index in range(entries))
    table = table if bits <= 8 else b""
    offset = 14 + header + len(table)
    size = stated.get("size", offset + len(rows) + len(behind))
    begin = b"BM" + struct.pack("<I4xI", size, stated.get("offset", offset))
    if header == 12:
        begin += struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        pixels, colours = stated.get("pixels", len(rows)), stated.get("colours", entries if bits <= 8 else 0)
        begin += struct.pack(
            "<IiiHHIIiiII", header, width, height, 1, bits, stated.get("compression", 0), pixels, 0, 0, colours, 0
        )
        begin = begin.ljust(14 + header, b"\0")
    return begin + table + rows + behind


def grey_of_bmp(path: Path, data: bytes) -> Array:
    path.write_bytes(data)
    return read_grey(path)


@pytest.mark.parametrize("header", [12, 40, 64, 108, 124])
@pytest.mark.parametrize(("bits", "entries"), [(1, 2), (4, 16), (8, 256), (24, 0)])
def test_bmp_of_every_header(tmp_path: Path, header: int, bits: int, entries: int) -> None:
    grey = pattern(min(255, 2**bits - 1)).astype(np.uint8)
    expected = grey if bits == 24 else 255 - grey
    np.testing.assert_array_equal(grey_of_bmp(tmp_path / "a.bmp", bmp(grey, bits, entries, header)), expected)


GOOD: dict[str, dict[str, Any]] = {
    "no length of the file": {"size": 0},
    "no length of the pixels": {"pixels": 0},
    "OS/2's length of the headers": {"size": 54},
    "two zeros, counted": {"behind": bytes(2), "pixels": H * W + 2},
    "two zeros, not counted": {"behind": bytes(2), "size": 1078 + H * W},
    "few colours": {"entries": 100},
    "no number of colours": {"colours": 0},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_writers_of_bmp_are_known_to_do_is_read(tmp_path: Path, name: str) -> None:
    options = GOOD[name]
    grey = pattern(options.get("entries", 256) - 1).astype(np.uint8)
    np.testing.assert_array_equal(grey_of_bmp(tmp_path / "a.bmp", bmp(grey, **options)), 255 - grey)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "pixels in the palette": ({"offset": 566}, "is a BMP whose pixels begin at byte 566, expected 1078 or more"),
    "pixels in the header": ({"offset": 54}, "is a BMP whose pixels begin at byte 54, expected 1078 or more"),
    "pixels at no offset": ({"offset": 0}, "is a BMP whose pixels begin at byte 0, expected 1078 or more"),
    "pixels a row later": ({"offset": 1078 + W}, r"can't be read \(it ends before its image does\)"),
    "four bytes more": ({"behind": bytes(4)}, f"is a BMP of {1082 + H * W} bytes, expected {1078 + H * W}, by its"),
    "one byte that is no zero": ({"behind": b"a"}, f"is a BMP of {1079 + H * W} bytes, expected {1078 + H * W}"),
    "another length of the file": ({"size": 9999}, f"is a BMP of {1078 + H * W} bytes that states 9999"),
    "another length of the pixels": ({"pixels": H * W - W}, f"with {H * W} bytes of pixels that states {H * W - W}"),
    "RLE": ({"compression": 1}, "is a BMP with the compression 1, expected uncompressed rows"),
    "RLE of 4 bits": ({"compression": 2}, "is a BMP with the compression 2, expected uncompressed rows"),
    "colours beyond the palette": ({"entries": 255}, "has pixels of the colour 255, expected less than 255"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bmp_that_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    options, message = BAD[name]
    grey = pattern(255).astype(np.uint8)
    grey[0, 0] = 255
    (tmp_path / "a.bmp").write_bytes(bmp(grey, **options))
    refused(tmp_path / "a.bmp", message)


@pytest.mark.parametrize(("at", "value"), [(18, W - 4), (18, W + 4), (22, H - 1), (22, -(H - 1))])
def test_a_bmp_of_another_size_is_refused(tmp_path: Path, at: int, value: int) -> None:
    data = bytearray(bmp(pattern(255).astype(np.uint8)))
    struct.pack_into("<i", data, at, value)
    (tmp_path / "a.bmp").write_bytes(data)
    refused(tmp_path / "a.bmp", "is a BMP of|it ends before its image does")


def test_a_grey_palette_that_pillow_leaves_out_counts_too(tmp_path: Path) -> None:
    data = bytearray(bmp(pattern(99).astype(np.uint8), entries=100))
    data[54:454] = b"".join(bytes([index, index, index, 0]) for index in range(100))
    np.testing.assert_array_equal(grey_of_bmp(tmp_path / "a.bmp", bytes(data)), pattern(99))
    data[-1] = 100
    (tmp_path / "a.bmp").write_bytes(data)
    refused(tmp_path / "a.bmp", "has pixels of the colour 100, expected less than 100, by its palette")


def test_masks_are_not_pixels(tmp_path: Path) -> None:
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    rows = np.random.default_rng(4).integers(0, 256, 20 * 20 * 2, np.uint8).tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, 20, 20, 1, 16, 3, 0, 0, 0, 0, 0)
    for offset, data in ((66, masks + rows), (54, masks + rows[:-12])):
        (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<I4xI", 0, offset) + info + data)
        if offset == 66:
            assert read_grey(tmp_path / "a.bmp").shape == (20, 20)
    refused(tmp_path / "a.bmp", "is a BMP whose pixels begin at byte 54, expected 66 or more")


def test_a_colour_profile_behind_the_pixels(tmp_path: Path) -> None:
    grey, profile = pattern(255).astype(np.uint8), bytes(range(1, 100))
    data = bytearray(bmp(grey, header=124, behind=profile + b"\0"))
    (tmp_path / "a.bmp").write_bytes(data)
    refused(tmp_path / "a.bmp", "is a BMP of")
    struct.pack_into("<II", data, 14 + 112, len(data) - 100 - 14, 100)
    np.testing.assert_array_equal(grey_of_bmp(tmp_path / "a.bmp", bytes(data)), 255 - grey)
    struct.pack_into("<II", data, 14 + 112, len(data) - 100 - 14, 101)
    (tmp_path / "a.bmp").write_bytes(data)
    refused(tmp_path / "a.bmp", "is a BMP of")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_bmp_needs_the_padding_behind_its_last_pixel(tmp_path: Path, mode: str) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (20, 21), np.uint8)
    path = tmp_path / "a.bmp"
    Image.fromarray(grey).convert(mode).save(path)
    np.testing.assert_array_equal(read_grey(path), grey)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "it ends before its image does")


# a net ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_assertion_of_pillow_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A palette image without its palette was one; such a file must not end a run."""
    Image.fromarray(circle()).save(tmp_path / "a.png")

    def load(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    refused(tmp_path / "a.png", r"can't be read \(its content does not follow its format\)")


# PNG ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_that_says_twice_how_it_is_turned_is_refused(tmp_path: Path, behind: bool) -> None:
    first, second = (
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([turn]) + bytes(6)) for turn in (6, 1)
    )
    samples = pattern(255)[..., None]
    (tmp_path / "a.png").write_bytes(png(samples, 8, 0, first))
    assert read_grey(tmp_path / "a.png").shape == (W, H)
    whole = png(samples, 8, 0, first) if behind else png(samples, 8, 0, first, second)
    (tmp_path / "a.png").write_bytes(whole[:-12] + (second if behind else b"") + whole[-12:])
    refused(tmp_path / "a.png", "is a PNG file with a chunk 'eXIf' twice, expected it once")


@pytest.mark.parametrize(
    "body",
    [(b"iCCP", b"profile\0\0"), (b"zTXt", b"text\0\0"), (b"iTXt", b"text\0\1\0\0\0")],
    ids=lambda body: str(body[0]),
)
def test_a_large_profile_is_not_called_damaged(tmp_path: Path, body: tuple[bytes, bytes]) -> None:
    large = chunk(body[0], body[1] + zlib.compress(bytes(3 * 10**6)))
    (tmp_path / "a.png").write_bytes(png(pattern(255)[..., None], 8, 0, large))
    with pytest.raises(ImageError, match="more than 1 MB of text or of a colour profile") as caught:
        read_grey(tmp_path / "a.png")
    assert caught.value.hint == "save it without these"


# JPEG ──────────────────────────────────────────────────────────────────────────────────────────────


def test_cmyk_that_does_not_say_whether_it_is_inverted_is_refused(tmp_path: Path) -> None:
    """Of readers, some invert it whatever it says, others only with Adobe's marker: one of them sees a negative."""
    out = io.BytesIO()
    Image.fromarray(np.repeat(pattern(255)[..., None], 3, axis=-1).astype(np.uint8)).convert("CMYK").save(out, "jpeg")
    (tmp_path / "a.jpg").write_bytes(data := out.getvalue())
    read_grey(tmp_path / "a.jpg")
    at = data.index(b"\xff\xee")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    assert b"Adobe" in data[at:end]
    (tmp_path / "a.jpg").write_bytes(data[:at] + data[end:])
    refused(
        tmp_path / "a.jpg", "is a JPEG file of CMYK that doesn't say whether its values are inverted, expected Adobe's"
    )
