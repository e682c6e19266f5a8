"""CUDA as far as the engines need it: a typed layer over NVIDIA's `cuda.bindings.runtime`.

Every call that CUDA answers with an error raises `EngineError` with CUDA's own text. What a `Resources` has handed out
lives until its `close`. The device is the first one, as in `shared.gpu`.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import EngineError
from mpmmu_rt.spec import Array

ALIGNMENT = 256  # bytes: of what TensorRT takes as a tensor's address or as its working memory
DEVICE = 0
_HINT = "`mpmmu-rt doctor` tells what works here; another program may hold the device's memory"


def runtime() -> Any:
    """`cuda.bindings.runtime`, or `MissingPackage`."""
    return require("cuda.bindings.runtime", "running on an NVIDIA GPU")


def call(name: str, *arguments: Any) -> Any:
    """Call the CUDA runtime's function `name`; returns what it returns, None if that is nothing."""
    rt = runtime()
    error, *values = getattr(rt, name)(*arguments)
    if error != rt.cudaError_t.cudaSuccess:
        _, text = rt.cudaGetErrorString(error)
        raise EngineError(f"CUDA's {name} failed: {text.decode()} ({error.name})", hint=_HINT)
    return values[0] if values else None


@contextlib.contextmanager
def on_device() -> Iterator[None]:
    """The device is the current one of this thread inside, and what was is so again afterwards."""
    before = call("cudaGetDevice")
    if before != DEVICE:
        call("cudaSetDevice", DEVICE)
    try:
        yield
    finally:
        if before != DEVICE:
            call("cudaSetDevice", before)


def align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Stream:
    """In the order in which they are enqueued, one after the other. Waits for no other stream unless told to."""

    handle: Any

    @property
    def address(self) -> int:
        return int(self.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol, version 0, by which CuPy takes a foreign stream."""
        return 0, self.address

    def wait(self, event: Event) -> None:
        call("cudaStreamWaitEvent", self.handle, event.handle, runtime().cudaEventWaitDefault)

    def synchronize(self) -> None:
        call("cudaStreamSynchronize", self.handle)

    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy of contiguous pinned memory to the device."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.handle)

    def download(self, array: Array, address: int) -> None:
        """Enqueue a copy from the device to contiguous pinned memory."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.handle)

    def fill(self, address: int, size: int, byte: int) -> None:
        call("cudaMemsetAsync", address, byte, size, self.handle)


@dataclass(frozen=True)
class Event:
    handle: Any

    def record(self, stream: Stream) -> None:
        call("cudaEventRecord", self.handle, stream.handle)

    def ms_since(self, earlier: Event) -> float:
        """Both recorded, with `timing`, and passed."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


@dataclass(frozen=True)
class Graph:
    """A captured sequence, ready to launch. Valid as long as all that was captured in it is left alone."""

    handle: Any

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self.handle, stream.handle)

    def close(self) -> None:
        call("cudaGraphExecDestroy", self.handle)


class Resources:
    """Memory, streams and events that are freed together, the last one first: by `close`, or when nobody has it.

    Not for use by two threads at once.
    """

    def __init__(self) -> None:
        self._made: list[tuple[str, Any]] = []  # what frees it, and it
        self._free = weakref.finalize(self, _free, self._made)
        self._free.atexit = False  # the driver takes back what a process leaves

    def device(self, size: int) -> int:
        """The address of `size` bytes of device memory."""
        address = int(call("cudaMalloc", size))
        self._made.append(("cudaFree", address))
        return address

    def pinned(self, size: int) -> Array:
        """uint8 [size] in page-locked host memory, zeros. Not to be touched after `close`."""
        address = int(call("cudaHostAlloc", size, runtime().cudaHostAllocDefault))
        self._made.append(("cudaFreeHost", address))
        array: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[:] = 0
        return array

    def stream(self) -> Stream:
        handle = call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking)
        self._made.append(("cudaStreamDestroy", handle))
        return Stream(handle)

    def event(self, *, timing: bool = False) -> Event:
        rt = runtime()
        handle = call("cudaEventCreateWithFlags", rt.cudaEventDefault if timing else rt.cudaEventDisableTiming)
        self._made.append(("cudaEventDestroy", handle))
        return Event(handle)

    def close(self) -> None:
        """Free everything, even if a part of it fails; the first failure is raised. Again: nothing."""
        self._free()


def _free(made: list[tuple[str, Any]]) -> None:
    if made:
        with on_device(), ExitStack() as stack:
            for name, handle in made:
                stack.callback(call, name, handle)


def capture(stream: Stream, enqueue: Callable[[], None]) -> Graph:
    """Record what `enqueue` puts on `stream`, and on streams that are forked from it and joined to it, as a graph.

    Nothing runs yet. Only calls of this thread are watched for what may not be captured: other threads go on.
    """
    rt = runtime()
    call("cudaStreamBeginCapture", stream.handle, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        enqueue()
    except BaseException:
        _, begun = rt.cudaStreamEndCapture(stream.handle)  # it fails too where the capture did: the cause is raised
        if begun is not None and int(begun):
            call("cudaGraphDestroy", begun)
        raise
    graph = call("cudaStreamEndCapture", stream.handle)
    try:
        ready = Graph(call("cudaGraphInstantiate", graph, 0))
    finally:
        call("cudaGraphDestroy", graph)
    try:
        call("cudaGraphUpload", ready.handle, stream.handle)
        stream.synchronize()
    except BaseException:
        ready.close()
        raise
    return ready
