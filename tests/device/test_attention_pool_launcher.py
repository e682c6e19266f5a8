"""The attention pool's launcher on the simulated device, whose kernels are the real source compiled for the host."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import UsageError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import AttentionPool, compiled
from mpmmu_rt.kernels.check import TOLERANCE, Shape
from mpmmu_rt.kernels.plan import LAUNCHES, candidates
from mpmmu_rt.kernels.weights import Array

from .simulated_cuda import OK, SimulatedCuda
from .simulated_cupy import HOPPER, CupyStream, SimulatedCupy

pytestmark = pytest.mark.slow  # the kernel's source is compiled for the CPU first


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    made = SimulatedCuda()
    yield made
    assert not made.violations


@pytest.fixture
def cupy(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> SimulatedCupy:
    fake = SimulatedCupy(cuda, HOPPER)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def embedding(cuda: SimulatedCuda, cupy: SimulatedCupy, pool: AttentionPool, maps: tuple[Array, Array]) -> Array:
    """What one launch gives."""
    first, second = (cupy.asarray(x) for x in maps)
    out = cupy.asarray(np.full((len(maps[0]), pool.columns), np.nan, np.float32))
    cupy.cuda.Device().synchronize()  # CuPy writes on a stream of its own
    error, stream = cuda.cudaStreamCreateWithFlags(1)
    assert error == OK
    pool.launch((first.data.ptr, second.data.ptr), out.data.ptr, len(maps[0]), CupyStream(cupy, stream))
    cuda.cudaStreamSynchronize(stream)
    got = np.empty((len(maps[0]), pool.columns), np.float32)
    ctypes.memmove(got.ctypes.data, out.data.ptr, got.nbytes)
    return got


def same(got: Array, shape: Shape, maps: tuple[Array, Array]) -> bool:
    return check.difference(got, check.reference(shape.pools(), maps)) <= TOLERANCE["float32"]


def maps_of(shape: Shape, cases: int) -> tuple[Array, Array]:
    first, second = (x.astype(np.float32) for x in check.random_maps(shape.pools(), cases, seed=5))
    return first, second


def test_a_second_pool_leaves_the_first_one_its_shared_memory(cuda: SimulatedCuda, cupy: SimulatedCupy) -> None:
    """Of any size, all pools of one element type are the same functions: CuPy has one limit for all of them."""
    large = Shape(4, ("cbam", 256, 9, 9), ("eca", 256, 9, 9), hidden=16)
    small = Shape(1, ("cbam", 8, 2, 2), ("eca", 8, 2, 2))
    first = AttentionPool(large.pools(), 4, "float32")
    branches = (small.pools()[0].branch, small.pools()[1].branch)
    found = candidates(branches, 1, "float32", False, HOPPER)
    alike = next(one for one in found if one.stages == first.strategy.stages)
    second = AttentionPool(small.pools(), 1, "float32", strategy=alike)
    assert len(cupy.functions) == len(LAUNCHES)
    assert max(first.strategy.shared) > 48 << 10 > max(second.strategy.shared)
    for pool, shape in ((first, large), (second, small)):
        maps = maps_of(shape, shape.cases)
        assert same(embedding(cuda, cupy, pool, maps), shape, maps)


def test_two_kernels_compile_at_once(cupy: SimulatedCupy) -> None:
    """CuPy lets go of the interpreter for the second or two that NVRTC takes; no lock of ours may be held meanwhile."""
    pools = Shape(2, ("eca", 24, 2, 3), ("none", 16, 3, 3)).pools()
    strategy = candidates((pools[0].branch, pools[1].branch), 2, "float32", False, HOPPER)[0]
    cupy.compiling = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: compiled(cupy, pools, strategy), range(2))
    assert first == second


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_fewer_cases_than_it_was_made_for(cuda: SimulatedCuda, cupy: SimulatedCupy, cases: int) -> None:
    """Also with the modalities' numbers as constants: 7 x 7 and 8 x 8 are specialised."""
    shape = Shape(3, ("cbam", 40, 7, 7), ("cbam", 24, 8, 8), hidden=6)
    pool = AttentionPool(shape.pools(), 3, "float32")
    assert any("KNOWN0" in options for options in cupy.launched)
    maps = maps_of(shape, cases)
    assert same(embedding(cuda, cupy, pool, maps), shape, maps)


def test_an_address_that_is_not_a_multiple_of_16_is_refused(cupy: SimulatedCupy) -> None:
    shape = Shape(1, ("none", 8, 2, 2), ("eca", 8, 2, 2))
    pool = AttentionPool(shape.pools(), 1, "float32")
    with pytest.raises(UsageError, match=r"a feature map begins at the address 0x24, expected a multiple of 16 bytes"):
        pool.launch((16, 36), 64, 1)


def test_without_cbam_two_launches_do(cuda: SimulatedCuda, cupy: SimulatedCupy) -> None:
    shape = Shape(2, ("eca", 24, 2, 3), ("none", 16, 3, 3))
    pool = AttentionPool(shape.pools(), 2, "float32")
    maps: Any = maps_of(shape, 2)
    cuda.order.clear()
    assert same(embedding(cuda, cupy, pool, maps), shape, maps)
    assert cuda.order.count("kernel") == 2
