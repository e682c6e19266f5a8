"""JPEG 2000 (ITU-T T.800): the main header, the tile-parts, and the samples, by OpenJPEG through Pillow.

OpenJPEG refuses a codestream that is cut, but leaves tiles black that are not there, and decodes what a hole has left.
`jpeg2000_packets` shows that every packet of every tile is there.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from mpmmu_rt.spec import Array

from .stream import DECOMPRESS, Colour, Stream, damaged, unsupported

_MAIN = range(0xFF50, 0xFF65)  # markers of the main and tile-part headers (table A.1)


@dataclass
class TilePart:
    header: list[tuple[int, bytes]]
    start: int
    end: int


@dataclass
class Codestream:
    """The headers of a codestream, and where the packets of each tile are."""

    size: tuple[int, int, int, int] = (0, 0, 0, 0)  # Xsiz, Ysiz, XOsiz, YOsiz
    tile: tuple[int, int, int, int] = (0, 0, 0, 0)  # XTsiz, YTsiz, XTOsiz, YTOsiz
    bits: int = 0
    signed: bool = False
    components: int = 0
    header: list[tuple[int, bytes]] = field(default_factory=list)
    tiles: dict[int, list[TilePart]] = field(default_factory=dict)
    begin: int = 0
    end: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles across and down (B.3)."""
        (right, bottom, _, _), (wide, high, left, top) = self.size, self.tile
        return -(-(right - left) // wide), -(-(bottom - top) // high)

    @property
    def transformed(self) -> bool:
        """Whether a component transform is to be undone, in which case the result is RGB (annex G)."""
        return any(marker == 0xFF52 and body[4:5] == b"\1" for marker, body in self.header)

    @property
    def reversible(self) -> bool:
        """Whether each COD and COC, of tiles too, names the reversible wavelet (A.6.1, A.6.2)."""
        tile_parts = (part.header for parts in self.tiles.values() for part in parts)
        transform = {0xFF52: 9, 0xFF53: 6}  # where each has it
        return all(
            body[transform[marker] :][:1] == b"\1"
            for marker, body in chain(self.header, *tile_parts)
            if marker in transform
        )

    @property
    def stream(self) -> Stream:
        right, bottom, left, top = self.size
        colour: Colour = "grey" if self.components == 1 else "unknown"
        return Stream("JPEG 2000", right - left, bottom - top, self.components, self.bits, self.signed, colour)


def parse(data: bytes) -> Codestream:
    """Walk the markers of a codestream, or of the one in a JP2 file. Raises `ImageError` where a part is missing."""
    code = Codestream(begin=_codestream(data))
    at = code.begin + 2
    while data[at : at + 2] != b"\xff\x90":
        marker, body, at = _segment(data, at)
        code.header.append((marker, body))
        if marker == 0xFF51:
            _read_size(code, body)
    if not code.components:
        damaged("has a JPEG 2000 stream without its size", "the marker SIZ")
    if not any(marker == 0xFF52 for marker, _ in code.header):
        damaged("has a JPEG 2000 stream without the marker COD")
    while data[at : at + 2] == b"\xff\x90":
        at = _read_tile_part(code, data, at)
    if data[at : at + 2] != b"\xff\xd9":
        damaged("has a JPEG 2000 stream that ends before its marker EOC, or has bytes between two tile-parts")
    code.end = at + 2
    across, down = code.grid
    if len(code.tiles) != across * down:
        damaged(f"has a JPEG 2000 stream of {len(code.tiles)} tiles", f"{across * down}, by its size")
    return code


def decode(data: bytes, code: Codestream) -> Array:
    """Samples as coded, after the inverse component transform: uint8, int8, uint16 or int16 [H, W] or [H, W, 3].

    Raises `ImageError` if not every packet is there.
    """
    from PIL import Jpeg2KImagePlugin

    from .jpeg2000_packets import check_packets

    if code.components == 3 and (code.bits != 8 or code.signed):
        unsupported(f"has colours of {code.bits} bits in JPEG 2000", "8 unsigned bits", DECOMPRESS)
    check_packets(data, code)
    with Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data[code.begin : code.end])) as image:
        expected = "RGB" if code.components == 3 else "L" if code.bits <= 8 else "I;16"
        if image.mode != expected:
            unsupported(f"has a JPEG 2000 stream that decodes to {image.mode}", expected, DECOMPRESS)
        samples: Array = np.asarray(image)
    # Pillow fills 8 or 16 bits from the top, and moves signed values up by half of their range.
    if unused := samples.itemsize * 8 - code.bits:
        samples = samples >> unused
    if code.signed:
        samples = (samples.astype(np.int32) - (1 << (code.bits - 1))).astype(f"i{samples.itemsize}")
    return samples


