"""`run --ray` with its workers in this process: what comes back of them, and who made what there is."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import load, origin, run_record
from mpmmu_rt.archive.cluster import Cluster
from mpmmu_rt.archive.plan import Shard
from mpmmu_rt.archive.run import run
from mpmmu_rt.archive.worker import Job, Worker
from mpmmu_rt.bundle import UNTRAINED, Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.errors import OutputError, ParityError
from mpmmu_rt.files import sha256_of
from mpmmu_rt.journal import place_of
from mpmmu_rt.machine import THREADS_VARIABLE
from mpmmu_rt.places import claimed
from mpmmu_rt.run import Allowed, Asked
from mpmmu_rt.run import run as run_here
from mpmmu_rt.run_record import Made
from mpmmu_rt.spec import MODALITIES, Target
from mpmmu_rt.verified import Verdict
from tests.changed import dependent

FP32 = Target("onnxruntime", "fp32")
PASSED, UNKNOWN = Verdict(True, "", "2026-01-01", 3), Verdict(None, "there is no b.verified.json")


@dataclass(frozen=True)
class Here(Cluster):
    """One worker, which Ray would have in a process of its own. most: shards after which it is killed."""

    most: int = 10**9

    @contextlib.contextmanager
    def joined(self) -> Iterator[Any]:
        yield None

    def work(self, ray: Any, job: Job, shards: Sequence[Shard]) -> Generator[Mapping[str, Any], None, None]:
        worker = Worker(job)
        for at, shard in enumerate(shards):
            if at == self.most:
                raise KeyboardInterrupt
            made = worker(asdict(shard))
            assert made["error"] == ""
            yield made


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "1")  # which a worker sets


@pytest.fixture
def manifest(phantom_manifest: Path, tmp_path: Path) -> Path:
    """24 cases, of which one can't be read: three shards of batches of one."""
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantom_manifest).cases]
    rows: list[tuple[str, object, object]] = [(f"case-{i}", *pairs[i % len(pairs)]) for i in range(24)]
    rows[3] = ("case-3", tmp_path / "no.png", rows[3][2])
    path = tmp_path / "m.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case_id", *MODALITIES), *rows])
    return path


def call(asked: Asked, manifest: Path, out: Path, by: origin.Entry, *, most: int = 10**9, **allowed: bool) -> Made:
    """As the command does."""
    with claimed(out):
        made = run(asked, manifest, out, Here(most=most), allowed=Allowed(**allowed), by=by)
        run_record.keep(out, run_record.record(made, out, by))
    return made


