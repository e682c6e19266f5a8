"""OpenVINO: the same answers as the original, whatever shares the batch and whoever shares the predictor."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine, head_target
from mpmmu_rt.engines.openvino import ENGINE
from mpmmu_rt.engines.shared.openvino_streams import Shape, Streams
from mpmmu_rt.errors import EngineError, MissingPackage
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import verify
from tests.changed import crossed, dependent, drawn

FP32 = "openvino:fp32"
Pixels = dict[Modality, Array]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return phantom_pixels(33, seed=22, preprocessing=Preprocessing(size=48))[0]


def rows(pixels: Pixels, which: Any) -> Pixels:
    return {modality: np.ascontiguousarray(array[which]) for modality, array in pixels.items()}


def needs(precision: str) -> None:
    if problem := ENGINE.problem(precision):
        pytest.skip(str(problem))


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(("isa", "refused"), [("AVX2", True), ("avx2_vnni", True), ("AVX512_CORE", False)])
def test_bf16_is_refused_where_onednn_is_held_to_less(
    name: str, isa: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("bf16")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(name, isa)
    problem = ENGINE.problem("bf16")
    assert (problem is not None) == refused
    assert problem is None or f"holds this processor to {isa}, expected AVX512_CORE" in str(problem)
    assert ENGINE.problem("fp32") is None


def test_bf16_is_refused_where_openvino_is_held_to_less() -> None:
    """In a process of its own, as OpenVINO looks once."""
    needs("bf16")
    ask = "from mpmmu_rt.engines.openvino import ENGINE; p = ENGINE.problem('bf16'); print(p, '|', p and p.hint)"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=os.environ | {"OV_CPU_MAX_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    if done.stdout.startswith("None"):
        pytest.skip("this release of OpenVINO does not look at it")
    assert "this processor, held to AVX2 by OV_CPU_MAX_ISA, computes FP32" in done.stdout
    assert "| unset OV_CPU_MAX_ISA, or use openvino:fp32" in done.stdout


def test_it_says_what_onnxruntime_says(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as reference, load(bundle_folder, FP32) as predictor:
        want, got = reference.predict(pixels), predictor.predict(pixels)
    np.testing.assert_allclose(got.probability, want.probability, atol=1e-5)
    np.testing.assert_allclose(got.embedding, want.embedding, rtol=1e-4, atol=1e-5)
    assert tuple(got.stages_ms) == ("encoders", "head", "checks")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_case_is_the_same_to_the_bit_in_every_batch(
    bundle_folder: Path, pixels: Pixels, threads: int, precision: str
) -> None:
    needs(precision)
    with load(bundle_folder, f"openvino:{precision}", threads=threads, unproven=True) as predictor:
        alone = np.concatenate([predictor.predict(rows(pixels, [row])).embedding for row in range(33)])
        for count in (2, 3, 7, 33):
            np.testing.assert_array_equal(predictor.predict(rows(pixels, slice(count))).embedding, alone[:count])


@pytest.mark.parametrize(
    ("threads", "cases", "parts"),
    [
        (1, 3, [(1, 0, 3)]),
        (1, 15, [(1, 0, 15)]),
        (1, 16, [(4, 0, 16)]),
        (1, 33, [(4, 0, 32), (1, 32, 33)]),
        (2, 31, [(1, 0, 31)]),
        (2, 32, [(4, 0, 32)]),
        (2, 33, [(4, 0, 32), (1, 32, 33)]),
    ],
)
def test_requests_hold_several_cases_where_that_keeps_all_streams_busy_for_a_while(
    bundle_folder: Path, pixels: Pixels, threads: int, cases: int, parts: list[tuple[int, int, int]]
) -> None:
    with load(bundle_folder, FP32, threads=threads) as predictor:
        embedder: Any = predictor._pipeline.embedder  # type: ignore[attr-defined]
        found = [(streams.cases, of.start, of.stop) for streams, of in embedder._parts(cases)]
        assert found == parts
        assert predictor.counts(cases)["cases.of.a.request"] == parts[0][0]
        assert predictor.remarks == ()


@pytest.mark.parametrize(
    ("threads", "cases", "models"),
    [(1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 1, 2), (3, 2, 1), (4, 2, 2), (5, 3, 2), (4, 4, 1)],
)
def test_encoders_run_beside_each_other_where_a_stream_would_get_several_threads(
    bundle_folder: Path, pixels: Pixels, threads: int, cases: int, models: int
) -> None:
    given = rows(pixels, slice(cases))
    with load(bundle_folder, FP32, threads=threads) as predictor, load(bundle_folder, FP32, threads=1) as single:
        assert predictor.counts(cases)["models.at.once"] == models
        np.testing.assert_array_equal(predictor.predict(given).embedding, single.predict(given).embedding)
        assert predictor.remarks == ()


@pytest.mark.parametrize("first", [1, 2])
def test_encoders_take_turns_where_beside_each_other_they_would_say_something_else(tmp_path: Path, first: int) -> None:
    pixels = phantom_pixels(2, seed=1, preprocessing=Preprocessing(size=32))[0]
    with load(drawn(tmp_path / "b.bundle"), FP32, threads=2) as predictor:
        predictor.predict(rows(pixels, slice(first)))
        before = predictor.counts(first)["models.at.once"], predictor.remarks
        assert before == (3 - first, ())  # there is nothing yet that they could be compared with
        predictor.predict(rows(pixels, slice(3 - first)))
        assert [predictor.counts(cases)["models.at.once"] for cases in (1, 2)] == [1, 1]
        (remark,) = predictor.remarks
        assert "from here on they take turns" in remark


def test_a_pool_that_looks_at_both_modalities_at_once_is_not_cut(tmp_path: Path) -> None:
    folder = crossed(tmp_path / "b.bundle")
    pixels = phantom_pixels(3, seed=1, preprocessing=Preprocessing(size=32))[0]
    with load(folder, FP32, threads=2) as predictor, load(folder, FP32, threads=1) as single:
        got = np.concatenate([predictor.predict(rows(pixels, [row])).embedding for row in range(3)])
        np.testing.assert_array_equal(got, single.predict(pixels).embedding)
        assert predictor.counts(1)["models.at.once"] == 1
        assert predictor.remarks == ()


def test_requests_hold_one_case_where_several_would_say_something_else(tmp_path: Path) -> None:
    pixels = phantom_pixels(33, seed=1, preprocessing=Preprocessing(size=32))[0]
    with load(dependent(tmp_path / "b.bundle"), FP32, threads=2) as predictor:
        alone = np.concatenate([predictor.predict(rows(pixels, [row])).embedding for row in range(33)])
        before = predictor.remarks
        np.testing.assert_array_equal(predictor.predict(pixels).embedding, alone)
        (remark,) = predictor.remarks
        assert not before
        assert "each is a request of its own" in remark
        assert predictor.counts(33)["cases.of.a.request"] == 1


def test_threads_may_share_a_predictor(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder, FP32, threads=2) as predictor, ThreadPoolExecutor(6) as pool:
        want = predictor.predict(pixels).probability
        parts = [slice(start, start + 1 + start % 5) for start in range(28)] * 4
        found = list(pool.map(lambda part: predictor.predict(rows(pixels, part)).probability, parts))
    for part, got in zip(parts, found, strict=True):
        np.testing.assert_allclose(got, want[part], atol=1e-6)


def test_nothing_is_allocated_once_it_is_warm(bundle_folder: Path, pixels: Pixels) -> None:
    """With an embedding to write to, what a call keeps on the way is some kilobytes of Python's own objects."""
    with load(bundle_folder, FP32) as predictor:
        embedding = np.empty_like(predictor.predict(pixels).embedding)
        for _ in range(3):
            predictor.predict(pixels, embedding=embedding)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            prediction = predictor.predict(pixels, embedding=embedding)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert prediction.embedding is embedding
    assert peak < embedding.nbytes  # one copy of the embedding would be seen; the pixels are larger still
    assert peak < 32_000


