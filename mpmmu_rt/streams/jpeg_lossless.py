"""JPEG Lossless (ITU-T T.81 annex H), 2 to 16 bits: the usual compression of mammograms.

Decoded by libjpeg-turbo through imagecodecs, which returns a picture whatever is missing. The proof goes backwards: the
differences that the samples have to their predictions take a number of bits that is known, and the scan must hold
exactly these. Where it ended early, the decoder's zeros took bits that are not there.
"""

from __future__ import annotations

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.spec import Array

from .jpeg import without_applications
from .jpeg_header import Jpeg, Scan, intervals, units
from .stream import CODECS_PURPOSE, damaged, unsupported

_STRIP_ROWS = 64  # whose differences and code lengths stay in a cache


def decode(data: bytes, jpeg: Jpeg) -> Array:
    """Samples of the image that `parse` found in `data`: uint8 or uint16 [H, W] or [H, W, 3], as they are coded.

    Raises `ImageError` unless every sample is coded and nothing is left over, `MissingPackage` without imagecodecs.
    """
    if jpeg.subsampled or len(jpeg.components) not in (1, 3):
        unsupported("has a lossless JPEG stream with sampling factors", "one sample per pixel", "export it as RGB")
    for scan in jpeg.scans:
        if not 1 <= scan.spectral[0] <= 7 or scan.spectral[1] or scan.approximation[0]:
            damaged(f"has a lossless JPEG scan with the predictor {scan.spectral[0]}", "1 to 7")
        if scan.approximation[1] >= jpeg.bits:
            damaged("has a lossless JPEG scan that leaves out all bits", "a point transform below its precision")
    codec = require("imagecodecs", CODECS_PURPOSE)
    kind = "GRAYSCALE" if len(jpeg.components) == 1 else "RGB"  # both: no conversion
    try:
        samples: Array = codec.jpeg8_decode(without_applications(data, jpeg), colorspace=kind, outcolorspace=kind)
    except codec.Jpeg8Error as error:
        damaged(f"has a JPEG stream that can't be decoded ({error})")
    if jpeg.bits < 8 * samples.itemsize and samples.max() >> jpeg.bits:
        damaged(f"has a lossless JPEG stream of {jpeg.bits} bits whose values need more")
    for scan in jpeg.scans:
        _check_bits(data, jpeg, scan, samples)
    return samples


def _check_bits(data: bytes, jpeg: Jpeg, scan: Scan, samples: Array) -> None:
    """Recount the bits of each restart interval (H.1.2, H.2.1) and hold them against its bytes."""
    down, across = units(jpeg, scan)
    lines = down
    if scan.restart_interval:
        lines, rest = divmod(scan.restart_interval, across)
        if rest:
            damaged("has a lossless JPEG scan with a restart within a line", "restarts between lines (T.81 H.1.1)")
    row_bits = np.zeros(down, np.int64)
    for index, table in zip(scan.components, scan.tables, strict=True):
        plane = samples if samples.ndim == 2 else samples[..., index]
        row_bits += _row_bits(plane, jpeg.bits, scan, _code_lengths(scan, table), lines)
    for number, (start, end) in enumerate(intervals(data, scan)):
        needed = int(row_bits[number * lines : (number + 1) * lines].sum())
        held = end - start - data.count(b"\xff\0", start, end)  # less what is stuffed
        if -(-needed // 8) != held:
            damaged(
                f"has a lossless JPEG stream with {held} bytes where its {jpeg.width} x {jpeg.height} pixels take "
                f"{-(-needed // 8)}",
                "every pixel to be coded, once",
            )


def _code_lengths(scan: Scan, table: int) -> Array:
    """Bits that each difference modulo 2**16 takes, code and value: uint8 [65536], 255 where there is no code."""
    if table not in scan.huffman:
        damaged("has a lossless JPEG scan without its Huffman table")
    counts, symbols = scan.huffman[table][:16], scan.huffman[table][16:]
    by_category = np.full(17, 255, np.uint8)
    at = 0
    for length, count in enumerate(counts, 1):
        for category in symbols[at : at + count]:
            if category > 16:
                damaged("has a lossless JPEG scan with a code for no difference")
            by_category[category] = length + category % 16  # category 16 is one value, 32768 (table H.2)
        at += count
    differences = np.arange(65536, dtype=np.int32)
    magnitudes = np.minimum(differences, 65536 - differences)
    return np.asarray(by_category[np.frexp(magnitudes.astype(np.float64))[1]])  # frexp: how many bits it has


def _row_bits(plane: Array, bits: int, scan: Scan, lengths: Array, lines: int) -> Array:
    """Bits of each row of one component: int64 [H]. `lines`: rows of a restart interval."""
    predictor, shift = scan.spectral[0], scan.approximation[1]
    total = np.zeros(len(plane), np.int64)
    for top in range(0, len(plane), _STRIP_ROWS):
        begin = max(0, top - 1)  # the row above the strip
        values = plane[begin : top + _STRIP_ROWS].astype(np.uint16) >> shift
        predicted = _predict(values, predictor)
        for row in range(top, min(top + _STRIP_ROWS, len(plane))):
            if row % lines == 0:  # the first line of an interval is predicted along itself
                predicted[row - begin, 0] = 1 << (bits - shift - 1)
                predicted[row - begin, 1:] = values[row - begin, :-1]
        rows = lengths[values - predicted][top - begin :]
        total[top : top + _STRIP_ROWS] = rows.sum(axis=1, dtype=np.int64)
    return total


def _predict(values: Array, predictor: int) -> Array:
    """Prediction of each sample (table H.1), uint16 [h, W], modulo 2**16; that of the first row has no meaning."""
    predicted = np.empty_like(values)
    predicted[0] = 0
    predicted[1:, 0] = values[:-1, 0]
    left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
    if predictor < 4:
        inside = (left, above, corner)[predictor - 1]
    else:
        a, b, c = (part.astype(np.int32) for part in (left, above, corner))
        wide = (a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[predictor - 4]
        inside = wide.astype(np.uint16)
    predicted[1:, 1:] = inside
    return predicted
