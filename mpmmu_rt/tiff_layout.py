"""Where the samples of a TIFF page are and what they mean, from its tags alone, before a pixel is read.

TIFF 6.0 and BigTIFF. Readers fill in what is missing and take what they don't know for what they do: strips that are
absent become black, signed samples unsigned ones. Here a layout is whole and known, or it is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

from .errors import ImageError
from .geometry import pixel_aspect
from .grey import check_sides

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
X_RESOLUTION, Y_RESOLUTION, PLANAR, PREDICTOR, COLOUR_MAP = 282, 283, 284, 317, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, INK_SET, EXTRA, FORMAT, JPEG_TABLES = (
    322,
    323,
    324,
    325,
    332,
    338,
    339,
    347,
)
_USED = frozenset(value for name, value in globals().copy().items() if name.isupper())
_ONE_VALUE = {  # tag: what it is where it is absent (None: it must be there)
    WIDTH: None, LENGTH: None, COMPRESSION: 1, PHOTOMETRIC: None, FILL_ORDER: 1, ORIENTATION: 1, SAMPLES: 1,
    ROWS_PER_STRIP: 2**32 - 1, PLANAR: 1, PREDICTOR: 1, TILE_WIDTH: 0, TILE_LENGTH: 0, INK_SET: 1,
}  # fmt: skip
_NAMES = {WIDTH: "ImageWidth", LENGTH: "ImageLength", PHOTOMETRIC: "PhotometricInterpretation"}
_TYPES = {1: "B", 7: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

GREY, RGB, PALETTE, CMYK, YCBCR = (0, 1), 2, 3, 5, 6
RAW, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, (8, 32946), 32773
LZMA = 34925
_COMPRESSIONS = {RAW, LZW, JPEG, *DEFLATE, PACKBITS, LZMA}
_PREDICTABLE = {LZW, *DEFLATE, LZMA}
_COLOURS = {0: 1, 1: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_KINDS = {1: "u", 2: "i", 3: "f"}
_UNSUPPORTED = "save it as 8-bit or 16-bit grey, TIFF or PNG, without loss"
_DAMAGED = "the file is damaged or was written wrongly: export it again from its source"
MAX_PAGES = 10_000
MAX_TAGS = 1000  # of a page; a writer has some ten to fifty
MAX_EXTRA = 4  # samples of a pixel that are no colours: what is allocated is for all of them
_LISTS = {STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES, COLOUR_MAP, JPEG_TABLES}
_MAX_LIST, _MAX_VALUES = 2**20, 64  # values of those tags, and of the others

Tags = dict[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Page:
    """A directory: where it begins and ends, and the type, the number and the field of each tag that is used."""

    order: str
    begin: int
    end: int
    entries: dict[int, tuple[int, int, bytes]]


@dataclass(frozen=True)
class Layout:
    """kind and bits of every sample ("u" unsigned, "i" signed, "f" float); colours and then extra samples per pixel.

    chunks: (offset, bytes) of the strips or tiles, plane by plane; chunk_width and chunk_height: of each but the last.
    """

    order: str
    width: int
    height: int
    kind: str
    bits: int
    photometric: int
    colours: int
    extra: tuple[int, ...]
    planar: bool
    compression: int
    predictor: int
    fill_order: int
    orientation: int
    chunks: tuple[tuple[int, int], ...]
    tiled: bool
    chunk_width: int
    chunk_height: int
    aspect: float
    colour_map: tuple[int, ...]
    jpeg_tables: bytes

    @property
    def samples(self) -> int:
        return self.colours + len(self.extra)


def pages(stream: BinaryIO, file_bytes: int) -> list[Page]:
    """Every page. The values of tags are not read yet: all may point at the same bytes, and multiply them."""
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    if big and struct.unpack(f"{order}HH", head[4:8]) != (8, 0):
        raise ImageError("is a BigTIFF with offsets of another size than 8, expected 8", hint=_DAMAGED)
    (offset,) = struct.unpack(f"{order}Q" if big else f"{order}I", head[8:16] if big else head[4:8])
    found: dict[int, Page] = {}
    while offset:
        if offset in found or len(found) == MAX_PAGES or offset >= file_bytes:
            raise ImageError(
                "has a chain of pages that does not end inside the file, expected each page once", hint=_DAMAGED
            )
        found[offset], offset = _directory(stream, offset, order, big, file_bytes)
    begins = sorted((page.begin, page.end) for page in found.values())
    if any(end > begin for (_, end), (begin, _) in pairwise(begins)):
        raise ImageError("has pages that overlap, expected each in a place of its own", hint=_DAMAGED)
    if not found:
        raise ImageError("holds no page, expected one image", hint=_DAMAGED)
    return list(found.values())


def _directory(stream: BinaryIO, offset: int, order: str, big: bool, file_bytes: int) -> tuple[Page, int]:
    """A page, and where the next one begins."""
    count_format, entry, field = ("Q", 20, 8) if big else ("H", 12, 4)
    count_bytes = struct.calcsize(f"{order}{count_format}")
    stream.seek(offset)
    (count,) = struct.unpack(f"{order}{count_format}", _exactly(stream, count_bytes))
    end = offset + count_bytes + count * entry + field
    if count > MAX_TAGS:
        raise ImageError(f"has a page of {count} tags, expected at most {MAX_TAGS}", hint=_DAMAGED)
    if end > file_bytes:
        raise ImageError(f"has {count} tags of which some lie beyond its end, expected them inside", hint=_DAMAGED)
    data = _exactly(stream, count * entry)
    (following,) = struct.unpack(f"{order}{'Q' if big else 'I'}", _exactly(stream, field))
    entries: dict[int, tuple[int, int, bytes]] = {}
    for at in range(0, len(data), entry):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        (values,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at + 4)
        if tag not in _USED:
            continue
        if kind not in _TYPES or tag in entries or values == 0:
            raise ImageError(
                f"has the tag {tag} twice, empty or of a type that it can't have, expected it once", hint=_DAMAGED
            )
        if values > (most := _MAX_LIST if tag in _LISTS else _MAX_VALUES):
            raise ImageError(f"has the tag {tag} with {values} values, expected at most {most}", hint=_DAMAGED)
        stored = data[at + entry - field : at + entry]
        size, at_offset = _bytes(order, kind, values), _offset(order, stored)
        if size > len(stored) and at_offset + size > file_bytes:
            raise ImageError("has tags whose values lie beyond its end, expected them inside", hint=_DAMAGED)
        entries[tag] = kind, values, stored
    return Page(order, offset, end, entries), following


def _bytes(order: str, kind: int, count: int) -> int:
    return struct.calcsize(f"{order}{_TYPES[kind]}") * count


def _offset(order: str, field: bytes) -> int:
    return int(struct.unpack(f"{order}{'Q' if len(field) == 8 else 'I'}", field)[0])


def read_tags(stream: BinaryIO, page: Page) -> Tags:
    return {tag: _values(stream, page.order, *entry) for tag, entry in page.entries.items()}


def _values(stream: BinaryIO, order: str, kind: int, count: int, field: bytes) -> tuple[Any, ...]:
    size = _bytes(order, kind, count)
    if size > len(field):
        stream.seek(_offset(order, field))
        field = _exactly(stream, size)
    numbers = struct.unpack(f"{order}{count * len(_TYPES[kind])}{_TYPES[kind][0]}", field[:size])
    if kind != 5:
        return numbers
    return tuple(above / below if below else 0.0 for above, below in zip(numbers[::2], numbers[1::2], strict=True))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ImageError("ends within its tags, expected a whole file", hint=_DAMAGED)
    return data


def layout(stream: BinaryIO, page: Page, file_bytes: int) -> Layout:
    """The layout of a page, whole and known. Raises `ImageError`."""
    tags = read_tags(stream, page)
    one = {tag: _one(tags, tag, default) for tag, default in _ONE_VALUE.items()}
    check_sides(one[WIDTH], one[LENGTH])
    _check_known(one)
    kind, bits, extra = _samples(tags, one)
    colours = _COLOURS[one[PHOTOMETRIC]]
    _check_sample(one, kind, bits, extra)
    planar = one[PLANAR] == 2 and one[SAMPLES] > 1
    tiled = TILE_OFFSETS in tags
    chunks = _chunks(tags, one, one[SAMPLES] if planar else 1, page, file_bytes)
    strip = one[WIDTH], min(one[ROWS_PER_STRIP], one[LENGTH])
    chunk_width, chunk_height = (one[TILE_WIDTH], one[TILE_LENGTH]) if tiled else strip
    return Layout(
        page.order, one[WIDTH], one[LENGTH], kind, bits, one[PHOTOMETRIC], colours, extra, planar, one[COMPRESSION],
        one[PREDICTOR], one[FILL_ORDER], one[ORIENTATION], chunks, tiled, chunk_width, chunk_height,
        _aspect(tags, one[ORIENTATION]), tags.get(COLOUR_MAP, ()), bytes(tags.get(JPEG_TABLES, ())),
    )  # fmt: skip


def _aspect(tags: Tags, orientation: int) -> float:
    """The height of a pixel over its width as it is shown; the resolutions are those of rows and columns as stored."""
    if X_RESOLUTION not in tags or Y_RESOLUTION not in tags:
        return 1.0
    stored = pixel_aspect([("resolution", float(tags[X_RESOLUTION][0]), float(tags[Y_RESOLUTION][0]))])
    return 1 / stored if orientation > 4 else stored


def _one(tags: Tags, tag: int, default: int | None) -> int:
    values = tags.get(tag, () if default is None else (default,))
    if not values:
        raise ImageError(
            f"lacks the TIFF tag {_NAMES[tag]}, expected it: readers differ in what they take it for", hint=_DAMAGED
        )
    if len(values) != 1 or not isinstance(values[0], int) or values[0] < 0:
        raise ImageError(
            f"has the value(s) {values[:4]} of the TIFF tag {_NAMES.get(tag, tag)}, expected one that is not negative",
            hint=_DAMAGED,
        )
    return int(values[0])


def _check_known(one: dict[int, int]) -> None:
    def refuse(what: str, expected: str) -> ImageError:
        return ImageError(f"is a TIFF with {what}, expected {expected}", hint=_UNSUPPORTED)

    if one[COMPRESSION] not in _COMPRESSIONS:
        raise refuse(f"the compression {one[COMPRESSION]}", "none, LZW, Deflate, PackBits, JPEG or LZMA")
    if one[PHOTOMETRIC] not in _COLOURS or one[INK_SET] != 1:
        raise refuse(
            f"the photometric interpretation {one[PHOTOMETRIC]}" + ("" if one[INK_SET] == 1 else " and other inks"),
            "0 or 1 (grey), 2 (RGB), 3 (palette) or 5 (CMYK)",
        )
    if one[PHOTOMETRIC] == YCBCR and one[COMPRESSION] != JPEG:
        # Nobody follows TIFF 6.0 where ReferenceBlackWhite is absent, and subsampled rows are packed in units.
        raise refuse("YCbCr that is not compressed as JPEG", "RGB or grey")
    if one[PREDICTOR] != 1 and one[COMPRESSION] not in _PREDICTABLE:
        raise refuse(
            f"the predictor {one[PREDICTOR]} and the compression {one[COMPRESSION]}, which readers take differently",
            "no predictor",
        )
    if one[ORIENTATION] not in range(1, 9) or one[PLANAR] not in (1, 2) or one[FILL_ORDER] not in (1, 2):
        raise refuse(
            f"the orientation {one[ORIENTATION]}, planar configuration {one[PLANAR]} and fill order {one[FILL_ORDER]}",
            "1 to 8, 1 or 2, 1 or 2",
        )


def _samples(tags: Tags, one: dict[int, int]) -> tuple[str, int, tuple[int, ...]]:
    """(kind, bits, extra samples); every sample of a pixel has the same kind and bits."""
    bits, formats, extra = tags.get(BITS, (1,)), tags.get(FORMAT, (1,)), tags.get(EXTRA, ())
    samples, colours = one[SAMPLES], _COLOURS[one[PHOTOMETRIC]]
    if len(set(bits)) != 1 or len(bits) not in (1, samples) or len(set(formats)) != 1 or formats[0] not in _KINDS:
        raise ImageError(
            f"is a TIFF with {bits} bits of the sample formats {formats}, expected all unsigned, signed or float",
            hint=_UNSUPPORTED,
        )
    if len(extra) != samples - colours or any(value not in (0, 1, 2) for value in extra):
        raise ImageError(
            f"has {samples} samples per pixel, of which {colours} are colours, and the extra samples {extra}, "
            "expected to be told what each of the others is",
            hint="save it without alpha and without extra channels",
        )
    if len(extra) > MAX_EXTRA:
        raise ImageError(f"has {len(extra)} extra samples per pixel, expected at most {MAX_EXTRA}", hint=_UNSUPPORTED)
    return _KINDS[formats[0]], bits[0], extra


def _check_sample(one: dict[int, int], kind: str, bits: int, extra: tuple[int, ...]) -> None:
    grey = one[PHOTOMETRIC] in GREY and not extra
    known = {
        "u": (*range(1, 17), 32, 64) if grey else range(1, 9) if one[PHOTOMETRIC] == PALETTE else (8, 16),
        "i": (8, 16, 32, 64) if grey else (),
        "f": (16, 32, 64) if grey else (),
    }[kind]
    whole = bits in (8, 16, 32, 64)
    if (
        bits not in known
        or (one[PHOTOMETRIC] in (CMYK, PALETTE) and (bits > 8 or extra))
        or (one[COMPRESSION] == JPEG and (bits != 8 or extra or one[PLANAR] != 1 or one[PHOTOMETRIC] == PALETTE))
        or (one[FILL_ORDER] == 2 and bits != 1)
        or (one[PREDICTOR] != 1 and (one[PREDICTOR] != (3 if kind == "f" else 2) or not whole))
    ):
        name = {"u": "unsigned", "i": "signed", "f": "float"}[kind]
        raise ImageError(
            f"is a TIFF of {one[SAMPLES]} {name} sample(s) of {bits} bits with the photometric interpretation "
            f"{one[PHOTOMETRIC]}, compression {one[COMPRESSION]}, predictor {one[PREDICTOR]} and fill order "
            f"{one[FILL_ORDER]}, expected a combination that is supported",
            hint=_UNSUPPORTED,
        )


def _chunks(tags: Tags, one: dict[int, int], planes: int, page: Page, file_bytes: int) -> tuple[tuple[int, int], ...]:
    """Offset and bytes of every strip or tile: all of them there, inside the file, each in a place of its own."""
    tiled = TILE_OFFSETS in tags
    if tiled == (STRIP_OFFSETS in tags) or (tiled and not (one[TILE_WIDTH] and one[TILE_LENGTH])):
        raise ImageError("has strips and tiles or neither, expected one of both with their size", hint=_DAMAGED)
    if tiled:
        check_sides(one[TILE_WIDTH], one[TILE_LENGTH])
    offsets, sizes = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    if not one[ROWS_PER_STRIP]:
        raise ImageError("has strips of 0 rows, expected at least 1", hint=_DAMAGED)
    across = -(-one[WIDTH] // one[TILE_WIDTH]) if tiled else 1
    expected = across * -(-one[LENGTH] // (one[TILE_LENGTH] if tiled else one[ROWS_PER_STRIP])) * planes
    chunks = tuple(zip(tags[offsets], tags.get(sizes, ()), strict=False))
    if not len(chunks) == len(tags[offsets]) == len(tags.get(sizes, ())) == expected:
        raise ImageError(
            f"has the places of {len(tags[offsets])} and the sizes of {len(tags.get(sizes, ()))} strips or tiles, "
            f"expected {expected} of both by its width and length",
            hint=_DAMAGED,
        )
    if any(size <= 0 or not 8 <= offset <= file_bytes - size for offset, size in chunks):
        raise ImageError(
            "has strips or tiles that are absent or lie beyond its end, expected all of them", hint=_DAMAGED
        )
    spans = sorted([(offset, offset + size) for offset, size in chunks] + [(page.begin, page.end)])
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise ImageError("has strips or tiles that overlap, expected each in a place of its own", hint=_DAMAGED)
    return chunks
