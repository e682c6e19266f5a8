"""The markers of a JPEG stream (ITU-T T.81 annex B), and from them: is every scan there?

Nothing is decoded here. `parse` walks the segments from SOI to EOI, `Jpeg.stream` says what picture it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .stream import Colour, Stream, damaged, unsupported

SOF_NAMES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic coding",
    0xCA: "arithmetic coding",
    0xCB: "arithmetic coding",
    0xCD: "hierarchical arithmetic coding",
    0xCE: "hierarchical arithmetic coding",
    0xCF: "hierarchical arithmetic coding",
}
_BITS = {0xC0: (8,), 0xC1: (8, 12), 0xC2: (8, 12), 0xC3: tuple(range(2, 17))}  # what is read, by T.81 table B.2
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends a scan: neither stuffing, restart nor fill
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


@dataclass(frozen=True)
class Component:
    identifier: int
    horizontal: int
    vertical: int


@dataclass(frozen=True)
class Scan:
    """One scan: `components` are indices into the frame's; `start` to `end` is its entropy-coded data."""

    components: tuple[int, ...]
    tables: tuple[int, ...]  # DC (or lossless) table of each component
    ac_tables: tuple[int, ...]
    spectral: tuple[int, int]
    approximation: tuple[int, int]  # Ah, Al
    start: int
    end: int
    restart_interval: int
    huffman: dict[int, bytes]  # class * 16 + destination -> BITS and HUFFVAL, as they are when the scan begins


@dataclass
class Jpeg:
    """Segments of one image. `segments` are (marker, start, end), from the marker's FF on; `end` is after EOI."""

    process: int = 0
    bits: int = 0
    width: int = 0
    height: int = 0
    components: tuple[Component, ...] = ()
    jfif: bool = False
    adobe: int | None = None
    scans: list[Scan] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    end: int = 0

    @property
    def name(self) -> str:
        return f"JPEG ({SOF_NAMES[self.process]})"

    @property
    def subsampled(self) -> bool:
        return len({(c.horizontal, c.vertical) for c in self.components}) > 1

    @property
    def stream(self) -> Stream:
        return Stream(
            self.name, self.width, self.height, len(self.components), self.bits, None, _colour(self), self.subsampled
        )


def parse(data: bytes) -> Jpeg:
    """Walk a JPEG image. Raises `ImageError` where a segment, a scan or a part of one is missing.

    Bytes after EOI are the caller's to judge, from `end` on.
    """
    if not data.startswith(b"\xff\xd8"):
        damaged(f"has a JPEG stream that begins with {data[:4]!r}", "the marker SOI")
    jpeg, tables, interval, at = Jpeg(), dict[int, bytes](), 0, 2
    while True:
        marker, at = _next_marker(data, at)
        if marker == 0xD9:
            jpeg.end = at
            break
        body, begin, at = _segment(data, marker, at)
        if marker in SOF_NAMES:
            _read_frame(jpeg, marker, body)
        elif marker == 0xC4:
            _read_huffman(tables, body)
        elif marker == 0xDB:
            _check_quantisation(body)
        elif marker == 0xDD:
            if len(body) != 2:
                damaged("has a JPEG stream with a restart interval of the wrong length")
            interval = int.from_bytes(body, "big")
        elif marker == 0xDA:
            scan = _read_scan(jpeg, body, data, at, interval, dict(tables))
            jpeg.scans.append(scan)
            _check_restarts(jpeg, scan, data)
            _check_holes(jpeg, scan, data)
            at = scan.end
        elif marker in (0xCC, 0xDC, 0xDE, 0xDF):
            what = {0xCC: "arithmetic coding", 0xDC: "its height after the scan (DNL)"}.get(
                marker, "several resolutions"
            )
            unsupported(f"has a JPEG stream with {what}", "baseline, extended, progressive or lossless", CONVERT)
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            jpeg.jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            jpeg.adobe = body[11]
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            damaged(f"has a JPEG stream with the marker FF{marker:02X} where none may be", "the segments of T.81")
        jpeg.segments.append((marker, begin, at))
    if not jpeg.scans:
        damaged("has a JPEG stream without a scan")
    _check_scans(jpeg)
    return jpeg


