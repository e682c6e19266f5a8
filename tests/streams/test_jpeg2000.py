"""JPEG 2000 in DICOM: its header, its tiles, and every packet of them."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array
from mpmmu_rt.streams import jpeg2000
from mpmmu_rt.streams.jpeg2000_packets import check_packets

LOSSLESS, LOSSY = "4.90", "4.91"
Wrap = Callable[..., Any]
Refused = Callable[..., Any]


def coded(values: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "jpeg2000", **({"no_jp2": True, "irreversible": False} | options))
    return out.getvalue()


def deep(picture: Array) -> Array:
    return picture.astype(np.uint16) * 200 + 77


def stretched(values: Array) -> Array:
    """From its own range, but for 8 unsigned bits, which are grey already."""
    if values.dtype == np.uint8:
        return values
    wide = values.astype(np.float64)
    return np.asarray(np.rint(255 * (wide - wide.min()) / (wide.max() - wide.min())), np.uint8)


def tile_parts(data: bytes) -> list[tuple[int, int]]:
    found, at = [], data.index(b"\xff\x90\0\x0a")
    while data[at : at + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", data, at + 6)
        found.append((at, at + length))
        at += length
    return found


PROGRESSIONS = ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_resolutions": 1},
        {"codeblock_size": (4, 16)},
        {"no_jp2": False},
        {"quality_mode": "rates", "quality_layers": [20, 6, 1]},
        *({"progression": order, "precinct_size": (32, 32), "num_resolutions": 3} for order in PROGRESSIONS),
        *({"progression": order, "quality_layers": [9, 1], "quality_mode": "rates"} for order in PROGRESSIONS),
    ],
    ids=str,
)
def test_every_packet_is_found(wrap: Wrap, picture: Array, colours: Array, options: dict[str, Any]) -> None:
    for values in (picture, deep(picture)):
        path = wrap(coded(values, **options), values, LOSSLESS)
        np.testing.assert_array_equal(read_grey(path), stretched(values))
    luma = colours.astype(np.float64) @ [0.299, 0.587, 0.114]
    for transformed, photometric in ((1, "YBR_RCT"), (1, "RGB"), (0, "RGB")):
        path = wrap(
            coded(colours, mct=transformed, **options), colours, LOSSLESS, PhotometricInterpretation=photometric
        )
        assert np.abs(read_grey(path) - luma).max() <= 0.51


@pytest.mark.parametrize("tile", [(16, 16), (33, 20), (70, 11)])
@pytest.mark.parametrize("order", PROGRESSIONS)
def test_tiles(picture: Array, tile: tuple[int, int], order: str) -> None:
    data = coded(picture, tile_size=tile, progression=order, num_resolutions=3)
    found = jpeg2000.parse(data)
    assert found.grid == (-(-70 // tile[0]), -(-48 // tile[1]))
    check_packets(data, found)


def test_a_tile_that_is_not_there(wrap: Wrap, refused: Refused, picture: Array) -> None:
    data = coded(picture, tile_size=(20, 20))
    parts = tile_parts(data)
    for start, end in (parts[0], parts[5], parts[-1]):
        refused(wrap(data[:start] + data[end:], picture, LOSSLESS), "of 11 tiles, expected 12, by its size")
    start, end = parts[3]
    refused(
        wrap(data[:end] + data[start:end] + data[end:], picture, LOSSLESS), "part 0 of tile 3 out of place|parts of"
    )


def test_a_packet_that_is_not_there(wrap: Wrap, refused: Refused, picture: Array) -> None:
    """OpenJPEG itself decodes what remains, with its length corrected."""
    data = coded(picture, quality_mode="rates", quality_layers=[30, 10, 3])
    (start, end), head = tile_parts(data)[0], 14
    for missing in range(1, end - start - head, 37):
        shorter = data[: start + 6] + struct.pack(">I", end - start - missing) + data[start + 10 : end - missing]
        refused(wrap(shorter + b"\xff\xd9", picture, LOSSY), "JPEG 2000 stream")
    for extra in (1, 2, 40):
        longer = data[: start + 6] + struct.pack(">I", end - start + extra) + data[start + 10 : end] + bytes(extra)
        refused(wrap(longer + b"\xff\xd9", picture, LOSSY), "JPEG 2000 stream whose tile 0 holds")


def test_cut_anywhere(wrap: Wrap, refused: Refused, picture: Array) -> None:
    values = deep(picture)
    data = coded(values)
    for cut in itertools.chain(range(40, len(data) - 2, 211), range(len(data) - 6, len(data))):
        refused(wrap(data[:cut], values, LOSSLESS), "JPEG 2000")
        if cut < len(data) - 2:
            refused(wrap(data[:cut] + b"\xff\xd9", values, LOSSLESS), "JPEG 2000|bytes after the end")


@pytest.mark.parametrize("hole", [32, 64, 512])
def test_a_sector_of_zeros(wrap: Wrap, refused: Refused, hole: int) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (90, 70)).astype(np.uint16)
    data = coded(values)
    for at in range(200, len(data) - hole - 2, 997):
        refused(wrap(data[:at] + bytes(hole) + data[at + hole :], values, LOSSLESS), "JPEG 2000 stream")


def test_blank_precincts_are_zeros_and_right(wrap: Wrap) -> None:
    """An empty packet is a byte 0: a run of them is no hole. OpenJPEG writes 80, which includes no code-block."""
    values = np.zeros((1024, 1024), np.uint8)
    values[:40, :40] = np.arange(40, dtype=np.uint8) * 5
    data = coded(values, precinct_size=(32, 32), progression="RPCL").replace(b"\x80" * 64, bytes(64))
    assert bytes(64) in data
    np.testing.assert_array_equal(read_grey(wrap(data, values, LOSSLESS)), stretched(values))


def test_bytes_that_no_coder_writes(wrap: Wrap, refused: Refused) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (90, 70)).astype(np.uint16)
    data = bytearray(coded(values))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xa0"
    refused(wrap(bytes(data), values, LOSSLESS), "bytes that no coder writes")


def test_colours_that_contradict_the_header(wrap: Wrap, refused: Refused, colours: Array) -> None:
    for transformed, photometric in ((1, "YBR_FULL"), (1, "YBR_FULL_422"), (0, "YBR_RCT"), (0, "YBR_ICT")):
        path = wrap(coded(colours, mct=transformed), colours, LOSSLESS, PhotometricInterpretation=photometric)
        refused(path, f"interpretation {photometric} and (a|no) component transform in its JPEG 2000 stream")


def test_ybr_full_without_a_transform(wrap: Wrap, picture: Array) -> None:
    ybr = np.stack([picture // 2 + 60, *[np.full_like(picture, 128)] * 2], axis=-1)
    path = wrap(coded(ybr, mct=0), ybr, LOSSLESS, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(read_grey(path), ybr[..., 0])


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_precision_and_sign(wrap: Wrap, refused: Refused, picture: Array, bits: int, signed: bool) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="pip install 'mpmmu-rt[codecs]'")
    values = (picture.astype(np.int32) << (bits - 8)) - (2 ** (bits - 1) if signed else 0)
    typed = values.astype(np.int16 if signed else np.uint16)
    stream = imagecodecs.jpeg2k_encode(typed, level=0, codecformat="j2k", reversible=True, bitspersample=bits)
    found = jpeg2000.parse(stream)
    assert (found.bits, found.signed) == (bits, signed)
    np.testing.assert_array_equal(jpeg2000.decode(stream, found), typed)
    np.testing.assert_array_equal(read_grey(wrap(stream, typed, LOSSLESS, BitsStored=bits)), stretched(typed))
    other = wrap(stream, typed, LOSSLESS, BitsStored=bits, PixelRepresentation=1 - signed)
    refused(other, f"PixelRepresentation {1 - signed} in its header and {'' if signed else 'un'}signed samples")


def test_the_header_is_another_pictures(wrap: Wrap, refused: Refused, picture: Array, colours: Array) -> None:
    data = coded(picture)
    refused(
        wrap(data, picture, LOSSLESS, Rows=70, Columns=48), "Rows and Columns 70 and 48 in its header and 48 and 70"
    )
    refused(wrap(data, colours, LOSSLESS), "SamplesPerPixel 3 in its header and 1 in its JPEG 2000")
    refused(wrap(data, deep(picture), LOSSLESS), "BitsStored 16 of BitsAllocated 16 in its header and 8 bits")
    refused(wrap(coded(deep(picture)), picture, LOSSLESS), "BitsStored 8 of BitsAllocated 8 in its header and 16 bits")
    refused(wrap(data + data, picture, LOSSLESS), "bytes after the end of its JPEG 2000 stream")
    lossy = wrap(coded(picture, irreversible=True), picture, LOSSY, PhotometricInterpretation="PALETTE COLOR")
    refused(lossy, "indices into a palette in lossy compression")


def test_a_palette_in_a_component_that_has_its_own_lossy_coding(wrap: Wrap, refused: Refused, picture: Array) -> None:
    """The marker COD says that all is reversible, and COC, in the main header or in that of a tile, not this one."""
    data = coded(picture, irreversible=True)
    cod, sot = data.index(b"\xff\x52"), data.index(b"\xff\x90\0\x0a")
    coc = b"\xff\x53\0\x09\0\0" + data[cod + 9 : cod + 14]
    main = data[: cod + 13] + b"\1" + coc + data[cod + 14 :]
    length = struct.pack(">I", int.from_bytes(data[sot + 6 : sot + 10], "big") + len(coc))
    head = data[: cod + 13] + b"\1" + data[cod + 14 : sot + 6]
    tile = head + length + data[sot + 10 : sot + 12] + coc + data[sot + 12 :]
    for stream in (main, tile):
        right = read_grey(wrap(data, picture, LOSSY))
        np.testing.assert_array_equal(read_grey(wrap(stream, picture, LOSSY)), right)
        path = wrap(stream, picture, LOSSY, PhotometricInterpretation="PALETTE COLOR")
        refused(path, "indices into a palette in lossy compression")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, siz, cod, sot: d[: siz + 4] + b"\x40\0" + d[siz + 6 :], "High-Throughput"),
        (lambda d, siz, cod, sot: d[: cod + 12] + b"\x40" + d[cod + 13 :], "High-Throughput"),
        (lambda d, siz, cod, sot: d[:cod] + b"\xff\x50\0\6\0\0\0\0" + d[cod:], "High-Throughput"),
        (lambda d, siz, cod, sot: d[:cod] + b"\xff\x60\0\3\0" + d[cod:], "packed packet headers"),
        (lambda d, siz, cod, sot: d[: siz + 41] + b"\2" + d[siz + 42 :], r"1 component\(s\), or ones that differ"),
        (lambda d, siz, cod, sot: d[: siz + 40] + b"\x25" + d[siz + 41 :], "of 38 bits"),
        (lambda d, siz, cod, sot: d[: siz + 22] + bytes(4) + d[siz + 26 :], "impossible size or tiles"),
        (lambda d, siz, cod, sot: d[:cod] + d[cod + 14 :], "without the marker COD"),
        (lambda d, siz, cod, sot: d[:cod] + b"junk" + d[cod:], "where a segment begins"),
        (lambda d, siz, cod, sot: d[: cod + 9] + b"\x30" + d[cod + 10 :], "malformed marker COD"),
        (lambda d, siz, cod, sot: d[: sot + 6] + b"\0\0\xff\xff" + d[sot + 10 :], "out of place or cut off"),
        (lambda d, siz, cod, sot: d[: sot + 4] + b"\0\x07" + d[sot + 6 :], "of tile 7 out of place"),
        (lambda d, siz, cod, sot: b"\0\0" + d, "begins with"),
    ],
)
def test_malformed_streams(wrap: Wrap, refused: Refused, picture: Array, change: Any, message: str) -> None:
    data = coded(picture)
    markers = (data.index(b"\xff\x51"), data.index(b"\xff\x52"), data.index(b"\xff\x90\0\x0a"))
    refused(wrap(change(data, *markers), picture, LOSSLESS), message)


def test_a_last_tile_part_of_unknown_length(wrap: Wrap, picture: Array) -> None:
    data = bytearray(coded(picture))
    start, _ = tile_parts(bytes(data))[0]
    data[start + 6 : start + 10] = bytes(4)
    np.testing.assert_array_equal(read_grey(wrap(bytes(data), picture, LOSSLESS)), stretched(picture))
