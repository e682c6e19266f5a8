"""The simulator is as the package that it stands for, and finds what it is there to find."""

from __future__ import annotations

import ast
import ctypes
import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.engines.tensorrt import cuda as layer
from mpmmu_rt.engines.tensorrt.cuda import Resources, Stream, capture
from mpmmu_rt.errors import EngineError

from .simulated_cuda import OK, WITH_VALUE, SimulatedCuda, Violation

real = importlib.import_module("cuda.bindings.runtime")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    simulated = SimulatedCuda(seed=1)
    simulated.eager = 0.0
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", simulated)
    return simulated


def functions() -> list[str]:
    return [name for name, _ in inspect.getmembers(SimulatedCuda, inspect.isfunction) if name.startswith("cuda")]


def test_every_name_that_is_asked_for_exists_in_the_real_package() -> None:
    """By the source: strings that are functions' names, and attributes of the module."""
    tree = ast.parse(Path(layer.__file__).read_text(encoding="utf-8"))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    asked = {name for name in named if name.startswith("cuda") and name.isidentifier()}
    asked |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    assert len(asked) > 25
    enumerations = [real.cudaError_t, real.cudaMemcpyKind, real.cudaStreamCaptureMode]
    for name in asked:
        assert hasattr(real, name) or any(hasattr(one, name) for one in enumerations), name


@pytest.mark.parametrize("name", functions())
def test_signatures_are_the_real_ones(name: str) -> None:
    """And how many values come back, which the real function tells without a driver too: None for each that failed."""
    mine = list(inspect.signature(getattr(SimulatedCuda, name)).parameters)[1:]
    function = getattr(real, name)
    assert mine == list(inspect.signature(function).parameters)
    if name == "cudaMemcpyAsync":
        arguments: list[object] = [0, 0, 0, real.cudaMemcpyKind.cudaMemcpyHostToDevice, 0]
    elif name == "cudaStreamBeginCapture":
        arguments = [0, real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal]
    else:
        arguments = [0] * len(mine)
    if real.cudaGetDevice()[0] == OK:
        pytest.skip("there is a GPU, which these arguments would reach")
    error, *values = function(*arguments)
    assert error != OK
    assert len(values) == (name in WITH_VALUE)


def test_memory_is_poisoned_and_guarded(cuda: SimulatedCuda) -> None:
    memory = Resources()
    stream = memory.stream()
    address, host = memory.device(16), memory.pinned(16)
    stream.download(host, address)
    stream.synchronize()
    assert np.isnan(host.view(np.float32)).all()
    with pytest.raises(Violation, match=r"bytes at .* are no device memory"):
        stream.upload(address + 8, host)
    with pytest.raises(Violation, match="are no pinned memory"):
        stream.upload(address, np.zeros(16, np.uint8))
    memory.close()
    with pytest.raises(Violation, match=r"a stream that is none|no device memory"):
        stream.fill(address, 16, 0)
    cuda.close()
    assert len(cuda.violations) == 3
    assert not cuda.live()


def test_writes_beside_a_block_and_after_it_was_freed_are_found(cuda: SimulatedCuda) -> None:
    first, second = (cuda.allocate(16, "device", 0) for _ in range(2))
    ctypes.memset(first + 16, 0, 1)
    cuda.cudaFree(second)
    ctypes.memset(second, 0, 1)
    cuda.close()
    assert cuda.violations == [
        "a write beside a block of 16 bytes",
        "a write to a block of 16 bytes that was freed",
    ]


def two(memory: Resources) -> tuple[Stream, Stream]:
    return memory.stream(), memory.stream()


def test_unordered_operations_are_races_and_ordered_ones_are_not(cuda: SimulatedCuda) -> None:
    memory = Resources()
    first, second = two(memory)
    address, event = memory.device(16), memory.event()
    first.fill(address, 16, 1)
    event.record(first)
    second.wait(event)
    second.fill(address, 16, 2)
    assert not cuda.races
    first.fill(address + 8, 8, 3)
    assert cuda.races == ["fill beside fill"]
    second.fill(address, 8, 4)
    assert len(cuda.races) == 1, "another part of the block"
    memory.close()
    assert cuda.violations == ["device memory was freed while it is in use"]


def test_both_orders_of_a_race_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    last = set()
    for seed in range(20):
        cuda = SimulatedCuda(seed)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        memory = Resources()
        (first, second), address, host = two(memory), memory.device(1), memory.pinned(1)
        first.fill(address, 1, 1)
        second.fill(address, 1, 2)
        for stream in (first, second):
            stream.synchronize()
        first.download(host, address)
        first.synchronize()
        last.add(int(host[0]))
        memory.close()
    assert last == {1, 2}


def test_what_can_not_be_captured(cuda: SimulatedCuda) -> None:
    memory = Resources()
    (first, second), event, outside = two(memory), memory.event(), memory.event()
    address = memory.device(16)
    outside.record(second)

    def fork_and_forget() -> None:
        event.record(first)
        second.wait(event)
        second.fill(address, 16, 0)

    for enqueue, message in (
        (lambda: memory.device(16), r"cudaMalloc failed: .* \(cudaErrorStreamCaptureUnsupported\)"),
        (first.synchronize, "cudaErrorStreamCaptureUnsupported"),
        (fork_and_forget, "cudaErrorStreamCaptureUnjoined"),
        (lambda: first.wait(outside), "cudaErrorStreamCaptureIsolation"),
    ):
        with pytest.raises(EngineError, match=message):
            capture(first, enqueue)  # type: ignore[arg-type]
        assert not cuda.captures
        assert first.handle.capture is second.handle.capture is None
    memory.close()
    assert not cuda.live()


def test_a_graph_runs_when_it_is_launched_and_as_often(cuda: SimulatedCuda) -> None:
    memory = Resources()
    (first, second), event, back = two(memory), memory.event(), memory.event()
    address, host = memory.device(2), memory.pinned(2)

    def enqueue() -> None:
        event.record(first)
        second.wait(event)
        second.fill(address, 1, 7)
        back.record(second)
        first.fill(address + 1, 1, 8)
        first.wait(back)
        first.download(host, address)

    graph = capture(first, enqueue)
    assert list(host) == [0, 0]
    for _ in range(2):
        host[:] = 0
        graph.launch(first)
        first.synchronize()
        assert list(host) == [7, 8]
    graph.close()
    memory.close()
    assert not cuda.races
    assert not cuda.violations
    assert not cuda.live()


def test_what_nobody_has_any_more_is_freed(cuda: SimulatedCuda) -> None:
    memory = Resources()
    memory.device(16)
    memory.pinned(16)
    assert sum(cuda.live().values()) == 2
    del memory
    assert not cuda.live()


def test_an_error_carries_the_text_of_cuda(cuda: SimulatedCuda) -> None:
    cuda.fail["cudaMalloc"] = 1
    with pytest.raises(EngineError) as caught:
        Resources().device(16)
    assert str(caught.value) == "CUDA's cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)"
    assert caught.value.hint
