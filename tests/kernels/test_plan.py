"""The choice of a strategy: pure functions of shapes and device facts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest

from mpmmu_rt.errors import UsageError
from mpmmu_rt.kernels.check import LARGE, SMALL, Shape
from mpmmu_rt.kernels.plan import (
    ELEMENT_BYTES,
    RESERVED_BYTES,
    Branch,
    Device,
    ElementType,
    Strategy,
    candidates,
    choose,
    cost,
    floor,
    with_tile,
)

# From NVIDIA's data sheets and the CUDA programming guide's table of compute capabilities.
A100 = Device((8, 0), 108, 163 << 10, 164 << 10, 40 << 20)
RTX_4090 = Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20)
H200 = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)
RTX_5090 = Device((12, 0), 170, 99 << 10, 100 << 10, 96 << 20)
ORIN_NX = Device((8, 7), 8, 163 << 10, 164 << 10, 4 << 20)
DEVICES = {"A100": A100, "RTX 4090": RTX_4090, "H200": H200, "RTX 5090": RTX_5090, "Orin NX": ORIN_NX}
PRODUCT = (Branch(2048, 7, 7, "cbam", 128, 7), Branch(2048, 7, 7, "eca", 0, 7))
BIG = (Branch(2048, 32, 32, "cbam", 128, 7), Branch(2048, 32, 32, "eca", 0, 7))


def regions(strategy: Strategy, branch: Branch, index: int) -> list[tuple[int, int]]:
    """What the kernel writes to shared memory: (from, to) in bytes, by what `attention_pool.cu` puts there."""
    layout, b = strategy.layouts[index], strategy.samples
    span = min(layout.slice + 2 * layout.halo, branch.channels)
    maps = b * branch.positions
    sizes = {
        0: maps * layout.tile * ELEMENT_BYTES[strategy.element],
        layout.at_stats: span * 2 * b * 4,
        layout.at_scratch: 2 * strategy.threads * 4,
    }
    if branch.kind == "cbam":
        sizes[layout.at_hidden] = branch.hidden * b * 4
        sizes[layout.at_slot] = (-(-branch.hidden // 4) * 4 * 2 * b + 2 * maps) * 4
        sizes |= {layout.at_maps: 2 * maps * 4, layout.at_gate: maps * 4}
    return [(at, at + size) for at, size in sizes.items()]


@pytest.mark.parametrize("shape", [*SMALL, *LARGE], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("element", ELEMENT_BYTES)
def test_every_candidate_fits_and_nothing_overlaps(shape: Shape, device: str, element: ElementType) -> None:
    pools, facts = shape.pools(), DEVICES[device]
    branches = (pools[0].branch, pools[1].branch)
    found = candidates(branches, shape.cases, element, False, facts)
    assert len(set(found)) == len(found) >= 1
    for strategy in found:
        assert strategy.shared_bytes <= facts.shared_per_block
        assert strategy.exchange != "cluster" or (facts.capability >= (9, 0) and strategy.split <= 8)
        for index, branch in enumerate(branches):
            layout = strategy.layouts[index]
            assert layout.slice * strategy.split >= branch.channels
            assert layout.slice % 8 == layout.halo % 8 == 0
            assert all(at % 16 == 0 for at, _ in regions(strategy, branch, index))
            used = sorted(region for region in regions(strategy, branch, index) if region[0] < region[1])
            assert all(end <= start for (_, end), (start, _) in pairwise(used))
            assert used[-1][1] <= layout.shared_bytes
            assert (layout.route == "one pass") == (branch.kind != "cbam")
            assert layout.tile < 8 or layout.tile % 8 == 0  # whole 16-byte copies
            assert layout.route != "held" or layout.tile >= min(layout.slice, branch.channels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cases", [1, 8, 32, 128])
def test_the_choice_is_the_cheapest_by_the_model(device: str, cases: int) -> None:
    for branches, element in product((PRODUCT, BIG), ELEMENT_BYTES):
        found = candidates(branches, cases, element, False, DEVICES[device])
        costs = [cost(one, branches, cases, DEVICES[device]) for one in found]
        assert costs == sorted(costs)
        assert choose(branches, cases, element, False, DEVICES[device]) == found[0]


@pytest.mark.parametrize(
    ("device", "exchange"), [("A100", "grid"), ("RTX 4090", "grid"), ("H200", "cluster"), ("RTX 5090", "cluster")]
)
def test_the_product_is_held_by_several_blocks(device: str, exchange: Any) -> None:
    for cases in (1, 8):
        chosen = choose(PRODUCT, cases, "float16", False, DEVICES[device], exchange)
        assert chosen.split >= 8
        assert [layout.route for layout in chosen.layouts] == ["held", "one pass"]
        assert choose(PRODUCT, cases, "float16", False, DEVICES[device]).layouts[0].route == "held"


def test_one_block_holds_half_precision_on_hopper_and_nothing_on_ada() -> None:
    """2048 x 49: 200 704 bytes in float16, 401 408 in float32, beside what else a block needs."""
    routes = {}
    for (name, device), element in product(DEVICES.items(), ("float16", "float32")):
        alone = choose(PRODUCT, 1, element, False, device, "alone")  # type: ignore[arg-type]
        routes[name, element] = alone.layouts[0].route
        assert alone.split == 1
    assert {key for key, route in routes.items() if route == "held"} == {("H200", "float16")}


@pytest.mark.parametrize("device", DEVICES)
def test_two_launches_at_once_never_wait_for_each_other(device: str) -> None:
    """Blocks that spin keep their places: those of two launches must leave one for whom they wait."""
    facts = DEVICES[device]
    for branches, element, cases in product((PRODUCT, BIG), ELEMENT_BYTES, (1, 8, 32)):
        found = candidates(branches, cases, element, False, facts)
        grids = [one for one in found if one.exchange == "grid"]
        assert grids
        for one in grids:
            by_memory = facts.shared_per_multiprocessor // (one.shared_bytes + RESERVED_BYTES)
            by_registers = 1 if one.samples == 8 else 2  # __launch_bounds__ of the kernel
            room = facts.multiprocessors * min(by_memory, by_registers)
            assert 2 * one.split <= room, one


def test_a_small_device_splits_less() -> None:
    splits = {
        name: max(one.split for one in candidates(PRODUCT, 8, "float16", False, facts) if one.exchange == "grid")
        for name, facts in DEVICES.items()
    }
    assert splits == {"A100": 64, "RTX 4090": 64, "H200": 64, "RTX 5090": 64, "Orin NX": 8}
    assert choose(PRODUCT, 8, "float16", False, ORIN_NX).split == 4
    one_multiprocessor = replace(ORIN_NX, multiprocessors=1)
    assert {one.exchange for one in candidates(PRODUCT, 8, "float16", False, one_multiprocessor)} == {"alone"}


def test_large_maps_of_many_cases_are_re_read() -> None:
    chosen = choose(BIG, 128, "float32", False, H200)
    assert chosen.layouts[0].route == "re-read"
    assert "re-read + one pass" in str(chosen)


def test_without_cbam_no_block_waits() -> None:
    branches = (Branch(2048, 7, 7, "none", 0, 0), Branch(2048, 7, 7, "eca", 0, 7))
    found = candidates(branches, 1, "float16", True, H200)
    assert {one.exchange for one in found} == {"alone"}
    assert max(one.split for one in found) == 64
    assert all(one.shared_bytes <= H200.shared_per_multiprocessor // 2 - RESERVED_BYTES for one in found[:1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": Device((7, 5), 40, 64 << 10, 64 << 10, 4 << 20)}, "compute capability 7.5, expected 8.0"),
        ({"cases": 0}, "`cases` is 0"),
        ({"branches": (Branch(8, 300, 300, "cbam", 1, 7), PRODUCT[1])}, "300 x 300 and 7 x 7 positions don't fit"),
    ],
)
def test_refusals(arguments: dict[str, Any], said: str) -> None:
    given = {"branches": PRODUCT, "cases": 1, "element": "float16", "channels_last": False, "device": H200}
    with pytest.raises(UsageError, match=said):
        candidates(**(given | arguments))  # type: ignore[arg-type]


def test_refusals_of_an_exchange_a_tile_and_a_size() -> None:
    with pytest.raises(UsageError, match=r"`cluster` fits no strategy here, expected one of \['alone', 'grid'\]"):
        choose(PRODUCT, 1, "float16", False, A100, "cluster")
    with pytest.raises(UsageError, match="`tile` is 0"):
        with_tile(choose(PRODUCT, 1, "float16", False, A100), PRODUCT, 0)
    with pytest.raises(UsageError, match="expected sizes ≥ 1"):
        Branch(8, 0, 7, "none", 0, 0)


def test_floor_of_the_product_by_hand() -> None:
    got = floor(PRODUCT, 32, "float16")
    maps = 2 * 32 * 2048 * 49 * 2
    weights = (2048 * 128 * 2 + 128 + 2048 + 2 * 49) * 4 + 7 * 4
    assert got.bytes == maps + weights + 32 * 4096 * 4
    elements = 32 * 2048 * 49
    cbam = 7 * elements + 32 * (6 * 2048 * 128 + 49 * 4 * 49)
    assert got.operations == cbam + elements + 32 * 2048 * 15
    assert got.ms(1e12, 1e20) == pytest.approx(got.bytes * 1e-9)
    assert got.ms(1e20, 1e20, launch_ms=0.25) == 0.25
