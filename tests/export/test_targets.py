"""The targets of a bundle: proven in decisions, or not listed."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Case
from mpmmu_rt.cli import app
from mpmmu_rt.cli.export import describe_precision
from mpmmu_rt.engines.onnxruntime_cuda import ENGINE as CUDA
from mpmmu_rt.engines.openvino import ENGINE
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, TensorRt
from mpmmu_rt.engines.tensorrt.sidecar import Profile, Sidecar, read_profile
from mpmmu_rt.errors import (
    AnswerError,
    EngineError,
    ManifestError,
    MissingPackage,
    ParityError,
    UnfitTarget,
    UsageError,
)
from mpmmu_rt.export import Data, Limits, Wanted, build, export_checkpoint, targets
from mpmmu_rt.export.calibration import of_manifest
from mpmmu_rt.export.cases import halves
from mpmmu_rt.export.draft import FIRST, Draft
from mpmmu_rt.export.parity import Original
from mpmmu_rt.export.quantization import Ranges, calibrate
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Target
from mpmmu_rt.verify import verify

Finish = Callable[[Wanted], Bundle]
INT8 = Target("openvino", "int8")
BF16 = Target("openvino", "bf16")
MIXED = Target("openvino", "int8-bf16")
# The model of the tests is untrained, and its cases lie close together: what is proven here is the way, not the model.
WIDE = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(24, tmp_path_factory.mktemp("calibration") / "cases", seed=9)


@pytest.fixture(scope="module")
def calibration(manifest: Path, small_model: Checkpoint) -> tuple[Data, Data]:
    """What to calibrate INT8 on, and what to judge it on."""
    found = of_manifest(manifest, small_model.config.preprocessing, {}, silent, halved=True)
    assert found.gate is not None
    return found.data, found.gate


@pytest.mark.slow
def test_int8_is_in_the_bundle_with_what_was_measured(int8_folder: Path) -> None:
    bundle = Bundle.open(int8_folder)
    assert bundle.targets == ("onnxruntime:fp32", "openvino:int8")
    report = bundle.entry["precision"]["openvino:int8"]
    assert report["passed"]
    assert report["gate"]["cases"] == 12
    assert report["calibration"]["cases"] == 12
    assert len(report["calibration"]["sha256"]) == 64
    for modality in MODALITIES:
        operators = [node.op_type for node in onnx.load(str(bundle.graph(modality, "int8"))).graph.node]
        assert operators.count("QuantizeLinear") > 10
        assert bundle.graph(modality, "int8") != bundle.graph(modality)


@pytest.mark.slow
def test_int8_runs_and_is_near_float_but_not_float(int8_folder: Path) -> None:
    golden = Bundle.open(int8_folder).golden()
    cases = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    with load(int8_folder, "openvino:int8") as predictor:
        got = predictor.predict(cases).embedding
        assert [check.name for check in verify(predictor) if not check.passed] == []
    error = np.linalg.norm(got - golden["embedding"]) / np.linalg.norm(golden["embedding"])
    assert 1e-4 < error < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("order", [(INT8, MIXED), (MIXED, INT8)])
def test_both_kinds_of_int8_run_the_same_graphs(
    finished: Finish, calibration: tuple[Data, Data], order: tuple[Target, Target]
) -> None:
    """What is not quantized is FP32 in one and BF16 in the other, by the engine's own word; each is judged itself."""
    if problem := ENGINE.problem(MIXED.precision):
        pytest.skip(str(problem))
    bundle = finished(Wanted(order, calibration=calibration[0], gate=calibration[1], limits=WIDE))
    assert bundle.targets == ("onnxruntime:fp32", *map(str, order))
    first, second = (bundle.proof(target) for target in order)
    assert second["graphs_of"] == str(order[0])
    assert all(second[name] == first[name] for name in ("layers", "kept_float", "calibration", "calibrated_on"))
    assert second["gate"]["cases"] == 12
    assert sum("kept in float" in line for line in describe_precision(bundle.entry)) == 2
    said = {}
    for target in order:
        with load(bundle.path, str(target)) as predictor:
            assert [check.name for check in verify(predictor) if not check.passed] == []
            golden = bundle.golden()
            said[target] = predictor.predict({m: golden[f"{m}.pixels"] for m in MODALITIES}).embedding
            kinds = predictor.counts(1)["precision.convolutions"]
        assert ("bf16" in str(kinds), "f32" in str(kinds)) == (target == MIXED, target == INT8), kinds
        np.testing.assert_array_equal(said[target], golden[f"{target}.embedding"])
    assert 0 < np.abs(said[INT8] - said[MIXED]).max() < 0.1 * np.abs(said[INT8]).max()


