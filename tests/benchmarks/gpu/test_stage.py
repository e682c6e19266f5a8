"""What the stages of the GPU evidence share: what hangs or crashes, and versions."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import stage


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True], ids=["its children", "a stage and its processes"])
def test_what_hangs_is_ended_with_all_it_began(tmp_path: Path, nested: bool) -> None:
    """A process of a stage has a group of its own: the stage ends it when it is told to end."""
    note, log = tmp_path / "pids", tmp_path / "log"
    inner = [
        sys.executable,
        "-c",
        f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(100)",
    ]
    if nested:
        begin = f"stage.run_child({inner!r}, 100, pathlib.Path({str(tmp_path / 'inner')!r}))"
    else:
        begin = f"subprocess.run({inner!r})"
    outer = (
        "import pathlib, subprocess\n"
        "from benchmarks.gpu import stage\n"
        "stage.end_on_sigterm()\n"
        "print('begun', flush=True)\n"
        f"{begin}\n"
    )
    watched: list[bool] = []
    status, spent = stage.run_child([sys.executable, "-c", outer], 4, log, watch=lambda: watched.append(note.exists()))
    assert (status, spent < 15) == (None, True)
    assert watched[-1]
    assert stage.tail(log).startswith("begun")
    pid = int(note.read_text())
    for _ in range(50):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def test_a_crash_is_a_status(tmp_path: Path) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert stage.run_child([sys.executable, "-c", code], 20, tmp_path / "log")[0] == -signal.SIGKILL


def test_versions_are_told_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    found = stage.versions()
    assert found["CUDA of the driver"].startswith("not known: ")
    assert found["numpy"]


def test_the_end_of_a_page_says_what_is_wrong_or_nothing() -> None:
    assert stage.ending([], {"numpy": "2"})[:3] == ["## What is wrong or missing", "", "- nothing"]
    text = "\n".join(stage.ending(["a", "b"], {"numpy": "2"}))
    assert "- a\n- b\n" in text
    assert "nothing" not in text
    assert text.endswith("- numpy: 2\n")
