"""Raster images and preprocessing, against formulas written down independently in NumPy."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpmmu_rt import images
from mpmmu_rt.errors import ImageError, PixelsError, UsageError
from mpmmu_rt.images import Preprocessing, decode_with_warnings, preprocess, read_grey, read_pixels
from mpmmu_rt.spec import Array

DATA = Path(__file__).parents[2] / "shared" / "data"
H, W = 37, 53


def pattern(height: int = H, width: int = W, top: int = 255) -> Array:
    """Distinct rows, columns and corners: no flip, turn or transposition leaves it alone."""
    y, x = np.mgrid[:height, :width]
    return np.asarray((x * 7 + y * 13 + x * y // 3) % (top + 1))


def grey8() -> Array:
    return pattern().astype(np.uint8)


def rgb8() -> Array:
    return np.stack([pattern(), pattern()[::-1], pattern()[:, ::-1]], axis=-1).astype(np.uint8)


def luma(rgb: Array) -> Array:
    """ITU-R 601, exact in float64."""
    return np.asarray(rgb.astype(np.float64) @ [0.299, 0.587, 0.114])


def stretched(values: Array) -> Array:
    values = values.astype(np.float64)
    return np.asarray(np.rint(255 * (values - values.min()) / (values.max() - values.min())), np.uint8)


def png(samples: Array, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: what Pillow can't write (16-bit colour, tRNS of 16-bit grey, a huge header)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = samples.shape[:2]
    big = samples.astype(f">u{samples.itemsize}")
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    head = struct.pack(">IIBBBBB", width, height, samples.itemsize * 8, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(*extra) for extra in chunks)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def refused(path: Path, message: str, hint: str = ".", **options: Any) -> ImageError:
    with pytest.raises(ImageError, match=message) as caught:
        read_grey(path, **options)
    error = caught.value
    assert str(error).startswith(f"{path} ")
    assert "\n" not in str(error) + error.hint
    assert re.search(hint, error.hint)
    return error


# formats ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_grey_8_bit_stays_as_it_is(tmp_path: Path, name: str) -> None:
    Image.fromarray(grey8()).save(tmp_path / name)
    grey = read_grey(tmp_path / name)
    np.testing.assert_array_equal(grey, grey8())
    assert grey.dtype == np.uint8
    assert grey.flags.c_contiguous
    assert grey.flags.writeable


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_grey_tiff_compressed(tmp_path: Path, compression: str) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), grey8())


def test_big_tiff(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.tif", big_tiff=True)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), grey8())


def test_jpeg_grey(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_grey(tmp_path / "a.jpg").astype(int) - smooth).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_colour(tmp_path: Path, mode: str) -> None:
    y, x = np.mgrid[:H, :W]
    smooth = np.stack([x * 4, y * 5, 250 - x * 2 - y * 2], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_grey(tmp_path / "a.jpg") - luma(smooth)).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_rgb_is_its_luma(tmp_path: Path, name: str) -> None:
    Image.fromarray(rgb8()).save(tmp_path / name)
    assert np.abs(read_grey(tmp_path / name) - luma(rgb8())).max() <= 0.51  # rounded, in fixed point


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_over_black(tmp_path: Path, name: str, channels: int) -> None:
    alpha = pattern()[::-1, ::-1].astype(np.uint8)
    colour = grey8()[..., None] if channels == 2 else rgb8()
    Image.fromarray(np.concatenate([colour, alpha[..., None]], axis=-1)).save(tmp_path / name)
    expected = luma(np.broadcast_to(colour, (H, W, 3))) * alpha / 255
    assert np.abs(read_grey(tmp_path / name) - expected).max() <= 1


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path: Path, transparent: bool) -> None:
    colours = np.random.default_rng(5).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(grey8(), "L").convert("P")
    image.putpalette(colours.tobytes())
    index = np.asarray(image)
    options: dict[str, Any] = {"transparency": bytes([0] * 9 + [255] * 247)} if transparent else {}
    image.save(tmp_path / "a.png", **options)
    opaque = index >= 9 if transparent else True
    assert np.abs(read_grey(tmp_path / "a.png") - luma(colours[index]) * opaque).max() <= 1


def test_palette_tiff(tmp_path: Path) -> None:
    Image.fromarray(rgb8()).quantize(16).save(tmp_path / "a.tif")
    expected = luma(np.asarray(Image.fromarray(rgb8()).quantize(16).convert("RGB")))
    assert np.abs(read_grey(tmp_path / "a.tif") - expected).max() <= 0.51


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_one_bit(tmp_path: Path, name: str) -> None:
    bits = pattern() % 3 == 0
    Image.fromarray(bits).save(tmp_path / name)
    np.testing.assert_array_equal(read_grey(tmp_path / name), bits * np.uint8(255))


def test_one_transparent_grey_value_is_black(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.png", transparency=200)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), np.where(grey8() == 200, 0, grey8()))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_12_bits_in_16_are_stretched_from_the_images_own_range(tmp_path: Path, name: str) -> None:
    values = (pattern(top=3000) + 500).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(read_grey(tmp_path / name), stretched(values))


def test_16_bit_with_a_transparent_value(tmp_path: Path) -> None:
    values = (pattern(top=3000) + 500).astype(np.uint16)
    values[:5] = 65535
    (tmp_path / "a.png").write_bytes(png(values, 0, (b"tRNS", b"\xff\xff")))
    grey = read_grey(tmp_path / "a.png")
    np.testing.assert_array_equal(grey[5:], stretched(values[5:]))
    assert not grey[:5].any()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_tiff(tmp_path: Path, dtype: Any) -> None:
    values = (pattern(top=900) * 11 - 4000).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), stretched(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_tiff_is_not_read_as_a_negative(tmp_path: Path, dtype: Any) -> None:
    """Pillow inverts it at 8 bits only; PhotometricInterpretation is patched, as Pillow won't write it."""
    values = pattern().astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    black_is_zero = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(black_is_zero) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(black_is_zero, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), stretched(-values.astype(np.float64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(tmp_path: Path, value: float) -> None:
    values = pattern().astype(np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "holds NaN or infinity, expected finite values")


def test_a_range_beyond_float64_is_refused(tmp_path: Path) -> None:
    values = pattern().astype(np.float64)
    values[3, 4], values[5, 6] = 1.7e308, -1.7e308
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: pip install 'mpmmu-rt[dev]'")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    refused(tmp_path / "a.tif", "holds values from .*, expected a finite range")


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (3, 2), (4, 6)])
def test_16_bit_colour_is_read(tmp_path: Path, channels: int, colour_type: int) -> None:
    samples = np.repeat(257 * pattern()[..., None], channels, axis=-1).astype(np.uint16)
    if channels in (2, 4):
        samples[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, colour_type))
    grey = read_grey(tmp_path / "a.png").astype(int)
    assert np.abs(grey - (samples[..., 0] >> 8)).max() <= 1  # the luma of three equal channels rounds


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (3, 2), (4, 6)])
def test_12_bits_in_16_bit_colour_are_refused_not_cut(tmp_path: Path, channels: int, colour_type: int) -> None:
    samples = np.repeat(pattern(top=4095)[..., None], channels, axis=-1).astype(np.uint16)
    if channels in (2, 4):
        samples[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(samples, colour_type))
    refused(tmp_path / "a.png", "has 16 bits per colour channel and grey values up to", "16-bit grey")


TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey8()).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / name), TURNED[orientation](grey8()))


def test_exif_orientation_of_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=100, exif=exif)
    assert np.abs(read_grey(tmp_path / "a.jpg").astype(int) - np.rot90(smooth, -1)).max() <= 2


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.png")
    for name in ("a.jpg", "a.dcm", "image"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        np.testing.assert_array_equal(read_grey(tmp_path / name), grey8())


# frames ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_frames_need_a_choice(tmp_path: Path, name: str) -> None:
    frames = [grey8(), grey8()[::-1], grey8()[:, ::-1]]
    first, *rest = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    first.save(tmp_path / name, save_all=True, append_images=rest)
    refused(tmp_path / name, "holds 3 frames, expected one image", r"`frame` \(0 to 2\)")
    for index, expected in enumerate(frames):
        np.testing.assert_array_equal(read_grey(tmp_path / name, frame=index), expected)
    for index in (-1, 3):
        refused(tmp_path / name, rf"holds 3 frame\(s\), expected `frame` from 0 to 2, got {index}", frame=index)


def test_a_single_image_is_it_whichever_frame_is_taken_of_others(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.jpg")
    for frame in (0, 1, 7):
        np.testing.assert_array_equal(read_grey(tmp_path / "a.jpg", frame=frame), read_grey(tmp_path / "a.jpg"))
    refused(tmp_path / "a.jpg", r"holds 1 frame\(s\), expected `frame` from 0 to 0, got -1", frame=-1)


# borders ───────────────────────────────────────────────────────────────────────────────────────────


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.png", r"can't be read \(No such file or directory\), expected", "path")


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    refused(tmp_path / "a\0.png", r"can't be read \(no such name is possible\)")


def test_directory_pipe_and_empty_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory, expected an image file")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "is not a regular file, expected an image file")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty, expected an image file")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # chmod does not stop root
    refused(tmp_path / "a.png", r"can't be read \(Permission denied\)", "permissions")


def test_too_many_bytes(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(images.MAX_FILE_BYTES + 1)  # sparse
    refused(tmp_path / "a.png", "has 536870913 bytes, expected at most 536870912")


@pytest.mark.parametrize("kind", ["gif", "webp", "ppm"])
def test_other_formats_are_refused(tmp_path: Path, kind: str) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.png", format=kind)
    refused(tmp_path / "a.png", "begins with b'.*', expected a PNG, JPEG, TIFF, BMP or DICOM file", "PNG")


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("case_id,mammography")
    refused(tmp_path / "a.png", "begins with b'case_id,', expected a PNG")


@pytest.mark.parametrize(("height", "width"), [(15, 99), (99, 15), (1, 1)])
def test_too_small(tmp_path: Path, height: int, width: int) -> None:
    Image.fromarray(pattern(height, width).astype(np.uint8)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", f"is {width} x {height} pixels, expected at least 16 on both sides")


def test_smallest_accepted(tmp_path: Path) -> None:
    Image.fromarray(pattern(16, 16).astype(np.uint8)).save(tmp_path / "a.png")
    assert read_grey(tmp_path / "a.png").shape == (16, 16)


def huge(kind: str, width: int, height: int) -> bytes:
    """A file whose header alone claims `width` x `height`."""
    small = io.BytesIO()
    Image.new("L", (20_001, 16)).save(small, format=kind, compression="raw")
    data = small.getvalue()
    if kind == "png":
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if kind == "tiff":
        return data.replace(struct.pack("<HHII", 257, 4, 1, 16), struct.pack("<HHII", 257, 4, 1, height))
    if kind == "bmp":
        return data[:22] + struct.pack("<i", height) + data[26:]
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_too_many_pixels_by_the_header_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(huge(kind, 20_001, 10_000))
    refused(tmp_path / "a", "is 20001 x 10000 pixels, expected at most 200000000 in all")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_pillows_own_limit_neither_warns_nor_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, compression: str | None
) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a", format=kind, compression=compression)
    for limit in (H * W - 1, H * W // 3):  # Pillow would warn, Pillow would raise
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_grey(tmp_path / "a").shape == (H, W)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_blank_is_refused(tmp_path: Path, value: int, dtype: Any) -> None:
    Image.fromarray(np.full((H, W), value, dtype)).save(tmp_path / "a.png")
    refused(
        tmp_path / "a.png",
        f"is blank: grey value {value if dtype == np.uint8 else 0} everywhere, expected an image with",
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_truncated_anywhere_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    """No cut may give other pixels: a file is refused, unless only what follows its pixels is missing."""
    noise = np.random.default_rng(3).integers(0, 256, (H, W), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", format=kind)
    data, whole = (tmp_path / "whole").read_bytes(), read_grey(tmp_path / "whole")
    cuts = [*range(1, 200, 7), *range(200, len(data) - 40, 83), *range(len(data) - 40, len(data), 3)]
    survived = []
    for cut in cuts:
        (tmp_path / "cut").write_bytes(data[:cut])
        try:
            np.testing.assert_array_equal(read_grey(tmp_path / "cut"), whole)
            survived.append(cut)
        except ImageError as error:
            assert str(error).startswith(f"{tmp_path / 'cut'} ")  # noqa: PT017
    assert all(cut > len(data) - 40 for cut in survived)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, kind: str) -> None:
    Image.fromarray(grey8()).save(tmp_path / "whole", format=kind)
    data = (tmp_path / "whole").read_bytes()
    random = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(4, min(len(data), 400), 3):
            damaged[at] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            assert read_grey(tmp_path / "a").dtype == np.uint8
        except ImageError as error:
            assert error.hint  # noqa: PT017


def test_the_cause_is_kept(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").write_bytes((tmp_path / "a.bmp").read_bytes()[:-200])
    error = refused(tmp_path / "a.bmp", r"can't be read \(it ends before its image does\), expected", "truncated")
    assert isinstance(error.__cause__, OSError)


def test_lab_is_refused(tmp_path: Path) -> None:
    Image.fromarray(rgb8(), "RGB").save(tmp_path / "rgb.tif")
    data = (tmp_path / "rgb.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(
        data.replace(struct.pack("<HHIHH", 262, 3, 1, 2, 0), struct.pack("<HHIHH", 262, 3, 1, 8, 0))
    )
    refused(tmp_path / "a.tif", "is a TIFF with the photometric interpretation 8, expected 0 or 1")


def test_several_threads_get_the_same(tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(np.roll(grey8(), index, axis=0)).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])

    def read(index: int) -> bool:
        if index % 5 == 4:
            with pytest.raises(ImageError):
                read_grey(tmp_path / "bad.png")
            return True
        return np.array_equal(read_grey(tmp_path / f"{index % 5}.png"), np.roll(grey8(), index % 5, axis=0))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


# preprocessing ─────────────────────────────────────────────────────────────────────────────────────


def test_pad_centres_and_keeps_the_aspect_ratio() -> None:
    grey = np.full((30, 90), 200, np.uint8)
    pixels = preprocess(grey, Preprocessing(size=60))
    assert pixels.shape == (1, 60, 60)
    assert (pixels[0, 20:40] == 200).all()
    assert not pixels[0, :20].any()
    assert not pixels[0, 40:].any()


def test_odd_padding_puts_the_spare_line_last() -> None:
    pixels = preprocess(np.full((40, 21), 9, np.uint8), Preprocessing(size=40))
    columns = np.flatnonzero(pixels[0].any(axis=0))
    assert (columns[0], columns[-1]) == (9, 29)  # 9 black columns before, 10 after


def test_stretch_fills_the_square_with_the_right_axes() -> None:
    grey = np.zeros((32, 64), np.uint8)
    grey[:16, 32:] = 255  # upper right
    pixels = preprocess(grey, Preprocessing(size=16, fit="stretch"))[0]
    assert (pixels[:7, 9:] == 255).all()
    assert not pixels[9:].any()
    assert not pixels[:, :7].any()


def test_same_size_is_untouched() -> None:
    grey = pattern(48, 48).astype(np.uint8)
    for fit in ("pad", "stretch"):
        np.testing.assert_array_equal(preprocess(grey, Preprocessing(48, fit))[0], grey)


def test_shrinking_averages_instead_of_skipping() -> None:
    checkered = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    centre = preprocess(checkered, Preprocessing(size=32))[0, 4:-4, 4:-4]
    assert np.abs(centre.astype(int) - 127).max() <= 4


def test_extreme_aspect_ratio_keeps_one_pixel() -> None:
    pixels = preprocess(np.full((4000, 16), 255, np.uint8), Preprocessing(size=32))[0]
    assert pixels.any(axis=0).sum() == 1
    assert pixels[:, 15].all()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 70),
    fit=st.sampled_from(["pad", "stretch"]),
)
def test_any_shape_gives_pixels(height: int, width: int, size: int, fit: Any) -> None:
    grey = np.full((height, width), 201, np.uint8)
    pixels = preprocess(grey, Preprocessing(size, fit))
    assert pixels.shape == (1, size, size)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    rows, columns = (np.flatnonzero(pixels[0].any(axis=axis)) for axis in (1, 0))
    assert set(np.unique(pixels)) <= {0, 201}
    longest = max(height, width)
    for lines, side in ((rows, height), (columns, width)):
        wanted = max(1, round(side * size / longest)) if fit == "pad" else size
        assert len(lines) == wanted
        assert 0 <= (size - 1 - lines[-1]) - lines[0] <= 1


@pytest.mark.parametrize(
    "grey", [np.zeros((20, 20)), np.zeros((20, 20, 3), np.uint8), np.zeros((0, 20), np.uint8)], ids=str
)
def test_preprocess_refuses_other_arrays(grey: Array) -> None:
    with pytest.raises(PixelsError, match=r"`grey` is \w+\[[\d, ]+\], expected uint8\[H, W\]"):
        preprocess(grey, Preprocessing())


def test_views_are_read_as_they_look() -> None:
    grey = pattern(64, 64).astype(np.uint8)
    np.testing.assert_array_equal(preprocess(grey[::-2, ::2], Preprocessing(32))[0], grey[::-2, ::2])


@pytest.mark.parametrize("background", [0, 200])
@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (1024, 512)])
def test_what_the_model_can_not_see_is_blank(tmp_path: Path, background: int, height: int, width: int) -> None:
    grey = np.full((height, width), background, np.uint8)
    grey[500, 300] = 255 if background == 0 else 190
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    assert np.ptp(read_grey(path)) > 0
    seen = f"is blank to the model: grey value {background} everywhere at {32 * width // height} x 32 pixels, expected"
    for read in (
        lambda: read_pixels(path, Preprocessing(32)),
        lambda: decode_with_warnings(path.read_bytes(), Preprocessing(32), name=str(path)),
    ):
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))} {seen}") as caught:
            read()
        assert "too small or too faint" in caught.value.hint
    assert np.ptp(read_pixels(path, Preprocessing(1024))) > 0


