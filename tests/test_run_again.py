"""run: more columns, rows that failed made again, and rows on stdout."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt import journal, load, origin
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.machine import THREADS_VARIABLE

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


def test_rows_of_images_that_were_written_since_are_made_again_too(
    run: Callable[..., Result], cases: Path, tmp_path: Path
) -> None:
    """The row of an image that was put right since stayed as it was, and the output said that it was of today."""
    assert run(cases).exit_code == 1
    before = rows(tmp_path / "p.csv")
    repair(cases)
    one, other = (read_manifest(cases).cases[row].mammography for row in (5, 6))
    assert one is not None
    assert other is not None
    time.sleep(1.1)  # when a run began is known to the second
    shutil.copy(other, one)
    done = run(cases, "--retry-failed", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.stderr
    assert "warning: 1 row that was there already was made again: images were written since" in done.stderr
    after = rows(tmp_path / "p.csv")
    assert [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [2, 5]
    entry = json.loads((tmp_path / "s.json").read_text())
    assert (entry["outdated"], entry["resumed"], entry["predicted"]) == (1, 10, 2)
    assert [(found["rows"], found["failed"]) for found in entry["earlier"]] == [(10, 0)]
    again = run(cases, "--retry-failed")
    assert "made again" not in again.stderr, "what was repaired before the rows were made is no news"


def test_an_image_that_was_repaired_is_none_that_was_exchanged(
    run: Callable[..., Result], cases: Path, tmp_path: Path
) -> None:
    """Its row was an error: whose the other rows are stays known."""
    other = read_manifest(cases).cases[7].mammography
    assert other is not None
    other.rename(other.with_suffix(".away"))
    assert run(cases).exit_code == 1
    repair(cases)
    assert run(cases, "--retry-failed").exit_code == 1
    time.sleep(1.1)  # when a run began is known to the second
    other.with_suffix(".away").rename(other)
    assert run(cases, "--retry-failed").exit_code == 0
    entry = record(tmp_path / "p.csv")
    assert (entry["outdated"], [one["rows"] for one in entry["earlier"]]) == (0, [10, 1])
    assert all(one["started"] for one in entry["earlier"])


def test_a_manifest_of_another_folder_is_not_gone_on_from(
    run: Callable[..., Result], cases: Path, tmp_path: Path
) -> None:
    run(cases)
    there = Path(shutil.copytree(cases.parent, tmp_path / "there"))
    done = run(there / "manifest.csv", "--retry-failed")
    assert "belongs to another run (other folder), expected this run's" in done.stderr
    assert f"hint: its images are those of {cases.parent}: " in done.stderr


def test_what_is_said_to_be_kept_is_what_a_run_goes_on_from(
    run: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the batch that it was at were counted, too: they are made again."""
    write, count = journal._write, itertools.count()

    def half(file: TextIO, those: Sequence[journal.Row]) -> None:
        if next(count) < 2:  # the rows that are there, which are none, and the first batch
            return write(file, those)
        csv.writer(file, lineterminator="\n").writerows(those[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", half)
        ended = run(cases, "--batch", 4)
    assert ended.exit_code == 130
    assert f"error: interrupted; 4 rows kept in {tmp_path / 'p.csv.partial'}" in ended.stderr
    assert "(4 rows there already)" in run(cases, "--batch", 4, "--resume").stderr


def test_beside_an_output_stands_no_record_of_another(
    run: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between both it said that nothing was written, and left the earlier output's record."""
    from mpmmu_rt import run_record

    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    repair(cases)
    out = tmp_path / "p.csv"
    assert run(cases, "--frame", 0).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_record, "sha256_of", interrupted)
        patch.setattr(sys, "argv", ["mpmmu-rt", "run", "B", "M"])
        ended = run(cases, "--overwrite")
    assert ended.exit_code == 130
    error, hint = ended.stderr.splitlines()[-2:]
    assert error == f"error: interrupted; {out} is whole, and what it was made with is not written beside it"
    assert hint == "hint: to go on: mpmmu-rt run B M --overwrite"
    assert len(rows(out)) == 12
    assert not out.with_name("p.csv.json").exists()


def test_nothing_is_written_into_a_bundle(bundle_folder: Path, cases: Path, tmp_path: Path) -> None:
    """It was, and the bundle could not be opened any more."""
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "b.bundle"))
    for command, name in (("run", "p.csv"), ("run", "onnx/p.csv"), ("explain", "e"), ("evaluate", "e")):
        done = CliRunner().invoke(app, [command, str(bundle), str(cases), "-o", str(bundle / name)])
        assert done.exit_code == 1
        error, hint = done.stderr.splitlines()[-2:]
        assert error == (
            f"error: {bundle / name} lies in {bundle}, which is a bundle and holds no other file, expected another "
            "place"
        )
        assert hint == "hint: choose another -o"
    Bundle.open(bundle)


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


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of its own, beside which the verdict lies."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


