"""run: more columns, rows that failed made again, and rows on stdout."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt import journal, load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app

LEARNERS = ("logistic_regression", "svm", "random_forest", "extra_trees")


@pytest.fixture
def cases(phantom_manifest: Path, tmp_path: Path) -> Path:
    """A manifest of its own, whose third case can't be read."""
    folder = Path(shutil.copytree(phantom_manifest.parent, tmp_path / "cases"))
    image = read_manifest(folder / "manifest.csv").cases[2].ultrasound
    assert image is not None
    image.rename(image.with_suffix(".away"))
    return folder / "manifest.csv"


def repair(manifest: Path) -> None:
    image = read_manifest(manifest).cases[2].ultrasound
    assert image is not None
    image.with_suffix(".away").rename(image)


@pytest.fixture
def run(bundle_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    def call(manifest: Path, *options: object, out: object = tmp_path / "p.csv") -> Result:
        return CliRunner().invoke(app, ["run", str(bundle_folder), str(manifest), "-o", str(out), *map(str, options)])

    return call


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_that_failed_are_made_again_and_no_others(run: Callable[..., Result], cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    first = run(cases)
    assert first.exit_code == 1
    assert "--retry-failed makes these again" in first.stderr
    before = rows(out)
    assert [bool(row["error"]) for row in before] == [index == 2 for index in range(12)]
    again = run(cases, "--retry-failed")
    assert again.exit_code == 1
    assert rows(out) == before, "nothing was repaired yet"
    repair(cases)
    done = run(cases, "--retry-failed", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.stderr
    after = rows(out)
    assert [row for index, row in enumerate(after) if index != 2] == [
        row for index, row in enumerate(before) if index != 2
    ]
    assert after[2]["error"] == ""
    assert after[2]["probability"]
    entry = json.loads((tmp_path / "s.json").read_text())
    assert (entry["predicted"], entry["resumed"], entry["failed"]) == (1, 11, 0)
    assert not out.with_name("p.csv.partial").exists()


def test_an_output_that_is_not_this_runs_is_not_gone_on_from(
    run: Callable[..., Result], cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    run(cases)
    text = out.read_text()
    out.write_text(text.replace("benign", "malignant", 1))
    assert "is not the file that its run wrote" in run(cases, "--retry-failed").stderr
    out.write_text(text)
    assert "belongs to another run (other frame)" in run(cases, "--retry-failed", "--frame", 0).stderr
    assert "belongs to another run (other columns)" in run(cases, "--retry-failed", "--columns", "base").stderr
    out.with_name("p.csv.json").unlink()
    assert "p.csv.json can't be read" in run(cases, "--retry-failed").stderr
    assert out.read_text() == text
    assert run(cases, "--retry-failed", "--overwrite").exit_code == 2


def test_a_replacing_run_that_was_interrupted_goes_on_as_its_hint_says(
    run: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal shows that it was allowed to replace the output: `--resume` need not ask again."""
    import mpmmu_rt.run
    from mpmmu_rt.images import read_with_warnings as read

    repair(cases)
    assert run(cases).exit_code == 0
    before = rows(tmp_path / "p.csv")
    count = itertools.count(1)

    def interrupted(*given: Any, **options: Any) -> Any:
        if next(count) == 9:
            raise KeyboardInterrupt
        return read(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mpmmu_rt.run, "read_with_warnings", interrupted)
        options = ("--overwrite", "--batch", 2)
        patch.setattr(sys, "argv", ["mpmmu-rt", "run", "B", "M", *map(str, options)])
        ended = run(cases, *options)
    assert ended.exit_code == 130
    hint = ended.stderr.splitlines()[-1]
    assert "--resume" in hint
    assert "--overwrite" not in hint
    assert rows(tmp_path / "p.csv") == before, "the earlier output stands until the new one is whole"
    again = run(cases, "--resume", "--batch", 2, "--json", tmp_path / "s.json")
    assert again.exit_code == 0, again.stderr
    assert 0 < json.loads((tmp_path / "s.json").read_text())["resumed"] < 12
    after = rows(tmp_path / "p.csv")  # in batches of another size: rounding differs
    assert [(row["case_id"], row["decision"]) for row in after] == [(row["case_id"], row["decision"]) for row in before]


def test_a_run_that_ended_before_its_first_row_leaves_no_journal(
    run: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a package for the first file is not installed: once it is, the same command must work."""
    import mpmmu_rt.run
    from mpmmu_rt.errors import MissingPackage

    def missing(*_: object, **__: object) -> None:
        raise MissingPackage("pydicom is not installed", hint="pip install 'mpmmu-rt[dicom]'")

    with monkeypatch.context() as patch:
        patch.setattr(mpmmu_rt.run, "read_with_warnings", missing)
        assert run(cases).exit_code == 1
    assert list(tmp_path.glob("p.csv*")) == []
    assert "wrote" in run(cases).stderr


def test_more_columns_say_what_a_row_was_made_of(
    run: Callable[..., Result], cases: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    done = run(cases, "--columns", "files,base,embedding", "--batch", 5)
    assert done.exit_code == 1
    found = rows(tmp_path / "p.csv")
    bundle = Bundle.open(bundle_folder)
    assert bundle.learners == LEARNERS
    assert list(found[0])[5:] == [
        *(f"base_{name}" for name in LEARNERS),
        *("embedding_sha256", "mammography_sha256", "ultrasound_sha256"),
    ]
    manifest = read_manifest(cases)
    with load(bundle_folder) as predictor:
        for index, (row, case) in enumerate(zip(found, manifest.cases, strict=True)):
            assert case.mammography is not None
            assert case.ultrasound is not None
            assert row["mammography_sha256"] == hashlib.sha256(case.mammography.read_bytes()).hexdigest()
            if index == 2:
                assert row["embedding_sha256"] == row["base_svm"] == row["ultrasound_sha256"] == ""
                continue
            said = predictor.predict_files(case.mammography, case.ultrasound)
            assert said.base_probability is not None
            base = [float(row[f"base_{name}"]) for name in LEARNERS]
            assert base == pytest.approx(said.base_probability[0].tolist(), abs=2e-5)
            assert len(row["embedding_sha256"]) == 64
    assert len({row["embedding_sha256"] for row in found}) == 12
    repair(cases)
    assert run(cases, "--columns", "base,embedding,files", "--retry-failed").exit_code == 0
    assert rows(tmp_path / "p.csv")[2]["base_svm"]


def test_the_digest_of_an_embedding_is_of_its_float32_values(
    run: Callable[..., Result], phantom_manifest: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    run(phantom_manifest, "--columns", "embedding", "--batch", 1, "--target", "onnxruntime:fp32")
    case = read_manifest(phantom_manifest).cases[4]
    assert case.mammography is not None
    assert case.ultrasound is not None
    with load(bundle_folder) as predictor:
        embedding = predictor.predict_files(case.mammography, case.ultrasound).embedding[0]
    want = hashlib.sha256(np.asarray(embedding, "<f4").tobytes()).hexdigest()
    assert rows(tmp_path / "p.csv")[4]["embedding_sha256"] == want


def test_a_column_that_there_is_not(run: Callable[..., Result], cases: Path) -> None:
    done = run(cases, "--columns", "base,weight")
    assert done.exit_code == 2
    assert "the column `weight` is asked for, expected of base, embedding, files" in done.stderr


def test_rows_on_stdout(run: Callable[..., Result], cases: Path, tmp_path: Path) -> None:
    run(cases)
    done = run(cases, out="-")
    assert done.exit_code == 1
    assert done.stdout == (tmp_path / "p.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases", "p.csv", "p.csv.json"]
    assert run(cases, "--json", "-", out="-").exit_code == 2
    assert run(cases, "--resume", out="-").exit_code == 2


def test_json_needs_a_place(run: Callable[..., Result], cases: Path) -> None:
    done = run(cases, "--json")
    assert done.exit_code == 2
    assert "hint: --json - for stdout, or --json FILE" in done.stderr


def test_a_retry_that_is_killed_while_it_takes_rows_over_loses_none(
    run: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal of the second try had the first rows and no mark that they were whole: all were made again."""
    assert run(cases).exit_code == 1
    before = rows(tmp_path / "p.csv")
    repair(cases)

    def half(file: TextIO, those: Sequence[journal.Row]) -> None:
        csv.writer(file, lineterminator="\n").writerows(those[: len(those) // 2])
        file.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", half)
        assert run(cases, "--retry-failed").exit_code == 130
    gone = read_manifest(cases).cases[7].mammography
    assert gone is not None
    gone.rename(gone.with_suffix(".gone"))  # a row that is there needs no image
    again = run(cases, "--retry-failed")
    assert again.exit_code == 0, again.stderr
    assert "(11 rows there already)" in again.stderr
    after = rows(tmp_path / "p.csv")
    assert [at for at, (one, two) in enumerate(zip(before, after, strict=True)) if one != two] == [2]
