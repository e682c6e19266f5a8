"""How many bytes LZW strips of a TIFF hold, without decoding them (TIFF 6.0, section 13).

libtiff decodes as many as it is asked for, and can't be asked whether there are more: then the image has another width.
"""

from __future__ import annotations

import numpy as np

from .spec import Array

_CLEAR, _END = 256, 257
# (bits, codes) after a Clear: with 511 entries the next code has 10 bits, and so on; then it is full.
_WIDTHS = ((9, 254), (10, 512), (11, 1024), (12, 2050))
_BLOCK_BYTES = -(-sum(width * count for width, count in _WIDTHS) // 8) + 1
_ENDS = np.cumsum(np.concatenate([[0], *(np.full(count, width) for width, count in _WIDTHS)]))


def decoded_bytes(strip: bytes) -> int | None:
    """The number of bytes that a strip decodes to; None if it isn't LZW from its first code to its last."""
    data, at, total = np.frombuffer(strip, np.uint8), 0, 0  # at: in bits
    while at + 9 <= 8 * len(data):
        bits = np.unpackbits(data[at // 8 : at // 8 + _BLOCK_BYTES])[at % 8 :]
        codes = _codes(bits)
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        count = int(marks[0]) if marks.size else len(codes)
        if (total == at == 0 and count) or (not marks.size and len(codes) == len(_ENDS) - 1):
            return None  # it does not begin with Clear, or the table is overfull
        lengths = _lengths(codes[:count])
        if lengths is None:
            return None
        total += int(lengths.sum())
        if not marks.size or codes[count] == _END:
            return total
        at += int(_ENDS[count + 1])
    return total


def _codes(bits: Array) -> Array:
    """All codes of one table in `bits`, int64."""
    parts, at = [], 0
    for width, count in _WIDTHS:
        here = min(count, (len(bits) - at) // width)
        parts.append(bits[at : at + here * width].reshape(here, width) @ (1 << np.arange(width - 1, -1, -1)))
        at += here * width
        if here < count:
            break
    return np.concatenate(parts)


def _lengths(codes: Array) -> Array | None:
    """The length of the string of each code: entry 258 + k is what code k stands for and one byte more."""
    of_table = codes > _END
    before = np.where(of_table, codes - 258, 0)
    if (before[of_table] >= np.flatnonzero(of_table)).any():
        return None
    lengths = np.where(of_table, 1, 0)  # beyond the string that `before` points to; pointers are followed by doubling
    before = np.where(of_table, before, np.arange(len(codes)))
    while (moved := before[before] != before).any():
        lengths = lengths + np.where(moved, lengths[before], 0)
        before = before[before]
    return lengths + 1
