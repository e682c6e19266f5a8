"""TIFF layouts, written by hand from TIFF 6.0: the right values or a refusal, never another image."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import Preprocessing, read_grey, read_image, read_pixels
from mpmmu_rt.spec import Array
from mpmmu_rt.tiff_layout import MAX_EXTRA
from mpmmu_rt.tiff_lzw import decoded_bytes

H, W = 40, 52
SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 3, 4, 5, 7, 16
Order = Literal["<", ">"]
Tags = dict[int, tuple[int, Sequence[int]] | None]
CODES = {1: "B", SHORT: "H", LONG: "I", RATIONAL: "I", UNDEFINED: "B", LONG8: "Q"}


def tiff(
    chunks: Sequence[bytes], tags: Tags, *, order: Order = "<", big: bool = False, tiled: bool = False, pages: int = 1
) -> bytes:
    """`chunks` first, so that their places are known; `tags` replaces and, with None, removes the usual ones."""
    head, size, field = (16, 8, "Q") if big else (8, 4, "I")
    places = [head + sum(map(len, chunks[:index])) for index in range(len(chunks))]
    usual: Tags = {
        256: (LONG, [W]), 257: (LONG, [H]), 258: (SHORT, [8]), 259: (SHORT, [1]), 262: (SHORT, [1]), 277: (SHORT, [1]),
        324 if tiled else 273: (LONG, places), 325 if tiled else 279: (LONG, [len(chunk) for chunk in chunks]),
    }  # fmt: skip
    entries = {tag: entry for tag, entry in sorted((usual | tags).items()) if entry is not None}
    body = b"".join(chunks)
    body += b"\0" * (len(body) % 2)
    outer, fields = b"", b""
    at = head + len(body)
    for tag, (kind, values) in entries.items():
        data = struct.pack(f"{order}{len(values)}{CODES[kind]}", *values)
        count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(data) > size:
            data, outer = (
                struct.pack(f"{order}{'Q' if big else 'I'}", at + len(outer)),
                outer + data + b"\0" * (len(data) % 2),
            )
        fields += struct.pack(f"{order}HH{field}", tag, kind, count) + data.ljust(size, b"\0")
    first = at + len(outer)
    counted = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)) + fields
    ends = [first + page * (len(counted) + size) for page in range(1, pages)] + [0]
    directories = b"".join(counted + struct.pack(f"{order}{field}", end) for end in ends)
    mark = b"II" if order == "<" else b"MM"
    start = struct.pack(f"{order}HHHQ", 43, 8, 0, first) if big else struct.pack(f"{order}HI", 42, first)
    return mark + start + body + outer + directories


def pattern(low: float = 0, high: float = 255, dtype: Any = np.uint8) -> Array:
    """Distinct rows, columns and corners."""
    y, x = np.mgrid[:H, :W]
    return np.asarray(np.rint(low + (high - low) * ((x * 7 + y * 13 + x * y // 3) % 256) / 255.0), dtype)


def stretched(values: Array) -> Array:
    shown = values.astype(np.float64) - float(values.min())
    return np.asarray(np.rint(255 * shown / shown.max()), np.uint8)


def luma(rgb: Array) -> Array:
    return np.asarray(rgb.astype(np.float64) @ [0.299, 0.587, 0.114])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "a.tif").write_bytes(data)
        return tmp_path / "a.tif"

    return write


Write = Callable[[bytes], Path]


def refused(path: Path, message: str, **options: Any) -> ImageError:
    with pytest.raises(ImageError, match=message) as caught:
        read_grey(path, **options)
    assert "\n" not in str(caught.value) + caught.value.hint
    assert caught.value.hint
    return caught.value


# samples ───────────────────────────────────────────────────────────────────────────────────────────

SAMPLES = [
    ("u", 16, 500, 3500), ("u", 32, 2**31 - 1000, 2**31 + 1000), ("u", 64, 2**63, 2**63 + 1000), ("i", 8, -100, 100),
    ("i", 16, -3000, 1000), ("i", 32, -(2**31), 2**31 - 1), ("i", 64, -(2**62), -(2**62) + 4000), ("f", 16, -8, 8),
    ("f", 32, -1000, 1000), ("f", 64, -1e9, 1e9),
]  # fmt: skip
PREDICTED = {"u": 2, "i": 2, "f": 3}


def values_of(kind: str, bits: int, low: float, high: float) -> Array:
    steps = pattern(0, 255, np.int64).astype(object)
    if kind == "f":
        return np.asarray(low + (high - low) * steps.astype(np.float64) / 255, f"f{bits // 8}")
    return np.array(
        [[int(low) + (int(high) - int(low)) * int(v) // 255 for v in row] for row in steps], f"{kind}{bits // 8}"
    )


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True), (">", True)])
@pytest.mark.parametrize(("kind", "bits", "low", "high"), SAMPLES)
def test_every_kind_of_sample_in_order_of_its_values(
    write: Write, kind: str, bits: int, low: float, high: float, order: Order, big: bool
) -> None:
    values = values_of(kind, bits, low, high)
    data = values.astype(np.dtype(f"{order}{kind}{bits // 8}")).tobytes()
    tags: Tags = {258: (SHORT, [bits]), 339: (SHORT, [{"u": 1, "i": 2, "f": 3}[kind]])}
    exact = (values.astype(object) - min(values.ravel().tolist())).astype(np.float64)
    grey = read_grey(write(tiff([data], tags, order=order, big=big)))
    assert np.abs(grey - 255 * exact / exact.max()).max() <= 0.51


@pytest.mark.parametrize(("kind", "bits", "low", "high"), SAMPLES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_predictors(write: Write, kind: str, bits: int, low: float, high: float, order: Order) -> None:
    values = values_of(kind, bits, low, high)
    if kind == "f":
        planes = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(H, W, -1).swapaxes(1, 2)
        flat = planes.reshape(H, -1)
        data = np.diff(flat, axis=1, prepend=np.uint8(0)).astype(np.uint8)
    else:
        data = np.diff(values, axis=1, prepend=values.dtype.type(0)).astype(np.dtype(f"{order}{kind}{bits // 8}"))
    tags: Tags = {258: (SHORT, [bits]), 259: (SHORT, [8]), 317: (SHORT, [PREDICTED[kind]])}
    tags[339] = (SHORT, [{"u": 1, "i": 2, "f": 3}[kind]])
    grey = read_grey(write(tiff([zlib.compress(data.tobytes())], tags, order=order)))
    exact = (values.astype(object) - min(values.ravel().tolist())).astype(np.float64)
    assert np.abs(grey - 255 * exact / exact.max()).max() <= 0.51


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 10, 12, 14])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_packed_samples(write: Write, bits: int, white_is_zero: bool) -> None:
    values = pattern(0, 2**bits - 1, np.uint16)
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(H, -1)
    data = np.packbits(planes, axis=1).tobytes()
    tags: Tags = {258: (SHORT, [bits]), 262: (SHORT, [0 if white_is_zero else 1])}
    expected = np.rint(values * 255.0 / (2**bits - 1)) if bits > 8 else values * 255 // (2**bits - 1)
    grey = read_grey(write(tiff([data], tags)))
    np.testing.assert_array_equal(grey, np.abs(255 * white_is_zero - expected.astype(int)))


def test_one_bit_in_the_other_fill_order(write: Write) -> None:
    bits = (pattern() % 3 == 0).astype(np.uint8)
    data = np.packbits(bits, axis=1, bitorder="little").tobytes()
    grey = read_grey(write(tiff([data], {258: (SHORT, [1]), 266: (SHORT, [2])})))
    np.testing.assert_array_equal(grey, bits * 255)


def test_signalling_nan_is_refused_in_our_words(write: Write) -> None:
    values = pattern(-5, 5, np.float32).view(np.uint32)
    values[3, 4] = 0x7FA00000
    tags: Tags = {258: (SHORT, [32]), 339: (SHORT, [3])}
    refused(write(tiff([values.tobytes()], tags)), "holds NaN or infinity, expected finite values")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("depth", [8, 16])
def test_rgb_in_planes_and_pixels(write: Write, planar: int, depth: int, order: Order) -> None:
    rgb = np.stack([pattern(), pattern()[::-1], pattern()[:, ::-1]], axis=-1).astype(np.uint16) * (
        257 if depth == 16 else 1
    )
    data = rgb.astype(f"{order}u{depth // 8}")
    chunks = [plane.tobytes() for plane in np.moveaxis(data, -1, 0)] if planar == 2 else [data.tobytes()]
    tags: Tags = {258: (SHORT, [depth] * 3), 262: (SHORT, [2]), 277: (SHORT, [3]), 284: (SHORT, [planar])}
    grey = read_grey(write(tiff(chunks, tags, order=order)))
    assert np.abs(grey - luma(rgb) / (257 if depth == 16 else 1)).max() <= 1


@pytest.mark.parametrize("planar", [1, 2])
def test_12_bits_in_16_bit_colour_with_a_white_marker_are_refused(write: Write, planar: int) -> None:
    rgb = np.repeat(pattern(200, 3800, np.uint16)[..., None], 3, axis=-1)
    rgb[:3, :3] = 65535
    chunks = [plane.tobytes() for plane in np.moveaxis(rgb, -1, 0)] if planar == 2 else [rgb.tobytes()]
    tags: Tags = {258: (SHORT, [16] * 3), 262: (SHORT, [2]), 277: (SHORT, [3]), 284: (SHORT, [planar])}
    refused(write(tiff(chunks, tags)), "has 16 bits per colour channel and grey values up to 1")


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("planar", [1, 2])
def test_extra_samples(write: Write, extra: int, colours: int, planar: int) -> None:
    """Associated alpha is in the colours already; unspecified samples are none; else what is transparent is black."""
    colour = np.stack([pattern(), pattern()[::-1], pattern()[:, ::-1]], axis=-1)[..., :colours]
    alpha = pattern()[::-1, ::-1]
    samples = np.concatenate([colour, alpha[..., None]], axis=-1)
    chunks = [plane.tobytes() for plane in np.moveaxis(samples, -1, 0)] if planar == 2 else [samples.tobytes()]
    tags: Tags = {
        258: (SHORT, [8] * (colours + 1)), 262: (SHORT, [2 if colours == 3 else 1]), 277: (SHORT, [colours + 1]),
        284: (SHORT, [planar]), 338: (SHORT, [extra]),
    }  # fmt: skip
    expected = luma(np.broadcast_to(colour, (H, W, 3))) * (alpha / 255 if extra == 2 else 1)
    assert np.abs(read_grey(write(tiff(chunks, tags))) - expected).max() <= 1.01


@pytest.mark.parametrize("scale", [256, 257])
def test_palette(write: Write, scale: int) -> None:
    colours = np.random.default_rng(4).integers(0, 256, (256, 3), dtype=np.uint16)
    tags: Tags = {262: (SHORT, [3]), 320: (SHORT, (colours.T.ravel() * scale).tolist())}
    assert np.abs(read_grey(write(tiff([pattern().tobytes()], tags))) - luma(colours[pattern()])).max() <= 0.51


def test_a_palette_of_8_bits_is_refused(write: Write) -> None:
    tags: Tags = {262: (SHORT, [3]), 320: (SHORT, list(range(256)) * 3)}
    refused(write(tiff([pattern().tobytes()], tags)), "has a palette of 16 bits whose entries end at 255")
    tags[320] = (SHORT, list(range(0, 65536, 256)) * 2)
    refused(write(tiff([pattern().tobytes()], tags)), "has a palette of 512 values, expected 768 for 8 bits")


# strips and tiles ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("rows", [1, 7, 16, 40, 2**32 - 1])
@pytest.mark.parametrize("whole", [False, True])
def test_strips(write: Write, rows: int, compression: int, whole: bool) -> None:
    """`whole`: the last one is written as high as the others."""
    values, rows_in = pattern(), min(rows, H)
    strips = [values[top : top + rows_in] for top in range(0, H, rows_in)]
    if whole:
        strips[-1] = np.pad(strips[-1], ((0, rows_in - len(strips[-1])), (0, 0)))
    chunks = [zlib.compress(strip.tobytes()) if compression == 8 else strip.tobytes() for strip in strips]
    data = tiff(chunks, {278: (LONG, [rows]), 259: (SHORT, [compression])})
    np.testing.assert_array_equal(read_grey(write(data)), values)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("width", "height"), [(16, 16), (32, 16), (64, 48), (48, 80)])
def test_tiles(write: Write, width: int, height: int, compression: int) -> None:
    values = np.pad(pattern(), ((0, -H % height), (0, -W % width)))
    tiles = [
        values[top : top + height, left : left + width].tobytes()
        for top in range(0, H, height)
        for left in range(0, W, width)
    ]
    chunks = [zlib.compress(tile) if compression == 8 else tile for tile in tiles]
    tags: Tags = {322: (SHORT, [width]), 323: (SHORT, [height]), 259: (SHORT, [compression])}
    np.testing.assert_array_equal(read_grey(write(tiff(chunks, tags, tiled=True))), pattern())


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma"])
@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_compressed_by_libtiff(tmp_path: Path, compression: str, rows: int, dtype: Any) -> None:
    values = pattern(0, 250, dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression, tiffinfo={278: rows})
    expected = values if dtype == np.uint8 else stretched(values)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_a_strip_that_ends_early_is_refused(tmp_path: Path, compression: str) -> None:
    Image.fromarray(pattern()).save(tmp_path / "a.tif", compression=compression)
    data = (tmp_path / "a.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as image:
        size = image.tag_v2[279][0]  # type: ignore[attr-defined]
    kind = LONG if struct.pack("<HHII", 279, LONG, 1, size) in data else SHORT
    old, new = (struct.pack("<HHII", 279, kind, 1, bytes_) for bytes_ in (size, size // 2))
    assert data.count(old) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(old, new))
    refused(tmp_path / "a.tif", "has a strip or tile (of 10|that inflates)")


def test_packbits_that_goes_on_is_refused(write: Write) -> None:
    """Found at random: the first packet ends in zeros, as padding would, and there are more."""
    row = pattern()[0].tobytes()
    packet = bytes([W + 1]) + row + b"\0\0"
    tags: Tags = {259: (SHORT, [32773]), 278: (LONG, [1])}
    refused(write(tiff([packet + packet] * H, tags)), "has a strip or tile of 108 bytes, expected 52")


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_jpeg_strips(tmp_path: Path, mode: str) -> None:
    y, x = np.mgrid[:H, :W]
    smooth = np.stack([x * 4, y * 5, 250 - x * 2 - y * 2], axis=-1).astype(np.uint8)
    image = Image.fromarray(smooth[..., 0] if mode == "L" else smooth)
    image.save(tmp_path / "a.tif", compression="jpeg", quality=100)
    expected = smooth[..., 0] if mode == "L" else luma(smooth)
    assert np.abs(read_grey(tmp_path / "a.tif") - expected).max() <= 4
    data = (tmp_path / "a.tif").read_bytes()
    at = data.index(b"\xff\xda") + 60
    (tmp_path / "a.tif").write_bytes(data[:at] + b"\0" * 40 + data[at + 40 :])
    refused(tmp_path / "a.tif", "has a JPEG (stream|scan)")


def test_a_palette_in_jpeg_is_refused(write: Write) -> None:
    """An index that is nearly right is another colour."""
    coded = io.BytesIO()
    Image.fromarray(pattern()).save(coded, "jpeg", quality=80)
    colours = np.random.default_rng(4).integers(0, 65536, 768).tolist()
    tags: Tags = {259: (SHORT, [7]), 262: (SHORT, [3]), 320: (SHORT, colours)}
    refused(write(tiff([coded.getvalue()], tags)), "photometric interpretation 3, compression 7, .* expected a comb")


# what does not fit together ────────────────────────────────────────────────────────────────────────

ROWS = [pattern()[top : top + 8].tobytes() for top in range(0, H, 8)]
PLACES = [8 + 8 * W * index for index in range(5)]
BROKEN: dict[str, tuple[Tags, str]] = {
    "no photometric interpretation": ({262: None}, "lacks the TIFF tag PhotometricInterpretation"),
    "no width": ({256: None}, "lacks the TIFF tag ImageWidth"),
    "no sizes": ({279: None}, "has the places of 5 and the sizes of 0 strips"),
    "no places": ({273: None}, "has strips and tiles or neither"),
    "strips and tiles": ({322: (SHORT, [16]), 323: (SHORT, [16]), 324: (LONG, PLACES)}, "has strips and tiles or"),
    "one place too few": ({273: (LONG, PLACES[:4])}, "has the places of 4 and the sizes of 5 strips or tiles"),
    "one size too few": ({279: (LONG, [8 * W] * 4)}, "has the places of 5 and the sizes of 4 strips or tiles"),
    "one strip more": (
        {273: (LONG, [*PLACES, 8]), 279: (LONG, [8 * W] * 6)}, "has the places of 6 and the sizes of 6 strips or tiles",
    ),
    "at 0": ({273: (LONG, [*PLACES[:4], 0])}, "has strips or tiles that are absent or lie beyond"),
    "of no bytes": ({279: (LONG, [8 * W] * 4 + [0])}, "has strips or tiles that are absent or lie beyond"),
    "beyond the end": ({273: (LONG, [*PLACES[:4], 10**6])}, "has strips or tiles that are absent or lie beyond"),
    "partly beyond the end": ({279: (LONG, [8 * W] * 4 + [10**6])}, "has strips or tiles that are absent or"),
    "the same twice": ({273: (LONG, [PLACES[0], *PLACES[:4]])}, "has strips or tiles that overlap"),
    "overlapping": ({273: (LONG, [*PLACES[:4], PLACES[4] - 5])}, "has strips or tiles that overlap"),
    "over the tags": ({273: (LONG, [*PLACES[:4], PLACES[4] + 60])}, "has strips or tiles that overlap"),
    "too short": ({279: (LONG, [8 * W] * 4 + [8 * W - 1])}, "has a strip or tile of 415 bytes, expected 416"),
    "a row longer": ({279: (LONG, [7 * W] * 5), 278: (LONG, [8])}, "has a strip or tile of 364 bytes, expected 416"),
    "higher": ({257: (LONG, [H + 1])}, "has the places of 5 and the sizes of 5 strips or tiles, expected 6"),
    "narrower": ({256: (LONG, [W - 1])}, "has a strip or tile of 416 bytes, expected 408"),
    "no rows in a strip": ({278: (LONG, [0])}, "has strips of 0 rows"),
    "two bits for one sample": ({258: (SHORT, [8, 8])}, r"\(8, 8\) bits of the sample formats"),
    "different bits": ({258: (SHORT, [8, 4, 8]), 262: (SHORT, [2]), 277: (SHORT, [3])}, r"is a TIFF with \(8, 4"),
    "complex samples": ({339: (SHORT, [6])}, r"the sample formats \(6,\)"),
    "samples of an undefined format": ({339: (SHORT, [4])}, r"the sample formats \(4,\)"),
    "signed colours": (
        {258: (SHORT, [8] * 3), 262: (SHORT, [2]), 277: (SHORT, [3]), 339: (SHORT, [2] * 3)}, "3 signed sample",
    ),
    "float of 24 bits": ({258: (SHORT, [24]), 339: (SHORT, [3])}, "1 float sample.* of 24 bits"),
    "an extra sample of which nothing is said": ({258: (SHORT, [8, 8]), 277: (SHORT, [2])}, "has 2 samples per pixel"),
    "an unknown kind of alpha": (
        {258: (SHORT, [8, 8]), 277: (SHORT, [2]), 338: (SHORT, [9])}, r"and the extra samples \(9,\)",
    ),
    "raw YCbCr": (
        {258: (SHORT, [8] * 3), 262: (SHORT, [6]), 277: (SHORT, [3]), 530: (SHORT, [2, 2])}, "YCbCr that is not",
    ),
    "Lab": ({258: (SHORT, [8] * 3), 262: (SHORT, [8]), 277: (SHORT, [3])}, "the photometric interpretation 8"),
    "a mask": ({262: (SHORT, [4])}, "the photometric interpretation 4"),
    "a colour filter array": ({262: (SHORT, [32803])}, "the photometric interpretation 32803"),
    "other inks": ({258: (SHORT, [8] * 4), 262: (SHORT, [5]), 277: (SHORT, [4]), 332: (SHORT, [2])}, "and other inks"),
    "fax": ({258: (SHORT, [1]), 259: (SHORT, [4])}, "the compression 4"),
    "old JPEG": ({259: (SHORT, [6])}, "the compression 6"),
    "Zstandard": ({259: (SHORT, [50000])}, "the compression 50000"),
    "WebP": ({259: (SHORT, [50001])}, "the compression 50001"),
    "a predictor without compression": ({317: (SHORT, [2])}, "the predictor 2 and the compression 1"),
    "a predictor of floats for integers": ({259: (SHORT, [8]), 317: (SHORT, [3])}, "compression 8, predictor 3"),
    "an unknown predictor": ({259: (SHORT, [8]), 317: (SHORT, [34892])}, "predictor 34892"),
    "fill order 2 of bytes": ({266: (SHORT, [2])}, "fill order 2, expected a combination that is supported"),
    "fill order 3": ({266: (SHORT, [3])}, "and fill order 3"),
    "orientation 9": ({274: (SHORT, [9])}, "the orientation 9"),
    "planar configuration 3": ({284: (SHORT, [3])}, "planar configuration 3"),
    "two widths": ({256: (LONG, [W, W])}, r"has the value\(s\) .* of the TIFF tag ImageWidth"),
    "a width that is a fraction": ({256: (RATIONAL, [W, 1])}, "of the TIFF tag ImageWidth"),
    "resolutions of 0 and 300": ({282: (RATIONAL, [0, 1]), 283: (RATIONAL, [300, 1])}, "states pixels 0 high"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_together_is_refused(write: Write, name: str) -> None:
    tags, message = BROKEN[name]
    error = refused(write(tiff(ROWS, {278: (LONG, [8])} | tags)), message)
    for word in ("unknown pixel mode", "conversion from", "could not broadcast", "cannot reshape", "Error"):
        assert word not in str(error)


def test_the_same_without_a_fault(write: Write) -> None:
    np.testing.assert_array_equal(read_grey(write(tiff(ROWS, {278: (LONG, [8])}))), pattern())


def test_a_tag_twice_is_refused(write: Write) -> None:
    data = tiff(ROWS, {278: (LONG, [8]), 270: (SHORT, [0])})
    assert data.count(struct.pack("<HHI", 270, SHORT, 1)) == 1
    refused(
        write(data.replace(struct.pack("<HHI", 270, SHORT, 1), struct.pack("<HHI", 277, SHORT, 1))), "tag 277 twice"
    )


def test_deflate_that_goes_on_is_refused(write: Write) -> None:
    data = zlib.compress(np.pad(pattern(), ((0, 3), (0, 0))).tobytes())
    refused(write(tiff([data], {259: (SHORT, [8])})), "has a strip or tile that inflates to more than")
    refused(write(tiff([zlib.compress(pattern().tobytes())[:-2] + b"xx"], {259: (SHORT, [8])})), "can't be inflated")


def test_what_is_allocated_is_bounded_by_what_the_header_may_say(write: Write) -> None:
    """A file of 71 kB took 82 MB with 10,000 extra samples, and a page of tags 100 times its bytes, for every page."""
    samples = 1 + MAX_EXTRA + 1
    tags: Tags = {
        258: (SHORT, [8] * samples), 262: (SHORT, [1]), 277: (SHORT, [samples]), 338: (SHORT, [0] * (samples - 1)),
    }  # fmt: skip
    data = np.repeat(pattern()[..., None], samples, axis=2).tobytes()
    refused(write(tiff([data], tags)), f"has {samples - 1} extra samples per pixel, expected at most {MAX_EXTRA}")
    refused(write(tiff(ROWS, {278: (LONG, [8]), 258: (SHORT, [8] * 100)})), "has the tag 258 with 100 values")
    many = [1] * 200_000
    path = write(tiff([pattern().tobytes()] * 1, {320: (SHORT, many)}, pages=20))
    tracemalloc.start()
    try:
        refused(path, "holds 20 frames")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# pages, orientation, resolution ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("big", [False, True])
def test_pages_need_a_choice(write: Write, big: bool) -> None:
    path = write(tiff(ROWS, {278: (LONG, [8])}, pages=3, big=big))
    refused(path, "holds 3 frames, expected one image")
    np.testing.assert_array_equal(read_grey(path, frame=2), pattern())


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma"])
@pytest.mark.parametrize(("tag", "length"), [(256, W - 1), (256, W // 2), (257, H - 11), (278, 7)])
def test_compressed_strips_of_another_shape_are_refused(
    tmp_path: Path, compression: str, tag: int, length: int
) -> None:
    """A picture that is read one column narrower is sheared, and is no less a picture."""
    Image.fromarray(pattern()).save(tmp_path / "a.tif", compression=compression, tiffinfo={278: 10})
    data = bytearray((tmp_path / "a.tif").read_bytes())
    directory = struct.unpack_from("<I", data, 4)[0]
    fields = [directory + 2 + 12 * index for index in range(struct.unpack_from("<H", data, directory)[0])]
    at = next(field for field in fields if struct.unpack_from("<H", data, field)[0] == tag)
    struct.pack_into("<HII", data, at + 2, LONG, 1, length)
    (tmp_path / "a.tif").write_bytes(data)
    refused(tmp_path / "a.tif", "has (a strip or tile|the places) of|has a strip or tile that inflates to more")


def test_a_chain_of_pages_without_an_end(write: Write) -> None:
    data = tiff(ROWS, {278: (LONG, [8])})
    first = struct.unpack_from("<I", data, 4)[0]
    refused(write(data[:-4] + struct.pack("<I", first)), "has a chain of pages that does not end inside the file")
    refused(write(data[:-4] + struct.pack("<I", 10**8)), "has a chain of pages that does not end inside the file")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_aspect_turns_with_the_orientation(write: Write, orientation: int) -> None:
    tags: Tags = {278: (LONG, [8]), 274: (SHORT, [orientation]), 282: (RATIONAL, [300, 1]), 283: (RATIONAL, [150, 1])}
    image = read_image(write(tiff(ROWS, tags)))
    assert image.pixel_aspect == (2.0 if orientation < 5 else 0.5)
    assert image.grey.shape == ((H, W) if orientation < 5 else (W, H))


@pytest.mark.parametrize("unit", [None, 1, 2, 3])
def test_a_circle_stays_round(write: Write, unit: int | None) -> None:
    y, x = np.mgrid[:128, :256]
    circle = np.where(((y - 64) * 2.0) ** 2 + (x - 128.0) ** 2 < 80**2, 220, 20).astype(np.uint8)
    tags: Tags = {256: (LONG, [256]), 257: (LONG, [128]), 282: (RATIONAL, [300, 1]), 283: (RATIONAL, [150, 1])}
    tags[296] = None if unit is None else (SHORT, [unit])
    seen = read_pixels(write(tiff([circle.tobytes()], tags)), Preprocessing(224))[0] > 120
    assert abs(int(seen.any(1).sum()) - int(seen.any(0).sum())) <= 2


@pytest.mark.parametrize("resolution", [(0, 1, 0, 1), (0, 0, 0, 0), (72, 1, 719, 10)])
def test_resolutions_that_state_nothing_or_a_square(write: Write, resolution: tuple[int, ...]) -> None:
    tags: Tags = {278: (LONG, [8]), 282: (RATIONAL, resolution[:2]), 283: (RATIONAL, resolution[2:])}
    assert read_image(write(tiff(ROWS, tags))).pixel_aspect == 1.0


def test_a_marker_in_12_bits_without_a_window_is_refused(write: Write) -> None:
    values = pattern(200, 3800, np.uint16)
    values[:3, :3] = 65535
    path = write(tiff([values.tobytes()], {258: (SHORT, [16])}))
    refused(path, "has 99 % of its pixels in the grey values 1 to 14 of 0 to 255, expected at least 32")


def test_a_file_that_is_cut_anywhere_is_refused(write: Write) -> None:
    data = tiff(ROWS, {278: (LONG, [8])})
    for cut in range(0, len(data), 7):
        path = write(data[:cut])
        with pytest.raises(ImageError):
            read_grey(path)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4000, 60_000, 300_000])
@pytest.mark.parametrize("kind", ["noise", "steps", "zeros", "few"])
def test_how_many_bytes_lzw_holds(size: int, kind: str) -> None:
    """Noise fills the table again and again; zeros make strings of every length."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: pip install 'mpmmu-rt[dev]'")
    random = np.random.default_rng(size)
    data = {
        "noise": random.integers(0, 256, size, dtype=np.uint8),
        "steps": (np.arange(size) // 7 % 256).astype(np.uint8),
        "zeros": np.zeros(size, np.uint8),
        "few": random.integers(0, 3, size, dtype=np.uint8),
    }[kind]
    coded = imagecodecs.lzw_encode(data.tobytes())
    assert decoded_bytes(coded) == size
    for cut in (len(coded) // 2, len(coded) - 3):
        fewer = decoded_bytes(coded[:cut])
        assert fewer is None or fewer < size
    assert decoded_bytes(b"\x00\x01" + coded) is None  # does not begin with Clear


def test_pages_of_many_tags_or_that_overlap_are_refused(write: Write) -> None:
    """A file of 722 kB took 3 s: 200 pages 12 bytes apart, of 60,000 tags each."""
    entries = b"".join(struct.pack("<HHII", 60_000, 1, 1, 0) for _ in range(1001))
    refused(write(b"II*\0" + struct.pack("<IH", 8, 1001) + entries + bytes(4)), "has a page of 1001 tags")
    # The second begins at the tag of the first one's second entry, which is its count.
    pages = struct.pack("<H", 2) + struct.pack("<HHII", 60_000, 1, 1, 0) + struct.pack("<HHII", 1, 1, 1, 0)
    refused(
        write(b"II*\0" + struct.pack("<I", 8) + pages + struct.pack("<I", 22) + bytes(64)), "has pages that overlap"
    )
