"""`verify BUNDLE MANIFEST`: a target against a second one on the user's own cases."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mpmmu_rt import load
from mpmmu_rt.bundle import seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.engines import engines
from mpmmu_rt.images import read_grey
from mpmmu_rt.modality_check import SAYS
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.own_cases import judge

from .changed import unanswering
from .swapped import checking, exchanged

Wrong = Callable[[onnx.ModelProto], object]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(result: Result) -> Any:
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


@pytest.fixture(autouse=True)
def _openvino() -> None:
    if problem := engines()["openvino"].problem():
        pytest.skip(str(problem))


def change(folder: Path, graph: str, wrong: Wrong) -> None:
    path = folder / f"onnx/{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    wrong(model)
    onnx.save(model, path)
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def scaled(output: str, by: float) -> Wrong:
    def wrong(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["raw" if name == output else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(by), "by"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["raw", "by"], [output]))

    return wrong


@pytest.mark.slow
def test_two_engines_in_fp32_decide_alike(bundle_folder: Path, phantom_manifest: Path) -> None:
    with load(bundle_folder, "openvino:fp32") as new, load(bundle_folder) as reference:
        found = judge(new, reference, read_manifest(phantom_manifest))
        alone = new.predict({modality: array for modality, array in _pixels(bundle_folder, phantom_manifest).items()})
    assert (found.decisions.cases, found.decisions.flips, found.stage, found.unread) == (12, 0, "", ())
    assert found.at_export == (0, 32)
    assert all(check.passed for check in found.checks)
    assert found.forecast is None  # of 12
    assert found.notes == ("12 cases are too few to forecast flips from, or of too few patients",)
    malignant = [case.label == 1 for case in read_manifest(phantom_manifest).cases]
    hits = (alone.probability >= np.float32(0.4))[malignant]
    assert found.decisions.sensitivity == pytest.approx((hits.mean(), hits.mean()))


def _pixels(bundle: Path, manifest: Path) -> Any:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.images import read_pixels
    from mpmmu_rt.spec import MODALITIES

    preprocessing, cases = Bundle.open(bundle).preprocessing, read_manifest(manifest).cases
    return {
        modality: np.stack(
            [read_pixels(path, preprocessing, modality=modality) for case in cases if (path := case.image(modality))]
        )
        for modality in MODALITIES
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "output", "by", "stage"),
    [
        ("mammography_openvino", "feature_map", 0.9, "the mammography encoder"),
        ("ultrasound_openvino", "feature_map", 0.9, "the ultrasound encoder"),
        ("attention_pool_openvino", "embedding", 0.9, "the attention pool"),
    ],
)
def test_the_stage_at_fault_is_named(
    folder: Path, phantom_manifest: Path, graph: str, output: str, by: float, stage: str
) -> None:
    """The graphs that OpenVINO runs are others than ONNX Runtime's: one of the two goes wrong."""
    change(folder, graph, scaled(output, by))
    with load(folder, "openvino:fp32") as new, load(folder) as reference:
        found = judge(new, reference, read_manifest(phantom_manifest))
    assert found.stage == stage
    assert not all(check.passed for check in found.checks)


def test_the_first_target_is_held_to_the_portable_head(folder: Path, phantom_manifest: Path) -> None:
    """It has no other to be held to; a head that was exchanged alone is seen."""
    manifest = read_manifest(phantom_manifest)
    with load(folder) as predictor:
        found = judge(predictor, None, manifest)
    assert found.reference == "the portable head on the same embeddings"
    assert (found.decisions.flips, found.forecast, found.at_export) == (0, None, None)
    change(folder, "head_onnxruntime", scaled("probability", 0.5))
    with load(folder) as predictor:
        found = judge(predictor, None, manifest)
    assert not all(check.passed for check in found.checks)


