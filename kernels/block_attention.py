"""The attention of an encoder's block on a GPU, fused with what follows it: y = relu(residual + attended x).

`block_attention.cu` computes. Maps lie channels last, [N, h, w, C], as tensor cores read them. It stands between the
convolutions of whoever runs them on the GPU as kernels of their own; an engine that runs a whole graph has no place
for it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import EngineError, UsageError

from .plan import ELEMENT_BYTES, ElementType
from .source import source_of
from .weights import Array

SOURCE = "block_attention.cu"
LAUNCHES = ("statistics", "hidden", "gate", "spatial", "apply")
KINDS = ("", "eca", "composed", "cbam")
ARRAYS = ("inner_weight", "inner_bias", "peak_weight", "peak_bias", "gate_weight", "gate_bias", "kernel")
SCRATCH = ("sums", "peaks", "hidden_units", "gate", "maps")
THREADS = 256
LANES = 32
ROWS = 4  # positions that a block of `statistics` reads at once, at the least
SAMPLES = 4  # of a block of `hidden` and `gate`
ENOUGH = 1024  # blocks that keep every multiprocessor busy
FLOATS = 48 << 8  # of shared memory that a block has without asking

_NUMBERS = ("kind", "channels", "inner_channels", "hidden", "height", "width", "size")
_PLAN = ("cases", "splits", "first", "samples", "hidden_columns", "gate_columns", "spatial_chunk", "apply_chunk")
# The kernel's parameter, passed by value: Block of block_attention.cu, field by field.
BLOCK = np.dtype(
    [
        *((name, np.uint64) for name in ("inner", "x", "residual", "y", *ARRAYS, *SCRATCH)),
        *((name, np.int32) for name in (*_NUMBERS, *_PLAN)),
    ],
    align=True,
)


BlockKind = Literal["eca", "composed", "cbam"]


def _none() -> Array:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class BlockWeights:
    """The attention of one block of C channels; arrays are float32, and empty where the kind has none.

    eca: kernel [k], over the channels' means. composed: the same times the block's last convolution, as a matrix over
    the means of the I channels which that reads: inner_weight [I, C], inner_bias [C]. cbam, with O hidden units:
    inner_weight [I, O], inner_bias [O], peak_weight [C, O], peak_bias [O], gate_weight [O, C], gate_bias [C],
    kernel [2, k, k] over (mean, maximum). Raises `UsageError` for arrays that don't fit each other.
    """

    kind: BlockKind
    channels: int
    inner_weight: Array = field(default_factory=_none)
    inner_bias: Array = field(default_factory=_none)
    peak_weight: Array = field(default_factory=_none)
    peak_bias: Array = field(default_factory=_none)
    gate_weight: Array = field(default_factory=_none)
    gate_bias: Array = field(default_factory=_none)
    kernel: Array = field(default_factory=_none)

    def __post_init__(self) -> None:
        c, o, i, k = self.channels, self.hidden, self.inner_channels, self.size
        want: dict[str, tuple[int, ...]] = {"kernel": (k,)}
        if self.kind == "composed":
            want = {"inner_weight": (i, c), "inner_bias": (c,)}
        elif self.kind == "cbam":
            want = {"inner_weight": (i, o), "inner_bias": (o,), "peak_weight": (c, o), "peak_bias": (o,)}
            want |= {"gate_weight": (o, c), "gate_bias": (c,), "kernel": (2, k, k)}
        got = {name: getattr(self, name).shape for name in ARRAYS if getattr(self, name).size}
        if got != want or ("kernel" in want and k % 2 == 0):
            raise UsageError(f"weights of {self.kind} attention have the shapes {got}, expected {want}, of an odd size")

    @property
    def inner_channels(self) -> int:
        return self.channels if self.kind == "eca" else int(self.inner_weight.shape[0])

    @property
    def hidden(self) -> int:
        return int(self.inner_bias.size) if self.kind == "cbam" else 0

    @property
    def size(self) -> int:
        return int(self.kernel.shape[-1])


@dataclass(frozen=True)
class BlockShape:
    """The weights, and the size of the maps: inner [N, h, w, I], x, residual and y [N, h, w, C]."""

    weights: BlockWeights
    height: int
    width: int
    element: ElementType

    def __post_init__(self) -> None:
        unit = 16 // ELEMENT_BYTES[self.element]
        found = (self.weights.channels, self.weights.inner_channels)
        if min(self.height, self.width) < 1 or any(one % unit for one in found):
            raise UsageError(
                f"maps of {self.height} x {self.width} with {found[0]} and {found[1]} channels in {self.element}, "
                f"expected sizes ≥ 1 and channels in whole units of {unit}",
                hint="run the graph's own operators instead",
            )

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def cbam(self) -> bool:
        return self.weights.kind == "cbam"


def _over(whole: int, part: int) -> int:
    return -(-whole // part)


@dataclass(frozen=True)
class Plan:
    """How the launches work on `cases` cases of one shape, with `threads` threads a block, `lanes` side by side."""

    shape: BlockShape
    cases: int
    threads: int = THREADS
    lanes: int = LANES

    @property
    def samples(self) -> int:
        """Cases that share the weights that a block of `hidden` and `gate` reads: fewer where memory is short."""
        weights = self.shape.weights
        length = weights.inner_channels + weights.channels * self.shape.cbam if weights.kind != "eca" else 0
        room = FLOATS - 2 * SAMPLES * self.threads
        return next((one for one in (4, 2, 1) if one * length <= room), 1)

    def numbers(self) -> dict[str, int]:
        """Fields of `Block`, by name."""
        shape, cases, positions = self.shape, self.cases, self.shape.positions
        tiles = max(self._tiles(shape.weights.inner_channels), self._tiles(shape.weights.channels))
        splits = min(_over(ENOUGH // 2, cases * tiles), 32, max(1, positions // (4 * ROWS)))
        weights, rows = shape.weights, max(1, self.threads // self.lanes)
        each = next((one for one in (4, 2) if cases * positions >= ENOUGH // 4 * one * rows), 1)
        most = max(1, min(64, 16384 // weights.channels))
        return {
            "kind": KINDS.index(weights.kind),
            "channels": weights.channels,
            "inner_channels": weights.inner_channels,
            "hidden": weights.hidden,
            "height": shape.height,
            "width": shape.width,
            "size": weights.size,
            "cases": cases,
            "splits": splits,
            "first": cases * splits * self._tiles(weights.inner_channels),
            "samples": self.samples,
            "hidden_columns": min(8, self.threads),
            "gate_columns": min(32, self.threads),
            "spatial_chunk": each * rows,
            "apply_chunk": max(1, min(most, _over(cases * positions, ENOUGH // 4))),
        }

    def _tiles(self, channels: int) -> int:
        """Blocks of `statistics` side by side."""
        units = channels * ELEMENT_BYTES[self.shape.element] // 16
        return _over(units, min(units, self.threads // ROWS))

    def blocks(self) -> tuple[int, ...]:
        """Of each launch, 0 for one that is not needed."""
        shape, found = self.shape, self.numbers()
        groups, cbam = _over(self.cases, found["samples"]), shape.cbam
        statistics = found["first"]
        if cbam:
            statistics += self.cases * found["splits"] * self._tiles(found["channels"])
        return (
            statistics,
            groups * _over(found["hidden"], found["hidden_columns"]) if cbam else 0,
            groups * _over(found["channels"], found["gate_columns"]),
            self.cases * _over(shape.positions, found["spatial_chunk"]) if cbam else 0,
            self.cases * _over(shape.positions, found["apply_chunk"]),
        )

    def shared(self) -> tuple[int, ...]:
        """Bytes of shared memory of a block of each launch."""
        shape, found, threads = self.shape, self.numbers(), self.threads
        unit = 16 // ELEMENT_BYTES[shape.element]
        samples, channels, inner = found["samples"], found["channels"], found["inner_channels"]
        lengths = {"cbam": found["hidden"], "composed": inner, "eca": found["gate_columns"] + found["size"]}
        spatial = channels + 2 * found["spatial_chunk"] * (self.lanes + 1)
        apply = channels
        if shape.cbam:
            chunk, size, width = found["apply_chunk"], found["size"], found["width"]
            rows = min(found["height"], _over(chunk - 1, width) + size)  # that the convolution of a chunk needs
            apply += _over(chunk, 4) * 4 + chunk * size + 2 * size * size + 2 * rows * width
        floats = (
            threads * unit,
            samples * (inner + channels) + 2 * SAMPLES * threads,
            samples * lengths[shape.weights.kind] + SAMPLES * threads,
            spatial,
            apply,
        )
        return tuple(4 * one if count else 0 for one, count in zip(floats, self.blocks(), strict=True))

    def scratch(self) -> dict[str, int]:
        """Floats of device memory that the launches hand on to each other, by field of `Block`."""
        found = self.numbers()
        parts, cases = self.cases * found["splits"], self.cases
        sizes = {"sums": parts * found["inner_channels"], "gate": cases * found["channels"]}
        if self.shape.cbam:
            sizes |= {"peaks": parts * found["channels"], "hidden_units": cases * found["hidden"]}
            sizes |= {"maps": cases * 2 * self.shape.positions}
        return sizes

    def options(self) -> tuple[str, ...]:
        """The macros that the kernels are compiled with."""
        found = self.numbers()
        known = (*_NUMBERS, "samples", "hidden_columns", "gate_columns")
        element = {"float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}[self.shape.element]
        return f"-DELEMENT={element}", f"-DKNOWN={','.join(str(found[name]) for name in known)}"

    def record(self) -> Array:
        """The kernels' parameter with every number set and every address null: BLOCK [1]."""
        made = np.zeros(1, BLOCK)
        for name, value in self.numbers().items():
            made[name] = value
        return made


