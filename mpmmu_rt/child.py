"""Work in a fresh process whose errors arrive as they were raised: the same class, words and hint.

The child is this very package, and its answer a line that says so: what else is printed there, by libraries or by
what a site runs in every Python, is none. It works in a process group of its own, which is ended as a whole where the
child takes longer than it may, or where the parent is interrupted: a driver that hangs must not hang a job for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import errors
from .errors import EngineError, MpmmuError

FIRST = "mpmmu_first"  # the line that `run_timed` waits for
_MARK, _ANSWER = "mpmmu_error", "mpmmu_answer"
_ROOT = Path(__file__).resolve().parents[1]
# Of `limit_s`. Far more than anything took that came to an end: it is for what never does.
_START_S, _PAIR_S, _TIMES = 900.0, 10.0, 20.0  # engines that are built on first use take minutes


def python(*arguments: str) -> list[str]:
    """The command of a child: this Python, and modules from where this process has them.

    Without -P `-m` and `-c` import from the working folder first: another checkout of this package there would be what
    is measured, and a file such as `random.py` the standard library.
    """
    from_here = os.path.samefile(_ROOT, os.curdir) if os.path.exists(os.curdir) else False
    return [sys.executable, *([] if from_here else ["-P"]), *arguments]


def answer(value: object) -> None:
    """In the child: say the result, for `run` and `run_timed` in the parent."""
    print(json.dumps({_ANSWER: value}), flush=True)


def telling(work: Callable[[], object]) -> None:
    """In the child: do `work`; an error of ours becomes the last line of stderr, for `told`, and the exit code."""
    try:
        work()
    except MpmmuError as error:
        print(as_line(error), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def as_line(error: MpmmuError) -> str:
    """For `from_line` in another process."""
    return json.dumps({_MARK: type(error).__name__, "message": str(error), "hint": error.hint})


def from_line(line: str) -> MpmmuError | None:
    """The error that `as_line` wrote, if that is what it is."""
    found = _own_error(line)
    return None if found is None else found[0](found[1], hint=found[2])


def told(what: str, code: int, stderr: str, hint: str) -> MpmmuError:
    """In the parent: the error of a child that ended with `code`; `what` it did comes before its own words.

    hint: what to do about a child that ended otherwise: killed, or by a defect.
    """
    lines = stderr.strip().splitlines()
    if found := next(filter(None, map(_own_error, reversed(lines))), None):  # libraries may say goodbye after it
        return found[0](f"{what}: {found[1]}", hint=found[2])
    last = lines[-1] if lines else "nothing"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = "it may have had too little memory: use a smaller --batch" if name == "SIGKILL" else hint
        return EngineError(f"{what}: its process was ended by {name}, expected a result", hint=hint)
    return EngineError(f"{what}: its process ended with status {code} and said: {last[:300]}", hint=hint)


def limit_s(batch: int, seconds: float = 0.0) -> float:
    """How many seconds a child may take that loads a bundle and calls it with `batch` pairs for `seconds` seconds."""
    return _START_S + _PAIR_S * batch + _TIMES * seconds


def run(what: str, command: list[str], hint: str, limit_s: float) -> Any:
    """The `answer` of a child. Raises what `told` makes of its failure, `EngineError` where it takes over `limit_s`."""
    with _started(what, command, hint, limit_s, subprocess.PIPE) as process:
        stdout, stderr = process.communicate()
    if process.returncode:
        raise told(what, process.returncode, stderr, hint)
    return answered(what, stdout, hint)


def run_timed(what: str, command: list[str], hint: str, limit_s: float) -> tuple[int, int, Any]:
    """When the child was started, on `time.monotonic_ns`; the ns until its line `FIRST` was read; its `answer`.

    Raises as `run` does.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        started = time.monotonic_ns()
        with _started(what, command, hint, limit_s, errors) as process:
            assert process.stdout is not None
            first = any(line.strip() == FIRST for line in iter(process.stdout.readline, ""))
            spent = time.monotonic_ns() - started
            # Not `communicate`, which does not see what `readline` has read beyond its line.
            rest = process.stdout.read()
        errors.seek(0)
        said = errors.read()
    if process.returncode:
        raise told(what, process.returncode, said, hint)
    return started, spent, answered(what, rest if first else "", hint)


@contextmanager
def _started(what: str, command: list[str], hint: str, limit_s: float, stderr: Any) -> Iterator[subprocess.Popen[str]]:
    """A child, and the end of its whole group if it is not done after `limit_s` seconds, or anything is raised inside.

    Without a terminal to read from: in a group that is not in front it would be stopped there, and wait for ever.
    """
    group: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        **group,
    ) as process:
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield process
            process.wait()  # it may have closed what it writes to, and go on
        except BaseException:
            _end(process)
            process.wait()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise EngineError(
            f"{what}: its process gave no result within {limit_s:g} s and was ended, expected one",
            hint=f"{hint}; where a driver hangs, so will that",
        )


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a child and what it has started. A group keeps its number for as long as it has a member."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def answered(what: str, stdout: str, hint: str) -> Any:
    """The `answer` in what a child printed. Raises `EngineError` where there is none."""
    for line in stdout.splitlines():
        if (found := _marked(line, _ANSWER)) is not None:
            return found[_ANSWER]
    raise EngineError(f"{what}: its process ended and said {stdout[-300:]!r}, expected a result", hint=hint)


def _own_error(line: str) -> tuple[type[MpmmuError], str, str] | None:
    if (said := _marked(line, _MARK)) is None:
        return None
    kind = getattr(errors, str(said[_MARK]), EngineError)
    return kind, str(said["message"]), str(said["hint"])


def _marked(line: str, mark: str) -> dict[str, Any] | None:
    """A line that is a JSON object with the key `mark`."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and mark in said else None
