"""Engines: what can't run here says why, and nothing runs anywhere else than asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mpmmu_rt import engines as registry
from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine, engines
from mpmmu_rt.engines.onnxruntime import ENGINE, OnnxRuntime, OnnxRuntimeSession
from mpmmu_rt.engines.shared.onnxruntime_lanes import BoundEmbedder
from mpmmu_rt.errors import EngineError, MissingPackage, MpmmuError, UsageError
from mpmmu_rt.facts import KNOWN_BAD
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

FP32 = Target("onnxruntime", "fp32")
Pixels = dict[Modality, Array]


def fake_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def double(path: Path) -> Path:
    """A graph that doubles x, float32 [N, 2]."""
    shape = ["N", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    return path


def test_every_engine_keeps_the_protocol() -> None:
    for name, found in engines().items():
        assert found.name == name
        assert Target.parse(f"{name}:{found.precisions[0]}").engine == name
        problem = found.problem()
        assert problem is None or isinstance(problem, MpmmuError)


def test_onnxruntime_runs_here_in_the_version_that_is_imported() -> None:
    import onnxruntime

    assert engine(FP32).problem() is None
    assert engine(FP32).version() == onnxruntime.__version__


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(EngineError, match="names the engine `abacus`, expected one of onnxruntime, openvino"):
        engine(Target("abacus", "fp32"))


def test_an_unknown_precision_is_not_replaced_by_another() -> None:
    with pytest.raises(EngineError, match="asks for fp16, expected one of fp32") as caught:
        engine(Target("onnxruntime", "fp16"))
    assert caught.value.hint == "use `onnxruntime:fp32`"


def test_both_distributions_of_onnxruntime_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):  # whichever is here
        fake_distribution(tmp_path, name, "1.99.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"onnxruntime-gpu 1\.99\.0 are both installed and overwrite") as caught:
        engine(FP32)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    problem = OnnxRuntime().problem()
    assert isinstance(problem, MissingPackage)
    assert problem.hint == "pip install 'mpmmu-rt[cpu]'"
    with pytest.raises(MissingPackage):
        engine(FP32)


@pytest.mark.parametrize("version", sorted(KNOWN_BAD["onnxruntime"]))
def test_a_release_known_to_be_wrong_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("onnxruntime")
    installed.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", installed)
    with pytest.raises(EngineError, match="is known to be wrong: "):
        engine(FP32)


def test_a_build_under_another_distribution_name_is_no_crash(tmp_path: Path) -> None:
    """onnxruntime-openvino, onnxruntime-directml …: the module is there, the metadata is not."""
    (tmp_path / "onnxruntime.py").write_text("__version__ = '1.26.0'\n")
    code = "from mpmmu_rt.engines.onnxruntime import ENGINE; print(ENGINE.problem()); print(ENGINE.version())"
    result = beside_numpy(tmp_path, code)
    assert "onnxruntime 1.26.0 is known to be wrong" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1] == "1.26.0"


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-cuda", "onnxruntime"),
        ("openvino", "openvino"),
        ("tensorrt-rtx", "tensorrt_rtx"),
    ],
)
def test_what_an_uninstallation_leaves_is_no_crash(tmp_path: Path, name: str, package: str) -> None:
    """A folder without `__init__.py`, which Python imports: of two distributions with the same files one is gone."""
    (tmp_path / package / "capi").mkdir(parents=True)
    code = f"from mpmmu_rt.engines import engines; p = engines()['{name}'].problem(); print(p, '|', p.hint)"
    result = beside_numpy(tmp_path, code)
    assert f"the package `{package}` is there in part" in result.stdout, result.stderr
    assert "| pip " in result.stdout


def beside_numpy(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where there are this package, NumPy and what lies in `tmp_path`."""
    root = Path(registry.__file__).parents[2]
    numpy_only = tmp_path / "site"
    numpy_only.mkdir()
    (numpy_only / "numpy").symlink_to(Path(np.__file__).parent)
    libraries = Path(np.__file__).parents[1] / "numpy.libs"
    if libraries.exists():
        (numpy_only / "numpy.libs").symlink_to(libraries)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, numpy_only, root)))}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_graph_is_run(tmp_path: Path) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    for count in (1, 3):
        x = np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)
        got = session.run({"x": x})["y"]
        np.testing.assert_array_equal(got, 2 * x)
        assert got.flags.owndata or got.base is None or got.base is not x
    session.close()


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x0a" * 50])
def test_a_graph_that_can_not_be_loaded(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "head.onnx"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"ONNX Runtime can't load head\.onnx: ") as caught:
        engine(FP32).load(path, "fp32", 1)
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_refused_in_words_that_can_be_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime quotes the operator that it does not know, whose name is no UTF-8, and stdout may be for JSON."""
    path = double(tmp_path / "head.onnx")
    path.write_bytes(path.read_bytes().replace(b"Add", b"A\xe9d"))
    with pytest.raises(EngineError, match="A\ufffdd") as caught:
        engine(FP32).load(path, "fp32", 1)
    assert "codec" not in str(caught.value)
    assert capfd.readouterr().out == "", "ONNX Runtime's fallback would write there, and try the same again"


def test_weights_that_are_gone_are_an_error_of_loading(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ultrasound.onnx"
    path.write_bytes((bundle_folder / "onnx/ultrasound.onnx").read_bytes())
    with pytest.raises(EngineError, match=r"can't load ultrasound\.onnx"):
        engine(FP32).load(path, "fp32", 1)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 2), np.float64)},
        {"x": np.ones((1, 2), ">f4")},  # bytes the other way round: 1 reads 4.6e-41
    ],
)
def test_a_run_that_fails_is_an_engine_error_with_its_cause(tmp_path: Path, feeds: dict[str, Array]) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    with pytest.raises(EngineError, match=r"ONNX Runtime failed in double\.onnx: ") as caught:
        session.run(feeds)
    assert caught.value.__cause__ is not None


def test_a_closed_session_does_not_answer(tmp_path: Path) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    session.close()
    with pytest.raises(EngineError, match="the session is closed, expected an open one") as caught:
        session.run({"x": np.zeros((1, 2), np.float32)})
    assert caught.value.hint == "make another Predictor"


# ---------------------------------------------------------------- memory of ours


class Watched:
    """A session of ONNX Runtime that counts the bytes that `run` allocates, and notes where bound outputs lie."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.allocated = 0
        self.written: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *arguments: Any) -> Any:
        values = self._session.run(*arguments)
        self.allocated += sum(value.nbytes for value in values)
        return values

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        self.written += [value.data_ptr() for value in binding.get_outputs()]


