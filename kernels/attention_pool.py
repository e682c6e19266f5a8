"""The fused attention pool on a GPU: attention and average pooling of both modalities at once, through CuPy.

`attention_pool.cu` computes, `plan.py` decides how, `weights.py` holds the weights and the float64 reference. An
`AttentionPool` allocates when it is made and never again: to run it writes one struct on the host and calls up to four
kernels, so it can be captured into a CUDA graph.

CuPy compiles with `-ftz=true`: subnormal float32 numbers (below 1.2e-38, among feature maps those in float32 and
bfloat16) count as 0; subnormals of float16 are ordinary numbers in float32, in which all is computed.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import EngineError, UsageError

from .plan import KINDS, LAUNCHES, Branch, Device, ElementType, Layout, Strategy, blocks, choose
from .weights import Array, PoolWeights

SOURCE = Path(__file__).with_name("attention_pool.cu")
ARRAYS = ("fc1", "fc1_bias", "fc2", "fc2_bias", "kernel")
SCRATCH = ("means", "parts", "hidden_units", "gate", "maps")

# The kernel's parameter, passed by value: Modality and Problem of attention_pool.cu, field by field.
MODALITY = np.dtype(
    [
        *((name, np.uint64) for name in ("x", *ARRAYS, *SCRATCH)),
        *((name, np.int32) for name in ("kind", "channels", "height", "width", "hidden", "size")),
        *((name, np.int32) for name in ("slice", "samples", "chunks", "spatial_chunks", "wide", "ranges", "column")),
    ],
    align=True,
)
PROBLEM = np.dtype(
    [
        ("modality", MODALITY, 2),
        *((name, np.uint64) for name in ("out", "trace")),
        *((name, np.int32) for name in ("cases", "columns")),
        ("first", np.int32, 4),
    ],
    align=True,
)


@dataclass(frozen=True)
class Pool:
    """One modality: weights, and the size of the feature map [N, weights.channels, height, width]."""

    weights: PoolWeights
    height: int
    width: int

    @property
    def branch(self) -> Branch:
        w = self.weights
        return Branch(w.channels, self.height, self.width, w.kind, w.hidden, w.size)


def kernel_weights(weights: PoolWeights) -> dict[str, Array]:
    """The arrays as the kernel reads them, float32: matrices transposed, rows padded with zeros to a multiple of 4."""

    def padded(matrix: Array) -> Array:
        return np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 4))))

    arrays = {"kernel": weights.spatial if weights.kind == "cbam" else weights.eca}
    if weights.kind == "cbam":
        arrays |= {"fc1": padded(weights.fc1.T), "fc2": padded(weights.fc2.T)}
        arrays |= {"fc1_bias": weights.fc1_bias, "fc2_bias": weights.fc2_bias}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items() if array.size}


def problem(pools: tuple[Pool, Pool], strategy: Strategy, cases: int) -> Array:
    """The kernel's parameter for `cases` cases, with every number set and every address null: PROBLEM [1]."""
    record = np.zeros(1, PROBLEM)
    column = 0
    for i, (pool, layout) in enumerate(zip(pools, strategy.layouts, strict=True)):
        branch, into = pool.branch, record["modality"][0, i : i + 1]
        values = {"kind": KINDS.index(branch.kind), "column": column}
        values |= {name: getattr(branch, name) for name in ("channels", "height", "width", "hidden", "size")}
        values |= {name: getattr(layout, name) for name in ("slice", "samples", "wide", "ranges")}
        values["chunks"], values["spatial_chunks"] = layout.chunks_of(cases)
        for name, value in values.items():
            into[name] = value
        column += branch.channels
    record["cases"], record["columns"] = cases, column
    record["first"] = blocks(strategy.layouts[0], pools[0].branch, cases, strategy.threads)
    return record


def grids(pools: tuple[Pool, Pool], strategy: Strategy, cases: int) -> tuple[int, ...]:
    """Blocks of each launch, 0 for one that is not needed."""
    pairs = zip(strategy.layouts, pools, strict=True)
    each = [blocks(layout, pool.branch, cases, strategy.threads) for layout, pool in pairs]
    return tuple(first + second for first, second in zip(*each, strict=True))


