"""What INT8 is calibrated on: never the test part, bounded, recorded; phantoms only for trying it, and said so."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import TRIED_INT8, UNTRAINED, Bundle
from mpmmu_rt.cases import Case, Manifest, read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.decisions import UNKNOWN
from mpmmu_rt.engines import engines
from mpmmu_rt.errors import ManifestError, UsageError
from mpmmu_rt.export import Limits, Wanted, calibration, export_checkpoint, export_reference, reference
from mpmmu_rt.export.calibration import MOST_CASES, of_manifest, of_phantoms, spread
from mpmmu_rt.export.cases import of_cases, phantoms
from mpmmu_rt.files import sha256_file
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.data import data_from_manifest
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Target
from mpmmu_rt.split_record import digest
from tests.conftest import Traced

SIZE = Preprocessing(size=32)
INT8 = Target("openvino", "int8")
WIDE = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def listed(phantom_manifest: Path, tmp_path: Path) -> Callable[..., Path]:
    """The phantoms with a column `split`, whose cells are given; images by absolute paths."""

    def write(*split: str) -> Path:
        with phantom_manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        path = tmp_path / "listed.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "split"])
            writer.writeheader()
            for row, part in zip(rows, split, strict=True):
                images = {str(name): str(phantom_manifest.parent / row[name]) for name in MODALITIES}
                writer.writerow({**row, **images, "split": part})
        return path

    return write


def test_the_test_part_is_never_read(listed: Callable[..., Path], phantom_manifest: Path) -> None:
    """By the column; the images of that part are not even there."""
    path = listed(*["train", "test", "validation"] * 4)
    found = of_manifest(path, SIZE, {}, silent, halved=False)
    ids = [case.case_id for case in read_manifest(phantom_manifest).cases]
    assert found.data.ids == tuple(one for row, one in enumerate(ids) if row % 3 != 1)
    assert found.gate is None
    assert found.facts == {
        "kind": "manifest",
        "manifest": "listed.csv",
        "sha256": sha256_file(path),
        "listed": 12,
        "of_the_test_part": 4,
        "parts_by": "the column `split` of the manifest",
        "cases": 8,
    }
    text = path.read_text().splitlines()
    path.write_text("\n".join(line.replace("mammography/", "away/") if ",test" in line else line for line in text))
    halved = of_manifest(path, SIZE, {}, silent, halved=True)
    assert halved.gate is not None
    assert (len(halved.data.ids), len(halved.gate.ids), halved.facts["cases"]) == (4, 4, 4)
    assert not set(halved.data.ids) & set(halved.gate.ids)
    assert {*halved.data.ids, *halved.gate.ids} == set(found.data.ids)


def test_nor_are_the_patients_that_tested_the_training(phantom_manifest: Path) -> None:
    """Where the manifest names no parts, the model's card may know."""
    cases = read_manifest(phantom_manifest).cases
    card = {"patients": {"train": [digest(cases[0].group)], "test": [digest(case.group) for case in cases[4:9]]}}
    found = of_manifest(phantom_manifest, SIZE, card, silent, halved=False)
    assert found.data.ids == tuple(case.case_id for case in (*cases[:4], *cases[9:]))
    assert found.facts["of_the_test_part"] == 5
    assert found.facts["parts_by"] == "what the model's card records of its training"
    assert of_manifest(phantom_manifest, SIZE, {}, silent, halved=False).facts["parts_by"] is None


def test_what_can_not_be_calibrated_on(listed: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"listed\.csv holds the test part alone, by the column `split`") as caught:
        of_manifest(listed(*["test"] * 12), SIZE, {}, silent, halved=False)
    assert "training's or the validation's" in caught.value.hint
    with pytest.raises(ManifestError, match="has the split `holdout`, expected train"):
        of_manifest(listed(*["holdout"] * 12), SIZE, {}, silent, halved=False)
    with pytest.raises(UsageError, match="holds 1 patient, expected at least two"):
        of_manifest(listed(*["train"] + ["test"] * 11), SIZE, {}, silent, halved=True)
    for count in (0, 1, MOST_CASES + 1):
        with pytest.raises(UsageError, match=f"calibrated on {count} phantoms, expected 2 to {MOST_CASES}"):
            of_phantoms(count, SIZE, silent)