@pytest.mark.parametrize("patients", [12, 5])
def test_it_is_said_that_cases_are_counted_and_not_patients(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, patients: int
) -> None:
    """The interval of flips took each of a patient's rows for another patient, without a word."""
    lines = ["case_id,mammography,ultrasound,patient"]
    for row, case in enumerate(read_manifest(phantom_manifest).cases):
        lines.append(f"{case.case_id},{case.mammography},{case.ultrasound},p{row % patients}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    verify = ("verify", bundle_folder, tmp_path / "m.csv", "--no-record", "--target", "openvino:fp32")
    result = call(*verify)
    assert result.exit_code == 0, result.stderr
    said = "note: decisions are counted by case: the 12 cases are of 5 patients, and intervals that take each case for"
    assert (said in " ".join(result.stderr.split())) == (patients == 5)
    assert f"Decisions on 12 own cases{' of 5 patients' if patients == 5 else ''}. Reference" in result.stdout
    assert document(call(*verify, "--json", "-"))["own_cases"]["patients"] == patients


@pytest.mark.slow
def test_what_can_not_be_read_is_named_and_not_counted(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    with phantom_manifest.open() as source:
        rows = list(csv.DictReader(source))
    for row in rows:
        row |= {name: str(phantom_manifest.parent / row[name]) for name in ("mammography", "ultrasound")}
    rows[3]["ultrasound"] = str(tmp_path / "missing.png")
    with (tmp_path / "m.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    result = call(
        "verify", bundle_folder, tmp_path / "m.csv", "--target", "openvino:fp32", "--no-record", "--json", "-"
    )
    assert result.exit_code == 0, result.stderr
    own = document(result)["own_cases"]
    assert own["decisions"]["cases"] == 11
    assert len(own["unread"]) == 1
    assert "1 cases could not be read and are not counted; the first is `" in result.stderr
    (tmp_path / "m.csv").write_text("case_id,mammography,ultrasound\na,b.png,c.png\n")
    result = call("verify", bundle_folder, tmp_path / "m.csv", "--no-record")
    assert result.exit_code == 1
    assert "none of the 1 cases of" in result.stderr.splitlines()[-2]


@pytest.mark.slow
def test_what_speaks_against_the_images_is_said(
    bundle_folder: Path, phantom_manifest: Path, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = checking(bundle_folder, tmp_path / "b.bundle")
    verify = ("verify", bundle, exchanged(phantom_manifest, tmp_path / "m.csv"), "--no-record")
    result = call(*verify, "--target", "onnxruntime:fp32")
    assert result.exit_code == 0, result.stderr
    said = "warning: 12 of 12 cases have warnings, 12 of them that they look swapped; the first is `phantom-0000`: "
    assert said + SAYS in " ".join(result.stderr.split())
    own = document(call(*verify, "--target", "onnxruntime:fp32", "--json", "-"))["own_cases"]
    assert (own["warned"], own["look_swapped"], own["first_warning"]) == (12, 12, f"`phantom-0000`: {SAYS}")
    cases = read_manifest(phantom_manifest).cases
    dicom = save_dicom(read_grey(cases[1].mammography or ""), BurnedInAnnotation="YES")
    rows = [f"a,{cases[0].mammography},{cases[0].ultrasound}", f"b,{dicom},{cases[1].ultrasound}"]
    (tmp_path / "few.csv").write_text("\n".join(["case_id,mammography,ultrasound", *rows]) + "\n")
    result = call("verify", bundle, tmp_path / "few.csv", "--no-record", "--target", "openvino:fp32")
    assert "warning: 1 of 2 cases have warnings; the first is `b`: mammography: it has burned-in" in result.stderr
    result = call("verify", bundle, phantom_manifest, "--no-record", "--target", "onnxruntime:fp32", "--json", "-")
    own = document(result)["own_cases"]
    assert (own["warned"], own["look_swapped"], own["first_warning"]) == (0, 0, None)
    assert "have warnings" not in result.stderr


@pytest.mark.slow
def test_the_command(bundle_folder: Path, phantom_manifest: Path) -> None:
    verify = ("verify", bundle_folder, phantom_manifest, "--no-record")
    result = call(*verify, "--target", "openvino:fp32")
    assert result.exit_code == 0, result.stderr
    assert "Δ is new - reference" in " ".join(result.stdout.split())
    words = " ".join(result.stdout.split())
    assert "0 of 12: 0.0% (0.0% to 26.5%)" in words
    assert "at export 0 of 32" in words.replace(":", "")
    said = document(call(*verify, "--target", "onnxruntime:fp32", "--against", "openvino:fp32", "--json", "-"))
    assert said["passed"] is True
    assert (said["target"], said["own_cases"]["reference"]) == ("onnxruntime:fp32", "openvino:fp32")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--against", "openvino:fp32"], "is given without a manifest, expected both", "verify {b} MANIFEST"),
        (["{m}", "--against", "onnxruntime:fp32"], "is the target itself, expected another", "leave --against out"),
        (["{m}", "--against", "openvino:int8"], "was not proven when", "--against openvino:fp32"),
        (["{m}", "--against", "abacus"], "was not proven when", "--against openvino:fp32"),
    ],
)
def test_what_can_not_be_compared(
    bundle_folder: Path, phantom_manifest: Path, arguments: list[str], error: str, hint: str
) -> None:
    filled = ["--target", "onnxruntime:fp32", *(part.format(m=phantom_manifest) for part in arguments)]
    result = call("verify", bundle_folder, *filled, "--no-record", "--json", "-")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert error in lines[0]
    assert hint.format(b=bundle_folder) in lines[1]


@pytest.mark.slow
def test_int8_is_held_to_the_limits_of_its_export(int8_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """The same answers, with the limits that it was exported with and with narrower ones."""
    if problem := engines()["openvino"].problem("int8"):
        pytest.skip(str(problem))
    folder = Path(shutil.copytree(int8_folder, tmp_path / "copy.bundle"))
    command = ("verify", folder, phantom_manifest, "--target", "openvino:int8", "--no-record", "--json", "-")
    result = call(*command)
    assert result.exit_code == 0, result.stderr
    entry = json.loads((folder / "bundle.json").read_text())
    for check in entry["precision"]["openvino:int8"]["gate"]["checks"]:
        check["limit"] = 1e-6
    seal(folder, entry)
    result = call(*command)
    assert result.exit_code == 3
    assert "own cases, mean |Δp|" in {check["name"] for check in document(result)["checks"] if not check["passed"]}


ENGINE = '''
import numpy as np
from mpmmu_rt.engines.onnxruntime import OnnxRuntime

class Session:
    """Has no number for the fourth of twelve cases."""

    def __init__(self, session):
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds):
        said = self._session.run(feeds)
        if len(said.get("probability", ())) == 12:
            said["probability"][3] = np.nan
        return said

    def close(self):
        self._session.close()

class Gaps(OnnxRuntime):
    name = "gaps"

    def load(self, graph, precision, threads):
        return Session(super().load(graph, precision, threads))

ENGINE = Gaps()
'''


def test_a_case_without_an_answer_fails_and_the_others_count(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpmmu_rt import engines as known

    (tmp_path / "mpmmu_test_gaps.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(known._MODULES, "gaps", ("mpmmu_test_gaps", "ENGINE"))
    with load(bundle_folder, "gaps:fp32", unproven=True) as new, load(bundle_folder) as reference:
        found = judge(new, reference, read_manifest(phantom_manifest))
    assert (found.unanswered, found.decisions.cases, found.decisions.flips) == (1, 11, 0)
    assert [check.name for check in found.checks if not check.passed] == ["own cases without an answer"]


@pytest.mark.parametrize("record", [True, False])
def test_a_verdict_that_failed_on_own_cases_does_not_go_without_a_word(tmp_path: Path, record: bool) -> None:
    """A plain `verify` passes, and takes its place: whoever had seen it fail must hear that nobody asked again."""
    folder = unanswering(tmp_path / "copy.bundle", grey=2.0)
    manifest = write_phantoms(6, tmp_path / "phantoms", seed=5)
    dark = np.zeros((64, 64), np.uint8)
    dark[:8, :8] = 1
    Image.fromarray(dark).save(manifest.parent / "mammography" / "phantom-0002.png")
    verify = ["verify", folder, "--target", "onnxruntime:fp32"]
    asked = call(*verify, manifest)
    assert asked.exit_code == 3, asked.stderr
    assert "own cases without an answer" in asked.stdout
    plain = call(*verify, *([] if record else ["--no-record"]))
    assert plain.exit_code == 0, plain.stderr
    said = (
        f"had failed, with the own cases of {manifest}, which were not asked now: `mpmmu-rt verify {folder} {manifest} "
    )
    assert (said in plain.stderr) is record
    again = call(*verify)  # there is no such verdict any more, or it is there still
    assert (said in again.stderr) is not record
    assert call(*verify, manifest).exit_code == 3
    assert "warning: the verdict" not in call(*verify, manifest).stderr  # the same cases
