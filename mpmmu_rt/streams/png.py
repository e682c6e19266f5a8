"""PNG (third edition): every checksum holds, and the data are exactly the picture that the header states.

Pillow checks neither the CRC of the chunks that hold the pixels nor, once it has its rows, what comes after them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from mpmmu_rt.grey import check_sides

from .stream import damaged, unsupported

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ONCE = (b"PLTE", b"tRNS", b"pHYs")  # before the pixels
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_SLICE, _BLOCK = 2**14, 2**16 - 1  # inflated in pieces that stay in a cache
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    depth: int
    colour: int
    interlace: int

    def length(self, width: int, height: int) -> int:
        """Bytes of a filtered picture: a byte per row, and the rows (7.3, and 8.1 for those of Adam7)."""
        bits = self.depth * _CHANNELS[self.colour]
        passes = [(width, height)]
        if self.interlace:
            passes = [
                (-(-(width - x) // across), -(-(height - y) // down))
                for x, y, across, down in _ADAM7
                if width > x and height > y
            ]
        return sum(high * (1 + -(-wide * bits // 8)) for wide, high in passes)


def prove(data: bytes) -> bytes:
    """A file with the same pixels, of which the rows are stored instead of deflated: they are inflated here, once.

    Their chunk has no checksum, which a tenth of the time would go into: Pillow does not ask for it, and its rows are
    what zlib gave here.

    Raises `ImageError` unless every chunk is whole (5.3), the first is IHDR and the last IEND (5.6), what says how
    pixels are meant stands before them, and every image in it inflates to exactly its rows (10.1). The sides are held
    to `check_sides` before anything is inflated.
    """
    chunks = list(_chunks(data))
    header = _header(*chunks[0][:2])
    _check_meaning(header, chunks)
    parts = [body for kind, body, _ in chunks if kind == b"IDAT"]
    rows = _inflate(parts, header.length(header.width, header.height))
    _check_frames(header, chunks)
    out = [SIGNATURE]
    for kind, body, crc in chunks:
        if kind != b"IDAT":
            out += [struct.pack(">I", len(body)), kind, body, crc]
        elif rows:
            length = sum(len(block) for block in rows)
            out += [struct.pack(">I", length), kind, *rows, bytes(4)]
            rows = []
    return b"".join(out)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and checksum of each chunk."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            damaged("is a PNG file that ends before its chunk IEND")
        length, kind = struct.unpack_from(">I4s", data, at)
        body, crc = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(crc) < 4:
            damaged("is a PNG file that ends before its chunk IEND")
        if struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))) != crc:
            damaged(
                f"is a PNG file with a chunk {kind.decode('latin-1')!r} whose checksum is wrong", "what was written"
            )
        if (at == len(SIGNATURE)) != (kind == b"IHDR"):
            damaged("is a PNG file with a header that is not first, or twice", "IHDR once, before all else")
        yield kind, body, crc
        at += 12 + length
    if data[at:].strip(b"\0"):
        damaged(f"is a PNG file with {len(data) - at} bytes after its end", "IEND to be the last chunk")


def _header(kind: bytes, body: bytes) -> _Header:
    if kind != b"IHDR" or len(body) != 13:
        damaged("is a PNG file without a header", "IHDR")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    check_sides(width, height)
    allowed = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.get(colour, ())
    if depth not in allowed or compression or filtering or interlace > 1:
        damaged(f"is a PNG file of colour type {colour} with {depth} bits", "what the standard knows (11.2.1)")
    return _Header(width, height, depth, colour, interlace)


def _check_meaning(header: _Header, chunks: list[tuple[bytes, bytes, bytes]]) -> None:
    """Refuse chunks that must be known (5.4) and are not, and those of `_ONCE` that come late or twice (5.6): Pillow
    leaves them out, or takes the last."""
    lengths: dict[bytes, int] = {}
    started = False
    for kind, body, _ in chunks:
        name = repr(kind.decode("latin-1"))
        if not kind[0] & 0x20 and kind not in _CRITICAL:
            unsupported(
                f"is a PNG file with a chunk {name}, without which its pixels can't be understood",
                "those of the standard",
                "save it again as PNG, without loss, with another program",
            )
        started |= kind == b"IDAT"
        if kind in _ONCE:
            if started:
                damaged(f"is a PNG file with a chunk {name} after its first pixels", "it before them")
            if kind in lengths or (kind == b"PLTE" and b"tRNS" in lengths):
                damaged(f"is a PNG file with a chunk {name} twice, or PLTE after tRNS", "each once, and in order")
            lengths[kind] = len(body)
    _check_colours(header.colour, lengths.get(b"PLTE"), lengths.get(b"tRNS"))


def _check_colours(colour: int, palette: int | None, transparency: int | None) -> None:
    """The lengths of PLTE and tRNS, None of what there is not, against the colour type (11.2.2, 11.3.1.1)."""
    seen = f"is a PNG file of colour type {colour} with "
    if palette is None and colour == 3:
        damaged(f"{seen}no palette", "one before its pixels")
    if palette is not None and (colour in (0, 4) or palette % 3 or not 3 <= palette <= 768):
        damaged(f"{seen}a palette of {palette} bytes", "none with grey, else three for each of 1 to 256 colours")
    allowed = {0: range(2, 3), 2: range(6, 7), 3: range(1, (palette or 0) // 3 + 1)}.get(colour, range(0))
    if transparency is not None and transparency not in allowed:
        damaged(
            f"{seen}{transparency} bytes of transparency",
            "2 with grey, 6 with colour, up to one per entry of a palette, none beside an alpha channel",
        )


def _inflate(parts: list[bytes], expected: int) -> list[bytes]:
    """Refuse zlib's stream in `parts` unless it holds exactly `expected` bytes and its own checksum (RFC 1950).

    The same bytes as a stream of stored blocks (RFC 1951, 3.2.4), which are copied where others are inflated.
    """
    inflate, length, tail = zlib.decompressobj(), 0, b""
    blocks = [b"\x78\x01"]
    try:
        for part in parts:
            for at in range(0, len(part), _SLICE):
                tail = part[at : at + _SLICE]
                rows = b""
                while (tail or len(rows) == _BLOCK) and length <= expected and not inflate.eof:
                    rows = inflate.decompress(tail, _BLOCK)
                    tail = inflate.unconsumed_tail
                    length += len(rows)
                    blocks += [struct.pack("<BHH", 0, len(rows), len(rows) ^ 0xFFFF), rows]
    except zlib.error as error:
        damaged(f"is a PNG file with damaged pixels ({error})")
    if length != expected or not inflate.eof:
        seen = f"{length} bytes or more" if length > expected else f"{length} bytes"
        damaged(f"is a PNG file with {seen} of pixels", f"exactly {expected}, by its header")
    if tail or inflate.unused_data:
        damaged("is a PNG file with data after its pixels")
    return [*blocks, b"\1\0\0\xff\xff", b"".join(part[-4:] for part in parts)[-4:]]


def _check_frames(header: _Header, chunks: list[tuple[bytes, bytes, bytes]]) -> None:
    """Of an animated file, each further frame (11.3.6)."""
    size: tuple[int, int] | None = None
    parts: list[bytes] = []
    for kind, body, _ in [*chunks, (b"fcTL", b"", b"")]:
        if kind == b"fcTL":
            if size and parts:
                _inflate(parts, header.length(*size))
            size, parts = (struct.unpack_from(">II", body, 4) if len(body) == 26 else None), []
            if size:
                _check_sides_of_frame(header, size)
        elif kind == b"fdAT":
            parts.append(body[4:])


def _check_sides_of_frame(header: _Header, size: tuple[int, int]) -> None:
    if not (0 < size[0] <= header.width and 0 < size[1] <= header.height):
        damaged("is a PNG file with a frame that is larger than its picture", "a part of it")
