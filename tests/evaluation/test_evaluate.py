"""`evaluate` from files to report: what is judged, what thresholds are chosen on, and what is said of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from mpmmu_rt import split_record, verified
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.card import NAME, update
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.cli.evaluate import _note_proof, _opened
from mpmmu_rt.errors import BundleError, DigestMismatch, ImageError, ManifestError
from mpmmu_rt.evaluation.choosing import Wanted
from mpmmu_rt.evaluation.parts import read_parts
from mpmmu_rt.evaluation.study import evaluate
from mpmmu_rt.evaluation.systems import ask, bundle_system
from mpmmu_rt.export.cases import of_manifest
from mpmmu_rt.files import sha256_file
from mpmmu_rt.images import read_grey
from mpmmu_rt.known_images import listing
from mpmmu_rt.modality_check import SAYS
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.model.system import checkpoint_system
from mpmmu_rt.places import claimed
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import Target
from tests.swapped import checking, exchanged

pytestmark = pytest.mark.slow
Cells = Callable[[int, dict[str, str]], dict[str, str]]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 phantoms as files; the manifest."""
    return write_phantoms(40, tmp_path_factory.mktemp("evaluate") / "phantoms", seed=5)


def manifest(source: Path, name: str, change: Cells) -> Path:
    """Beside `source`, with each row as `change` has it; rows that it empties are left out."""
    with source.open(newline="", encoding="utf-8") as file:
        rows = [change(number, dict(row)) for number, row in enumerate(csv.DictReader(file))]
    rows = [row for row in rows if row]
    path = source.with_name(name)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parted(number: int, row: dict[str, str]) -> dict[str, str]:
    return row | {"split": "train" if number < 8 else "val" if number < 20 else "test"}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def two_lines(result: Result) -> str:
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], result.stderr
    return result.stderr


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    return found


