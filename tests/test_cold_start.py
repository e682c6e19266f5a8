"""The process that starts cold: what it takes, and that its errors arrive as it raised them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt import child, cold_start
from mpmmu_rt.bundle import seal
from mpmmu_rt.cli import app
from mpmmu_rt.errors import AnswerError, DigestMismatch, EngineError, MpmmuError
from mpmmu_rt.spec import Target

FP32 = Target("onnxruntime", "fp32")


@pytest.mark.slow
def test_every_part_takes_time_and_they_add_up(bundle_folder: Path) -> None:
    found = cold_start.measure(bundle_folder, FP32, 3)
    assert tuple(found.parts_ms) == tuple(cold_start.PARTS)
    assert min(found.parts_ms.values()) > 0
    assert found.parts_ms["imports"] > 20  # NumPy alone takes more
    assert 0 <= found.remainder_ms < 0.1 * found.total_ms
    assert found.second_call_ms > 0
    assert found.to_json()["remainder_ms"] == found.total_ms - sum(found.parts_ms.values())


@pytest.mark.slow
def test_the_peak_memory_is_the_childs_own(bundle_folder: Path) -> None:
    """Not that of the process that started it, whose memory it shares until it becomes another program."""
    held = np.ones(600 * 2**20, np.uint8)
    found = cold_start.measure(bundle_folder, FP32, 1).peak_rss_bytes
    assert found is not None
    assert 2**24 < found < len(held)


@pytest.fixture
def broken(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that opens, and whose encoder no engine can load."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "broken.bundle"))
    (folder / "onnx/mammography_onnxruntime.onnx").write_bytes(b"no graph")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    return folder


@pytest.mark.slow
def test_an_error_has_the_childs_own_two_lines(broken: Path) -> None:
    from mpmmu_rt import load

    with pytest.raises(EngineError) as here:
        load(broken)
    with pytest.raises(EngineError) as there:
        cold_start.measure(broken, FP32, 1)
    assert str(there.value) == f"cold start of {broken} on {FP32}: {here.value}"
    assert there.value.hint == here.value.hint
    result = CliRunner().invoke(app, ["bench", str(broken), "--target", str(FP32)])
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["error", "hint"]
    assert "--debug" not in result.stderr


@pytest.mark.slow
def test_a_damaged_bundle_keeps_its_exit_code(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    with (folder / "onnx/weights.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(DigestMismatch, match="another SHA-256") as error:
        cold_start.measure(folder, FP32, 1)
    assert error.value.exit_code == 3


def spoken(code: str) -> MpmmuError:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return child.told("work", done.returncode, done.stderr, "look")


@pytest.mark.slow
def test_what_else_a_child_may_end_with() -> None:
    raised = (
        "from mpmmu_rt import child\nfrom mpmmu_rt.errors import AnswerError\n"
        "def work(): raise AnswerError('a\\nb, expected c', hint='do d', rows=(1,))\n"
    )
    error = spoken(f"{raised}child.telling(work)")
    assert (type(error), str(error), error.hint) == (AnswerError, "work: a\nb, expected c", "do d")
    error = spoken("import sys; sys.exit('{\"mpmmu\": 1}')")
    assert str(error) == 'work: its process ended with status 1 and said: {"mpmmu": 1}'
    assert error.hint == "look"
    error = spoken("import os; os.abort()")
    assert str(error) == "work: its process was ended by SIGABRT, expected a result"
    assert "too little memory" in child.told("work", -signal.SIGKILL, "", "look").hint
    assert "signal 200" in str(child.told("work", -200, "", "look"))
    assert "said: nothing" in str(child.told("work", 4, " \n", "look"))


def test_what_comes_with_the_first_line_is_not_lost() -> None:
    """A parent that had to wait finds both lines at once."""
    _, spent, rest = child.run_timed("work", [sys.executable, "-c", "print('first\\nsecond')"], "look")
    assert rest == "second\n"
    assert spent > 0
    with pytest.raises(EngineError, match="said: why"):
        child.run_timed("work", [sys.executable, "-c", "raise SystemExit('why')"], "look")
    loud = "import sys; print(1, flush=True); sys.stderr.write('x' * 2**20); print(2)"
    assert child.run_timed("work", [sys.executable, "-c", loud], "look")[2] == "2\n"


def test_a_child_that_works_is_heard() -> None:
    assert child.run("work", [sys.executable, "-c", "print(7)"], "look") == "7\n"
    with pytest.raises(EngineError, match="status 5"):
        child.run("work", [sys.executable, "-c", "raise SystemExit(5)"], "look")