def scratch(pool: Pool, layout: Layout, cases: int) -> dict[str, int]:
    """Floats of device memory that the launches of `cases` cases hand on to each other, by field of `Modality`."""
    branch, c = pool.branch, pool.weights.channels
    if branch.kind == "cbam":
        slices, width = -(-c // layout.slice), -(-branch.hidden // 4) * 4
        found = {"parts": slices * cases * 2 * width, "hidden_units": cases * width, "gate": cases * c}
        return found | {"maps": slices * cases * 2 * branch.positions}
    return {"means": cases * c} if branch.kind == "eca" else {}


def device_facts() -> Device:
    """Of CuPy's current device. Raises `MissingPackage` without CuPy and `EngineError` without a device."""
    cupy = require("cupy", "the attention pool kernel")
    if not cupy.cuda.is_available():
        raise EngineError("no CUDA device can be used here", hint="run the whole-graph engine instead")
    facts = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return Device(
        (facts["major"], facts["minor"]),
        facts["multiProcessorCount"],
        facts["sharedMemPerBlockOptin"],
        facts["sharedMemPerMultiprocessor"],
        facts["l2CacheSize"],
    )


_ATTRIBUTES = threading.Lock()


def compiled(cupy: Any, pools: tuple[Pool, Pool], strategy: Strategy, source: str | None = None) -> tuple[Any, ...]:
    """The kernels of the launches for `strategy`, as CuPy compiles them, or finds in its cache.

    source: instead of attention_pool.cu. CuPy gives the same functions to all who ask for the same source and options,
    each with one limit of shared memory: it is raised and never lowered.
    """
    code = SOURCE.read_text(encoding="utf-8") if source is None else source
    options = strategy.options((pools[0].branch, pools[1].branch))
    module = cupy.RawModule(code=code, options=("-std=c++17", *options))
    found = []
    with _ATTRIBUTES:
        for name, shared in zip(LAUNCHES, strategy.shared, strict=True):
            kernel = module.get_function(f"attention_pool_{name}")
            if kernel.max_dynamic_shared_size_bytes < shared:
                kernel.max_dynamic_shared_size_bytes = shared
            found.append(kernel)
    return tuple(found)


class AttentionPool:
    """The compiled kernel with its weights and its scratch memory on CuPy's current device.

    For up to `cases` cases of feature maps in `element`, [N, C, h, w] or with `channels_last` [N, h, w, C]. `strategy`
    says how it runs (chosen by `plan.choose` unless given). One launch at a time: two streams need two of these.
    Raises `MissingPackage`, `EngineError` (no device, or the kernel can't be built) and `UsageError` (nothing fits).
    """

    def __init__(
        self,
        pools: tuple[Pool, Pool],
        cases: int,
        element: ElementType,
        *,
        channels_last: bool = False,
        strategy: Strategy | None = None,
    ) -> None:
        self._cupy = cupy = require("cupy", "the attention pool kernel")
        branches = (pools[0].branch, pools[1].branch)
        self.device = device_facts()
        self.strategy = strategy or choose(branches, cases, element, channels_last, self.device)
        if (self.strategy.element, self.strategy.channels_last) != (element, channels_last):
            raise UsageError(
                f"the strategy is for {self.strategy.element}, channels_last={self.strategy.channels_last}"
            )
        self.pools, self.cases, self.columns = pools, cases, sum(branch.channels for branch in branches)
        try:
            self._kernels = self._compile()
            self._memory: list[Any] = []
            self._addresses: list[dict[str, int]] = []
            for pool, layout in zip(pools, self.strategy.layouts, strict=True):
                arrays = kernel_weights(pool.weights)
                found = {name: self._keep(cupy.asarray(array)) for name, array in arrays.items()}
                sizes = scratch(pool, layout, cases)
                found |= {name: self._keep(cupy.zeros(size, np.float32)) for name, size in sizes.items()}
                self._addresses.append(found)
            self._prepared: dict[int, tuple[Array, list[tuple[Any, int, int]]]] = {}
            self._prepare(cases)
            self._trace = cupy.zeros(2, np.uint64)
            self._tracing = False
            cupy.cuda.Device().synchronize()  # what was written here is seen by every stream
        except cupy.cuda.compiler.CompileException as error:
            raise EngineError(f"the attention pool kernel can't be compiled: {error}") from error
        except (RuntimeError, MemoryError) as error:  # CuPy's kinds of error: CUDA's, no NVRTC to be found; no memory
            raise EngineError(
                f"the attention pool kernel can't be set up: {error}",
                hint="NVRTC compiles it, which `pip install 'cupy-cuda13x[ctk]'` brings",
            ) from error

    def _compile(self) -> tuple[Any, ...]:
        return compiled(self._cupy, self.pools, self.strategy)

    def _keep(self, array: Any) -> int:
        self._memory.append(array)
        return int(array.data.ptr)

    def _prepare(self, cases: int) -> tuple[Array, list[tuple[Any, int, int]]]:
        """The kernels' parameter for `cases` cases, and kernel, blocks and shared memory of each launch."""
        if cases not in self._prepared:
            record = problem(self.pools, self.strategy, cases)
            for i, addresses in enumerate(self._addresses):
                for name, address in addresses.items():
                    record["modality"][name][0, i] = address
            counts = grids(self.pools, self.strategy, cases)
            every = zip(self._kernels, counts, self.strategy.shared, strict=True)
            self._prepared[cases] = record, [one for one in every if one[1]]
        return self._prepared[cases]

    def launch(self, addresses: tuple[int, int], out: int, cases: int, stream: Any = None) -> None:
        """Enqueue the kernels on device addresses: two feature maps and float32 [cases, columns], all contiguous.

        Nothing is allocated on the device, and nothing is waited for. The memory must stay valid until the stream has
        passed. Raises `UsageError` for other `cases` than this pool was made for and for a feature map that doesn't
        begin at a multiple of 16 bytes, and `EngineError` if CUDA refuses a launch.
        """
        if not 1 <= cases <= self.cases:
            raise UsageError(f"a launch of {cases} cases, expected 1 to {self.cases}, for which this pool was made")
        if any(address % 16 for address in addresses):
            raise UsageError(
                f"a feature map begins at the address {next(one for one in addresses if one % 16):#x}, "
                "expected a multiple of 16 bytes",
                hint="copy it into an array of its own",
            )
        record, launches = self._prepare(cases)
        record["modality"]["x"][0] = addresses
        record["out"], record["trace"] = out, self._trace.data.ptr if self._tracing else 0
        threads = self.strategy.threads
        try:
            with stream or contextlib.nullcontext():
                for kernel, count, shared in launches:
                    kernel((count,), (threads,), (record,), shared_mem=shared)
        except RuntimeError as error:  # CuPy's errors of CUDA's driver and of its runtime
            raise EngineError(f"the attention pool kernel ({self.strategy}) can't be launched: {error}") from error

    def __call__(self, mammography: Any, ultrasound: Any, *, out: Any = None, stream: Any = None) -> Any:
        """Two feature maps, CuPy arrays of one N, to CuPy float32 [N, columns]: into `out`, or a new array.

        bfloat16 travels as uint16. Raises `UsageError` for another shape, dtype or order; nothing is converted.
        """
        cases = mammography.shape[0] if mammography.ndim else 0
        dtype = "uint16" if self.strategy.element == "bfloat16" else self.strategy.element
        for name, array, pool in zip(("mammography", "ultrasound"), (mammography, ultrasound), self.pools, strict=True):
            c, h, w = pool.weights.channels, pool.height, pool.width
            shape = (cases, h, w, c) if self.strategy.channels_last else (cases, c, h, w)
            self._check(f"{name} feature map", array, dtype, shape)
        if out is None:
            with stream or contextlib.nullcontext():
                out = self._cupy.empty((cases, self.columns), np.float32)
        self._check("out", out, "float32", (cases, self.columns))
        self.launch((mammography.data.ptr, ultrasound.data.ptr), out.data.ptr, cases, stream)
        return out

    def _check(self, name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
        if not isinstance(array, self._cupy.ndarray):
            raise UsageError(f"`{name}` is a {type(array).__name__}, expected a CuPy array {dtype}{list(shape)}")
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            order = "contiguous" if array.flags.c_contiguous else "strided"
            raise UsageError(
                f"`{name}` is a {order} {array.dtype}{list(array.shape)}, expected a contiguous {dtype}{list(shape)}"
            )

    def traced(self, mammography: Any, ultrasound: Any) -> tuple[Any, dict[str, int]]:
        """Run once and count: the embedding, and how many elements were loaded of each modality's feature map.

        For tests: it waits for the device.
        """
        self._trace.fill(0)
        self._tracing = True
        try:
            out = self(mammography, ultrasound)
        finally:
            self._tracing = False
        return out, dict(zip(("mammography_elements", "ultrasound_elements"), map(int, self._trace.get()), strict=True))

    def resources(self) -> dict[str, dict[str, int]]:
        """What each launch uses: registers of a thread, bytes of local memory (spills), of shared memory of a block."""
        found = zip(LAUNCHES, self._kernels, self.strategy.shared, strict=True)
        return {
            name: {
                "registers": int(kernel.num_regs),
                "local_bytes": int(kernel.local_size_bytes),
                "shared_bytes": shared + int(kernel.shared_size_bytes),
            }
            for name, kernel, shared in found
        }
