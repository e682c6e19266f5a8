"""What ptxas made of the kernels, by disassembly: what no source can show, and no GPU is needed to see."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mpmmu_rt.kernels import attention_pool, block_attention
from mpmmu_rt.kernels.block_attention import Plan
from mpmmu_rt.kernels.block_check import RESNET, SMALL
from mpmmu_rt.kernels.check import random_pool
from mpmmu_rt.kernels.machine_code import Function, disassemble, find_nvdisasm, machine_code
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, Branch, Device, ElementType, Strategy, candidates, choose
from mpmmu_rt.kernels.resources import find_nvrtc
from mpmmu_rt.kernels.source import source_of

pytestmark = pytest.mark.slow

HOPPER = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)
Compile = Callable[[int, str, tuple[str, ...]], Mapping[str, Function]]
# Instructions of an innermost loop for each element that it reads from shared memory, addresses and loads too. By
# kind: statistics of CBAM (sum, maximum), means of ECA, sums under the spatial gate, and under the channel gates.
# Nothing less than 3 is possible for the last in float32 (product, sum, maximum), and 4 in halves, which are converted;
# 16-byte reads of the map and of four gates at a time are 0.31 and 0.16 more, the rest counts and jumps.
HALVES = {"statistics": 2.8, "means": 2.3, "embedding": 2.65, "spatial": 4.4}
LIMITS: Mapping[ElementType, Mapping[str, float]] = {
    "float16": HALVES,
    "bfloat16": HALVES,
    "float32": {"statistics": 2.6, "means": 1.6, "embedding": 2.0, "spatial": 3.75},
}
MOST = 2000  # instructions of a launch: 4,900 missed the instruction cache of an H200


@pytest.fixture(scope="module")
def compiled() -> Compile:
    library, nvdisasm = find_nvrtc(), find_nvdisasm()
    if library is None or nvdisasm is None:
        pytest.skip("no NVRTC or no nvdisasm: a package of nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm is missing")
    nvrtc, program = library, nvdisasm

    def functions(architecture: int, source: str, options: tuple[str, ...]) -> Mapping[str, Function]:
        return disassemble(program, machine_code(nvrtc, architecture, source_of(source), options))

    return functions


def branches() -> tuple[Branch, Branch]:
    """The reference model's."""
    first = random_pool("cbam", 2048, 7, 7, seed=0, hidden=128)
    return first.branch, random_pool("eca", 2048, 7, 7, seed=1, size=7).branch


def of_each_stages(element: ElementType) -> list[Strategy]:
    found: dict[int, Strategy] = {}
    for one in candidates(branches(), 3, element, False, HOPPER):
        found.setdefault(one.stages, one)
    return list(found.values())


def bad_copies(functions: Mapping[str, Function]) -> list[str]:
    """Copies to shared memory whose address has a uniform register: ptxas 13.0 encodes them wrongly."""
    every = (text for one in functions.values() for text in one.instructions)
    return [text for text in every if "LDGSTS" in text and "+UR" in text.split(",")[0]]


@pytest.mark.parametrize("element", ELEMENT_BYTES)
def test_no_copy_has_an_address_that_is_encoded_wrongly(compiled: Compile, element: ElementType) -> None:
    """An H100 met an illegal instruction in strategies of one stage: `LDGSTS.E.BYPASS.128 [R21+UR0], desc[UR1]`."""
    for one in of_each_stages(element):
        functions = compiled(90, attention_pool.SOURCE, one.options(branches()))
        assert set(functions) == {f"attention_pool_{name}" for name in ("statistics", "hidden", "spatial", "embedding")}
        assert not bad_copies(functions)
    for case in (RESNET[0], RESNET[3], SMALL[0]):
        assert not bad_copies(compiled(90, block_attention.SOURCE, Plan(case.shape(element), 32).options()))


def test_left_alone_it_is_encoded_wrongly(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing here would be proven. Where a later ptxas does better, this says so."""
    text = source_of(attention_pool.SOURCE)
    assert text.count(" ^ threadIdx.y;") == 1
    monkeypatch.setitem(globals(), "source_of", lambda name: text.replace(" ^ threadIdx.y;", ";"))
    found = [bad_copies(compiled(90, "", one.options(branches()))) for one in of_each_stages("float32")]
    assert any(found)


MAXIMUM = re.compile(r"(@!?U?P\d )?(F|H|VH)MNMX")  # of floats, halves, three halves


def elements_of(loop: tuple[str, ...], item: int, kind: str) -> float:
    """Elements of a map that a loop reads, 16 bytes at a time; gates are read as 16 bytes of float32 each as well."""
    loads = sum("LDS.128" in text or "LDS.U.128" in text for text in loop)
    gates = {"embedding": 16 // item // 4, "spatial": 1 / 4}.get(kind, 0)  # reads for each of the map
    return loads * 16 // item / (1 + gates)


def is_of_maps(loop: tuple[str, ...], element: ElementType, kind: str) -> bool:
    """Told from the matrix products, which convert nothing and multiply what they add."""
    has = {name: any(name in text for text in loop) for name in (".128", "FFMA", "FADD", "HADD2.F32")}
    if not has[".128"] or (element == "float16" and not has["HADD2.F32"]):
        return False
    adds, peaks = has["FADD"] and not has["FFMA"], any(MAXIMUM.match(text) for text in loop)
    if kind == "embedding":
        return has["FFMA"] and len(loop) < 100
    return adds and peaks == (kind != "means")


@pytest.mark.parametrize("element", LIMITS)
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
def test_instructions_for_an_element(compiled: Compile, architecture: int, element: ElementType) -> None:
    options = choose(branches(), 32, element, False, HOPPER).options(branches())
    functions = compiled(architecture, attention_pool.SOURCE, options)
    for kind, limit in LIMITS[element].items():
        loops = functions[f"attention_pool_{'statistics' if kind == 'means' else kind}"].loops
        here = [loop for loop in loops if is_of_maps(loop, element, kind)]
        counts = [len(loop) / elements_of(loop, ELEMENT_BYTES[element], kind) for loop in here]
        assert counts, kind
        assert min(counts) <= limit, f"{kind}: {counts}"
    for one in functions.values():
        assert len(one.instructions) <= MOST
        maxima = [text for text in one.instructions if MAXIMUM.match(text)]
        assert all(".NAN" in text for text in maxima), "a maximum that loses NaN"
        assert maxima or "statistics" not in one.name


def test_a_loop_is_found(compiled: Compile) -> None:
    """Labels and branches as nvdisasm writes them: else the counts above would be of nothing."""
    body = ("IADD3 R1, R1, 0x1, RZ", "@!P0 BRA `(.L_x_0)", "EXIT")
    assert Function("f", body, {"L_x_0": 0}).loops == [body[:2]]
    assert Function("f", (*body[:1], "BRA `(.L_x_1)", "EXIT"), {"L_x_1": 2}).loops == []
    outer = (*body[:2], "@P1 BRA `(.L_x_1)")
    assert Function("f", outer, {"L_x_0": 0, "L_x_1": 0}).loops == [body[:2]]
    assert Path(str(find_nvdisasm())).is_file()
