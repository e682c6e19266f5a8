"""How the attention pool is spread over a device: pure functions of shapes and device facts. No GPU is touched.

`attention_pool.cu` says what the strategies are. Here it is decided which of them fit, what each keeps where in shared
memory, and which one is preferred. The preference is a model and *not measured*: `benchmarks/gpu/kernel.py --gpu`
times all candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mpmmu_rt.errors import UsageError

from .weights import AttentionKind

ElementType = Literal["float32", "float16", "bfloat16"]
Exchange = Literal["alone", "cluster", "grid"]
Route = Literal["one pass", "held", "re-read"]

ELEMENT_BYTES: dict[ElementType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)  # their numbers in the kernel
THREADS = 256
SPLITS: dict[Exchange, tuple[int, ...]] = {"alone": (1,), "cluster": (2, 4, 8), "grid": (2, 4, 8, 16, 32, 64)}
SAMPLES = (1, 2, 4, 8)
RESERVED_BYTES = 1024  # of shared memory, by the driver, for each block

# The cost model's guesses, none of them measured. A byte from device memory costs as much as 3 from L2; waiting, in
# bytes from L2 that a multiprocessor could take in meanwhile: for other blocks, once for CBAM, and for each tile.
DEVICE_MEMORY = 3
EXCHANGE_BYTES: dict[Exchange, int] = {"alone": 0, "cluster": 40_000, "grid": 250_000}
TILE_BYTES = 20_000
LONELY = 1.5  # a multiprocessor that holds a single block does nothing while that block waits

# A GRID block keeps its place while it spins for the others of its work item. Of one launch only the newest item can
# miss blocks, so at most split - 1 blocks spin for one that has no place yet. With two launches at once (two Predictors
# on one device, a stream each) that are 2 (split - 1), and where these fill the device neither launch ever goes on.
LAUNCHES_AT_ONCE = 2


@dataclass(frozen=True)
class Device:
    """What the choice depends on; sizes in bytes."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # the most that a kernel can opt in to
    shared_per_multiprocessor: int
    l2_bytes: int

    def resident(self, strategy: Strategy) -> int:
        """Blocks of `strategy` that are sure to run at once: by shared memory, and by registers."""
        by_memory = self.shared_per_multiprocessor // (strategy.shared_bytes + RESERVED_BYTES)
        return self.multiprocessors * max(1, min(by_memory, by_registers(strategy.samples)))


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
    """How one block works on one modality. Channels are counted in elements; `at_*` are bytes into shared memory."""

    route: Route
    slice: int  # channels that a block owns
    halo: int  # channels on each side that ECA needs as well
    tile: int  # channels in shared memory at once
    at_stats: int
    at_hidden: int
    at_scratch: int
    at_slot: int
    at_maps: int
    at_gate: int
    slot_floats: int
    shared_bytes: int


