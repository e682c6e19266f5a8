"""What the kernels of in-block attention are checked on, on the CPU and on a GPU alike: random weights, the reference.

The float64 reference is the papers' formulas (`reference.py`) with the mean of x taken from `inner`, as the exporter
has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .block_attention import BlockKind, BlockShape, BlockWeights
from .plan import ElementType
from .reference import Float, convolve, sigmoid
from .weights import Array

# max |got - want| / max |want|: float32 sums of up to 10³ terms; then y is rounded to its type, by 2^-11 or 2^-8 of
# itself at most.
TOLERANCE: dict[ElementType, float] = {"float32": 1e-5, "float16": 2**-11 + 1e-5, "bfloat16": 2**-8 + 1e-5}


@dataclass(frozen=True)
class Case:
    """cases x (attention, channels, inner channels, height, width), hidden units and size of the convolution."""

    cases: int
    kind: BlockKind
    channels: int
    inner: int
    height: int
    width: int
    hidden: int = 5
    size: int = 7

    def __str__(self) -> str:
        return f"{self.cases} x {self.kind}-{self.channels}-{self.inner}-{self.height}-{self.width}"

    def shape(self, element: ElementType, seed: int = 0) -> BlockShape:
        rng, c, o, k = np.random.default_rng(seed), self.channels, self.hidden, self.size
        sizes: dict[str, tuple[int, ...]] = {"kernel": (k,)}
        if self.kind == "composed":
            sizes = {"inner_weight": (self.inner, c), "inner_bias": (c,)}
        elif self.kind == "cbam":
            sizes = {"inner_weight": (self.inner, o), "inner_bias": (o,), "peak_weight": (c, o), "peak_bias": (o,)}
            sizes |= {"gate_weight": (o, c), "gate_bias": (c,), "kernel": (2, k, k)}
        scale = {"inner_weight": self.inner**-0.5, "peak_weight": c**-0.5, "gate_weight": o**-0.5, "kernel": 1 / k}
        arrays = {name: (rng.normal(size=one) * scale.get(name, 1)).astype(np.float32) for name, one in sizes.items()}
        return BlockShape(BlockWeights(self.kind, c, **arrays), self.height, self.width, element)

    def maps(self, seed: int) -> tuple[Float, Float, Float]:
        """inner [N, h, w, I], which is not negative or is x, x and the residual [N, h, w, C]."""
        rng = np.random.default_rng(seed)
        size = (self.cases, self.height, self.width)
        inner = np.maximum(rng.normal(0.2, 1, (*size, self.inner)), 0)
        x = rng.normal(0, 1, (*size, self.channels)) * rng.uniform(0.5, 2, self.channels)
        return x if self.kind == "eca" else inner, x, rng.normal(0, 1, (*size, self.channels))


# Odd sizes, single cases, single positions, fewer channels than columns, another size of the convolution.
SMALL = (
    Case(3, "cbam", 24, 8, 3, 5),
    Case(1, "cbam", 8, 16, 7, 7, hidden=3),
    Case(5, "cbam", 40, 24, 1, 1, hidden=1, size=3),
    Case(2, "cbam", 8, 8, 9, 4, hidden=9, size=1),
    Case(3, "composed", 24, 8, 5, 3),
    Case(1, "composed", 8, 40, 1, 2),
    Case(6, "composed", 72, 16, 6, 6),
    Case(3, "eca", 24, 24, 5, 3, size=5),
    Case(1, "eca", 8, 8, 1, 2, size=9),
    Case(6, "eca", 72, 72, 6, 6, size=1),
)
# The reference model's blocks: the last of each stage, as it is exported.
RESNET = (
    *(Case(2, "cbam", c, c // 4, s, s, hidden=c // 16) for c, s in ((256, 56), (512, 28), (1024, 14), (2048, 7))),
    *(Case(2, "composed", c, c // 4, side, side) for c, side in ((256, 56), (512, 28))),
    *(Case(2, "eca", c, c, side, side, size=k) for c, side, k in ((1024, 14, 5), (2048, 7, 7))),
)


def reference(shape: BlockShape, maps: tuple[Array, Array, Array]) -> Float:
    """y, float64 [N, h, w, C]; maps: inner, x and the residual, of any float type."""
    inner, x, residual = (np.asarray(one, np.float64) for one in maps)
    w = shape.weights
    if w.kind == "eca":
        logits = sum(
            w.kernel[j] * np.pad(x.mean(axis=(1, 2)), ((0, 0), (w.size // 2,) * 2))[:, j : j + w.channels]
            for j in range(w.size)
        )
        return np.maximum(residual + x * sigmoid(np.asarray(logits))[:, None, None], 0)
    means = inner.mean(axis=(1, 2)) @ w.inner_weight.astype(np.float64) + w.inner_bias
    if w.kind == "composed":
        gated = x * sigmoid(means)[:, None, None]
    else:
        peaks = x.max(axis=(1, 2)) @ w.peak_weight.astype(np.float64) + w.peak_bias
        hidden = np.maximum(means, 0) + np.maximum(peaks, 0)
        gated = x * sigmoid(hidden @ w.gate_weight.astype(np.float64) + w.gate_bias)[:, None, None]
        pooled = np.stack([gated.mean(axis=3), gated.max(axis=3)], axis=1)
        gated = gated * sigmoid(convolve(pooled, w.kernel.astype(np.float64)))[..., None]
    return np.maximum(residual + gated, 0)
