"""How the attention pool is spread over a device: pure functions of shapes and device facts. No GPU is touched.

`attention_pool.cu` says what the launches are. Here it is decided how large a tile of each is, how many blocks share
the work, and how much shared memory they take. `benchmarks/gpu/kernel.py --gpu` times the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from mpmmu_rt.errors import UsageError

from .weights import AttentionKind

ElementType = Literal["float32", "float16", "bfloat16"]

ELEMENT_BYTES: dict[ElementType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
KINDS = ("none", "eca", "cbam")  # their numbers in the kernel
LAUNCHES = ("statistics", "hidden", "spatial", "embedding")  # in order, their numbers in the kernel
THREADS = 256
FIXED = (49, 64, 100, 196, 256)  # positions that the kernel is specialised on: 7 x 7, 8 x 8, 10 x 10, 14 x 14, 16 x 16
SLICES = (16, 32, 64, 128, 256)
SAMPLES = (1, 2, 4, 8)
STAGES = (1, 2, 3)
RESERVED_BYTES = 1024  # of shared memory, by the driver, for each block
RESIDENT = 2  # blocks that the registers of a multiprocessor hold at the least: __launch_bounds__ of the kernel

# The cost model, in bytes that a multiprocessor takes in from L2 meanwhile: fitted by eye to one H200 at 7 x 7.
LAUNCH_BYTES = 60_000  # until a block's first bytes are there
TILE_BYTES = 12_000  # barriers and what else a tile costs beside its bytes
SLICE_BYTES = 3_000  # one more part for each sum over slices


@dataclass(frozen=True)
class Device:
    """What the choice depends on; sizes in bytes."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # the most that a kernel can opt in to
    shared_per_multiprocessor: int
    l2_bytes: int

    def resident(self, shared_bytes: int) -> int:
        """Blocks that a multiprocessor holds at once, by shared memory and by registers; at least 1."""
        return max(1, min(RESIDENT, self.shared_per_multiprocessor // (shared_bytes + RESERVED_BYTES)))


@dataclass(frozen=True)
class Branch:
    """One modality: its feature map [N, channels, height, width] and its attention."""

    channels: int
    height: int
    width: int
    kind: AttentionKind
    hidden: int  # units of CBAM's MLP, else 0
    size: int  # of the convolution: ECA [size], CBAM [2, size, size], none 0

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise UsageError(
                f"the feature map is [N, {self.channels}, {self.height}, {self.width}], expected sizes ≥ 1"
            )

    @property
    def positions(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Layout:
    """How the launches work on one modality, as `Modality` of attention_pool.cu has it; chunks at the most."""

    fixed: int  # positions that the kernel is specialised on, or 0
    slice: int
    samples: int
    chunks: int
    spatial_chunks: int
    wide: int
    ranges: int
    shared: tuple[int, ...]  # bytes of shared memory of each launch

    def chunks_of(self, cases: int) -> tuple[int, int]:
        """`chunks` and `spatial_chunks` of a launch of `cases` cases: no more than there are tiles."""
        tiles = -(-cases // self.samples)
        return min(self.chunks, tiles), min(self.spatial_chunks, tiles)


@dataclass(frozen=True)
class Strategy:
    """One way to run the launches for up to `cases` cases."""

    element: ElementType
    channels_last: bool
    stages: int  # tiles in shared memory at once
    layouts: tuple[Layout, Layout]
    threads: int = THREADS

    @property
    def shared(self) -> tuple[int, ...]:
        """Bytes of shared memory of each launch."""
        return tuple(max(pair) for pair in zip(*(layout.shared for layout in self.layouts), strict=True))

    def options(self, branches: tuple[Branch, Branch]) -> tuple[str, ...]:
        """The macros that the kernel is compiled with: a specialised modality's numbers are constants."""
        element = {"float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}[self.element]
        found = [f"-DELEMENT={element}", f"-DCHANNELS_LAST={int(self.channels_last)}", f"-DSTAGES={self.stages}"]
        for i, (branch, one) in enumerate(zip(branches, self.layouts, strict=True)):
            found.append(f"-DPOSITIONS{i}={one.fixed}")
            if one.fixed:
                numbers = [KINDS.index(branch.kind), branch.channels, branch.height, branch.width, branch.hidden]
                numbers += [branch.size, one.slice, one.samples, one.wide]
                found.append(f"-DKNOWN{i}={','.join(map(str, numbers))}")
        return tuple(found)

    def __str__(self) -> str:
        tiles = " | ".join(
            f"{one.samples} x {one.slice} by {one.chunks}, {one.wide} by {one.ranges}" for one in self.layouts
        )
        return f"{self.stages} stages, {tiles}"


def blocks(layout: Layout, branch: Branch, cases: int, threads: int) -> tuple[int, ...]:
    """Blocks of each launch for `cases` cases of this modality."""
    slices, (chunks, spatial_chunks) = -(-branch.channels // layout.slice), layout.chunks_of(cases)
    if branch.kind == "cbam":
        hidden = -(-cases * _up(branch.hidden, 4) // threads)
        return slices * chunks, hidden, slices * spatial_chunks, cases * layout.ranges
    return slices * chunks, -(-cases * branch.channels // threads) if branch.kind == "eca" else 0, 0, 0


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class _Tiles:
    """Sizes of tiles of one modality, as `AnyTile` and `FixedTile` of attention_pool.cu count them."""

    branch: Branch
    item: int  # bytes of an element
    fixed: bool
    threads: int

    @property
    def unit(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.item

    @property
    def most_rows(self) -> int:
        """Channels of all samples of a tile, at most."""
        return THREADS if self.fixed else 1 << 20

    def bytes(self, samples: int, channels: int) -> int:
        if self.fixed:
            return samples * channels // self.unit * (self.branch.positions | 1) * 16
        return _up(samples * channels * self.branch.positions * self.item, 16)

    def scratch(self, samples: int, channels: int) -> int:
        """Bytes, of over_channels; in a tile of any size of over_positions too."""
        if not self.fixed:
            return 2 * self.threads * 4
        items = self.unit * -(-self.branch.positions // self.unit)
        shares = max(1, min(self.threads // (samples * items), -(-channels // self.unit // 4)))
        return 4 * samples * shares * items * self.unit * 2

    def gates(self, channels: int) -> int:
        """Floats of the channel gate of a sample."""
        return _up(channels // self.unit, 4) * self.unit if self.fixed else channels

    @property
    def gate(self) -> int:
        """Floats of the spatial gate."""
        if not self.fixed:
            return self.branch.positions
        place = self.branch.positions % self.unit or self.unit
        return self.unit // place * _up(self.branch.positions, 4)

    def shared(self, stages: int, size: tuple[int, int], wide: int) -> tuple[int, ...]:
        """Bytes of shared memory of each launch for tiles of size (samples, channels), and of `wide` channels."""
        (samples, channels), branch = size, self.branch
        tile, width, cbam = self.bytes(samples, channels), _up(branch.hidden, 4), branch.kind == "cbam"
        along = 0 if self.fixed else self.scratch(samples, channels)  # of over_positions

        def products(rows: int, columns: int) -> int:
            """Bytes of `multiply`: of all threads, or of all items where these are more."""
            return 4 * max(16 * self.threads, _up(rows, 4) * columns) if cbam else 0

        stats = _up(2 * samples, 4) * (_up(channels, 4) + 4) * 4
        statistics = stages * tile + channels * width * 4 * cbam + stats + max(along, products(2 * samples, width))
        if not cbam:
            return statistics, 0, 0, 0
        floats = width * channels + samples * self.gates(channels)  # weights and gates
        spatial = stages * (tile + _up(samples, 4) * width * 4) + floats * 4
        spatial += max(self.scratch(samples, channels), products(samples, channels))
        sizes = (self.gate, 2 * branch.positions, 2 * branch.size**2, branch.size * branch.positions)
        maps = 4 * sum(_up(size, 4) for size in sizes)
        return statistics, 0, spatial, stages * self.bytes(1, wide) + maps + along


def candidates(
    branches: tuple[Branch, Branch],
    cases: int,
    element: ElementType,
    channels_last: bool,
    device: Device,
    threads: int = THREADS,
    specialised: tuple[int, ...] = FIXED,
) -> list[Strategy]:
    """Every strategy that fits the device, the preferred one first (see `cost`). specialised: numbers of positions.

    Raises `UsageError` where none does: the maps over positions have to fit in shared memory, and the device has to be
    of compute capability 8.0 or later.
    """
    if device.capability < (8, 0):
        raise UsageError(
            f"the device has compute capability {device.capability[0]}.{device.capability[1]}, expected 8.0 or later",
            hint="run the whole-graph engine instead",
        )
    if cases < 1:
        raise UsageError(f"`cases` is {cases}, expected ≥ 1")
    kinds = [
        _Tiles(
            one,
            ELEMENT_BYTES[element],
            not channels_last and one.positions in specialised and one.channels % (16 // ELEMENT_BYTES[element]) == 0,
            threads,
        )
        for one in branches
    ]
    found = [
        Strategy(element, channels_last, stages, (first, second), threads)
        for stages in STAGES
        for first, second in product(*(_layouts(kind, cases, stages, device) for kind in kinds))
    ]
    if not found:
        sizes = " and ".join(f"{branch.height} x {branch.width}" for branch in branches)
        raise UsageError(
            f"feature maps of {sizes} positions don't fit in {device.shared_per_block} bytes of shared memory",
            hint="run the whole-graph engine instead",
        )
    return sorted(found, key=lambda one: (cost(one, branches, cases, device), str(one)))


def _layouts(tiles: _Tiles, cases: int, stages: int, device: Device) -> list[Layout]:
    """That fit. Without CBAM there are no weights, so that one tile does: as many channels as it takes."""
    branch, limit, wide = tiles.branch, device.shared_per_block, _wide(tiles, stages, device)
    found = []
    for samples, channels in _sizes(tiles, cases, limit // stages) if wide else ():
        shared = tiles.shared(stages, (samples, channels), wide)
        if max(shared) > limit:
            continue
        slices, most = -(-branch.channels // channels), -(-cases // samples)
        here = device.multiprocessors * device.resident(max(shared))
        # Both modalities share the first launch; of the third, CBAM alone is part.
        chunks, spatial_chunks = (min(most, max(1, room // slices)) for room in (here // 2, here))
        ranges = min(-(-branch.channels // wide), max(1, here // cases))
        fixed = branch.positions if tiles.fixed else 0
        found.append(Layout(fixed, channels, samples, chunks, spatial_chunks, wide, ranges, shared))
    if branch.kind != "cbam" and found:
        return [max(found, key=lambda one: (one.slice * one.samples, one.slice))]
    return found


def _sizes(tiles: _Tiles, cases: int, budget: int) -> Iterator[tuple[int, int]]:
    """Samples and channels of tiles within `budget` bytes that are no larger than what there is."""
    most = _up(tiles.branch.channels, 8)
    least = 8 if tiles.fixed or tiles.bytes(1, 8) <= budget else 4
    for samples, channels in product(SAMPLES, (least, *SLICES)):
        fits = samples * channels <= tiles.most_rows and tiles.bytes(samples, channels) <= budget
        if fits and (samples == 1 or samples // 2 < cases) and (channels == least or channels // 2 < most):
            yield samples, min(channels, most)


def _wide(tiles: _Tiles, stages: int, device: Device) -> int:
    """Channels of a tile of `embedding`: as many as leave room for another block, or as fit; 0 where none do."""
    most = min(_up(tiles.branch.channels, 8), tiles.most_rows)
    half = device.shared_per_multiprocessor // 2 - RESERVED_BYTES
    for limit in (min(half, device.shared_per_block), device.shared_per_block):
        sizes: list[int] = [*range(most - most % 8, 0, -8), *([] if tiles.fixed else [4, 2, 1])]
        for wide in sizes:
            if tiles.shared(stages, (1, 8), wide)[3] <= limit:
                return wide
    return 0


def choose(
    branches: tuple[Branch, Branch], cases: int, element: ElementType, channels_last: bool, device: Device
) -> Strategy:
    """The preferred strategy. Raises `UsageError` where none fits."""
    return candidates(branches, cases, element, channels_last, device)[0]


def cost(strategy: Strategy, branches: tuple[Branch, Branch], cases: int, device: Device) -> float:
    """The cost model: what the busiest multiprocessor takes in during all launches, in bytes from L2."""
    item, total = ELEMENT_BYTES[strategy.element], 0.0
    pairs = list(zip(branches, strategy.layouts, strict=True))
    counts = [blocks(layout, branch, cases, strategy.threads) for branch, layout in pairs]
    for launch in (0, 2, 3):
        bytes_in, tiles = 0.0, 0
        for (branch, layout), count in zip(pairs, counts, strict=True):
            if not count[launch]:
                continue
            bytes_in += cases * branch.channels * branch.positions * item
            slices, width = -(-branch.channels // layout.slice), branch.hidden * 4
            if launch == 3:
                bytes_in += count[3] * slices * 2 * branch.positions * 4
                total += slices * SLICE_BYTES
                tiles += cases * -(-branch.channels // layout.wide)
            else:
                bytes_in += count[launch] * layout.slice * width + slices * cases * width
                tiles += slices * -(-cases // layout.samples)
        running = sum(count[launch] for count in counts)
        if running:
            # Blocks come in whole numbers: the busiest multiprocessor has so many times the average.
            uneven = -(-running // device.multiprocessors) * device.multiprocessors / running
            lonely = 1.3 if device.resident(strategy.shared[launch]) == 1 or strategy.stages == 1 else 1.0
            total += LAUNCH_BYTES + (bytes_in + tiles * TILE_BYTES) / device.multiprocessors * uneven * lonely
    return total


@dataclass(frozen=True)
class Floor:
    """The least that any implementation must do for one launch."""

    bytes: int  # feature maps and weights read once, the embedding written once
    operations: int  # float32 additions, multiplications and comparisons
    launches: int = 1

    def ms(self, bytes_per_s: float, operations_per_s: float, launch_ms: float = 0.0) -> float:
        """The largest of the three times, for rates that were measured on the device, in milliseconds."""
        return max(1e3 * self.bytes / bytes_per_s, 1e3 * self.operations / operations_per_s, self.launches * launch_ms)


def floor(branches: tuple[Branch, Branch], cases: int, element: ElementType) -> Floor:
    """Bytes and operations of the pool of `cases` cases, whatever the strategy.

    Per element of a feature map: none and ECA 1 (sum); CBAM 2 (sum, maximum), 3 (gate, sum, maximum) and 2 (spatial
    gate, sum). The MLP: the first layer twice, the second once (it is linear). The gates' sigmoids are not counted.
    """
    moved = work = 0
    for branch in branches:
        c, s, h, k = branch.channels, branch.positions, branch.hidden, branch.size
        elements = cases * c * s
        moved += elements * ELEMENT_BYTES[element] + cases * c * 4
        if branch.kind == "cbam":
            moved += 4 * (2 * c * h + h + c + 2 * k * k)
            work += 7 * elements + cases * (3 * 2 * c * h + s * 2 * 2 * k * k)
        else:
            moved += 4 * k
            work += elements + cases * c * (2 * k + 1)
    return Floor(moved, work)
