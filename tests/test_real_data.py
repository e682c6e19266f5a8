"""Real mammograms and ultrasound images, PNG and DICOM, through the whole way. They prove plumbing, not accuracy."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mpmmu_rt import load
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.export import build
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
        summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", batch=5)
    assert summary.failed == 0, summary.first_error
    assert len({row["probability"] for row in rows_of(tmp_path / "out.csv")}) == 16


@pytest.mark.slow
def test_parity_on_real_images(checkpoint_folder: Path, real_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "real.bundle"
    bundle = build.export_checkpoint(checkpoint_folder, output, parity_manifest=real_data / "real_pairs.csv")
    report = bundle.entry["parity"]
    found = {check["name"]: check["value"] for check in report["checks"]}
    assert report["cases"] == 122
    assert report["decisions_flipped"] == 0
    assert found["probability, max |Δp|"] <= 1e-4
