"""The kernel's own source, compiled for the CPU, with and without sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mpmmu_rt.kernels.attention_pool import PROBLEM, Pool, grids, kernel_weights, problem, scratch
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, Strategy
from mpmmu_rt.kernels.source import FOLDER
from mpmmu_rt.kernels.weights import Array

Build = Literal["plain", "thread", "address"]

HOST = Path(__file__).with_name("host")
FLAGS: dict[Build, tuple[str, ...]] = {
    "plain": ("-O1",),
    # Nothing that they look for is optimised away, in half the time; lines in what they report, and no more.
    "thread": ("-O0", "-DFEW", "-g1", "-fsanitize=thread"),
    "address": ("-O0", "-DFEW", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


@dataclass(frozen=True)
class Ran:
    """What came out of the host build. trace: elements loaded of each modality."""

    status: int
    out: Array
    trace: list[int]
    stderr: str


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Build], Path]:
    """Compile the host build of that name, once."""
    folder, built = tmp_path_factory.mktemp("host"), dict[Build, Path]()

    def compiled(name: Build) -> Path:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no host compiler: g++ is missing")
        if name not in built:
            flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
            command = [compiler, *flags, *FLAGS[name], "-I", str(FOLDER), str(HOST / "run.cpp")]
            done = subprocess.run([*command, "-o", str(folder / name)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
            built[name] = folder / name
        return built[name]

    return compiled


def offsets(struct: np.dtype[Any]) -> dict[str, int]:
    """Where each field of a structured dtype begins, in bytes."""
    return {name: field[1] for name, field in (struct.fields or {}).items()}


@pytest.fixture
def run(build: Callable[[Build], Path]) -> Callable[..., Ran]:
    """Run the kernel on the CPU, on feature maps [N, C, h, w] as they lie in memory."""

    def host(
        pools: tuple[Pool, Pool],
        maps: tuple[Array, Array],
        strategy: Strategy,
        name: Build = "plain",
        *,
        resident: int = 2,
        launches: int = 1,
        missing_barrier: int = 0,
        overread: int = 0,
    ) -> Ran:
        """`resident` blocks at a time."""
        cases = len(maps[0])
        record = problem(pools, strategy, cases)
        columns = int(record["columns"][0])
        modality, in_problem = offsets(PROBLEM["modality"].base), offsets(PROBLEM)
        buffers: list[tuple[int, Array, bool]] = []
        for i, (pool, x) in enumerate(zip(pools, maps, strict=True)):
            start = in_problem["modality"] + i * PROBLEM["modality"].base.itemsize
            held = np.ascontiguousarray(x.transpose(0, 2, 3, 1) if strategy.channels_last else x)
            given = {"x": held, **kernel_weights(pool.weights)}
            sizes = scratch(pool, strategy.layouts[i], cases)
            given |= {field: np.full(size, np.nan, np.float32) for field, size in sizes.items()}
            buffers += [(start + modality[field], array, False) for field, array in given.items()]
        sent: dict[str, Array] = {
            "out": np.full((cases, columns), 12345.0, np.float32),
            "trace": np.zeros(2, np.uint64),
        }
        buffers += [(in_problem[field], array, True) for field, array in sent.items()]
        header = [list(ELEMENT_BYTES).index(strategy.element), strategy.channels_last, strategy.stages]
        header += [*(layout.fixed for layout in strategy.layouts), strategy.threads, resident, launches]
        header += [missing_barrier, overread, *grids(pools, strategy, cases), *strategy.shared]
        header += [len(buffers), PROBLEM.itemsize]
        request = np.array(header, np.int32).tobytes() + record.tobytes()
        for place, array, output in buffers:
            request += np.array([place, array.nbytes, output], np.int64).tobytes() + array.tobytes()
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}  # a block that is astray may wait for ever
        done = subprocess.run(
            [build(name)], input=request, capture_output=True, timeout=60, env=environment, check=False
        )
        stderr = done.stderr.decode()
        if "FATAL: ThreadSanitizer: unexpected memory mapping" in stderr:
            pytest.skip("ThreadSanitizer can't start: this kernel randomises addresses too widely (vm.mmap_rnd_bits)")
        if done.returncode:
            return Ran(done.returncode, np.zeros(0), [], stderr)
        assert len(done.stdout) == sent["out"].nbytes + sent["trace"].nbytes, stderr
        embedding = np.frombuffer(done.stdout[: sent["out"].nbytes], np.float32).reshape(cases, columns)
        trace = np.frombuffer(done.stdout[sent["out"].nbytes :], np.uint64)
        return Ran(0, embedding, trace.astype(int).tolist(), stderr)

    return host
