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
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, Device, ElementType, Strategy, candidates
from mpmmu_rt.kernels.weights import Array

pytestmark = pytest.mark.slow  # the kernel's source is compiled for the CPU first

# Room for everything: the tests choose the strategy and not the device.
ROOMY = Device((9, 0), 64, 1 << 20, 1 << 21, 1 << 25)
HOPPER = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)
ADA = Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20)
THREADS = 12
FIXED = (12, 18)  # positions that the host build is specialised on: of the first modality, of the second


def strategies_of(
    pools: tuple[Pool, Pool],
    cases: int,
    element: ElementType = "float32",
    *,
    channels_last: bool = False,
    specialised: bool = True,
    threads: int = THREADS,
    device: Device = ROOMY,
) -> list[Strategy]:
    """All candidates. Each modality has another specialised size in the host build."""
    branches = (pools[0].branch, pools[1].branch)
    sizes = tuple(n for n, branch in zip(FIXED, branches, strict=True) if specialised and branch.positions == n)
    return candidates(branches, cases, element, channels_last, device, threads, sizes)


def some(found: list[Strategy], count: int = 4) -> list[Strategy]:
    """Spread over all that there are, with every number of stages."""
    spread = found[:: max(1, len(found) // count)][:count]
    stages = {one.stages for one in spread}
    return [*spread, *{one.stages: one for one in found if one.stages not in stages}.values()]


def loads(pools: tuple[Pool, Pool], cases: int) -> list[int]:
    """Elements that are loaded of each feature map: CBAM needs each three times, the others once."""
    return [
        cases * pool.weights.channels * pool.height * pool.width * (3 if pool.weights.kind == "cbam" else 1)
        for pool in pools
    ]


def check_run(run: Callable[..., Any], pools: tuple[Pool, Pool], cases: int, strategy: Strategy, **options: Any) -> Any:
    first, second = check.random_maps(pools, cases, seed=7)
    (x1, exact1), (x2, exact2) = (check.to_element(x, strategy.element) for x in (first, second))
    ran = run(pools, (x1, x2), strategy, **options)
    assert ran.status == 0, ran.stderr[-3000:]
    want = check.reference(pools, (exact1, exact2))
    assert check.difference(ran.out, want) <= TOLERANCE[strategy.element], str(strategy)
    assert ran.trace == loads(pools, cases)
    return ran


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_matches_the_reference(run: Callable[..., Any], shape: Shape, channels_last: bool) -> None:
    """Every shape in every element type and both layouts, in several strategies."""
    pools = shape.pools()
    for element in ELEMENT_BYTES:
        for strategy in some(strategies_of(pools, shape.cases, element, channels_last=channels_last)):
            check_run(run, pools, shape.cases, strategy)


# Whole groups of 4 and of 8 channels, and positions that the host build is specialised on: both modalities, one, none.
SPECIALISED = (
    Shape(3, ("cbam", 40, 4, 3), ("cbam", 24, 3, 6)),
    Shape(3, ("cbam", 72, 3, 4), ("eca", 136, 6, 3), hidden=9),
    Shape(2, ("eca", 16, 4, 3), ("cbam", 8, 6, 3), size=3),
    Shape(4, ("none", 8, 2, 6), ("none", 96, 3, 6)),
    Shape(3, ("cbam", 32, 4, 3), ("eca", 24, 2, 2)),
    Shape(3, ("eca", 40, 2, 3), ("cbam", 48, 18, 1), hidden=4),
)


@pytest.mark.parametrize("shape", SPECIALISED, ids=str)
@pytest.mark.parametrize("element", ELEMENT_BYTES)
def test_specialised_tiles_match_the_reference(run: Callable[..., Any], shape: Shape, element: ElementType) -> None:
    """In every strategy that there is; each says the same to the bit as with other stages."""
    pools = shape.pools()
    found = strategies_of(pools, shape.cases, element)
    assert any(layout.fixed for one in found for layout in one.layouts)
    said: dict[object, bytes] = {}
    for strategy in found:
        out = check_run(run, pools, shape.cases, strategy).out.tobytes()
        tiles = tuple((one.slice, one.samples, one.fixed) for one in strategy.layouts)
        assert said.setdefault(tiles, out) == out


@pytest.mark.parametrize("element", ELEMENT_BYTES)
def test_the_product_size_as_devices_would_run_it(run: Callable[..., Any], element: ElementType) -> None:
    """7 x 7 as it is specialised and as any size is, and 32 x 32, within the shared memory of Hopper and Ada."""
    for shape, device, specialised in ((LARGE[0], HOPPER, True), (LARGE[0], ADA, False), (LARGE[1], HOPPER, False)):
        pools = shape.pools()
        branches = (pools[0].branch, pools[1].branch)
        found = candidates(branches, shape.cases, element, False, device, THREADS, (49,) if specialised else ())
        assert {layout.fixed for layout in found[0].layouts} == {49 if specialised else 0}
        check_run(run, pools, shape.cases, found[0])


CBAM_AND_ECA = Shape(5, ("cbam", 40, 3, 5), ("eca", 24, 5, 4))


@pytest.mark.parametrize("threads", [1, 7, 32, 100])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_number_of_threads(run: Callable[..., Any], threads: int, channels_last: bool) -> None:
    """Where nothing is specialised."""
    pools = CBAM_AND_ECA.pools()
    for strategy in some(strategies_of(pools, 5, channels_last=channels_last, threads=threads), 2):
        check_run(run, pools, 5, strategy)


def test_launches_leave_nothing_behind(run: Callable[..., Any]) -> None:
    """Three in a row, of many blocks at once, say the same to the bit."""
    pools = SPECIALISED[0].pools()
    maps = tuple(x.astype(np.float32) for x in check.random_maps(pools, 5, seed=3))
    for strategy in some(strategies_of(pools, 5)):
        once = run(pools, maps, strategy)
        again = run(pools, maps, strategy, launches=3, resident=5)
        assert once.out.tobytes() == again.out.tobytes()
        assert again.trace == [3 * count for count in once.trace]


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
    ran = check_run(run, pools, 3, strategies_of(pools, 3, element)[0])
    assert (ran.out == 0).any()


FIELDS = ("eca", "fc1_bias", "fc2", "fc2_bias", "spatial")


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4])
def test_small_and_large_feature_maps(run: Callable[..., Any], scale: float) -> None:
    pools = CBAM_AND_ECA.pools()
    first, second = check.random_maps(pools, 5, seed=5)
    maps = ((first * scale).astype(np.float32), (second * scale).astype(np.float32))
    ran = run(pools, maps, strategies_of(pools, 5)[0])
    assert check.difference(ran.out, check.reference(pools, maps)) <= TOLERANCE["float32"]