@pytest.mark.slow
def test_an_int8_that_is_left_out_leaves_the_graphs_of_the_other(
    finished: Finish, calibration: tuple[Data, Data]
) -> None:
    bundle = finished(Wanted((INT8,), calibration=calibration[0], gate=calibration[1], limits=WIDE))
    draft = Draft(bundle.path, dict(bundle.entry), None, Original({}), calibration[0], Wanted((INT8,)))
    targets.family("openvino").forget(draft, MIXED)
    assert bundle.graph("mammography", "int8").is_file()
    targets.family("openvino").forget(draft, INT8)
    assert not (bundle.path / "onnx/mammography.int8.onnx").exists()


def test_int8_without_images_to_calibrate_on(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without images to calibrate on") as caught:
        export_checkpoint(checkpoint_folder, tmp_path / "b", wanted=Wanted((INT8,)))
    assert "--calibrate" in caught.value.hint
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept", "no_search")
def test_a_target_that_is_asked_for_and_changes_decisions_leaves_no_bundle(
    checkpoint_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    """Through the command line, whose limit it is."""
    command = ["export", checkpoint_folder, "-o", tmp_path / "b", "--target", INT8, "--calibrate", manifest]
    result = CliRunner().invoke(app, [str(part) for part in (*command, "--mean-difference", 1e-9, "--flips", 1)])
    assert result.exit_code == 3, result.stderr
    assert "probability, mean |Δp| is" in result.stderr
    assert "expected at most 1e-09" in result.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_int8_that_is_left_out_leaves_no_graphs(finished: Finish, calibration: tuple[Data, Data]) -> None:
    limits = replace(WIDE, mean_difference=1e-9, float_share=0.05)  # of 32 layers: the one that hurts most is tried
    bundle = finished(Wanted(calibration=calibration[0], gate=calibration[1], limits=limits))
    assert bundle.targets == ("onnxruntime:fp32", "openvino:fp32")
    assert not bundle.entry["precision"]["openvino:int8"]["passed"]
    assert [name for name in (*bundle.entry["files"], *bundle.entry["graphs"]) if "int8" in name] == []


@pytest.mark.slow
def test_a_target_that_is_not_asked_for_is_left_out_with_its_reason(finished: Finish, few: Data) -> None:
    if problem := ENGINE.problem("bf16"):
        pytest.skip(str(problem))
    limits = replace(WIDE, mean_difference=1e-9)
    bundle = finished(Wanted(gate=few, limits=limits))
    assert bundle.targets == ("onnxruntime:fp32", "openvino:fp32")
    assert "changes decisions" in bundle.entry["precision"]["openvino:bf16"]["reason"]
    with pytest.raises(ParityError, match="openvino:bf16 changes decisions: probability, mean"):
        finished(Wanted((BF16,), gate=few, limits=limits))


@pytest.mark.slow
def test_bf16_is_judged_against_fp32_on_its_own_engine(
    finished: Finish, few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem := ENGINE.problem("bf16"):
        pytest.skip(str(problem))
    opened: list[str] = []

    def noted(draft: Draft, target: Target) -> Predictor:
        opened.append(str(target))
        return Predictor(Bundle.open(draft.folder), target, unproven=True)

    monkeypatch.setattr(Draft, "open", noted)
    finished(Wanted((BF16,), gate=few, limits=WIDE))
    assert opened == ["onnxruntime:fp32", *["openvino:fp32"] * 2, "openvino:bf16"]  # proven, and asked


def test_an_unknown_target_is_refused_before_the_work(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="names the engine `abacus`"):
        export_checkpoint(checkpoint_folder, tmp_path / "b", wanted=Wanted((Target("abacus", "fp32"),)))


@pytest.mark.parametrize(
    ("error", "target", "hint"),
    [
        (AnswerError("3 are not finite"), FIRST, r"clamp what the modules divide by, .* root of, to more than 0$"),
        (AnswerError("3 are not finite"), BF16, r"root of, to more than 0; or leave the target out$"),
        (EngineError("no such operator"), FIRST, "^replace that operator$"),
    ],
)
def test_an_engine_without_a_number_is_no_missing_operator(error: EngineError, target: Target, hint: str) -> None:
    """As of a root of what is 0 or more but for rounding: no other operator would help, nor another version."""
    with (
        pytest.raises(UnfitTarget, match=f"{target} can't have this model: {error}") as told,
        targets._engines_word(target, "replace that operator"),
    ):
        raise error
    assert re.search(hint, told.value.hint)


@pytest.mark.parametrize("given", [("openvino:fp32",), "openvino:fp32"])
def test_a_target_is_no_text(given: Any) -> None:
    with pytest.raises(UsageError, match=r"`o.*` is asked for as a str, expected a Target") as told:
        targets.resolve(Wanted(given))
    assert "Target.parse('onnxruntime:fp32')" in told.value.hint


def test_a_calibration_manifest_is_halved_by_patient() -> None:
    cases = [Case(str(row), None, None, None, patient=f"p{row // 3}") for row in range(12)]
    pixels = {modality: np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) for modality in MODALITIES}
    first, second = halves(Data(pixels, np.arange(12), "x"), cases)
    np.testing.assert_array_equal(first.pixels["ultrasound"].ravel(), [0, 1, 2, 6, 7, 8])
    np.testing.assert_array_equal(second.pixels["mammography"].ravel(), [3, 4, 5, 9, 10, 11])
    assert second.labels is not None
    np.testing.assert_array_equal(second.labels, [3, 4, 5, 9, 10, 11])
    with pytest.raises(UsageError, match="holds 1 patient"):
        halves(Data(pixels, None, "x"), cases[:3])


def test_a_calibration_manifest_whose_persons_are_not_known_is_not_halved(
    checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    """Their rows would be on both sides, and INT8 judged on patients that it was calibrated on."""
    text = phantom_manifest.read_text().splitlines()
    listed = tmp_path / "manifest.csv"
    header = text[0].replace("patient", "source")
    listed.write_text("\n".join([f"{header},PatientID", *(f"{row},p" for row in text[1:])]))
    with pytest.raises(ManifestError, match="has the column `PatientID` and none named `patient`"):
        export_checkpoint(checkpoint_folder, tmp_path / "new.bundle", calibration_manifest=listed)
    assert not (tmp_path / "new.bundle").exists()


@pytest.mark.slow
def test_tensorrt_engines_are_built_and_listed_as_not_run(finished: Finish, few: Data) -> None:
    if RTX.problem() is None:
        pytest.skip("TensorRT-RTX runs here: its engines are proven, not only built")
    bundle = finished(Wanted((Target("tensorrt-rtx", "fp16", (86, 89)),), gate=few, limits=WIDE))
    assert bundle.targets == ("onnxruntime:fp32", "tensorrt-rtx:fp16")
    report = bundle.entry["precision"]["tensorrt-rtx:fp16"]
    assert report["passed"] is None
    assert "GPU" in report["reason"]
    assert list(report["engines"]) == [*MODALITIES, "head", "model"]
    for name, sidecar in report["engines"].items():
        assert sidecar["capabilities"] == [86, 89]
        assert sidecar["achieved"].get("fp32" if name == "head" else "fp16", 0) > 0.9
        engine = bundle.path / "engines/tensorrt-rtx-fp16" / f"{name}.engine"
        assert engine.stat().st_size == sidecar["engine_bytes"]
        assert f"engines/tensorrt-rtx-fp16/{name}.engine" in bundle.entry["files"]
    proof = report["graph"]
    assert proof["passed"]
    assert (proof["cases"], proof["source"]) == (12, "12 generated phantoms")
    assert "not the engine" in proof["proves"]
    checks = {check["name"]: check["value"] for check in proof["checks"]}
    assert 1e-5 < checks["embedding, relative"] < 2e-3, "it was rounded, and not much"
    assert checks["head on the same embedding, max |Δp|"] < 1e-5
    assert report["head"]["products"] == "convolution"
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        load(bundle.path, "tensorrt-rtx:fp16")


@pytest.mark.slow
@pytest.mark.parametrize("profile", [Profile(2, 4, 5), Profile(8, 8, 8)], ids=str)
def test_engines_are_for_the_batches_that_were_asked_for(finished: Finish, few: Data, profile: Profile) -> None:
    """Also those that a device builds itself, which finds the profile beside the graphs."""
    if gpu() is not None:
        pytest.skip("there is a GPU: TensorRT builds here as well")
    rtx, full = Target("tensorrt-rtx", "fp32", (89,)), Target("tensorrt", "fp32")
    bundle = finished(Wanted((rtx, full), gate=few, limits=WIDE, profile=profile))
    sizes = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    for name in ("tensorrt-rtx:fp32", "tensorrt:fp32"):
        folder = bundle.path / "engines" / name.replace(":", "-")
        assert bundle.entry["precision"][name]["profile"] == sizes
        assert read_profile(folder) == profile
        assert f"engines/{folder.name}/profile.json" in bundle.entry["files"]
    engines = bundle.entry["precision"]["tensorrt-rtx:fp32"]["engines"]
    assert [engine["profile"] for engine in engines.values()] == [sizes] * 4
    sidecars = list((bundle.path / "engines/tensorrt-rtx-fp32").glob("*.engine.json"))
    assert [Sidecar.read(path).profile for path in sidecars] == [profile] * 4
    assert not list((bundle.path / "engines/tensorrt-fp32").glob("*.engine*"))


@pytest.mark.slow
def test_onnxruntime_cuda_is_written_proven_and_listed_as_not_run(finished: Finish, few: Data) -> None:
    wanted = tuple(Target("onnxruntime-cuda", precision) for precision in ("fp32", "fp16"))
    if CUDA.problem("fp16") is None:
        pytest.skip("ONNX Runtime's CUDA provider runs here: its targets are proven, not only written")
    bundle = finished(Wanted(wanted, gate=few, limits=WIDE))
    assert bundle.targets == ("onnxruntime:fp32", "onnxruntime-cuda:fp32", "onnxruntime-cuda:fp16")
    reports = bundle.entry["precision"]
    assert [reports[str(target)]["passed"] for target in wanted] == [None, None]
    report = reports["onnxruntime-cuda:fp16"]
    assert all(achieved["fp16"] > 0.9 for achieved in report["achieved"].values())
    assert report["graph"]["passed"]
    assert 1e-5 < report["graph"]["checks"][0]["value"] < 2e-3, "it was rounded, and not much"
    assert {path.name for path in (bundle.path / "engines").iterdir()} == {"onnxruntime-cuda-fp16"}
    assert CUDA.graph(bundle, "ultrasound", "fp16").parent.name == "onnxruntime-cuda-fp16"
    assert CUDA.graph(bundle, "ultrasound", "fp32") == bundle.graph("ultrasound_onnxruntime")
    said = " ".join(describe_precision(bundle.entry))
    assert said.count("NOT RUN") == 2
    assert "its graph, not the engine: " in said
    with pytest.raises((EngineError, MissingPackage)):
        load(bundle.path, "onnxruntime-cuda:fp16")


def test_one_target_for_several_gpus_is_one_engine() -> None:
    wanted = tuple(Target("tensorrt-rtx", "fp16", (capability,)) for capability in (86, 89))
    with pytest.raises(UsageError, match=r"`tensorrt-rtx:fp16@86` and `tensorrt-rtx:fp16@89` are asked for") as caught:
        targets.resolve(Wanted(wanted))
    assert "tensorrt-rtx:fp16@86,89" in caught.value.hint


def test_where_tensorrt_runs_it_is_still_built_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRt, "problem", lambda self, precision="fp32": None)
    assert {target.engine for target in targets.resolve(Wanted())} == {"openvino"}


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (Target("tensorrt-rtx", "fp16"), "names no compute capabilities"),
        (Target("tensorrt-rtx", "int8", (86,)), "without images to calibrate on"),
        (Target("tensorrt-rtx", "bf16", (75, 86)), "asks for BF16 on compute capability 7.5"),
        (Target("openvino", "fp32", (86,)), "expected them for tensorrt-rtx alone"),
    ],
)
def test_what_tensorrt_can_not_be_asked_for(
    checkpoint_folder: Path, tmp_path: Path, target: Target, problem: str
) -> None:
    with pytest.raises((UsageError, EngineError), match=problem):
        export_checkpoint(checkpoint_folder, tmp_path / "b", wanted=Wanted((target,)))


