"""run: every case one row, in order; whatever happens in between, nothing lost and nothing made twice."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mpmmu_rt import Predictor, images, load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Manifest, read_manifest
from mpmmu_rt.errors import EngineError, ImageError, OutputError
from mpmmu_rt.files import sha256_file
from mpmmu_rt.grey import GreyImage
from mpmmu_rt.images import Preprocessing, read_grey, read_pixels
from mpmmu_rt.journal import decision_of
from mpmmu_rt.run import COLUMNS, Decoder, decode, run
from mpmmu_rt.spec import MODALITIES


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Iterator[Predictor]:
    with load(bundle_folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def manifest(phantom_manifest: Path) -> Manifest:
    return read_manifest(phantom_manifest)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "predictions.csv"


def journal(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def finished(out: Path) -> list[str]:
    """The journal's rows, with and without an error."""
    return [line for line in journal(out).read_text().splitlines()[1:] if line]


def read(out: Path) -> list[dict[str, str]]:
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_manifest(folder: Path, rows: list[tuple[str, object, object]]) -> Manifest:
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case_id", *MODALITIES), *rows])
    return read_manifest(path)


def test_rows_are_what_the_predictor_says_in_the_manifests_order(
    predictor: Predictor, manifest: Manifest, out: Path
) -> None:
    summary = run(predictor, manifest, out, batch=5)
    rows = read(out)
    assert tuple(rows[0]) == COLUMNS == ("case_id", "probability", "decision", "error", "warnings")
    assert [row["case_id"] for row in rows] == [case.case_id for case in manifest.cases]
    for case, row in zip(manifest.cases, rows, strict=True):
        assert case.mammography is not None
        assert case.ultrasound is not None
        size = Preprocessing(size=48)
        pixels = {"mammography": read_pixels(case.mammography, size), "ultrasound": read_pixels(case.ultrasound, size)}
        want = predictor.predict({modality: pixels[modality][None] for modality in MODALITIES}).probability[0]
        assert float(row["probability"]) == pytest.approx(want, abs=5e-6)
        assert row["decision"] == ("malignant" if float(row["probability"]) >= 0.4 else "benign")
        assert row["error"] == ""
    assert {row["decision"] for row in rows} == {"benign", "malignant"}
    assert len({row["probability"] for row in rows}) == 12
    assert not journal(out).exists()
    assert (summary.cases, summary.predicted, summary.failed, summary.resumed) == (12, 12, 0, 0)
    assert summary.batch_latency is not None
    assert summary.batch_latency.n == 2  # without the first, which is cold
    assert summary.pairs_per_s > 0
    json.dumps(summary.to_json(), allow_nan=False)


def test_a_probability_is_written_so_that_it_reads_back_the_same(
    predictor: Predictor, manifest: Manifest, out: Path
) -> None:
    run(predictor, manifest, out, batch=12)
    text = [row["probability"] for row in read(out)]
    assert all("e" not in value for value in text)
    again = out.with_name("again.csv")
    run(predictor, manifest, again, batch=12)
    assert again.read_bytes() == out.read_bytes()
    assert all(np.format_float_positional(np.float32(value), unique=True) == value for value in text)


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_the_batch_size_changes_no_decision(predictor: Predictor, manifest: Manifest, out: Path, batch: int) -> None:
    run(predictor, manifest, out, batch=batch)
    reference = out.with_name("reference.csv")
    run(predictor, manifest, reference, batch=3)
    for got, want in zip(read(out), read(reference), strict=True):
        assert float(got.pop("probability")) == pytest.approx(float(want.pop("probability")), abs=5e-6)
        assert got == want


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.4, 0.6, 0.7, 0.9])
def test_at_the_threshold_is_malignant_as_printed(bundle_folder: Path, threshold: float) -> None:
    bundle = Bundle.open(bundle_folder)
    object.__setattr__(bundle, "threshold", threshold)
    at = np.float32(threshold)
    below = np.nextafter(at, np.float32(0))
    said = {decision_of(one, bundle) for one in (at, float(at), float(str(at)))}
    assert said == {"malignant"}
    assert decision_of(below, bundle) == decision_of(float(below), bundle) == "benign"


