"""From pixels to probability on a simulated GPU. What has not been seen here is a real one.

Simulated: the CUDA runtime over host memory, which runs what is enqueued in every order that streams and events allow
(`simulated_cuda.py`); TensorRT's runtime, which executes an engine's ONNX graph with ONNX Runtime; CuPy; the driver
library. Real: the pipeline, the kernel's launcher and the kernel's source, compiled for the host; the bundle.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.engines.shared.blob_cache import BlobCache, CacheWarning
from mpmmu_rt.engines.tensorrt import RTX, EngineRebuilt
from mpmmu_rt.engines.tensorrt import run as tensorrt_run
from mpmmu_rt.engines.tensorrt.device_path import DevicePath, WholeGraph, WholeGraphInstead
from mpmmu_rt.engines.tensorrt.run import NotCaptured
from mpmmu_rt.engines.tensorrt.sidecar import Profile, Sidecar, write_profile
from mpmmu_rt.errors import BundleError, DigestMismatch, EngineError, MissingPackage, UsageError
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array
from mpmmu_rt.spec import Target as TargetName

from . import simulated_cuda, simulated_tensorrt
from .simulated_cuda import OK
from .simulated_cupy import ADA, HOPPER, CompileException, CUDADriverError, CUDARuntimeError, Kernel

Plug = Callable[..., Any]
STAGES = ("mammography", "ultrasound", "attention_pool", "head", "transfers")
# |got - want| of embeddings of order 1: float32 sums of some hundred terms in another order.
TOLERANCE = 2e-6


def run(pipeline: Any, cases: Any, rows: slice = slice(None)) -> tuple[Array, dict[str, Array], dict[str, float]]:
    pixels = {modality: cases.pixels[modality][rows] for modality in MODALITIES}
    embedding = np.full((len(pixels["mammography"]), cases.embedding.shape[1]), np.nan, np.float32)
    said, stages = pipeline.run(pixels, embedding)
    return embedding, said, stages


def check(pipeline: Any, cases: Any, rows: slice = slice(None)) -> dict[str, float]:
    embedding, said, stages = run(pipeline, cases, rows)
    np.testing.assert_allclose(embedding, cases.embedding[rows], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(said["probability"], cases.probability[rows], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(said["base_probability"], cases.base_probability[rows], rtol=0, atol=TOLERANCE)
    assert said["probability"].dtype == said["base_probability"].dtype == np.float32
    return stages


# ---------------------------------------------------------------- the same answer


@pytest.mark.slow
@pytest.mark.parametrize(("graphs", "ahead"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_every_batch_says_what_the_processor_says(
    plug: Plug, target: Any, cases: Any, engine: str, graphs: bool, ahead: bool
) -> None:
    """Also more cases than the largest batch; each batch size twice, so that a graph is made and launched again."""
    machine = plug(target(engine))
    pipeline = machine.open(graphs=graphs, ahead=ahead)
    assert isinstance(pipeline, DevicePath)
    assert (pipeline.name, pipeline.reason, pipeline.rebuilt) == ("device path", None, {})
    assert pipeline.head_target == TargetName(engine, "fp32")
    assert "stages" in pipeline.pool
    every = cases(75, machine.target)
    assert np.ptp(every.probability) > 0.01, "cases that are mixed up would pass"
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6), slice(6, 13), slice(13, 46), slice(2, 4), slice(5, 6)):
        stages = check(pipeline, every, rows)
        assert tuple(sorted(stages)) == tuple(sorted(("device", "host_copies") if graphs else (*STAGES, "host_copies")))
        assert min(stages.values()) > 0
    check(pipeline, every)
    assert pipeline.batches.captured == ((1, 2, 3, 7, 9, 33) if graphs else ())
    assert (pipeline.batches.not_captured is None) == graphs


def test_stages_of_a_call_are_parts_of_it(plug: Plug, cases: Any) -> None:
    """What `bench` adds up, and gives advice by."""
    machine, few = plug(), cases(3)
    with Predictor(machine.target.bundle, TargetName("tensorrt-rtx", "fp32"), unproven=True) as predictor:
        predictor.predict(few.pixels)
        start = time.perf_counter()
        spent = predictor.predict(few.pixels).stages_ms
        assert sum(spent.values()) < (time.perf_counter() - start) * 1e3
    assert set(spent) == {"device", "host_copies", "checks"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_feature_maps_in_half_precision(plug: Plug, target: Any, cases: Any, precision: str) -> None:
    machine = plug(target("tensorrt-rtx", precision))
    check(machine.open(), cases(7, machine.target))
    element = {"fp16": "Half", "bf16": "Bfloat16"}[precision]
    assert [one["ELEMENT"] for one in machine.cupy.launched] == [element]


@pytest.mark.slow
def test_a_bundle_as_the_export_writes_it(plug: Plug, exported: Any, cases: Any) -> None:
    """With engines that TensorRT-RTX really built, though what runs is the graph that they were built from."""
    few = cases(40)  # beyond the profile's largest batch
    for whole_graph in (False, True):
        pipeline = plug(exported).open(whole_graph=whole_graph)
        assert (pipeline.name, pipeline.rebuilt) == ("whole graph" if whole_graph else "device path", {})
        check(pipeline, few)
        assert pipeline.batches.captured == (8, 32)


@pytest.mark.slow
def test_the_predictor_says_what_it_says_on_onnx_runtime(plug: Plug, target: Any, cases: Any) -> None:
    machine = plug(target())
    bundle, few = machine.target.bundle, cases(7)
    with (
        Predictor(bundle, TargetName("onnxruntime", "fp32")) as host,
        Predictor(bundle, TargetName("tensorrt-rtx", "fp32"), unproven=True) as device,
    ):
        want, got = host.predict(few.pixels), device.predict(few.pixels)
        assert host.remarks == device.remarks == ()
        maps = {one: (host.feature_maps(few.pixels)[one], device.feature_maps(few.pixels)[one]) for one in MODALITIES}
    np.testing.assert_allclose(got.embedding, want.embedding, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(got.probability, want.probability, rtol=0, atol=TOLERANCE)
    assert got.base_probability is not None
    assert want.base_probability is not None
    np.testing.assert_allclose(got.base_probability, want.base_probability, rtol=0, atol=TOLERANCE)
    for ours, theirs in maps.values():
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_feature_maps_in_bfloat16_come_back_as_float32(plug: Plug, target: Any, cases: Any) -> None:
    """NumPy has no bfloat16: what it holds them in must not be taken for numbers."""
    machine = plug(target("tensorrt-rtx", "bf16"))
    few = cases(3, machine.target)
    with Predictor(machine.target.bundle, TargetName("tensorrt-rtx", "bf16"), unproven=True) as predictor:
        got = predictor.feature_maps(few.pixels)
    with Predictor(machine.target.bundle, TargetName("onnxruntime", "fp32")) as predictor:
        want = predictor.feature_maps(few.pixels)
    for modality in MODALITIES:
        assert got[modality].dtype == np.float32
        np.testing.assert_allclose(got[modality], want[modality], rtol=2**-8, atol=1e-6)
        assert not np.array_equal(got[modality], want[modality])


# ---------------------------------------------------------------- in every order


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("graphs", [True, False])
def test_every_order_that_the_device_may_choose(plug: Plug, cases: Any, graphs: bool, ahead: bool) -> None:
    few, orders = cases(5), set()
    for seed in range(24):
        machine = plug(seed=seed)
        pipeline = machine.open(graphs=graphs, ahead=ahead)
        for rows in (slice(0, 2), slice(2, 3), slice(3, 5), slice(0, 5)):
            check(pipeline, few, rows)
        orders.add(tuple(machine.cuda.order))
        machine.finish()
    assert len(orders) >= 10


class Careless:
    """Leaves out one call of the CUDA runtime, the `which`th of that name after it was planted."""

    def __init__(self, machine: Any, name: str, which: int) -> None:
        self.cuda, self.original, self.left = machine.cuda, getattr(machine.cuda, name), which
        setattr(machine.cuda, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        return (OK,) if self.left == 0 else self.original(*arguments)


@pytest.mark.parametrize(
    ("name", "which"),
    [("cudaStreamWaitEvent", 1), ("cudaStreamWaitEvent", 2), ("cudaEventRecord", 6), ("cudaStreamSynchronize", 1)],
)
def test_what_is_left_out_is_found(plug: Plug, cases: Any, name: str, which: int) -> None:
    """Each wait, the record that a wait is for, and the wait at the end: as a race, or as wrong numbers."""
    few, raced, wrong = cases(4), 0, 0
    for seed in range(12):
        machine = plug(seed=seed)
        machine.spoilt = True
        pipeline = machine.open(graphs=False)
        check(pipeline, few, slice(0, 2))
        Careless(machine, name, which)
        try:
            embedding, said, _ = run(pipeline, few, slice(2, 4))
            good = np.allclose(embedding, few.embedding[2:4], atol=TOLERANCE)
            wrong += not (good and np.allclose(said["probability"], few.probability[2:4], atol=TOLERANCE))
        except EngineError:
            wrong += 1  # what has not passed has no time
        if name == "cudaStreamWaitEvent" and which == 1:
            check(pipeline, few, slice(0, 2))  # the side stream runs ahead, into a run that is still there
        raced += bool(machine.cuda.races)
    if name == "cudaStreamWaitEvent" and which == 1:
        assert raced == wrong == 0, "the fork is for capture alone: every run ends with a wait for all of it"
    else:
        assert wrong > 0


@pytest.mark.parametrize("name", ["cudaStreamWaitEvent", "cudaEventRecord"])
def test_a_join_of_graphs_that_is_left_out_is_found(plug: Plug, cases: Any, name: str) -> None:
    """The only wait of a run that copies pixels ahead, and the record that it is for (before it: that of its begin)."""
    few, wrong = cases(4), 0
    for seed in range(12):
        machine = plug(seed=seed)
        machine.spoilt = True
        pipeline = machine.open(ahead=True)
        check(pipeline, few, slice(0, 2))
        Careless(machine, name, {"cudaStreamWaitEvent": 1, "cudaEventRecord": 2}[name])
        embedding, said, _ = run(pipeline, few, slice(2, 4))
        machine.cuda.synchronize()  # nobody waited for the ultrasound's encoder, which may not be taken from under it
        good = np.allclose(embedding, few.embedding[2:4], atol=TOLERANCE)
        wrong += not (good and np.allclose(said["probability"], few.probability[2:4], atol=TOLERANCE))
    assert wrong > 0


def test_pixels_are_copied_while_the_first_encoder_runs(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plug()
    pipeline, few, done = machine.open(ahead=True), cases(3), list[str]()
    check(pipeline, few)
    work = pipeline.batches._ready[3].work
    names = {array.ctypes.data: name for step in work.steps for name, array in step.inputs.items()}
    copy, launch = np.copyto, machine.cuda.cudaGraphLaunch

    def copyto(into: Array, array: Array) -> None:
        done.append(f"copy {names.get(into.ctypes.data, 'answers')}")
        copy(into, array)

    def launched(*given: Any) -> Any:
        done.append("launch")
        return launch(*given)

    monkeypatch.setattr(np, "copyto", copyto)
    machine.cuda.cudaGraphLaunch = launched
    check(pipeline, few)
    assert done == ["copy mammography", "launch", "copy ultrasound", "launch", "launch", *["copy answers"] * 3]


def test_a_fork_or_a_join_that_is_left_out_can_not_be_captured(plug: Plug, cases: Any) -> None:
    for which in (1, 2):
        machine = plug()
        machine.spoilt = True
        pipeline = machine.open()
        calls = machine.cuda.cudaStreamWaitEvent
        seen = [0]

        def wait(*arguments: Any, seen: list[int] = seen, which: int = which, calls: Any = calls) -> Any:
            seen[0] += 1  # two of the run before, two of the capture
            return (OK,) if seen[0] == 2 + which else calls(*arguments)

        machine.cuda.cudaStreamWaitEvent = wait
        with pytest.warns(NotCaptured, match="CUDA's cudaStream"):
            run(pipeline, cases(2))
        machine.cuda.cudaStreamWaitEvent = calls
        check(pipeline, cases(2))  # and the next one is sound


def test_weights_that_cupy_has_not_written_yet_are_not_there(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy writes on a stream of its own, for which none of ours waits: without a wait for the device it is a race."""
    few, wrong = cases(2), 0
    for seed in range(6):
        machine = plug(seed=seed)
        machine.spoilt = True
        with monkeypatch.context() as patch:
            patch.setattr(machine.cupy.cuda, "Device", lambda: SimpleNamespace(id=0, synchronize=lambda: None))
            pipeline = machine.open(graphs=False)
        embedding, _, _ = run(pipeline, few)
        wrong += not np.allclose(embedding, few.embedding, rtol=0, atol=TOLERANCE)
        assert "kernel beside write of CuPy's" in machine.cuda.races
    assert wrong > 0