def parse_file(data: bytes) -> Jpeg:
    """`parse` of a file that is one picture of known colours. What follows is looked at only if it is one too."""
    jpeg = parse(data)
    check_8_bits(jpeg)
    if data[jpeg.end :].lstrip(b"\0").startswith(b"\xff\xd8\xff"):
        unsupported("is a JPEG file of several pictures", "one", "save the one that is meant as a file of its own")
    if jpeg.stream.colour == "unknown":
        unsupported(
            "is a JPEG file that doesn't say whether it is RGB or YCbCr", "JFIF's or Adobe's marker", "save it as PNG"
        )
    return jpeg


def check_8_bits(jpeg: Jpeg) -> None:
    """What libjpeg's 8-bit decoder reads."""
    if jpeg.process == 0xC3 or jpeg.bits != 8:
        unsupported(f"has a {jpeg.name} stream of {jpeg.bits} bits", "a lossy one of 8 bits", CONVERT)


MAX_SCANS, MAX_SCANNED = 100, 10**11  # encoders write some ten; and scans squared times pixels
CONVERT = "save it as baseline JPEG, or without loss as PNG; export DICOM uncompressed"


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    if at + 2 > len(data):
        damaged("has a JPEG stream that ends before its marker EOI")
    if data[at] != 0xFF:
        damaged(f"has a JPEG stream with bytes between two segments, at byte {at}", "a marker")
    while at < len(data) and data[at] == 0xFF:  # fill bytes (B.1.1.2)
        at += 1
    if at == len(data):
        damaged("has a JPEG stream that ends before its marker EOI")
    return data[at], at + 1


def _segment(data: bytes, marker: int, at: int) -> tuple[bytes, int, int]:
    """The segment after its marker: body, where the marker begins, where the segment ends."""
    length = int.from_bytes(data[at : at + 2], "big")
    if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
        damaged(f"has a JPEG stream with the marker FF{marker:02X} between two segments", "the segments of T.81")
    if length < 2 or at + length > len(data):
        damaged("has a JPEG stream with a segment that is cut off")
    return data[at + 2 : at + length], at - 2, at + length


def _read_frame(jpeg: Jpeg, marker: int, body: bytes) -> None:
    if marker not in _BITS:
        unsupported(
            f"has a JPEG stream with {SOF_NAMES[marker]}", "baseline, extended, progressive or lossless", CONVERT
        )
    if jpeg.process:
        damaged("has a JPEG stream with two frame headers", "one")
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        damaged("has a JPEG stream with a frame header of the wrong length")
    jpeg.process, jpeg.bits = marker, body[0]
    jpeg.height, jpeg.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    jpeg.components = tuple(Component(body[i], body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, len(body), 3))
    if jpeg.bits not in _BITS[marker]:
        damaged(f"has a JPEG stream ({SOF_NAMES[marker]}) of {jpeg.bits} bits", "a precision of T.81")
    if jpeg.height == 0:
        unsupported("has a JPEG stream with its height after the scan (DNL)", "it in the frame header", CONVERT)
    if jpeg.width == 0 or not jpeg.components:
        damaged("has a JPEG stream without pixels or components")
    if any(not 1 <= side <= 4 for c in jpeg.components for side in (c.horizontal, c.vertical)):
        damaged("has a JPEG stream with impossible sampling factors", "1 to 4")
    if len({c.identifier for c in jpeg.components}) != len(jpeg.components):
        damaged("has a JPEG stream with two components of one name", "distinct ones")


def _check_quantisation(body: bytes) -> None:
    """Tables of 64 numbers of one or two bytes, none of them 0 (B.2.4.1)."""
    while body:
        width = 1 + (body[0] >> 4)
        numbers = [body[i : i + width] for i in range(1, min(len(body), 1 + 64 * width), width)]
        if width > 2 or len(b"".join(numbers)) != 64 * width or not all(map(any, numbers)):
            damaged("has a JPEG stream with a malformed quantisation table", "64 numbers from 1 on")
        body = body[1 + 64 * width :]


