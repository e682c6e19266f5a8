"""TIFF to grey: the layout is proven first (`tiff_layout`), then samples are taken for what its tags say.

Pillow guesses the kind of sample for many layouts; here, its libtiff only decompresses LZW, into bytes. tifffile would
read them right, but fills strips that are missing with zeros.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from . import tiff_layout as tags
from .errors import ImageError
from .grey import GreyImage, as_float64, check_depth, check_spread, choose_frame, luma, stretch
from .spec import Array
from .streams import jpeg, jpeg_header
from .streams.stream import Colour
from .tiff_layout import Layout
from .tiff_lzw import decoded_bytes

_DAMAGED = "the file is damaged, truncated or was written wrongly: export it again from its source"
_TURNS: dict[int, Callable[[Array], Array]] = {  # TIFF 6.0, Orientation
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


def read_tiff(stream: BinaryIO, frame: int | None) -> GreyImage:
    """One page of a TIFF or BigTIFF. Raises `ImageError`, its messages without the path."""
    file_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    pages = tags.pages(stream, file_bytes)
    index = choose_frame(len(pages), frame)
    layout = tags.layout(stream, pages[index], file_bytes)
    grey = _TURNS[layout.orientation](_grey(layout, _samples(stream, layout)))
    return GreyImage(np.ascontiguousarray(grey), layout.aspect)


def _samples(stream: BinaryIO, layout: Layout) -> Array:
    """Every sample as it is stored, [H, W, samples], of the layout's kind."""
    planes, samples = (layout.samples, 1) if layout.planar else (1, layout.samples)
    data = []
    for offset, size in layout.chunks:
        stream.seek(offset)
        data.append(stream.read(size))
    each = len(data) // planes
    parts = [_plane(layout, data[plane * each : (plane + 1) * each], samples) for plane in range(planes)]
    return parts[0] if planes == 1 else np.concatenate(parts, axis=-1)