def test_read_pixels_is_both(tmp_path: Path) -> None:
    Image.fromarray(grey8()).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png", Preprocessing(40))
    np.testing.assert_array_equal(pixels, preprocess(grey8(), Preprocessing(40)))


def test_preprocessing_round_trip() -> None:
    assert Preprocessing().to_json() == {"size": 224, "fit": "pad", "aspect": "physical"}
    for chosen in (Preprocessing(96, "stretch"), Preprocessing(96, "pad", "stored")):
        assert Preprocessing.from_json(chosen.to_json()) == chosen


def test_what_was_written_before_there_was_an_aspect_is_kept_as_it_was() -> None:
    before = {"size": 224, "fit": "pad"}
    assert Preprocessing.from_json(before) == Preprocessing(224, "pad", "stored")
    assert Preprocessing.from_json(before).to_json() == before


@pytest.mark.parametrize("aspect", ["square", "", None, 1.0])
def test_preprocessing_aspect(aspect: Any) -> None:
    with pytest.raises(UsageError, match="expected one of physical, stored"):
        Preprocessing.from_json({"size": 224, "fit": "pad", "aspect": aspect})


@pytest.mark.parametrize("entry", [{}, {"size": 224}, {"size": 224, "fit": "pad", "mean": 0.5}, [1], None])
def test_preprocessing_keys(entry: Any) -> None:
    with pytest.raises(UsageError, match="expected exactly the keys size and fit"):
        Preprocessing.from_json(entry)


@pytest.mark.parametrize("size", [0, -1, 4097, 224.0, True, "224", None])
def test_preprocessing_size(size: Any) -> None:
    with pytest.raises(UsageError, match="expected an integer from 1 to 4096"):
        Preprocessing.from_json({"size": size, "fit": "pad"})


@pytest.mark.parametrize("fit", ["crop", "", None, ["pad"]])
def test_preprocessing_fit(fit: Any) -> None:
    with pytest.raises(UsageError, match="expected one of pad, stretch"):
        Preprocessing.from_json({"size": 224, "fit": fit})


# real images ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real images at {DATA}")
def test_real_images() -> None:
    paths = sorted(DATA.glob("*/*/*.png"))[::12]
    assert len(paths) > 10
    for path in paths:
        grey = read_grey(path)
        np.testing.assert_array_equal(grey, np.asarray(Image.open(path)))
        assert preprocess(grey, Preprocessing()).std() > 1
