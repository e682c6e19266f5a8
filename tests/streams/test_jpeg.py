"""JPEG by cosine transform, as a file and in DICOM: its colours, its sizes, and that all of it is there."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array
from mpmmu_rt.streams import jpeg_header

BASELINE, EXTENDED = "4.50", "4.51"
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # and one byte: 0 RGB, 1 YCbCr
Wrap = Callable[..., Any]
Refused = Callable[..., Any]


def coded(values: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "jpeg", **({"quality": 92} | options))
    return out.getvalue()


def without_application(data: bytes) -> bytes:
    """No JFIF and no Adobe marker."""
    length = int.from_bytes(data[4:6], "big")
    assert data[2:4] in (b"\xff\xe0", b"\xff\xee")
    return data[:2] + data[4 + length :]


def luma(values: Array) -> Array:
    return np.asarray(values.astype(np.float64) @ [0.299, 0.587, 0.114])


def scans(data: bytes) -> list[tuple[int, int]]:
    return [(scan.start, scan.end) for scan in jpeg_header.parse(data).scans]


# colours ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("marker", ["JFIF", "Adobe", "none"])
def test_ycbcr_is_converted_once(wrap: Wrap, colours: Array, marker: str, photometric: str, subsampling: int) -> None:
    smooth = np.sort(np.sort(colours, axis=0), axis=1)  # so that half of the chroma is enough
    data = coded(smooth, quality=100, subsampling=subsampling)
    if marker != "JFIF":
        data = without_application(data)
    if marker == "Adobe":
        data = data[:2] + ADOBE + b"\1" + data[2:]
    path = wrap(data, colours, BASELINE, PhotometricInterpretation=photometric)
    assert np.abs(read_grey(path) - luma(smooth)).max() <= (3 if subsampling == 0 else 8)


@pytest.mark.parametrize("marker", ["Adobe", "none"])
def test_rgb_is_left_alone(wrap: Wrap, colours: Array, marker: str) -> None:
    data = coded(colours, quality=100, keep_rgb=True)
    if marker == "none":  # the components are named R, G, B
        data = without_application(data)
    assert np.abs(read_grey(wrap(data, colours, BASELINE)) - luma(colours)).max() <= 3


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("marker", ["JFIF", "Adobe", "none"])
def test_ycbcr_that_is_called_rgb(wrap: Wrap, refused: Refused, colours: Array, marker: str, subsampling: int) -> None:
    data = coded(colours, subsampling=subsampling)
    if marker != "JFIF":
        data = without_application(data)
    if marker == "Adobe":
        data = data[:2] + ADOBE + b"\1" + data[2:]
    hint = refused(wrap(data, colours, BASELINE), "interpretation RGB in its header and YCbCr in its JPEG").hint
    right = "YBR_FULL_422" if subsampling else "YBR_FULL"
    assert f"`dcmodify -m PhotometricInterpretation={right}`" in hint
    followed = read_grey(wrap(data, colours, BASELINE, PhotometricInterpretation=right))
    stream = Image.open(io.BytesIO(coded(colours, subsampling=subsampling)))
    np.testing.assert_array_equal(followed, np.asarray(stream.convert("L")))


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"])
def test_rgb_that_is_called_something_else(wrap: Wrap, refused: Refused, colours: Array, photometric: str) -> None:
    path = wrap(coded(colours, keep_rgb=True), colours, BASELINE, PhotometricInterpretation=photometric)
    refused(path, f"photometric interpretation {photometric} in its header and RGB in its JPEG")


@pytest.mark.parametrize("as_file", [False, True])
def test_markers_that_contradict_each_other(
    wrap: Wrap, refused: Refused, tmp_path: Path, colours: Array, as_file: bool
) -> None:
    data = coded(colours)
    data = data[:2] + ADOBE + b"\0" + data[2:]  # JFIF says YCbCr, Adobe says RGB
    path = tmp_path / "a.jpg" if as_file else wrap(data, colours, BASELINE)
    if as_file:
        path.write_bytes(data)
    refused(path, "markers say both RGB and YCbCr")


def test_components_that_nothing_names(refused: Refused, tmp_path: Path, colours: Array) -> None:
    data = bytearray(without_application(coded(colours, subsampling=0)))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for index, name in enumerate(b"abc"):
        data[frame + 10 + 3 * index] = data[scan + 5 + 2 * index] = name
    (tmp_path / "a.jpg").write_bytes(data)
    refused(tmp_path / "a.jpg", "doesn't say whether it is RGB or YCbCr", "PNG")


def test_sampling_factors_without_a_name(refused: Refused, tmp_path: Path, colours: Array) -> None:
    data = bytearray(coded(colours))
    data[data.index(b"\xff\xc0") + 11] = 0x42
    (tmp_path / "a.jpg").write_bytes(data)
    refused(
        tmp_path / "a.jpg", "has a JPEG stream with the sampling factors 4 x 2, 1 x 1, 1 x 1, expected 4:4:4", "PNG"
    )


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_no_other_decoder_reads_other_values(tmp_path: Path, colours: Array, options: dict[str, Any]) -> None:
    """Pillow, imagecodecs and what is used here: all are libjpeg's, whose integer transform is exact."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="pip install 'mpmmu-rt[codecs]'")
    data = coded(colours, **options)
    (tmp_path / "a.jpg").write_bytes(data)
    grey = read_grey(tmp_path / "a.jpg")
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    space = "RGB" if "keep_rgb" in options else "YCBCR"
    other = imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace="RGB")
    np.testing.assert_array_equal(grey, pillow)
    np.testing.assert_array_equal(grey, np.asarray(Image.fromarray(other).convert("L")))


