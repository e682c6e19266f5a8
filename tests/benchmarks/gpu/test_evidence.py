"""`make gpu-evidence`: both parts run whatever becomes of the other, in time, and nothing is lost."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import evidence
from benchmarks.gpu.stage import Deadline
from benchmarks.report import ROOT
from mpmmu_rt.engines.shared.gpu import gpu

MODULES = {"benchmarks.gpu.device_path": "device_path", "benchmarks.gpu.kernel": "attention_pool"}
REPORT: dict[str, Any] = {"gpu": "g", "command": "python -m x", "date": "d", "commit": "c", "versions": {"cupy": "14"}}


def test_the_modules_exist() -> None:
    for name in MODULES:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()


def given(**options: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"bundle": Path("model.bundle"), "targets": [], "expected": None} | options))


def run_with(
    folder: Path, statuses: dict[str, int | None], seconds: float = 570, **options: Any
) -> tuple[bool, dict[str, Any], list[tuple[str, float, float]]]:
    """Run all with stages that end with those statuses: what it returned, its summary, and what was run."""
    ran: list[tuple[str, float, float]] = []

    def run(command: list[str], limit: float, log: Path) -> tuple[int | None, float]:
        assert command[1] == "-m"
        name = MODULES[command[2]]
        ran.append((name, limit, float(command[command.index("--seconds") + 1])))
        log.write_text(f"{name} says\nits last word\n")
        return statuses[name], 1.0

    asked = evidence.parts(given(**options), folder, "c")
    passed = evidence.run_all(asked, folder, dict(REPORT), Deadline.after(seconds), run)
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
    assert "Made by `python -m x`." in text


def test_time_is_shared_out(tmp_path: Path) -> None:
    _, _, ran = run_with(tmp_path, {"device_path": 0, "attention_pool": 0})
    (_, whole, told), (_, kernel, kernel_told) = ran
    assert 300 < told < whole < 400
    assert whole + told < kernel_told + 570  # the whole path took a second: the kernel has the rest
    assert 500 < kernel_told < kernel < 570


def test_what_no_longer_fits_is_recorded(tmp_path: Path) -> None:
    passed, summary, ran = run_with(tmp_path, {"attention_pool": 0}, seconds=30)
    assert [name for name, _, _ in ran] == ["attention_pool"]
    assert not passed
    assert summary["stages"]["device_path"]["result"] == "not run: out of time"


def test_without_a_bundle_the_kernel_alone(tmp_path: Path) -> None:
    passed, summary, ran = run_with(tmp_path, {"attention_pool": 0}, bundle=None)
    assert [name for name, _, _ in ran] == ["attention_pool"]
    assert passed
    assert summary["stages"]["device_path"]["result"] == f"not run: {evidence.NO_BUNDLE}"


def test_options_reach_the_whole_path(tmp_path: Path) -> None:
    whole = evidence.parts(given(expected=Path("e.npz"), targets=["tensorrt:fp16"]), tmp_path, "abc")[0].command
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
