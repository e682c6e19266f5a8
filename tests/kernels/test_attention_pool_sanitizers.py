"""The kernel's source under ThreadSanitizer and AddressSanitizer, and proof that they would see what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import SOURCE, Pool
from mpmmu_rt.kernels.check import TOLERANCE, Shape
from mpmmu_rt.kernels.plan import Device, Strategy, candidates
from mpmmu_rt.kernels.source import source_of

pytestmark = pytest.mark.slow  # the kernel's source is compiled for the CPU first

SMALL = Device((9, 0), 1, 1 << 20, 1 << 20, 1 << 25)  # so that a block has several tiles, one after the other
# Fewer and more positions than threads, of any size and specialised (12 and 18: see run.cpp). 3 cases, 2 at once: one
# tile is not full. Slices of 8: several in a feature map.
SHAPES = {
    "few": Shape(3, ("cbam", 24, 1, 3), ("eca", 16, 2, 2)),
    "many": Shape(3, ("cbam", 16, 5, 5), ("cbam", 19, 3, 3), hidden=3),
    "specialised": Shape(3, ("cbam", 24, 4, 3), ("cbam", 16, 3, 6)),
    "means": Shape(9, ("eca", 24, 4, 3), ("none", 16, 3, 6)),
}
NUMBERS = range(1, 11)  # of the barriers in attention_pool.cu


def strategy_of(
    pools: tuple[Pool, Pool], *, channels_last: bool, stages: int, samples: int = 2, threads: int = 8
) -> Strategy:
    branches = (pools[0].branch, pools[1].branch)
    found = candidates(branches, 9, "float32", channels_last, SMALL, threads=threads, specialised=(12, 18))
    chosen = [one for one in found if one.stages == stages and one.layouts[0].samples == samples]
    every = chosen or [one for one in found if one.stages == stages]  # without CBAM there is one size of tiles
    return min(every, key=lambda one: one.layouts[0].slice)


def run_one(run: Callable[..., Any], name: str, shape: str, strategy: dict[str, Any], **options: Any) -> Any:
    pools, cases = SHAPES[shape].pools(), SHAPES[shape].cases
    first, second = (x.astype(np.float32) for x in check.random_maps(pools, cases, seed=1))
    ran = run(pools, (first, second), strategy_of(pools, **strategy), name, **options)
    if ran.status == 0:
        assert check.difference(ran.out, check.reference(pools, (first, second))) <= TOLERANCE["float32"]
    return ran


@pytest.mark.parametrize("name", ["thread", "address"])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_clean(run: Callable[..., Any], name: str, stages: int, shape: str) -> None:
    for channels_last in (False, True):
        ran = run_one(run, name, shape, {"channels_last": channels_last, "stages": stages}, launches=2)
        assert (ran.status, ran.stderr) == (0, "")


@pytest.mark.parametrize("number", NUMBERS)
def test_every_missing_barrier_is_seen(run: Callable[..., Any], number: int) -> None:
    shape = {2: "few", 3: "means", 6: "few"}.get(number, "specialised")
    strategy = {"channels_last": False, "stages": 1 if number == 3 else 2, "samples": 1 if number in (2, 6) else 2}
    strategy["threads"] = 32 if number == 6 else 8  # more than rows: threads share them
    assert run_one(run, "thread", shape, strategy).status == 0
    without = run_one(run, "thread", shape, strategy, missing_barrier=number)
    assert without.status == 66
    assert "ThreadSanitizer: data race" in without.stderr


def test_every_barrier_has_a_number_of_its_own() -> None:
    text = source_of(SOURCE)
    found = re.findall(r"block_barrier<(\d+)", text)
    assert sorted(map(int, found)) == list(NUMBERS)
    assert text.count("__syncthreads()") == 1


def test_a_read_of_one_element_beyond_a_feature_map_is_seen(run: Callable[..., Any]) -> None:
    strategy = {"channels_last": False, "stages": 2}
    beyond = run_one(run, "address", "many", strategy, overread=1)
    assert beyond.status == 1
    assert "AddressSanitizer: heap-buffer-overflow" in beyond.stderr
