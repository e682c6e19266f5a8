"""The TensorRT runtime without a GPU: what can't run says so, and an engine that does not fit is never loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.engines.shared import gpu as gpus
from mpmmu_rt.engines.shared.blob_cache import BlobCache
from mpmmu_rt.engines.shared.gpu import Gpu, gpu
from mpmmu_rt.engines.tensorrt import build as builder
from mpmmu_rt.engines.tensorrt import engine as tensorrt
from mpmmu_rt.engines.tensorrt import kept, run
from mpmmu_rt.engines.tensorrt.build import library, log
from mpmmu_rt.engines.tensorrt.cuda import Resources
from mpmmu_rt.engines.tensorrt.sidecar import (
    Built,
    Here,
    Profile,
    Sidecar,
    explain,
    graph_digest,
    read_profile,
    sidecar_path,
    write_profile,
)
from mpmmu_rt.errors import EngineError, MissingPackage, UsageError

ALTERED = "the engine is not the file that its sidecar describes: its size or SHA-256 is another"
GRAPH, ENGINE = b"a graph", b"an engine"
SIDECAR = Sidecar(
    flavour="tensorrt_rtx",
    version="1.7.1",
    capabilities=(86, 89),
    device=None,
    precision="fp16",
    achieved={"fp16": 0.99, "fp32": 0.01},
    profile=Profile(1, 8, 32),
    graph_sha256=hashlib.sha256(GRAPH).hexdigest(),
    engine_sha256=hashlib.sha256(ENGINE).hexdigest(),
    engine_bytes=len(ENGINE),
)
HERE = Here(
    flavour="tensorrt_rtx",
    version="1.7.1",
    device="GeForce RTX 4090",
    capability=89,
    precision="fp16",
    graph_sha256=SIDECAR.graph_sha256,
    engine_sha256=SIDECAR.engine_sha256,
    engine_bytes=len(ENGINE),
    batches=(1, 32),
)

# ---------------------------------------------------------------- read first


def test_an_engine_that_fits() -> None:
    assert explain(SIDECAR, HERE) is None
    assert explain(SIDECAR, replace(HERE, batches=None)) is None
    assert explain(replace(SIDECAR, device="GeForce RTX 4090"), HERE) is None
    assert explain(replace(SIDECAR, profile=Profile(8, 8, 8)), replace(HERE, batches=(8, 8))) is None


@pytest.mark.parametrize(
    ("sidecar", "here", "reason"),
    [
        ({}, {"flavour": "tensorrt"}, "the engine is for tensorrt_rtx, and this is tensorrt"),
        ({}, {"version": "1.7.2"}, "the engine was built by tensorrt_rtx 1.7.1, and this is 1.7.2"),
        ({}, {"capability": 75}, "the engine was built for compute capability 86, 89, and this GPU has 75"),
        ({"capabilities": ()}, {}, "the engine was built for compute capability unknown, and this GPU has 89"),
        ({"device": "L4"}, {}, "the engine was built for L4, and this GPU is GeForce RTX 4090"),
        ({}, {"precision": "fp32"}, "the engine computes in fp16, and fp32 was asked for"),
        ({}, {"engine_bytes": 8}, ALTERED),
        ({}, {"engine_sha256": "0" * 64}, ALTERED),
        (
            {},
            {"graph_sha256": "0" * 64},
            "the engine was built from another graph than the one beside it: the graph's SHA-256 is another",
        ),
        ({}, {"batches": (1, 33)}, "the engine takes 1 to 32 cases at once, and 1 to 33 were asked for"),
        (
            {"profile": Profile(8, 8, 8)},
            {"batches": (1, 8)},
            "the engine takes 8 to 8 cases at once, and 1 to 8 were asked for",
        ),
    ],
)
def test_an_engine_that_does_not_fit(sidecar: dict[str, Any], here: dict[str, Any], reason: str) -> None:
    assert explain(replace(SIDECAR, **sidecar), replace(HERE, **here)) == reason


# ---------------------------------------------------------------- the sidecar


@pytest.mark.parametrize("device", [None, "GeForce RTX 4090"])
def test_round_trip(tmp_path: Path, device: str | None) -> None:
    path = tmp_path / "head.engine"
    built = Built(ENGINE, replace(SIDECAR, device=device))
    built.write(path)
    assert path.read_bytes() == ENGINE
    assert Sidecar.read(tmp_path / "head.engine.json") == built.sidecar
    assert sorted(one.name for one in tmp_path.iterdir()) == ["head.engine", "head.engine.json"]
    assert "life-critical" in built.sidecar.licence


def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda entry: entry | values


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (lambda entry: [entry], "holds a JSON list, expected an object"),
        (change(schema="mpmmu-engine/2"), "has the schema 'mpmmu-engine/2', this version reads `mpmmu-engine/1`"),
        (lambda entry: {k: v for k, v in entry.items() if k != "precision"}, "lacks the key `precision`"),
        (change(flavour="tensorflow"), "is malformed: the flavour is 'tensorflow'"),
        (change(capabilities=None), "is malformed: 'NoneType' object is not iterable"),
        (change(capabilities=["sm"]), "is malformed: invalid literal"),
        (change(achieved=[1]), "is malformed: 'list' object has no attribute 'items'"),
        (change(profile={"min": 0, "opt": 1, "max": 1}), "is malformed: the profile is 0/1/1"),
        (change(engine_bytes="many"), "is malformed: invalid literal"),
        (change(engine_bytes=float("inf")), "is malformed: cannot convert float infinity"),
        (change(capabilities=[float("-inf")]), "is malformed: cannot convert float infinity"),
    ],
)
def test_a_sidecar_that_is_not_one(tmp_path: Path, altered: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "head.engine.json"
    path.write_text(json.dumps(altered(SIDECAR.to_json())))
    with pytest.raises(EngineError, match=message.replace("(", r"\(")) as caught:
        Sidecar.read(path)
    assert caught.value.hint


def test_a_sidecar_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / "head.engine.json"
    with pytest.raises(EngineError, match="can't be read: No such file"):
        Sidecar.read(path)
    path.write_text("{")
    with pytest.raises(EngineError, match="is not valid JSON"):
        Sidecar.read(path)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 3, 2), (1, 1, 65_537)])
def test_profiles_that_are_none(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="expected 1 ≤ min ≤ opt ≤ max ≤ 65536"):
        Profile(*sizes)


def test_the_digest_of_a_graph_covers_its_weights(tmp_path: Path) -> None:
    graph = tmp_path / "head.onnx"
    graph.write_bytes(GRAPH)
    alone = graph_digest(graph)
    assert alone == graph_digest(GRAPH) == SIDECAR.graph_sha256
    (tmp_path / "weights.bin").write_bytes(b"weights")
    first = graph_digest(graph)
    (tmp_path / "weights.bin").write_bytes(b"other weights")
    assert len({alone, first, graph_digest(graph)}) == 3


# ---------------------------------------------------------------- the profile


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("1/8/128", Profile(1, 8, 128)),
        ("8", Profile(8, 8, 8)),
        ("2/2/2", Profile(2, 2, 2)),
        ("01/2/3", Profile(1, 2, 3)),
    ],
)
def test_a_profile_in_words(text: str, profile: Profile) -> None:
    assert Profile.parse(text) == profile
    assert Profile.parse(str(profile)) == profile


@pytest.mark.parametrize("text", ["", "1/8", "1/8/32/64", "a/b/c", "1/8/", "-1/8/32", "1.5", "²", " 8", "9" * 5000])
def test_words_that_are_no_profile(text: str) -> None:
    with pytest.raises(UsageError, match="expected MIN/OPT/MAX or one number of cases") as caught:
        Profile.parse(text)
    assert caught.value.hint == "such as 1/8/32, or 8"


def test_the_profile_beside_graphs(tmp_path: Path) -> None:
    assert read_profile(tmp_path) == Profile(), "bundles of earlier versions say nothing"
    write_profile(tmp_path, Profile(2, 3, 4))
    assert read_profile(tmp_path) == Profile(2, 3, 4)


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (lambda entry: [entry], "holds a JSON list, expected an object"),
        (change(schema="mpmmu-profile/2"), "is malformed: the schema is 'mpmmu-profile/2'"),
        (lambda entry: {k: v for k, v in entry.items() if k != "opt"}, "lacks the key `opt`"),
        (change(min=0), "is malformed: the profile is 0/3/4"),
        (change(max=[4]), r"is malformed: int\(\) argument"),
        (change(max=float("inf")), "is malformed: cannot convert float infinity"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, altered: Callable[[dict[str, Any]], Any], message: str) -> None:
    write_profile(tmp_path, Profile(2, 3, 4))
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(altered(json.loads(path.read_text()))))
    with pytest.raises(EngineError, match=message) as caught:
        read_profile(tmp_path)
    assert caught.value.hint


# ---------------------------------------------------------------- what was built here


ADA = Gpu("GeForce RTX 4090", 89, "NVRM version: 580.65.06")


def facts(graph: Path, **other: Any) -> dict[str, str]:
    given: dict[str, Any] = {"flavour": "tensorrt_rtx", "version": "1.7.1", "here": ADA, "precision": "fp16"}
    return kept.facts(graph, **(given | {"profile": Profile()} | other))


def test_all_that_an_engine_depends_on_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tmp_path / "head.onnx"
    graph.write_bytes(GRAPH)
    found = [
        facts(graph),
        facts(graph, flavour="tensorrt"),
        facts(graph, version="1.7.2"),
        facts(graph, here=replace(ADA, name="L4")),
        facts(graph, here=replace(ADA, capability=86)),
        facts(graph, here=replace(ADA, driver="NVRM version: 580.82.07")),
        facts(graph, precision="fp32"),
        facts(graph, profile=Profile(1, 8, 33)),
    ]
    (tmp_path / "weights.bin").write_bytes(b"weights")
    found.append(facts(graph))
    monkeypatch.setattr(kept, "__version__", "0.0.1")
    found.append(facts(graph))
    cache = BlobCache(tmp_path / "cache")
    for number, one in enumerate(found):
        assert not cache.holds(one), number
        cache.store(one, bytes([number]))
    copy = tmp_path / "another bundle"
    copy.mkdir()
    shutil.copy(graph, copy / "renamed.onnx")
    (copy / "weights.bin").write_bytes(b"weights")
    assert facts(copy / "renamed.onnx") == found[-1], "by its bytes, wherever it lies and whatever its name"


def test_a_graph_that_is_replaced_while_it_is_built_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(blob_cache.VARIABLE, str(tmp_path / "cache"))
    graph = tmp_path / "head.onnx"
    graph.write_bytes(GRAPH)
    known, said = facts(graph), list[str]()

    def build() -> Built:
        graph.write_bytes(b"another graph")
        return Built(ENGINE, replace(SIDECAR, graph_sha256=graph_digest(graph)))

    with pytest.raises(EngineError, match="the graph was replaced while an engine was built from it"):
        kept.kept_or_built(known, build, lambda engine, how: pytest.fail("it was loaded"), said.append)
    assert said == ["built anew"]
    assert not (tmp_path / "cache").exists()


def test_the_driver_is_known_by_its_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    assert gpus.driver_version() == "unknown"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\nGCC version: 13\n")
    assert gpus.driver_version() == "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06"
    (tmp_path / "version").write_text("\n")
    assert gpus.driver_version() == "unknown"


# ---------------------------------------------------------------- here


def need_no_gpu() -> None:
    if gpu() is not None:
        pytest.skip("there is a GPU")


def test_without_a_gpu_both_say_what_is_missing() -> None:
    need_no_gpu()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    problem = tensorrt.RTX.problem()
    assert isinstance(problem, EngineError)
    assert str(problem) == "the target tensorrt-rtx needs an NVIDIA GPU and its driver, and there is none here"
    assert tensorrt.RTX.version() == library("tensorrt_rtx").__version__
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        tensorrt.RTX.load(Path("head.onnx"), "fp32", 1)


def test_a_missing_package_comes_first() -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    problem = tensorrt.TENSORRT.problem()
    assert isinstance(problem, MissingPackage)
    assert str(problem) == "the target tensorrt needs the package `tensorrt`, which is not installed"
    assert "mpmmu-rt[cuda]" in problem.hint


def test_hopper_is_told_to_use_tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    problem = tensorrt.RTX._problem(Gpu("H200", 90))
    assert problem is not None
    assert "the H200 has compute capability 90, and TensorRT-RTX runs on 75, 80, 86, 89, 120, 121" in str(problem)
    assert "`tensorrt`" in problem.hint


def test_a_gpu_without_cuda_bindings_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    problem = tensorrt.RTX._problem(Gpu("GeForce RTX 4090", 89))
    assert isinstance(problem, MissingPackage)
    assert "the target tensorrt-rtx needs the package `cuda`" in str(problem)


def test_cupy_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused attention pool needs it; the whole graph runs without (tests/device)."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert tensorrt.RTX._problem(Gpu("GeForce RTX 4090", 89)) is None


def test_without_a_driver_cuda_says_so() -> None:
    need_no_gpu()
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    with pytest.raises(EngineError, match=r"CUDA's cudaMalloc failed: .*driver.* \(cudaError[A-Za-z]+\)"):
        Resources().device(256)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph with an engine of the right description beside it, which is none."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = tmp_path / "head.onnx"
    path.write_bytes(GRAPH)
    version = str(library("tensorrt_rtx").__version__)
    Built(ENGINE, replace(SIDECAR, version=version)).write(path.with_suffix(".engine"))
    return path


def read(graph: Path, batches: tuple[int, int] | None = None) -> tuple[bytes | None, Profile, str | None]:
    return tensorrt.RTX._read(graph, "fp16", Gpu("GeForce RTX 4090", 89), batches)


def test_the_engine_that_fits_is_read(graph: Path) -> None:
    assert read(graph) == (ENGINE, Profile(1, 8, 32), None)


def test_an_altered_engine_is_refused_before_it_is_deserialised(graph: Path) -> None:
    graph.with_suffix(".engine").write_bytes(b"an enginE")
    engine, profile, reason = read(graph)
    assert (engine, profile) == (None, Profile(1, 8, 32))
    assert reason == ALTERED


def test_an_engine_of_another_graph_is_refused(graph: Path) -> None:
    graph.write_bytes(b"another graph")
    assert read(graph)[0] is None


def test_an_engine_for_smaller_batches_is_built_for_what_is_asked(graph: Path) -> None:
    engine, profile, reason = read(graph, (1, 128))
    assert (engine, profile) == (None, Profile(1, 128, 128))
    assert reason == "the engine takes 1 to 32 cases at once, and 1 to 128 were asked for"


def test_no_engine_is_a_reason_too(graph: Path) -> None:
    graph.with_suffix(".engine").unlink()
    assert read(graph) == (None, Profile(), "there is no head.engine beside it")
    write_profile(graph.parent, Profile(4, 4, 4))
    assert read(graph)[1] == Profile(4, 4, 4)
    assert read(graph, (1, 9))[1] == Profile(1, 9, 9)


def test_an_engine_without_its_sidecar_is_an_error(graph: Path) -> None:
    sidecar_path(graph.with_suffix(".engine")).unlink()
    with pytest.raises(EngineError, match="can't be read"):
        read(graph)


def test_what_can_not_be_loaded_is_built_from_the_graph_beside_it(tmp_path: Path) -> None:
    """For the GPU that is here: it would be loaded there. A graph that is none fails with the parser's words."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    graph = tmp_path / "relu.onnx"
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    relu = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(relu, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), graph)
    turing = Gpu("GeForce RTX 2080", 75)
    built = tensorrt.RTX._build(graph, "fp32", turing, Profile())
    assert (built.sidecar.capabilities, built.sidecar.graph_sha256) == ((75,), graph_digest(graph))
    assert len(built.engine) == built.sidecar.engine_bytes > 0
    graph.write_bytes(GRAPH)
    with pytest.raises(EngineError, match=r"can't parse relu\.onnx in fp32 for 75: .+"):
        tensorrt.RTX._build(graph, "fp32", turing, Profile())


def test_an_engine_that_tensorrt_refuses_carries_its_log() -> None:
    """The first step of loading runs without a driver, and fails."""
    need_no_gpu()
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(run.EngineRefused, match=r"tensorrt_rtx can't load the engine: .+"):
        run.LoadedEngine(trt, ENGINE, Profile(), Resources())


def test_one_log_per_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    first = log(trt)
    assert log(trt) is first
    first.clear()
    assert "a logger set up before ours" in first.text()
    severity = trt.ILogger.Severity
    for level, line in [(severity.INFO, "chat"), (severity.WARNING, "hm"), (severity.WARNING, "hm")]:
        first.logger.log(level, line)
    assert first.text() == "hm"
    for line in ("one", "two", "one"):
        first.logger.log(severity.ERROR, line)
    assert first.text() == "one; two"
    first.clear()


def test_capabilities_are_what_the_binding_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    named = {int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert set(builder.RTX_CAPABILITIES) == named