@dataclass(frozen=True)
class Strategy:
    """One way to run the kernel for up to `cases` cases."""

    element: ElementType
    channels_last: bool
    exchange: Exchange
    split: int  # blocks that share a sample
    samples: int  # samples that a block works on at once
    threads: int
    layouts: tuple[Layout, Layout]

    @property
    def shared_bytes(self) -> int:
        return max(layout.shared_bytes for layout in self.layouts)

    @property
    def slot_floats(self) -> int:
        return max(layout.slot_floats for layout in self.layouts)

    def items(self, cases: int) -> int:
        """Work items for `cases` cases: groups of samples, times two modalities. `split` blocks work on each."""
        return 2 * (-(-cases // self.samples))

    def options(self) -> tuple[str, ...]:
        """The macros that the kernel is compiled with; only a cluster's size is among them."""
        element = {"float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}[self.element]
        return (
            f"-DELEMENT={element}",
            f"-DCHANNELS_LAST={int(self.channels_last)}",
            f"-DEXCHANGE={EXCHANGES.index(self.exchange)}",
            f"-DSPLIT={self.split if self.exchange == 'cluster' else 1}",
            f"-DSAMPLES={self.samples}",
            f"-DTHREADS={self.threads}",
        )

    def __str__(self) -> str:
        routes = " + ".join(layout.route for layout in self.layouts)
        return f"{self.exchange}, {self.split} blocks, {self.samples} samples, {routes}"


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def by_registers(samples: int) -> int:
    """Blocks that the registers of a multiprocessor hold at the least: `RESIDENT` of attention_pool.cu."""
    return 2 if samples < 8 else 1


def lay_out(branch: Branch, element: ElementType, split: int, samples: int, threads: int, budget: int) -> Layout | None:
    """The layout with the largest tile that keeps a block within `budget` bytes of shared memory; None if none does."""
    cbam = branch.kind == "cbam"
    owned = _up(-(-branch.channels // split), 8)
    halo = _up(branch.size // 2, 8) if branch.kind == "eca" else 0
    span = min(owned + 2 * halo, _up(branch.channels, 8))
    maps = samples * branch.positions
    slot_floats = _up(branch.hidden, 4) * 2 * samples + 2 * maps if cbam else 0
    sizes = {
        "at_stats": span * 2 * samples * 4,
        "at_hidden": branch.hidden * samples * 4,
        "at_scratch": 2 * threads * 4,
        "at_slot": slot_floats * 4,
        "at_maps": 2 * maps * 4 if cbam else 0,
        "at_gate": maps * 4 if cbam else 0,
    }
    fixed = sum(_up(size, 16) for size in sizes.values())
    per_channel = maps * ELEMENT_BYTES[element]
    tile = min(span, (budget - fixed - 15) // per_channel)
    if tile < 1:
        return None
    if tile >= 8:
        tile -= tile % 8  # whole 16-byte chunks for every element type
    at, offsets = _up(tile * per_channel, 16), {}
    for name, size in sizes.items():
        offsets[name] = at
        at += _up(size, 16)
    route: Route = "one pass" if not cbam else "held" if tile >= min(owned, branch.channels) else "re-read"
    return Layout(route, owned, halo, tile, **offsets, slot_floats=slot_floats, shared_bytes=at)


def candidates(
    branches: tuple[Branch, Branch],
    cases: int,
    element: ElementType,
    channels_last: bool,
    device: Device,
    threads: int = THREADS,
) -> list[Strategy]:
    """Every strategy that fits the device, the preferred one first (see `cost`).

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
    found = set(_fitting(branches, cases, element, channels_last, device, threads))
    if not found:
        sizes = " and ".join(f"{branch.height} x {branch.width}" for branch in branches)
        raise UsageError(
            f"feature maps of {sizes} positions don't fit in {device.shared_per_block} bytes of shared memory",
            hint="run the whole-graph engine instead",
        )
    return sorted(found, key=lambda one: (cost(one, branches, cases, device), str(one), one.shared_bytes))


def _fitting(
    branches: tuple[Branch, Branch],
    cases: int,
    element: ElementType,
    channels_last: bool,
    device: Device,
    threads: int,
) -> Iterator[Strategy]:
    cbam = any(branch.kind == "cbam" for branch in branches)
    widest = -(-max(branch.channels for branch in branches) // 8)
    half = min(device.shared_per_multiprocessor // 2 - RESERVED_BYTES, device.shared_per_block)
    for exchange in EXCHANGES:
        if (exchange == "cluster" and device.capability < (9, 0)) or (exchange != "alone" and not cbam):
            continue
        splits = SPLITS[exchange] if cbam else (1, *SPLITS["grid"])  # ECA's blocks need no exchange
        for split in splits:
            if split > 1 and (split > widest or split > device.multiprocessors):
                continue
            for samples in SAMPLES if cbam else (1,):
                if samples > 1 and samples >= 2 * cases:
                    continue
                for budget in (half, device.shared_per_block):
                    layouts = _both(branches, element, split, samples, threads, budget)
                    if not layouts:
                        continue
                    found = Strategy(element, channels_last, exchange, split, samples, threads, layouts)
                    if exchange != "grid" or LAUNCHES_AT_ONCE * split <= device.resident(found):
                        yield found


def _both(
    branches: tuple[Branch, Branch], element: ElementType, split: int, samples: int, threads: int, budget: int
) -> tuple[Layout, Layout] | None:
    """CBAM gets the budget; what makes one pass gets as much as CBAM uses, or a quarter, where that does."""

    def fit(branch: Branch, limit: int) -> Layout | None:
        return lay_out(branch, element, split, samples, threads, limit)

    cbam = [fit(branch, budget) for branch in branches if branch.kind == "cbam"]
    small = max((layout.shared_bytes for layout in cbam if layout), default=budget // 4)
    first, second = (
        fit(branch, budget) if branch.kind == "cbam" else fit(branch, small) or fit(branch, budget)
        for branch in branches
    )
    return (first, second) if first and second else None


def choose(
    branches: tuple[Branch, Branch],
    cases: int,
    element: ElementType,
    channels_last: bool,
    device: Device,
    exchange: Exchange | None = None,
) -> Strategy:
    """The preferred strategy, or the preferred one with that `exchange`. Raises `UsageError` where none fits."""
    found = candidates(branches, cases, element, channels_last, device)
    for strategy in found:
        if exchange in (None, strategy.exchange):
            return strategy
    raise UsageError(
        f"exchange `{exchange}` fits no strategy here, expected one of {sorted({one.exchange for one in found})}"
    )


def cost(strategy: Strategy, branches: tuple[Branch, Branch], cases: int, device: Device) -> float:
    """The cost model: what the busiest multiprocessor takes in, in bytes from L2. *Not measured.*

    Feature maps from device memory, and again from L2, or from device memory where L2 can't hold what all blocks work
    on; the MLP's weights once for each group of samples; the parts of other blocks; waiting.
    """
    blocks = strategy.items(cases) * strategy.split
    turns = -(-blocks // device.multiprocessors)
    resident = device.shared_per_multiprocessor // (strategy.shared_bytes + RESERVED_BYTES)
    each = []
    for branch, layout in zip(branches, strategy.layouts, strict=True):
        channels = min(layout.slice + 2 * layout.halo, branch.channels)
        maps = strategy.samples * channels * branch.positions * ELEMENT_BYTES[strategy.element]
        passes = 3 if layout.route == "re-read" else 1
        in_flight = maps * min(blocks, resident * device.multiprocessors)
        again = maps * (1 if in_flight <= device.l2_bytes else DEVICE_MEMORY)
        waiting = passes * -(-channels // layout.tile) * TILE_BYTES
        total = DEVICE_MEMORY * maps + (passes - 1) * again + waiting
        if branch.kind == "cbam":
            total += 2 * layout.slice * branch.hidden * 4
            total += strategy.split * layout.slot_floats * 4 + EXCHANGE_BYTES[strategy.exchange]
        each.append(total)
    if turns == 1:
        return float(max(each))
    return turns * sum(each) / 2 * (LONELY if resident < 2 else 1.0)


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


def with_tile(strategy: Strategy, branches: tuple[Branch, Branch], tile: int) -> Strategy:
    """The same strategy with tiles of at most `tile` channels: to make it re-read. Raises `UsageError` for tile < 1."""
    if tile < 1:
        raise UsageError(f"`tile` is {tile}, expected ≥ 1 channel")
    layouts = []
    for branch, layout in zip(branches, strategy.layouts, strict=True):
        smaller = min(tile, layout.tile)
        route: Route = (
            "re-read" if branch.kind == "cbam" and smaller < min(layout.slice, branch.channels) else layout.route
        )
        layouts.append(replace(layout, tile=smaller, route=route))
    return replace(strategy, layouts=(layouts[0], layouts[1]))
