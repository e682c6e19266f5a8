"""The launcher on a GPU. Without one these tests skip; what they assert has not been seen to hold on a GPU yet."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import EngineError, MissingPackage, UsageError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import AttentionPool, device_facts
from mpmmu_rt.kernels.check import LARGE, SMALL, SPECIALISED, TOLERANCE, Shape
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, ElementType, candidates


@pytest.fixture
def cupy() -> Any:
    module = pytest.importorskip("cupy", reason="CuPy is missing")
    if not module.cuda.is_available():
        pytest.skip("no CUDA device")
    return module


def on_device(cupy: Any, x: Any, channels_last: bool) -> Any:
    return cupy.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1) if channels_last else x))


@pytest.mark.parametrize("shape", [*SMALL, *SPECIALISED, *LARGE[:1]], ids=str)
@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_strategy_matches_the_reference(
    cupy: Any, shape: Shape, element: ElementType, channels_last: bool
) -> None:
    pools = shape.pools()
    maps = [check.to_element(x, element) for x in check.random_maps(pools, shape.cases, seed=2)]
    want = check.reference(pools, (maps[0][1], maps[1][1]))
    first, second = (on_device(cupy, raw, channels_last) for raw, _ in maps)
    branches = (pools[0].branch, pools[1].branch)
    for strategy in candidates(branches, shape.cases, element, channels_last, device_facts()):
        pool = AttentionPool(pools, shape.cases, element, channels_last=channels_last, strategy=strategy)
        out, counts = pool.traced(first, second)
        assert check.difference(out.get(), want) <= TOLERANCE[element], str(strategy)
        for name, branch in zip(("mammography", "ultrasound"), branches, strict=True):
            times = 3 if branch.kind == "cbam" else 1
            assert counts[f"{name}_elements"] == times * shape.cases * branch.channels * branch.positions
        assert all(one["local_bytes"] == 0 for one in pool.resources().values())


def test_allocates_nothing_and_can_be_captured(cupy: Any) -> None:
    pools = SMALL[0].pools()
    first, second = (cupy.asarray(x.astype(np.float32)) for x in check.random_maps(pools, 3, seed=2))
    pool = AttentionPool(pools, 3, "float32")
    out = cupy.zeros((3, pool.columns), np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    pool(first, second, out=out, stream=stream)
    stream.synchronize()
    want, used = out.get(), cupy.get_default_memory_pool().used_bytes()
    out.fill(0)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        pool(first, second, out=out, stream=stream)
        graph = stream.end_capture()
    for _ in range(3):
        graph.launch(stream=stream)
    stream.synchronize()
    assert out.get().tobytes() == want.tobytes()
    assert cupy.get_default_memory_pool().used_bytes() == used


def test_wrong_arrays_are_refused(cupy: Any) -> None:
    pools = SMALL[0].pools()
    first, second = (cupy.asarray(x.astype(np.float32)) for x in check.random_maps(pools, 3, seed=2))
    pool = AttentionPool(pools, 3, "float32")
    with pytest.raises(UsageError, match="expected a contiguous float32"):
        pool(first.astype(np.float64), second)
    with pytest.raises(UsageError, match="strided"):
        pool(first[:, :, ::-1], second)
    with pytest.raises(UsageError, match="a launch of 6 cases, expected 1 to 3"):
        pool(cupy.concatenate([first, first]), cupy.concatenate([second, second]))
    with pytest.raises(UsageError, match="expected a CuPy array"):
        pool(first, second.get())


def test_without_a_gpu_the_error_says_so() -> None:
    if importlib.util.find_spec("cupy") is None:
        with pytest.raises(MissingPackage, match="needs the package `cupy`"):
            device_facts()
    elif importlib.import_module("cupy").cuda.is_available():
        pytest.skip("there is a CUDA device")
    else:
        with pytest.raises(EngineError, match="no CUDA device"):
            device_facts()
