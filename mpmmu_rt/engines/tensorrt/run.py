"""Running TensorRT engines of either flavour on CUDA, or another `DeviceEngine`.

`LoadedEngine` is an engine and what it takes, `Context` one batch size of it, `Batches` what runs the batches of any
number of engines one after the other, and `TensorRtSession` one engine from host memory to host memory.
All but the first two have run on an H200 with torch's engines (docs/gpu.md); those, TensorRT's own, **not on any GPU
yet**.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from mpmmu_rt.engines.shared.words import closed
from mpmmu_rt.errors import EngineError
from mpmmu_rt.spec import Array

from .build import log
from .cuda import Event, Graph, Resources, Stream, align, capture, on_device
from .interface import ELEMENTS, DeviceContext, DeviceEngine, Tensor, as_host
from .jit import CompiledKernels
from .sidecar import Profile

CAPTURED_SIZES = 8  # batch sizes that are kept ready; the one not used for longest gives way
POISON = 0xFF  # the byte that fills results before a run: NaN in every float type
ASKED_NOT_TO = "it was asked to run without graphs"
_HINT = "`mpmmu-rt verify BUNDLE` tells whether the bundle or the input is at fault"


class EngineRefused(EngineError):
    """TensorRT does not deserialise an engine."""


class NotCaptured(RuntimeWarning):
    """An engine can't be captured into a CUDA graph: its batches are enqueued one by one."""


def need(trt: Any, value: Any, what: str) -> Any:
    """`value`, unless it is TensorRT's way of saying that it failed: then `EngineError` with its log."""
    if value is None or value is False:
        raise EngineError(f"{trt.__name__} {what}: {log(trt).text()}", hint=_HINT)
    return value


class LoadedEngine:
    """A deserialised engine, with working memory that its contexts share: no two of them may run at once."""

    def __init__(self, trt: Any, engine: bytes, profile: Profile, resources: Resources) -> None:
        """engine: bytes whose digest was checked. Raises `EngineError` with TensorRT's log: `EngineRefused` where
        TensorRT can't make anything of the bytes."""
        self.trt, self.profile = trt, profile
        log(trt).clear()
        self._runtime = trt.Runtime(log(trt).logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise EngineRefused(f"{trt.__name__} can't load the engine: {log(trt).text()}", hint=_HINT)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        self.inputs = tuple(name for name in names if self.tensors[name].is_input)
        self.outputs = tuple(name for name in names if not self.tensors[name].is_input)
        self._scratch_bytes = align(max(int(self._engine.device_memory_size_v2), 1))
        self._scratch = resources.device(self._scratch_bytes)
        self._how = self._config()
        self._compiled: CompiledKernels | None = None
        if hasattr(self._how, "create_runtime_cache"):  # of TensorRT-RTX
            self._compiled = CompiledKernels(trt, engine, self._how)

    def _config(self) -> Any:
        """How contexts are made: one `IRuntimeConfig` for all of them; or TensorRT 10.3's way, which has none."""
        managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._engine, "create_runtime_config"):
            return managed
        how = self._engine.create_runtime_config()
        how.set_execution_context_allocation_strategy(managed)
        if hasattr(how, "dynamic_shapes_kernel_specialization_strategy"):
            # By default it swaps kernels in the background, a case's last bits with them, and graphs keep the old.
            how.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            how.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED  # the graphs are ours
        return how

    def _tensor(self, name: str) -> Tensor:
        engine = self._engine
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(int(length) for length in engine.get_tensor_shape(name))
        if kind not in ELEMENTS or len(shape) < 1 or min(shape[1:], default=1) < 1:
            raise EngineError(
                f"the engine's `{name}` is {kind.lower()}{list(shape)}, expected a batch and fixed sizes, "
                f"of one of {', '.join(element for element, _ in ELEMENTS.values())}",
                hint=_HINT,
            )
        return Tensor(name, ELEMENTS[kind][0], shape[1:], engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT)

    def context(self, batch: int, addresses: Mapping[str, int]) -> Context:
        """An execution context of its own, set to `batch` and bound to device memory; both stay as they are."""
        log(self.trt).clear()
        context = self._need(self._engine.create_execution_context(self._how), "can't make an execution context")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        for name in self.inputs:
            shape = (batch, *self.tensors[name].shape)
            self._need(context.set_input_shape(name, shape), f"does not take {shape} for `{name}`")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(
                f"{self.trt.__name__} can't infer the shapes of a batch of {batch}: {error}", hint=_HINT
            ) from error
        if missing:
            raise EngineError(f"{self.trt.__name__} misses the shapes of {', '.join(missing)}", hint=_HINT)
        for name, tensor in self.tensors.items():
            got, want = tuple(context.get_tensor_shape(name)), (batch, *tensor.shape)
            if got != want:
                raise EngineError(f"the engine's `{name}` is {list(got)}, expected {list(want)}", hint=_HINT)
            self._need(context.set_tensor_address(name, addresses[name]), f"does not take a buffer for `{name}`")
        return Context(self.trt, context, self._compiled)

    def _need(self, value: Any, what: str) -> Any:
        return need(self.trt, value, what)

    def close(self) -> None:
        """After its contexts; its working memory belongs to the `Resources`."""
        self._how = self._compiled = None  # in this order: an engine must not outlive its runtime
        self._engine = None
        self._runtime = None