def test_a_case_that_fails_is_a_row_and_the_others_are_not_moved(
    predictor: Predictor, manifest: Manifest, out: Path, tmp_path: Path
) -> None:
    good = [(case.mammography, case.ultrasound) for case in manifest.cases]
    Image.new("L", (30, 30), 7).save(tmp_path / "flat.png")
    (tmp_path / "text.png").write_text("no image")
    broken: dict[int, tuple[object, object]] = {
        0: ("no/such.png", good[0][1]),
        3: (good[3][0], ""),
        4: (good[4][0], tmp_path / "text.png"),
        5: ("line\nbreak.png", good[5][1]),
        11: (tmp_path / "flat.png", good[11][1]),
    }
    mixed = write_manifest(tmp_path, [(f"c{i}", *broken.get(i, pair)) for i, pair in enumerate(good)])
    summary = run(predictor, mixed, out, batch=4)
    rows = read(out)
    clean = out.with_name("clean.csv")
    run(predictor, manifest, clean, batch=4)
    assert [row["case_id"] for row in rows] == [f"c{i}" for i in range(12)]
    for index, (row, whole) in enumerate(zip(rows, read(clean), strict=True)):
        if index in broken:
            assert (row["probability"], row["decision"]) == ("", "")
            assert row["error"]
            assert "\n" not in row["error"]
        else:
            assert float(row["probability"]) == pytest.approx(float(whole["probability"]), abs=5e-6)
            assert row["error"] == ""
    assert (summary.failed, summary.predicted) == (5, 7)
    assert summary.first_error.startswith("`c0`: ")
    assert "no ultrasound image is given" in rows[3]["error"]


def test_a_run_of_nothing_but_failures_predicts_nothing(predictor: Predictor, out: Path, tmp_path: Path) -> None:
    summary = run(predictor, write_manifest(tmp_path, [("a", "x.png", "y.png"), ("b", "", "")]), out)
    assert (summary.failed, summary.predicted, summary.batch_latency) == (2, 0, None)
    assert [row["case_id"] for row in read(out)] == ["a", "b"]


def many(phantom_manifest: Path, folder: Path, count: int = 90) -> Path:
    """The phantoms again and again under new ids, and two cases that fail."""
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantom_manifest).cases]
    rows: list[tuple[str, object, object]] = [(f"case-{i}", *pairs[i % len(pairs)]) for i in range(count)]
    rows[3] = ("case-3", "no.png", pairs[3][1])
    rows[-2] = (f"case-{count - 2}", pairs[0][0], "")
    return write_manifest(folder, rows).path


