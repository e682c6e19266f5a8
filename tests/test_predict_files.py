"""One pair, or several, from files: in Python and by `mpmmu-rt predict`; paths as people write them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.errors import ImageError, UsageError
from mpmmu_rt.images import Preprocessing, read_grey, read_pixels
from mpmmu_rt.predictor import HeaderWarning, Prediction
from mpmmu_rt.run import run


@pytest.fixture
def rows(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> list[dict[str, str]]:
    """What `run` says of the manifest."""
    out = tmp_path / "out.csv"
    with load(bundle_folder) as predictor:
        run(predictor, read_manifest(phantom_manifest), str(out))
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_say_what_run_says(bundle_folder: Path, phantom_manifest: Path, rows: list[dict[str, str]]) -> None:
    cases = read_manifest(str(phantom_manifest)).cases
    first, second = ([str(case.image(modality)) for case in cases] for modality in ("mammography", "ultrasound"))
    with load(str(bundle_folder)) as predictor, warnings.catch_warnings():
        warnings.simplefilter("error")
        together = predictor.predict_files(first, second)
        alone = predictor.predict_files(first[1], Path(second[1]))
    np.testing.assert_allclose(together.probability, [float(row["probability"]) for row in rows], atol=1e-5)
    assert list(together.decision) == [row["decision"] for row in rows]
    np.testing.assert_allclose(alone.probability, together.probability[1:2], atol=1e-5)
    assert together.threshold == Bundle.open(bundle_folder).threshold


def test_the_command_says_the_same(bundle_folder: Path, phantom_manifest: Path, rows: list[dict[str, str]]) -> None:
    case = read_manifest(phantom_manifest).cases[0]
    command = ["predict", str(bundle_folder), "--mammography", str(case.mammography), "--ultrasound"]
    done = CliRunner().invoke(app, [*command, str(case.ultrasound), "--json", "-"])
    assert done.exit_code == 0, done.stderr
    entry: dict[str, Any] = json.loads(done.stdout)
    assert (entry["schema"], entry["decision"], entry["warnings"]) == ("mpmmu-prediction/1", rows[0]["decision"], [])
    assert entry["probability"] == pytest.approx(float(rows[0]["probability"]), abs=1e-5)
    assert entry["bundle"]["digest"] == Bundle.open(bundle_folder).digest
    plain = CliRunner().invoke(app, [*command, str(case.ultrasound)])
    assert plain.stdout.startswith(f"{rows[0]['decision']}: probability of malignancy {entry['probability']:.4f}")
    broken = CliRunner().invoke(app, [*command, str(bundle_folder / "bundle.json")])
    assert (broken.exit_code, broken.stdout) == (1, "")
    assert [line.partition(" ")[0] for line in broken.stderr.splitlines()] == ["target", "error:", "hint:"]


def test_the_command_says_whether_it_was_verified(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))
    case = read_manifest(phantom_manifest).cases[0]
    command = ["predict", str(folder), "--mammography", str(case.mammography), "--ultrasound", str(case.ultrasound)]
    assert "is not verified on this machine" in CliRunner().invoke(app, command).stderr
    assert CliRunner().invoke(app, [*command, "--require-verified"]).exit_code == 3
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--require-verified", "--json", "-"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["verified"]["passed"] is True
    assert "was verified on this machine on" in done.stderr


def test_what_a_header_says_is_a_warning(bundle_folder: Path, save_dicom: Callable[..., Path]) -> None:
    """Pixels that are twice as high as wide, for a model that takes them as they are stored."""
    grey = np.random.default_rng(0).integers(0, 255, (60, 40)).astype(np.uint8)
    mammogram = save_dicom(grey, PixelAspectRatio=[2, 1])
    sonogram = save_dicom(grey[::-1], name="b.dcm", Modality="US")
    with load(bundle_folder) as predictor:
        predictor.bundle = replace(predictor.bundle, preprocessing=Preprocessing(48, "pad", "stored"))
        with pytest.warns(HeaderWarning, match=r"a\.dcm: its pixels are not square \(2:1\)"):
            predictor.predict_files(mammogram, sonogram)


def test_files_that_are_no_pairs_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    with load(bundle_folder) as predictor:
        with pytest.raises(UsageError, match="there are 2 mammograms and 1 ultrasound images, expected one pair"):
            predictor.predict_files(["a", "b"], ["c"])
        with pytest.raises(UsageError, match="there are 0 mammograms and 0 ultrasound images"):
            predictor.predict_files([], [])
        with pytest.raises(ImageError, match="none\\.png"):
            predictor.predict_files(tmp_path / "none.png", tmp_path / "none.png")


def test_a_prediction_is_short_to_read() -> None:
    values = np.array([0.25, 0.7, 0.9, 0.1], np.float32)
    found = Prediction(values, None, np.zeros((4, 8), np.float32), {}, 0.7)
    assert repr(found) == "Prediction(4 cases, 2 malignant at ≥ 0.7; probability [0.25, 0.7, 0.9, …])"
    assert found.decision == ("benign", "malignant", "malignant", "benign"), "0.7 in float32 is at the threshold"
    assert repr(Prediction(values[:1], None, values[:1], {}, 0.5)).startswith("Prediction(1 case, 0 malignant")


class Named:
    """A path of another library's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths_are_taken_as_people_write_them(bundle_folder: Path, phantom_manifest: Path) -> None:
    case = read_manifest(Named(phantom_manifest)).cases[0]
    preprocessing = Bundle.open(Named(bundle_folder)).preprocessing
    assert case.mammography is not None
    for path in (str(case.mammography), Named(case.mammography), case.mammography):
        assert read_pixels(path, preprocessing).shape == (1, preprocessing.size, preprocessing.size)
        assert read_grey(path).ndim == 2
    assert isinstance(Named(bundle_folder), os.PathLike)