@pytest.mark.parametrize(
    ("rows_of_one", "most"), [(1, 10), (3, 10), (3, 11), (30, 10), (1, 99), (1, 100), (1, 101), (7, 2)]
)
def test_no_more_are_taken_than_fit_in_memory(rows_of_one: int, most: int) -> None:
    cases = tuple(Case(str(row), None, None, None, f"p{row // rows_of_one}") for row in range(100))
    rows = spread(Manifest(Path("m.csv"), cases, ""), range(100), most)
    assert rows == sorted(set(rows))
    assert min(most, 100) / 2 <= len(rows) <= most
    people = {cases[row].group for row in rows}
    assert len(people) >= 2 or rows_of_one >= most
    if rows_of_one == 1 and most < 50:
        assert max(np.diff(rows)) <= 10, "all over the manifest"


def test_a_manifest_that_is_larger_is_read_in_part(phantom_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_CASES", 5)
    found = of_manifest(phantom_manifest, SIZE, {}, silent, halved=False)
    assert (len(found.data.ids), found.facts["cases"], found.facts["listed"]) == (5, 5, 12)


def test_phantoms_are_others_than_those_that_judge() -> None:
    found = of_phantoms(6, SIZE, silent)
    assert found.facts == {"kind": "phantoms", "seed": calibration.PHANTOM_SEED, "cases": 6}
    judges = phantoms(6, 20_260_102, SIZE, silent).pixels
    assert not any(
        np.array_equal(one, other) for one in found.data.pixels["mammography"] for other in judges["mammography"]
    )


@pytest.fixture(scope="module")
def tried(checkpoint_folder: Path, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose INT8 was calibrated on phantoms."""
    if problem := engines()["openvino"].problem("int8"):
        pytest.skip(str(problem))
    path = tmp_path_factory.mktemp("tried") / "tried.bundle"
    with traced_once():
        export_checkpoint(checkpoint_folder, path, calibration_phantoms=16, wanted=Wanted((INT8,), limits=WIDE))
    return path


@pytest.mark.slow
def test_phantoms_are_told_wherever_the_bundle_is_used(tried: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tried)
    assert bundle.entry["calibration"] == {"kind": "phantoms", "seed": calibration.PHANTOM_SEED, "cases": 16}
    assert bundle.warning == TRIED_INT8
    card = (tried / "MODEL_CARD.md").read_text()
    assert f"**{TRIED_INT8}.**" in card
    assert "- INT8 was calibrated on 16 generated phantoms." in card
    case = read_manifest(phantom_manifest).cases[0]
    images = ("--mammography", case.mammography, "--ultrasound", case.ultrasound)
    for command in (
        ("inspect", tried),
        ("predict", tried, *images, "--target", INT8),
        ("run", tried, phantom_manifest, "-o", tmp_path / "out.csv", "--target", INT8),
        ("verify", tried, "--no-record"),
        ("bench", tried, "--target", INT8, "--seconds", "0.1", "--html", tmp_path / "bench.html"),
        ("explain", tried, "--target", INT8, *images, "-o", tmp_path / "explained"),
        ("evaluate", tried, phantom_manifest, "--target", INT8, "-o", tmp_path / "evaluated"),
    ):
        done = call(*command)
        assert TRIED_INT8 in " ".join((done.stderr + done.stdout).split()), command
    for page in ("bench.html", "explained/explanation.html", "evaluated/report.html"):
        assert f'<p class="banner">{TRIED_INT8}.</p>' in (tmp_path / page).read_text(), page
    assert f"WARNING: {tried} was asked on {INT8}. {TRIED_INT8}." in (tmp_path / "evaluated/report.md").read_text()
    assert json.loads((tmp_path / "out.csv.json").read_text())["warning"] == TRIED_INT8


@pytest.mark.slow
def test_a_manifest_is_recorded_and_no_reason_to_warn(int8_folder: Path) -> None:
    bundle = Bundle.open(int8_folder)
    found = bundle.entry["calibration"]
    assert (found["kind"], found["cases"], found["listed"], found["of_the_test_part"]) == ("manifest", 12, 24, 0)
    assert len(found["sha256"]) == 64
    assert bundle.warning is None
    said = f"INT8 was calibrated on 12 cases of manifest.csv (sha256 {found['sha256'][:12]})"
    assert f"- {said}." in (int8_folder / "MODEL_CARD.md").read_text()
    inspected = call("inspect", int8_folder)
    assert said in " ".join(inspected.stdout.split())
    assert TRIED_INT8 not in inspected.stderr


def test_without_int8_nothing_was_calibrated_on(bundle_folder: Path) -> None:
    assert Bundle.open(bundle_folder).entry["calibration"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept")
def test_the_reference_model_is_calibrated_too(
    small_model: Checkpoint, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another architecture in its place: the full size takes minutes."""
    if problem := engines()["openvino"].problem("int8"):
        pytest.skip(str(problem))

    def small(*_: Any) -> Checkpoint:
        return small_model

    monkeypatch.setattr(reference, "build", small)
    wide = ("--auc-loss", 1, "--sensitivity-loss", 1, "--flips", 1, "--mean-difference", 1)
    command = ("export", "-o", tmp_path / "r.bundle", "--target", INT8, "--calibrate", phantom_manifest, *wide)
    result = call(*command, "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["calibration"]["cases"] == 6
    bundle = Bundle.open(tmp_path / "r.bundle")
    assert (bundle.targets, bundle.warning) == (("onnxruntime:fp32", str(INT8)), UNTRAINED)
    wanted = Wanted((INT8,), limits=WIDE)
    both = export_reference(tmp_path / "both.bundle", calibration_phantoms=8, wanted=wanted)
    assert both.warning == f"{UNTRAINED}; {TRIED_INT8}"


def test_one_of_two(checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    command = ("export", checkpoint_folder, "-o", tmp_path / "b", "--calibrate", phantom_manifest)
    result = call(*command, "--calibrate-phantoms", 8)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert "--calibrate and --calibrate-phantoms are both given, expected one" in error
    assert "for trying INT8 without images" in hint
    with pytest.raises(UsageError, match="a manifest and on phantoms, expected one of them"):
        export_checkpoint(
            checkpoint_folder, tmp_path / "b", calibration_manifest=phantom_manifest, calibration_phantoms=8
        )
    assert not (tmp_path / "b").exists()
    assert call("export", "--calibrate-phantoms", 1).exit_code == 2


def test_a_bundle_of_before_holds_no_such_key(bundle_folder: Path) -> None:
    entry = dict(Bundle.open(bundle_folder).entry)
    del entry["calibration"]
    assert bundles.warnings_of(entry) == []


def test_patients_who_calibrate_do_not_judge_in_another_manifest(tmp_path: Path) -> None:
    """Their images may be others: the digests of images do not tell."""
    header = "case_id,mammography,ultrasound,patient,split\n"
    for name, rows in (("a.csv", "1,a,b,ann,train\n2,c,d,bea,test\n"), ("b.csv", "9,e,f,bea,\n8,g,h,,\n")):
        (tmp_path / name).write_text(header + rows)
    calibration.require_other_patients(tmp_path / "a.csv", tmp_path / "b.csv", {})  # bea tests, and calibrates nothing
    (tmp_path / "b.csv").write_text(f"{header}9,e,f,ann,\n")
    with pytest.raises(UsageError, match=r"1 patients are in .*a\.csv and in .*b\.csv, the first is `ann`"):
        calibration.require_other_patients(tmp_path / "a.csv", tmp_path / "b.csv", {})
    (tmp_path / "b.csv").write_text(f"{header}9,e,f,ANN ,\n")
    with pytest.raises(UsageError, match="the first is `ann`"):
        calibration.require_other_patients(tmp_path / "a.csv", tmp_path / "b.csv", {})


@pytest.mark.slow
def test_a_manifest_is_read_once(checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """It may change meanwhile: who was found to be another would not be who judges. A pipe is there once."""
    cases = read_manifest(phantom_manifest).cases
    pipes = [tmp_path / name for name in ("parity.csv", "calibrate.csv")]

    def write(pipe: Path, text: str) -> None:
        for each in (text, "nothing"):
            pipe.write_text(each)  # waits for a reader
            time.sleep(0.3)  # until that has seen the end

    for pipe, some in zip(pipes, (cases[:6], cases[6:]), strict=True):
        rows = [f"{one.case_id},{one.mammography},{one.ultrasound},{one.label},{one.patient}\n" for one in some]
        text = "case_id,mammography,ultrasound,label,patient\n" + "".join(rows)
        os.mkfifo(pipe)
        threading.Thread(target=write, args=(pipe, text), daemon=True).start()
    with pytest.raises(UsageError, match="would be judged on 6 cases, expected at least"):  # all of them were read
        export_checkpoint(
            checkpoint_folder,
            tmp_path / "b",
            parity_manifest=pipes[0],
            calibration_manifest=pipes[1],
            wanted=Wanted((INT8,)),
        )


def test_labels_that_are_known_are_kept(phantom_manifest: Path) -> None:
    manifest = read_manifest(phantom_manifest)
    bare = replace(manifest.cases[1], label=None)
    found, _ = of_cases(
        replace(manifest, cases=(manifest.cases[0], bare, *manifest.cases[2:])), range(12), SIZE, silent
    )
    assert found.labels is not None
    assert found.labels.tolist() == [UNKNOWN if row == 1 else case.label for row, case in enumerate(manifest.cases)]
    none, _ = of_cases(replace(manifest, cases=(bare,)), range(1), SIZE, silent)
    assert none.labels is None


def test_one_image_for_both_modalities_neither_proves_nor_trains(phantom_manifest: Path, tmp_path: Path) -> None:
    first, second = read_manifest(phantom_manifest).cases[:2]
    copied = Path(shutil.copy(str(second.ultrasound), tmp_path / "copy.png"))
    rows = [f"1,{first.mammography},{first.ultrasound},0,ann", f"2,{copied},{second.ultrasound},1,bea"]
    (tmp_path / "m.csv").write_text("\n".join(["case_id,mammography,ultrasound,label,patient", *rows]))
    manifest = read_manifest(tmp_path / "m.csv")
    says = r"m\.csv, row 2: the mammogram and the ultrasound image are the same"
    with pytest.raises(ManifestError, match=says):
        of_cases(manifest, range(2), SIZE, silent)
    with pytest.raises(ManifestError, match=says):
        data_from_manifest(manifest, SIZE)


def test_an_image_of_two_patients_is_told_before_it_is_learnt_from_and_tested_on(
    phantom_manifest: Path, tmp_path: Path
) -> None:
    first, second = read_manifest(phantom_manifest).cases[:2]
    copied = Path(shutil.copy(str(first.mammography), tmp_path / "copy.png"))
    rows = [f"1,{first.mammography},{first.ultrasound},0,ann", f"2,{copied},{second.ultrasound},1,bea"]
    (tmp_path / "m.csv").write_text("\n".join(["case_id,mammography,ultrasound,label,patient", *rows]))
    (told,) = data_from_manifest(read_manifest(tmp_path / "m.csv"), SIZE).warnings
    assert "a row of another patient has the same image" in str(told)