def _codestream(data: bytes) -> int:
    """Where SOC is: at once, or in the box jp2c of a JP2 file (I.5.4), which DICOM doesn't know but some write."""
    if data.startswith(b"\xff\x4f\xff\x51"):
        return 0
    at = 0
    while data.startswith(b"\0\0\0\x0cjP  ") and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind == b"jp2c" and data[at + head : at + head + 4] == b"\xff\x4f\xff\x51":
            return at + head
        if length < head:
            break
        at += length
    damaged(f"has a JPEG 2000 stream that begins with {data[:4]!r}", "the markers SOC and SIZ")


def _segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    if at + 4 > len(data):
        damaged("has a JPEG 2000 stream that ends within its header")
    marker, length = struct.unpack_from(">HH", data, at)
    if marker not in _MAIN or length < 2 or at + 2 + length > len(data):
        damaged(f"has a JPEG 2000 header with {marker:04X} where a segment begins", "the segments of T.800")
    if marker in (0xFF60, 0xFF61):
        unsupported("has a JPEG 2000 stream with packed packet headers", "them beside the packets", DECOMPRESS)
    if marker == 0xFF50:
        unsupported("has a High-Throughput JPEG 2000 stream", "JPEG 2000 part 1", DECOMPRESS)
    return marker, data[at + 4 : at + 2 + length], at + 2 + length


def _read_size(code: Codestream, body: bytes) -> None:
    if len(body) < 39 or len(body) != 36 + 3 * (count := int.from_bytes(body[34:36], "big")):
        damaged("has a JPEG 2000 stream with a size of the wrong length")
    if code.components:
        damaged("has a JPEG 2000 stream with two sizes", "one")
    capabilities, *numbers = struct.unpack_from(">H8I", body)
    right, bottom, left, top, wide, high, tile_left, tile_top = numbers
    code.size, code.tile, code.components = (right, bottom, left, top), (wide, high, tile_left, tile_top), count
    if not (left < right and top < bottom and wide and high and tile_left <= left < tile_left + wide
            and tile_top <= top < tile_top + high):  # fmt: skip
        damaged("has a JPEG 2000 stream with an impossible size or tiles (T.800 B.3)")
    if capabilities & 0x4000:
        unsupported("has a High-Throughput JPEG 2000 stream", "JPEG 2000 part 1", DECOMPRESS)
    code.bits, code.signed = (body[36] & 127) + 1, body[36] >= 128
    if count not in (1, 3) or any(body[i : i + 3] != bytes([body[36], 1, 1]) for i in range(36, len(body), 3)):
        unsupported(
            f"has a JPEG 2000 stream of {count} component(s), or ones that differ",
            "1 or 3 of one precision, with a sample per pixel",
            DECOMPRESS,
        )
    if not 1 <= code.bits <= 16:
        unsupported(f"has a JPEG 2000 stream of {code.bits} bits", "at most 16", DECOMPRESS)


def _read_tile_part(code: Codestream, data: bytes, at: int) -> int:
    """One tile-part: SOT to the end of its packets (A.4.2). Where it is cut, its length says so."""
    if at + 14 > len(data) or data[at + 2 : at + 4] != b"\0\x0a":
        damaged("has a JPEG 2000 stream with a tile-part that is cut off")
    tile, length, part, parts = struct.unpack_from(">HIBB", data, at + 4)
    end: int = at + length
    if length == 0:  # the last one goes to EOC
        end = data.rfind(b"\xff\xd9")
    before = code.tiles.setdefault(tile, [])
    across, down = code.grid
    if tile >= across * down or part != len(before) or end > len(data):
        damaged(f"has a JPEG 2000 stream with part {part} of tile {tile} out of place or cut off")
    if parts and len(before) >= parts:
        damaged(f"has a JPEG 2000 stream with {len(before) + 1} parts of tile {tile}", f"{parts}, as it says")
    found = TilePart([], 0, end)
    before.append(found)
    inside = at + 12
    while data[inside : inside + 2] != b"\xff\x93":
        marker, body, inside = _segment(data, inside)
        found.header.append((marker, body))
    found.start = inside + 2
    if found.start > end:
        damaged("has a JPEG 2000 stream with a tile-part that is cut off")
    return end