def told(made: Made) -> list[tuple[int, int, str]]:
    return [(one["rows"], one["failed"], one["started"]) for one in made.summary.earlier]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_that_are_taken_over_keep_who_made_them(
    bundle_folder: Path, manifest: Path, tmp_path: Path, form: str
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"p.{form}"
    asked = Asked(Bundle.open(bundle_folder), FP32, batch=1)
    first, second, third = (
        origin.made_by(name, UNKNOWN if name == "first" else PASSED) for name in ("first", "second", "third")
    )
    with pytest.raises(KeyboardInterrupt):
        call(asked, manifest, out, first, most=1)
    with pytest.raises(
        ParityError, match=r"8 rows of .* is not known to have been verified \(there is no b\."
    ) as caught:
        call(asked, manifest, out, second, resume=True, require_verified=True)
    assert caught.value.exit_code == 3
    assert "--overwrite" in caught.value.hint
    with pytest.raises(KeyboardInterrupt):
        call(asked, manifest, out, second, most=1, resume=True)
    made = call(asked, manifest, out, third, resume=True)
    assert told(made) == [(8, 1, "first"), (8, 0, "second")]
    assert made.summary.resumed == 16
    entry = run_record.read_record(out)
    assert [(one["machine"], one["verified"]) for one in entry["earlier"]] == [
        (one["machine"], one["verified"]) for one in (first, second)
    ]
    # Of the finished output, too: the row with an error was the first one's.
    fourth = origin.made_by("fourth", PASSED)
    before = sha256_of(out)
    with pytest.raises(ParityError, match="7 rows of "):
        call(asked, manifest, out, fourth, retry_failed=True, require_verified=True)
    assert sha256_of(out) == before
    assert not place_of(out).exists()
    made = call(asked, manifest, out, fourth, retry_failed=True)
    assert told(made) == [(7, 0, "first"), (8, 0, "second"), (8, 0, "third")]
    assert told(call(asked, manifest, out, fourth, overwrite=True, require_verified=True)) == []


def test_of_parts_of_an_earlier_version_nothing_is_known(bundle_folder: Path, manifest: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "p.csv", Asked(Bundle.open(bundle_folder), FP32, batch=1)
    by = origin.made_by("x", PASSED)
    with pytest.raises(KeyboardInterrupt):
        call(asked, manifest, out, by, most=2)
    (header,) = place_of(out).glob("*/header.json")
    old = json.loads(header.read_text())
    header.write_text(json.dumps({key: value for key, value in old.items() if key not in origin.KEYS}))
    with pytest.raises(ParityError, match=r"16 rows of .* \(it did not say\)"):
        call(asked, manifest, out, by, resume=True, require_verified=True)
    (earlier,) = call(asked, manifest, out, by, resume=True).summary.earlier
    assert earlier == {"rows": 16, "failed": 1, "started": None, "machine": None, "verified": None}


def test_remarks_of_the_workers_come_back_each_once(manifest: Path, tmp_path: Path) -> None:
    """OpenVINO's, of a graph whose answer depends on the other cases of a request: such are not put together."""
    folder = dependent(tmp_path / "b.bundle")
    target = Target("openvino", "fp32")
    with np.load(folder / "golden/golden.npz") as stored:
        golden = dict(stored)
    with load(folder, str(target)) as predictor:
        said = [predictor.predict({m: golden[f"{m}.pixels"][[row]] for m in MODALITIES}) for row in range(4)]
    golden["probability"] = np.concatenate([one.probability for one in said]).astype(np.float64)
    golden["embedding"] = np.concatenate([one.embedding for one in said])
    np.savez(folder / "golden/golden.npz", **golden)
    seal(folder, json.loads((folder / "bundle.json").read_text()) | {"trained": False})
    made = call(Asked(Bundle.open(folder), target, batch=24), manifest, tmp_path / "p.csv", origin.made_by())
    assert made.remarks[0] == UNTRAINED
    (remark,) = made.remarks[1:]
    assert "each is a request of its own" in remark
    entry = run_record.read_record(tmp_path / "p.csv")
    assert entry["remarks"] == list(made.remarks)
    assert entry["earlier"] == []


def test_the_manifest_is_in_no_place_that_is_written(bundle_folder: Path, manifest: Path, tmp_path: Path) -> None:
    asked = Asked(Bundle.open(bundle_folder), FP32)
    for name in ("p.csv", "p.csv.partial", "p.csv.json", "p.csv.partial/manifest.csv"):
        given = tmp_path / name
        given.parent.mkdir(exist_ok=True)
        given.write_bytes(manifest.read_bytes())
        with pytest.raises(OutputError, match="the manifest") as caught:
            call(asked, given, tmp_path / "p.csv", origin.made_by(), overwrite=True)
        assert "choose another -o" in caught.value.hint
        assert given.read_bytes() == manifest.read_bytes()
        given.unlink()
    (tmp_path / "p.parquet").mkdir()
    given = Path(shutil.copy(manifest, tmp_path / "p.parquet/m.csv"))
    with pytest.raises(OutputError, match=r"p\.parquet is a folder that holds the manifest, expected another file"):
        call(asked, given, tmp_path / "p.parquet", origin.made_by(), overwrite=True)


def test_a_link_is_refused_where_the_caller_did_not_follow_it(
    bundle_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept.csv").write_text("kept")
    (tmp_path / "p.csv").symlink_to("kept.csv")
    with pytest.raises(OutputError, match="is a link, expected a free path or a file"):
        call(Asked(Bundle.open(bundle_folder), FP32), manifest, tmp_path / "p.csv", origin.made_by(), overwrite=True)
    assert (tmp_path / "kept.csv").read_text() == "kept"
    assert (tmp_path / "p.csv").is_symlink()


def test_a_manifest_whose_lines_end_by_cr_alone(bundle_folder: Path, manifest: Path, tmp_path: Path) -> None:
    asked = Asked(Bundle.open(bundle_folder), FP32, batch=1)
    call(asked, manifest, tmp_path / "want.csv", origin.made_by())
    other = manifest.with_name("cr.csv")
    other.write_bytes(manifest.read_bytes().replace(b"\r\n", b"\r"))
    call(asked, other, tmp_path / "p.csv", origin.made_by())
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "want.csv").read_bytes()


@pytest.fixture
def own_images(phantom_manifest: Path, tmp_path: Path) -> Path:
    """24 cases with images of their own: three shards of batches of one."""
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantom_manifest).cases]
    lines = ["case_id,mammography,ultrasound"]
    for row in range(24):
        for modality, image in zip(MODALITIES, pairs[row % len(pairs)], strict=True):
            assert image is not None
            shutil.copy2(image, tmp_path / f"{row}.{modality}.png")
        lines.append(f"case-{row},{row}.mammography.png,{row}.ultrasound.png")
    path = tmp_path / "own.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_of_images_that_were_exchanged_are_made_again(
    bundle_folder: Path, own_images: Path, tmp_path: Path, form: str
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out, whole = tmp_path / f"p.{form}", tmp_path / f"whole.{form}"
    asked = Asked(Bundle.open(bundle_folder), FP32, batch=1)
    by = origin.made_by()
    call(asked, own_images, whole, by)
    before = sha256_of(whole)
    with pytest.raises(KeyboardInterrupt):
        call(asked, own_images, out, by, most=2)
    shutil.copy(tmp_path / "3.mammography.png", tmp_path / "9.mammography.png")
    by = origin.made_by()
    made = call(asked, own_images, out, by, resume=True)
    assert (made.summary.outdated, made.summary.resumed, made.summary.predicted) == (8, 8, 16)
    assert [one["rows"] for one in made.summary.earlier] == [8]
    call(asked, own_images, whole, by, overwrite=True)
    assert before != sha256_of(whole) == sha256_of(out)
    # Of a finished output, too.
    shutil.copy(tmp_path / "3.mammography.png", tmp_path / "20.mammography.png")
    os.utime(tmp_path / "20.mammography.png", (2**31, 2**31))  # later than the second in which the run began
    made = call(asked, own_images, out, by, retry_failed=True)
    assert (made.summary.outdated, made.summary.resumed, made.summary.predicted) == (1, 23, 1)
    call(asked, own_images, whole, by, overwrite=True)
    assert sha256_of(whole) == sha256_of(out)


