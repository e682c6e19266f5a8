"""The process that starts cold: what it takes, and that its errors arrive as it raised them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mpmmu_rt
from mpmmu_rt import child, cold_start, compare, counts
from mpmmu_rt.bundle import seal
from mpmmu_rt.cli import app
from mpmmu_rt.errors import AnswerError, DigestMismatch, EngineError, MpmmuError
from mpmmu_rt.spec import Target

FP32 = Target("onnxruntime", "fp32")
STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
LIMIT_S = 60.0


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


def said(value: object) -> str:
    """What a child does to answer."""
    return f"from mpmmu_rt import child; child.answer({value!r})"


def test_what_comes_with_the_first_line_is_not_lost() -> None:
    """A parent that had to wait finds both lines at once."""
    both = f"print('{child.FIRST}', flush=True); {said(2)}"
    _, spent, found = child.run_timed("work", child.python("-c", both), "look", LIMIT_S)
    assert (found, spent > 0) == (2, True)
    with pytest.raises(EngineError, match="said: why"):
        child.run_timed("work", child.python("-c", "raise SystemExit('why')"), "look", LIMIT_S)
    loud = f"import sys; print('{child.FIRST}', flush=True); sys.stderr.write('x' * 2**20); {said(2)}"
    assert child.run_timed("work", child.python("-c", loud), "look", LIMIT_S)[2] == 2


def test_a_child_that_works_is_heard() -> None:
    assert child.run("work", child.python("-c", said([7])), "look", LIMIT_S) == [7]
    with pytest.raises(EngineError, match="status 5"):
        child.run("work", child.python("-c", "raise SystemExit(5)"), "look", LIMIT_S)


def test_what_else_is_printed_is_no_answer() -> None:
    """By libraries, or by what a site runs in every Python; not even what is no text."""
    noise = "import os; print('[1, 2]'); print('{}'); os.write(1, b'\\xff\\n'); os.write(2, b'\\xff\\n'); "
    assert child.run("work", child.python("-c", f"{noise}{said(None)}; print('bye')"), "look", LIMIT_S) is None
    first = f"print('hello', flush=True); import time; time.sleep(0.3); print('{child.FIRST}', flush=True); "
    _, spent, found = child.run_timed("work", child.python("-c", f"{noise}{first}{said(3)}"), "look", LIMIT_S)
    assert (found, spent > 0.3e9) == (3, True)
    for silent in (noise, "", f"print('{child.FIRST}')"):
        for ask in (child.run, child.run_timed):
            with pytest.raises(EngineError, match=r"its process ended and said .+, expected a result") as caught:
                ask("work", child.python("-c", silent), "look", LIMIT_S)
            assert caught.value.hint == "look"


def test_an_error_is_heard_before_what_libraries_say_after_it() -> None:
    late = "import atexit, sys; atexit.register(lambda: print('leaked 3 objects', file=sys.stderr))\n"
    raised = "from mpmmu_rt import child\nfrom mpmmu_rt.errors import DigestMismatch\n"
    with pytest.raises(DigestMismatch, match="work: a, expected b"):
        child.run(
            "work",
            child.python(
                "-c",
                f"{late}{raised}def work(): raise DigestMismatch('a, expected b', hint='c')\nchild.telling(work)",
            ),
            "look",
            LIMIT_S,
        )


def test_a_child_is_this_package_whatever_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mpmmu_rt").mkdir()
    for name in ("mpmmu_rt/__init__.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    where = "import random, mpmmu_rt; from mpmmu_rt import child; child.answer(mpmmu_rt.__file__)"
    for folder in (tmp_path, Path(child.__file__).parents[1]):
        monkeypatch.chdir(folder)
        assert child.run("work", child.python("-c", where), "look", LIMIT_S) == mpmmu_rt.__file__
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "-P" in child.python("-c", where)


def ended(pid: int) -> bool:
    """Whether a process that somebody else will wait for is done within some seconds."""
    for _ in range(200):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.05)
    return False


HANGS = {
    "at once": "",
    "after its first line": f"print('{child.FIRST}', flush=True); ",
    "with nothing more to say": "import os; os.close(1); os.close(2); ",
}


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are those of POSIX")
@pytest.mark.parametrize("how", HANGS)
@pytest.mark.parametrize("ask", [child.run, child.run_timed])
def test_a_child_that_hangs_is_ended_with_all_that_it_started(
    ask: Callable[..., object], how: str, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    other = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    code = (
        f"import os, pathlib, subprocess, sys, time; other = {other}; "
        f"pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{other.pid}}'); {HANGS[how]}time.sleep(600)"
    )
    with pytest.raises(EngineError) as caught:
        ask("work", child.python("-c", code), "look", 3)
    assert str(caught.value) == "work: its process gave no result within 3 s and was ended, expected one"
    assert caught.value.hint == "look; where a driver hangs, so will that"
    assert all(ended(int(pid)) for pid in pids.read_text().split())


INTERRUPTED = """
import signal, sys
from mpmmu_rt import child
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts with `&` ignores it
code = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()}.'); time.sleep(600)"
child.run("work", child.python("-c", code, sys.argv[1]), "look", 600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are those of POSIX")
def test_a_child_ends_with_the_parent_that_is_interrupted(tmp_path: Path) -> None:
    """It is in a group of its own, where Ctrl-C does not reach it. The parent is not the process of these tests."""
    pid = tmp_path / "pid"
    with subprocess.Popen(child.python("-c", INTERRUPTED, str(pid)), stderr=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + LIMIT_S
        while not (pid.exists() and pid.read_text().endswith(".")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(signal.SIGINT)
        stderr = parent.communicate(timeout=LIMIT_S)[1]
    assert stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert ended(int(pid.read_text().rstrip(".")))


def test_what_a_child_may_take_grows_with_what_is_asked() -> None:
    assert child.limit_s(1) >= 600
    assert child.limit_s(128, 1) - child.limit_s(32, 1) >= 96
    assert child.limit_s(1, 60) - child.limit_s(1) >= 600


@pytest.mark.parametrize("what", ["a turn", "the counts", "cold start"])
def test_every_child_of_ours_has_a_limit(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(600)")  # a driver that hangs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(child, "_START_S", 1.0)
    side = compare.Side(STORED, FP32)
    asks: dict[str, Callable[[], object]] = {
        "a turn": lambda: compare.take_turn(side, 0, 0.0),
        "the counts": lambda: counts.count(STORED, FP32, 0),
        "cold start": lambda: cold_start.measure(STORED, FP32, 0),
    }
    with pytest.raises(EngineError, match=rf"^{what} of .+ on onnxruntime:fp32: its process gave no result within"):
        asks[what]()
