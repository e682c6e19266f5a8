"""In-block attention's own source, compiled for the CPU and run there: a request to `host/block_run.cpp`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.kernels.block_attention import ARRAYS, BLOCK, BlockShape, Plan
from mpmmu_rt.kernels.plan import ELEMENT_BYTES
from mpmmu_rt.kernels.source import FOLDER
from mpmmu_rt.kernels.weights import Array

HOST = Path(__file__).with_name("host")
LANES = 4  # of cuda_shim.h
SANITIZERS = {
    "plain": ("-O1",),
    # Nothing that they look for is optimised away, in half the time.
    "thread": ("-O0", "-fsanitize=thread"),
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
Build = Callable[[str], Path]


@dataclass(frozen=True)
class Ran:
    status: int
    y: Array  # as it lies in memory
    stderr: str


def compiled(folder: Path, name: str) -> Path:
    """The host build `name` in `folder`, made once."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no host compiler: g++ is missing")
    output = folder / name
    if not output.exists():
        flags = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
        command = [compiler, *flags, *SANITIZERS[name], "-I", str(FOLDER), str(HOST / "block_run.cpp")]
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return output


def run(
    program: Path,
    shape: BlockShape,
    maps: tuple[Array, Array, Array],
    *,
    threads: int = 8,
    resident: int = 2,
    launches: int = 1,
    missing_barrier: int = 0,
) -> Ran:
    """maps: inner, x and the residual, as they lie in memory. `resident` blocks at a time."""
    cases, maps = len(maps[1]), (maps[1], *maps[1:]) if shape.weights.kind == "eca" else maps
    plan = Plan(shape, cases, threads, LANES)
    record = plan.record()
    offsets = {name: field[1] for name, field in (BLOCK.fields or {}).items()}
    given = dict(zip(("inner", "x", "residual"), maps, strict=True))
    given |= {name: getattr(shape.weights, name) for name in ARRAYS if getattr(shape.weights, name).size}
    given |= {name: np.full(size, np.nan, np.float32) for name, size in plan.scratch().items()}
    y = np.full(maps[1].shape, 12345, maps[1].dtype)
    buffers = [*((name, one, False) for name, one in given.items()), ("y", y, True)]
    header = [list(ELEMENT_BYTES).index(shape.element), threads, resident, launches, missing_barrier]
    header += [*plan.blocks(), *plan.shared(), len(buffers), BLOCK.itemsize]
    request = np.array(header, np.int32).tobytes() + record.tobytes()
    for name, array, output in buffers:
        request += np.array([offsets[name], array.nbytes, output], np.int64).tobytes() + array.tobytes()
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], input=request, capture_output=True, timeout=60, env=environment, check=False)
    stderr = done.stderr.decode()
    if "FATAL: ThreadSanitizer: unexpected memory mapping" in stderr:
        pytest.skip("ThreadSanitizer can't start: this kernel randomises addresses too widely (vm.mmap_rnd_bits)")
    if done.returncode:
        return Ran(done.returncode, np.zeros(0), stderr)
    assert len(done.stdout) == y.nbytes, stderr
    return Ran(0, np.frombuffer(done.stdout, y.dtype).reshape(y.shape), stderr)
