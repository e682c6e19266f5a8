"""`onnxruntime-cuda` on the device path: simulated CUDA, CuPy and CUDA provider; real sessions, graphs and kernel."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import convolution, device_variants
from benchmarks.gpu.device_answers import Cases
from benchmarks.gpu.stage import NEVER, Deadline
from mpmmu_rt import verify
from mpmmu_rt.engines.onnxruntime_cuda import ENGINE, SIZES, HostHeadInstead, OnnxRuntimeCuda
from mpmmu_rt.engines.shared import onnxruntime_device
from mpmmu_rt.engines.tensorrt.cuda import Stream
from mpmmu_rt.engines.tensorrt.run import NotCaptured
from mpmmu_rt.errors import EngineError
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Target

from .simulated_onnxruntime import SimulatedOnnxRuntime

FP32 = Target("onnxruntime-cuda", "fp32")
TOLERANCE = 1e-5
Plug = Callable[..., Any]


@pytest.fixture
def cuda_ort(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, SimulatedOnnxRuntime]]:
    """A machine with an ONNX Runtime that was built for CUDA."""

    def make(**options: Any) -> tuple[Any, SimulatedOnnxRuntime]:
        machine = plug(**options)
        runtime = SimulatedOnnxRuntime(machine.cuda)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return machine, runtime

    return make


def open_on(machine: Any, engine: OnnxRuntimeCuda = ENGINE, **options: Any) -> Any:
    pipeline = engine.pipeline(machine.target.bundle, "fp32", 1, **options)
    machine.opened.append(pipeline)
    return pipeline


def check(pipeline: Any, cases: Any, rows: slice = slice(None)) -> dict[str, float]:
    want = cases.embedding[rows]
    embedding = np.full_like(want, np.nan)
    said, stages = pipeline.run({name: cases.pixels[name][rows] for name in MODALITIES}, embedding)
    np.testing.assert_allclose(embedding, want, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(said["probability"], cases.probability[rows], rtol=0, atol=TOLERANCE)
    return dict(stages)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_it_runs_the_device_path_in_sizes_that_verify_asks(cuda_ort: Any, cases: Any, seed: int) -> None:
    machine, runtime = cuda_ort(seed=seed)
    pipeline, many = open_on(machine), cases(35)
    assert (pipeline.name, str(pipeline.head_target)) == ("device path", "onnxruntime-cuda:fp32")
    for rows in (slice(3, 4), slice(0, 35), slice(20, 25), slice(1, 3), slice(0, 9)):
        stages = check(pipeline, many, rows)
        assert set(stages) == {*MODALITIES, "attention_pool", "head", "transfers", "host_copies"}
    assert set(runtime.ran) == set(SIZES)
    assert runtime.ran == {1: 3, 32: 6, 8: 6, 2: 3}, "three sessions: 1; 32 and 3; 5; 2; 9"


def test_a_graph_on_its_own_runs_in_those_sizes_as_well(cuda_ort: Any, cases: Any) -> None:
    machine, runtime = cuda_ort()
    graph, pixels = ENGINE.graph(machine.target.bundle, "ultrasound", "fp32"), cases(35).pixels["ultrasound"]
    session = ENGINE.load(graph, "fp32", 1)
    want = session.run({"pixels": pixels[:1]})["feature_map"]
    for count in (2, 5, 35):
        got = session.run({"pixels": pixels[:count]})["feature_map"]
        assert len(got) == count
        np.testing.assert_allclose(got[:1], want, rtol=0, atol=TOLERANCE)
    last = session.run({"pixels": pixels[34:]})["feature_map"]
    np.testing.assert_allclose(got[34:], last, rtol=0, atol=TOLERANCE)
    assert set(runtime.ran) == set(SIZES)


def test_inputs_of_fewer_cases_are_not_filled_up(cuda_ort: Any) -> None:
    """Zeros would be taken for feature maps of patients."""
    machine, _ = cuda_ort()
    bundle = machine.target.bundle
    session = ENGINE.load(bundle.graph("attention_pool_onnxruntime"), "fp32", 1)
    maps = {name: np.ones((5, *bundle.tensors[name].shape[1:]), np.float32) for name in session.inputs}
    assert len(session.run(maps)["embedding"]) == 5
    with pytest.raises(EngineError, match="given 5 of mammography_feature_map, 3 of ultrasound_feature_map, expected"):
        session.run(maps | {"ultrasound_feature_map": maps["ultrasound_feature_map"][:3]})
    assert len(session.run({name: array[:0] for name, array in maps.items()})["embedding"]) == 0
    with pytest.raises(EngineError, match="given nothing"):
        session.run({})


def test_the_sizes_are_those_that_verify_asks() -> None:
    """No batch may reach cuDNN of a size at which the answers were not held to those of batch 1."""
    asked = set()
    for batch in verify.BATCHES:
        whole, rest = divmod(batch, SIZES[-1])
        asked |= {SIZES[-1]} if whole else set()
        asked |= {next(size for size in SIZES if size >= rest)} if rest else set()
    assert asked == set(SIZES)


def test_a_run_waits_once_and_is_never_captured(cuda_ort: Any, cases: Any) -> None:
    machine, _ = cuda_ort()
    pipeline, few = open_on(machine), cases(2)
    check(pipeline, few)
    waits = machine.cuda.calls["cudaStreamSynchronize"]
    check(pipeline, few)
    assert machine.cuda.calls["cudaStreamSynchronize"] == waits + 1
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 0
    assert pipeline.remarks == (f"batches run without CUDA graphs: {onnxruntime_device.NOT_CAPTURED}",)


def test_capturing_is_found_out_by_the_simulation(cuda_ort: Any, cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it tried, the process would end."""
    machine, _ = cuda_ort()
    machine.spoilt = True
    monkeypatch.setattr(onnxruntime_device.SessionContext, "capturable", lambda *_: True)
    pipeline = open_on(machine)
    pipeline.batches.not_captured = None
    with pytest.warns(NotCaptured, match="the capture of batch 2 failed"):
        pipeline.batches._get(2)
    assert machine.cuda.violations == ["ONNX Runtime ends the process when its caller captures a run"]


