"""As much of CuPy as the launcher of the attention pool asks for, on the simulated device.

Simulated: arrays, the current stream, the device's facts. Real: the kernel, whose source is compiled for the host (by
the shim of `tests/kernels/host`) and runs on the very addresses that it is launched with; with fewer threads in a block
than on a GPU, where they cost less.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from mpmmu_rt.kernels.attention_pool import ARRAYS, PROBLEM, SCRATCH, SOURCE
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, LAUNCHES, Device
from mpmmu_rt.kernels.source import FOLDER, source_of

from .simulated_cuda import OK, Range, SimulatedCuda

ADA = Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20)
HOPPER = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)
THREADS = 8
THREADS_ON_DEVICE = 256
HOST = Path(__file__).with_name("host") / "pool.cpp"
SHIM = Path(__file__).parents[1] / "kernels" / "host"
_FOLDER = tempfile.TemporaryDirectory(prefix="pool-", ignore_cleanup_errors=True)  # until the process ends
_OPTIONS = {"float": "float32", "Half": "float16", "Bfloat16": "bfloat16"}


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class CompileException(Exception):
    pass


class OutOfMemoryError(MemoryError):
    pass


@functools.cache
def compiled(options: tuple[str, ...]) -> Callable[..., int]:
    """The kernels of these macros as a function of the host; compiled once in a process."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no host compiler: g++ is missing")
    output = Path(_FOLDER.name) / f"{hashlib.sha256(repr(options).encode()).hexdigest()}.so"
    named = dict(one.removeprefix("-D").split("=") for one in options)
    arguments = [named[name] for name in ("ELEMENT", "CHANNELS_LAST", "POSITIONS0", "POSITIONS1", "STAGES")]
    macros = [f"-DPOOL={', '.join(arguments)}", "-DFEW", *(one for one in options if one.startswith("-DKNOWN"))]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-Wno-return-type", "-pthread"]
    command = [compiler, *flags, *macros, "-I", str(FOLDER), "-I", str(SHIM), str(HOST), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    function: Callable[..., int] = ctypes.CDLL(str(output)).attention_pool
    return function


class Array:
    """Device memory that is freed with it; written on `stream`, whenever the device comes to that."""

    def __init__(self, cuda: SimulatedCuda, values: Any, stream: int) -> None:
        error, address = cuda.cudaMalloc(max(values.nbytes, 1))
        if error != OK:
            raise OutOfMemoryError(error.name)
        kept = values.copy()

        def write() -> None:
            ctypes.memmove(address, kept.ctypes.data, kept.nbytes)

        written = cuda.enqueue(stream, "write of CuPy's", write, writes=[(address, max(values.nbytes, 1))])

        def release() -> None:
            with cuda.lock:
                cuda.finish([written])  # CuPy keeps memory in a pool of the stream that it was written on
            cuda.cudaFree(address)

        self.data = SimpleNamespace(ptr=address)
        self.nbytes = values.nbytes
        weakref.finalize(self, release)


class CupyStream:
    def __init__(self, cupy: SimulatedCupy, address: int) -> None:
        self.cupy, self.ptr = cupy, address

    def __enter__(self) -> Self:
        self.cupy.current.streams = [*self.cupy.streams, self.ptr]
        return self

    def __exit__(self, *raised: object) -> None:
        self.cupy.current.streams = self.cupy.streams[:-1]


class Kernel:
    """A function of a module. As CuPy has it, all who ask for the same source and options get the same module, and its
    functions' limits of shared memory are shared."""

    num_regs, local_size_bytes, shared_size_bytes = 40, 0, 0

    def __init__(self, cupy: SimulatedCupy, options: tuple[str, ...], name: str) -> None:
        self.cupy, self.options, self.number = cupy, options, LAUNCHES.index(name.removeprefix("attention_pool_"))
        self.max_dynamic_shared_size_bytes = 48 << 10
        self.element = next(one for one in options if one.startswith("-DELEMENT=")).removeprefix("-DELEMENT=")
        self.run = compiled(options)

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any], *, shared_mem: int) -> None:
        cuda = self.cupy.simulated
        if shared_mem > min(self.max_dynamic_shared_size_bytes, self.cupy.device.shared_per_block):
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE")
        if not self.cupy.streams:
            cuda.violate("a kernel on the default stream")
        assert block == (THREADS_ON_DEVICE,)
        record = arguments[0].copy()  # as by value
        problem = record[0]
        cases, item = int(problem["cases"]), ELEMENT_BYTES[_OPTIONS[self.element]]  # type: ignore[index]
        reads: list[Range] = []
        writes: list[Range] = [(int(problem["out"]), cases * int(problem["columns"]) * 4)]
        for one in problem["modality"]:
            reads.append((int(one["x"]), cases * int(one["channels"]) * int(one["height"]) * int(one["width"]) * item))
            reads += [(int(one[name]), 1) for name in ARRAYS if one[name]]
            writes += [(int(one[name]), 1) for name in SCRATCH if one[name]]

        def run() -> None:
            cuda.check([*reads, *writes])
            address = ctypes.c_void_p(record.ctypes.data)
            if self.run(self.number, THREADS, grid[0], shared_mem, address, PROBLEM.itemsize):
                cuda.violate("the kernel's parameter has another size on the host")

        cuda.enqueue(self.cupy.streams[-1], "kernel", run, reads, writes)


