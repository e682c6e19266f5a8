"""`run --ray` on a real cluster of this machine: the rows of `run` to the bit, whatever is killed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.archive.run import KIND
from mpmmu_rt.bundle import seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.files import sha256_of
from mpmmu_rt.folders import check_replaceable
from mpmmu_rt.spec import MODALITIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
MARK = "MPMMU_TEST_OF_RAY"


class Cluster:
    """Runs `mpmmu-rt run`, and finds what Ray started for it."""

    def __init__(self, bundle: Path) -> None:
        self.bundle, self.mark = bundle, uuid.uuid4().hex
        self.more: dict[str, str] = {}

    def start(self, manifest: Path | str, out: Path, *options: str) -> subprocess.Popen[str]:
        named = [] if "--target" in options else ["--target", "onnxruntime:fp32"]
        command = [sys.executable, "-m", "mpmmu_rt", "run", str(self.bundle), str(manifest), "-o", str(out)]
        command += [*named, *options]
        given = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "2"} | self.more
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)

    def run(self, manifest: Path | str, out: Path, *options: str, code: int = 0) -> str:
        process = self.start(manifest, out, *options)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == code, stderr
        return stderr

    def processes(self, name: str) -> list[int]:
        """Those whose command line has `name`."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes()
                if ours and name in (place / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "):
                    found.append(int(place.name))
            except OSError:
                continue
        return found

    def kill(self) -> None:
        for pid in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(bundle_folder: Path) -> Iterator[Cluster]:
    found = Cluster(bundle_folder)
    yield found
    found.kill()


def write_manifest(path: Path, rows: list[tuple[str, object, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case_id", *MODALITIES), *rows])
    return path


@pytest.fixture
def manifest(phantom_manifest: Path, tmp_path: Path) -> Path:
    """The phantoms again and again under new ids, and two cases that can't be read."""
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantom_manifest).cases]
    rows: list[tuple[str, object, object]] = [(f"case-{i}", *pairs[i % len(pairs)]) for i in range(300)]
    rows[3] = ("case-3", tmp_path / "no.png", pairs[3][1])
    rows[-2] = ("case-298", pairs[0][0], "")
    return write_manifest(tmp_path / "m.csv", rows)


def work(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def parts(out: Path) -> int:
    return sum(1 for _ in work(out).glob("*/parts/part-*"))


def until(true: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_are_those_of_run_and_a_folder_of_parquet_holds_them(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    options = ("--batch", "4", "--columns", "base,embedding,files")
    cluster.run(manifest, tmp_path / "alone.csv", *options, code=1)
    said = cluster.run(manifest, tmp_path / "ray.csv", *options, "--ray", code=1)
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert "298 predictions, 2 errors" in said
    entry = json.loads((tmp_path / "ray.csv.json").read_text())
    alone = json.loads((tmp_path / "alone.csv.json").read_text())
    same = ("schema", "bundle", "manifest", "target", "head_target", "threshold", "output_sha256", "cases", "predicted")
    assert {key: entry[key] for key in same} == {key: alone[key] for key in same}
    assert len(entry["processors"]) == 1
    assert not work(tmp_path / "ray.csv").exists()

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with manifest.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = {name: [row[at] for row in rows] for at, name in enumerate(header)}
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet")
    address = f"file://{tmp_path}/m.parquet"  # absolute paths of images: there is nothing that they are beside
    cluster.run(address, tmp_path / "ray.parquet", *options, "--ray", "local", code=1)
    found = parquet.read_table(tmp_path / "ray.parquet").to_pylist()
    entry = json.loads((tmp_path / "ray.parquet.json").read_text())
    assert entry["output_sha256"] == sha256_of(tmp_path / "ray.parquet")
    check_replaceable(tmp_path / "ray.parquet", KIND, overwrite=True)
    assert entry["manifest"] == {"path": address, "sha256": sha256_of(tmp_path / "m.parquet")}
    with (tmp_path / "alone.csv").open(newline="", encoding="utf-8") as file:
        want = list(csv.DictReader(file))
    assert [row["case_id"] for row in found] == [row["case_id"] for row in want]
    for name in ("probability", "base_svm"):
        numbers = [np.float32(row[name]) if row[name] else None for row in want]
        assert [None if row[name] is None else np.float32(row[name]) for row in found] == numbers
    assert [row["embedding_sha256"] or "" for row in found] == [row["embedding_sha256"] for row in want]


def test_what_is_killed_is_made_again_and_nothing_twice(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    """A worker, then the driver, then the node's raylet."""
    out, options = tmp_path / "ray.csv", ("--batch", "1", "--ray", "--ray-workers", "2")
    cluster.run(manifest, tmp_path / "alone.csv", "--batch", "1", code=1)
    process = cluster.start(manifest, out, *options)
    until(lambda: parts(out) >= 2, process)
    worker, *_ = cluster.processes("MapWorker")
    os.kill(worker, signal.SIGKILL)
    until(lambda: parts(out) >= 8, process)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in work(out).glob("*/parts/part-*")}
    assert 8 <= len(kept) < 38
    assert "holds the parts of an unfinished run" in cluster.run(manifest, out, *options, code=1)

    process = cluster.start(manifest, out, *options, "--resume")
    until(lambda: parts(out) >= len(kept) + 3, process)
    for raylet in cluster.processes("raylet/raylet"):
        os.kill(raylet, signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    process.communicate()
    stayed = {path: path.stat().st_mtime_ns for path in work(out).glob("*/parts/part-*")}
    assert kept.items() <= stayed.items(), "what was there was made again"
    assert not out.exists()

    said = cluster.run(manifest, out, *options, "--resume", code=1)
    assert re.search(r"\((\d+) rows there already\)", said)
    assert out.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert not work(out).exists()


def test_retrying_that_was_killed_goes_on(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "ray.csv", ("--batch", "1", "--ray", "--ray-workers", "1")
    cluster.run(manifest, out, *options, code=1)
    before, lines = out.read_bytes(), manifest.read_text().splitlines()
    entry = json.loads(out.with_name("ray.csv.json").read_text())
    # Every row of three shards of eight fails, so that there is something to do: as a run that met with an outage.
    failed = before.decode().splitlines()
    for at in range(1, 25):
        failed[at] = f"{lines[at].split(',')[0]},,,gone,"
    out.write_text("\n".join(failed) + "\n")
    entry["output_sha256"] = hashlib.sha256(out.read_bytes()).hexdigest()
    out.with_name("ray.csv.json").write_text(json.dumps(entry))
    process = cluster.start(manifest, out, *options, "--retry-failed")
    until(lambda: parts(out) >= 35, process)  # of 38: 34 are taken over
    process.kill()
    process.communicate()
    cluster.kill()
    kept = sum(
        len(path.read_text().splitlines()) for kind in ("parts", "kept") for path in work(out).glob(f"*/{kind}/*")
    )
    assert 34 * 8 + 3 < kept < 300
    said = cluster.run(manifest, out, *options, "--resume", code=1)
    assert f"({kept} rows there already)" in said
    assert out.read_bytes() == before


POISON = """
import ctypes
def decode_jpeg(*given, **options):
    ctypes.string_at(0)
decode_jpeg_header = decode_jpeg
"""


def test_an_image_that_crashes_its_decoder_costs_its_row(
    cluster: Cluster, phantom_manifest: Path, tmp_path: Path
) -> None:
    """A module in the place of the JPEG decoder's, whose every call is a native crash: JPEG files are poison."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison/simplejpeg.py").write_text(POISON)
    cluster.more = {"PYTHONPATH": str(tmp_path / "poison")}
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "x.jpg")
    pairs = [(case.mammography, case.ultrasound) for case in read_manifest(phantom_manifest).cases]
    rows: list[tuple[str, object, object]] = [(f"case-{i}", *pairs[i % len(pairs)]) for i in range(40)]
    clean = write_manifest(tmp_path / "clean.csv", rows)
    for at in (5, 17):
        rows[at] = (f"case-{at}", tmp_path / "x.jpg", rows[at][2])
    bad = write_manifest(tmp_path / "bad.csv", rows)
    cluster.run(bad, tmp_path / "alone.csv", code=-signal.SIGSEGV)  # without --ray nothing contains it
    cluster.run(clean, tmp_path / "clean-rows.csv", "--batch", "1")
    said = cluster.run(bad, tmp_path / "ray.csv", "--batch", "1", "--ray", code=1)
    assert "38 predictions, 2 errors" in said
    found, want = ((tmp_path / name).read_text().splitlines() for name in ("ray.csv", "clean-rows.csv"))
    for at, (one, other) in enumerate(zip(found, want, strict=True), -1):
        if at in (5, 17):
            assert "its decoder crashed" in one
        else:
            assert one == other


def test_two_jobs_on_one_output_are_refused_and_one_of_another_kind(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ray.csv"
    process = cluster.start(manifest, out, "--batch", "1", "--ray")
    until(lambda: parts(out) >= 1, process)
    process.send_signal(signal.SIGSTOP)  # else it may be over before it is asked for
    for options in (("--ray", "--resume"), ("--resume",), ("--ray", "--overwrite")):
        assert f"is being written by process {process.pid}" in cluster.run(manifest, out, *options, code=1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    error, hint = stderr.splitlines()[-2:]
    assert re.search(r"error: terminated; \d+ parts? kept in .*ray\.csv\.partial", error)
    assert hint.startswith("hint: to go on: mpmmu-rt run ")
    assert "--resume" in hint
    assert "belongs to another run (other batch)" in cluster.run(manifest, out, "--ray", "--resume", code=1)
    assert "unfinished run with --ray" in cluster.run(manifest, out, "--resume", code=1)


def test_a_worker_on_which_the_golden_answers_are_others_ends_the_job(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cluster.bundle, tmp_path / "b"))
    with np.load(folder / "golden/golden.npz") as stored:
        golden = dict(stored)
    golden["probability"] = golden["probability"][::-1]
    with (folder / "golden/golden.npz").open("wb") as file:
        np.savez(file, **golden)
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    cluster.bundle = folder
    with tempfile.TemporaryDirectory(prefix="ray-") as place:  # its sockets' names must be short
        cluster.more["RAY_TMPDIR"] = place
        stderr = cluster.run(manifest, tmp_path / "ray.csv", "--batch", "1", "--ray", code=3)  # much is left to do
        sessions = [path for path in Path(place).rglob("session_*") if not path.is_symlink() and path.is_dir()]
    assert len(sessions) == 1, "what was begun was stopped while Ray was there, and none was started to stop it in"
    error, hint = stderr.splitlines()[-2:]
    assert error.startswith("error: onnxruntime:fp32 does not compute the bundle here: golden ")
    assert hint.startswith("hint: `mpmmu-rt verify ")
    assert not (tmp_path / "ray.csv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "-", "--ray"), "-o - is given with --ray"),
        (("--ray-workers", "2"), "is given without --ray"),
        (("--ray", "127.0.0.1:1"), "Ray can't be reached at 127.0.0.1:1"),
    ],
)
def test_what_can_not_be_is_said_in_two_lines(
    cluster: Cluster, manifest: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    process = cluster.start(manifest, tmp_path / "x.csv", *options)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (1, 2)
    error, hint = stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert not work(tmp_path / "x.csv").exists(), "nothing was made that it would have to be resumed for"
