"""The device path on a GPU. Without one these tests skip; what they assert has not been seen to hold on a GPU yet."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, EngineRebuilt
from mpmmu_rt.engines.tensorrt.device_path import DevicePath, WholeGraph
from mpmmu_rt.engines.tensorrt.kept import ANEW, BEFORE
from mpmmu_rt.export import Wanted, export_checkpoint
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Target

# Of probabilities and embeddings of order 1, in float32 without TF32: sums of some hundred terms in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[RTX, TENSORRT], ids=lambda one: str(one.name))
def bundle(request: pytest.FixtureRequest, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(engine, bundle) with engines for the GPU that is here."""
    engine, here = request.param, gpu()
    if problem := engine.problem():
        pytest.skip(str(problem))
    assert here is not None
    output = tmp_path_factory.mktemp("gpu") / "small.bundle"
    wanted = Target(engine.name, "fp32", (here.capability,) if engine is RTX else ())
    export_checkpoint(checkpoint_folder, output, wanted=Wanted((wanted,)))
    return engine, Bundle.open(output)


@pytest.mark.parametrize(("graphs", "whole_graph"), [(True, False), (False, False), (True, True), (False, True)])
def test_a_gpu_says_what_the_processor_says(
    bundle: Any, cases: Callable[..., Any], graphs: bool, whole_graph: bool
) -> None:
    engine, opened = bundle
    if not whole_graph:
        cupy = pytest.importorskip("cupy", reason="CuPy is missing")
        assert cupy.cuda.is_available()
    pixels = cases(40).pixels
    with Predictor(opened, Target("onnxruntime", "fp32")) as predictor:
        want = predictor.predict(pixels)
    pipeline = engine.pipeline(opened, "fp32", 1, graphs=graphs, whole_graph=whole_graph)
    try:
        assert isinstance(pipeline, WholeGraph if whole_graph else DevicePath)
        for rows in (slice(0, 1), slice(1, 8), slice(0, 40), slice(0, 1), slice(8, 15)):
            few = {modality: pixels[modality][rows] for modality in MODALITIES}
            embedding = np.empty_like(want.embedding[rows])
            said, _ = pipeline.run(few, embedding)
            np.testing.assert_allclose(embedding, want.embedding[rows], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(said["probability"], want.probability[rows], rtol=0, atol=TOLERANCE)
        assert bool(pipeline.batches.captured) == graphs, pipeline.batches.not_captured
    finally:
        pipeline.close()


def test_no_memory_is_taken_once_batches_are_warm(bundle: Any, cases: Callable[..., Any]) -> None:
    engine, opened = bundle
    runtime = importlib.import_module("cuda.bindings.runtime")
    pixels = cases(7).pixels
    with Predictor(opened, Target(engine.name, "fp32")) as predictor:
        for _ in range(2):
            predictor.predict(pixels)
        _, before, _ = runtime.cudaMemGetInfo()
        for _ in range(20):
            predictor.predict(pixels)
        assert runtime.cudaMemGetInfo()[1] == before


def test_engines_that_are_built_here_are_kept_and_say_the_same_to_the_bit(
    bundle: Any, cases: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, opened = bundle
    pytest.importorskip("cupy", reason="CuPy is missing")
    monkeypatch.setenv(blob_cache.VARIABLE, str(tmp_path / "cache"))
    shutil.copytree(opened.path, tmp_path / "bare.bundle")
    for path in (tmp_path / "bare.bundle" / engine.folder("fp32")).glob("*.engine*"):
        path.unlink()
    bundles.seal(tmp_path / "bare.bundle", dict(opened.entry))
    bare, pixels, said = Bundle.open(tmp_path / "bare.bundle"), cases(7).pixels, []
    for how in (ANEW, BEFORE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EngineRebuilt)  # a bundle for TensorRT-RTX should hold engines
            predictor = Predictor(bare, Target(engine.name, "fp32"))
        with predictor:
            assert len(predictor.remarks) == 3
            assert all(f"was {how}: there is no " in remark for remark in predictor.remarks)
            said.append(predictor.predict(pixels))
    np.testing.assert_array_equal(said[0].embedding, said[1].embedding)
    np.testing.assert_array_equal(said[0].probability, said[1].probability)


def test_a_graph_that_no_engine_belongs_to_is_built_without_a_warning(bundle: Any, cases: Callable[..., Any]) -> None:
    """As the export's parity runs the head: a warning is an error here."""
    engine, opened = bundle
    pytest.importorskip("cupy", reason="CuPy is missing")
    few = cases(7)
    with Predictor(opened, Target(engine.name, "fp32")) as predictor:
        want = predictor.predict(few.pixels)
        got = predictor.run_graph("head", {"embedding": want.embedding})["probability"]
        assert predictor.remarks == ()
    np.testing.assert_allclose(got, want.probability, rtol=0, atol=TOLERANCE)
