"""Weights that need not travel: drawn from a name and a seed, the same to the bit on every machine.

NumPy promises that the raw bits of PCG64 never change; its distributions may, and torch's do from processor to
processor. So the bits themselves become the weights: uniform, by sums and products that are the same everywhere.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from mpmmu_rt.spec import Array

SEED = 2026
_CODES = 1 << 16
_DEVIATION = _CODES / math.sqrt(12)  # of codes that are uniform


def drawn(name: str, shape: tuple[int, ...]) -> Array:
    """A convolution's weights [output, input, kernel…], float32, uniform about 0.

    Their deviation is He's, over what leaves a neuron (arXiv 1502.01852, section 2.2), as in `model.encoder.Encoder`.
    """
    count = math.prod(shape)
    bits = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw(-(-count // 4))
    codes = bits.astype("<u8").view("<u2")[:count].astype(np.float32)
    deviation = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
    values: Array = (codes - np.float32((_CODES - 1) / 2)) * np.float32(deviation / _DEVIATION)
    return values.reshape(shape)
