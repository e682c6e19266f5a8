"""Is every packet of a JPEG 2000 codestream there? (ITU-T T.800 annex B)

Packet headers are read, and the lengths that they state followed: each tile must hold a packet for every layer of every
precinct of every resolution level of every component, one after the other, up to its last byte. What they enclose is
coded by a coder whose bytes look random but for two rules, by which a hole is seen: no FF is followed by more than 8F,
and there is no long run of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .jpeg2000 import Codestream, TilePart
from .stream import DECOMPRESS, damaged, unsupported

_BYPASS, _TERMINATE_ALL, _HIGH_THROUGHPUT = 1, 4, 0x40
_HOLE = b"\0" * 16  # by chance once in 2**128
_NO_CODE = re.compile(rb"\xff[\x90-\xff]")
_MOST_PLANES = 80  # bit-planes that a code-block may lack
_MOST_BLOCKS = 4_000_000  # a header of a few bytes may claim more than memory holds


def check_packets(data: bytes, code: Codestream) -> None:
    """Raise `ImageError` unless each tile holds exactly its packets."""
    for tile, parts in code.tiles.items():
        coded = b"".join(data[part.start : part.end] for part in parts)
        try:
            _Tile(code, tile, parts).check(coded)
        except IndexError:
            damaged(f"has a JPEG 2000 stream in which packets of tile {tile} are missing", "every packet")


@dataclass(frozen=True)
class _Coding:
    """How a tile-component is coded (A.6.1, A.6.2)."""

    levels: int
    block: tuple[int, int]  # exponents of a code-block's width and height
    style: int
    precincts: tuple[tuple[int, int], ...]  # exponents for each resolution level


class _Bits:
    """Bits of a packet header: after FF, a byte has 7 (B.10.1). `end` is where a header ends that ends here."""

    def __init__(self, data: bytes, at: int) -> None:
        self.end = at
        self.bit: Callable[[], int] = self._read(data, at).__next__

    def _read(self, data: bytes, at: int) -> Iterator[int]:
        byte = 0
        while True:
            stuffed = byte == 0xFF
            byte = data[at]
            at += 1
            self.end = at + (byte == 0xFF)
            if not stuffed:
                yield byte >> 7
            yield byte >> 6 & 1
            yield byte >> 5 & 1
            yield byte >> 4 & 1
            yield byte >> 3 & 1
            yield byte >> 2 & 1
            yield byte >> 1 & 1
            yield byte & 1

    def number(self, count: int) -> int:
        value, bit = 0, self.bit
        for _ in range(count):
            value = value << 1 | bit()
        return value


class _TagTree:
    """B.10.2: the values of a grid of leaves, of which a header tells as much as is asked for."""

    def __init__(self, wide: int, high: int) -> None:
        self.levels: list[tuple[int, int, list[int], list[bool]]] = []  # root first: shift, width, lower bounds, known
        shift = 0
        while True:
            self.levels.insert(0, (shift, wide, [0] * (wide * high), [False] * (wide * high)))
            if wide * high <= 1:
                break
            wide, high, shift = (wide + 1) // 2, (high + 1) // 2, shift + 1

    def below(self, bit: Callable[[], int], x: int, y: int, limit: int) -> bool:
        """Read on until it is known whether the leaf's value is less than `limit`."""
        low = 0
        for shift, wide, bounds, known in self.levels:
            at = (y >> shift) * wide + (x >> shift)
            low = max(low, bounds[at])
            if not known[at]:
                while low < limit:
                    if bit():
                        known[at] = True
                        break
                    low += 1
                bounds[at] = low
        return low < limit


@dataclass
class _Block:
    """A code-block: what the packets so far have said of it."""

    included: bool = False
    length_bits: int = 3
    passes: int = 0  # in the codeword segment that is open
    most: int = 0  # how many passes it may have


class _Band:
    """The code-blocks of one precinct in one sub-band."""

    def __init__(self, wide: int, high: int) -> None:
        self.wide, self.high = wide, high
        self.blocks = [_Block() for _ in range(wide * high)]
        self.inclusion, self.planes = _TagTree(wide, high), _TagTree(wide, high)


@dataclass
class _Precinct:
    resolution: int
    component: int
    number: int
    x: int  # on the reference grid, for the order of progression
    y: int
    bands: list[tuple[int, int]]  # code-blocks across and down, of each sub-band
    style: int
    layers: int = 0  # how many were read
    built: list[_Band] = field(default_factory=list)