# ---------------------------------------------------------------- nothing is allocated, nothing is left


def allocations(machine: Any) -> int:
    names = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags")
    return sum(machine.cuda.calls[name] for name in (*names, "cudaGraphInstantiate"))


@pytest.mark.parametrize(("graphs", "ahead"), [(True, False), (True, True), (False, False)])
def test_nothing_is_allocated_once_a_batch_size_is_warm(plug: Plug, cases: Any, graphs: bool, ahead: bool) -> None:
    machine = plug()
    pipeline, few = machine.open(graphs=graphs, ahead=ahead), cases(7)
    for rows in (slice(0, 3), slice(3, 7)):
        check(pipeline, few, rows)
    before, contexts = allocations(machine), machine.trt.contexts
    for rows in (slice(1, 4), slice(0, 4), slice(4, 7), slice(2, 6)):
        check(pipeline, few, rows)
    assert (allocations(machine), machine.trt.contexts) == (before, contexts)


def test_pixels_cross_the_bus_once_and_results_come_back_in_one_copy(plug: Plug, cases: Any) -> None:
    machine = plug()
    pipeline, few = machine.open(), cases(3)
    check(pipeline, few)
    machine.cuda.order.clear()
    launches = machine.cuda.calls["cudaGraphLaunch"]
    check(pipeline, few)
    assert machine.cuda.calls["cudaGraphLaunch"] == launches + 1
    ran = machine.cuda.order
    assert [ran.count(label) for label in ("copy to device", "copy to pinned", "engine", "kernel")] == [2, 1, 3, 4]