@pytest.mark.parametrize("colour", [False, True])
def test_dicom_and_file_read_the_same(wrap: Wrap, tmp_path: Path, colours: Array, colour: bool) -> None:
    data = coded(colours if colour else colours[..., 0])
    (tmp_path / "a.jpg").write_bytes(data)
    elements = {"PhotometricInterpretation": "YBR_FULL_422"} if colour else {"WindowCenter": 128, "WindowWidth": 256}
    path = wrap(data, colours if colour else colours[..., 0], BASELINE, **elements)
    np.testing.assert_array_equal(read_grey(path), read_grey(tmp_path / "a.jpg"))


# everything is there ───────────────────────────────────────────────────────────────────────────────

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
}


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_without_its_end(
    wrap: Wrap, refused: Refused, tmp_path: Path, colours: Array, kind: str, colour: bool
) -> None:
    """Bytes missing before EOI, from one to half of the scan, of each scan: never grey blocks."""
    values = colours if colour else colours[..., 0]
    data = coded(values, **KINDS[kind])
    for start, end in scans(data):
        for missing in sorted({1, 2, 9, (end - start) // 2} & set(range(end - start))):
            kept = data[: end - missing].rstrip(b"\xff")
            (tmp_path / "a.jpg").write_bytes(kept + data[end:])
            refused(tmp_path / "a.jpg", "JPEG (stream|scan)", "damaged")
    start, end = scans(data)[0]
    half = data[: (start + end) // 2].rstrip(b"\xff") + data[end:]
    elements = {"PhotometricInterpretation": "YBR_FULL"} if colour else {}
    refused(wrap(half, values, BASELINE, **elements), "JPEG (stream|scan)", "damaged")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", range(1, 12))
def test_a_scan_with_bytes_left_over(refused: Refused, tmp_path: Path, picture: Array, kind: str, extra: int) -> None:
    """libjpeg overlooks up to 8 of them: what a hole that shifts blocks leaves behind."""
    data = coded(picture, **KINDS[kind])
    for _, end in scans(data)[-2:]:
        (tmp_path / "a.jpg").write_bytes(data[:end] + b"\x55" * extra + data[end:])
        refused(tmp_path / "a.jpg", "left over|extraneous", "damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sector_of_zeros(refused: Refused, tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (160, 160), np.uint8)
    data = coded(noise, **KINDS[kind])
    for start, end in scans(data):
        if end - start > 1000:
            at = (start + end) // 2
            (tmp_path / "a.jpg").write_bytes(data[:at] + bytes(512) + data[at + 512 :])
            refined = kind == "progressive" and (start, end) == scans(data)[-1]
            # By itself, whatever the blocks after it come to; of other tables zeros may be blank blocks.
            by_itself = kind == "baseline" or refined
            refused(tmp_path / "a.jpg", "has a JPEG scan with a hole" if by_itself else "JPEG (stream|scan)", "damaged")


def test_zeros_that_are_blank_blocks(tmp_path: Path) -> None:
    """With codes of its own, a blank half is a run of zeros, and right."""
    values = np.zeros((512, 512), np.uint8)
    values[:64, :64] = np.arange(64, dtype=np.uint8) * 4
    data = coded(values, optimize=True)
    (start, end) = scans(data)[0]
    assert bytes(64) in data[start:end]
    (tmp_path / "a.jpg").write_bytes(data)
    assert not read_grey(tmp_path / "a.jpg")[100:, 100:].any()


def test_a_progressive_stream_without_one_of_its_scans(refused: Refused, tmp_path: Path, colours: Array) -> None:
    data = coded(colours, progressive=True)
    found = jpeg_header.parse(data)
    for marker, start, end in found.segments:
        if marker == 0xDA:
            (tmp_path / "a.jpg").write_bytes(data[:start] + data[end:])
            refused(tmp_path / "a.jpg", "scans are missing|scans that don't follow|without a scan", "damaged")
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.abs(read_grey(tmp_path / "a.jpg") - luma(colours)).max() < 60


def test_restart_markers_out_of_turn(refused: Refused, tmp_path: Path, picture: Array) -> None:
    data = coded(picture, restart_marker_blocks=6)
    first, second = data.index(b"\xff\xd0"), data.index(b"\xff\xd1")
    exchanged = bytearray(data)
    exchanged[first + 1], exchanged[second + 1] = 0xD1, 0xD0
    for damaged in (bytes(exchanged), data[:first] + data[second:], data[:first] + data[first + 2 :]):
        (tmp_path / "a.jpg").write_bytes(damaged)
        refused(tmp_path / "a.jpg", r"has a JPEG scan with \d+ restart markers, or not in turn", "damaged")


def test_restart_markers_of_an_enormous_picture_are_not_listed(picture: Array) -> None:
    """A few bytes that state 65535 x 65535 pixels took half a gigabyte and seconds to refuse."""
    data = bytearray(coded(picture, restart_marker_blocks=1))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff" * 4
    tracemalloc.start()
    with pytest.raises(ImageError, match="restart markers, or not in turn, expected 67108863"):
        jpeg_header.parse_file(bytes(data))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10 * 2**20


def test_a_file_without_its_last_marker(refused: Refused, tmp_path: Path, picture: Array) -> None:
    for cut in (1, 2):
        (tmp_path / "a.jpg").write_bytes(coded(picture)[:-cut])
        refused(tmp_path / "a.jpg", "ends before its marker EOI")


def test_fill_bytes_and_what_follows_the_end(refused: Refused, tmp_path: Path, picture: Array) -> None:
    data = coded(picture)
    (tmp_path / "a.jpg").write_bytes(data)
    right = read_grey(tmp_path / "a.jpg")
    _, end = scans(data)[0]
    for same in (data[:2] + b"\xff\xff" + data[2:], data[:end] + b"\xff\xff" + data[end:], data + b"\0\0 made by"):
        (tmp_path / "a.jpg").write_bytes(same)
        np.testing.assert_array_equal(read_grey(tmp_path / "a.jpg"), right)
    (tmp_path / "a.jpg").write_bytes(data + b"\0" + data)
    refused(tmp_path / "a.jpg", "is a JPEG file of several pictures", "save the one")


@pytest.mark.parametrize(
    ("marker", "process"),
    [(0xC5, "hierarchical"), (0xC9, "arithmetic coding"), (0xCA, "arithmetic coding"), (0xCE, "hierarchical arith")],
)
def test_other_processes_are_named(refused: Refused, tmp_path: Path, picture: Array, marker: int, process: str) -> None:
    data = coded(picture).replace(b"\xff\xc0", bytes([0xFF, marker]))
    (tmp_path / "a.jpg").write_bytes(data)
    refused(tmp_path / "a.jpg", f"has a JPEG stream with {process}", "save it as baseline")


@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC2, 12), (0xC3, 8)])
def test_what_a_file_may_not_be(refused: Refused, tmp_path: Path, picture: Array, marker: int, bits: int) -> None:
    data = bytearray(coded(picture))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    if marker == 0xC2:
        data = bytearray(coded(picture, progressive=True))
        data[data.index(b"\xff\xc2") + 4] = bits
    (tmp_path / "a.jpg").write_bytes(data)
    refused(
        tmp_path / "a.jpg",
        rf"has a JPEG \(.*\) stream of {bits} bits, expected a lossy one of 8 bits",
        "export DICOM uncompressed",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, sof, sos: d[:sof] + d[sof : sof + 5] + b"\0\0" + d[sof + 7 :], "height after the scan"),
        (lambda d, sof, sos: d[:sof] + d[sof : sof + 13] + d[sof:], "two frame headers"),
        (lambda d, sof, sos: d[:sos], "ends before its marker EOI"),
        (lambda d, sof, sos: d[:sos] + b"\xff\xd9", "without a scan"),
        (lambda d, sof, sos: d[:sof] + d[sof + 13 :], "scan before its frame header"),
        (lambda d, sof, sos: d[:sof] + b"junk" + d[sof:], "bytes between two segments"),
        (lambda d, sof, sos: d[: sof + 11] + b"\x05" + d[sof + 12 :], "impossible sampling factors"),
        (lambda d, sof, sos: d[: sof + 4] + b"\x07" + d[sof + 5 :], "of 7 bits, expected a precision of T.81"),
        (lambda d, sof, sos: d[: sos + 5] + b"\x09" + d[sos + 6 :], "components that its frame lacks"),
        (lambda d, sof, sos: d[: sos + 7] + b"\1\1\0" + d[sos + 10 :], "part of its coefficients"),
        (lambda d, sof, sos: d[:-2] + d[sos:], "codes a component twice"),
        (lambda d, sof, sos: d[:sos] + b"\xff\xdc\0\4\0\x30" + d[sos:], "height after the scan"),
        (lambda d, sof, sos: d[:sos] + b"\xff\xd0" + d[sos:], "FFD0 between two segments"),
        (lambda d, sof, sos: d[: sof - 9] + b"\0" + d[sof - 8 :], "malformed quantisation table, expected 64 numbers"),
        (lambda d, sof, sos: d[:sos] + b"\xff\xdb\0\4\0\1" + d[sos:], "malformed quantisation table"),
        (lambda d, sof, sos: d[: sos - 1] + d[sos - 2 : sos - 1] + d[sos:], "two codes for one symbol"),
        (lambda d, sof, sos: d[:sos] + b"\xff\xc4\0\5\0\1\1" + d[sos:], "malformed Huffman table"),
    ],
)
def test_malformed_streams(refused: Refused, tmp_path: Path, picture: Array, change: Any, message: str) -> None:
    data = coded(picture)
    (tmp_path / "a.jpg").write_bytes(change(data, data.index(b"\xff\xc0"), data.index(b"\xff\xda")))
    refused(tmp_path / "a.jpg", message)