class Context:
    """One execution context, bound for good. Its engine's configuration and runtime cache outlive it."""

    def __init__(self, trt: Any, context: Any, compiled: CompiledKernels | None) -> None:
        self._trt = trt
        self._context = context
        self._compiled = compiled

    def execute(self, stream: Stream) -> None:
        """Enqueue; nothing is waited for."""
        need(self._trt, self._context.execute_async_v3(stream.address), "failed while running")

    def capturable(self, stream: Stream) -> bool:
        """TensorRT-RTX can tell; TensorRT captures whatever has dense shapes and resident weights, as ours has."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream.address))

    def settled(self) -> None:
        if self._compiled:
            self._compiled.keep()

    def close(self) -> None:
        self._context = None


class Clock:
    """Times of stages by pairs of events, where it is on. A stage may have several pairs, on any stream."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._events: list[tuple[Event, Event]] = []  # made once, and used again by the next run
        self._used: list[str] = []
        self.on = False

    @contextmanager
    def __call__(self, stage: str, stream: Stream) -> Iterator[None]:
        if not self.on:
            yield
            return
        if len(self._used) == len(self._events):
            self._events.append((self._resources.event(timing=True), self._resources.event(timing=True)))
        begin, end = self._events[len(self._used)]
        self._used.append(stage)
        begin.record(stream)
        yield
        end.record(stream)

    def start(self, *, on: bool) -> None:
        self.on = on
        self._used.clear()

    def read(self) -> dict[str, float]:
        """Of each stage in ms, by name; when all its events have passed."""
        spent: dict[str, float] = {}
        for stage, (begin, end) in zip(self._used, self._events, strict=False):
            spent[stage] = spent.get(stage, 0.0) + end.ms_since(begin)
        return spent