def test_only_the_latest_batch_sizes_are_kept(plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_run, "CAPTURED_SIZES", 2)
    machine = plug()
    pipeline, few = machine.open(), cases(4)
    for count in (1, 2, 1, 3, 4, 3):
        check(pipeline, few, slice(0, count))
    assert pipeline.batches.captured == (3, 4)
    assert machine.trt.contexts == 6
    assert machine.cuda.live()["Graph"] == 2


def test_blank_cases_fill_the_batches_of_an_engine_that_takes_no_smaller_ones(
    plug: Plug, target: Any, cases: Any
) -> None:
    machine = plug(target(profile=Profile(4, 4, 4)))
    pipeline, few = machine.open(), cases(7)
    for rows in (slice(0, 7), slice(0, 3), slice(6, 7)):
        check(pipeline, few, rows)
    assert pipeline.batches.captured == (4,)


def test_threads_take_turns(plug: Plug, cases: Any) -> None:
    machine = plug(seed=5)
    pipeline, few = machine.open(), cases(7)
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            machine.cuda.current.device = first % 2  # another device may be the current one of a thread
            for count in (1, 2, 3):
                check(pipeline, few, slice(first, first + count))
            assert machine.cuda.current.device == first % 2
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_is_closed_says_so(plug: Plug, cases: Any) -> None:
    machine = plug()
    pipeline = machine.open()
    check(pipeline, cases(2))
    pipeline.close()
    pipeline.close()
    with pytest.raises(EngineError, match="closed, expected an open one"):
        run(pipeline, cases(2))
    machine.finish()


# ---------------------------------------------------------------- failures


def test_every_allocation_that_fails_is_an_error_and_leaves_nothing(plug: Plug, cases: Any) -> None:
    machine = plug()
    check(machine.open(), cases(2))
    made = {name: machine.cuda.calls[name] for name in ("cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags")}
    machine.finish()
    assert min(made.values()) >= 3
    for name, count in made.items():
        for which in range(1, count + 1):
            machine = plug()
            machine.cuda.fail[name] = which
            with pytest.raises(EngineError, match=r"out of memory|can't be set up: cudaErrorMemoryAllocation"):
                check(machine.open(), cases(2))
            machine.finish()


@pytest.mark.parametrize(
    "name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphUpload"]
)
def test_a_capture_that_fails_is_remembered_and_what_it_was_for_is_enqueued(plug: Plug, cases: Any, name: str) -> None:
    machine = plug()
    pipeline = machine.open()
    check(pipeline, cases(3))
    machine.cuda.fail[name] = machine.cuda.calls[name] + 1
    with pytest.warns(NotCaptured, match=rf"the capture of batch 2 failed: CUDA's {name} failed: out of memory"):
        assert "device" not in check(pipeline, cases(2))
    assert "the capture of batch 2 failed" in pipeline.batches.not_captured
    assert [remark.partition(":")[0] for remark in pipeline.remarks] == ["batches run without CUDA graphs"]
    check(pipeline, cases(2))
    check(pipeline, cases(1))  # which asks for no other capture, and warns of nothing
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 2
    assert pipeline.batches.captured == (3,), "what was captured before serves on"
    assert "device" in check(pipeline, cases(3))