def test_a_call_that_fails_half_way_leaves_the_predictor_whole(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder, FP32) as predictor:
        want = predictor.predict(pixels)
        for broken in range(0, 30, 2):  # more often than there are lanes: a lost one would be missed
            cases: Any = {modality: list(array) for modality, array in pixels.items()}
            cases["ultrasound"][broken] = np.zeros((1, 3, 3), np.uint8)
            with pytest.raises(EngineError, match="OpenVINO failed"):
                predictor._pipeline.run(cases, np.empty_like(want.embedding))
        np.testing.assert_array_equal(predictor.predict(pixels).embedding, want.embedding)


class Interrupted:
    """A compiled model. A request is busy until it is waited for; behind the start of one of them comes Ctrl-C."""

    def __init__(self, model: Any, starts: Iterator[int], which: int) -> None:
        self._model, self._starts, self._which = model, starts, which

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def create_infer_request(self) -> Any:
        request, running = self._model.create_infer_request(), [False]

        def start_async() -> None:
            if running[0]:
                raise RuntimeError("Infer Request is busy")
            running[0] = True
            request.start_async()
            if next(self._starts) == self._which:
                raise KeyboardInterrupt

        def wait() -> None:
            request.wait()
            running[0] = False

        tensors = {"get_tensor": request.get_tensor, "get_output_tensor": request.get_output_tensor}
        return SimpleNamespace(start_async=start_async, wait=wait, **tensors)


