"""A worker of these tests that is killed, or hangs, ends them with the name of the test: CI waited 90 minutes once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = 6  # more than two workers hold at a time
FILE = """
import os, signal, time
import pytest

@pytest.mark.parametrize("number", range(5))
def test_it(number):
    time.sleep(0.05)
    if {bad} and number == 3:
        {what}
"""


def ended(folder: Path, what: str, *options: str) -> str:
    """What the tests say of which one does that, run as the Makefile runs these."""
    for at in range(FILES):
        (folder / f"test_{at}.py").write_text(FILE.format(bad=at == 3, what=what))
    (line,) = re.findall(r"^PYTEST = .* -m pytest (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    command = [sys.executable, "-m", "pytest", *line.split(), "-p", "no:cacheprovider", *options, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
def test_a_worker_that_is_killed_ends_the_tests(tmp_path: Path) -> None:
    assert "crashed while running 'test_3.py::test_it[3]'" in ended(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.slow
def test_a_test_that_hangs_ends_the_tests(tmp_path: Path) -> None:
    ours = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^faulthandler_timeout = \d+ ", ours, re.M)
    assert re.search(r"^faulthandler_exit_on_timeout = true$", ours, re.M)
    options = ("-o", "faulthandler_timeout=3", "-o", "faulthandler_exit_on_timeout=true")
    assert "crashed while running 'test_3.py::test_it[3]'" in ended(tmp_path, "time.sleep(600)", *options)