def test_what_can_not_be_made_after_a_lost_capture_is_an_error_with_its_cause(plug: Plug, cases: Any) -> None:
    machine = plug()
    pipeline = machine.open()

    def lost(*_: Any) -> tuple[Any, None]:
        machine.trt.refuse.add("create_execution_context")
        return machine.cuda.failure, None

    machine.cuda.cudaGraphInstantiate = lost
    with (
        pytest.warns(NotCaptured, match="the capture of batch 2 failed"),
        pytest.raises(EngineError, match="can't make an execution context: the simulated TensorRT says no"),
    ):
        run(pipeline, cases(2))
    machine.trt.refuse.clear()
    check(pipeline, cases(2))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("label", ["engine", "kernel"])
def test_a_capture_that_is_lost_unannounced_is_enqueued(
    plug: Plug, target: Any, cases: Any, engine: str, label: str, ahead: bool
) -> None:
    """Copying ahead, the encoders' graphs are made before the kernel's fails: they are given back."""
    machine = plug(target(engine), seed=4)
    machine.cuda.spoils.add(label)
    pipeline = machine.open(ahead=ahead)
    with pytest.warns(NotCaptured, match=r"failed: CUDA's cuda\w+ failed: .*\(cudaErrorStreamCaptureInvalidated\)"):
        check(pipeline, cases(7))
    check(pipeline, cases(2))
    check(pipeline, cases(7))
    assert pipeline.batches.captured == ()
    assert machine.cuda.live()["Graph"] == 0


def test_a_whole_graph_whose_capture_is_lost_is_enqueued(plug: Plug, cases: Any) -> None:
    machine = plug()
    machine.cuda.spoils.add("engine")
    pipeline = machine.open(whole_graph=True)
    with pytest.warns(NotCaptured, match="the capture of batch 2 failed"):
        embedding, _, stages = run(pipeline, cases(2))
    np.testing.assert_allclose(embedding, cases(2).embedding, rtol=0, atol=TOLERANCE)
    assert set(stages) == {"transfers", "model", "host_copies"}


def test_a_graph_that_can_not_be_launched_is_an_error_and_the_next_one_is_sound(plug: Plug, cases: Any) -> None:
    machine = plug()
    pipeline = machine.open()
    machine.cuda.fail["cudaGraphLaunch"] = 1
    with pytest.raises(EngineError, match=r"CUDA's cudaGraphLaunch failed: out of memory \(cudaErrorMemoryAlloc"):
        run(pipeline, cases(2))
    assert pipeline.batches.captured == ()
    check(pipeline, cases(2))
    assert pipeline.batches.captured == (2,)


@pytest.mark.parametrize(
    "call", ["deserialize_cuda_engine", "create_execution_context", "set_input_shape", "set_tensor_address"]
)
def test_what_tensorrt_refuses_is_an_error_with_its_log(plug: Plug, cases: Any, call: str) -> None:
    machine = plug()
    machine.trt.refuse.add(call)
    with pytest.raises(EngineError, match=r"tensorrt_rtx .*: the simulated TensorRT says no"):
        run(machine.open(), cases(2))
    machine.finish()


def test_what_tensorrt_raises_of_its_own_is_an_error_with_its_cause(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plug()
    pipeline = machine.open()

    def infer_shapes(context: simulated_tensorrt.Context) -> list[str]:
        raise RuntimeError("IExecutionContext::inferShapes: Error Code 7")

    with monkeypatch.context() as patch:
        patch.setattr(simulated_tensorrt.Context, "infer_shapes", infer_shapes)
        with pytest.raises(
            EngineError, match=r"tensorrt_rtx can't infer the shapes of a batch of 2: .*Code 7"
        ) as caught:
            run(pipeline, cases(2))
    assert isinstance(caught.value.__cause__, RuntimeError)
    check(pipeline, cases(2))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("kind", [CUDADriverError, CUDARuntimeError])
def test_a_kernel_that_can_not_be_launched_is_an_error_with_its_cause(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError], graphs: bool
) -> None:
    machine = plug()
    pipeline = machine.open(graphs=graphs)

    def launch(*arguments: Any, **options: Any) -> None:
        raise kind("too many resources requested")

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "__call__", launch)
        with pytest.raises(
            EngineError, match=r"the attention pool kernel \(.*\) can't be launched: too many"
        ) as caught:
            run(pipeline, cases(2))
    assert isinstance(caught.value.__cause__, kind)
    check(pipeline, cases(2))


def test_a_run_that_tensorrt_refuses_leaves_nothing_under_way(plug: Plug, cases: Any) -> None:
    for graphs in (True, False):
        machine = plug()
        pipeline = machine.open(graphs=graphs)
        machine.trt.refuse.add("execute_async_v3")
        with pytest.raises(EngineError, match="tensorrt_rtx failed while running: the simulated TensorRT says no"):
            run(pipeline, cases(2))
        assert not machine.cuda.pending
        assert machine.trt.contexts == 0
        machine.trt.refuse.clear()
        check(pipeline, cases(2))


def test_a_run_that_breaks_the_device_is_an_error(plug: Plug, cases: Any) -> None:
    machine = plug()
    pipeline = machine.open()
    check(pipeline, cases(2))
    machine.cuda.sticky = machine.cuda.cudaError_t.cudaErrorIllegalAddress
    for _ in range(2):
        with pytest.raises(EngineError, match="an illegal memory access was encountered"):
            run(pipeline, cases(2))
    machine.cuda.sticky = None


@pytest.mark.parametrize("error", [RuntimeError("no NVRTC"), CompileException("line 7")])
def test_a_kernel_that_can_not_be_compiled_is_an_error(plug: Plug, error: Exception) -> None:
    """And no reason to run anything else: it is there, and something is wrong with it."""
    machine = plug()
    machine.cupy.broken = error
    with pytest.raises(EngineError, match=f"the attention pool kernel can't be .*: {error}"):
        machine.open()
    machine.finish()


