"""BMP: uncompressed rows, which begin after all tables and end with the file.

Lengths that the header states must agree with that, as far as writers are known to differ: Pillow's and those of the
BMP Suite do; 0 states nothing; OS/2 gives the length of its headers for that of the file; Photoshop is said to add two
zeros behind the pixels, and ImageMagick keeps a colour profile there.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from .stream import damaged, unsupported

_PADDING = 3  # zeros that make the length a multiple of four; two are Photoshop's


def prove(stream: BinaryIO, height: int) -> int:
    """How many colours its palette has, 0 without one.

    height: rows, as Pillow reads them, which knows the kinds of headers and refuses all others. Raises `ImageError`,
    and `OSError` where the file ends before its pixels do: Pillow makes these black where anybody told it to.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(14 + 124)
    stated, offset, header = struct.unpack_from("<I4xII", head, 2)
    core = header == 12
    width, bits = struct.unpack_from("<H4xH" if core else "<i6xH", head, 18)
    compression, stated_pixels, colours = (0, 0, 0) if core else struct.unpack_from("<II8xI", head, 30)
    if compression not in (0, 3) or (compression == 3 and header == 64):  # OS/2 numbers others
        unsupported(
            f"is a BMP with the compression {compression}",
            "uncompressed rows",
            "save it as 8-bit grey PNG, without loss",
        )
    entries = (colours or 2**bits) if bits <= 8 else 0
    tables = 14 + header + (12 if compression == 3 and header == 40 else 0) + entries * (3 if core else 4)
    if offset < tables:
        damaged(f"is a BMP whose pixels begin at byte {offset}", f"{tables} or more, after its header and palette")
    pixels = (width * bits + 31) // 32 * 4 * height
    end = offset + pixels
    if size < end:
        raise OSError(f"truncated: {size} bytes of {end}")
    behind = _after_profile(head, header, end)
    stream.seek(behind)
    rest = stream.read(_PADDING + 1)
    if size < behind or len(rest) > _PADDING or rest.strip(b"\0"):
        damaged(f"is a BMP of {size} bytes", f"{behind}, by its width, height and bits")
    if stated and not end <= stated <= size and stated != 14 + header:
        damaged(f"is a BMP of {size} bytes that states {stated}", "the same")
    if stated_pixels and not pixels <= stated_pixels <= pixels + len(rest):
        damaged(f"is a BMP with {pixels} bytes of pixels that states {stated_pixels}", "the same")
    return entries


def _after_profile(head: bytes, header: int, end: int) -> int:
    """Where a colour profile ends that lies behind the pixels, which end there; else `end`."""
    if header == 124:
        at, length = struct.unpack_from("<II", head, 14 + 112)
        if length and end <= 14 + at <= end + _PADDING:
            return int(14 + at + length)
    return end