class SimulatedCupy(ModuleType):
    """Stands in for `cupy`. old: as CuPy 13, without `Stream.from_external`."""

    ndarray = Array

    def __init__(self, cuda: SimulatedCuda, device: Device = ADA, *, old: bool = False) -> None:
        super().__init__("cupy")
        self.simulated, self.device = cuda, device
        self.current = threading.local()
        self.launched: list[dict[str, str]] = []
        self.functions: dict[tuple[tuple[str, ...], str], Kernel] = {}
        self.broken: Exception | None = None  # what the compiler says
        self.compiling: threading.Barrier | None = None  # what compiles waits for as many others
        # As much as CuPy 14 tells of a device: its `attributes` know no compute capability.
        properties = {
            "name": b"simulated",
            "major": device.capability[0],
            "minor": device.capability[1],
            "multiProcessorCount": device.multiprocessors,
            "sharedMemPerBlockOptin": device.shared_per_block,
            "sharedMemPerMultiprocessor": device.shared_per_multiprocessor,
            "l2CacheSize": device.l2_bytes,
        }
        stream = (
            SimpleNamespace()
            if old
            else SimpleNamespace(from_external=lambda one: CupyStream(self, one.__cuda_stream__()[1]))
        )
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            Device=lambda: SimpleNamespace(id=0, synchronize=cuda.synchronize),
            Stream=stream,
            ExternalStream=lambda address: CupyStream(self, address),
            runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceProperties=lambda device: properties),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            compiler=SimpleNamespace(CompileException=CompileException),
        )

    @property
    def streams(self) -> list[int]:
        return getattr(self.current, "streams", [])

    def asarray(self, values: Any) -> Array:
        # Its default stream is no one's that does not wait for it: streams of ours are non-blocking.
        stream = self.streams[-1] if self.streams else self.simulated.default_stream()
        return Array(self.simulated, np.ascontiguousarray(values), stream)

    def zeros(self, shape: Any, dtype: Any) -> Array:
        return self.asarray(np.zeros(shape, dtype))

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> SimpleNamespace:
        assert code == source_of(SOURCE)
        macros = tuple(one for one in options if one.startswith("-D"))
        self.launched.append(dict(one.removeprefix("-D").split("=") for one in macros))
        if self.broken:
            raise self.broken

        def get_function(name: str) -> Kernel:
            if self.compiling and name.endswith(LAUNCHES[0]):
                self.compiling.wait(timeout=30)  # CuPy compiles a module when its first function is asked for
            if found := self.functions.get((macros, name)):
                return found
            return self.functions.setdefault((macros, name), Kernel(self, macros, name))

        return SimpleNamespace(get_function=get_function)