@pytest.mark.parametrize("idle", [*MODALITIES, "head", "model"])
@pytest.mark.parametrize("count", [1, 5])
def test_what_is_left_of_the_last_patient_is_never_an_answer(plug: Plug, cases: Any, idle: str, count: int) -> None:
    """An engine that says that it ran, and did nothing, leaves the numbers of the run before where they were."""
    machine, few = plug(cupy=idle != "model"), cases(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WholeGraphInstead)
        predictor = Predictor(machine.target.bundle, TargetName("tensorrt-rtx", "fp32"), unproven=True)
    with predictor:
        predictor.predict(few.pixels)
        machine.trt.idle.add(idle)
        with pytest.raises(EngineError, match=r"not finite|not numbers"):
            predictor.predict(few.pixels)


def test_engines_that_can_not_be_captured_run_without_a_graph_and_say_so(plug: Plug, cases: Any) -> None:
    machine = plug()
    machine.trt.capturable = False
    pipeline = machine.open()
    with pytest.warns(NotCaptured, match="the engine can't be captured at batch 2"):
        check(pipeline, cases(2))
    assert pipeline.batches.captured == ()
    assert "can't be captured" in pipeline.batches.not_captured
    assert [remark.partition(":")[0] for remark in pipeline.remarks] == ["batches run without CUDA graphs"]
    assert set(check(pipeline, cases(2))) == {*STAGES, "host_copies"}
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 0


# ---------------------------------------------------------------- the other way


