"""What ptxas makes of the kernels, read without a GPU: NVRTC compiles, nvdisasm says which instructions there are."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mpmmu_rt.errors import EngineError

from .resources import CUPY_OPTIONS

_LABEL = re.compile(r"^\s*\.?(L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?P<text>.*?)\s*;")
_BRANCH = re.compile(r"BRA.*\.?\(?\.(L_x_\d+)\)?")


def find_nvdisasm() -> Path | None:
    """The program of the package `nvidia-cuda-nvdisasm`, wherever on `sys.path`; None where it is not installed."""
    found = (path for entry in sys.path for path in sorted(Path(entry).glob("nvidia/*/bin/nvdisasm")))
    return next(found, None)


def machine_code(library: Path, architecture: int, text: str, options: Sequence[str]) -> bytes:
    """A cubin of `text`, by NVRTC (`library`, see `resources.find_nvrtc`) with CuPy's options. Raises `EngineError`."""
    for builtins in library.parent.glob("libnvrtc-builtins.so.*"):  # NVRTC opens it by its bare name
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc, program, size = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t()
    flags = [one.encode() for one in (f"-arch=sm_{architecture}", "-std=c++17", *CUPY_OPTIONS, *options)]
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    status = status or nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    status = status or nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    status = status or nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise EngineError(f"NVRTC makes no machine code for sm_{architecture}: status {status}")
    return code.raw


@dataclass(frozen=True)
class Function:
    """A kernel's instructions, in order, and its labels, each by the number of the instruction behind it."""

    name: str
    instructions: tuple[str, ...]
    labels: dict[str, int]

    @cached_property
    def loops(self) -> list[tuple[str, ...]]:
        """The innermost: instructions from a label to the branch back to it, with no other such branch between."""
        found = []
        for at, text in enumerate(self.instructions):
            match = _BRANCH.search(text)
            start = self.labels.get(match[1], at + 1) if match else at + 1
            if start <= at:
                found.append((start, at))
        return [
            self.instructions[start : end + 1]
            for start, end in found
            if not any(start <= other[0] and other[1] < end for other in found)
        ]


def disassemble(nvdisasm: Path, code: bytes) -> dict[str, Function]:
    """The kernels of a cubin, by name. Raises `EngineError` where nvdisasm refuses it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run([str(nvdisasm), "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"nvdisasm refuses the machine code: {done.stderr.strip()[-500:]}")
    found: dict[str, Function] = {}
    parts = re.split(r"^\s*\.text\.(\w+):\s*$", done.stdout, flags=re.MULTILINE)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        instructions, labels = list[str](), dict[str, int]()
        for line in body.splitlines():
            if match := _LABEL.match(line):
                labels[match[1]] = len(instructions)
            elif match := _INSTRUCTION.match(line):
                instructions.append(match["text"])
        found[name] = Function(name, tuple(instructions), labels)
    return found