@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", ["specialised", "any", "channels last"])
def test_what_is_not_finite_stays_visible(
    run: Callable[..., Any], element: ElementType, value: float, way: str
) -> None:
    """One bad element in one case: exactly the outputs that the formula makes bad are, all others are right."""
    pools = Shape(3, ("cbam", 24, 4, 3), ("eca", 40, 6, 3)).pools()
    for place in ((1, 0, 0, 0), (1, 7, 2, 1), (1, 23, 2, 2)):
        first, second = check.random_maps(pools, 3, seed=7)
        first[place] = second[place] = value
        (x1, exact1), (x2, exact2) = (check.to_element(x, element) for x in (first, second))
        found = strategies_of(pools, 3, element, channels_last=way == "channels last", specialised=way == "specialised")
        assert [layout.fixed for layout in found[0].layouts] == ([12, 18] if way == "specialised" else [0, 0])
        strategy = next(one for one in found if one.layouts[0].samples == 2)
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
    strategy = next(one for one in strategies_of(pools, 5) if one.layouts[0].samples == 2)
    together: Array = run(pools, maps, strategy).out
    reverse: Array = run(pools, tuple(np.ascontiguousarray(x[::-1]) for x in maps), strategy).out
    assert together[:4].tobytes() == np.ascontiguousarray(reverse[:0:-1])[:4].tobytes()
