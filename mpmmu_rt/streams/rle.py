"""RLE Lossless of DICOM (PS3.5 annex G): decoded here, where pydicom's own decoder pads and cuts."""

from __future__ import annotations

import struct

import numpy as np

from mpmmu_rt.spec import Array

from .stream import damaged

_HOLE = bytes(16)


def decode(data: bytes, height: int, width: int, samples: int, bytes_per_sample: int) -> Array:
    """One frame: unsigned integers [H, W], or [H, W, samples] of colour.

    Raises `ImageError` unless there is a segment for each byte of each sample (G.2), each of which gives exactly the
    frame's bytes and ends with them, but for one byte that makes its length even (G.3.1).
    """
    expected = samples * bytes_per_sample
    offsets = _offsets(data, expected)
    segments = [data[start:end] for start, end in zip(offsets, [*offsets[1:], len(data)], strict=True)]
    planes = [
        np.frombuffer(_unpack(segment, height, width, number), np.uint8) for number, segment in enumerate(segments, 1)
    ]
    if data.find(_HOLE, 64) >= 0:
        _check_holes(segments)
    stacked = np.stack(planes, axis=-1).reshape(height, width, samples, bytes_per_sample)
    values = np.ascontiguousarray(stacked).view(f">u{bytes_per_sample}")[..., 0].astype(f"=u{bytes_per_sample}")
    return values[..., 0] if samples == 1 else values


def _offsets(data: bytes, expected: int) -> list[int]:
    if len(data) < 64:
        damaged(f"has an RLE frame of {len(data)} bytes", "a header of 64")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != expected:
        damaged(f"has an RLE frame of {count} segments", f"{expected}, by its SamplesPerPixel and BitsAllocated")
    used, unused = offsets[:count], offsets[count:]
    if used[0] != 64 or used != sorted(set(used)) or used[-1] >= len(data) or any(unused):
        damaged("has an RLE frame whose segments don't follow each other")
    return used


def _unpack(segment: bytes, height: int, width: int, number: int) -> bytes:
    """PackBits (G.3): a count n, then n + 1 bytes (n ≤ 127) or one byte 257 - n times; 128 says nothing."""
    parts: list[bytes] = []
    at = length = 0
    end, expected, row, crossed = len(segment), height * width, width, False
    while length < expected and at < end:
        count = segment[at]
        if count < 128:
            after = at + 2 + count
            parts.append(segment[at + 1 : after])
            at = after
            length += count + 1
        elif count > 128:
            parts.append(segment[at + 1 : at + 2] * (257 - count))
            at += 2
            length += 257 - count
        else:
            at += 1
        if length >= row:
            crossed |= length > row
            row = (length // width + 1) * width
    if length != expected or at > end:
        damaged(f"has an RLE segment {number} that gives {length} bytes", f"{expected}, by its Rows and Columns")
    rest = segment[at:]
    if len(rest) > 1 or rest.strip(b"\0\x80"):
        damaged(f"has an RLE segment {number} with {len(rest)} bytes left over", "at most one of padding")
    if crossed:
        _check_rows([len(part) for part in parts], height * width, width)
    return b"".join(parts)


def _check_holes(segments: list[bytes]) -> None:
    """Refuse zeros that are coded one by one by a writer that codes runs: a sector of a disk that was never written."""
    runs, hole = False, False
    for segment in segments:
        literal: list[bytes] = []
        at = 0
        while at < len(segment):
            count = segment[at]
            if count < 128:
                literal.append(segment[at + 1 : at + 2 + count])
                at += 2 + count
            else:
                runs |= 128 < count < 255
                literal.append(b"\1")
                at += 2 if count > 128 else 1
        hole |= _HOLE in b"".join(literal)
    if runs and hole:
        damaged("has an RLE frame with a hole, a run of zeros that isn't coded as one")


def _check_rows(runs: list[int], whole: int, width: int) -> None:
    """Refuse runs that keep to rows of another length than `width`: no run crosses the end of a row (G.3.1).

    Writers that let runs cross anywhere are read.
    """
    ends = set(np.cumsum(runs).tolist())
    for other in range(2, whole // 2):
        if whole % other == 0 and ends.issuperset(range(other, whole + 1, other)):
            damaged(f"has RLE runs that keep to rows of {other} pixels", f"rows of {width}, by its Columns")