@pytest.mark.parametrize("threads", [1, 2])  # two: each modality is a request of its own
@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_an_interrupt_behind_a_start_leaves_no_request_running(
    bundle_folder: Path, pixels: Pixels, threads: int, which: int
) -> None:
    given = rows(pixels, slice(5))
    with load(bundle_folder, FP32, threads=threads) as predictor:
        embedder: Any = predictor._pipeline.embedder  # type: ignore[attr-defined]
        ((made, _),) = embedder._parts(1)
        assert len(made.models) == threads
        starts = itertools.count(1)
        streams = Streams([Interrupted(model, starts, which) for model in made.models], Shape(1))
        want, got = (np.empty((5, width_of(predictor)), np.float32) for _ in range(2))
        made.run(given, want)
        with pytest.raises(KeyboardInterrupt):
            streams.run(given, got)
        assert streams._idle.qsize() == 2
        streams.run(given, got)
        np.testing.assert_array_equal(got, want)


class Exhausted:
    """A compiled model without memory for what a request has to say."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def create_infer_request(self) -> Any:
        request = self._model.create_infer_request()

        def wait() -> None:
            request.wait()
            raise MemoryError("std::bad_alloc")

        tensors = {"get_tensor": request.get_tensor, "get_output_tensor": request.get_output_tensor}
        return SimpleNamespace(start_async=request.start_async, wait=wait, **tensors)


def test_a_failure_of_another_kind_loses_no_lane_and_keeps_its_cause(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder, FP32, threads=2) as predictor:
        embedder: Any = predictor._pipeline.embedder  # type: ignore[attr-defined]
        ((made, _),) = embedder._parts(1)
        streams = Streams([Exhausted(model) for model in made.models], Shape(1))
        with pytest.raises(MemoryError, match="bad_alloc"):
            streams.run(rows(pixels, slice(5)), np.empty((5, width_of(predictor)), np.float32))
        assert streams._idle.qsize() == 2


def width_of(predictor: Predictor) -> int:
    return int(predictor.bundle.tensors["embedding"].shape[1])


@pytest.mark.slow
def test_verify_passes(bundle_folder: Path) -> None:
    with load(bundle_folder, FP32) as predictor:
        checks = verify(predictor)
    assert [check.name for check in checks if not check.passed] == []


def test_the_head_runs_on_the_faster_engine_and_says_so(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Bundle.open(bundle_folder).golden()
    cases: Pixels = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    with load(bundle_folder, FP32) as predictor:
        assert str(predictor.head_target) == "onnxruntime:fp32"
        want = predictor.predict(cases).probability
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with load(bundle_folder, FP32) as predictor:
        assert str(predictor.head_target) == "openvino:fp32"
        np.testing.assert_allclose(predictor.predict(cases).probability, want, atol=1e-5)
    assert head_target(Target("openvino", "int8")).precision == "fp32"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage) as caught:
        engine(Target("openvino", "bf16"))
    assert caught.value.hint == "pip install 'mpmmu-rt[openvino]'"


def test_a_processors_plugin_that_is_not_there_is_a_problem_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")

    def missing(*_: object) -> NoReturn:
        raise RuntimeError('Exception from src/core.cpp:1:\nDevice with "CPU" name is not registered\n')

    monkeypatch.setattr(openvino.Core, "get_property", missing)
    problem = ENGINE.problem()
    assert isinstance(problem, EngineError)
    assert str(problem).startswith('OpenVINO can\'t use this processor: Device with "CPU" name is not registered, ')
    assert problem.hint == "pip install --force-reinstall openvino"


@pytest.mark.parametrize("call", [lambda p, x: p.predict(x), lambda p, x: (p.close(), p.predict(x))])
def test_a_closed_predictor_does_not_answer(
    bundle_folder: Path, pixels: Pixels, call: Callable[[Predictor, Pixels], object]
) -> None:
    predictor = load(bundle_folder, FP32)
    predictor.predict(rows(pixels, [0]))
    predictor.close()
    with pytest.raises(EngineError):
        call(predictor, pixels)


@pytest.mark.parametrize("data", [b"", b"not a graph"])
def test_a_graph_that_can_not_be_loaded(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "head.onnx"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"OpenVINO can't load head\.onnx: ") as caught:
        ENGINE.load(path, "fp32", 1)
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_refused_in_words_that_can_be_read(tmp_path: Path) -> None:
    """OpenVINO quotes the operator that it does not know, whose name is no UTF-8."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "damaged", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "head.onnx").write_bytes(model.SerializeToString().replace(b"Relu", b"Rel\xe9"))
    with pytest.raises(EngineError, match="No conversion rule found for operations: Rel\ufffd-17"):
        ENGINE.load(tmp_path / "head.onnx", "fp32", 1)