class Stopwatch:
    """ms: the host's time inside of it, of all the times together."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.ms += (time.perf_counter() - self._start) * 1e3


class Results:
    """What a run brings back, in one block of device memory and one of pinned memory: one fill and one copy.

    Every batch size lays the block out anew, without gaps but for the alignment.
    """

    def __init__(self, resources: Resources, tensors: Sequence[Tensor], largest: int) -> None:
        self._tensors = tuple(tensors)
        size = sum(align(tensor.bytes(largest)) for tensor in self._tensors)
        self._device, self._host = resources.device(size), resources.pinned(size)

    def _offsets(self, batch: int) -> dict[str, int]:
        offsets, at = {}, 0
        for tensor in self._tensors:
            offsets[tensor.name] = at
            at += align(tensor.bytes(batch))
        return offsets

    def addresses(self, batch: int) -> dict[str, int]:
        return {name: self._device + offset for name, offset in self._offsets(batch).items()}

    def arrays(self, batch: int) -> dict[str, Array]:
        """Views of pinned memory: [batch, …] each."""
        offsets = self._offsets(batch)
        return {
            tensor.name: self._host[offsets[tensor.name] :][: tensor.bytes(batch)]
            .view(tensor.dtype)
            .reshape(batch, *tensor.shape)
            for tensor in self._tensors
        }

    def _size(self, batch: int) -> int:
        last = self._tensors[-1]
        return self._offsets(batch)[last.name] + last.bytes(batch)

    def poison(self, batch: int, stream: Stream) -> None:
        """Nothing of an earlier run may pass for a result of this one."""
        stream.fill(self._device, self._size(batch), POISON)

    def download(self, batch: int, stream: Stream) -> None:
        stream.download(self._host[: self._size(batch)], self._device)


class Pixels:
    """One input: pinned memory and device memory for the largest batch."""

    def __init__(self, resources: Resources, tensor: Tensor, largest: int) -> None:
        self.tensor = tensor
        size = tensor.bytes(largest)
        self.address = resources.device(size)
        self._host = resources.pinned(size).view(tensor.dtype).reshape(largest, *tensor.shape)

    def array(self, batch: int) -> Array:
        return self._host[:batch]

    def upload(self, batch: int, stream: Stream) -> None:
        stream.upload(self.address, self._host[:batch])


@dataclass(frozen=True)
class Step:
    """What is enqueued at once, and is one CUDA graph where batches run as graphs.

    inputs: pinned memory, by name, that is filled before it. behind: what its stream waits for first. done: recorded
    when it is over.
    """

    stream: Stream
    inputs: Mapping[str, Array]
    enqueue: Callable[[], None]
    behind: Event | None = None
    done: Event | None = None

    def go(self, how: Callable[[], None]) -> None:
        """how: puts it on its stream; `enqueue` or the launch of its graph."""
        if self.behind:
            self.stream.wait(self.behind)
        how()
        if self.done:
            self.done.record(self.stream)


@dataclass(frozen=True)
class Work:
    """All that one batch size needs. steps: in order, the first and the last on the main stream, which times a run;
    results are in `outputs` when it is done.

    contexts: with the stream that each runs on.
    """

    steps: Sequence[Step]
    outputs: Mapping[str, Array]
    contexts: Sequence[tuple[DeviceContext, Stream]]

    @property
    def bytes_in(self) -> int:
        return sum(array.nbytes for step in self.steps for array in step.inputs.values())


@dataclass
class _Ready:
    """A batch size that is kept ready. graphs: one for each step, or none."""

    work: Work
    graphs: tuple[Graph, ...] = ()
    settled: bool = False  # its first run is over

    def launches(self) -> list[Callable[[], None]]:
        """What puts each step on its stream."""
        if not self.graphs:
            return [step.enqueue for step in self.work.steps]
        return [partial(graph.launch, step.stream) for graph, step in zip(self.graphs, self.work.steps, strict=True)]

    def close(self) -> None:
        with ExitStack() as stack:  # the graphs first: they use the contexts
            for context, _ in reversed(self.work.contexts):
                stack.callback(context.close)
            for graph in self.graphs:
                stack.callback(graph.close)


class Batches:
    """Runs any number of cases in batches that the engines take, each batch size from CUDA graphs of its own.

    A batch size is captured when it first comes, and the `CAPTURED_SIZES` that were last used are kept. Threads take
    turns. A run that fails is waited for, and its batch size is made anew when it comes again. A capture that fails is
    no run that fails: from then on new batch sizes are enqueued, with a warning and a reason.

    profile: the batch sizes that the engines take. captured: those that run as graphs now; not_captured: why no more
    are made, None where there may be.
    """

    def __init__(
        self,
        resources: Resources,
        streams: Sequence[Stream],
        profile: Profile,
        make: Callable[[int], Work],
        clock: Clock,
        *,
        no_graphs: str | None,
        sizes: Sequence[int] = (),
    ) -> None:
        """streams: all that a run uses, the main one first. make: binds one batch size. no_graphs: why batches are not
        to run as graphs. sizes: the only batch sizes that may run, ascending; whatever the engines take if there are
        none."""
        self._resources, self._streams, self.profile = resources, tuple(streams), profile
        self._make, self._clock = make, clock
        self._lock = threading.Lock()
        self._ready: OrderedDict[int, _Ready] = OrderedDict()
        self._begin, self._end = resources.event(timing=True), resources.event(timing=True)
        self._closed = False
        self.not_captured = no_graphs
        self._sizes = tuple(sizes)
        self._most = self._sizes[-1] if self._sizes else profile.max

    @property
    def captured(self) -> tuple[int, ...]:
        return tuple(sorted(batch for batch, ready in list(self._ready.items()) if ready.graphs))

    def run(
        self, feeds: Mapping[str, Array], cases: int, take: Callable[[slice, Mapping[str, Array]], None]
    ) -> dict[str, float]:
        """feeds: checked arrays [cases, …]. take: is given the results of a slice of the cases, to be copied at once.

        Returns times in ms: `host_copies`, of pixels to pinned memory and of answers from it, and `device`, between
        the launch of the first graph and the end of the last; or of each stage, where no graph ran. Waiting for other
        threads is not included. What runs at the same time is counted twice: stages of two streams, and copies beside
        work of the device.
        """
        spent: dict[str, float] = {}
        with self._lock:
            if self._closed:
                raise closed()
            with on_device():
                for first in range(0, cases, self._most):
                    rows = slice(first, min(first + self._most, cases))
                    for stage, ms in self._run(feeds, rows, take).items():
                        spent[stage] = spent.get(stage, 0.0) + ms
            return spent

    def _run(
        self, feeds: Mapping[str, Array], rows: slice, take: Callable[[slice, Mapping[str, Array]], None]
    ) -> dict[str, float]:
        cases = rows.stop - rows.start
        batch = self._batch(cases)
        main = self._streams[0]
        ready = self._get(batch)
        copies = Stopwatch()
        with self._draining(batch):
            self._clock.start(on=not ready.graphs)
            for step, launch in zip(ready.work.steps, ready.launches(), strict=True):
                with copies:
                    for name, array in step.inputs.items():
                        np.copyto(array[:cases], feeds[name][rows])
                        array[cases:] = 0
                if ready.graphs and step is ready.work.steps[0]:
                    self._begin.record(main)
                step.go(launch)
            if ready.graphs:
                self._end.record(main)
            main.synchronize()
            spent = {"device": self._end.ms_since(self._begin)} if ready.graphs else self._clock.read()
            with copies:
                take(rows, {name: array[:cases] for name, array in ready.work.outputs.items()})
        if not ready.settled:
            ready.settled = True
            for context, _ in ready.work.contexts:
                context.settled()
        return spent | {"host_copies": copies.ms}

    def counts(self, cases: int) -> dict[str, int | str]:
        """Of a call of so many cases: bytes over the bus and CUDA graphs launched. Makes its batch sizes ready."""
        parts = self.parts(cases)
        with self._lock, on_device():
            if self._closed:
                raise closed()
            every = [self._get(batch) for batch in parts]
            works = [ready.work for ready in every]
            return {
                "device.bytes_in": sum(work.bytes_in for work in works),
                "device.bytes_out": sum(array.nbytes for work in works for array in work.outputs.values()),
                "device.graph_launches": sum(len(ready.graphs) for ready in every),
                "device.engine_launches": sum(len(work.contexts) for work in works),
            }

    def parts(self, cases: int) -> list[int]:
        """The batch sizes that a call of so many cases runs."""
        return [self._batch(min(self._most, cases - first)) for first in range(0, cases, self._most)]

    def _batch(self, cases: int) -> int:
        """The batch size that runs so many cases: a smaller batch is filled up with blank ones."""
        least = max(cases, self.profile.min)
        return next((size for size in self._sizes if size >= least), least)

    def _get(self, batch: int) -> _Ready:
        if batch in self._ready:
            self._ready.move_to_end(batch)
            return self._ready[batch]
        while len(self._ready) >= CAPTURED_SIZES:
            self._ready.popitem(last=False)[1].close()
        ready = self._ready[batch] = _Ready(self._make(batch))
        if self.not_captured is None:
            with self._draining(batch):
                self._clock.start(on=False)
                for step in ready.work.steps:
                    step.go(step.enqueue)  # what is allocated or compiled at the first run can't be captured
                self._streams[0].synchronize()
                if not all(context.capturable(stream) for context, stream in ready.work.contexts):
                    self._enqueue_from_here(f"TensorRT-RTX says that the engine can't be captured at batch {batch}")
                    return ready
                try:
                    for step in ready.work.steps:
                        ready.graphs += (capture(step.stream, step.enqueue),)
                except EngineError as error:
                    self._enqueue_from_here(f"the capture of batch {batch} failed: {error}")
                    for stream in self._streams:
                        stream.synchronize()
                    self._ready.pop(batch).close()  # its contexts have seen half a capture
                    ready = self._ready[batch] = _Ready(self._make(batch))
        return ready

    def _enqueue_from_here(self, reason: str) -> None:
        self.not_captured = reason
        warnings.warn(f"runs without CUDA graphs: {reason}", NotCaptured, stacklevel=2)

    @contextmanager
    def _draining(self, batch: int) -> Iterator[None]:
        """If it fails inside, nothing of it is under way afterwards, and nothing of this batch size is kept."""
        try:
            yield
        except BaseException:
            for stream in self._streams:
                with suppress(EngineError):  # it fails as the run did, and that is what is raised
                    stream.synchronize()
            if kept := self._ready.pop(batch, None):  # none where what was to take its place could not be made
                with suppress(EngineError):
                    kept.close()
            raise

    def close(self) -> None:
        """Wait for the run under way, then free the graphs and contexts. The engines and resources come after."""
        with self._lock:
            self._closed = True
            with on_device(), ExitStack() as stack:
                for ready in self._ready.values():
                    stack.callback(ready.close)
                self._ready.clear()


class TensorRtSession:
    """One engine from host memory to host memory, with a stream of its own. Threads take turns.

    Memory is allocated once, for the profile's largest batch; more cases run as several batches. Each batch size runs
    as a CUDA graph, unless there is a reason for `no_graphs`.
    """

    def __init__(
        self,
        load: Callable[[Resources], DeviceEngine],
        *,
        no_graphs: str | None = ASKED_NOT_TO,
        rebuilt: str | None = None,
    ) -> None:
        """rebuilt: how the engine that `load` gives came about, and why, if it is not the one beside its graph."""
        self.rebuilt = rebuilt
        with ExitStack() as made, on_device():
            resources = Resources()
            made.callback(resources.close)
            self._engine = load(resources)
            made.callback(self._engine.close)
            profile = self._engine.profile
            self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
            tensors = self._engine.tensors
            self._stream = resources.stream()
            self._clock = Clock(resources)
            self._pixels = {name: Pixels(resources, tensors[name], profile.max) for name in self.inputs}
            self._results = Results(resources, [tensors[name] for name in self.outputs], profile.max)
            self.batches = Batches(resources, (self._stream,), profile, self._make, self._clock, no_graphs=no_graphs)
            made.callback(self.batches.close)
            self._resources = made.pop_all()

    def _make(self, batch: int) -> Work:
        addresses = {name: one.address for name, one in self._pixels.items()} | self._results.addresses(batch)
        context, stream = self._engine.context(batch, addresses), self._stream

        def enqueue() -> None:
            with self._clock("transfers", stream):
                self._results.poison(batch, stream)
                for one in self._pixels.values():
                    one.upload(batch, stream)
            with self._clock("model", stream):
                context.execute(stream)
            with self._clock("transfers", stream):
                self._results.download(batch, stream)

        inputs = {name: one.array(batch) for name, one in self._pixels.items()}
        return Work([Step(stream, inputs, enqueue)], self._results.arrays(batch), [(context, stream)])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._engine.tensors

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs in the engine's types, bfloat16 as float32; they belong to the caller."""
        return self.timed(feeds)[0]

    def timed(
        self, feeds: Mapping[str, Array], into: Mapping[str, Array] = MappingProxyType({})
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """As `run`, with the times that `Batches.run` gives. into: outputs that are not to be new arrays."""
        cases = self._check(feeds)
        tensors = self._engine.tensors
        said = {
            name: np.empty((cases, *one.shape), np.float32 if one.element == "bfloat16" else one.dtype)
            for name, one in ((name, tensors[name]) for name in self.outputs if name not in into)
        }
        said |= into

        def take(rows: slice, found: Mapping[str, Array]) -> None:
            for name, array in said.items():
                np.copyto(array[rows], as_host(tensors[name], found[name]))

        return said, self.batches.run(feeds, cases, take)

    def _check(self, feeds: Mapping[str, Array]) -> int:
        if set(feeds) != set(self.inputs):
            raise EngineError(
                f"the engine was fed {', '.join(sorted(feeds)) or 'nothing'}, expected {', '.join(self.inputs)}",
                hint=_HINT,
            )
        cases = len(next(iter(feeds.values())))
        for name, array in feeds.items():
            tensor = self._engine.tensors[name]
            # NumPy's extensions have a bfloat16, which would be cast and not copied.
            fits = array.dtype == tensor.dtype and tensor.element != "bfloat16"
            if cases < 1 or not fits or array.shape != (cases, *tensor.shape):
                raise EngineError(f"`{name}` is {array.dtype}{list(array.shape)}, expected {tensor}", hint=_HINT)
        return cases

    def close(self) -> None:
        with on_device():
            self._resources.close()