class BlockAttention:
    """The compiled kernels with their weights and scratch memory on CuPy's current device, for up to `cases` cases.

    One launch at a time: two streams need two of these. Raises `MissingPackage` and `EngineError` (no device, or the
    kernels can't be built).
    """

    def __init__(self, shape: BlockShape, cases: int) -> None:
        self._cupy = cupy = require("cupy", "the kernels of in-block attention")
        self.shape, self.cases = shape, cases
        weights = shape.weights
        try:
            options = ("-std=c++17", *Plan(shape, cases).options())
            module = cupy.RawModule(code=source_of(SOURCE), options=options)
            self._kernels = [module.get_function(f"block_attention_{name}") for name in LAUNCHES]
            self._memory: list[Any] = []
            arrays = {name: np.ascontiguousarray(getattr(weights, name), np.float32) for name in ARRAYS}
            self._addresses = {name: self._keep(cupy.asarray(one)) for name, one in arrays.items() if one.size}
            sizes: dict[str, int] = {}
            for count in range(1, cases + 1):
                for name, size in Plan(shape, count).scratch().items():
                    sizes[name] = max(size, sizes.get(name, 0))
            self._addresses |= {name: self._keep(cupy.zeros(size, np.float32)) for name, size in sizes.items()}
            self._prepared: dict[int, tuple[Array, list[tuple[Any, int, int]]]] = {}
            cupy.cuda.Device().synchronize()  # what was written here is seen by every stream
        except cupy.cuda.compiler.CompileException as error:
            raise EngineError(f"the kernels of in-block attention can't be compiled: {error}") from error
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"the kernels of in-block attention can't be set up: {error}") from error

    def _keep(self, array: Any) -> int:
        self._memory.append(array)
        return int(array.data.ptr)

    def _prepare(self, cases: int) -> tuple[Array, list[tuple[Any, int, int]]]:
        if cases not in self._prepared:
            plan = Plan(self.shape, cases)
            record = plan.record()
            for name, address in self._addresses.items():
                record[name] = address
            every = zip(self._kernels, plan.blocks(), plan.shared(), strict=True)
            self._prepared[cases] = record, [one for one in every if one[1]]
        return self._prepared[cases]

    def launch(self, addresses: tuple[int, int, int], y: int, cases: int, stream: Any = None) -> None:
        """Enqueue the kernels on device addresses of inner (x where ECA is not composed), x and residual, and of y, all
        contiguous and channels last.

        Nothing is allocated and nothing is waited for. y may be residual. Raises `UsageError` for other `cases` than
        these were made for and for an address that is not a multiple of 16, and `EngineError` if CUDA refuses.
        """
        if not 1 <= cases <= self.cases:
            raise UsageError(f"a launch of {cases} cases, expected 1 to {self.cases}, for which this was made")
        if any(one % 16 for one in (*addresses, y)):
            raise UsageError(
                f"maps begin at {', '.join(hex(one) for one in (*addresses, y))}, expected multiples of 16",
                hint="copy it into an array of its own",
            )
        record, launches = self._prepare(cases)
        record["inner"], record["x"], record["residual"] = addresses
        record["y"] = y
        try:
            with stream or contextlib.nullcontext():
                for kernel, count, shared in launches:
                    kernel((count,), (THREADS,), (record,), shared_mem=shared)
        except RuntimeError as error:
            raise EngineError(f"in-block attention can't be launched: {error}") from error

    def resources(self) -> dict[str, dict[str, int]]:
        """What each launch uses: registers of a thread, bytes of local memory (spills)."""
        found = zip(LAUNCHES, self._kernels, strict=True)
        return {name: {"registers": int(k.num_regs), "local_bytes": int(k.local_size_bytes)} for name, k in found}


@dataclass(frozen=True)
class BlockFloor:
    """The least that must move, and what these launches move if no read is met by L2, in bytes of device memory."""

    least: int  # inner, x and the residual read once, y written once, the weights read once
    moved: int  # CBAM reads x three times, ECA that is not composed twice


def floor(shape: BlockShape, cases: int) -> BlockFloor:
    """Bytes for `cases` cases, whatever the plan."""
    weights, item = shape.weights, ELEMENT_BYTES[shape.element]
    one = cases * shape.positions * weights.channels * item
    inner = cases * shape.positions * weights.inner_channels * item if weights.kind != "eca" else 0
    held = 4 * sum(getattr(weights, name).size for name in ARRAYS)
    return BlockFloor(inner + 3 * one + held, inner + {"eca": 4, "composed": 3, "cbam": 5}[weights.kind] * one + held)