def _plane(layout: Layout, chunks: list[bytes], samples: int) -> Array:
    rows = layout.chunk_height * len(chunks) if layout.tiled else layout.height
    if layout.compression == tags.JPEG:
        values = _of_jpeg(layout, chunks, rows)
    else:
        row_bytes = -(-layout.chunk_width * samples * layout.bits // 8)
        values = _values(layout, _decompressed(layout, chunks, rows, row_bytes), samples)
    if layout.tiled:
        across = -(-layout.width // layout.chunk_width)
        shape = len(chunks) // across, across, layout.chunk_height, layout.chunk_width, samples
        values = values.reshape(shape).swapaxes(1, 2).reshape(-1, across * layout.chunk_width, samples)
    return values[: layout.height, : layout.width]


def _decompressed(layout: Layout, chunks: list[bytes], rows: int, row_bytes: int) -> Array:
    """The bytes of all strips or tiles, uint8 [rows, row_bytes]."""
    whole = layout.chunk_height * row_bytes
    sizes = [min(whole, rows * row_bytes - index * whole) for index in range(len(chunks))]
    if layout.compression == tags.LZW:
        return _of_lzw(chunks, sizes, whole).reshape(rows, row_bytes)
    flat = bytearray()
    for chunk, size in zip(chunks, sizes, strict=True):
        data = _DECODERS[layout.compression](chunk, whole)
        # The last strip may be as high as the others, and writers fill up to a word; more is of another width.
        if len(data) != whole and not (size <= len(data) <= size + 3 and not any(data[size:])):
            raise _of_another_size(len(data), size)
        flat += data[:size]
    return np.frombuffer(flat, np.uint8).reshape(rows, row_bytes)


def _inflated(chunk: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(chunk, most + 1)
    except zlib.error as error:
        raise ImageError("has a strip or tile that can't be inflated, expected whole Deflate", hint=_DAMAGED) from error
    if not inflater.eof:  # its checksum comes last
        raise ImageError(
            f"has a strip or tile that inflates to more than {most} bytes or ends too early, expected whole Deflate",
            hint=_DAMAGED,
        )
    return data


def _of_jpeg(layout: Layout, chunks: list[bytes], rows: int) -> Array:
    """Strips or tiles that are a JPEG stream each (TIFF Technical Note 2), uint8 [rows, chunk_width, samples]."""
    colour: Colour = "grey" if layout.colours == 1 else "RGB" if layout.photometric == tags.RGB else "YCbCr"
    parts = []
    for index, chunk in enumerate(chunks):
        data = b"\xff\xd8" + layout.jpeg_tables[2:-2] + chunk[2:]
        image = jpeg_header.parse(data)
        here = layout.chunk_width, min(layout.chunk_height, rows - index * layout.chunk_height)
        got = image.width, image.height, len(image.components)
        if got != (*here, layout.colours) or data[image.end :].strip(b"\0"):
            raise ImageError(
                f"has a strip or tile of {got[0]} x {got[1]} pixels of {got[2]} components in JPEG, expected "
                f"{here[0]} x {here[1]} of {layout.colours} and nothing after them",
                hint=_DAMAGED,
            )
        parts.append(jpeg.decode(data, image, colour).reshape(here[1], here[0], layout.colours))
    return np.concatenate(parts)


def _unpacked_bits(chunk: bytes, most: int) -> bytes:
    """PackBits (TIFF 6.0, section 9)."""
    parts, at, size = [], 0, 0
    while at < len(chunk) and size <= most + 3:
        head = chunk[at]
        if head < 128:
            parts.append(chunk[at + 1 : at + 2 + head])
            at += 2 + head
        else:
            parts.append(chunk[at + 1 : at + 2] * (257 - head if head > 128 else 0))
            at += 2 if head > 128 else 1
        size += len(parts[-1])
    return b"".join(parts)


def _of_another_size(got: int, expected: int) -> ImageError:
    return ImageError(
        f"has a strip or tile of {got} bytes, expected {expected} by its width, length, samples and bits", hint=_DAMAGED
    )


def _of_lzw(chunks: list[bytes], sizes: list[int], whole: int) -> Array:
    """The bytes of LZW strips by libtiff, uint8 [sum of `sizes`].

    It takes as many as it is asked for. The first and the last strip are counted: all are of one width, and the last
    may be as high as the others.
    """
    for chunk, size in ((chunks[0], sizes[0]), (chunks[-1], sizes[-1])):
        got = decoded_bytes(chunk)
        if got is None:
            raise ImageError(
                "has a strip or tile that is no LZW from its first code to its last, expected whole LZW", hint=_DAMAGED
            )
        if got not in (size, whole):
            raise _of_another_size(got, size)
    equal = len(chunks) if sizes[-1] == sizes[0] else len(chunks) - 1
    parts = [_of_libtiff(chunks[:equal], sizes[0])]
    if equal < len(chunks):
        parts.append(_of_libtiff(chunks[equal:], sizes[-1]))
    return np.concatenate(parts)


def _of_libtiff(chunks: list[bytes], size: int) -> Array:
    """LZW strips that hold `size` bytes each at least, given to libtiff as rows of 8-bit grey: flat uint8."""
    from PIL import Image, TiffImagePlugin

    count = len(chunks)
    values = {
        tags.WIDTH: [size], tags.LENGTH: [count], tags.BITS: [8], tags.COMPRESSION: [tags.LZW], tags.PHOTOMETRIC: [1],
        tags.STRIP_OFFSETS: [0] * count, tags.SAMPLES: [1], tags.ROWS_PER_STRIP: [1],
        tags.STRIP_BYTES: [len(chunk) for chunk in chunks],
    }  # fmt: skip
    directory = 8 + 2 + 12 * len(values) + 4  # then both lists of strips, then the strips
    places = {tags.STRIP_OFFSETS: directory, tags.STRIP_BYTES: directory + 4 * count}
    at = directory + 8 * count
    for index, chunk in enumerate(chunks):
        values[tags.STRIP_OFFSETS][index] = at
        at += len(chunk)
    entries = b"".join(
        struct.pack("<HHII", tag, 4, len(of_tag), places[tag] if tag in places and count > 1 else of_tag[0])
        for tag, of_tag in sorted(values.items())
    )
    lists = struct.pack(f"<{2 * count}I", *values[tags.STRIP_OFFSETS], *values[tags.STRIP_BYTES])
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + bytes(4)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(b"".join([head, lists, *chunks]))) as image:
        image.im = Image.new(image.mode, (size, count)).im  # given its memory, Pillow does not warn of large images
        try:
            image.load()
        except OSError as error:
            raise ImageError("has a strip or tile that can't be decompressed, expected LZW", hint=_DAMAGED) from error
        return np.asarray(image).ravel()


def _of_lzma(chunk: bytes, most: int) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(chunk, most + 4)
    except lzma.LZMAError as error:
        raise ImageError("has a strip or tile that can't be decompressed, expected LZMA", hint=_DAMAGED) from error


_DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    tags.RAW: lambda chunk, most: chunk,
    tags.PACKBITS: _unpacked_bits,
    tags.LZMA: _of_lzma,
    **dict.fromkeys(tags.DEFLATE, _inflated),
}


def _values(layout: Layout, flat: Array, samples: int) -> Array:
    """Bytes, uint8 [rows, row_bytes], to samples [rows, chunk_width, samples] in the machine's order."""
    rows, columns, size = len(flat), layout.chunk_width * samples, layout.bits // 8
    if layout.bits not in (8, 16, 32, 64):
        return _unpacked(layout, flat, columns).reshape(rows, -1, samples)
    if layout.predictor == 3:  # TIFF Technical Note 3: bytes by significance, each the difference to the one before
        sums = np.cumsum(flat.reshape(rows, -1, samples), axis=1, dtype=np.uint8).reshape(rows, size, columns)
        flat = np.ascontiguousarray(sums.swapaxes(1, 2)).reshape(rows, -1)
    order = ">" if layout.predictor == 3 else layout.order
    values: Array = flat.view(f"{order}{layout.kind}{size}").reshape(rows, -1, samples)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return np.cumsum(values, axis=1, dtype=values.dtype) if layout.predictor == 2 else values


def _unpacked(layout: Layout, flat: Array, columns: int) -> Array:
    """Unsigned samples of 1 to 15 bits, the first in the highest bits: uint16 [rows, columns]."""
    bits = np.unpackbits(flat, axis=1, bitorder="little" if layout.fill_order == 2 else "big")
    each = bits[:, : columns * layout.bits].reshape(len(flat), columns, layout.bits)
    values = np.zeros(each.shape[:2], np.uint16)
    for bit in range(layout.bits):
        values = values << 1 | each[..., bit]
    return values


def _grey(layout: Layout, samples: Array) -> Array:
    """Samples [H, W, samples] to grey, uint8 [H, W]."""
    if layout.photometric == tags.PALETTE:
        return _palette_grey(layout, samples[..., 0])
    colours, white_is_zero = samples[..., : layout.colours], layout.photometric == 0
    if layout.kind != "u" or (layout.bits > 8 and layout.samples == 1):
        return _stretched(colours[..., 0], white_is_zero)
    if layout.bits == 16:
        rgb = np.rint(colours / 257.0).astype(np.uint8)
    else:
        rgb = (colours.astype(np.uint16) * 255 // (2**layout.bits - 1)).astype(np.uint8)
    if layout.photometric == tags.CMYK:
        grey = _cmyk_grey(rgb)
    else:
        grey = luma(np.ascontiguousarray(rgb), 8) if layout.colours == 3 else rgb[..., 0]
    grey = 255 - grey if white_is_zero else grey
    grey = _over_black(layout, grey, samples[..., layout.colours :])
    if layout.bits == 16:
        check_depth(grey)
    return grey


def _stretched(values: Array, white_is_zero: bool) -> Array:
    if values.dtype.kind in "iu" and values.itemsize == 8:  # float64 has 53 bits
        values = values.astype(np.uint64) - values.min().astype(np.uint64)
    shown = as_float64(values)
    grey = stretch(-shown if white_is_zero else shown)
    check_spread(grey)
    return grey


def _over_black(layout: Layout, grey: Array, extra: Array) -> Array:
    """What is transparent is black. Associated alpha is part of the colours; unspecified samples are no alpha."""
    if 2 not in layout.extra:
        return grey
    alpha = extra[..., layout.extra.index(2)] / (2.0**layout.bits - 1)
    return np.asarray(np.rint(grey * alpha), np.uint8)


def _cmyk_grey(cmyk: Array) -> Array:
    from PIL import Image

    return np.array(Image.fromarray(np.ascontiguousarray(cmyk), "CMYK").convert("RGB").convert("L"))


def _palette_grey(layout: Layout, index: Array) -> Array:
    size = 2**layout.bits
    if len(layout.colour_map) != 3 * size:
        raise ImageError(
            f"has a palette of {len(layout.colour_map)} values, expected {3 * size} for {layout.bits} bits",
            hint=_DAMAGED,
        )
    colours = np.array(layout.colour_map, np.uint16).reshape(3, size).T
    if colours.max() < 256:
        raise ImageError(
            f"has a palette of 16 bits whose entries end at {colours.max()}, expected 16 bits",
            hint="save it as RGB: entries of 8 bits would be black",
        )
    # Their upper 8 bits: entries of 8 bits are multiplied by 257 or, as often, by 256.
    shown: Array = luma((colours[None] >> 8).astype(np.uint8), 8)[0][index]
    return shown