def _read_huffman(tables: dict[int, bytes], body: bytes) -> None:
    while body:
        count = sum(body[1:17])
        if len(body) < 17 + count or count > 256 or body[0] >> 4 > 1 or body[0] & 15 > 3:
            damaged("has a JPEG stream with a malformed Huffman table")
        if len(set(body[17 : 17 + count])) != count:
            damaged("has a JPEG stream with a Huffman table that has two codes for one symbol")
        tables[body[0]] = body[1 : 17 + count]
        body = body[17 + count :]


def _read_scan(jpeg: Jpeg, body: bytes, data: bytes, at: int, interval: int, tables: dict[int, bytes]) -> Scan:
    if not jpeg.process:
        damaged("has a JPEG stream with a scan before its frame header")
    count = body[0] if body else 0
    if not 1 <= count <= 4 or len(body) != 4 + 2 * count:
        damaged("has a JPEG stream with a malformed scan header")
    names = [c.identifier for c in jpeg.components]
    chosen = body[1 : 1 + 2 * count : 2]
    if any(name not in names for name in chosen) or len(set(chosen)) != count:
        damaged("has a JPEG stream with a scan of components that its frame lacks")
    found = _MARKER.search(data, at)
    if found is None:
        damaged("has a JPEG stream that ends before its marker EOI")
    end = found.start()
    while end > at and data[end - 1] == 0xFF:  # fill bytes before the marker
        end -= 1
    return Scan(
        components=tuple(names.index(name) for name in chosen),
        tables=tuple(selector >> 4 for selector in body[2 : 2 + 2 * count : 2]),
        ac_tables=tuple(selector & 15 for selector in body[2 : 2 + 2 * count : 2]),
        spectral=(body[-3], body[-2]),
        approximation=(body[-1] >> 4, body[-1] & 15),
        start=at,
        end=end,
        restart_interval=interval,
        huffman=tables,
    )


