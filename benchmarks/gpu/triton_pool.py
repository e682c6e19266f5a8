"""The attention pool as somebody would write it in Triton: a rival of the kernel, timed beside it and used for nothing.

Eight launches: of CBAM six (statistics, hidden units, channel gate, sums and maxima over channels, their maps, spatial
gate and mean), of ECA two (the gate is applied to the means, which is the mean of what is gated). All arithmetic is
float32. A maximum of Triton loses NaN, which the kernel keeps. Block sizes are chosen by timing (`CHANNELS`).

    TRITON_INTERPRET=1 python -m benchmarks.gpu.triton_pool     holds it to the float64 reference on the CPU
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mpmmu_rt.kernels.attention_pool import Pool
from mpmmu_rt.kernels.check import SPECIALISED, TOLERANCE, Shape, difference
from mpmmu_rt.kernels.weights import PoolWeights

CHANNELS = (16, 32, 64)  # of a program, where the map is small enough
ELEMENTS = 1 << 12  # of a map that a program has at once, at most
ROWS = 16  # cases of a product: what tl.dot takes at least
# More cases than a product has rows, channels that fill no block, more hidden units than one.
SHAPES = (
    *SPECIALISED,
    Shape(18, ("cbam", 72, 3, 5), ("cbam", 33, 4, 3), hidden=19, size=3),
    Shape(1, ("eca", 300, 2, 3), ("cbam", 130, 14, 14), hidden=3),
)


@triton.jit
def statistics(
    x, means, peaks, channels, POSITIONS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, PEAKS: tl.constexpr
):
    """means and peaks [N, C] of x [N, C, positions]."""
    case = tl.program_id(1)
    c, s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    there = (c[:, None] < channels) & (s[None, :] < POSITIONS)
    read = tl.load(x + (case * channels + c[:, None]) * POSITIONS + s[None, :], mask=there, other=0).to(tl.float32)
    tl.store(means + case * channels + c, tl.sum(read, 1) / POSITIONS, mask=c < channels)
    if PEAKS:
        tl.store(peaks + case * channels + c, tl.max(tl.where(there, read, float("-inf")), 1), mask=c < channels)


@triton.jit
def composed(means, kernel, out, columns, channels, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """ECA: out[n, c] = g_c mean(x_c), which is mean(x g)_c."""
    case, c = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    logit = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(SIZE):
        at = c + j - SIZE // 2
        logit += tl.load(kernel + j) * tl.load(means + case * channels + at, mask=(at >= 0) & (at < channels), other=0)
    mean = tl.load(means + case * channels + c, mask=c < channels, other=0)
    tl.store(out + case * columns + c, tl.sigmoid(logit) * mean, mask=c < channels)


@triton.jit
def hidden_units(
    means,
    peaks,
    weight,
    bias,
    units,
    cases,
    hidden,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    STEP: tl.constexpr,
):
    """units [N, hidden] = ReLU(weight mean + bias) + ReLU(weight peak + bias); weight [hidden, C]."""
    n, h = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    of_means, of_peaks = tl.zeros([ROWS, UNITS], tl.float32), tl.zeros([ROWS, UNITS], tl.float32)
    for start in range(0, CHANNELS, STEP):
        c = start + tl.arange(0, STEP)
        at, there = n[:, None] * CHANNELS + c[None, :], (n[:, None] < cases) & (c[None, :] < CHANNELS)
        held = (h[None, :] < hidden) & (c[:, None] < CHANNELS)
        w = tl.load(weight + h[None, :] * CHANNELS + c[:, None], mask=held, other=0)
        of_means += tl.dot(tl.load(means + at, mask=there, other=0), w, input_precision="ieee")
        of_peaks += tl.dot(tl.load(peaks + at, mask=there, other=0), w, input_precision="ieee")
    b = tl.load(bias + h, mask=h < hidden, other=0)[None, :]
    said = tl.maximum(of_means + b, 0) + tl.maximum(of_peaks + b, 0)
    tl.store(units + n[:, None] * hidden + h[None, :], said, mask=(n[:, None] < cases) & (h[None, :] < hidden))


@triton.jit
def channel_gate(
    units, weight, bias, gate, cases, channels, hidden, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr
):
    """gate [N, C] = σ(weight units + 2 bias); weight [C, hidden], of which UNITS holds all."""
    n, c = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.arange(0, UNITS)
    left = tl.load(units + n[:, None] * hidden + h[None, :], mask=(n[:, None] < cases) & (h[None, :] < hidden), other=0)
    held = (h[:, None] < hidden) & (c[None, :] < channels)
    w = tl.load(weight + c[None, :] * hidden + h[:, None], mask=held, other=0)
    b = tl.load(bias + c, mask=c < channels, other=0)[None, :]
    said = tl.sigmoid(tl.dot(left, w, input_precision="ieee") + 2 * b)
    tl.store(gate + n[:, None] * channels + c[None, :], said, mask=(n[:, None] < cases) & (c[None, :] < channels))


@triton.jit
def over_channels(
    x,
    gate,
    parts,
    channels,
    slices,
    POSITIONS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """parts [N, slices, 2, positions]: sum and maximum of x g over the channels of a slice."""
    case, first = tl.program_id(1), tl.program_id(0) * SLICE
    s = tl.arange(0, PADDED)
    total, peak = tl.zeros([PADDED], tl.float32), tl.full([PADDED], float("-inf"), tl.float32)
    for start in range(0, SLICE, BLOCK):
        c = first + start + tl.arange(0, BLOCK)
        there = (c[:, None] < channels) & (s[None, :] < POSITIONS)
        read = tl.load(x + (case * channels + c[:, None]) * POSITIONS + s[None, :], mask=there, other=0).to(tl.float32)
        gated = read * tl.load(gate + case * channels + c, mask=c < channels, other=0)[:, None]
        total += tl.sum(gated, 0)
        peak = tl.maximum(peak, tl.max(tl.where(there, gated, float("-inf")), 0))
    to = parts + (case * slices + tl.program_id(0)) * 2 * POSITIONS + s
    tl.store(to, total, mask=s < POSITIONS)
    tl.store(to + POSITIONS, peak, mask=s < POSITIONS)


@triton.jit
def joined(parts, maps, channels, SLICES: tl.constexpr, POSITIONS: tl.constexpr, PADDED: tl.constexpr):
    """maps [N, 2, positions]: mean and maximum over all channels."""
    case, s = tl.program_id(0), tl.arange(0, PADDED)
    total, peak = tl.zeros([PADDED], tl.float32), tl.full([PADDED], float("-inf"), tl.float32)
    for one in range(SLICES):
        at = parts + (case * SLICES + one) * 2 * POSITIONS + s
        total += tl.load(at, mask=s < POSITIONS, other=0)
        peak = tl.maximum(peak, tl.load(at + POSITIONS, mask=s < POSITIONS, other=0))
    tl.store(maps + case * 2 * POSITIONS + s, total / channels, mask=s < POSITIONS)
    tl.store(maps + (case * 2 + 1) * POSITIONS + s, peak, mask=s < POSITIONS)


@triton.jit
def embedding(
    x,
    gate,
    maps,
    kernel,
    out,
    columns,
    channels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """out[n, c] = g_c mean(x_c s), s the spatial gate: σ of the SIZE x SIZE convolution of the maps."""
    case, first = tl.program_id(1), tl.program_id(0) * SLICE
    s = tl.arange(0, PADDED)
    logit = tl.zeros([PADDED], tl.float32)
    for dy in range(SIZE):
        for dx in range(SIZE):
            row, column = s // WIDTH + dy - SIZE // 2, s % WIDTH + dx - SIZE // 2
            there = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH) & (s < HEIGHT * WIDTH)
            at = maps + case * 2 * HEIGHT * WIDTH + row * WIDTH + column
            logit += tl.load(kernel + dy * SIZE + dx) * tl.load(at, mask=there, other=0)
            logit += tl.load(kernel + (SIZE + dy) * SIZE + dx) * tl.load(at + HEIGHT * WIDTH, mask=there, other=0)
    places = tl.sigmoid(logit) / (HEIGHT * WIDTH)
    for start in range(0, SLICE, BLOCK):
        c = first + start + tl.arange(0, BLOCK)
        there = (c[:, None] < channels) & (s[None, :] < HEIGHT * WIDTH)
        at = x + (case * channels + c[:, None]) * (HEIGHT * WIDTH) + s[None, :]
        read = tl.load(at, mask=there, other=0).to(tl.float32)
        g = tl.load(gate + case * channels + c, mask=c < channels, other=0)
        tl.store(out + case * columns + c, g * tl.sum(read * places[None, :], 1), mask=c < channels)


class TritonPool:
    """Both modalities' pools; `pool(first, second)`: maps [N, C, h, w], contiguous, to float32 [N, C + C]."""

    def __init__(self, pools: tuple[Pool, Pool], cases: int, channels: int, device: str = "cuda") -> None:
        self._out = torch.empty(cases, sum(pool.weights.channels for pool in pools), device=device)
        self._branches = []
        column = 0
        for pool in pools:
            self._branches.append(_Branch(pool, self._out[:, column:], channels))
            column += pool.weights.channels

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        for branch, x in zip(self._branches, (first, second), strict=True):
            branch(x)
        return self._out