def test_what_is_written_is_what_was_asked(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    path = manifest(phantoms, "parted.csv", lambda number, row: parted(number, row) | {"side": "LR"[number % 2]})
    out = tmp_path / "out"
    options = ["--at-sensitivity", 0.9, "--prevalence", 0.02, "--by", "side"]
    result = call(bundle_folder, path, "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    entry = report(out)
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == entry["cases"]["judged"] == 20
    assert {row["split"] for row in rows} == {"test"}
    label, said = (np.array([float(row[key]) for row in rows]) for key in ("label", "probability"))
    assert entry["auc"]["value"] == pytest.approx(roc_auc_score(label, said))
    assert [one["name"] for one in entry["thresholds"]] == ["stored", "Youden", "sens. ≥ 0.9"]
    assert [one["chosen_on_cases"] for one in entry["thresholds"]] == [None, 12, 12]
    stored = entry["thresholds"][0]
    assert stored["threshold"] == Bundle.open(bundle_folder).threshold
    assert [row["decision"] == "malignant" for row in rows] == (said >= np.float32(stored["threshold"])).tolist()
    assert sum(one["rows"] for one in entry["subgroups"]["side"]) == 20
    assert entry["parts"]["left_out"] == {"train": 8, "validation": 12}
    assert sorted(one.name for one in out.iterdir()) == sorted(
        ["report.json", "report.md", "report.html", "cases.csv"]
        + [f"{name}.svg" for name in ("roc", "precision_recall", "calibration", "decision", "histogram", "confusion")]
    )
    for name in ("report.md", "report.html"):
        assert f"{entry['auc']['value']:.3f}" in (out / name).read_text()
    two_lines(again := call(bundle_folder, path, "-o", out))
    assert again.exit_code == 1
    assert call(bundle_folder, path, "-o", out, "--overwrite").exit_code == 0
    (out / "readers.csv").write_text("years of work")
    refused = call(bundle_folder, path, "-o", out, "--overwrite")
    two_lines(refused)
    assert f"{out} holds readers.csv, which no earlier output has" in refused.stderr


def test_a_checkpoint_and_its_bundle_say_the_same(
    phantoms: Path, bundle_folder: Path, checkpoint_folder: Path, tmp_path: Path
) -> None:
    result = call(checkpoint_folder, phantoms, "-o", tmp_path / "out", "--against", bundle_folder)
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "out")
    assert (entry["system"]["kind"], entry["against"]["system"]["kind"]) == ("checkpoint", "bundle")
    assert entry["against"]["decisions_differ"] == 0
    assert entry["against"]["max_difference"] < 1e-4
    assert abs(entry["against"]["difference"]["value"]) < 1e-3
    assert "not known" in result.stdout  # nobody says whether it has learnt from these


def test_two_targets_of_one_bundle(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    where = ["-o", tmp_path / "out"]
    result = call(bundle_folder, phantoms, *where, "--target", "openvino:fp32", "--against-target", "onnxruntime:fp32")
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "out")
    assert entry["against"]["system"]["target"] == "onnxruntime:fp32"
    said = " ".join(result.stderr.split())
    for target in ("onnxruntime:fp32", "openvino:fp32"):
        assert f"note: {target} is not verified on this machine: " in said
        assert f"`mpmmu-rt verify {bundle_folder} --target {target}`" in said
    result = call(bundle_folder, phantoms, "-o", tmp_path / "same", "--against", bundle_folder)
    assert result.exit_code == 2
    assert "is what is judged" in two_lines(result)


@pytest.mark.parametrize("options", [["--target", "openvino:fp32"], ["--against-target", "openvino:fp32"]])
def test_a_checkpoint_has_no_target(
    phantoms: Path, checkpoint_folder: Path, tmp_path: Path, options: list[str]
) -> None:
    result = call(checkpoint_folder, phantoms, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    said = two_lines(result)
    assert f"the target openvino:fp32 is asked of the checkpoint {checkpoint_folder}, expected a bundle" in said
    assert f"mpmmu-rt export {checkpoint_folder}" in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_against_itself(phantoms: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    result = call(checkpoint_folder, phantoms, "-o", tmp_path / "out", "--against", checkpoint_folder)
    assert result.exit_code == 2
    assert f"names the checkpoint {checkpoint_folder}, which is what is judged" in two_lines(result)


def test_a_pickled_head_is_loaded_as_the_hint_says(
    phantoms: Path, bundle_folder: Path, checkpoint_folder: Path, small_model: Checkpoint, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(checkpoint_folder, tmp_path / "own"))
    (own / "head.skops").unlink()
    joblib.dump(small_model.head, own / "head.joblib")
    refused = call(own, phantoms, "-o", tmp_path / "out")
    assert refused.exit_code == 1
    given = ["--trust-pickle", own / "head.joblib"]
    assert f"pass {given[0]} {given[1]}" in two_lines(refused)
    result = call(own, phantoms, "-o", tmp_path / "out", "--against", checkpoint_folder, *given)
    assert result.exit_code == 0, result.stderr
    assert report(tmp_path / "out")["against"]["max_difference"] == 0
    (tmp_path / "link").symlink_to(own / "head.joblib")
    linked = call(own, phantoms, "-o", tmp_path / "linked", "--trust-pickle", tmp_path / "link")
    assert linked.exit_code == 0, linked.stderr
    joblib.dump(small_model.head, tmp_path / "head.joblib")
    lost = call(checkpoint_folder, phantoms, "-o", tmp_path / "lost", "--trust-pickle", tmp_path / "head.joblib")
    assert lost.exit_code == 2
    assert "which lies in nothing that is judged, expected a checkpoint's head" in two_lines(lost)
    shutil.copy(checkpoint_folder / "head.skops", own)
    both = call(own, phantoms, "-o", tmp_path / "both", *given)
    assert both.exit_code == 1
    assert "expected one head" in two_lines(both)
    none = call(bundle_folder, phantoms, "-o", tmp_path / "none", *given)
    assert none.exit_code == 2
    assert "a bundle holds no pickle" in two_lines(none)


def test_what_another_process_writes_is_refused_before_the_work(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    found: list[Result] = []
    with claimed(tmp_path / "out"):
        thread = threading.Thread(target=lambda: found.append(call(bundle_folder, phantoms, "-o", tmp_path / "out")))
        thread.start()
        thread.join()
    assert found[0].exit_code == 1
    assert "is being written by another thread" in two_lines(found[0])


def test_no_threshold_is_chosen_on_what_judges_it(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    first = manifest(phantoms, "first.csv", lambda number, row: row if number < 20 else {})
    second = manifest(phantoms, "second.csv", lambda number, row: row if number >= 20 else {})
    shared = manifest(phantoms, "shared.csv", lambda number, row: row | {"patient": ""} if number >= 19 else {})
    out = ["-o", tmp_path / "out"]
    wished = call(bundle_folder, first, *out, "--at-sensitivity", 0.9)
    assert wished.exit_code == 2
    assert "--choose-on MANIFEST" in two_lines(wished)
    same = call(bundle_folder, first, *out, "--choose-on", first)
    assert same.exit_code == 2
    assert "other patients" in two_lines(same)
    # The patient has another name there, and the image is the same.
    image = call(bundle_folder, first, *out, "--choose-on", shared)
    assert "the image phantom-0019.png" in two_lines(image)
    # The manifest's own validation part is held to the same.
    own = manifest(
        phantoms,
        "own.csv",
        lambda number, row: (
            parted(number, row) | ({"ultrasound": "ultrasound/phantom-0019.png"} if number == 25 else {})
        ),
    )
    image = call(bundle_folder, own, *out)
    assert image.exit_code == 2
    assert f"the validation part of {own} holds the image phantom-0019.png, which is judged" in two_lines(image)
    right = call(bundle_folder, first, *out, "--choose-on", second, "--at-sensitivity", 0.9)
    assert right.exit_code == 0, right.stderr
    entry = report(tmp_path / "out")
    assert {one["chosen_on"] for one in entry["thresholds"]} == {None, str(second)}


def test_what_cannot_be_read_is_counted_and_said(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    def change(number: int, row: dict[str, str]) -> dict[str, str]:
        gone = {"ultrasound": "gone.png"} if number == 3 else {"mammography": row["ultrasound"]} if number == 7 else {}
        return row | gone | ({"label": ""} if number == 9 else {})

    path = manifest(phantoms, "broken.csv", change)
    result = call(bundle_folder, path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "out")
    assert [one["case_id"] for one in entry["failed"]] == ["phantom-0003", "phantom-0007"]
    assert (entry["cases"]["asked"], entry["cases"]["judged"], entry["cases"]["unlabelled"]) == (40, 37, 1)
    for text in (result.stdout, (tmp_path / "out/report.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert "WARNING: 2 of 40 cases have no answer" in " ".join(text.split())
        assert "`phantom-0003`:" in text
    assert "phantom-0003" not in " ".join(entry["remarks"])  # which a model card carries to others
    with (tmp_path / "out/cases.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 40
    assert "gone.png" in rows["phantom-0003"]["error"]
    every = call(
        bundle_folder,
        *(manifest(phantoms, "none.csv", lambda _, row: row | {"ultrasound": "gone.png"}), "-o", tmp_path / "x"),
    )
    assert every.exit_code == 1
    assert "none of the 40 cases" in two_lines(every)


def test_pairs_that_look_swapped_are_counted_and_said_loudly(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = checking(bundle_folder, tmp_path / "b.bundle")
    result = call(bundle, phantoms, "-o", tmp_path / "right")
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "right")
    assert (entry["cases"]["warned"], entry["cases"]["look_swapped"]) == (0, 0)
    assert "swapped" not in result.stdout
    result = call(bundle, exchanged(phantoms, tmp_path / "m.csv", every=2), "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "out")
    assert (entry["cases"]["warned"], entry["cases"]["look_swapped"]) == (20, 20)
    for text in (result.stdout, (tmp_path / "out/report.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert "WARNING: the images of 20 of 40 cases look swapped" in " ".join(text.split())
    assert "headers" not in " ".join(entry["remarks"])
    with (tmp_path / "out/cases.csv").open(newline="", encoding="utf-8") as file:
        assert [row["warnings"] for row in csv.DictReader(file)] == [SAYS, ""] * 20


def test_so_are_those_that_a_checkpoint_is_judged_on(
    phantoms: Path, bundle_folder: Path, checkpoint_folder: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(checkpoint_folder, tmp_path / "c"))
    config = json.loads((checkpoint / "config.json").read_text())
    check = json.loads((checking(bundle_folder, tmp_path / "b.bundle") / "bundle.json").read_text())["modality_check"]
    (checkpoint / "config.json").write_text(json.dumps(config | {"modality_check": check}))
    result = call(checkpoint, exchanged(phantoms, tmp_path / "m.csv", every=2), "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert report(tmp_path / "out")["cases"]["look_swapped"] == 20


def test_headers_and_swapped_pairs_are_told_apart(
    phantoms: Path, bundle_folder: Path, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    grey = read_grey(read_manifest(phantoms).cases[4].mammography or "")
    dicom = save_dicom(grey, BurnedInAnnotation="YES")
    turned = exchanged(phantoms, tmp_path / "turned.csv", every=40)
    path = manifest(turned, "m.csv", lambda number, row: row | ({"mammography": str(dicom)} if number == 4 else {}))
    result = call(checking(bundle_folder, tmp_path / "b.bundle"), path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    words = " ".join(report(tmp_path / "out")["remarks"])
    assert "the images of 1 of 40 cases look swapped" in words
    assert "1 cases have images whose headers say something against them: see cases.csv." in words


def test_thresholds_that_swapped_pairs_chose_are_worth_nothing(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = checking(bundle_folder, tmp_path / "b.bundle")
    judged = manifest(phantoms, "judged.csv", lambda number, row: row if number >= 20 else {})
    others = manifest(phantoms, "others.csv", lambda number, row: row if number < 20 else {})
    result = call(bundle, judged, "-o", tmp_path / "out", "--choose-on", exchanged(others, tmp_path / "m.csv"))
    assert result.exit_code == 0, result.stderr
    said = "WARNING: the images of 20 of the cases that thresholds were chosen on look swapped"
    assert said in " ".join(report(tmp_path / "out")["remarks"])


def resealed(bundle_folder: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(bundle_folder, folder)
    entry = {key: value for key, value in Bundle.open(folder).entry.items() if key not in ("sha256", "files", "schema")}
    seal(folder, entry | changes)
    return folder


def test_patients_that_were_learnt_from_are_left_out_or_said_loudly(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    groups = [case.group for case in read_manifest(phantoms).cases]
    card = {
        split_record.KEY: split_record.record(groups, {"train": range(10), "validation": range(10, 22), "test": [39]}),
        "metrics": {"validation": {"label": [0, 1, 0, 1], "probability": [0.1, 0.6, 0.45, 0.9]}},
    }
    bundle = resealed(bundle_folder, tmp_path / "b", card=dict(Bundle.open(bundle_folder).entry["card"]) | card)
    result = call(bundle, phantoms, "-o", tmp_path / "out", "--at-sensitivity", 1)
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "out")
    assert entry["parts"]["judged"] == {"in no part": 17, "test": 1}
    assert entry["learnt_from"] == {}
    # The validation part was learnt from: thresholds are chosen on what the training has kept of it.
    assert entry["thresholds"][2]["threshold"] == pytest.approx(0.6)
    assert "had not seen" in entry["thresholds"][2]["chosen_on"]
    everything = call(bundle, phantoms, "-o", tmp_path / "all", "--part", "all")
    entry = report(tmp_path / "all")
    assert entry["learnt_from"] == {"train": 10, "validation": 12}
    assert len(entry["thresholds"]) == 1  # the cases of the kept answers are among those that are judged
    for text in (
        everything.stdout,
        (tmp_path / "all/report.md").read_text(),
        (tmp_path / "all/report.html").read_text(),
    ):
        assert "WARNING: the model has learnt from 22 of the 40 cases" in " ".join(text.split())
    # The manifest may call them a test part: the card knows better.
    path = manifest(phantoms, "wrong.csv", lambda number, row: row | {"split": "test" if number < 15 else "train"})
    wrong = call(bundle, path, "-o", tmp_path / "wrong")
    assert "has learnt from 15 of the 15 cases" in " ".join(wrong.stdout.split())
    none = manifest(phantoms, "train.csv", lambda number, row: row if number < 10 else {})
    assert "--part all" in two_lines(call(bundle, none, "-o", tmp_path / "none"))


def test_parts_that_make_no_sense_are_refused(phantoms: Path) -> None:
    strange = manifest(phantoms, "strange.csv", lambda number, row: row | {"split": "holdout" if number else "test"})
    with pytest.raises(ManifestError, match="has the split `holdout`, expected train, validation, test"):
        read_parts(read_manifest(strange), {})
    torn = manifest(
        phantoms, "torn.csv", lambda number, row: row | {"patient": "p", "split": "test" if number % 2 else "train"}
    )
    with pytest.raises(ManifestError, match="patient `p` is in the parts train and test"):
        read_parts(read_manifest(torn), {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "density"], "has no column `density` to split by, expected one of its further columns (note)"),
        (["--by", "note"], "has 40 values in the column `note`, expected at most 20 groups"),
        (["--part", "holdout"], "--part is `holdout`, expected one of auto, train, validation, test, all"),
        (["--part", "test"], "has no case of the part test"),
        (["--prevalence", "1"], "--prevalence is 1, expected more than 0 and less than 1"),
        (["--target", "openvino:int8"], "openvino:int8 was not proven"),
    ],
)
def test_what_makes_no_sense_is_refused(
    phantoms: Path, bundle_folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    path = manifest(phantoms, "noted.csv", lambda number, row: row | {"note": str(number)})
    result = call(bundle_folder, path, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert said in two_lines(result)
    assert not (tmp_path / "out").exists()


def test_what_is_neither_bundle_nor_checkpoint(phantoms: Path, tmp_path: Path) -> None:
    result = call(tmp_path, phantoms, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "holds neither bundle.json nor config.json" in two_lines(result)


def test_an_untrained_model_is_called_so_everywhere(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    bundle = resealed(bundle_folder, tmp_path / "b", trained=False)
    result = call(bundle, phantoms, "-o", tmp_path / "out")
    assert "UNTRAINED" in result.stdout
    assert "UNTRAINED" in result.stderr
    assert report(tmp_path / "out")["system"]["trained"] is False
    for name in ("report.md", "report.html", "report.json"):
        assert "UNTRAINED" in (tmp_path / "out" / name).read_text(), name


def test_few_patients_are_told_what_they_cannot_show(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    path = manifest(phantoms, "few.csv", lambda number, row: row if number < 12 else {})
    said = " ".join(call(bundle_folder, path, "-o", tmp_path / "out").stdout.split())
    assert "benign patients are few: a validation needs 100 of each" in said
    assert "too narrow" in said
    same = manifest(phantoms, "same.csv", lambda number, row: row | {"label": "0"} if number < 12 else {})
    result = call(bundle_folder, same, "-o", tmp_path / "benign")
    assert result.exit_code == 0, result.stderr
    entry = report(tmp_path / "benign")
    assert (entry["auc"]["value"], entry["curves"]) == (None, None)
    assert "no pair to rank" in entry["auc"]["reason"]


def test_answers_do_not_depend_on_their_neighbours(
    phantoms: Path, bundle_folder: Path, checkpoint_folder: Path
) -> None:
    cases = read_manifest(phantoms).cases
    with bundle_system(bundle_folder, "onnxruntime:fp32") as system:
        together = [one.probability for one in ask(system, cases)]
        alone = [one.probability for case in cases[:3] for one in ask(system, [case])]
    assert alone == pytest.approx(together[:3], abs=1e-6)
    original = [one.probability for one in ask(checkpoint_system(checkpoint_folder), cases)]
    assert together == pytest.approx(original, abs=1e-4)


def test_what_is_said_of_the_proof_is_of_the_bundle_that_was_judged(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another that was verified here may lie in its place by the time that it is said."""
    path = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    target = Target.parse("onnxruntime:fp32")
    with bundle_system(path, str(target)) as judged:
        seal(path, {**Bundle.open(path).entry, "name": "another"})
        verified.keep(Bundle.open(path), target, [{"name": "all", "value": 0.0, "limit": 1.0, "passed": True}])
        _note_proof(judged)
    assert "is not verified on this machine: the verdict of" in (said := capsys.readouterr().err)
    assert "is for another bundle" in said


def test_two_targets_of_a_bundle_are_of_one_and_the_same(bundle_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    with bundle_system(path, "onnxruntime:fp32") as judged:
        assert judged.bundle is not None
        seal(path, {**judged.bundle.entry, "name": "another", "threshold": 0.9})
        with _opened(path, "openvino:fp32", None, judged.bundle) as second:
            assert (second.digest, second.threshold) == (judged.digest, judged.threshold)
        (path / "onnx/weights.bin").write_bytes(bytes((path / "onnx/weights.bin").stat().st_size))
        with pytest.raises(DigestMismatch), _opened(path, "openvino:fp32", None, judged.bundle):
            pass


def test_the_digest_of_a_checkpoint_is_of_what_was_read(checkpoint_folder: Path) -> None:
    assert checkpoint_system(checkpoint_folder).digest == sha256_file(checkpoint_folder / "config.json")


# ---------------------------------------------------------------- the model card


@pytest.mark.parametrize("links", [True, False])
def test_what_is_written_over_while_a_card_is_written_is_not_sealed(
    phantoms: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """By another process, once the bundle was opened: it would have digests that hold."""
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    assert call(bundle, phantoms, "-o", tmp_path / "out").exit_code == 0
    before, link = (bundle / "bundle.json").read_bytes(), os.link

    def damaging(source: Path, place: Path) -> None:
        if source.name == "weights.bin":
            source.write_bytes(bytes(source.stat().st_size))
        if not links:
            raise OSError("a file system without hard links")
        link(source, place)

    monkeypatch.setattr(os, "link", damaging)
    with pytest.raises(DigestMismatch, match=r"weights\.bin has \d+ bytes and another SHA-256"):
        update(bundle, report(tmp_path / "out"))
    assert (bundle / "bundle.json").read_bytes() == before


def test_the_card_is_written_sealed_and_shown(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    before = Bundle.open(bundle)
    assert "## Proven at export" in (bundle / NAME).read_text()
    options = [phantoms, "-o", tmp_path / "out", "--overwrite", "--update-card"]
    assert call(bundle, *options).exit_code == 0
    after = Bundle.open(bundle)
    entry = report(tmp_path / "out")
    (found,) = after.entry["card"]["eval_metrics"]
    assert found["auc"] == entry["auc"]
    assert after.digest != before.digest
    same = {name: facts for name, facts in after.entry["files"].items() if name != NAME}
    assert same == {name: facts for name, facts in before.entry["files"].items() if name != NAME}
    assert f"{entry['auc']['value']:.3f}" in (bundle / NAME).read_text()
    shown = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert f"AUC {entry['auc']['value']:.3f}" in shown.stdout
    # Again: in its place; on another target: beside it.
    assert call(bundle, *options).exit_code == 0
    assert call(bundle, *options, "--target", "openvino:fp32").exit_code == 0
    assert [one["target"] for one in Bundle.open(bundle).entry["card"]["eval_metrics"]] == [
        *("onnxruntime:fp32", "openvino:fp32")
    ]
    with pytest.raises(BundleError, match="is not what was evaluated"):
        update(bundle, entry)
    (bundle / NAME).write_text((bundle / NAME).read_text().replace("not for diagnosis", "for diagnosis"))
    with pytest.raises(DigestMismatch):
        Bundle.open(bundle)


def test_a_manifest_of_another_folder_is_another_data_set(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """Byte by byte the same, with other images beside it: the figures of one site don't go for those of the other."""
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    other = write_phantoms(40, tmp_path / "other", seed=6)
    shutil.copy(phantoms, other)
    moved = Path(shutil.copytree(phantoms.parent, tmp_path / "moved")) / phantoms.name
    options = ["-o", tmp_path / "out", "--overwrite", "--update-card"]
    for path in (phantoms, other, moved):
        assert call(bundle, path, *options).exit_code == 0
    found = Bundle.open(bundle).entry["card"]["eval_metrics"]
    assert len({one["dataset_sha256"] for one in found}) == 1
    assert len({one["cases"]["images_sha256"] for one in found}) == len(found) == 2
    assert [one["auc"]["value"] for one in found][-1] == report(tmp_path / "out")["auc"]["value"]
    for one in found:
        assert (
            f"{one['dataset_sha256'][:12]}, images {one['cases']['images_sha256'][:12]}" in (bundle / NAME).read_text()
        )


@pytest.mark.parametrize("exchanged_by", ["the other system", None])
def test_both_systems_judge_the_same_images(
    phantoms: Path, bundle_folder: Path, tmp_path: Path, exchanged_by: str | None
) -> None:
    """An image that is exchanged once the first has answered."""
    folder = Path(shutil.copytree(phantoms.parent, tmp_path / "phantoms"))
    images = [folder / f"mammography/phantom-{number:04d}.png" for number in (7, 8)]

    def progress(description: str, done: int, total: int, *more: str) -> None:
        if description == exchanged_by and done == 0:
            shutil.copy(images[1], images[0])

    def judge() -> dict[str, Any]:
        with (
            bundle_system(bundle_folder, "openvino:fp32") as one,
            bundle_system(bundle_folder, "onnxruntime:fp32") as other,
        ):
            return evaluate(
                one, read_manifest(folder / phantoms.name), Wanted(), against=other, progress=progress
            ).entry

    if exchanged_by is None:
        assert judge()["against"]["max_difference"] < 1e-4
        return
    with pytest.raises(ImageError, match=r"images of 1 of 40 cases were exchanged .* the first of `phantom-0007`"):
        judge()


@pytest.mark.parametrize(
    "metrics",
    ["AUC 0.87", {"validation": {"label": [0, 1], "probability": [0.2, 7]}}, {"validation": {"label": [[0], [1]]}}],
    ids=str,
)
def test_a_card_in_another_form_chooses_nothing(
    phantoms: Path, bundle_folder: Path, tmp_path: Path, metrics: object
) -> None:
    bundle = resealed(bundle_folder, tmp_path / "b", card={"metrics": metrics})
    result = call(bundle, phantoms, "-o", tmp_path / "out", "--at-sensitivity", 0.9)
    assert result.exit_code == 2
    assert "to choose it on" in two_lines(result)


def test_only_a_bundle_has_a_card_to_update(phantoms: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    result = call(checkpoint_folder, phantoms, "-o", tmp_path / "out", "--update-card")
    assert result.exit_code == 2
    assert "expected a bundle" in two_lines(result)


def test_a_record_tells_parts_and_no_names() -> None:
    found = split_record.record(["anna", "berta", "anna", "clara"], {"train": [0, 2], "validation": [1], "test": [3]})
    assert [len(one) for one in found.values()] == [1, 1, 1]
    assert "anna" not in json.dumps(found)
    parts = split_record.parts_of({split_record.KEY: found})
    assert [parts.get(split_record.digest(name)) for name in ("anna", "berta", "clara", "dora")] == [
        *("train", "validation", "test", None)
    ]
    assert split_record.parts_of({}) == split_record.parts_of({split_record.KEY: 3}) == {}


def test_images_are_known_under_other_ids(small_model: Checkpoint, phantoms: Path, tmp_path: Path) -> None:
    """Another pseudonymisation, or none: by ids alone the model would not have learnt from anybody."""
    data = of_manifest(phantoms, small_model.config.preprocessing, silent)
    known = {"train": listing(data.pixels["mammography"][:12]), "validation": listing(data.pixels["ultrasound"][12:15])}
    trained = replace(small_model, known_images=known)
    folder = tmp_path / "checkpoint"
    checkpoints.save(trained, folder)
    renamed = manifest(phantoms, "renamed.csv", lambda _, row: row | {"case_id": f"X{row['case_id']}", "patient": ""})
    done = call(folder, renamed, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    said = "the model was trained on images of 15 of the 40 cases that are judged, whatever their ids say"
    assert said in (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert report(tmp_path / "out")["learnt_images"] == 15


def test_thresholds_are_not_chosen_on_copies_of_what_is_judged(
    bundle_folder: Path, phantoms: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantoms.parent, tmp_path / "copies")
    copies = manifest(
        tmp_path / "copies" / phantoms.name,
        "z.csv",
        lambda _, row: row | {"case_id": f"Z{row['case_id']}", "patient": f"Z{row.get('patient', '')}"},
    )
    refused = call(bundle_folder, phantoms, "-o", tmp_path / "out", "--choose-on", copies)
    assert "images of " in two_lines(refused)
    assert "are judged, too, under this name or another" in refused.stderr


def test_a_threshold_chosen_on_learnt_images_is_said_loudly(
    small_model: Checkpoint, phantoms: Path, tmp_path: Path
) -> None:
    """Under other ids: by the card nobody there was learnt from."""
    data = of_manifest(phantoms, small_model.config.preprocessing, silent)
    checkpoints.save(
        replace(small_model, known_images={"train": listing(data.pixels["mammography"][8:15])}), tmp_path / "checkpoint"
    )
    path = manifest(phantoms, "parted.csv", parted)
    done = call(tmp_path / "checkpoint", path, "-o", tmp_path / "out", "--at-sensitivity", 0.9)
    assert done.exit_code == 0, done.stderr
    said = "WARNING: thresholds were chosen on 12 cases, and the model has learnt from 7 of their patients"
    assert said in " ".join(report(tmp_path / "out")["remarks"])


# ---------------------------------------------------------------- who is who


def test_an_image_of_two_patients_is_counted_and_said_loudly(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """Three patients are there twice, under other ids: they would count as six, and intervals be too narrow."""
    with phantoms.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    again = [row | {"case_id": f"Z{row['case_id']}", "patient": f"Z{row['patient']}"} for row in rows[:3]]
    path = phantoms.with_name("twice.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, *again])
    assert call(bundle_folder, path, "-o", tmp_path / "out").exit_code == 0
    said = "WARNING: 6 of 43 cases show an image that a case of another patient shows, too"
    for name in ("report.md", "report.html"):
        assert said in " ".join((tmp_path / "out" / name).read_text().split()), name
    # The same rows of the same patients are several rows of theirs.
    same = manifest(path, "same.csv", lambda _, row: row | {"patient": row["patient"].removeprefix("Z")})
    assert call(bundle_folder, same, "-o", tmp_path / "same").exit_code == 0
    assert report(tmp_path / "same")["cases"]["images_of_several"] == 0


@pytest.fixture
def by_header(phantoms: Path, save_dicom: Callable[..., Path], tmp_path: Path) -> Callable[[str, dict[int, str]], Path]:
    """A manifest of the phantoms, the mammograms of some rows with a PatientID."""
    cases = read_manifest(phantoms).cases

    def write(name: str, known: dict[int, str]) -> Path:
        paths = {
            row: save_dicom(read_grey(cases[row].mammography or ""), name=f"{name}{row}.dcm", PatientID=one)
            for row, one in known.items()
        }
        return manifest(
            phantoms,
            name,
            lambda number, row: parted(number, row) | ({"mammography": str(paths[number])} if number in paths else {}),
        )

    return write


def test_a_patient_of_two_names_is_said_loudly(
    phantoms: Path, bundle_folder: Path, by_header: Callable[[str, dict[int, str]], Path], tmp_path: Path
) -> None:
    """By her DICOM headers: her cases would count as those of three."""
    path = by_header("named.csv", {21: "A-17", 25: "A-17", 30: "A-17", 31: "A-18"})
    assert call(bundle_folder, path, "-o", tmp_path / "out").exit_code == 0
    said = "WARNING: 2 of 20 cases are by their headers (PatientID) of a patient whom an earlier case calls otherwise"
    for name in ("report.md", "report.html"):
        text = " ".join((tmp_path / "out" / name).read_text().split())
        assert said in text, name
        assert "A-17" not in text
    same = manifest(path, "same.csv", lambda number, row: row | ({"patient": "she"} if number in (21, 25, 30) else {}))
    assert call(bundle_folder, same, "-o", tmp_path / "same").exit_code == 0
    assert report(tmp_path / "same")["cases"]["named_twice"] == 0


def test_no_threshold_is_chosen_on_a_patient_who_is_judged_under_another_name(
    bundle_folder: Path, by_header: Callable[[str, dict[int, str]], Path], tmp_path: Path
) -> None:
    path = by_header("judge.csv", {10: "A-17", 25: "A-17", 26: "A-17"})
    refused = call(bundle_folder, path, "-o", tmp_path / "out", "--at-sensitivity", 0.9)
    assert refused.exit_code == 2
    assert "1 images of the validation part, by the column `split`" in two_lines(refused)
    assert "are by their headers (PatientID) of patients that are judged, too, under another name" in refused.stderr
    assert call(bundle_folder, path, "-o", tmp_path / "out").exit_code == 0
    assert [one["name"] for one in report(tmp_path / "out")["thresholds"]] == ["stored"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda _, row: {"patient_id" if key == "patient" else key: cell for key, cell in row.items()},
            "none named `patient`",
        ),
        (lambda number, row: row | {"patient": row["patient"] if number else ""}, "1 of 40 cases name no patient"),
        (lambda number, row: row | {"patient": ("P7", "p07", row["case_id"])[min(number, 2)]}, "`P7` and `p07`"),
    ],
    ids=["another name", "a cell is empty", "two spellings"],
)
def test_patients_that_can_not_be_told_apart_are_not_counted(
    phantoms: Path, bundle_folder: Path, tmp_path: Path, change: Cells, says: str
) -> None:
    """Neither among the judged nor among those that a threshold is chosen on."""
    path = manifest(phantoms, "who.csv", change)
    for arguments in ([path], [phantoms, "--choose-on", path]):
        refused = call(bundle_folder, *arguments, "-o", tmp_path / "out")
        assert refused.exit_code == 1
        assert says in two_lines(refused)


def test_a_patient_is_the_same_in_another_spelling(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """In the card of the model, and beside the judged."""
    groups = [case.group for case in read_manifest(phantoms).cases]
    record = split_record.record(groups, {"train": range(10), "validation": range(10, 20), "test": range(20, 40)})
    bundle = resealed(bundle_folder, tmp_path / "b", card={split_record.KEY: record})
    other = manifest(
        phantoms, "other.csv", lambda _, row: row | {"patient": row["patient"].upper().replace("-00", "-") + " "}
    )
    assert call(bundle, other, "-o", tmp_path / "out", "--part", "all").exit_code == 0
    assert report(tmp_path / "out")["learnt_from"] == {"train": 10, "validation": 10}
    judged = manifest(phantoms, "judged.csv", lambda number, row: row if number >= 20 else {})
    shutil.copytree(phantoms.parent, tmp_path / "elsewhere")
    chosen = manifest(
        tmp_path / "elsewhere" / phantoms.name,
        "chosen.csv",
        lambda number, row: row | {"patient": row["patient"].upper()} if number <= 20 else {},
    )
    refused = call(bundle_folder, judged, "-o", tmp_path / "no", "--choose-on", chosen)
    assert "holds the patient `PHANTOM-5-0020` (`phantom-5-0020`), which is judged, too" in two_lines(refused)


def test_what_was_learnt_from_is_never_taken_for_tested() -> None:
    """Without a column `patient` two cases may be called 7 and 07."""
    found = split_record.record(["7", "07"], {"train": [0], "validation": [], "test": [1]})
    parts = split_record.parts_of({split_record.KEY: found})
    assert [split_record.part_of(parts, name) for name in ("7", "07", "007", "8")] == ["train", "test", "train", ""]


def test_parts_in_a_column_of_another_name_are_refused(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """All cases would be judged, those of the training too."""
    path = manifest(
        phantoms, "set.csv", lambda number, row: row | {"Subset": "Train" if number < 20 else "test", "side": "left"}
    )
    said = two_lines(call(bundle_folder, path, "-o", tmp_path / "out"))
    assert "has the column `Subset`, whose cells name parts, and none named `split`" in said
    follows = manifest(path, "split.csv", lambda _, row: {"split" if key == "Subset" else key: row[key] for key in row})
    assert call(bundle_folder, follows, "-o", tmp_path / "out").exit_code == 0
    assert report(tmp_path / "out")["parts"]["judged"] == {"test": 20}


@pytest.mark.parametrize("right", [0, 4])
def test_labels_the_other_way_round_are_told(phantoms: Path, bundle_folder: Path, tmp_path: Path, right: int) -> None:
    """right: so many of 40 that are labelled as the model ranks them."""
    assert call(bundle_folder, phantoms, "-o", tmp_path / "first").exit_code == 0
    with (tmp_path / "first/cases.csv").open(newline="", encoding="utf-8") as file:
        said = [float(row["probability"]) for row in csv.DictReader(file)]
    high = [one > float(np.median(said)) for one in said]
    for name, good in (("inverse", right), ("fitting", 40 - right)):
        path = manifest(
            phantoms,
            f"{name}.csv",
            lambda number, row, good=good: row | {"label": str(int(high[number] == (number < good)))},  # type: ignore[misc]
        )
        assert call(bundle_folder, path, "-o", tmp_path / name).exit_code == 0
        remarks = " ".join(report(tmp_path / name)["remarks"])
        assert ("WARNING: the AUC is below 0.5, and not by chance" in remarks) == (name == "inverse")


def test_the_threshold_that_is_shown_is_the_one_that_is_judged(
    phantoms: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """It is a case's own probability: one digit less, and that case is on its other side."""
    path = manifest(phantoms, "parted.csv", parted)
    done = call(bundle_folder, path, "-o", tmp_path / "out", "--at-sensitivity", 0.9, "--prevalence", 0.02)
    (chosen,) = [one for one in report(tmp_path / "out")["thresholds"] if one["name"].startswith("sens")]
    assert np.float32(chosen["threshold"]) == chosen["threshold"] or len(str(chosen["threshold"])) >= 10
    for text in (done.stdout, *((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))):
        (shown,) = {
            cell for cell in text.replace("<", " ").replace(">", " ").split() if cell == str(chosen["threshold"])
        }
        assert np.float32(shown) == np.float32(chosen["threshold"])
    assert "chosen on the validation part" in " ".join(done.stdout.split())
    assert "the stated prevalence, 0.02" in done.stdout


def test_a_calibration_error_is_held_against_chance(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    assert call(bundle_folder, phantoms, "-o", tmp_path / "out").exit_code == 0
    one = report(tmp_path / "out")["figures"]["calibration_error"]
    assert one["low"] is one["high"] is None
    more = one["value"] > one["by_chance"]
    said = f"The calibration error of {one['value']:.2f} {'is more than' if more else 'may be'} chance"
    for name in ("report.md", "report.html"):
        assert said in " ".join((tmp_path / "out" / name).read_text().split()), name


@pytest.mark.parametrize(
    ("names", "says"),
    [(("malignant", "normal"), "['malignant', 'normal']"), ((2, 1), "[1, 2]"), ((1, 0, 2), "[0, 1, 2]")],
    ids=str,
)
def test_a_head_of_other_classes_is_refused(
    small_model: Checkpoint, phantoms: Path, tmp_path: Path, names: tuple[object, ...], says: str
) -> None:
    """Columns of `predict_proba` are sorted by class: the second would be the probability of a normal lesion."""
    label = np.array(names)[np.arange(60) % len(names)]
    width = sum(encoder.channels for encoder in small_model.encoders.values())
    head = LogisticRegression().fit(np.random.default_rng(0).random((60, width), np.float32), label)
    checkpoints.save(replace(small_model, head=head), tmp_path / "checkpoint")
    refused = call(tmp_path / "checkpoint", phantoms, "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert f"tells the classes {says}, expected 0 (benign) and 1 (malignant)" in two_lines(refused)


def test_the_card_says_at_which_threshold_and_prevalence(phantoms: Path, bundle_folder: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    options = ["-o", tmp_path / "out", "--overwrite", "--update-card"]
    assert call(bundle, phantoms, *options, "--prevalence", 0.02).exit_code == 0
    assert "At the threshold 0.4 and a stated prevalence of 0.02:" in (bundle / NAME).read_text()
    assert call(bundle, phantoms, *options).exit_code == 0
    assert "At the threshold 0.4:" in (bundle / NAME).read_text()