class _Tile:
    def __init__(self, code: Codestream, tile: int, parts: list[TilePart]) -> None:
        own = [segment for part in parts for segment in part.header]
        headers = [*code.header, *own]
        default = next(body for marker, body in reversed(headers) if marker == 0xFF52)
        if len(default) < 10:
            damaged("has a JPEG 2000 stream with a malformed marker COD")
        self.progression, self.layers = default[1], int.from_bytes(default[2:4], "big")
        if self.progression > 4 or not self.layers:
            damaged("has a JPEG 2000 stream with a malformed marker COD")
        usual = [_coding(default[0] & 1, default[5:])] * code.components
        coding = [*usual]
        for header in (code.header, own):
            if header is own and any(marker == 0xFF52 for marker, _ in own):
                coding = [*usual]
            for marker, body in header:
                if marker == 0xFF53 and len(body) > 2 and body[0] < code.components:
                    coding[body[0]] = _coding(body[1] & 1, body[2:])
        self.changes = [body for marker, body in headers if marker == 0xFF5F]
        across, _ = code.grid
        (right, bottom, left, top), (wide, high, tile_left, tile_top) = code.size, code.tile
        column, row = tile % across, tile // across
        self.area = (
            max(tile_left + column * wide, left),
            max(tile_top + row * high, top),
            min(tile_left + (column + 1) * wide, right),
            min(tile_top + (row + 1) * high, bottom),
        )
        self.number = tile
        self.precincts = [
            precinct for index, how in enumerate(coding) for precinct in _precincts(self.area, index, how)
        ]
        if sum(w * h for precinct in self.precincts for w, h in precinct.bands) > _MOST_BLOCKS:
            unsupported("has a JPEG 2000 stream of too many code-blocks", f"at most {_MOST_BLOCKS}", DECOMPRESS)

    def check(self, coded: bytes) -> None:
        at, suspect = 0, _HOLE in coded or _NO_CODE.search(coded) is not None
        for precinct, layer in self._packets():
            at = self._packet(coded, at, precinct, layer, suspect)
        if at != len(coded):
            damaged(
                f"has a JPEG 2000 stream whose tile {self.number} holds {len(coded)} bytes", f"{at}, by its packets"
            )
        if any(precinct.layers != self.layers for precinct in self.precincts):
            damaged(f"has a JPEG 2000 stream in which packets of tile {self.number} are missing", "every packet")

    def _packets(self) -> Iterator[tuple[_Precinct, int]]:
        """In the order of progression (B.12), which POC may change (A.6.6)."""
        volumes = [(0, 0, self.layers, 33, 2**14, self.progression)]
        if self.changes:
            changes = b"".join(self.changes)
            if len(changes) % 7:
                damaged("has a JPEG 2000 stream with a malformed marker POC")
            volumes = [
                (c[0], c[1], int.from_bytes(c[2:4], "big"), c[4], c[5] or 2**14, c[6])
                for c in (changes[i : i + 7] for i in range(0, len(changes), 7))
            ]
        for resolution, component, layers, last_resolution, last_component, order in volumes:
            inside = [
                p
                for p in self.precincts
                if resolution <= p.resolution < last_resolution and component <= p.component < last_component
            ]
            most = min(layers, self.layers)
            if order > 4:
                damaged("has a JPEG 2000 stream with an unknown order of progression")
            if order == 0:
                inside.sort(key=lambda p: (p.resolution, p.component, p.number))
                pairs = ((p, layer) for layer in range(most) for p in inside)
            elif order == 1:
                inside.sort(key=lambda p: (p.resolution, p.component, p.number))
                levels = sorted({p.resolution for p in inside})
                pairs = ((p, layer) for r in levels for layer in range(most) for p in inside if p.resolution == r)
            else:
                inside.sort(key=_ORDERS[order])
                pairs = ((p, layer) for p in inside for layer in range(most))
            for precinct, layer in pairs:
                if layer >= precinct.layers:  # else an earlier volume had it
                    yield precinct, layer

    def _packet(self, coded: bytes, at: int, precinct: _Precinct, layer: int, suspect: bool) -> int:
        """Read one packet (B.9, B.10): where it ends."""
        precinct.layers += 1
        if coded.startswith(b"\xff\x91\0\4", at):  # SOP
            at += 6
        if not precinct.built:
            precinct.built = [_Band(wide, high) for wide, high in precinct.bands if wide * high]
        bits = _Bits(coded, at)
        lengths: list[int] = []
        if bits.bit():  # else it is empty
            for band in precinct.built:
                _read_band(bits, band, layer, precinct.style, lengths)
        at = bits.end
        if layer + 1 == self.layers:
            precinct.built = []
        if coded.startswith(b"\xff\x92", at):  # EPH
            at += 2
        end = at + sum(lengths)
        if end > len(coded):
            raise IndexError
        if suspect:
            hole = _HOLE in coded[at:end] and not precinct.style & _BYPASS  # bits that are bypassed may all be 0
            for length in lengths:
                if hole or _NO_CODE.search(coded, at, at + length):
                    damaged("has a JPEG 2000 stream with bytes that no coder writes, such as a run of zeros")
                at += length
        return end


_ORDERS: dict[int, Callable[[_Precinct], tuple[int, ...]]] = {
    2: lambda p: (p.resolution, p.y, p.x, p.component, p.number),
    3: lambda p: (p.y, p.x, p.component, p.resolution, p.number),
    4: lambda p: (p.component, p.y, p.x, p.resolution, p.number),
}