def test_tf32_is_off_in_every_session_and_read_back(cuda_ort: Any) -> None:
    machine, runtime = cuda_ort()
    open_on(machine)
    open_on(machine, host_head=True)
    asked = list(runtime.asked)
    assert len(asked) == 6
    assert {one["use_tf32"] for one in asked} == {"0"}
    assert {one["cudnn_conv_algo_search"] for one in asked} == {"DEFAULT"}, "the others are TF32 at some sizes"
    assert [one["has_user_compute_stream"] for one in asked] == ["1"] * 3 + ["0"] * 3
    assert len({one["user_compute_stream"] for one in asked[:3]}) == 2, "the encoders run beside each other"
    runtime.stubborn = {"use_tf32": "1"}
    with pytest.raises(EngineError, match="was to run with use_tf32 0 on CUDAExecutionProvider, which says 1"):
        open_on(machine)
    runtime.stubborn, runtime.silent = {}, {"use_tf32"}
    with pytest.raises(EngineError, match="was to run with use_tf32 0 on CUDAExecutionProvider, which says nothing of"):
        open_on(machine)


def test_without_cupy_the_head_is_on_the_host_and_sizes_are_the_same(cuda_ort: Any, cases: Any) -> None:
    machine, runtime = cuda_ort(cupy=False)
    with pytest.warns(HostHeadInstead, match="the fused attention pool needs the package `cupy`"):
        pipeline = open_on(machine)
    assert pipeline.remarks[0].startswith("the attention pool runs as operators of ONNX Runtime, and the head on the h")
    many = cases(35)
    for rows in (slice(0, 35), slice(2, 7), slice(0, 1), slice(4, 6)):
        check(pipeline, many, rows)
    assert set(runtime.ran) == set(SIZES)


def test_a_head_that_can_not_run_on_the_gpu_runs_on_the_host(cuda_ort: Any, cases: Any) -> None:
    machine, runtime = cuda_ort()
    runtime.elsewhere.add("head")
    with pytest.warns(HostHeadInstead, match="the stacking head can't run on the GPU: head.onnx was asked to"):
        pipeline = open_on(machine)
    assert str(pipeline.head_target) == "onnxruntime:fp32"
    check(pipeline, cases(2))
    runtime.elsewhere.add("mammography_onnxruntime")
    with pytest.raises(EngineError, match="got 1 nodes elsewhere, Conv `all` on CPUExecutionProvider first"):
        open_on(machine)


