"""What the kernel is checked on, on the CPU and on a GPU alike: random pools, the shapes, the tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attention_pool import Pool
from .plan import ElementType
from .weights import Array, AttentionKind, PoolWeights

# max |got - want| / max |want|. The feature maps are exact in every element type and all arithmetic is float32, so that
# one limit holds for all three: sums of 10³ to 10⁴ terms, rounded to 6e-8 each, three of them in a row. On the CPU the
# largest difference seen is 1.4e-6 (2048 x 32 x 32); a GPU contracts products and sums and has another exponential.
TOLERANCE: dict[ElementType, float] = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}


@dataclass(frozen=True)
class Shape:
    """Two branches, (attention, channels, height, width) each, and the number of cases."""

    cases: int
    mammography: tuple[AttentionKind, int, int, int]
    ultrasound: tuple[AttentionKind, int, int, int]
    hidden: int = 5
    size: int = 0  # of the convolution; 0: 7 for CBAM, 5 for ECA

    def __str__(self) -> str:
        return f"{self.cases} x {'-'.join(map(str, self.mammography))} | {'-'.join(map(str, self.ultrasound))}"

    def pools(self) -> tuple[Pool, Pool]:
        first, second = (
            random_pool(*branch, seed=seed, hidden=self.hidden, size=self.size)
            for seed, branch in enumerate((self.mammography, self.ultrasound))
        )
        return first, second


# Small enough for one thread of the CPU for every thread of the GPU. Odd sizes, single cases, single positions, fewer
# channels than blocks, other sizes on the two sides, a last group that is not full, every pair of kinds.
SMALL = (
    Shape(3, ("cbam", 24, 3, 5), ("eca", 40, 4, 3)),
    Shape(1, ("cbam", 13, 7, 7), ("cbam", 8, 1, 1), hidden=3),
    Shape(2, ("eca", 17, 1, 3), ("cbam", 33, 5, 2), hidden=9, size=3),
    Shape(5, ("none", 5, 3, 3), ("eca", 16, 2, 2), size=1),
    Shape(2, ("eca", 64, 2, 4), ("none", 9, 6, 1), size=21),
    Shape(3, ("cbam", 48, 2, 2), ("none", 1, 1, 1), hidden=1),
    Shape(1, ("cbam", 16, 9, 11), ("eca", 3, 2, 2)),
)
# Small, of sizes that the kernel is specialised on, with whole groups of channels.
SPECIALISED = (
    Shape(3, ("cbam", 40, 7, 7), ("eca", 24, 8, 8)),
    Shape(2, ("eca", 16, 10, 10), ("cbam", 72, 7, 7), hidden=9, size=3),
)
# For a GPU, besides those: the product's last feature map at two image sizes, and sizes between.
LARGE = (
    Shape(3, ("cbam", 2048, 7, 7), ("eca", 2048, 7, 7), hidden=128),
    Shape(2, ("cbam", 2048, 32, 32), ("eca", 2048, 32, 32), hidden=128),
    Shape(9, ("cbam", 512, 7, 7), ("cbam", 2048, 14, 14), hidden=33),
    Shape(17, ("cbam", 1001, 13, 9), ("eca", 777, 31, 5), hidden=63),
    Shape(130, ("cbam", 264, 7, 7), ("none", 2048, 7, 7), hidden=16),
)


def random_pool(
    kind: AttentionKind, channels: int, height: int, width: int, *, seed: int, hidden: int = 5, size: int = 0
) -> Pool:
    """Weights of order 1, which make gates that differ from channel to channel and from case to case."""
    rng = np.random.default_rng(seed)
    size = size or (7 if kind == "cbam" else 5)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("eca", "fc1", "fc1_bias", "fc2", "fc2_bias", "spatial"), (0,))
    if kind == "eca":
        shapes["eca"] = (size,)
    elif kind == "cbam":
        shapes |= {"fc1": (hidden, channels), "fc1_bias": (hidden,), "fc2": (channels, hidden)}
        shapes |= {"fc2_bias": (channels,), "spatial": (2, size, size)}
    scale = {"fc1": channels**-0.5, "fc2": hidden**-0.5, "spatial": 1 / size}
    arrays = {name: (rng.normal(size=shape) * scale.get(name, 1)).astype(np.float32) for name, shape in shapes.items()}
    return Pool(PoolWeights(kind, channels, **arrays), height, width)


def random_maps(pools: tuple[Pool, Pool], cases: int, seed: int) -> tuple[Array, Array]:
    """Feature maps float64 [N, C, h, w] of both signs, each channel on its own scale."""
    rng = np.random.default_rng(seed)
    first, second = (
        rng.normal(0.3, 1, (cases, pool.weights.channels, pool.height, pool.width))
        * rng.uniform(0.5, 2, (1, pool.weights.channels, 1, 1))
        for pool in pools
    )
    return first, second


def to_element(x: Array, element: ElementType) -> tuple[Array, Array]:
    """`x` in that type: as it lies in memory (bfloat16 as uint16), and as float64."""
    if element == "bfloat16":  # truncated, which is as good as rounded here
        bits = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(element), x.astype(element).astype(np.float64)


def reference(pools: tuple[Pool, Pool], maps: tuple[Array, Array]) -> Array:
    """The embedding of feature maps [N, C, h, w]: float64 [N, C₁ + C₂]."""
    return np.concatenate([pool.weights.pool(x) for pool, x in zip(pools, maps, strict=True)], axis=1)


def difference(got: Array, want: Array) -> float:
    """max |got - want| / max |want|; infinite for other shapes or anything that is not finite."""
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("inf")
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