def test_a_run_that_fails_is_an_engine_error_with_its_cause(bundle_folder: Path) -> None:
    session = ENGINE.load(Bundle.open(bundle_folder).graph("head"), "fp32", 1)
    width = int(Bundle.open(bundle_folder).tensors["embedding"].shape[1])
    wrong: list[dict[str, Array]] = [
        {},
        {"nothing": np.zeros((1, width), np.float32)},
        {"embedding": np.zeros((1, 3), np.float32)},
        {"embedding": np.zeros((1, width), np.float64)},
    ]
    for feeds in wrong:
        with pytest.raises(EngineError, match=r"OpenVINO failed in head\.onnx: ") as caught:
            session.run(feeds)
        assert caught.value.__cause__ is not None
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"embedding": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("asked", [(), ("a",), ("b", "a")])
def test_outputs_are_called_as_in_the_graph(tmp_path: Path, asked: tuple[str, ...]) -> None:
    """OpenVINO drops what only hands on, and both names are then of one output."""
    one = numpy_helper.from_array(np.float32(1), "one")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Div", ["a", "one"], ["b"]),
        helper.make_node("Identity", ["b"], ["feature_map"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "feature_map")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [one])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    session = ENGINE.load_showing(tmp_path / "g.onnx", asked, "fp32", 1)
    assert set(session.outputs) == {"feature_map", *asked}
    x = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)
    for said in session.run({"x": x}).values():
        np.testing.assert_array_equal(said, np.maximum(x, 0))
