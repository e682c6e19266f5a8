"""RLE Lossless of DICOM (PS3.5 annex G): decoded here, where pydicom's own decoder pads and cuts."""

from __future__ import annotations

import struct

import numpy as np

from mpmmu_rt.spec import Array

from .stream import damaged


def decode(data: bytes, height: int, width: int, samples: int, bytes_per_sample: int) -> Array:
    """One frame: unsigned integers [H, W], or [H, W, samples] of colour.

    Raises `ImageError` unless there is a segment for each byte of each sample (G.2), each of which gives exactly the
    frame's bytes and ends with them, but for one byte that makes its length even (G.3.1).
    """
    expected = samples * bytes_per_sample
    offsets = _offsets(data, expected)
    planes = [
        np.frombuffer(_unpack(data[start:end], height * width, number), np.uint8)
        for number, (start, end) in enumerate(zip(offsets, [*offsets[1:], len(data)], strict=True), 1)
    ]
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


def _unpack(segment: bytes, expected: int, number: int) -> bytes:
    """PackBits (G.3): a count n, then n + 1 bytes (n ≤ 127) or one byte 257 - n times; 128 says nothing."""
    parts: list[bytes] = []
    at = length = 0
    end = len(segment)
    while length < expected and at < end:
        count = segment[at]
        if count < 128:
            part = segment[at + 1 : at + 2 + count]
            at += 2 + count
        elif count > 128:
            part = segment[at + 1 : at + 2] * (257 - count)
            at += 2
        else:
            at += 1
            continue
        parts.append(part)
        length += len(part)
    if length != expected or at > end:
        damaged(f"has an RLE segment {number} that gives {length} bytes", f"{expected}, by its Rows and Columns")
    rest = segment[at:]
    if len(rest) > 1 or rest.strip(b"\0\x80"):
        damaged(f"has an RLE segment {number} with {len(rest)} bytes left over", "at most one of padding")
    return b"".join(parts)
