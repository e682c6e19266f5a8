"""Real mammograms and ultrasound images, PNG and DICOM, through the whole way. They prove plumbing, not accuracy."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mpmmu_rt import load
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.evaluation.choosing import Wanted
from mpmmu_rt.evaluation.study import evaluate
from mpmmu_rt.evaluation.systems import bundle_system
from mpmmu_rt.export import build
from mpmmu_rt.metrics import share_interval
from mpmmu_rt.run import run

pytestmark = pytest.mark.real_data


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_real_pair_gets_a_probability(bundle_folder: Path, real_data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(real_data / "real_pairs.csv")
    with load(bundle_folder) as predictor:
        summary = run(predictor, manifest, tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    assert (summary.failed, len(rows)) == (0, 122)
    assert [row["case_id"] for row in rows] == [case.case_id for case in manifest.cases]
    assert all(0 <= float(row["probability"]) <= 1 and not row["error"] for row in rows)
    assert len({row["probability"] for row in rows}) > 60  # different images, different answers


def test_dicom_and_png_in_one_manifest(bundle_folder: Path, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")
    mammograms = sorted((real_data / "dicom").glob("mg_*.dcm")) + sorted(
        (real_data / "mammography/benign").glob("*.png")
    )
    ultrasound = sorted((real_data / "dicom").glob("us_*.dcm")) + sorted(
        (real_data / "ultrasound/benign").glob("*.png")
    )
    pairs = list(zip(mammograms[:16], ultrasound[4:20], strict=True))  # DICOM with DICOM, with PNG, PNG with PNG
    lines = [f"mixed-{number},{mg},{us}" for number, (mg, us) in enumerate(pairs)]
    (tmp_path / "m.csv").write_text("\n".join(["case_id,mammography,ultrasound", *lines]) + "\n")
    with load(bundle_folder) as predictor:
        summary = run(
            predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", batch=5, columns=("embedding",)
        )
    assert summary.failed == 0, summary.first_error
    # Not probabilities: the head of a model for tests may say one number of several cases, by what a processor rounds.
    assert len({row["embedding_sha256"] for row in rows_of(tmp_path / "out.csv")}) == 16


@pytest.mark.slow
def test_few_patients_leave_wide_intervals_and_words(bundle_folder: Path, real_data: Path) -> None:
    """122 rows of 32 patients, of whom few are suspicious: 122 independent rows would tell more than twice as much."""
    manifest = read_manifest(real_data / "real_pairs.csv")
    with bundle_system(bundle_folder, "onnxruntime:fp32") as system:
        entry = evaluate(system, manifest, Wanted(by=("birads",))).entry
    patients = entry["cases"]["patients"]
    assert (entry["cases"]["judged"], patients["all"], entry["failed"]) == (122, 32, [])
    auc = entry["auc"]
    assert auc["high"] - auc["low"] > 0.25
    one = entry["thresholds"][0]["figures"]["specificity"]
    naive = share_interval(round(one["value"] * one["of"]), one["of"])
    assert one["high"] - one["low"] > 1.2 * (naive[1] - naive[0])
    assert sum(group["rows"] for group in entry["subgroups"]["birads"]) == 122
    said = " ".join(entry["remarks"])
    assert f"{patients['malignant']} malignant and {patients['benign']} benign patients are few" in said
    assert "122 rows are of 32 patients" in said


@pytest.mark.slow
def test_parity_on_real_images(checkpoint_folder: Path, real_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "real.bundle"
    bundle = build.export_checkpoint(checkpoint_folder, output, parity_manifest=real_data / "real_pairs.csv")
    report = bundle.entry["parity"]
    found = {check["name"]: check["value"] for check in report["checks"]}
    assert report["cases"] == 122
    assert report["decisions_flipped"] == 0
    assert found["probability, max |Δp|"] <= 1e-4
