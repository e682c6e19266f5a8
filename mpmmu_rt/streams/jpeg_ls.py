"""JPEG-LS (ITU-T T.87), decoded by CharLS through imagecodecs.

CharLS itself holds a scan to its last bit: it raises where a scan ends early and where something is left over. What is
read here is the head, and what would give other values without a word: mapping tables, HP's colour transforms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpmmu_rt._optional import require
from mpmmu_rt.spec import Array

from .stream import CODECS_PURPOSE, DECOMPRESS, Colour, Stream, damaged, unsupported

_SPIFF_COLOURS: dict[int, Colour] = {1: "YCbCr", 2: "unknown", 3: "YCbCr", 4: "YCbCr", 10: "RGB"}  # T.84 F.2


@dataclass(frozen=True)
class JpegLs:
    """`near` is by how much a sample may differ (T.87 C.2.3), `end` where the image ends."""

    stream: Stream
    near: int
    end: int


def parse(data: bytes) -> JpegLs:
    """Walk the segments of a JPEG-LS image. Raises `ImageError` where one is missing."""
    if not data.startswith(b"\xff\xd8"):
        damaged(f"has a JPEG-LS stream that begins with {data[:4]!r}", "the marker SOI")
    head: Stream | None = None
    spiff: bytes | None = None
    coded, near, at = 0, 0, 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # a fill byte
            at += 1
        if data[at : at + 2] == b"\xff\xd9":
            break
        if at + 4 > len(data):
            damaged("has a JPEG-LS stream that ends before its marker EOI")
        if data[at] != 0xFF:
            damaged(f"has a JPEG-LS stream with bytes between two segments, at byte {at}", "a marker")
        marker = data[at + 1]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body, at = data[at + 4 : at + 2 + length], at + 2 + length
        if length < 2 or at > len(data):
            damaged("has a JPEG-LS stream with a segment that is cut off")
        if marker == 0xF7:
            if head is not None:
                damaged("has a JPEG-LS stream with two frame headers", "one")
            head = _frame(body)
        elif marker == 0xF8 and body[:1] in (b"\2", b"\3"):
            unsupported("has a JPEG-LS stream with a mapping table", "samples that are values", DECOMPRESS)
        elif marker == 0xE8 and body.startswith(b"mrfx") and body[4:5] != b"\0":
            unsupported("has a JPEG-LS stream with HP's colour transform", "components of T.87", DECOMPRESS)
        elif marker == 0xE8 and body.startswith(b"SPIFF\0") and spiff is None:
            spiff = body
        elif marker == 0xDA:
            count = body[0] if body else 0
            if head is None or len(body) != 4 + 2 * count:
                damaged("has a JPEG-LS stream with a malformed scan header")
            if any(body[2 : 2 + 2 * count : 2]):
                unsupported("has a JPEG-LS stream with a mapping table", "samples that are values", DECOMPRESS)
            coded, near = coded + count, max(near, body[-3])
            at = _end_of_scan(data, at)
        elif not (0xE0 <= marker <= 0xEF or marker in (0xF8, 0xDD, 0xFE)):
            damaged(f"has a JPEG-LS stream with the marker FF{marker:02X}", "the segments of T.87")
    if head is None or coded != head.components:
        damaged("has a JPEG-LS stream that doesn't code each component once")
    return JpegLs(head if spiff is None else _with_spiff(head, spiff), near, at + 2)


def decode(data: bytes) -> Array:
    """Samples, uint8 or uint16 [H, W] or [H, W, 3], as they are coded.

    Raises `ImageError` unless the picture is coded to its last bit, `MissingPackage` without imagecodecs.
    """
    codec = require("imagecodecs", CODECS_PURPOSE)
    try:
        samples: Array = codec.jpegls_decode(data)
    except codec.JpeglsError as error:
        damaged(f"has a JPEG-LS stream that is not whole ({str(error).partition(' returned ')[2] or error})")
    return samples


def _frame(body: bytes) -> Stream:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        damaged("has a JPEG-LS stream with a frame header of the wrong length")
    bits, components = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not (2 <= bits <= 16 and height and width and components in (1, 3)):
        unsupported(
            f"has a JPEG-LS stream of {width} x {height} pixels, {components} component(s) and {bits} bits",
            "1 or 3 components of 2 to 16 bits",
            DECOMPRESS,
        )
    if any(body[i] != 0x11 for i in range(7, len(body), 3)):
        unsupported("has a JPEG-LS stream with sampling factors", "one sample per pixel", DECOMPRESS)
    return Stream("JPEG-LS", width, height, components, bits, None, "grey" if components == 1 else "unknown")


def _end_of_scan(data: bytes, at: int) -> int:
    """After FF, coded bits go on with a 0; a 1 is a marker (T.87 A.1). RST0 to RST7 are part of the scan."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 == len(data):
            damaged("has a JPEG-LS stream that ends before its marker EOI")
        if data[at + 1] >= 0x80 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 1


def _with_spiff(head: Stream, spiff: bytes) -> Stream:
    """Held against the SPIFF header (T.84 annex F), which names the colours."""
    size = int.from_bytes(spiff[10:14], "big"), int.from_bytes(spiff[14:18], "big")
    colour = _SPIFF_COLOURS.get(spiff[18] if len(spiff) > 18 else -1)
    if head.components == 1:  # of grey, writers are known that say RGB
        colour = "grey"
    if size != (head.height, head.width) or colour is None:
        damaged("has a JPEG-LS stream whose SPIFF header says otherwise than its frame header", "the same of both")
    return replace(head, colour=colour)
