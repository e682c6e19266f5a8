"""A CUDA runtime in host memory, with the functions of `cuda.bindings.runtime` that this project calls.

Simulated: memory, streams, events, capture and graphs. What is enqueued runs at some later time, in an order drawn from
a seed among all that streams and events allow; so that a missing wait, a buffer that is used again too early or a
missing synchronisation gives wrong numbers. Besides, every two operations that touch the same memory must be ordered
(`races`), whatever the order that was drawn. Real: the enumerations, the error texts and the signatures (a test
compares them with the installed package).

Device memory is poisoned with NaN when it is allocated and when it is freed, pinned memory with 0xA5; both have guards.
"""

from __future__ import annotations

import ctypes
import functools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import cuda.bindings.runtime as real  # type: ignore[import-untyped]

Error = real.cudaError_t
OK = Error.cudaSuccess
GUARD = 4096
GUARD_BYTE, DEVICE_BYTE, PINNED_BYTE = 0x5C, 0xFF, 0xA5
Range = tuple[int, int]  # address, bytes
Result = tuple[Any, ...]  # the error, and for these functions a value
WITH_VALUE = frozenset(
    {"cudaMalloc", "cudaHostAlloc", "cudaGetDevice", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"}
    | {"cudaEventElapsedTime", "cudaStreamEndCapture", "cudaGraphInstantiate"}
)


class Violation(Exception):
    """What a real device would answer with wrong numbers, a crash or nothing at all."""


@dataclass(eq=False)
class Node:
    """An operation. reads, writes: what it touches."""

    label: str
    run: Callable[[], None]
    after: list[Node]
    stream: int
    reads: list[Range] = field(default_factory=list)
    writes: list[Range] = field(default_factory=list)
    done: bool = False
    seen: bool = False  # the host has waited for it


@dataclass(eq=False)
class Block:
    address: int
    size: int
    kind: str
    raw: Any
    live: bool = True

    def fill(self, byte: int) -> None:
        ctypes.memset(self.address, byte, self.size)

    def guards_hold(self) -> bool:
        return all(
            ctypes.string_at(at, GUARD) == bytes([GUARD_BYTE]) * GUARD
            for at in (self.address - GUARD, self.address + self.size)
        )


@dataclass(eq=False)
class Capture:
    origin: Stream
    thread: int
    nodes: list[Node] = field(default_factory=list)
    before: dict[Stream, list[Node]] = field(default_factory=dict)  # what each stream had to wait for outside
    failure: Any = None


class Handle:
    live = True

    def __int__(self) -> int:
        return id(self)


class Stream(Handle):
    def __init__(self) -> None:
        self.frontier: list[Node] = []  # what the next operation comes after
        self.capture: Capture | None = None


class Event(Handle):
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.node: Node | None = None
        self.capture: Capture | None = None
        self.time = 0.0


class Graph(Handle):
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.last: Node | None = None  # of an executable graph: the end of its latest launch


def overlap(ones: Iterable[Range], others: Iterable[Range]) -> bool:
    return any(a < d + n and d < a + m for a, m in ones for d, n in others)


def ancestors(nodes: Iterable[Node]) -> set[Node]:
    """They and all that they come after, as far as the host has not waited for it."""
    found: set[Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found and not node.seen:
            found.add(node)
            left += node.after
    return found


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the runtime: one at a time, counted, failing when told to, while the device goes on."""
    name = function.__name__

    @functools.wraps(function)
    def called(self: SimulatedCuda, *arguments: Any) -> tuple[Any, ...]:
        with self.lock:
            self.calls[name] += 1
            if self.fail.get(name) == self.calls[name]:
                if name == "cudaStreamEndCapture":  # which ends even if it fails
                    _, graph = function(self, *arguments)
                    if graph is not None:
                        self.drop(graph)
                return (self.failure, None) if name in WITH_VALUE else (self.failure,)
            if name not in ("cudaGetDevice", "cudaSetDevice"):
                if getattr(self.current, "device", 0) != 0:
                    self.violate(f"{name} on another device than the one that everything lies on")
                self.advance()
            result = function(self, *arguments)
            if self.sticky is not None:
                result = (self.sticky, *result[1:])
            return tuple(result)

    return called


def not_in_capture(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refused in the thread that captures, whose capture it spoils: what allocates or waits."""

    @functools.wraps(function)
    def called(self: SimulatedCuda, *arguments: Any) -> tuple[Any, ...]:
        for capture in self.captures:
            if capture.thread == threading.get_ident():
                capture.failure = Error.cudaErrorStreamCaptureInvalidated
                values = (None,) if function.__name__ in WITH_VALUE else ()
                return (Error.cudaErrorStreamCaptureUnsupported, *values)
        return tuple(function(self, *arguments))

    return called


def on_stream(function: Callable[..., Any]) -> Callable[..., Any]:
    """Puts work on the stream that comes last: refused in a capture that is lost."""

    @functools.wraps(function)
    def called(self: SimulatedCuda, *arguments: Any) -> tuple[Any, ...]:
        capture = self.stream(arguments[-1]).capture
        if capture is not None and capture.failure is not None:
            return (Error.cudaErrorStreamCaptureInvalidated,)
        return tuple(function(self, *arguments))

    return called


class SimulatedCuda:
    """Stands in for the module. Functions return (error, value …) as the real ones do."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDefault = real.cudaEventDefault
    cudaEventDisableTiming = real.cudaEventDisableTiming
    cudaEventWaitDefault = real.cudaEventWaitDefault
    cudaHostAllocDefault = real.cudaHostAllocDefault
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.eager = self.random.choice((0.0, 0.3, 0.9))  # how far the device gets while the host goes on
        self.lazy = self.random.choice((0.0, 0.5, 1.0))  # how often it does no more than what is waited for
        self.favour: dict[int, float] = {}  # of each stream
        self.lock = threading.RLock()
        self.current = threading.local()
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, int] = {}  # function → the call that fails
        self.failure = Error.cudaErrorMemoryAllocation
        self.sticky: Any = None
        self.violations: list[str] = []
        self.races: list[str] = []
        self.blocks: list[Block] = []
        self.handles: dict[int, Handle] = {}
        self.pending: list[Node] = []
        self.unseen: list[Node] = []
        self.captures: list[Capture] = []
        self.default = Stream()  # no handle of the program's: nothing waits for it, and it waits for nothing
        self.order: list[str] = []  # labels, as they ran
        # Labels of work that can't be captured and does not say so: a library that allocates or waits on its own. What
        # called it is told that all went well; the capture is lost, which the next call on one of its streams tells.
        self.spoils: set[str] = set()

    # ------------------------------------------------------------ for the other simulators and the tests

    def violate(self, what: str) -> None:
        self.violations.append(what)
        raise Violation(what)

    def check(self, ranges: Iterable[Range], kind: str = "device") -> None:
        """Every range lies in one live block."""
        for address, size in ranges:
            if not any(
                one.live and one.kind == kind and one.address <= address and address + size <= one.address + one.size
                for one in self.blocks
            ):
                self.violate(f"{size} bytes at {address:#x} are no {kind} memory")

    def enqueue(
        self,
        stream: int,
        label: str,
        run: Callable[[], None],
        reads: Iterable[Range] = (),
        writes: Iterable[Range] = (),
    ) -> Node:
        """An operation on a stream, by its address; into the capture where the stream is being captured."""
        with self.lock:
            on = self.stream(stream)
            node = Node(label, run, list(on.frontier), int(on), list(reads), list(writes))
            if on.capture:
                self.order_is_given(node, on.capture.nodes)
                on.capture.nodes.append(node)
                if label in self.spoils:
                    on.capture.failure = Error.cudaErrorStreamCaptureInvalidated
            else:
                self.add(node)
            on.frontier = [node]
            return node

    def add(self, node: Node) -> None:
        self.order_is_given(node, self.unseen)
        self.pending.append(node)
        self.unseen.append(node)

    def order_is_given(self, node: Node, others: Iterable[Node]) -> None:
        before = ancestors(node.after)
        for other in others:
            if other not in before and (
                overlap(node.writes, other.writes + other.reads) or overlap(node.reads, other.writes)
            ):
                self.races.append(f"{node.label} beside {other.label}")

    def default_stream(self) -> int:
        return int(self.default)

    def synchronize(self) -> None:
        """Of the device: all that was enqueued on any stream is done, and the host has seen it."""
        if self.capturing():
            self.violate("the device is waited for during a capture")
        with self.lock:
            self.finish(list(self.unseen))

    def stream(self, address: Any) -> Stream:
        if int(address) == int(self.default):
            return self.default
        found = self.handles.get(int(address))
        if not isinstance(found, Stream):
            self.violate("a stream that is none")
        assert isinstance(found, Stream)
        return found

    def capturing(self) -> bool:
        return any(one.thread == threading.get_ident() for one in self.captures)

    def live(self) -> Counter[str]:
        """What has been made and not freed."""
        return Counter(one.kind for one in self.blocks if one.live) + Counter(
            type(one).__name__ for one in self.handles.values()
        )

    def close(self) -> None:
        """The device comes to rest, and nothing was written where nothing may be."""
        with self.lock:
            while self.pending:
                self.step(self.pending)
            for block in self.blocks:
                if not block.guards_hold():
                    self.violations.append(f"a write beside a block of {block.size} bytes")
                if not block.live and ctypes.string_at(block.address, block.size).strip(bytes([DEVICE_BYTE])):
                    self.violations.append(f"a write to a block of {block.size} bytes that was freed")

    # ------------------------------------------------------------ time

    def step(self, among: Iterable[Node]) -> None:
        ready = [node for node in among if not node.done and all(one.done for one in node.after)]
        node = max(ready, key=lambda one: self.random.random() + self.bias(one.stream))
        try:
            node.run()
        except Violation:
            self.sticky = Error.cudaErrorIllegalAddress
        node.done = True
        self.order.append(node.label)
        self.pending.remove(node)

    def bias(self, stream: int) -> float:
        if stream not in self.favour:
            self.favour[stream] = self.random.uniform(-1.5, 1.5)  # from 1 on, one always comes before the other
        return self.favour[stream]

    def advance(self) -> None:
        while self.pending and self.random.random() < self.eager:
            self.step(self.pending)

    def finish(self, nodes: Iterable[Node]) -> None:
        wanted = ancestors(nodes)
        only = self.random.random() < self.lazy
        while any(not node.done for node in wanted):
            self.step([node for node in self.pending if node in wanted] if only else self.pending)
        for node in wanted:
            node.seen = True
        self.unseen = [node for node in self.unseen if not node.seen]

    # ------------------------------------------------------------ memory

    def allocate(self, size: int, kind: str, byte: int) -> int:
        raw = ctypes.create_string_buffer(size + 2 * GUARD + 256)
        address = -(-(ctypes.addressof(raw) + GUARD) // 256) * 256
        ctypes.memset(address - GUARD, GUARD_BYTE, size + 2 * GUARD)
        block = Block(address, size, kind, raw)
        block.fill(byte)
        self.blocks.append(block)
        return address

    def free(self, address: int, kind: str) -> tuple[Any]:
        for block in self.blocks:
            if block.live and block.address == address and block.kind == kind:
                mine = [(block.address, block.size)]
                if any(overlap(mine, node.reads + node.writes) for node in self.pending):
                    self.violations.append(f"{kind} memory was freed while it is in use")
                block.live = False
                block.fill(DEVICE_BYTE)
                return (OK,)
        self.violations.append(f"{kind} memory was freed that is none")
        return (Error.cudaErrorInvalidValue,)

    @entry
    @not_in_capture
    def cudaMalloc(self, size: int) -> Result:
        return OK, self.allocate(size, "device", DEVICE_BYTE)

    @entry
    @not_in_capture
    def cudaFree(self, devPtr: int) -> Result:
        return self.free(devPtr, "device")

    @entry
    @not_in_capture
    def cudaHostAlloc(self, size: int, flags: int) -> Result:
        return OK, self.allocate(size, "pinned", PINNED_BYTE)

    @entry
    @not_in_capture
    def cudaFreeHost(self, ptr: int) -> Result:
        return self.free(ptr, "pinned")

    @entry
    @on_stream
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> Result:
        kinds = {real.cudaMemcpyKind.cudaMemcpyHostToDevice: ("pinned", "device")}
        kinds[real.cudaMemcpyKind.cudaMemcpyDeviceToHost] = ("device", "pinned")
        source, target = kinds[kind]

        def run() -> None:
            self.check([(src, count)], source)
            self.check([(dst, count)], target)
            ctypes.memmove(dst, src, count)

        self.check([(src, count)], source)
        self.check([(dst, count)], target)
        self.enqueue(int(stream), f"copy to {target}", run, [(src, count)], [(dst, count)])
        return (OK,)

    @entry
    @on_stream
    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> Result:
        def run() -> None:
            self.check([(devPtr, count)])
            ctypes.memset(devPtr, value, count)

        self.check([(devPtr, count)])
        self.enqueue(int(stream), "fill", run, writes=[(devPtr, count)])
        return (OK,)

    # ------------------------------------------------------------ device, streams, events

    @entry
    def cudaGetDevice(self) -> Result:
        return OK, getattr(self.current, "device", 0)

    @entry
    def cudaSetDevice(self, device: int) -> Result:
        self.current.device = device
        return (OK,)

    def keep(self, handle: Handle) -> Handle:
        self.handles[int(handle)] = handle
        return handle

    def drop(self, handle: Any) -> tuple[Any]:
        if self.handles.pop(int(handle), None) is None:
            self.violations.append("a handle was destroyed that is none")
            return (Error.cudaErrorInvalidResourceHandle,)
        return (OK,)

    @entry
    @not_in_capture
    def cudaStreamCreateWithFlags(self, flags: int) -> Result:
        if flags != real.cudaStreamNonBlocking:
            self.violate("a stream that waits for the default stream")
        return OK, self.keep(Stream())

    @entry
    @not_in_capture
    def cudaStreamDestroy(self, stream: Any) -> Result:
        return self.drop(stream)

    @entry
    @not_in_capture
    def cudaStreamSynchronize(self, stream: Any) -> Result:
        self.finish(self.stream(stream).frontier)
        return (OK,)

    @entry
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Result:
        on, what = self.stream(stream), self.handles[int(event)]
        assert isinstance(what, Event)
        if what.node is None:
            return (OK,)  # never recorded: as in CUDA, no wait at all
        if what.capture in self.captures and what.capture is not None:
            if on.capture is None:
                on.capture = what.capture
                what.capture.before[on] = on.frontier
                on.frontier = []
            elif on.capture is not what.capture:
                return (Error.cudaErrorStreamCaptureMerge,)
        elif on.capture:
            on.capture.failure = Error.cudaErrorStreamCaptureInvalidated
            return (Error.cudaErrorStreamCaptureIsolation,)
        on.frontier = [*on.frontier, what.node]
        return (OK,)

    @entry
    def cudaEventCreateWithFlags(self, flags: int) -> Result:
        return OK, self.keep(Event(flags))

    @entry
    def cudaEventDestroy(self, event: Any) -> Result:
        return self.drop(event)

    @entry
    @on_stream
    def cudaEventRecord(self, event: Any, stream: Any) -> Result:
        what, on = self.handles[int(event)], self.stream(stream)
        assert isinstance(what, Event)

        def run() -> None:
            what.time = time.perf_counter()

        what.node, what.capture = self.enqueue(int(on), "event", run), on.capture
        return (OK,)

    @entry
    def cudaEventElapsedTime(self, start: Any, end: Any) -> Result:
        first, last = self.handles[int(start)], self.handles[int(end)]
        assert isinstance(first, Event)
        assert isinstance(last, Event)
        if any(one.flags & real.cudaEventDisableTiming or one.node is None for one in (first, last)):
            return Error.cudaErrorInvalidResourceHandle, None
        assert first.node is not None
        assert last.node is not None
        if not (first.node.done and last.node.done):
            return Error.cudaErrorNotReady, None
        return OK, (last.time - first.time) * 1e3

    # ------------------------------------------------------------ graphs

    @entry
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Result:
        on = self.stream(stream)
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            self.violate("a capture that other threads would spoil, or that lets anything pass")
        if on.capture:
            return (Error.cudaErrorIllegalState,)
        on.capture = Capture(on, threading.get_ident(), before={on: on.frontier})
        self.captures.append(on.capture)
        on.frontier = []
        return (OK,)

    @entry
    def cudaStreamEndCapture(self, stream: Any) -> Result:
        on = self.stream(stream)
        capture = on.capture
        if capture is None or capture.origin is not on:
            return Error.cudaErrorStreamCaptureUnmatched, None
        joined = ancestors(on.frontier)
        unjoined = any(not set(one.frontier) <= joined for one in capture.before)
        for one, frontier in capture.before.items():
            one.capture, one.frontier = None, frontier
        self.captures.remove(capture)
        if capture.failure or unjoined:
            return capture.failure or Error.cudaErrorStreamCaptureUnjoined, None
        return OK, self.keep(Graph(capture.nodes))

    @entry
    @not_in_capture
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Result:
        found = self.handles[int(graph)]
        assert isinstance(found, Graph)
        return OK, self.keep(Graph(found.nodes))

    @entry
    @not_in_capture
    def cudaGraphUpload(self, graphExec: Any, stream: Any) -> Result:
        self.enqueue(int(stream), "upload of a graph", lambda: None)
        return (OK,)

    @entry
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> Result:
        graph, on = self.handles[int(graphExec)], self.stream(stream)
        assert isinstance(graph, Graph)
        start = [*on.frontier, *([graph.last] if graph.last else [])]
        copies: dict[Node, Node] = {}
        for node in graph.nodes:
            after = [copies[one] for one in node.after] or start
            # Streams are forgotten in a graph: each node has a pace of its own.
            copies[node] = Node(node.label, node.run, after, id(node), node.reads, node.writes)
            self.add(copies[node])
        inner = {one for node in copies.values() for one in node.after}
        leaves = [node for node in copies.values() if node not in inner]
        graph.last = Node("end of a graph", lambda: None, leaves, int(on))
        self.add(graph.last)
        on.frontier = [graph.last]
        return (OK,)

    @entry
    def cudaGraphExecDestroy(self, graphExec: Any) -> Result:
        return self.drop(graphExec)

    @entry
    def cudaGraphDestroy(self, graph: Any) -> Result:
        return self.drop(graph)