@pytest.fixture
def call(bundle: Path, tmp_path: Path) -> Callable[..., Result]:
    def command(name: str, *options: object) -> Result:
        return CliRunner().invoke(app, [name, str(bundle), *map(str, options), "--target", "onnxruntime:fp32"])

    return command


def told(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("started", "machine", "verified")}


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.with_name(f"{out.name}.json").read_text())
    return found


def refused(done: Result, match: str) -> None:
    assert done.exit_code == 3, done.stderr
    error, hint = done.stderr.splitlines()
    assert re.match(f"error: {match}, expected rows of verified runs alone", error), error
    assert hint == "hint: make all rows anew with --overwrite, or leave --require-verified out"


def test_a_retry_tells_who_made_the_rows_that_it_takes_over(
    call: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    named = (cases, "-o", out)
    monkeypatch.setenv(THREADS_VARIABLE, "2")
    assert call("run", *named).exit_code == 1
    first, text = record(out), out.read_text()
    assert (first["verified"]["passed"], first["earlier"]) == (None, [])
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    assert call("verify").exit_code == 0
    repair(cases)
    said = (
        rf"11 rows of {out} would be taken over from a run that is not known to have been verified \(there is no .*\)"
    )
    refused(call("run", *named, "--retry-failed", "--require-verified"), said)
    assert (record(out), out.read_text()) == (first, text)
    assert not out.with_name("p.csv.partial").exists()
    done = call("run", *named, "--retry-failed", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.stderr
    assert "warning: 11 of 12 rows were there, of a run that is not known to be verified" in done.stderr
    after = record(out)
    assert after["earlier"] == [{"rows": 11, "failed": 0, **told(first)}]
    assert after["verified"]["passed"] is True
    assert after["machine"]["threads"] == 1
    assert json.loads((tmp_path / "s.json").read_text()) == after
    refused(call("run", *named, "--retry-failed", "--require-verified"), said)  # what was taken over once stays so
    assert call("run", *named, "--retry-failed").exit_code == 0
    assert [(one["rows"], one["started"]) for one in record(out)["earlier"]] == [
        (11, first["started"]),
        (1, after["started"]),
    ]
    assert call("run", *named, "--overwrite", "--require-verified").exit_code == 0
    assert record(out)["earlier"] == []
    done = call("run", *named, "--retry-failed", "--require-verified")
    assert done.exit_code == 0, done.stderr
    assert "not known to be verified" not in done.stderr
    assert [one["verified"]["passed"] for one in record(out)["earlier"]] == [True]


def test_rows_of_other_threads_are_told(
    call: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last digits may be others; it stood in the record alone."""
    named = ("run", cases, "-o", tmp_path / "p.csv")
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    assert call(*named).exit_code == 1
    assert "taken over from another" not in call(*named, "--retry-failed").stderr
    out = tmp_path / "p.csv.json"
    entry = record(tmp_path / "p.csv")
    entry["machine"] |= {"threads": 7, "packages": entry["machine"]["packages"] | {"mpmmu-rt": "0.0.1"}}
    entry["earlier"] = []
    out.write_text(json.dumps(entry))
    said = call(*named, "--retry-failed").stderr
    for what in ("number of threads", "set of packages"):
        assert f"note: 11 rows taken over from another {what}: the last digits may differ" in said
    assert "another processor" not in said


@pytest.mark.parametrize("resumed", [0, 5])
def test_a_record_of_an_earlier_version(call: Callable[..., Result], cases: Path, tmp_path: Path, resumed: int) -> None:
    """It does not say whose rows it took over: where there are such, it tells nothing of any."""
    out = tmp_path / "p.csv"
    assert call("verify").exit_code == 0
    assert call("run", cases, "-o", out).exit_code == 1
    first = record(out)
    old = {key: value for key, value in first.items() if key != "earlier"} | {"resumed": resumed}
    out.with_name("p.csv.json").write_text(json.dumps(old))
    if resumed:
        again = ("run", cases, "-o", out, "--retry-failed", "--require-verified")
        refused(call(*again), r"11 rows of .* \(it did not say\)")
    assert call("run", cases, "-o", out, "--retry-failed").exit_code == 1
    known = dict.fromkeys(("started", "machine", "verified")) if resumed else told(first)
    assert record(out)["earlier"] == [{"rows": 11, "failed": 0, **known}]


def test_a_journal_tells_who_made_its_rows(
    call: Callable[..., Result], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that made them was killed, and wrote no record."""
    import mpmmu_rt.run
    from mpmmu_rt.images import read_with_warnings as read

    out = tmp_path / "p.csv"
    place = out.with_name("p.csv.partial")
    named = (cases, "-o", out, "--batch", 2)

    monkeypatch.setenv(THREADS_VARIABLE, "1")  # which decode in order

    def killed(at: int, *options: str) -> None:
        count = itertools.count(1)

        def interrupted(*given: Any, **more: Any) -> Any:
            if next(count) == at:
                raise KeyboardInterrupt
            return read(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(mpmmu_rt.run, "read_with_warnings", interrupted)
            assert call("run", *named, *options).exit_code == 130

    killed(13)
    before = place.read_bytes()
    assert call("verify").exit_code == 0
    there = r"6 rows of .* \(there is no copy.bundle.verified.json\)"
    refused(call("run", *named, "--resume", "--require-verified"), there)
    assert place.read_bytes() == before
    killed(5, "--resume")
    refused(call("run", *named, "--resume", "--require-verified"), there)  # of both, the first was not
    done = call("run", *named, "--resume")
    assert done.exit_code == 1
    entry = record(out)
    made = [(one["rows"], one["failed"], one["verified"]["passed"]) for one in entry["earlier"]]
    assert made == [(6, 1, None), (2, 0, True)]
    assert entry["resumed"] == 8

    # One of an earlier version goes on, and tells nothing.
    header, _, rest = before.partition(b"\n")
    old = {key: value for key, value in json.loads(header).items() if key not in origin.KEYS}
    out.unlink()
    place.write_bytes(json.dumps(old).encode() + b"\n" + rest)
    refused(call("run", *named, "--resume", "--require-verified"), r"6 rows of .* \(it did not say\)")
    assert call("run", *named, "--resume").exit_code == 1
    (unknown,) = record(out)["earlier"]
    assert unknown == {"rows": 6, "failed": 1, "started": None, "machine": None, "verified": None}


def test_through_a_link_all_lies_beside_what_is_written(
    call: Callable[..., Result], cases: Path, tmp_path: Path
) -> None:
    there, link = tmp_path / "there", tmp_path / "p.csv"
    there.mkdir()
    (there / "kept.csv").write_text("old")
    link.symlink_to(there / "kept.csv")
    assert "exists already" in call("run", cases, "-o", link).stderr
    done = call("run", cases, "-o", link, "--overwrite")
    assert f"wrote {link}: 11 predictions, 1 error; what they were made with: {there / 'kept.csv.json'}" in done.stderr
    assert link.is_symlink()
    assert len(rows(there / "kept.csv")) == 12
    assert sorted(path.name for path in there.iterdir()) == ["kept.csv", "kept.csv.json"]
    repair(cases)
    assert call("run", cases, "-o", link, "--retry-failed").exit_code == 0  # by the file's own record
    assert call("run", cases, "-o", there / "kept.csv", "--retry-failed").exit_code == 0
    inside = call("run", cases, "-o", link, "--overwrite", "--json", there / "kept.csv")
    assert inside.exit_code != 0
    assert len(rows(there / "kept.csv")) == 12


def by_hand(*, earlier: object, by: object = {"started": "x"}) -> dict[str, Any]:
    return {"made_by": by, "earlier": earlier}


@pytest.mark.parametrize(
    "found",
    [
        {},
        by_hand(earlier=None),
        by_hand(earlier=[], by=None),
        by_hand(earlier=[None]),
        by_hand(earlier=[{"rows": "2", "failed": 0}]),
        by_hand(earlier=[{"rows": 2, "failed": 3}]),
        by_hand(earlier=[{"rows": 9, "failed": 0}]),
        by_hand(earlier=[{"rows": 2, "failed": 2}]),
    ],
)
def test_of_what_does_not_fit_the_rows_nothing_is_known(found: dict[str, Any]) -> None:
    unknown = {"started": None, "machine": None, "verified": None}
    assert origin.taken_over(found, 8, 1, dropped=False) == [{"rows": 8, "failed": 1, **unknown}]
    assert origin.taken_over(found, 8, 1, dropped=True) == [{"rows": 7, "failed": 0, **unknown}]


def test_who_made_nothing_that_is_taken_over_is_not_listed() -> None:
    before = [{"rows": 3, "failed": 0, "started": "a"}, {"rows": 2, "failed": 2, "started": "b"}]
    found = by_hand(earlier=before)
    assert origin.taken_over(found, 5, 2, dropped=False) == before
    assert origin.taken_over(found, 5, 2, dropped=True) == before[:1]
    assert origin.taken_over({}, 0, 0, dropped=True) == []
