"""What headers say against images is shown by `train` and `export`, once, and kept with the model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cli import app
from mpmmu_rt.image_warnings import ImageWarning, lines, summary, warnings_of
from mpmmu_rt.images import read_grey
from mpmmu_rt.model.phantom import write_phantoms

Save = Callable[..., Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def manifest(tmp_path: Path, save_dicom: Save) -> Path:
    """Phantoms, of which some ultrasound images are DICOM with a doubt; one of them is in two rows."""
    cases = tmp_path / "cases"
    write_phantoms(14, cases, seed=3)
    rows = list(csv.DictReader((cases / "manifest.csv").read_text().splitlines()))
    doubts: dict[int, dict[str, Any]] = {
        2: {"BurnedInAnnotation": "YES"},
        5: {"BurnedInAnnotation": "YES", "BodyPartExamined": "CHEST"},
        7: {},
    }
    for number, elements in doubts.items():
        grey = read_grey(cases / rows[number]["ultrasound"])
        path = save_dicom(grey, name=f"us{number}.dcm", Modality="US", **elements)
        rows[number]["ultrasound"] = str(path)
    rows.append(rows[2] | {"case_id": "again", "patient": rows[2].get("patient") or rows[2]["case_id"]})
    listed = tmp_path / "listed.csv"
    with listed.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["case_id", "mammography", "ultrasound", "label", "patient"])
        writer.writeheader()
        for row in rows:
            paths = {name: cases / row[name] for name in ("mammography", "ultrasound")}
            patient = row.get("patient") or row["case_id"]
            writer.writerow({"case_id": row["case_id"], "label": row["label"], "patient": patient, **paths})
    return listed


BURNED = "ultrasound: it has burned-in annotation: text is part of the picture"
CHEST = "ultrasound: the body part examined is CHEST"


def test_what_is_counted() -> None:
    """By kind, whatever numbers it holds; a warning of an image that serves two ends counts once."""
    texts = ("it shows 2 ultrasound regions: more than one", "it shows 3 ultrasound regions: more than one")
    found = [
        one
        for row, text in enumerate((*texts, "another\nline"))
        for one in warnings_of("m.csv", row + 1, "ultrasound", [text])
    ]
    report = summary([*found, *found[:1]])
    assert report == {
        "images": 3,
        "kinds": {"ultrasound: it shows N ultrasound regions: more than one": 2, "ultrasound: another line": 1},
        "first": [
            f"row 1 of m.csv, ultrasound: {texts[0]}",
            f"row 2 of m.csv, ultrasound: {texts[1]}",
            "row 3 of m.csv, ultrasound: another line",
        ],
    }
    assert lines(summary([])) == []
    many = [ImageWarning("m.csv", row, "mammography", chr(97 + row)) for row in range(9)]
    shown = lines(summary(many))
    assert "and 6 more kinds" in shown[4]
    assert shown[-1].count("row ") == 3
    json.dumps(report)


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees", "traces_kept")
def test_train_and_export_say_it_once(manifest: Path, tmp_path: Path, checkpoint_folder: Path) -> None:
    trained = call("train", manifest, "--preset", "tiny", "--epochs", "1", "-o", tmp_path / "c", "--json", "-")
    assert trained.exit_code == 0, trained.stderr
    said = trained.stderr.splitlines()
    expected = [
        "warning: the headers of 2 image(s) speak against them:",
        f"  2 x {BURNED}",
        f"  1 x {CHEST}",
        f"  the first: row 3 of listed.csv, {BURNED}; row 6 of listed.csv, {BURNED}; row 6 of listed.csv, {CHEST}",
    ]
    start = said.index(expected[0])
    assert said[start : start + len(expected)] == expected
    kept = json.loads((tmp_path / "c" / "config.json").read_text())["card"]["image_warnings"]
    assert kept["kinds"] == {BURNED: 2, CHEST: 1}
    assert json.loads(trained.stdout)["image_warnings"] == kept

    target = ("--target", "onnxruntime:fp32")
    exported = call("export", checkpoint_folder, "--parity", manifest, *target, "-o", tmp_path / "b", "--json", "-")
    assert exported.exit_code == 0, exported.stderr
    assert exported.stderr.count("speak against them") == 1
    assert f"  3 x {BURNED}" in exported.stderr  # each row of the manifest is a case here
    found = Bundle.open(tmp_path / "b").entry["parity"]["image_warnings"]
    assert (found["images"], found["kinds"]) == (3, {BURNED: 3, CHEST: 1})
    assert json.loads(exported.stdout)["image_warnings"] == found