# against the DICOM header ──────────────────────────────────────────────────────────────────────────


def test_rows_and_columns_of_another_picture(wrap: Wrap, refused: Refused, picture: Array) -> None:
    for rows, columns in ((70, 48), (47, 70), (48, 71), (40, 70)):
        path = wrap(coded(picture), picture, BASELINE, Rows=rows, Columns=columns)
        refused(path, f"has Rows and Columns {rows} and {columns} in its header and 48 and 70 in its JPEG", "header")


def test_other_samples_and_bits(wrap: Wrap, refused: Refused, picture: Array, colours: Array) -> None:
    refused(wrap(coded(picture), colours, BASELINE), "has SamplesPerPixel 3 in its header and 1 in its JPEG")
    refused(wrap(coded(colours), picture, BASELINE), "has SamplesPerPixel 1 in its header and 3 in its JPEG")
    deep = picture.astype(np.uint16)
    refused(
        wrap(coded(picture), deep, BASELINE), "has BitsStored 16 of BitsAllocated 16 in its header and 8 bits in its"
    )
    refused(wrap(coded(picture), picture.view(np.int8), BASELINE), "has signed pixels in lossy JPEG")


def test_a_palette_in_lossy_compression(wrap: Wrap, refused: Refused, picture: Array) -> None:
    path = wrap(coded(picture), picture, BASELINE, PhotometricInterpretation="PALETTE COLOR")
    refused(path, "has indices into a palette in lossy compression")


def test_more_after_the_end_of_a_frame(wrap: Wrap, refused: Refused, picture: Array) -> None:
    data = coded(picture)
    right = read_grey(wrap(data, picture, BASELINE))
    np.testing.assert_array_equal(read_grey(wrap(data + bytes(20), picture, BASELINE)), right)
    refused(wrap(data + data, picture, BASELINE), r"holds \d+ bytes after the end of its JPEG \(baseline\) stream")


def test_scans_that_would_take_minutes_are_refused_before_any_is_decoded() -> None:
    """A grey file of 13 kB and 253 scans took a minute: each scan is proven by a decoding of all of them."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(
        stream, "JPEG", progressive=True
    )
    parsed = jpeg_header.parse(stream.getvalue())
    jpeg_header._check_scans(parsed)
    many = replace(parsed, scans=parsed.scans * 40)
    large = replace(parsed, width=60_000, height=60_000)
    for one in (many, large):
        with pytest.raises(ImageError, match=r"has a progressive JPEG stream of \d+ scans of \d+ x \d+ pixels"):
            jpeg_header._check_scans(one)
