"""Compiling the kernel without a GPU, and what the compiler says that it uses: registers, shared memory, spills."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mpmmu_rt.errors import EngineError

from .attention_pool import SOURCE
from .plan import FIXED, LAUNCHES, STAGES, THREADS
from .source import source_of

# Ampere (A100, RTX 30, Orin), Ada, Hopper, Blackwell (B200, Thor, RTX 50): what the kernel is compiled for.
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 110, 120)
ELEMENTS = ("float", "Half", "Bfloat16")
# What CuPy 14 adds to the options of every RawModule.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


@dataclass(frozen=True)
class Instance:
    """One instantiation of the kernels."""

    element: str  # as in the kernel: float, Half, Bfloat16
    channels_last: bool
    positions: int  # of both modalities, specialised on; or 0
    stages: int

    @property
    def name(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        return f"pool_{self.element.lower()}_{layout}_{self.positions}_{self.stages}"

    @property
    def names(self) -> list[str]:
        """Of the kernels, one for each launch."""
        return [f"{self.name}_{launch}" for launch in LAUNCHES]

    @property
    def entries(self) -> str:
        """Source of the kernels."""
        arguments = f"{self.element}, {int(self.channels_last)}, {self.positions}, {self.positions}, {self.stages}"
        return "".join(
            f'extern "C" __global__ void __launch_bounds__({THREADS}, 2) {name}(const __grid_constant__ Problem p) '
            f"{{ attention_pool_block<{arguments}>(p, {number}); }}\n"
            for number, name in enumerate(self.names)
        )


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one kernel; dynamic shared memory is the strategy's and not in here."""

    name: str
    registers: int
    shared_bytes: int
    spill_bytes: int  # stores and loads
    stack_bytes: int


def instances() -> list[Instance]:
    """Every instance that exists for two feature maps of one size."""
    specialised = [Instance(*one) for one in product(ELEMENTS, (False,), FIXED, STAGES)]
    return [*specialised, *(Instance(*one) for one in product(ELEMENTS, (False, True), (0,), STAGES))]


def source(chosen: Iterable[Instance]) -> str:
    """The kernel's source with the entries of each instance."""
    return source_of(SOURCE) + "".join(one.entries for one in chosen)


def parse(report: str) -> list[Resources]:
    """The lines that `-Xptxas -v` writes for each kernel. Raises `EngineError` where there are none."""
    pattern = re.compile(
        r"Function properties for (?P<name>\w+)\s+(?:ptxas\s+\.\s+)?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s+"
        r"ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
    )
    found = []
    for match in pattern.finditer(report):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spills = int(match["stores"]) + int(match["loads"])
        shared_bytes = int(shared[1]) if shared else 0
        found.append(Resources(match["name"], int(match["registers"]), shared_bytes, spills, int(match["stack"])))
    if not found:
        raise EngineError(f"the compiler's report names no kernel, expected ptxas lines: {report[-500:]}")
    return found


def with_nvcc(architecture: int, chosen: Iterable[Instance]) -> list[Resources]:
    """Compile to machine code with nvcc. Raises `EngineError` where nvcc is missing or refuses."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise EngineError("`nvcc` is not on the PATH", hint="install the CUDA toolkit, 13.0 or later")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.cu"
        path.write_text(source(chosen), encoding="utf-8")
        command = [nvcc, "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", str(path)]
        done = subprocess.run([*command, "-o", f"{folder}/out"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"nvcc refuses the kernel for sm_{architecture}: {done.stderr[-2000:]}")
    return parse(done.stdout + done.stderr)


def find_nvrtc() -> Path | None:
    """libnvrtc of the package `nvidia-cuda-nvrtc`, wherever on `sys.path`; None where it is not installed."""
    for entry in sys.path:
        for path in sorted(Path(entry).glob("nvidia/*/lib/libnvrtc.so.*")):
            if "alt" not in path.name:
                return path
    return None


def with_nvrtc(library: Path, architecture: int, chosen: Iterable[Instance]) -> list[Resources]:
    """Compile to machine code with NVRTC, with CuPy's options, and with no header in reach. Raises `EngineError`."""
    for builtins in library.parent.glob("libnvrtc-builtins.so.*"):  # NVRTC opens it by its bare name
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(library))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text = source(chosen).encode()
    flags = (f"-arch=sm_{architecture}", "-std=c++17", *CUPY_OPTIONS, "--ptxas-options=-v")
    options = [flag.encode() for flag in flags]
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"attention_pool.cu", 0, None, None)
    if status:
        raise EngineError(f"NVRTC can't make a program: status {status}")
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise EngineError(f"NVRTC refuses the kernel for sm_{architecture}: {log.value.decode()[-2000:]}")
    return parse(log.value.decode())
