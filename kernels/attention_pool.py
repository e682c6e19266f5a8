"""The fused attention pool on a GPU: both modalities' attention and average pooling in one launch, through CuPy.

`attention_pool.cu` computes, `plan.py` decides how, `weights.py` holds the weights and the float64 reference. An
`AttentionPool` allocates when it is made and never again: a launch writes one struct on the host and calls the kernel,
so it can be captured into a CUDA graph. Whatever is here about speed is *not measured*.

CuPy compiles with `-ftz=true`: subnormal float32 numbers (below 1.2e-38, among feature maps those in float32 and
bfloat16) count as 0; subnormals of float16 are ordinary numbers in float32, in which all is computed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import EngineError, UsageError

from .plan import Branch, Device, ElementType, Strategy, choose
from .weights import Array, PoolWeights

SOURCE = Path(__file__).with_name("attention_pool.cu")
KINDS = ("none", "eca", "cbam")  # their numbers in the kernel
ARRAYS = ("fc1", "fc1_bias", "fc2", "fc2_bias", "kernel")

# The kernel's parameter, passed by value: Modality and Problem of attention_pool.cu, field by field.
MODALITY = np.dtype(
    [
        *((name, np.uint64) for name in ("x", *ARRAYS)),
        *((name, np.int32) for name in ("kind", "channels", "height", "width", "hidden", "size")),
        *((name, np.int32) for name in ("slice", "halo", "tile", "column")),
        *((f"at_{name}", np.int32) for name in ("stats", "hidden", "scratch", "slot", "maps", "gate")),
    ],
    align=True,
)
PROBLEM = np.dtype(
    [
        ("modality", MODALITY, 2),
        *((name, np.uint64) for name in ("out", "slots", "counters", "trace")),
        *((name, np.int32) for name in ("cases", "columns", "split", "slot_floats")),
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
    """The kernel's parameter with every number set and every address null: PROBLEM [1]."""
    record = np.zeros(1, PROBLEM)
    column = 0
    for i, (pool, layout) in enumerate(zip(pools, strategy.layouts, strict=True)):
        branch, into = pool.branch, record["modality"][0, i : i + 1]
        values = {"kind": KINDS.index(branch.kind), "column": column, "slice": layout.slice, "halo": layout.halo}
        values |= {name: getattr(branch, name) for name in ("channels", "height", "width", "hidden", "size")}
        values |= {name: getattr(layout, name) for name in MODALITY.names or () if name.startswith("at_")}
        values["tile"] = layout.tile
        for name, value in values.items():
            into[name] = value
        column += branch.channels
    record["cases"], record["columns"] = cases, column
    record["split"], record["slot_floats"] = strategy.split, strategy.slot_floats
    return record


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


def compiled(cupy: Any, strategy: Strategy, source: str | None = None) -> Any:
    """The kernel for `strategy`, as CuPy compiles it, or finds in its cache. source: instead of attention_pool.cu."""
    code = SOURCE.read_text(encoding="utf-8") if source is None else source
    module = cupy.RawModule(code=code, options=("-std=c++17", *strategy.options()))
    kernel = module.get_function("attention_pool")
    kernel.max_dynamic_shared_size_bytes = strategy.shared_bytes
    return kernel


class AttentionPool:
    """The compiled kernel with its weights and its scratch memory on CuPy's current device.

    For up to `cases` cases of feature maps in `element`, [N, C, h, w] or with `channels_last` [N, h, w, C]. `strategy`
    says how it runs (chosen by `plan.choose` unless given). One launch at a time: two streams need two of these, and
    after a launch that the device has aborted a new one is needed. Launches of more than `plan.LAUNCHES_AT_ONCE` of
    these at once may wait for each other for ever on a small device, where their strategy exchanges through the grid.
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
        items = self.strategy.items(cases)
        try:
            self._kernel = self._compile()
            self._problem = problem(pools, self.strategy, cases)
            self._memory: list[Any] = []
            for i, pool in enumerate(pools):
                for name, array in kernel_weights(pool.weights).items():
                    self._problem["modality"][name][0, i] = self._keep(cupy.asarray(array))
            if self.strategy.exchange == "grid":
                slots = items * self.strategy.split * self.strategy.slot_floats
                self._problem["slots"] = self._keep(cupy.zeros(slots, np.float32))
                self._problem["counters"] = self._keep(cupy.zeros(2 + items, np.uint32))
            self._trace = cupy.zeros(4, np.uint64)
            cupy.cuda.Device().synchronize()  # what was written here is seen by every stream
        except cupy.cuda.compiler.CompileException as error:
            raise EngineError(f"the attention pool kernel can't be compiled: {error}") from error
        except (RuntimeError, MemoryError) as error:  # CuPy's kinds of error: CUDA's, no NVRTC to be found; no memory
            raise EngineError(
                f"the attention pool kernel can't be set up: {error}",
                hint="NVRTC compiles it, which `pip install 'cupy-cuda13x[ctk]'` brings",
            ) from error

    def _compile(self) -> Any:
        return compiled(self._cupy, self.strategy)

    def _keep(self, array: Any) -> int:
        self._memory.append(array)
        return int(array.data.ptr)

    def launch(self, addresses: tuple[int, int], out: int, cases: int, stream: Any = None) -> None:
        """Enqueue the kernel on device addresses: two feature maps and float32 [cases, columns], all contiguous.

        Nothing is allocated, and nothing is waited for. The memory must stay valid until the stream has passed.
        Raises `UsageError` for other `cases` than this pool was made for, and `EngineError` if CUDA refuses the launch.
        """
        if not 1 <= cases <= self.cases:
            raise UsageError(f"a launch of {cases} cases, expected 1 to {self.cases}, for which this pool was made")
        record = self._problem
        record["modality"]["x"][0] = addresses
        record["out"], record["cases"] = out, cases
        blocks = self.strategy.items(cases) * self.strategy.split
        try:
            with stream or contextlib.nullcontext():
                self._kernel((blocks,), (self.strategy.threads,), (record,), shared_mem=self.strategy.shared_bytes)
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
        """Run once and count: the embedding, and what the blocks did (for tests: it waits for the device).

        Elements loaded from device memory of each modality, barriers passed of clusters and of the grid.
        """
        self._trace.fill(0)
        self._problem["trace"] = self._trace.data.ptr
        try:
            out = self(mammography, ultrasound)
        finally:
            self._problem["trace"] = 0
        names = ("mammography_elements", "ultrasound_elements", "cluster_barriers", "grid_barriers")
        return out, dict(zip(names, map(int, self._trace.get()), strict=True))

    def resources(self) -> dict[str, int]:
        """What the compiled kernel uses: registers of a thread, bytes of local memory (spills), of shared memory."""
        kernel = self._kernel
        return {
            "registers": int(kernel.num_regs),
            "local_bytes": int(kernel.local_size_bytes),
            "shared_bytes": self.strategy.shared_bytes + int(kernel.shared_size_bytes),
        }
