"""Work in a fresh process whose errors arrive as they were raised: the same class, words and hint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from . import errors
from .errors import EngineError, MpmmuError

_MARK = "mpmmu_error"


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
    last = next(iter(stderr.strip().splitlines()[-1:]), "nothing")
    if found := _own_error(last):
        return found[0](f"{what}: {found[1]}", hint=found[2])
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = "it may have had too little memory: use a smaller --batch" if name == "SIGKILL" else hint
        return EngineError(f"{what}: its process was ended by {name}, expected a result", hint=hint)
    return EngineError(f"{what}: its process ended with status {code} and said: {last[:300]}", hint=hint)


def run(what: str, command: list[str], hint: str) -> str:
    """The stdout of a child. Raises what `told` makes of its failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise told(what, done.returncode, done.stderr, hint)
    return done.stdout


def run_timed(what: str, command: list[str], hint: str) -> tuple[int, int, str]:
    """When the child was started, on `time.monotonic_ns`; the ns until its first line was read; its later stdout.

    Raises what `told` makes of its failure.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        started = time.monotonic_ns()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            spent = time.monotonic_ns() - started
            # Not `communicate`, which does not see what `readline` has read beyond its line.
            rest = process.stdout.read()
        errors.seek(0)
        said = errors.read()
    if process.returncode:
        raise told(what, process.returncode, said, hint)
    return started, spent, rest


def _own_error(line: str) -> tuple[type[MpmmuError], str, str] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or _MARK not in said:
        return None
    kind = getattr(errors, str(said[_MARK]), EngineError)
    return kind, str(said["message"]), str(said["hint"])
