"""The kernel's source under ThreadSanitizer and AddressSanitizer, and proof that they would see what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import SOURCE, Pool
from mpmmu_rt.kernels.check import TOLERANCE, Shape
from mpmmu_rt.kernels.plan import Device, Exchange, Strategy, candidates, with_tile

pytestmark = pytest.mark.slow  # the kernel's source is compiled for the CPU first

ROOMY = Device((9, 0), 64, 1 << 20, 1 << 21, 1 << 25)
# Fewer and more positions than threads: both ways in which threads share rows. 3 cases, 2 at once: one group not full.
SHAPES = {
    "few": Shape(3, ("cbam", 24, 1, 3), ("eca", 16, 2, 2)),
    "many": Shape(3, ("cbam", 16, 5, 5), ("cbam", 19, 3, 3), hidden=3),
}
NUMBERS = range(1, 18)  # of the barriers in attention_pool.cu


def strategy_of(pools: tuple[Pool, Pool], exchange: Exchange, *, re_read: bool, channels_last: bool) -> Strategy:
    branches = (pools[0].branch, pools[1].branch)
    split = 1 if exchange == "alone" else 2
    found = candidates(branches, 3, "float32", channels_last, ROOMY, threads=8)
    held = next(one for one in found if (one.exchange, one.split, one.samples) == (exchange, split, 2))
    return with_tile(held, branches, 5) if re_read else held


def run_one(run: Callable[..., Any], name: str, shape: str, strategy: dict[str, Any], **options: Any) -> Any:
    pools = SHAPES[shape].pools()
    first, second = (x.astype(np.float32) for x in check.random_maps(pools, 3, seed=1))
    ran = run(pools, (first, second), strategy_of(pools, **strategy), name, **options)
    if ran.status == 0:
        assert check.difference(ran.out, check.reference(pools, (first, second))) <= TOLERANCE["float32"]
    return ran


@pytest.mark.parametrize("name", ["thread", "address"])
@pytest.mark.parametrize("exchange", ["alone", "cluster", "grid"])
@pytest.mark.parametrize("re_read", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_clean(run: Callable[..., Any], name: str, exchange: Exchange, re_read: bool, shape: str) -> None:
    for channels_last in (False, True):
        strategy = {"exchange": exchange, "re_read": re_read, "channels_last": channels_last}
        ran = run_one(run, name, shape, strategy, launches=2)
        assert (ran.status, ran.stderr) == (0, "")


def where_it_matters(number: int) -> tuple[Exchange, bool, Literal["few", "many"]]:
    exchange: Exchange = "cluster" if number in (6, 15) else "grid" if number in (7, 8, 9, 12, 16, 17) else "alone"
    return exchange, number == 3, "few" if number == 1 else "many"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_missing_barrier_is_seen(run: Callable[..., Any], number: int) -> None:
    exchange, re_read, shape = where_it_matters(number)
    strategy = {"exchange": exchange, "re_read": re_read, "channels_last": False}
    assert run_one(run, "thread", shape, strategy).status == 0
    without = run_one(run, "thread", shape, strategy, missing_barrier=number, resident=4)
    assert without.status == 66
    # A block that doesn't wait for its ticket may take whatever lies there for its number, and die of that first.
    signs = ("data race", "SEGV") if number in (16, 17) else ("data race",)
    assert any(f"ThreadSanitizer: {sign}" in without.stderr for sign in signs)


def test_every_barrier_has_a_number_of_its_own() -> None:
    text = SOURCE.read_text()
    found = re.findall(r"(?:block_barrier<|MISSING_BARRIER != )(\d+)", text)
    assert sorted(map(int, found)) == list(NUMBERS)
    assert text.count("__syncthreads()") == 1


def test_a_read_of_one_element_beyond_a_feature_map_is_seen(run: Callable[..., Any]) -> None:
    strategy = {"exchange": "alone", "re_read": False, "channels_last": False}
    beyond = run_one(run, "address", "many", strategy, overread=1)
    assert beyond.status == 1
    assert "AddressSanitizer: heap-buffer-overflow" in beyond.stderr
