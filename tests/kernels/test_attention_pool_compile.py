"""The kernel compiles for every architecture, without spills, and with no header in reach."""

from __future__ import annotations

import shutil

import pytest

from mpmmu_rt.errors import EngineError
from mpmmu_rt.kernels import resources
from mpmmu_rt.kernels.plan import FIXED, STAGES
from mpmmu_rt.kernels.resources import (
    ARCHITECTURES,
    ELEMENTS,
    Instance,
    Resources,
    find_nvrtc,
    instances,
    parse,
    with_nvcc,
    with_nvrtc,
)

REPORT = """
ptxas info    : Compiling entry function 'one' for 'sm_86'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def chosen(architecture: int) -> list[Instance]:
    """Two of all instances, other ones on each architecture, so that every option occurs."""
    shift = ARCHITECTURES.index(architecture)
    part = [
        Instance(ELEMENTS[shift % 3], shift % 2 == 1, 0, STAGES[shift % len(STAGES)]),
        Instance(ELEMENTS[(shift + 1) % 3], False, FIXED[shift % len(FIXED)], STAGES[(shift + 2) % len(STAGES)]),
    ]
    assert set(part) <= set(instances())
    return part


def check(found: list[Resources], architecture: int) -> None:
    assert {one.name for one in found} == {name for one in chosen(architecture) for name in one.names}
    for one in found:
        assert (one.spill_bytes, one.stack_bytes) == (0, 0), one
        assert 16 <= one.registers <= 128, one  # two blocks of 256 threads for 65 536 registers
        assert one.shared_bytes == 0


def test_the_parts_cover_every_option() -> None:
    part = [one for architecture in ARCHITECTURES for one in chosen(architecture)]
    assert {one.positions for one in part} == {0, *FIXED}
    assert {one.stages for one in part} == set(STAGES)
    assert {one.element for one in part} == set(ELEMENTS)
    assert {one.channels_last for one in part} == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc(architecture: int) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no CUDA toolkit: nvcc is not on the PATH")
    check(with_nvcc(architecture, chosen(architecture)), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 120])
def test_nvrtc(architecture: int) -> None:
    library = find_nvrtc()
    if library is None:
        pytest.skip("no NVRTC: the package nvidia-cuda-nvrtc is missing")
    check(with_nvrtc(library, architecture, chosen(architecture)), architecture)


def test_nvrtc_is_given_the_options_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach the compiler, which takes them; it refuses one that it does not know."""
    library = find_nvrtc()
    if library is None:
        pytest.skip("no NVRTC: the package nvidia-cuda-nvrtc is missing")
    assert resources.CUPY_OPTIONS == ("-ftz=true", "--device-as-default-execution-space")
    monkeypatch.setattr(resources, "CUPY_OPTIONS", ("--of-cupy",))
    with pytest.raises(EngineError, match=r"NVRTC refuses the kernel for sm_80: .*--of-cupy"):
        with_nvrtc(library, 80, [Instance("float", False, 0, 1)])


def test_the_report_is_read() -> None:
    assert parse(REPORT) == [Resources("one", 40, 1024, 20, 16), Resources("two", 255, 0, 0, 0)]
    with pytest.raises(EngineError, match="names no kernel"):
        parse("ptxas info : 0 bytes gmem")


def test_a_compiler_that_refuses_is_an_error() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no CUDA toolkit: nvcc is not on the PATH")
    with pytest.raises(EngineError, match="nvcc refuses the kernel for sm_80"):
        with_nvcc(80, [Instance("float4", False, 0, 1)])
