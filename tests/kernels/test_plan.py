"""The choice of a strategy: pure functions of shapes and device facts."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mpmmu_rt.errors import UsageError
from mpmmu_rt.kernels.check import LARGE, SMALL, SPECIALISED, Shape
from mpmmu_rt.kernels.plan import (
    ELEMENT_BYTES,
    FIXED,
    Branch,
    Device,
    ElementType,
    blocks,
    candidates,
    choose,
    cost,
    floor,
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


@pytest.mark.parametrize("shape", [*SMALL, *SPECIALISED, *LARGE], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_candidate_fits_and_does_all_work(
    shape: Shape, device: str, element: ElementType, channels_last: bool
) -> None:
    pools, facts = shape.pools(), DEVICES[device]
    branches = (pools[0].branch, pools[1].branch)
    found = candidates(branches, shape.cases, element, channels_last, facts)
    assert len(set(found)) == len(found) >= 1
    for strategy in found:
        assert max(strategy.shared) <= facts.shared_per_block
        for layout, branch in zip(strategy.layouts, branches, strict=True):
            unit = 16 // ELEMENT_BYTES[element]
            specialised = not channels_last and branch.positions in FIXED and branch.channels % unit == 0
            assert layout.fixed == (branch.positions if specialised else 0)
            assert layout.slice % (8 if layout.fixed else 4) == 0
            assert not layout.fixed or layout.wide % unit == 0
            # What the blocks of a launch divide among themselves: tiles of a slice, and of a sample.
            slices, tiles = -(-branch.channels // layout.slice), -(-shape.cases // layout.samples)
            assert 1 <= layout.chunks <= tiles
            assert 1 <= layout.spatial_chunks <= tiles
            assert 1 <= layout.ranges <= -(-branch.channels // layout.wide)
            count = blocks(layout, branch, shape.cases, strategy.threads)
            assert count[0] == slices * layout.chunks
            assert (count[2] == count[3] == 0) == (branch.kind != "cbam")
            assert (count[1] == 0) == (branch.kind == "none")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cases", [1, 8, 32, 128])
def test_the_choice_is_the_cheapest_by_the_model(device: str, cases: int) -> None:
    for branches, element in product((PRODUCT, BIG), ELEMENT_BYTES):
        found = candidates(branches, cases, element, False, DEVICES[device])
        costs = [cost(one, branches, cases, DEVICES[device]) for one in found]
        assert costs == sorted(costs)
        assert choose(branches, cases, element, False, DEVICES[device]) == found[0]


def test_what_was_the_fastest_on_an_h200_is_what_is_chosen() -> None:
    """Of the strategies that were timed there: see benchmarks/results/nvidia-h200."""
    chosen = [choose(PRODUCT, cases, "float16", False, H200).layouts[0] for cases in (1, 8, 32, 128)]
    assert [(one.samples, one.slice) for one in chosen] == [(1, 64), (4, 64), (4, 64), (4, 64)]
    single = choose(PRODUCT, 32, "float32", False, H200).layouts[0]
    assert (single.samples, single.slice) == (2, 64)


def test_fewer_cases_than_the_most_take_fewer_blocks() -> None:
    chosen = choose(PRODUCT, 128, "float16", False, H200)
    counts = [blocks(chosen.layouts[0], PRODUCT[0], cases, chosen.threads) for cases in (1, 2, 16, 128)]
    assert counts == sorted(counts)
    assert counts[0][0] == -(-2048 // chosen.layouts[0].slice)


def test_a_specialised_modality_has_its_numbers_in_the_options() -> None:
    branches = (PRODUCT[0], Branch(2048, 9, 9, "eca", 0, 7))
    chosen = choose(branches, 8, "float16", False, H200)
    options = chosen.options(branches)
    assert {"-DELEMENT=Half", "-DCHANNELS_LAST=0", "-DPOSITIONS0=49", "-DPOSITIONS1=0"} <= set(options)
    layout = chosen.layouts[0]
    assert f"-DKNOWN0=2,2048,7,7,128,7,{layout.slice},{layout.samples},{layout.wide}" in options
    assert not any(one.startswith("-DKNOWN1") for one in options)


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


def test_a_map_without_positions_is_refused() -> None:
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