def start(bundle: Path, manifest: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mpmmu_rt", "run", str(bundle), str(manifest), "-o", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr  # two cases fail
    found: dict[str, int] = json.loads(stdout)
    return found


def test_what_libraries_warn_of_is_not_printed(
    bundle_folder: Path, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    """pydicom prints what it takes for a UID, with all that a damaged byte makes part of it: a name, too."""
    drawn = np.random.default_rng(7).integers(0, 256, (40, 30), np.uint8)
    path = save_dicom(drawn, PatientName="DOE^JANE", PatientID="1234")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x02\0\x10\0UI", b"\x02\0\x10\0\x9fI"))
    assert path.read_bytes() != data
    Image.fromarray(drawn).save(tmp_path / "us.png")
    (tmp_path / "m.csv").write_text(f"case_id,mammography,ultrasound\na,{path},us.png\n")
    process = start(bundle_folder, tmp_path / "m.csv", tmp_path / "p.csv", "--target", "onnxruntime:fp32")
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "DOE" not in stderr + (tmp_path / "p.csv").read_text()
    assert "Warning" not in stderr
    assert "1 of 1 cases have no probability" in stderr


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_stopped(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    manifest = many(phantom_manifest, tmp_path)
    whole, out = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert finish(start(bundle_folder, manifest, whole, "--batch", "4", "--json", "-"))["predicted"] == 88
    done = [0]
    for kill_after in (5, 40):
        options = ["--resume"] if kill_after > 5 else []
        process = start(bundle_folder, manifest, out, "--batch", "4", *options)
        deadline = time.monotonic() + 60
        while not journal(out).exists() or len(finished(out)) < kill_after:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        done.append(len(finished(out)))
        assert kill_after <= done[-1] < 90
    whole_batches = journal(out).read_text().rpartition("\n\n")[0].splitlines()[1:]
    journal_ids = [line.partition(",")[0] for line in whole_batches if line]
    assert len(set(journal_ids)) == len(journal_ids)  # the second process repeated nothing of the first
    refused = start(bundle_folder, manifest, out)
    assert "holds the rows of an unfinished run" in refused.communicate()[1]
    summary = finish(start(bundle_folder, manifest, out, "--batch", "4", "--resume", "--json", "-"))
    assert summary["resumed"] == len(journal_ids) > done[-1] - 4
    failed_before = sum(f"case-{index}" in journal_ids for index in (3, 88))
    assert summary["predicted"] == 88 - (len(journal_ids) - failed_before)
    assert out.read_bytes() == whole.read_bytes(), "to the bit: which cases share a batch is the manifest's to say"
    names = ["killed.csv", "killed.csv.json", "manifest.csv", "whole.csv", "whole.csv.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


class Stop(Exception):
    pass


def interrupted(predictor: Predictor, manifest: Manifest, out: Path, after: int = 6, resume: bool = False) -> None:
    """A run that ends after `after` cases and leaves its journal."""

    def progress(description: str, done: int, total: int, *more: str) -> None:
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        run(predictor, manifest, out, batch=3, resume=resume, progress=progress)
    assert journal(out).exists()
    assert not out.exists()


def resume(predictor: Predictor, manifest: Manifest, out: Path) -> tuple[int, int]:
    summary = run(predictor, manifest, out, batch=3, resume=True)
    return summary.resumed, summary.predicted


@pytest.mark.parametrize("torn", [1, 2, 17, 40, 80])
def test_a_torn_batch_is_made_again(predictor: Predictor, manifest: Manifest, out: Path, torn: int) -> None:
    run(predictor, manifest, out, batch=3)
    want = read(out)
    out.unlink()
    interrupted(predictor, manifest, out)
    assert len(finished(out)) == 6
    journal(out).write_bytes(journal(out).read_bytes()[:-torn])
    interrupted(predictor, manifest, out, after=8, resume=True)  # what it appends must not join the torn line
    assert len(finished(out)) == 9
    assert len({line.partition(",")[0] for line in finished(out)}) == 9
    assert resume(predictor, manifest, out) == (9, 3)
    assert read(out) == want, "to the bit"


@pytest.mark.parametrize("content", [b"", b'{"schema": "mpm'])
def test_a_journal_that_was_cut_before_its_first_line(
    predictor: Predictor, manifest: Manifest, out: Path, content: bytes
) -> None:
    journal(out).write_bytes(content)
    assert resume(predictor, manifest, out) == (0, 12)


def test_resuming_without_a_journal_is_a_run(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    assert resume(predictor, manifest, out) == (0, 12)


def test_a_journal_with_every_row_needs_no_prediction(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    interrupted(predictor, manifest, out, after=12)
    assert resume(predictor, manifest, out) == (12, 0)
    assert len(read(out)) == 12


@pytest.mark.parametrize("key", ["schema", "bundle", "manifest", "folder", "target", "head_target", "frame", "batch"])
def test_the_journal_of_another_run_is_refused(predictor: Predictor, manifest: Manifest, out: Path, key: str) -> None:
    interrupted(predictor, manifest, out)
    lines = journal(out).read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    assert header["bundle"] == predictor.bundle.digest
    assert header["manifest"] == manifest.sha256
    assert header["target"] == "onnxruntime:fp32"
    journal(out).write_text(json.dumps(header | {key: "other"}) + "\n" + "".join(lines[1:]))
    before = journal(out).read_bytes()
    with pytest.raises(OutputError, match=rf"belongs to another run \(other {key}\)"):
        resume(predictor, manifest, out)
    assert journal(out).read_bytes() == before
    assert not out.exists()


def test_a_changed_manifest_does_not_resume(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    path = out.with_name("manifest.csv")
    text = manifest.path.read_text().splitlines()
    rows: list[tuple[str, object, object]] = [
        (case.case_id, case.mammography, case.ultrasound) for case in manifest.cases
    ]
    first = write_manifest(path.parent, rows)
    assert len(text) == 13
    interrupted(predictor, first, out)
    rows[0] = (rows[0][0], rows[1][1], rows[1][2])  # other images under the same id
    with pytest.raises(OutputError, match=r"other manifest\)"):
        resume(predictor, write_manifest(path.parent, rows), out)


def test_another_frame_does_not_resume(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    interrupted(predictor, manifest, out)
    with pytest.raises(OutputError, match=r"other frame\)"):
        run(predictor, manifest, out, batch=3, resume=True, frame=0)


def test_another_batch_does_not_resume(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    """The rows of both sizes differed in their last bits, and nothing said so."""
    interrupted(predictor, manifest, out)
    with pytest.raises(OutputError, match=r"other batch\), expected this run's") as caught:
        run(predictor, manifest, out, batch=4, resume=True)
    assert caught.value.hint.startswith("--batch 3 goes on with it; ")
    assert resume(predictor, manifest, out) == (6, 6)


def test_a_head_that_ran_elsewhere_does_not_resume(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    interrupted(predictor, manifest, out)
    other = journal(out).read_text().replace('"head_target": "onnxruntime:fp32"', '"head_target": "openvino:fp32"')
    journal(out).write_text(other)
    with pytest.raises(OutputError, match=r"other head_target\)") as caught:
        resume(predictor, manifest, out)
    assert caught.value.hint.startswith("its head ran on openvino:fp32: ")


def two_sites(phantom_manifest: Path, folder: Path) -> tuple[Manifest, Manifest]:
    """Manifests of the same bytes in two folders, in which the same names are other patients' images."""
    text = "".join(
        f"case-{row},mammography/phantom-{row:04}.png,ultrasound/phantom-{row:04}.png\n" for row in range(12)
    )
    for name in ("a", "b"):
        for modality in MODALITIES:
            (folder / name / modality).mkdir(parents=True)
            for row in range(12):
                image = phantom_manifest.parent / modality / f"phantom-{row if name == 'a' else 11 - row:04}.png"
                shutil.copy2(image, folder / name / modality / f"phantom-{row:04}.png")
        (folder / name / "manifest.csv").write_text(f"case_id,mammography,ultrasound\n{text}")
    first, second = (read_manifest(folder / name / "manifest.csv") for name in ("a", "b"))
    assert first.sha256 == second.sha256
    return first, second


def test_the_same_manifest_in_another_folder_does_not_resume(
    predictor: Predictor, phantom_manifest: Path, out: Path, tmp_path: Path
) -> None:
    """Half of the rows were of one folder's patients, half of the other's, under ids that both have."""
    first, second = two_sites(phantom_manifest, tmp_path)
    interrupted(predictor, first, out)
    with pytest.raises(OutputError, match=r"other folder\), expected this run's") as caught:
        resume(predictor, second, out)
    assert caught.value.hint.startswith(f"its images are those of {first.path.parent}: ")
    (tmp_path / "link").symlink_to(first.path.parent)  # another name of the same place is no other
    assert resume(predictor, read_manifest(tmp_path / "link/manifest.csv"), out) == (6, 6)


def test_a_manifest_of_absolute_paths_says_the_same_wherever_it_lies(
    predictor: Predictor, manifest: Manifest, out: Path, tmp_path: Path
) -> None:
    rows = [(case.case_id, case.mammography, case.ultrasound) for case in manifest.cases]
    first = write_manifest(tmp_path, list(rows))
    assert (first.folder, manifest.folder) == (None, str(manifest.path.parent))
    interrupted(predictor, first, out)
    (tmp_path / "moved").mkdir()
    first.path.rename(tmp_path / "moved/m.csv")
    assert resume(predictor, read_manifest(tmp_path / "moved/m.csv"), out) == (6, 6)


def exchange(manifest: Manifest, row: int, by: int) -> None:
    """The mammogram of one case gets another's content, size and time of writing as before where a disk allows it."""
    here, other = manifest.cases[row].mammography, manifest.cases[by].mammography
    assert here is not None
    assert other is not None
    before, content = here.stat(), other.read_bytes()
    length = max(before.st_size, len(content))
    here.write_bytes(content + bytes(length - len(content)))  # a PNG's end is marked: what follows is no picture
    os.utime(here, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_rows_of_images_that_were_exchanged_meanwhile_are_made_again(
    predictor: Predictor, phantom_manifest: Path, out: Path, tmp_path: Path
) -> None:
    """The row of the image that was there before stayed, under the name of one that nobody had looked at."""
    cases, _ = two_sites(phantom_manifest, tmp_path)
    interrupted(predictor, cases, out)
    kept = [line for line in finished(out) if line.startswith("case-0,")]
    exchange(cases, 4, 9)
    gone = cases.cases[0].ultrasound
    assert gone is not None
    gone.rename(gone.with_suffix(".away"))  # a row that is there needs no image
    summary = run(predictor, cases, out, batch=3, resume=True)
    assert (summary.outdated, summary.resumed, summary.predicted) == (3, 3, 9)
    assert (summary.to_json()["outdated"], [one["rows"] for one in summary.earlier]) == (3, [3])
    gone.with_suffix(".away").rename(gone)
    assert read(out)[0]["probability"] == kept[0].split(",")[1]
    run(predictor, cases, out.with_name("whole.csv"), batch=3)
    assert out.read_bytes() == out.with_name("whole.csv").read_bytes(), "its batch is made again as a whole"


def test_whose_the_rows_are_that_stay_of_several_runs_is_not_known(
    predictor: Predictor, phantom_manifest: Path, out: Path, tmp_path: Path
) -> None:
    cases, _ = two_sites(phantom_manifest, tmp_path)
    interrupted(predictor, cases, out)
    interrupted(predictor, cases, out, after=9, resume=True)
    exchange(cases, 8, 2)
    (earlier,) = run(predictor, cases, out, batch=3, resume=True).earlier
    assert earlier == {"rows": 6, "failed": 0, "started": None, "machine": None, "verified": None}


@pytest.mark.parametrize("mark", ["", "x", "1:2:3", "1:2:3 4:5", "- 1:2:x"])
def test_a_row_without_a_mark_of_its_images_is_refused(
    predictor: Predictor, manifest: Manifest, out: Path, mark: str
) -> None:
    interrupted(predictor, manifest, out)
    with journal(out).open("a") as file:
        file.write(f"phantom-0011,0.5,malignant,,,{mark}\n\n")
    with pytest.raises(OutputError, match="is damaged in line 11"):
        resume(predictor, manifest, out)


@pytest.mark.parametrize(
    "row",
    [
        b"phantom-0011,0.5\n",
        b"phantom-0011,0.5,malignant,\n",
        b"stranger,0.5,malignant,,\n",
        b"phantom-0011,1.5,malignant,,\n",
        b"phantom-0011,nan,malignant,,\n",
        b"phantom-0011,half,malignant,,\n",
        b"phantom-0011,,malignant,,\n",
        b"phantom-0011,,,,\n",
        b"phantom-0011,0.5,benign,,\n",  # 0.5 is above the threshold of 0.4
        b"phantom-0011,0.3,malignant,,\n",
        b"phantom-0011,0.5,malignant,an error,\n",
        b'phantom-0011,,,"an error,\n',
        b"\xff\xfe\x00\x00\n",
        bytes(40) + b"\n",
        b"x" * 200_000 + b"\n",
    ],
)
def test_a_journal_with_a_row_that_no_run_wrote_is_refused(
    predictor: Predictor, manifest: Manifest, out: Path, row: bytes
) -> None:
    interrupted(predictor, manifest, out)
    with journal(out).open("ab") as file:
        file.write(row + b"\n")
    with pytest.raises(OutputError, match="is damaged in line 11"):
        resume(predictor, manifest, out)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\n", b"case_id,probability\n", b"[]\n", b"null\n", b"\n"])
def test_a_file_that_is_no_journal_is_not_resumed_from(
    predictor: Predictor, manifest: Manifest, out: Path, content: bytes
) -> None:
    journal(out).write_bytes(content + b"phantom-0011,0.5,malignant,\n")
    with pytest.raises(OutputError, match="belongs to another run"):
        resume(predictor, manifest, out)


def test_an_existing_output_is_replaced_only_if_asked(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    out.write_text("mine")
    for resumed in (False, True):
        with pytest.raises(OutputError, match="exists already") as caught:
            run(predictor, manifest, out, resume=resumed)
        assert "--overwrite" in caught.value.hint
    assert out.read_text() == "mine"
    assert not journal(out).exists()
    run(predictor, manifest, out, overwrite=True)
    assert len(read(out)) == 12


def test_an_unfinished_run_is_neither_continued_nor_thrown_away_unasked(
    predictor: Predictor, manifest: Manifest, out: Path
) -> None:
    interrupted(predictor, manifest, out)
    before = journal(out).read_bytes()
    with pytest.raises(OutputError, match="unfinished run") as caught:
        run(predictor, manifest, out)
    assert "--resume" in caught.value.hint
    assert journal(out).read_bytes() == before
    assert run(predictor, manifest, out, overwrite=True).predicted == 12


def test_outputs_that_can_not_be(predictor: Predictor, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        run(predictor, manifest, tmp_path / "no" / "out.csv")
    with pytest.raises(OutputError, match="is a folder"):
        run(predictor, manifest, tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="is the manifest itself"):
        run(predictor, manifest, manifest.path, overwrite=True)
    assert len(read_manifest(manifest.path).cases) == 12


@pytest.mark.parametrize("name", ["out.csv.partial", "out.csv.json"])
def test_a_manifest_that_lies_where_a_run_keeps_something_is_refused(
    predictor: Predictor, manifest: Manifest, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(manifest.path.read_bytes())
    with pytest.raises(OutputError, match=rf"{name} is the manifest itself, and where .*out\.csv is written with"):
        run(predictor, read_manifest(path), tmp_path / "out.csv", overwrite=True)
    assert path.read_bytes() == manifest.path.read_bytes()


def test_an_image_is_not_replaced_by_the_output(predictor: Predictor, phantom_manifest: Path, tmp_path: Path) -> None:
    """Not even if that is asked for: a slip of the hand, and the image of a patient was gone."""
    cases, _ = two_sites(phantom_manifest, tmp_path)
    image = cases.cases[3].ultrasound
    assert image is not None
    before = image.read_bytes()
    (tmp_path / "other").symlink_to(image.parent)
    for name in (image, tmp_path / "other" / image.name):
        with pytest.raises(OutputError, match=r"is an image of the case `case-3`, expected another file"):
            run(predictor, cases, name, overwrite=True)
    assert image.read_bytes() == before
    assert not journal(image).exists()


def test_through_a_link_the_file_that_it_names_is_written(
    predictor: Predictor, manifest: Manifest, out: Path, tmp_path: Path
) -> None:
    link, there = tmp_path / "link.csv", tmp_path / "there"
    there.mkdir()
    link.symlink_to(there / "kept.csv")
    run(predictor, manifest, link)  # there is no such file yet
    want = (there / "kept.csv").read_bytes()
    assert len(want.splitlines()) == 13
    (there / "kept.csv").write_text("old")
    with pytest.raises(OutputError, match=r"there/kept\.csv exists already"):
        run(predictor, manifest, link)
    run(predictor, manifest, link, overwrite=True)
    assert (there / "kept.csv").read_bytes() == want
    assert link.is_symlink()
    link.unlink()
    link.symlink_to(manifest.path)
    with pytest.raises(OutputError, match="is the manifest itself"):
        run(predictor, manifest, link, overwrite=True)
    assert [path.name for path in there.iterdir()] == ["kept.csv"]


def test_an_engine_that_fails_leaves_the_journal_and_no_output(
    bundle_folder: Path, manifest: Manifest, out: Path
) -> None:
    closed = load(bundle_folder)
    closed.close()
    with pytest.raises(EngineError):
        run(closed, manifest, out)
    assert not out.exists()
    with load(bundle_folder) as predictor:
        assert resume(predictor, manifest, out) == (0, 12)


def test_the_decoder_keeps_order_and_stays_within_its_bound(manifest: Manifest) -> None:
    with Decoder(manifest.cases, Preprocessing(size=16), frame=None, ahead=2) as decoded:
        ids = [item.case.case_id for item in decoded]
    assert ids == [case.case_id for case in manifest.cases]


def test_progress_counts_cases(predictor: Predictor, manifest: Manifest, out: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    run(predictor, manifest, out, batch=5, progress=lambda *args: seen.append(args[:4]))
    assert {(name, total, unit) for name, _, total, unit in seen} == {("predicting", 12, "cases")}
    done = [count for _, count, *_ in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 12)


def test_one_file_for_both_modalities_is_an_error_row(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    """It decodes, and would give a probability that looks right."""
    image = next(phantom_manifest.parent.glob("ultrasound/*.png"))
    (tmp_path / "m.csv").write_text(f"case_id,mammography,ultrasound\na,{image},{image}\n")
    with load(bundle_folder) as predictor:
        summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv")
    assert summary.failed == 1
    assert "is given for both modalities" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("kind", ["another spelling", "link", "copy", "another format"])
def test_one_image_for_both_modalities_under_another_name(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, kind: str
) -> None:
    image, other = next(phantom_manifest.parent.glob("ultrasound/*.png")), tmp_path / "other.png"
    if kind == "another spelling":
        other = image.parent / ".." / image.parent.name / image.name
    elif kind == "link":
        other.symlink_to(image)
    elif kind == "copy":
        shutil.copy(image, other)
    else:
        other = tmp_path / "other.bmp"
        Image.fromarray(read_grey(image)).save(other)
    (tmp_path / "m.csv").write_text(f"case_id,mammography,ultrasound\na,{image},{other}\n")
    with load(bundle_folder) as predictor:
        summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv")
        with pytest.raises(ImageError, match="are the same, pixel by pixel, expected an image of each"):
            predictor.predict_files(image, other)
    assert summary.failed == 1
    assert "are the same, pixel by pixel" in (tmp_path / "out.csv").read_text()


def test_an_image_that_can_not_be_hashed_costs_its_row(
    predictor: Predictor, phantom_manifest: Path, tmp_path: Path
) -> None:
    one, two = read_manifest(phantom_manifest).cases[:2]
    assert one.mammography is not None
    assert two.mammography is not None
    assert two.ultrasound is not None
    rows = f"a,{one.mammography},{'x' * 300}.png\nb,{two.mammography},{two.ultrasound}\n"
    (tmp_path / "m.csv").write_text(f"case_id,mammography,ultrasound\n{rows}")
    summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", columns=["files"])
    assert (summary.failed, summary.predicted) == (1, 1)
    first, second = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert "File name too long" in first
    assert first.endswith(f",{sha256_file(one.mammography)},")
    assert second.endswith(f",{sha256_file(two.mammography)},{sha256_file(two.ultrasound)}")


@pytest.mark.parametrize("how", ["replaced", "written", "written, then refused"])
def test_a_digest_is_that_of_the_bytes_that_were_decoded(
    predictor: Predictor, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A file that is exchanged once it is decoded had the digest of bytes that nothing was said of."""
    one, two = read_manifest(phantom_manifest).cases[:2]
    assert one.mammography is not None
    assert two.mammography is not None
    assert one.ultrasound is not None
    path = tmp_path / "a.png"
    path.write_bytes(one.mammography.read_bytes())
    other = two.mammography.read_bytes()
    load, left = PngImagePlugin.PngImageFile.load, [path]

    def load_and_exchange(image: PngImagePlugin.PngImageFile) -> Any:
        found = load(image)
        for path in left:
            if how == "replaced":
                (tmp_path / "new.png").write_bytes(other)
                (tmp_path / "new.png").replace(path)
            else:
                path.write_bytes(other)
        left.clear()
        if how == "written, then refused":
            raise SyntaxError
        return found

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load_and_exchange)
    cases = write_manifest(tmp_path, [("a", path, one.ultrasound)])
    assert run(predictor, cases, tmp_path / "out.csv", columns=["files"]).failed == 1
    (row,) = read(tmp_path / "out.csv")
    assert row["error"].startswith(f"{path} changed while it was read, expected a file that stays as it is")
    assert (row["probability"], row["mammography_sha256"]) == ("", "")
    assert row["ultrasound_sha256"] == sha256_file(one.ultrasound)
    monkeypatch.undo()
    assert run(predictor, cases, tmp_path / "out.csv", columns=["files"], overwrite=True).failed == 0
    assert read(tmp_path / "out.csv")[0]["mammography_sha256"] == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize("columns", [(), ("files",)])
def test_an_image_that_is_written_while_it_is_read_is_none(
    predictor: Predictor, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str]
) -> None:
    """A bitmap has no checksum: of rows of one patient and rows of another it gave a probability, unless digests were
    asked for."""
    one, two = read_manifest(phantom_manifest).cases[:2]
    bitmaps = []
    for case in (one, two):
        with io.BytesIO() as out:
            Image.fromarray(read_grey(case.mammography or "")).save(out, "bmp")
            bitmaps.append(out.getvalue())
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmaps[0])
    decoded = images._decoded

    def write_and_decode(stream: BinaryIO, *options: Any) -> GreyImage:
        if stream.name == str(path):  # as one that is copied over it, and has come half-way
            with path.open("r+b") as file:
                file.write(bitmaps[1][: len(bitmaps[1]) // 2])
        return decoded(stream, *options)

    monkeypatch.setattr(images, "_decoded", write_and_decode)
    cases = write_manifest(tmp_path, [("a", path, one.ultrasound)])
    assert run(predictor, cases, tmp_path / "out.csv", columns=columns).failed == 1
    (row,) = read(tmp_path / "out.csv")
    assert row["error"].startswith(f"{path} changed while it was read, expected a file that stays as it is")
    assert row["probability"] == ""


def test_a_frame_is_chosen_of_those_that_have_several(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    case = read_manifest(phantom_manifest).cases[0]
    assert case.mammography is not None
    assert case.ultrasound is not None
    grey = read_grey(case.ultrasound)
    frames = [Image.fromarray(one) for one in (grey[::-1], grey, grey[:, ::-1])]
    frames[0].save(tmp_path / "clip.tif", save_all=True, append_images=frames[1:])
    with load(bundle_folder) as predictor:
        with pytest.raises(ImageError, match="holds 3 frames"):
            predictor.predict_files(case.mammography, tmp_path / "clip.tif")
        chosen = predictor.predict_files(case.mammography, tmp_path / "clip.tif", frame=1)
        np.testing.assert_array_equal(
            chosen.probability, predictor.predict_files(case.mammography, case.ultrasound).probability
        )
        with pytest.raises(ImageError, match="expected `frame` from 0 to 2, got 3"):
            predictor.predict_files(case.mammography, tmp_path / "clip.tif", frame=3)


def test_what_a_cell_can_not_hold_is_written_otherwise(predictor: Predictor, phantom_manifest: Path) -> None:
    """A header of 140,000 letters made an output that Python's reader of CSV refuses, a name that is no UTF-8 none."""
    case = replace(read_manifest(phantom_manifest).cases[0], mammography=Path(os.fsdecode(b"no-\xff.png")))
    said = decode(case, predictor.bundle.preprocessing, None).error
    said.encode()
    assert "no-\\udcff.png" in said
    long = replace(case, mammography=Path("x" * 140_000))
    assert len(decode(long, predictor.bundle.preprocessing, None).error) < 4100


def test_an_image_that_memory_does_not_hold_costs_its_row(
    predictor: Predictor, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = images._decoded

    def full(stream: BinaryIO, *options: Any) -> GreyImage:
        if Path(stream.name).name.endswith("0003.png"):
            raise MemoryError
        return read(stream, *options)

    monkeypatch.setattr(images, "_decoded", full)
    summary = run(predictor, read_manifest(phantom_manifest), tmp_path / "out.csv")
    assert (summary.failed, summary.predicted) == (1, 11)
    assert "does not fit into this machine's memory" in (tmp_path / "out.csv").read_text()