RTX_INT8 = Target("tensorrt-rtx", "int8", (75, 86))


@pytest.fixture(scope="module")
def both_int8(finished: Finish, calibration: tuple[Data, Data]) -> Bundle:
    """INT8 for TensorRT-RTX, for TensorRT and for OpenVINO in one bundle."""
    if RTX.problem() is None:
        pytest.skip("TensorRT-RTX runs here: its engines are proven, not only built")
    wanted = Wanted((RTX_INT8, Target("tensorrt", "int8"), INT8), calibration[0], calibration[1], WIDE)
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []

        def counted(graph: onnx.ModelProto, pixels: Array, progress: Progress) -> Ranges:
            calls.append(len(pixels))
            return calibrate(graph, pixels, progress)

        patch.setattr("mpmmu_rt.export.draft.calibrate", counted)
        bundle = finished(wanted)
    assert calls == [12, 12], "once per modality, for all three"
    return bundle


@pytest.mark.slow
def test_int8_for_tensorrt_has_its_own_signed_graphs(both_int8: Bundle) -> None:
    assert both_int8.targets == ("onnxruntime:fp32", "tensorrt-rtx:int8", "tensorrt:int8", "openvino:int8")
    kinds: dict[str, set[int]] = {}
    paths = {"openvino": both_int8.graph("ultrasound", "int8")}
    for engine in (RTX, TENSORRT):
        paths[engine.name] = both_int8.path / engine.folder("int8") / "ultrasound.onnx"
    for name, path in paths.items():
        model = onnx.load(path)
        zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        kinds[name] = {item.data_type for item in model.graph.initializer if item.name in zeros}
    signed, unsigned = {onnx.TensorProto.INT8}, {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert kinds == {"openvino": unsigned, "tensorrt-rtx": signed, "tensorrt": signed}


@pytest.mark.slow
def test_what_int8_said_of_the_golden_cases_travels_along(both_int8: Bundle) -> None:
    """Of TensorRT, without a GPU, what its graph says on the CPU."""
    golden = both_int8.golden()
    found = {name: both_int8.golden_of(Target.parse(name), golden) for name in both_int8.targets[1:]}
    for answers in found.values():
        assert answers["probability"].shape == golden["probability"].shape
        error = np.linalg.norm(answers["embedding"] - golden["embedding"]) / np.linalg.norm(golden["embedding"])
        assert 1e-4 < error < 0.2
    rtx, full, openvino = found.values()
    np.testing.assert_allclose(full["embedding"], rtx["embedding"], rtol=1e-5)
    assert not np.allclose(openvino["embedding"], rtx["embedding"], rtol=1e-5)


@pytest.mark.slow
def test_int8_for_tensorrt_says_what_was_proven(both_int8: Bundle) -> None:
    for name in ("tensorrt-rtx:int8", "tensorrt:int8"):
        report = both_int8.entry["precision"][name]
        assert report["passed"] is None
        found = report["quantization"]
        assert found["gate"]["passed"]
        assert not found["unsigned_activations"]
        assert found["judged_by"] == "ONNX Runtime on the CPU"
        of_openvino = both_int8.entry["precision"]["openvino:int8"]["calibration"]
        assert found["calibration"] == of_openvino
        assert report["graph"]["decisions_flipped"] == found["gate"]["decisions_flipped"], "the graph that was judged"
    achieved = {
        name: engine["achieved"]
        for name, engine in both_int8.entry["precision"]["tensorrt-rtx:int8"]["engines"].items()
    }
    assert achieved["head"] == {"fp32": 1.0}
    assert achieved["model"]["int8"] > 0.8
    assert both_int8.entry["precision"]["tensorrt:int8"]["engines"] == {}


@pytest.mark.slow
def test_int8_for_tensorrt_that_changes_decisions_is_refused(finished: Finish, calibration: tuple[Data, Data]) -> None:
    limits = Limits(mean_difference=1e-9, float_share=0.01, flips=1)
    with pytest.raises(ParityError, match="INT8 changes decisions more than allowed"):
        finished(Wanted((RTX_INT8,), calibration[0], calibration[1], limits))


@pytest.mark.slow
def test_a_half_graph_that_changes_decisions_is_refused(finished: Finish, few: Data) -> None:
    limits = replace(WIDE, mean_difference=1e-9)
    with pytest.raises(ParityError, match="tensorrt-rtx:bf16@86 changes decisions: probability, mean"):
        finished(Wanted((Target("tensorrt-rtx", "bf16", (86,)),), gate=few, limits=limits))


@pytest.mark.slow
def test_bf16_of_encoders_that_are_quantized_is_refused(int8_folder: Path, tmp_path: Path) -> None:
    """Modules that bring Q/DQ along: OpenVINO fails in 8-bit convolutions of a model that it runs in BF16."""
    folder = Path(shutil.copytree(int8_folder, tmp_path / "b"))
    entry = json.loads((folder / "bundle.json").read_text())
    entry["graphs"]["ultrasound"] = entry["graphs"]["ultrasound.int8"]
    nobody = Data({}, None, "nobody")
    draft = Draft(folder, entry, None, Original({}), nobody, Wanted())
    with pytest.raises(UnfitTarget, match="the ultrasound encoder is quantized already") as caught:
        targets.family("openvino").make(draft, BF16)
    assert "openvino:fp32" in caught.value.hint
    assert targets.family("openvino").make(draft, Target("openvino", "fp32")) == {}


@pytest.mark.slow
def test_what_rounds_is_not_held_to_an_fp32_that_is_not_the_model(
    begun: Draft, calibration: tuple[Data, Data], tmp_path: Path
) -> None:
    """An encoder is wrong by 8 % in all of OpenVINO, as by a wrong rewrite: its precisions agree with each other."""
    folder = Path(shutil.copytree(begun.folder, tmp_path / "b"))
    path = folder / "onnx/mammography_openvino.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["own" if name == "feature_map" else name for name in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.08, np.float32), "scale"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["own", "scale"], ["feature_map"]))
    onnx.save(model, str(path))

    def made(wanted: Wanted) -> Bundle:
        draft = replace(
            begun, folder=folder, entry=copy.deepcopy(begun.entry), wanted=wanted, rankings={}, exact=set(), _floats={}
        )
        draft.seal()
        build.finish(draft)
        return Bundle.open(folder)

    wanted = Wanted(calibration=calibration[0], gate=calibration[1], limits=WIDE)
    opened = made(wanted)
    assert [name for name in opened.targets if name.startswith("openvino:")] == []
    said = {name: one["reason"] for name, one in opened.entry["precision"].items() if name.startswith("openvino:")}
    assert set(said) == {f"openvino:{one}" for one in ENGINE.precisions if ENGINE.problem(one) is None}
    for name in set(said) - {"openvino:fp32"}:
        assert said[name].startswith(f"openvino:fp32, which {name} is held to, is not the model: ")
        assert "mammography feature map" in said[name]
    with pytest.raises(ParityError, match="openvino:fp32, which openvino:int8 is held to, is not the model"):
        made(replace(wanted, targets=(INT8,)))