def graphs_of(bundle: Bundle) -> dict[str, Path]:
    parts: dict[str, Path] = {modality: bundle.graph(modality) for modality in MODALITIES}
    return parts | {"attention_pool": bundle.graph("attention_pool")}


@pytest.fixture
def watched(bundle_folder: Path) -> tuple[BoundEmbedder, dict[str, Watched]]:
    graphs = graphs_of(Bundle.open(bundle_folder))
    sessions = {name: Watched(ENGINE._open(graph, 1)) for name, graph in graphs.items()}
    return BoundEmbedder(sessions, graphs), sessions


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return phantom_pixels(33, seed=23, preprocessing=Preprocessing(size=48))[0]


def rows(pixels: Pixels, which: Any) -> Pixels:
    return {modality: np.ascontiguousarray(array[which]) for modality, array in pixels.items()}


def width(bundle_folder: Path) -> int:
    return int(Bundle.open(bundle_folder).tensors["embedding"].shape[1])


def test_feature_maps_are_written_to_one_place_and_the_embedding_to_the_callers(
    watched: tuple[BoundEmbedder, dict[str, Watched]], bundle_folder: Path, pixels: Pixels
) -> None:
    embedder, sessions = watched
    embedder.embed(pixels, np.empty((33, width(bundle_folder)), np.float32))  # the largest batch
    for session in sessions.values():
        session.written.clear()
    outputs = [np.empty((count, width(bundle_folder)), np.float32) for count in (33, 1, 7, 33)]
    for output in outputs:
        embedder.embed(rows(pixels, slice(len(output))), output)
    assert [session.allocated for session in sessions.values()] == [0, 0, 0]
    for modality in MODALITIES:
        assert len(sessions[modality].written) == 4
        assert len(set(sessions[modality].written)) == 1
    assert sessions["attention_pool"].written == [output.ctypes.data for output in outputs]


def test_the_count_sees_what_a_session_allocates_for_its_caller(
    watched: tuple[BoundEmbedder, dict[str, Watched]], pixels: Pixels
) -> None:
    session = watched[1]["ultrasound"]
    found = OnnxRuntimeSession(session, Path("ultrasound.onnx")).run({"pixels": pixels["ultrasound"]})
    assert session.allocated == found["feature_map"].nbytes > 0