class _Branch:
    def __init__(self, pool: Pool, out: Tensor, channels: int) -> None:
        weights: PoolWeights = pool.weights
        if weights.kind == "none":
            raise ValueError("a pool without attention has no Triton rival")
        self._pool, self._out, self._kind = pool, out, weights.kind
        self._padded = triton.next_power_of_2(pool.height * pool.width)
        self._block = max(1, min(channels, ELEMENTS // self._padded))
        self._slice = 4 * self._block
        cases, device = len(out), out.device

        def there(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device)

        self._weights = {name: there(getattr(weights, name)) for name in ("eca", "fc1", "fc1_bias", "fc2", "fc2_bias")}
        self._spatial = there(weights.spatial)
        self._means, self._peaks, self._gate = (empty(cases, weights.channels) for _ in range(3))
        self._slices = triton.cdiv(weights.channels, self._slice)
        self._units, positions = empty(cases, max(1, weights.hidden)), pool.height * pool.width
        self._parts, self._maps = empty(cases, self._slices, 2, positions), empty(cases, 2, positions)

    def __call__(self, x: Tensor) -> None:
        pool, weights, cases, columns = self._pool, self._pool.weights, len(x), self._out.stride(0)
        channels, positions, block = weights.channels, pool.height * pool.width, self._block
        every = (triton.cdiv(channels, block), cases)
        statistics[every](x, self._means, self._peaks, channels, positions, self._padded, block, self._kind == "cbam")
        if self._kind == "eca":
            few = (triton.cdiv(channels, 256), cases)
            composed[few](self._means, self._weights["eca"], self._out, columns, channels, weights.size, 256)
            return
        hidden, rows = weights.hidden, triton.cdiv(cases, ROWS)
        first, second = ((self._weights[name], self._weights[f"{name}_bias"]) for name in ("fc1", "fc2"))
        hidden_units[(triton.cdiv(hidden, 16), rows)](
            self._means, self._peaks, *first, self._units, cases, hidden, channels, ROWS, 16, 64
        )
        channel_gate[(triton.cdiv(channels, 32), rows)](
            *(self._units, *second, self._gate, cases, channels, hidden, ROWS, 32),
            max(16, triton.next_power_of_2(hidden)),
        )
        slices = (self._slices, cases)
        over_channels[slices](
            x, self._gate, self._parts, channels, self._slices, positions, self._padded, block, self._slice
        )
        joined[(cases,)](self._parts, self._maps, channels, self._slices, positions, self._padded)
        embedding[slices](
            *(x, self._gate, self._maps, self._spatial, self._out, columns, channels, pool.height, pool.width),
            *(weights.size, self._padded, block, self._slice),
        )


def differences(device: str) -> dict[str, float]:
    """From the reference, by shape and block size, relative to the largest value."""
    found = {}
    for shape in SHAPES:
        pools, draw = shape.pools(), np.random.default_rng(0)
        maps = [
            draw.normal(size=(shape.cases, pool.weights.channels, pool.height, pool.width)).astype(np.float16)
            for pool in pools
        ]
        want = np.concatenate([pool.weights.pool(x) for pool, x in zip(pools, maps, strict=True)], 1)
        for channels in CHANNELS:
            got = TritonPool(pools, shape.cases, channels, device)(*(torch.from_numpy(x).to(device) for x in maps))
            found[f"{shape}, {channels} channels"] = difference(got.cpu().numpy(), want)
    return found


if __name__ == "__main__":
    said = differences("cuda" if torch.cuda.is_available() else "cpu")
    for name, far in said.items():
        print(f"{name}: {far:.1e}")
    sys.exit(not all(far <= TOLERANCE["float16"] for far in said.values()))