def _read_band(bits: _Bits, band: _Band, layer: int, style: int, lengths: list[int]) -> None:
    """What a packet header says of the code-blocks of one sub-band; appends the length of what each contributes."""
    wide, bit = band.wide, bits.bit
    for index, block in enumerate(band.blocks):
        if block.included:
            if not bit():
                continue
        else:
            y, x = divmod(index, wide)
            if not band.inclusion.below(bit, x, y, layer + 1):
                continue
            block.included = True
            if not band.planes.below(bit, x, y, _MOST_PLANES):
                raise IndexError
        passes = _pass_count(bits) if bit() else 1
        while bit():
            block.length_bits += 1
            if block.length_bits > 32:
                raise IndexError
        total = 0
        while passes:
            if block.passes == block.most:  # the next codeword segment (table D.9)
                if style & _TERMINATE_ALL:
                    block.most = 1
                elif style & _BYPASS:
                    block.most = 10 if not block.most else 2 if block.most in (1, 10) else 1
                else:
                    block.most = 10_000
                block.passes = 0
            here = min(passes, block.most - block.passes)
            total += bits.number(block.length_bits + here.bit_length() - 1)
            block.passes += here
            passes -= here
        lengths.append(total)


def _pass_count(bits: _Bits) -> int:
    """Table B.4, after its first bit."""
    if not bits.bit():
        return 2
    if (count := bits.number(2)) < 3:
        return 3 + count
    if (count := bits.number(5)) < 31:
        return 6 + count
    return 37 + bits.number(7)


def _coding(has_precincts: int, body: bytes) -> _Coding:
    """SPcod or SPcoc (table A.15)."""
    if len(body) < 5 or body[0] > 32 or body[1] > 8 or body[2] > 8 or body[1] + body[2] > 8 or body[4] > 1:
        damaged("has a JPEG 2000 stream with a malformed marker COD")
    levels, width, height, style = body[:4]
    if style & _HIGH_THROUGHPUT:
        unsupported("has a High-Throughput JPEG 2000 stream", "JPEG 2000 part 1", DECOMPRESS)
    sizes = ((15, 15),) * (levels + 1)
    if has_precincts:
        if len(body) < 6 + levels:
            damaged("has a JPEG 2000 stream with a malformed marker COD")
        sizes = tuple((size & 15, size >> 4) for size in body[5 : 6 + levels])
        if any(0 in size for size in sizes[1:]):
            damaged("has a JPEG 2000 stream with a malformed marker COD")
    return _Coding(levels, (width + 2, height + 2), style, sizes)


def _precincts(area: tuple[int, int, int, int], component: int, how: _Coding) -> Iterator[_Precinct]:
    """Every precinct of a tile-component, with its code-blocks (B.5 to B.7). Components are not subsampled."""
    left, top, right, bottom = area
    for resolution, (wide, high) in enumerate(how.precincts):
        scale = how.levels - resolution
        x0, y0, x1, y1 = (-((-side) >> scale) for side in (left, top, right, bottom))
        if x0 >= x1 or y0 >= y1:
            continue
        columns = range(x0 >> wide, -((-x1) >> wide))
        rows = range(y0 >> high, -((-y1) >> high))
        if len(columns) * len(rows) > _MOST_BLOCKS:
            unsupported("has a JPEG 2000 stream of too many precincts", f"at most {_MOST_BLOCKS}", DECOMPRESS)
        bands = [(0, 0)] if resolution == 0 else [(1, 0), (0, 1), (1, 1)]
        half = resolution > 0
        block = (min(how.block[0], wide - half), min(how.block[1], high - half))
        spans_x = {xo: _spans(left, right, scale + half, xo, columns, wide - half, block[0]) for xo in (0, 1)}
        spans_y = {yo: _spans(top, bottom, scale + half, yo, rows, high - half, block[1]) for yo in (0, 1)}
        for number, (j, i) in enumerate((j, i) for j in range(len(rows)) for i in range(len(columns))):
            # Where a precinct is cut off by the tile's edge, it counts as being there (B.12.1.3).
            x, y = columns[i] << (wide + scale), rows[j] << (high + scale)
            yield _Precinct(
                resolution=resolution,
                component=component,
                number=number,
                x=max(x, left),
                y=max(y, top),
                bands=[(spans_x[xo][i], spans_y[yo][j]) for xo, yo in bands],
                style=how.style,
            )


def _spans(low: int, high: int, scale: int, odd: int, precincts: range, size: int, block: int) -> list[int]:
    """Code-blocks along one side of a sub-band, for each precinct (equation B-15)."""
    shift = odd << (scale - 1) if scale else 0
    begin, end = (-((-(side - shift)) >> scale) for side in (low, high))
    counts = []
    for precinct in precincts:
        first, last = max(begin, precinct << size), min(end, (precinct + 1) << size)
        counts.append(-((-last) >> block) - (first >> block) if first < last else 0)
    return counts