@pytest.mark.parametrize("how", ["resume", "retry_failed"])
def test_an_image_that_was_repaired_is_none_that_was_exchanged(
    bundle_folder: Path, manifest: Path, tmp_path: Path, how: str
) -> None:
    out, asked = tmp_path / "p.csv", Asked(Bundle.open(bundle_folder), FP32, batch=1)
    with pytest.raises(KeyboardInterrupt):
        call(asked, manifest, out, origin.made_by("first", PASSED), most=2)
    first = read_manifest(manifest).cases[0].mammography
    assert first is not None
    shutil.copy(first, tmp_path / "no.png")
    made = call(asked, manifest, out, origin.made_by("second", PASSED), **{how: True})
    assert made.summary.outdated == 0
    assert told(made) == [(16, 1, "first") if how == "resume" else (15, 0, "first")]
    assert made.summary.failed == (how == "resume")


def test_other_threads_are_another_run(bundle_folder: Path, own_images: Path, tmp_path: Path) -> None:
    """--ray-cpus changes the last digits, and the page said that other options are refused."""
    out, asked = tmp_path / "p.csv", Asked(Bundle.open(bundle_folder), FP32, batch=1)
    with pytest.raises(KeyboardInterrupt):
        call(asked, own_images, out, origin.made_by(), most=1)
    with claimed(out), pytest.raises(OutputError, match=r"other threads\), expected this run's") as caught:
        run(asked, own_images, out, Here(cpus=2), allowed=Allowed(resume=True))
    assert caught.value.hint.startswith("--ray-cpus 1 goes on with it; ")
    call(asked, own_images, out, origin.made_by(), resume=True)


def test_the_same_manifest_in_another_folder_is_another_run(
    bundle_folder: Path, own_images: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "p.csv", Asked(Bundle.open(bundle_folder), FP32, batch=1)
    with pytest.raises(KeyboardInterrupt):
        call(asked, own_images, out, origin.made_by(), most=1)
    (tmp_path / "there").mkdir()
    there = Path(shutil.copy(own_images, tmp_path / "there/own.csv"))
    with pytest.raises(OutputError, match=r"other folder\), expected this run's") as caught:
        call(asked, there, out, origin.made_by(), resume=True)
    assert caught.value.hint.startswith(f"its images are those of {tmp_path}: ")
    call(asked, own_images, out, origin.made_by(), resume=True)
    with load(bundle_folder) as predictor, pytest.raises(OutputError, match=r"other folder\), expected this run's"):
        run_here(predictor, read_manifest(there), out, retry_failed=True)  # without --ray as well