def test_nothing_is_allocated_by_numpy_once_it_is_warm(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
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
    assert peak < embedding.nbytes  # one copy of the embedding would be seen; feature maps and pixels are larger still


def test_a_batch_of_any_size_may_follow_any_other(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
        for count in (2, 33, 1, 7, 33, 2):
            few = rows(pixels, slice(33 - count, 33))
            with load(bundle_folder) as fresh:
                np.testing.assert_array_equal(predictor.predict(few).embedding, fresh.predict(few).embedding)


def test_threads_may_share_a_predictor_and_each_has_its_lane(bundle_folder: Path, pixels: Pixels) -> None:
    parts = [slice(start, start + 1 + start % 5) for start in range(28)] * 4
    with load(bundle_folder) as predictor, ThreadPoolExecutor(6) as pool:
        want = [predictor.predict(rows(pixels, part)).embedding for part in parts]
        found = list(pool.map(lambda part: predictor.predict(rows(pixels, part)).embedding, parts))
        assert 1 <= len(embedder_of(predictor)._idle) <= 6
    for got, alone in zip(found, want, strict=True):
        np.testing.assert_array_equal(got, alone)


def embedder_of(predictor: Any) -> BoundEmbedder:
    embedder = predictor._pipeline.embedder
    assert isinstance(embedder, BoundEmbedder)
    return embedder


@pytest.mark.parametrize(
    "place", [lambda a: a[:, ::2], lambda a: np.asfortranarray(a[:, ::2]), lambda a: a[::-1, 1::2]]
)
def test_an_embedding_that_lies_in_pieces_is_filled_as_well(
    bundle_folder: Path, pixels: Pixels, place: Callable[[Array], Array]
) -> None:
    with load(bundle_folder) as predictor:
        want = predictor.predict(pixels).embedding
        output = place(np.full((33, 2 * want.shape[1]), np.nan, np.float32))
        assert not output.flags.c_contiguous
        for count in (33, 5, 33):
            predictor.predict(rows(pixels, slice(count)), embedding=output[:count])
            np.testing.assert_allclose(output[:count], want[:count], rtol=1e-4, atol=1e-5)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda n, d: np.empty((n, d)), r"`embedding` is float64\[2, \d+\], expected float32\[N, D\]"),
        (lambda n, d: np.empty(n * d, np.float32), r"`embedding` is float32\[\d+\], expected float32\[N, D\]"),
        (lambda n, d: np.empty((n, d), ">f4"), "`embedding` is >f4"),
        (lambda n, d: read_only(np.empty((n, d), np.float32)), "read-only, expected float32"),
        (lambda n, d: np.empty((n, d - 1), np.float32), r"ONNX Runtime failed in attention_pool_onnxruntime\.onnx: "),
        (lambda n, d: np.empty((n, d + 1), np.float32), r"ONNX Runtime failed in attention_pool_onnxruntime\.onnx: "),
        (lambda n, d: np.empty((n - 1, d), np.float32), r"ONNX Runtime failed in mammography_onnxruntime\.onnx: "),
        (lambda n, d: np.empty((n + 1, d), np.float32), r"ONNX Runtime failed in mammography_onnxruntime\.onnx: "),
    ],
)
def test_nothing_is_written_past_an_embedding_of_another_shape_or_type(
    bundle_folder: Path, pixels: Pixels, made: Callable[[int, int], Array], problem: str
) -> None:
    with load(bundle_folder) as predictor:
        few = rows(pixels, slice(2))
        want = predictor.predict(few).embedding
        with pytest.raises(UsageError, match=r"^`embedding` is .*, expected float32\[2, \d+\] to write to$"):
            predictor.predict(few, embedding=made(*want.shape))
        with pytest.raises(EngineError, match=problem) as caught:  # whoever calls the engine without a predictor
            predictor._pipeline.run(few, made(*want.shape))
        assert caught.value.hint
        np.testing.assert_array_equal(predictor.predict(few).embedding, want)


def test_a_call_that_fails_half_way_leaves_the_predictor_whole(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
        want = predictor.predict(pixels)
        broken = pixels | {"ultrasound": np.zeros((33, 1, 7, 7), np.uint8)}
        for _ in range(3):
            with pytest.raises(EngineError, match=r"failed in ultrasound_onnxruntime\.onnx"):
                predictor._pipeline.run(broken, np.empty_like(want.embedding))
        assert len(embedder_of(predictor)._idle) == 1
        np.testing.assert_array_equal(predictor.predict(pixels).embedding, want.embedding)


def test_a_closed_predictor_keeps_no_lane(bundle_folder: Path, pixels: Pixels) -> None:
    predictor = load(bundle_folder)
    predictor.predict(pixels)
    embedder = embedder_of(predictor)
    predictor.close()
    assert embedder._idle == []
    with pytest.raises(EngineError, match="closed"):
        predictor.predict(pixels)