def units(jpeg: Jpeg, scan: Scan) -> tuple[int, int]:
    """MCUs of a scan, down and across (T.81 A.2)."""
    side = 1 if jpeg.process == 0xC3 else 8
    most_across = max(c.horizontal for c in jpeg.components)
    most_down = max(c.vertical for c in jpeg.components)
    if len(scan.components) > 1:
        return -(-jpeg.height // (side * most_down)), -(-jpeg.width // (side * most_across))
    only = jpeg.components[scan.components[0]]
    high = -(-jpeg.height * only.vertical // most_down)
    wide = -(-jpeg.width * only.horizontal // most_across)
    return -(-high // side), -(-wide // side)


def intervals(data: bytes, scan: Scan) -> Iterator[tuple[int, int]]:
    """Start and end of each restart interval's entropy-coded bytes."""
    start = scan.start
    if scan.restart_interval:
        for found in _RESTART.finditer(data, scan.start, scan.end):
            yield start, found.start()
            start = found.end()
    yield start, scan.end


def _check_restarts(jpeg: Jpeg, scan: Scan, data: bytes) -> None:
    """RST0 to RST7 in turn, one less than there are restart intervals (T.81 B.2.1, E.1.4)."""
    down, across = units(jpeg, scan)
    expected = -(-down * across // scan.restart_interval) - 1 if scan.restart_interval else 0
    seen = [data[found.end() - 1] & 7 for found in _RESTART.finditer(data, scan.start, scan.end)]
    if len(seen) != expected or any(number != index % 8 for index, number in enumerate(seen)):
        damaged(f"has a JPEG scan with {len(seen)} restart markers, or not in turn", f"{expected}, by its frame header")


def _check_holes(jpeg: Jpeg, scan: Scan, data: bytes) -> None:
    """Refuse a run of zero bytes that says what no picture says: a sector of a disk that was never written.

    Codes are canonical, so zeros are the first code of a table. Where that is "no change" and "end of block", blank
    blocks are zeros; where it is a coefficient, dozens of equal ones would follow each other.
    """
    lossless, progressive = jpeg.process == 0xC3, jpeg.process == 0xC2
    if data.find(bytes(128 if lossless else 32), scan.start, scan.end) < 0:
        return
    dc = [scan.huffman.get(table, b"")[16:17] for table in scan.tables]
    ac = [scan.huffman.get(16 + table, b"")[16:17] for table in scan.ac_tables]
    if lossless:  # a change by -1 from sample to sample may be a ramp
        blank = all(first in (b"\0", b"\1") for first in dc)
    elif not progressive:
        blank = all(first == b"\0" for first in [*dc, *ac])
    elif scan.spectral[0] == 0:  # a refinement of DC is not coded but one bit per block
        blank = scan.approximation[0] > 0 or all(first == b"\0" for first in dc)
    else:  # a run of blocks that end at once is one code, and in a refinement half of the bits are 1
        blank = scan.approximation[0] == 0 and all(first and first[0] & 15 == 0 for first in ac)
    if not blank:
        damaged("has a JPEG scan with a hole, a run of zeros")


def _check_scans(jpeg: Jpeg) -> None:
    """Every coefficient of every component is coded to its last bit (T.81 G.1.1.1)."""
    if jpeg.process != 0xC2:
        for scan in jpeg.scans:
            if jpeg.process != 0xC3 and (scan.spectral, scan.approximation) != ((0, 63), (0, 0)):
                damaged("has a JPEG scan of part of its coefficients", "all of them, as it isn't progressive")
        if sorted(index for scan in jpeg.scans for index in scan.components) != list(range(len(jpeg.components))):
            damaged("has a JPEG stream that codes a component twice or not at all", "each once")
        return
    # Each is proven to end where it should by a decoding without its last byte, which decodes all the others, too.
    if len(jpeg.scans) > MAX_SCANS or len(jpeg.scans) ** 2 * jpeg.width * jpeg.height > MAX_SCANNED:
        unsupported(
            f"has a progressive JPEG stream of {len(jpeg.scans)} scans of {jpeg.width} x {jpeg.height} pixels",
            f"at most {MAX_SCANS}, and fewer of a large picture",
            CONVERT,
        )
    missing = [[-1] * 64 for _ in jpeg.components]  # bits that are still to come, -1: no scan yet
    for scan in jpeg.scans:
        (first, last), (high, low) = scan.spectral, scan.approximation
        dc = first == 0
        if not first <= last <= 63 or (dc and last) or (not dc and len(scan.components) > 1) or low > 13:
            damaged("has a JPEG scan with an impossible range of coefficients", "the progression of T.81 annex G")
        for index in scan.components:
            if any(missing[index][k] != (high or -1) for k in range(first, last + 1)) or (high and low != high - 1):
                damaged("has JPEG scans that don't follow each other", "the progression of T.81 annex G")
            missing[index][first : last + 1] = [low] * (last + 1 - first)
    lacking = sum(any(component) for component in missing)
    if lacking:
        damaged(f"has a progressive JPEG stream of which scans are missing ({lacking} component(s))", "every scan")


def _colour(jpeg: Jpeg) -> Colour:
    """What the components are: APP14 (Adobe), JFIF (T.871), else the names and sampling of the components.

    T.81 itself gives components no meaning. `unknown` where nothing in the stream tells, and in the lossless process,
    for which no convention exists.
    """
    count, names = len(jpeg.components), bytes(c.identifier for c in jpeg.components)
    if count == 1:
        return "grey"
    if count == 4:
        return "CMYK"
    if count != 3:
        unsupported(f"has a JPEG stream of {count} components", "1 or 3", "save it as grey or RGB")
    says = set[Colour]()
    if jpeg.adobe is not None:
        if jpeg.adobe > 1:
            damaged(f"has a JPEG stream with the Adobe colour transform {jpeg.adobe}", "0 (RGB) or 1 (YCbCr)")
        says.add("YCbCr" if jpeg.adobe else "RGB")
    if jpeg.jfif:
        says.add("YCbCr")
    if jpeg.subsampled:  # no one samples red more finely than blue
        says.add("YCbCr")
    if len(says) > 1:
        damaged("has a JPEG stream whose markers say both RGB and YCbCr", "one of them")
    if says:
        return says.pop()
    if names == b"RGB":
        return "RGB"
    return "YCbCr" if names in (b"\1\2\3", b"\0\1\2") and jpeg.process != 0xC3 else "unknown"