def test_without_cuda_bindings_as_well(cuda_ort: Any, cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _ = cuda_ort()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.warns(HostHeadInstead, match="the device path needs the package `cuda`"):
        pipeline = open_on(machine)
    check(pipeline, cases(2))


def test_onnxruntimes_own_graphs_get_a_number_for_each_size(cuda_ort: Any, cases: Any) -> None:
    machine, runtime = cuda_ort()
    pipeline, few = open_on(machine, OnnxRuntimeCuda(enable_cuda_graph="1")), cases(8)
    for rows in (slice(0, 2), slice(0, 8), slice(3, 5), slice(1, 2), slice(0, 8)):
        check(pipeline, few, rows)
    assert [len(session.captured) for session in runtime.sessions] == [3, 3, 3]
    assert len({number for session in runtime.sessions for number in session.captured}) == 9


@pytest.mark.parametrize("graph", ["ultrasound_onnxruntime", "head"])
def test_a_session_that_fails_is_an_error_and_the_next_run_is_sound(cuda_ort: Any, cases: Any, graph: str) -> None:
    machine, runtime = cuda_ort()
    pipeline = open_on(machine)
    runtime.broken.add(graph)
    with pytest.raises(EngineError, match=rf"ONNX Runtime failed in {graph}\.onnx: CUDNN failure 8"):
        check(pipeline, cases(2))
    runtime.broken.clear()
    check(pipeline, cases(2))


def test_another_stream_than_it_was_loaded_for_is_refused(cuda_ort: Any) -> None:
    machine, _ = cuda_ort()
    pipeline = open_on(machine)
    context = pipeline._engines["head"].context(1, pipeline._results.addresses(1))
    with pytest.raises(EngineError, match="was loaded for another stream"):
        context.execute(Stream(pipeline._side.handle))


@pytest.mark.parametrize(("engine", "count"), [("onnxruntime-cuda", 3), ("onnxruntime-cuda-graph", 2)])
def test_what_a_gpu_is_to_measure_runs(cuda_ort: Any, cases: Any, engine: str, count: int) -> None:
    machine, runtime = cuda_ort()
    few = cases(2)
    with ExitStack() as closing:
        running, failed = device_variants.variants(machine.target.bundle, Target(engine, "fp32"), closing)
        assert (len(running), failed) == (count, {})
        for one in running:
            got, _ = one.call(few.pixels, one.room(2))
            np.testing.assert_allclose(got["embedding"], few.embedding, rtol=0, atol=TOLERANCE)
            assert (one.problem(), one.facts()["ran"] == "device path") == (None, "device path" in one.name)
        asked = {(session["prefer_nhwc"], session["enable_cuda_graph"]) for session in runtime.asked}
        assert len(asked) == 2
        del running, one


def test_a_device_path_that_was_not_had_is_a_problem(cuda_ort: Any, cases: Any) -> None:
    machine, _ = cuda_ort(cupy=False)
    with ExitStack() as closing:
        with pytest.warns(HostHeadInstead):
            running, _ = device_variants.variants(machine.target.bundle, FP32, closing)
        problems = [one.problem() for one in running]
    assert str(problems[0]).startswith("`head on the host` ran instead of the device path: the attention pool runs as")
    assert problems[2] is None


def test_convolutions_are_asked_in_the_batch_that_was_named(cuda_ort: Any, cases: Any) -> None:
    machine, runtime = cuda_ort()
    few = cases(5)
    told = Cases(few.pixels, {"embedding": few.embedding}, "the test")
    found = convolution.differences(
        machine.target.bundle, told, (2, 5), OnnxRuntimeCuda(cudnn_conv_algo_search="EXHAUSTIVE")
    )
    assert found.keys() == {"2", "5"}
    assert 0 <= max(found.values()) < TOLERANCE
    assert {5} < set(runtime.ran), "a size that no pipeline runs"
    assert {one["cudnn_conv_algo_search"] for one in runtime.asked} == {"EXHAUSTIVE"}
    shifted = Cases(few.pixels, {"embedding": np.roll(few.embedding, 1, 0)}, "the test")
    assert convolution.differences(machine.target.bundle, shifted, (2,), ENGINE)["2"] > 1e-3


def test_every_way_to_convolve_is_asked_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the processes, of which the second ends badly."""
    asked: list[list[str]] = []

    def child(command: list[str], limit: float, log: Path) -> tuple[int, float]:
        asked.append(command)
        log.write_text('a warning\n{"32": 1e-05, "128": 0.00035}\n' if len(asked) != 2 else "no memory")
        return (0 if len(asked) != 2 else 1), 5.0

    monkeypatch.setattr(convolution, "run_child", child)
    given = SimpleNamespace(
        bundle=tmp_path / "b", expected=tmp_path / "e", batches=[32, 128], out=tmp_path, commit="abc"
    )
    assert not convolution.everything(given, "H200", NEVER)  # type: ignore[arg-type]
    ways = [(one[one.index("--search") + 1], one[one.index("--override") + 1]) for one in asked]
    assert len(set(ways)) == 6
    text = (tmp_path / "convolution.md").read_text()
    assert text.count("| 1.0e-05 | 3.5e-04 |") == 5
    assert "status 1 after 5 s: no memory" in text
    assert not convolution.everything(given, "H200", Deadline.after(1))  # type: ignore[arg-type]
    assert len(asked) == 6, "a way that can't end is not begun"


def test_a_predictor_says_what_runs(cuda_ort: Any, cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _ = cuda_ort()
    monkeypatch.setattr(OnnxRuntimeCuda, "problem", lambda self, precision="fp32": None)
    few = cases(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = Predictor(machine.target.bundle, FP32, unproven=True)
    with predictor:
        np.testing.assert_allclose(predictor.predict(few.pixels).probability, few.probability, atol=TOLERANCE)
        assert str(predictor.head_target) == "onnxruntime-cuda:fp32"