def check_whole(pipeline: Any, cases: Any) -> None:
    assert isinstance(pipeline, WholeGraph)
    assert (pipeline.name, pipeline.pool) == ("whole graph", None)
    embedding, said, stages = run(pipeline, cases)
    np.testing.assert_allclose(embedding, cases.embedding, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(said["probability"], cases.probability, rtol=0, atol=TOLERANCE)
    assert set(stages) == {"device", "host_copies"}


def test_without_cupy_the_whole_graph_runs_and_says_so(plug: Plug, cases: Any) -> None:
    machine = plug(cupy=False)
    with pytest.warns(WholeGraphInstead, match="without the fused attention pool: .* needs the package `cupy`"):
        pipeline = machine.open()
    assert "cupy" in pipeline.reason
    assert pipeline.remarks == (
        f"the whole graph runs as one engine, without the fused attention pool: {pipeline.reason}",
    )
    check_whole(pipeline, cases(7))
    check_whole(pipeline, cases(75))


def test_a_bundle_without_weights_of_pools_runs_the_whole_graph(plug: Plug, target: Any, cases: Any) -> None:
    machine = plug(target(pool=False))
    with pytest.warns(WholeGraphInstead, match="its attention pools are of a kind of their own"):
        check_whole(machine.open(), cases(3))


def test_a_device_that_is_too_old_for_the_kernel_runs_the_whole_graph(plug: Plug, cases: Any) -> None:
    machine = plug(device=replace(ADA, capability=(7, 5)))
    with pytest.warns(WholeGraphInstead, match=r"compute capability 7\.5, expected 8\.0 or later"):
        check_whole(machine.open(), cases(3))


def test_the_whole_graph_can_be_asked_for(plug: Plug, cases: Any) -> None:
    pipeline = plug().open(whole_graph=True)
    assert pipeline.reason == "it was asked for"
    check_whole(pipeline, cases(3))


def test_cupy_before_14(plug: Plug, cases: Any) -> None:
    check(plug(old_cupy=True).open(), cases(3))


def test_blocks_that_share_a_sample(plug: Plug, cases: Any) -> None:
    check(plug(device=HOPPER).open(), cases(3))


def test_without_cuda_bindings_nothing_runs(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = plug()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackage, match="needs the package `cuda`"):
        machine.open()


def changed(target: Any, folder: Path, weights: dict[str, Array] | None = None, **entry: Any) -> Any:
    """A bundle with other weights of pools, or other facts."""
    shutil.copytree(target.bundle.path, folder)
    if weights is not None:
        np.savez(folder / "onnx/attention_pool.npz", **weights)  # type: ignore[arg-type]
    bundles.seal(folder, dict(target.bundle.entry) | entry)
    return replace(target, bundle=Bundle.open(folder))


def test_weights_that_are_not_those_of_the_encoders(
    plug: Plug, target: Any, weights: dict[str, Array], tmp_path: Path
) -> None:
    swapped = {"mammography": "eca", "ultrasound": "cbam"}
    right = {"mammography": "cbam", "ultrasound": "eca"}
    few = {name: array for name, array in weights.items() if "fc1" not in name}
    narrow = {name: array[:, :-1] if name.endswith("channel.fc1.weight") else array for name, array in weights.items()}
    message = "other weights for the attention pool of mammography than its encoder needs"
    for values, kinds in ((weights, swapped), (few, right), (narrow, right)):
        facts = {"weights": "onnx/attention_pool.npz", "kinds": kinds}
        machine = plug(changed(target(), tmp_path / str(id(values)), values, attention_pool=facts))
        with pytest.raises(BundleError, match=message):
            machine.open()
        machine.finish()


@pytest.mark.parametrize("wrong", [np.float64, "short"])
def test_an_embedding_that_does_not_fit_is_refused(plug: Plug, cases: Any, wrong: Any) -> None:
    machine, few = plug(), cases(3)
    rows = 2 if wrong == "short" else 3
    dtype = np.float32 if wrong == "short" else wrong
    for whole_graph in (False, True):
        with pytest.raises(UsageError, match=r"expected float32\[3, 128\]"):
            machine.open(whole_graph=whole_graph).run(few.pixels, np.empty((rows, 128), dtype))


# ---------------------------------------------------------------- engines that do not fit


def test_an_engine_of_another_version_is_built_again(plug: Plug, target: Any, cases: Any, tmp_path: Path) -> None:
    """By the real builder of TensorRT-RTX, from the graph beside it; the others are loaded as they are."""
    shutil.copytree(target().bundle.path, tmp_path / "old")
    path = tmp_path / "old/engines/tensorrt-rtx-fp32/ultrasound.engine.json"
    sidecar = replace(Sidecar.read(path), version="1.0.0")
    sidecar.write(path)
    bundles.seal(tmp_path / "old", dict(target().bundle.entry))
    machine = plug(replace(target(), bundle=Bundle.open(tmp_path / "old")))
    with pytest.warns(EngineRebuilt, match=r"ultrasound\.onnx is built anew: the engine was built by .* 1\.0"):
        pipeline = machine.open()
    assert list(pipeline.rebuilt) == ["ultrasound"]
    assert pipeline.rebuilt["ultrasound"].startswith("built anew: the engine was built by tensorrt_rtx 1.0.0")
    assert pipeline.remarks == (f"the engine of ultrasound was {pipeline.rebuilt['ultrasound']}",)
    check(pipeline, cases(3))


# ---------------------------------------------------------------- engines that were built here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobCache:
    monkeypatch.setenv(blob_cache.VARIABLE, str(tmp_path / "cache"))
    found = BlobCache.default()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def bare(target: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle for TensorRT as it is exported without a GPU: graphs, their profile, and no engine. Read only."""
    folder = tmp_path_factory.mktemp("bare") / "small.bundle"
    return stripped(target("tensorrt"), folder, Profile(2, 4, 5))


def stripped(of: Any, folder: Path, profile: Profile) -> Any:
    shutil.copytree(of.bundle.path, folder)
    graphs = folder / f"engines/{of.engine}-{of.precision}"
    for path in graphs.glob("*.engine*"):
        path.unlink()
    write_profile(graphs, profile)
    bundles.seal(folder, dict(of.bundle.entry))
    return replace(of, bundle=Bundle.open(folder), engines=())


class Starts:
    """One start of the program after the other; what TensorRT has built in one, it takes in the next."""

    def __init__(self, plug: Plug, of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plug, self.of, self.built, self.known, self.builds = plug, of, list[str](), dict[str, Any](), 0
        original = simulated_tensorrt.Builder.build_serialized_network

        def build(builder: simulated_tensorrt.Builder, network: Any, config: Any) -> Any:
            engine = original(builder, network, config)
            # No two builds are the same on a GPU: what follows the engine makes them differ here.
            engine = bytes(engine) + bytes([self.builds])
            self.builds += 1
            path = simulated_tensorrt._PARSED.path
            self.built.append(path.stem)
            builder._trt.note(engine, path, 32)
            return engine

        monkeypatch.setattr(simulated_tensorrt.Builder, "build_serialized_network", build)

    def again(self) -> Any:
        self.built.clear()
        machine = self.plug(self.of)
        machine.trt.built |= self.known
        self.known = machine.trt.built
        return machine


NO_ENGINE = "there is no {0}.engine beside it"


@pytest.mark.slow
def test_what_was_built_here_is_not_built_again_at_the_next_start(
    plug: Plug, bare: Any, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the feature maps, which are computed apart, come from the engines that run."""
    starts, few = Starts(plug, bare, monkeypatch), cases(12)
    bare_name = TargetName("tensorrt", "fp32")
    for how in ("built anew", "built here before, and kept"):
        machine = starts.again()
        with Predictor(bare.bundle, bare_name, unproven=True) as predictor:
            got = predictor.predict(few.pixels)
            assert predictor.remarks == tuple(
                f"the engine of {name} was {how}: {NO_ENGINE.format(name)}" for name in (*MODALITIES, "head")
            )
            known = dict(machine.trt.built)
            predictor.feature_maps(few.pixels)
            assert machine.trt.built == known, "feature_maps built engines of its own"
        np.testing.assert_allclose(got.probability, few.probability, rtol=0, atol=TOLERANCE)
        assert starts.built == ([*MODALITIES, "head"] if how == "built anew" else [])
    assert len(cache.entries()) == 3
    pipeline = machine.open()
    check(pipeline, few)
    assert pipeline.batches.captured == (2, 5), "the profile of the bundle: up to 5 at once, and no fewer than 2"


@pytest.mark.slow
def test_with_the_cache_off_engines_are_built_at_every_start(
    plug: Plug, bare: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(plug, bare, monkeypatch)
    for _ in range(2):
        pipeline = starts.again().open(whole_graph=True)
        assert starts.built == ["model"]
        assert pipeline.rebuilt == {"model": "built anew: there is no model.engine beside it"}
        check_whole(pipeline, cases(3))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["altered", "refused"])
def test_a_kept_engine_that_can_not_be_used_is_dropped_and_built_again(
    plug: Plug, bare: Any, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    starts = Starts(plug, bare, monkeypatch)
    starts.again().open(whole_graph=True)
    (path,) = cache.entries()
    if fault == "altered":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        starts.known.clear()
    machine = starts.again()
    said = "its SHA-256 is another" if fault == "altered" else "can't load the engine: the simulated TensorRT says no"
    with pytest.warns(CacheWarning, match=said):
        pipeline = machine.open(whole_graph=True)
    assert starts.built == ["model"]
    assert pipeline.rebuilt == {"model": "built anew: there is no model.engine beside it"}
    check_whole(pipeline, cases(3))
    pipeline = starts.again().open(whole_graph=True)
    assert starts.built == []
    assert pipeline.remarks[0].startswith("the engine of model was built here before, and kept: ")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["profile", "device", "capability", "graph", "library"])
def test_what_was_built_for_something_else_is_not_taken(
    plug: Plug, bare: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    starts = Starts(plug, bare, monkeypatch)
    starts.again().open(whole_graph=True)
    if what == "profile":
        starts.of = stripped(bare, tmp_path / "other", Profile(2, 4, 6))
    elif what == "graph":
        shutil.copytree(bare.bundle.path, tmp_path / "other")
        graph = tmp_path / "other/engines/tensorrt-fp32/model.onnx"
        graph.write_bytes(graph.read_bytes() + b"\x1a\x00")  # an empty producer_version: the same model in other bytes
        bundles.seal(tmp_path / "other", dict(bare.bundle.entry))
        starts.of = replace(bare, bundle=Bundle.open(tmp_path / "other"))
    machine = starts.again()
    if what == "library":
        machine.trt.__version__ = "99.0"
    elif what in ("device", "capability"):
        driver: Any = type(ctypes.CDLL("libcuda.so.1"))
        name = {"device": "GPU_NAME", "capability": "CAPABILITY"}[what]
        monkeypatch.setitem(driver.cuDeviceGetName.__globals__, name, {"device": b"L4", "capability": 86}[what])
    machine.open(whole_graph=True)
    assert starts.built == ["model"]
    assert len(cache.entries()) == 2


@pytest.mark.slow
def test_the_engine_of_the_bundle_comes_before_one_that_is_kept(
    plug: Plug, target: Any, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is refused is replaced with a warning at every start, by what was built at the first."""
    good = target("tensorrt-rtx", profile=Profile(1, 8, 32))
    shutil.copytree(good.bundle.path, tmp_path / "old")
    path = tmp_path / "old/engines/tensorrt-rtx-fp32/model.engine.json"
    replace(Sidecar.read(path), version="1.0.0").write(path)
    bundles.seal(tmp_path / "old", dict(good.bundle.entry))
    starts = Starts(plug, replace(good, bundle=Bundle.open(tmp_path / "old")), monkeypatch)
    for how in (r"model\.onnx is built anew", r"model\.onnx was built here before, and kept"):
        machine = starts.again()
        with pytest.warns(EngineRebuilt, match=f"{how}: the engine was built by tensorrt_rtx 1.0.0"):
            check_whole(machine.open(whole_graph=True), cases(3))
    starts.of = good
    pipeline = starts.again().open(whole_graph=True)
    assert (starts.built, pipeline.rebuilt) == ([], {})


@pytest.mark.slow
def test_an_engine_that_a_bundle_for_tensorrt_rtx_lacks_is_missed(
    plug: Plug, target: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = Starts(plug, stripped(target(), tmp_path / "b", Profile(1, 2, 4)), monkeypatch)
    with pytest.warns(EngineRebuilt, match=r"model\.onnx is built anew: there is no model\.engine beside it"):
        starts.again().open(whole_graph=True)


def test_a_graph_that_no_engine_belongs_to_is_built_without_a_warning(
    plug: Plug, target: Any, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the export runs the head on its own: nothing is missing there. Under `suspended` nothing is kept either."""
    starts, few = Starts(plug, target(), monkeypatch), cases(3)
    starts.again()
    with Predictor(target().bundle, TargetName("tensorrt-rtx", "fp32"), unproven=True) as predictor:
        with blob_cache.suspended():
            said = predictor.run_graph("head", {"embedding": few.embedding})
        assert predictor.remarks == ()
    np.testing.assert_allclose(said["probability"], few.probability, rtol=0, atol=TOLERANCE)
    assert starts.built == ["head"]
    assert cache.entries() == {}


def test_what_tensorrt_rtx_compiles_is_kept_for_other_contexts_and_other_starts(
    plug: Plug, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_run, "CAPTURED_SIZES", 1)
    few, once = cases(3), [(name, batch) for batch in (2, 3) for name in ("ultrasound", "mammography", "head")]
    machine = plug()
    pipeline = machine.open()
    for count in (2, 3, 2):  # of which none finds the contexts of the one before
        check(pipeline, few, slice(0, count))
    assert machine.trt.compiled == once
    assert len(cache.entries()) == 3, "stored while it runs: a process that is killed closes nothing"
    sizes = list(cache.entries().values())
    machine = plug(seed=1)
    pipeline = machine.open(graphs=False)
    for count in (3, 2):
        check(pipeline, few, slice(0, count))
    assert machine.trt.compiled == []
    check(pipeline, few, slice(0, 1))
    assert {batch for _, batch in machine.trt.compiled} == {1}
    assert sum(cache.entries().values()) > sum(sizes), "what came to it is stored as well"
    machine = plug()
    machine.open(whole_graph=True)
    assert len(cache.entries()) == 3, "nothing was compiled yet"


def test_what_another_gpu_has_compiled_is_dropped_and_compiled_anew(plug: Plug, cases: Any, cache: BlobCache) -> None:
    """By TensorRT-RTX's own word, which sees more than the facts that an entry is stored under."""
    check(plug().open(), cases(2))
    machine = plug()
    machine.trt.gpu = "a GPU of the same name with fewer multiprocessors"
    with pytest.warns(CacheWarning, match="can't be used: tensorrt_rtx does not take it") as said:
        pipeline = machine.open()
    assert len(said) == 3
    check(pipeline, cases(2))
    assert len(machine.trt.compiled) == 3
    machine = plug()
    machine.trt.gpu = "a GPU of the same name with fewer multiprocessors"
    check(machine.open(), cases(2))
    assert machine.trt.compiled == []


def test_what_can_not_be_kept_costs_no_answer(
    plug: Plug, cases: Any, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plug()
    with monkeypatch.context() as patch:
        patch.setattr(simulated_tensorrt.RuntimeCache, "serialize", lambda self: None)
        check(machine.open(), cases(2))
    assert cache.entries() == {}


def test_without_a_cache_other_contexts_still_find_what_was_compiled(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_run, "CAPTURED_SIZES", 1)
    machine = plug()
    pipeline, few = machine.open(), cases(3)
    for count in (2, 3, 2):
        check(pipeline, few, slice(0, count))
    assert len(machine.trt.compiled) == 6


@pytest.mark.parametrize("lost", ["_how", "_compiled"])
def test_the_simulation_sees_a_context_that_outlives_what_it_was_made_with(
    plug: Plug, cases: Any, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plug()
    machine.spoilt = True
    pipeline = machine.open()
    make = tensorrt_run.LoadedEngine.context

    def context(engine: Any, *arguments: Any) -> Any:
        made = make(engine, *arguments)
        setattr(engine, lost, None)
        made._compiled = None
        return made

    monkeypatch.setattr(tensorrt_run.LoadedEngine, "context", context)
    with pytest.raises(simulated_cuda.Violation, match="outlived its runtime"):
        check(pipeline, cases(2))


def test_a_graph_that_is_gone_is_an_error(plug: Plug, tmp_path: Path) -> None:
    plug()
    with pytest.raises(EngineError, match=r"head\.onnx can't be read \(No such file") as caught:
        RTX.load(tmp_path / "head.onnx", "fp32", 1)
    assert caught.value.hint


@pytest.mark.slow
def test_without_platformdirs_engines_are_built_and_it_is_said(
    plug: Plug, bare: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device may hold NumPy and TensorRT alone."""
    starts = Starts(plug, bare, monkeypatch)
    monkeypatch.delenv(blob_cache.VARIABLE)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    machine = starts.again()
    with pytest.warns(
        CacheWarning, match="not kept, and built again at every start: .* needs the package `platformdirs`"
    ):
        pipeline = machine.open(whole_graph=True)
    check_whole(pipeline, cases(3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("head", r"head\.engine has 14 bytes and another SHA-256"),  # once the pool's weights are read
        ("model", r"model\.engine is not the engine that was exported"),
    ],
)
def test_an_engine_that_is_replaced_after_opening_is_not_loaded(
    plug: Plug, target: Any, tmp_path: Path, name: str, message: str
) -> None:
    shutil.copytree(target().bundle.path, tmp_path / "b")
    machine = plug(replace(target(), bundle=Bundle.open(tmp_path / "b")))
    path = tmp_path / f"b/engines/tensorrt-rtx-fp32/{name}.engine"
    sidecar = Sidecar.read(path.with_name(f"{name}.engine.json"))
    path.write_bytes(b"another engine")
    digest = hashlib.sha256(b"another engine").hexdigest()
    replace(sidecar, engine_sha256=digest, engine_bytes=14).write(path.with_name(f"{name}.engine.json"))
    with pytest.raises(DigestMismatch, match=message):
        machine.open(whole_graph=name == "model")


def test_a_target_without_the_graph_that_runs_instead(plug: Plug, target: Any, tmp_path: Path) -> None:
    shutil.copytree(target().bundle.path, tmp_path / "few")
    for path in (tmp_path / "few/engines/tensorrt-rtx-fp32").glob("model.*"):
        path.unlink()
    bundles.seal(tmp_path / "few", dict(target().bundle.entry))
    machine = plug(replace(target(), bundle=Bundle.open(tmp_path / "few")), cupy=False)
    with (
        pytest.warns(WholeGraphInstead),
        pytest.raises(BundleError, match=r"holds no engines/tensorrt-rtx-fp32/model\.onnx"),
    ):
        machine.open()


def test_engines_that_do_not_belong_together(plug: Plug, target: Any, tmp_path: Path) -> None:
    """Swapped with another's graph and engine, as no digest would tell: sizes and names do."""
    for number, (name, other, message) in enumerate(
        [
            ("mammography", "head", r"mammography has .*, expected mammography_pixels uint8"),
            ("head", "mammography", r"the head has .*, expected embedding float32\[N, 128\]"),
            ("model", "head", r"the whole graph has .*, expected embedding float32\[N, 128\]"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(target().bundle.path, folder)
        into = folder / "engines/tensorrt-rtx-fp32"
        for suffix in (".onnx", ".engine", ".engine.json"):
            shutil.copy(into / f"{other}{suffix}", into / f"{name}{suffix}")
        bundles.seal(folder, dict(target().bundle.entry))
        machine = plug(replace(target(), bundle=Bundle.open(folder)))
        with pytest.raises(EngineError, match=message):
            machine.open(whole_graph=name == "model")
        machine.finish()


def test_engines_for_different_batches_run_those_that_all_take(
    plug: Plug, target: Any, cases: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(target().bundle.path, folder)
    path = folder / "engines/tensorrt-rtx-fp32/head.engine.json"
    for profile, message in ((Profile(2, 2, 3), None), (Profile(40, 40, 40), "take different batches")):
        replace(Sidecar.read(path), profile=profile).write(path)
        bundles.seal(folder, dict(target().bundle.entry))
        machine = plug(replace(target(), bundle=Bundle.open(folder)))
        if message:
            with pytest.raises(EngineError, match=message):
                machine.open()
        else:
            pipeline = machine.open()
            check(pipeline, cases(7))
            assert pipeline.batches.captured == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("graphs", "ahead", "launches"), [(True, False, 1), (True, True, 3), (False, False, 0)])
def test_bytes_and_launches_are_counted(
    plug: Plug, target: Any, cases: Any, graphs: bool, ahead: bool, launches: int
) -> None:
    """Of 40 cases in batches of at most 33: 33 and 7."""
    machine = plug(target())
    pipeline = machine.open(graphs=graphs, ahead=ahead)
    check(pipeline, cases(40))
    pool = {batch: pipeline._pool.launches(batch) for batch in (33, 7)}
    size = machine.target.bundle.preprocessing.size
    head = pipeline._engines["head"].tensors
    per_case = sum(head[name].bytes(1) for name in ("embedding", "probability", "base_probability"))
    assert pipeline.counts(40) == {
        "device.bytes_in": 40 * 2 * size * size,
        "device.bytes_out": 40 * per_case,
        "device.graph_launches": 2 * launches,
        "device.engine_launches": 6,
        "device.pool_kernels": sum(pool.values()),
    }
    assert min(pool.values()) >= 2


def test_batch_sizes_that_gave_way_are_counted_and_closed_ones_are_not(
    plug: Plug, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_run, "CAPTURED_SIZES", 1)
    machine = plug()
    pipeline = machine.open()
    check(pipeline, cases(2))
    counted = pipeline.counts(2)
    check(pipeline, cases(3))
    assert pipeline.counts(2) == counted
    check(pipeline, cases(3))
    pipeline.close()
    with pytest.raises(EngineError, match="closed, expected an open one"):
        pipeline.counts(2)
