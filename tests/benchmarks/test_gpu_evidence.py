"""`make gpu-evidence`: both stages run whatever becomes of the other, in time, and nothing is lost."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence, gpu_evidence
from benchmarks.evidence import ROOT, Deadline
from mpmmu_rt.engines.shared.gpu import gpu

REPORT: dict[str, Any] = {"gpu": "g", "date": "d", "commit": "c", "versions": {"cupy": "14"}}


def given(**options: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"bundle": Path("model.bundle"), "targets": [], "expected": None} | options))


def run_with(
    folder: Path, statuses: dict[str, int | None], seconds: float = 570, **options: Any
) -> tuple[bool, dict[str, Any], list[tuple[str, float, float]]]:
    """Run all with stages that end with those statuses: what it returned, its summary, and what was run."""
    ran: list[tuple[str, float, float]] = []

    def run(command: list[str], limit: float, log: Path) -> tuple[int | None, float]:
        module = command[2].removeprefix("benchmarks.")
        ran.append((module, limit, float(command[command.index("--seconds") + 1])))
        log.write_text(f"{module} says\nits last word\n")
        return statuses[module], 1.0

    asked = gpu_evidence.stages(given(**options), folder, "c")
    passed = gpu_evidence.run_all(asked, folder, dict(REPORT), Deadline.after(seconds), run)
    return passed, json.loads((folder / "evidence.json").read_text()), ran


@pytest.mark.parametrize(
    ("whole", "kernel"), [(0, 0), (1, 0), (0, 1), (1, 1), (-11, 0), (None, 0)], ids=lambda status: str(status)
)
def test_both_run_and_both_results_count(tmp_path: Path, whole: int | None, kernel: int) -> None:
    passed, summary, ran = run_with(tmp_path, {"device_path": whole, "attention_pool": kernel})
    assert [name for name, _, _ in ran] == ["device_path", "attention_pool"]
    assert passed == (whole == kernel == 0)
    for name, status in (("device_path", whole), ("attention_pool", kernel)):
        assert summary["stages"][name].get("failed", False) == (status != 0)
        assert (tmp_path / f"{name}.log").exists() == (status != 0)
    text = (tmp_path / "evidence.md").read_text()
    assert ("its last word" in text) == (not passed)


def test_time_is_shared_out(tmp_path: Path) -> None:
    _, _, ran = run_with(tmp_path, {"device_path": 0, "attention_pool": 0})
    (_, whole, told), (_, kernel, kernel_told) = ran
    assert whole + gpu_evidence.KERNEL_SECONDS < 570
    assert kernel < 570
    assert 300 < told < whole
    assert kernel_told < kernel


def test_what_no_longer_fits_is_recorded(tmp_path: Path) -> None:
    passed, summary, ran = run_with(tmp_path, {"attention_pool": 0}, seconds=100)
    assert [name for name, _, _ in ran] == ["attention_pool"]
    assert not passed
    assert summary["stages"]["device_path"]["result"] == "not run: out of time"


def test_without_a_bundle_the_kernel_alone(tmp_path: Path) -> None:
    passed, summary, ran = run_with(tmp_path, {"attention_pool": 0}, bundle=None)
    assert [name for name, _, _ in ran] == ["attention_pool"]
    assert passed
    assert summary["stages"]["device_path"]["result"] == gpu_evidence.NO_BUNDLE


def test_options_reach_the_whole_path(tmp_path: Path) -> None:
    asked = gpu_evidence.stages(given(expected=Path("e.npz"), targets=["tensorrt:fp16"]), tmp_path, "abc")
    whole = asked["device_path"]
    assert whole is not None
    assert whole[-4:] == ["--expected", str(Path("e.npz").resolve()), "--targets", "tensorrt:fp16"]
    assert whole[whole.index("--commit") + 1] == "abc"


@pytest.mark.parametrize("bundle", ["", "no.bundle"])
def test_without_a_gpu_it_ends_at_once_and_writes_nothing(bundle: str) -> None:
    """The very recipe of the Makefile."""
    if gpu() is not None:
        pytest.skip("there is a GPU")
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    before = sorted((ROOT / "benchmarks/results").iterdir())
    command = ["make", "--silent", "gpu-evidence", f"PYTHON={sys.executable}", f"BUNDLE={bundle}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert [line.partition(":")[0] for line in said] == ["error", "hint"]
    assert sorted((ROOT / "benchmarks/results").iterdir()) == before


# ---------------------------------------------------------------- what the stages share


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("stage", [False, True], ids=["its children", "a stage and its processes"])
def test_what_hangs_is_ended_with_all_it_began(tmp_path: Path, stage: bool) -> None:
    """A process of a stage has a group of its own: the stage ends it when it is told to end."""
    note, log = tmp_path / "pids", tmp_path / "log"
    inner = [
        sys.executable,
        "-c",
        f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(100)",
    ]
    if stage:
        begin = f"evidence.run_child({inner!r}, 100, pathlib.Path({str(tmp_path / 'inner')!r}))"
    else:
        begin = f"subprocess.run({inner!r})"
    outer = (
        "import pathlib, subprocess\n"
        "from benchmarks import evidence\n"
        "evidence.end_on_sigterm()\n"
        "print('begun', flush=True)\n"
        f"{begin}\n"
    )
    watched: list[bool] = []
    status, spent = evidence.run_child(
        [sys.executable, "-c", outer], 4, log, watch=lambda: watched.append(note.exists())
    )
    assert (status, spent < 15) == (None, True)
    assert watched[-1]
    assert evidence.tail(log).startswith("begun")
    pid = int(note.read_text())
    for _ in range(50):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def test_a_crash_is_a_status(tmp_path: Path) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert evidence.run_child([sys.executable, "-c", code], 20, tmp_path / "log")[0] == -signal.SIGKILL


def test_results_are_whole_or_the_earlier_ones(tmp_path: Path) -> None:
    evidence.save(tmp_path / "new", "x", {"a": 1}, "one")
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="reference"):
        evidence.save(tmp_path / "new", "x", loop, "two")
    assert json.loads((tmp_path / "new/x.json").read_text()) == {"a": 1}
    assert (tmp_path / "new/x.md").read_text() == "one"
    assert len(os.listdir(tmp_path / "new")) == 2


def test_a_commit_without_git_or_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    assert evidence.commit_of_tree() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert evidence.commit_of_tree() == "unknown"


def test_versions_are_told_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    found = evidence.versions()
    assert found["CUDA of the driver"].startswith("not known: ")
    assert found["numpy"]


def test_a_cell_is_one_line() -> None:
    assert evidence.table("a | b", [("x|y\nz", 1)]) == "| a | b |\n|---|---|\n| x\\|y z | 1 |\n"
