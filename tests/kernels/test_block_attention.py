"""In-block attention's own source, run on the CPU: against the float64 reference, and under sanitizers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import UsageError
from mpmmu_rt.kernels.block_attention import BLOCK, FLOATS, SOURCE, BlockShape, BlockWeights, Plan, floor
from mpmmu_rt.kernels.block_check import RESNET, SMALL, TOLERANCE, Case, reference
from mpmmu_rt.kernels.check import difference, to_element
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, ElementType
from mpmmu_rt.kernels.source import source_of
from mpmmu_rt.kernels.weights import Array

from . import block_host
from .block_host import Ran

NUMBERS = range(1, 11)  # of the barriers


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("block")


def values(y: Array, element: ElementType) -> Array:
    """What lies in memory, as float64."""
    return (y.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if element == "bfloat16" else y


def in_float32(case: Case, seed: int = 1) -> tuple[Array, Array, Array]:
    inner, x, residual = (one.astype(np.float32) for one in case.maps(seed))
    return inner, x, residual


def run(program: Path, case: Case, element: ElementType, seed: int = 3, **options: Any) -> tuple[Ran, BlockShape, Any]:
    shape = case.shape(element)
    inner, x, residual = (to_element(one, element) for one in case.maps(seed))
    ran = block_host.run(program, shape, (inner[0], x[0], residual[0]), **options)
    return ran, shape, (inner[1], x[1], residual[1])


def check(program: Path, case: Case, element: ElementType, **options: Any) -> Ran:
    ran, shape, exact = run(program, case, element, **options)
    assert ran.status == 0, ran.stderr
    want = reference(shape, exact)
    assert difference(values(ran.y, element), want) <= TOLERANCE[element]
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("element", ELEMENT_BYTES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_it_says_what_the_reference_says(folder: Path, case: Case, element: ElementType) -> None:
    program = block_host.compiled(folder, "plain")
    first = check(program, case, element)
    other = check(program, case, element, threads=24, resident=3)
    assert difference(values(other.y, element), values(first.y, element)) <= TOLERANCE[element]
    again = check(program, case, element, launches=2)
    assert again.y.tobytes() == first.y.tobytes()


@pytest.mark.slow
def test_random_shapes(folder: Path) -> None:
    program, rng = block_host.compiled(folder, "plain"), np.random.default_rng(11)
    for _ in range(30):
        element: Any = rng.choice(list(ELEMENT_BYTES))
        channels, inner, cases, height, width = (int(rng.integers(1, most)) for most in (9, 6, 7, 12, 12))
        case = Case(cases, rng.choice(["eca", "composed", "cbam"]), 8 * channels, 8 * inner, height, width)
        case = replace(case, hidden=int(rng.integers(1, 20)), size=int(rng.choice([1, 3, 5, 7])))
        check(program, case, element, threads=int(rng.choice([4, 8, 20])), seed=int(rng.integers(1 << 30)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cbam", "composed", "eca"])
def test_rows_do_not_depend_on_the_others(folder: Path, kind: Any) -> None:
    """With the same plan. Another plan adds up in another order: within rounding."""
    program, case = block_host.compiled(folder, "plain"), Case(5, kind, 16, 8, 4, 5)
    shape, (inner, x, residual) = case.shape("float32"), in_float32(case)
    together = block_host.run(program, shape, (inner, x, residual))
    for n in range(5):
        here = slice(n, n + 1)
        alone = block_host.run(program, shape, (inner[here], x[here], residual[here]))
        assert difference(alone.y, together.y[here].astype(np.float64)) <= TOLERANCE["float32"]
        alike = np.arange(5)[:, None, None, None] == n
        others = block_host.run(program, shape, (inner * alike, x * alike, residual * alike))
        assert others.y[n].tobytes() == together.y[n].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["inner", "x", "residual"])
@pytest.mark.parametrize("kind", ["cbam", "composed", "eca"])
def test_not_a_number_is_kept(folder: Path, kind: Any, which: str) -> None:
    program, case = block_host.compiled(folder, "plain"), Case(2, kind, 16, 8, 4, 5)
    shape, maps = case.shape("float32"), in_float32(case)
    maps[("inner", "x", "residual").index(which)][1, 2, 3, 4] = np.nan
    y = block_host.run(program, shape, maps).y
    with np.errstate(invalid="ignore"):
        want = reference(shape, maps)
    assert np.isfinite(y[0]).all()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["thread", "address"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_clean(folder: Path, name: str, case: Case) -> None:
    elements: list[ElementType] = ["float32", "float16"] if name == "address" else ["float32"]
    for element in elements:
        assert check(block_host.compiled(folder, name), case, element, launches=2).stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_every_missing_barrier_is_seen(folder: Path, number: int) -> None:
    program, case = block_host.compiled(folder, "thread"), Case(3, "cbam", 24, 16, 3, 5, hidden=5)
    threads = {3: 32, 5: 64}.get(number, 8)  # more than columns: threads share them
    assert run(program, case, "float32", threads=threads)[0].status == 0
    without, _, _ = run(program, case, "float32", threads=threads, missing_barrier=number)
    assert without.status == 66
    assert "ThreadSanitizer: data race" in without.stderr


def test_every_barrier_has_a_number_of_its_own() -> None:
    found = re.findall(r"block_barrier<(\d+)", source_of(SOURCE))
    assert sorted(map(int, found)) == list(NUMBERS)


def test_the_parameter_is_laid_out_as_in_the_kernel() -> None:
    """The host build compares the sizes; the order of the fields is that of the source."""
    text = source_of(SOURCE)
    body = re.sub(r"//.*", "", text[text.index("struct Block {") : text.index("constexpr int SAMPLES")])
    names = re.findall(r"(\w+)(?=[,;])", body)
    assert names == list(BLOCK.names or ())


@pytest.mark.parametrize("case", RESNET, ids=str)
@pytest.mark.parametrize("cases", [1, 8, 32, 128])
def test_plans_of_the_reference_model(case: Case, cases: int) -> None:
    plan = Plan(case.shape("float16"), cases)
    assert max(plan.shared()) <= 4 * FLOATS
    assert plan.samples == 4
    blocks = plan.blocks()
    assert all(blocks) if case.kind == "cbam" else blocks[1] == blocks[3] == 0
    if cases >= 32:
        assert min(blocks[0], blocks[4]) >= 132, "each multiprocessor of an H100 has a block"


def test_the_floor_of_a_stage() -> None:
    """56 x 56 x 256 in FP16, 32 cases: 12.8 MB of inner, 51.4 MB each of x, residual and y."""
    found = floor(RESNET[0].shape("float16"), 32)
    maps = 32 * 56 * 56 * 2
    assert found.least == maps * (64 + 3 * 256) + 4 * sum((64 * 16, 16, 256 * 16, 16, 16 * 256, 256, 98))
    assert found.moved - found.least == 2 * maps * 256


def test_channels_that_are_no_whole_units_are_refused() -> None:
    with pytest.raises(UsageError, match=r"maps of 3 x 3 with 12 and 8 channels in float16, expected .* units of 8"):
        Case(1, "cbam", 12, 8, 3, 3).shape("float16")
    assert Case(1, "cbam", 12, 8, 3, 3).shape("float32").weights.channels == 12


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = Case(1, "cbam", 16, 8, 3, 3).shape("float32").weights
    with pytest.raises(UsageError, match=r"weights of cbam attention have the shapes .*, expected .*\(16, 5\)"):
        replace(weights, peak_weight=weights.peak_weight[:8])
    with pytest.raises(UsageError, match=r"weights of eca attention have the shapes .*, expected .*, of an odd size"):
        BlockWeights("eca", 16, kernel=np.zeros(4, np.float32))
