"""The kernel's own source, run on the CPU, against the float64 reference, with proof of which strategy ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import Pool
from mpmmu_rt.kernels.check import LARGE, SMALL, TOLERANCE, Shape
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, Device, ElementType, Exchange, Strategy, candidates, with_tile
from mpmmu_rt.kernels.weights import Array

pytestmark = pytest.mark.slow  # the kernel's source is compiled for the CPU first

# Room for everything: the tests choose the strategy and not the device.
ROOMY = Device((9, 0), 64, 1 << 20, 1 << 21, 1 << 25)
HOPPER = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)
ADA = Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20)
THREADS = 16


def strategy_of(
    pools: tuple[Pool, Pool],
    cases: int,
    exchange: Exchange = "alone",
    *,
    element: ElementType = "float32",
    channels_last: bool = False,
    split: int = 1,
    samples: int = 1,
    threads: int = THREADS,
) -> Strategy:
    """The one candidate with these properties."""
    branches = (pools[0].branch, pools[1].branch)
    for one in candidates(branches, max(cases, samples), element, channels_last, ROOMY, threads):
        if (one.exchange, one.split, one.samples) == (exchange, split, samples):
            return one
    raise AssertionError("no such candidate")


def blocks_of(shape: Shape, exchange: Exchange, split: int) -> int:
    """At most one block for each 8 channels; one where CBAM, the only one that exchanges, is absent."""
    widest = max(shape.mammography[1], shape.ultrasound[1])
    fitting = [n for n in (2, 4, 8) if n <= split and n <= -(-widest // 8)]
    return fitting[-1] if exchange != "alone" and fitting else 1


def loads(pools: tuple[Pool, Pool], cases: int, strategy: Strategy) -> list[int]:
    """Elements that this strategy loads of each feature map."""
    counts = []
    for pool, layout in zip(pools, strategy.layouts, strict=True):
        c, total = pool.weights.channels, 0
        for rank in range(strategy.split):
            begin = min(rank * layout.slice, c)
            end = min(begin + layout.slice, c)
            if pool.weights.kind == "cbam":
                tiles = -(-(end - begin) // layout.tile)
                again = 0 if tiles < 2 else 2 * (end - begin)
                if tiles >= 2:  # B begins with A's last tile, C with B's last
                    last = (end - begin) - (tiles - 1) * layout.tile
                    again -= last + layout.tile
                total += end - begin + again
            else:
                total += min(end + layout.halo, c) - max(begin - layout.halo, 0)
        counts.append(cases * total * pool.height * pool.width)
    return counts


def check_run(run: Callable[..., Any], pools: tuple[Pool, Pool], cases: int, strategy: Strategy, **options: Any) -> Any:
    first, second = check.random_maps(pools, cases, seed=7)
    (x1, exact1), (x2, exact2) = (check.to_element(x, strategy.element) for x in (first, second))
    ran = run(pools, (x1, x2), strategy, **options)
    assert ran.status == 0, ran.stderr[-3000:]
    want = check.reference(pools, (exact1, exact2))
    assert check.difference(ran.out, want) <= TOLERANCE[strategy.element]
    return ran


EVERY_WAY = [("alone", 1), ("cluster", 2), ("cluster", 8), ("grid", 2), ("grid", 4)]


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize(("exchange", "split"), EVERY_WAY)
def test_matches_the_reference(run: Callable[..., Any], shape: Shape, exchange: Exchange, split: int) -> None:
    """Every shape in every element type and both layouts, in turn on 1 and 2 samples at once."""
    pools = shape.pools()
    if "cbam" not in (shape.mammography[0], shape.ultrasound[0]):
        exchange = "alone"
    blocks = blocks_of(shape, exchange, split)
    exchange = exchange if blocks > 1 else "alone"
    for i, element in enumerate(ELEMENT_BYTES):
        for channels_last in (False, True):
            samples = 1 + (i + channels_last) % 2 if exchange != "alone" or shape.cases > 1 else 1
            if "cbam" not in (shape.mammography[0], shape.ultrasound[0]):
                samples = 1
            strategy = strategy_of(
                pools,
                shape.cases,
                exchange,
                element=element,
                channels_last=channels_last,
                split=blocks,
                samples=samples,
            )
            ran = check_run(run, pools, shape.cases, strategy)
            assert ran.trace[:2] == loads(pools, shape.cases, strategy)
            cbam = sum(kind == "cbam" for kind in (shape.mammography[0], shape.ultrasound[0]))
            barriers = 2 * cbam * strategy.items(shape.cases) // 2 * blocks
            assert ran.trace[2:] == {"alone": [0, 0], "cluster": [barriers, 0], "grid": [0, barriers]}[exchange]


@pytest.mark.parametrize("shape", LARGE[:4], ids=str)
@pytest.mark.parametrize("element", ELEMENT_BYTES)
def test_the_product_size_and_others_as_devices_would_run_them(
    run: Callable[..., Any], shape: Shape, element: ElementType
) -> None:
    """The preferred strategy of each exchange on Hopper and Ada, with their limits of shared memory."""
    pools = shape.pools()
    (first, exact1), (second, exact2) = (check.to_element(x, element) for x in check.random_maps(pools, shape.cases, 7))
    want = check.reference(pools, (exact1, exact2))
    for device, channels_last in ((HOPPER, False), (ADA, True)):
        found = candidates((pools[0].branch, pools[1].branch), shape.cases, element, channels_last, device, threads=64)
        built = [one for one in found if one.samples in (1, 2, 8) and one.split <= 8]
        for exchange in {one.exchange for one in built}:
            strategy = next(one for one in built if one.exchange == exchange)
            ran = run(pools, (first, second), strategy)
            assert ran.status == 0, ran.stderr[-3000:]
            assert check.difference(ran.out, want) <= TOLERANCE[element]
            assert ran.trace[:2] == loads(pools, shape.cases, strategy)


CBAM_AND_ECA = Shape(5, ("cbam", 40, 3, 5), ("eca", 24, 5, 4))


@pytest.mark.parametrize(("exchange", "split"), EVERY_WAY[:1] + EVERY_WAY[3:] + [("cluster", 4)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tile", [1, 3, 8])
def test_re_reads_what_is_not_held(
    run: Callable[..., Any], exchange: Exchange, split: int, channels_last: bool, tile: int
) -> None:
    pools = CBAM_AND_ECA.pools()
    held = strategy_of(pools, 5, exchange, channels_last=channels_last, split=split)
    assert [layout.route for layout in held.layouts] == ["held", "one pass"]
    re_read = with_tile(held, (pools[0].branch, pools[1].branch), tile)
    assert [layout.route for layout in re_read.layouts] == ["re-read", "one pass"] or split * tile >= 40
    ran = check_run(run, pools, 5, re_read)
    assert ran.trace[:2] == loads(pools, 5, re_read)
    if split * tile < 40:
        assert ran.trace[0] > pools[0].weights.channels * 5 * 15


@pytest.mark.parametrize("threads", [1, 7, 32, 100])
@pytest.mark.parametrize("samples", [1, 2, 8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_number_of_threads_and_samples(
    run: Callable[..., Any], threads: int, samples: int, channels_last: bool
) -> None:
    pools = CBAM_AND_ECA.pools()
    strategy = strategy_of(pools, 5, "cluster", channels_last=channels_last, split=2, samples=samples, threads=threads)
    check_run(run, pools, 5, strategy)


@pytest.mark.parametrize(("exchange", "split"), EVERY_WAY)
def test_device_memory_is_read_once_where_the_map_is_held(
    run: Callable[..., Any], exchange: Exchange, split: int
) -> None:
    pools = Shape(2, ("cbam", 64, 3, 3), ("cbam", 64, 2, 2)).pools()
    strategy = strategy_of(pools, 2, exchange, split=split)
    assert [layout.route for layout in strategy.layouts] == ["held", "held"]
    assert check_run(run, pools, 2, strategy).trace[:2] == [2 * 64 * 9, 2 * 64 * 4]


@pytest.mark.parametrize("exchange", ["cluster", "grid"])
def test_launches_leave_nothing_behind(run: Callable[..., Any], exchange: Exchange) -> None:
    pools = CBAM_AND_ECA.pools()
    maps = tuple(x.astype(np.float32) for x in check.random_maps(pools, 5, seed=3))
    strategy = strategy_of(pools, 5, exchange, split=4, samples=2)
    once = run(pools, maps, strategy)
    again = run(pools, maps, strategy, launches=3, resident=12)
    assert once.out.tobytes() == again.out.tobytes()
    assert again.trace == [3 * count for count in once.trace]


def test_a_work_item_needs_its_own_blocks_only(run: Callable[..., Any]) -> None:
    """GRID: 4 blocks at a time, started in a shuffled order, do the work of 40."""
    pools = CBAM_AND_ECA.pools()
    strategy = strategy_of(pools, 5, "grid", split=4)
    assert strategy.items(5) * strategy.split == 40
    check_run(run, pools, 5, strategy, resident=4)


@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("kinds", [("cbam", "eca"), ("none", "cbam")])
def test_saturated_gates(run: Callable[..., Any], element: ElementType, kinds: tuple[Any, Any]) -> None:
    """Logits of several thousands: gates of exactly 0 and 1, no overflow."""
    shape = Shape(3, (kinds[0], 24, 3, 5), (kinds[1], 16, 4, 3))
    pools = tuple(
        replace(pool, weights=replace(pool.weights, **{k: getattr(pool.weights, k) * np.float32(3e3) for k in FIELDS}))
        for pool in shape.pools()
    )
    assert len(pools) == 2
    ran = check_run(run, pools, 3, strategy_of(pools, 3, "cluster", element=element, split=2))
    assert (ran.out == 0).any()


FIELDS = ("eca", "fc1_bias", "fc2", "fc2_bias", "spatial")


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4])
def test_small_and_large_feature_maps(run: Callable[..., Any], scale: float) -> None:
    pools = CBAM_AND_ECA.pools()
    first, second = check.random_maps(pools, 5, seed=5)
    maps = ((first * scale).astype(np.float32), (second * scale).astype(np.float32))
    ran = run(pools, maps, strategy_of(pools, 5, "cluster", split=2))
    assert check.difference(ran.out, check.reference(pools, maps)) <= TOLERANCE["float32"]


@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_finite_stays_visible(
    run: Callable[..., Any], element: ElementType, value: float, channels_last: bool
) -> None:
    """One bad element in one case: exactly the outputs that the formula makes bad are, all others are right."""
    pools = Shape(3, ("cbam", 24, 3, 5), ("eca", 40, 4, 3)).pools()
    for place in ((1, 0, 0, 0), (1, 7, 2, 1), (1, 23, 2, 2)):
        first, second = check.random_maps(pools, 3, seed=7)
        first[place] = second[place] = value
        (x1, exact1), (x2, exact2) = (check.to_element(x, element) for x in (first, second))
        strategy = strategy_of(pools, 3, "cluster", element=element, channels_last=channels_last, split=2, samples=2)
        out = run(pools, (x1, x2), strategy).out
        with np.errstate(invalid="ignore"):
            want = check.reference(pools, (exact1, exact2))
        assert (np.isnan(out) == np.isnan(want)).all()
        assert np.isnan(want).any() or value > 0
        finite = np.isfinite(want)
        assert (out[~finite & ~np.isnan(want)] == want[~finite & ~np.isnan(want)]).all()
        assert np.abs(out[finite] - want[finite]).max() <= TOLERANCE[element] * np.abs(want[finite]).max()
        if np.isnan(value):  # all of CBAM's case; of ECA's those within reach of the channel
            channel = place[1]
            near = {c for c in range(40) if abs(c - channel) <= 2}
            assert np.isnan(out[1, :24]).all()
            assert set(np.flatnonzero(np.isnan(out[1, 24:]))) == near
            assert not np.isnan(out[[0, 2]]).any()


def test_cases_do_not_depend_on_their_neighbours(run: Callable[..., Any]) -> None:
    pools = CBAM_AND_ECA.pools()
    maps = tuple(x.astype(np.float32) for x in check.random_maps(pools, 5, seed=11))
    strategy = strategy_of(pools, 5, "grid", split=2, samples=2)
    together: Array = run(pools, maps, strategy).out
    reverse: Array = run(pools, tuple(np.ascontiguousarray(x[::-1]) for x in maps), strategy).out
    assert together[:4].tobytes() == np.ascontiguousarray(reverse[:0:-1])[:4].tobytes()
