"""What the stages of the GPU evidence share: options, a deadline, processes of their own, versions, the end of a page.

Results are written whole, and again after every step: what was measured before a crash, a hang or the end of the time
is not lost. An exception that is caught is recorded in the results and makes the exit code non-zero.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import ROOT
from mpmmu_rt import machine
from mpmmu_rt.errors import EngineError, MpmmuError

OUT_OF_TIME = "out of time"
_GRACE_S = 5.0  # that a process has to end its own children
# NVIDIA's packages are named for their CUDA version; what is not installed is left out.
_PACKAGES = (
    *("cupy-cuda13x", "cupy-cuda12x", "cupy", "cuda-bindings", "cuda-python", "torch", "triton", "numpy"),
    *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "tensorrt-rtx-cu13"),
    *("onnxruntime", "onnxruntime-gpu", "nvidia-cuda-nvrtc", "nvidia-cudnn-cu13"),
)


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic`."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, 0 when it has passed."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left() <= 0


NEVER = Deadline(float("inf"))


def parser(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """With the options of every stage."""
    found = report.parser(doc)
    found.add_argument("--out", type=Path, help="folder of the results, else benchmarks/results/<gpu>")
    found.add_argument("--seconds", type=float, default=seconds, help="what does not fit in is left out")
    found.add_argument("--commit", help="of the tree, where it has no repository")
    return found


def with_bundle(found: argparse.ArgumentParser, *, required: bool) -> None:
    """The bundle, and the options of what runs it."""
    found.add_argument("bundle", type=Path, nargs=None if required else "?")
    found.add_argument("--targets", nargs="*", default=[], help="instead of all GPU targets of the bundle")
    found.add_argument(
        "--expected", type=Path, help="a file of device_path --write-expected, instead of asking onnxruntime here"
    )


def ending(wrong: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    """The last lines of a stage's page."""
    shown = [f"- {one}" for one in wrong] or ["- nothing"]
    found = [f"- {name}: {version}" for name, version in versions.items()]
    return ["## What is wrong or missing", "", *shown, "", "## Versions", "", *found, ""]


def failure(error: BaseException) -> str:
    """Type and message on one line: what a report says of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1500]


class Steps:
    """Steps of a stage, into `report["errors"]`: one that raises, or has no time left, is recorded, and the rest goes
    on. keep: called after each."""

    def __init__(self, report: dict[str, Any], keep: Callable[[], object], deadline: Deadline) -> None:
        self._errors, self._keep, self._deadline = report["errors"], keep, deadline

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        print(f"{name}: {self._deadline.left():.0f} s left", file=sys.stderr)
        try:
            if self._deadline.passed:
                self._errors.append(f"{name}: not run: {OUT_OF_TIME}")
            else:
                work()
        except Exception as error:  # noqa: BLE001  # of CuPy, CUDA and torch, all kinds: what was measured is kept
            self._errors.append(f"{name}: {failure(error)}")
        self._keep()


def say(error: MpmmuError) -> int:
    """Two lines on stderr; returns the exit code."""
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def no_gpu(hint: str) -> EngineError:
    return EngineError(
        "there is no NVIDIA GPU and driver here, expected one: nothing is measured and nothing is written", hint=hint
    )


def conditions(gpu: str, commit: str) -> dict[str, Any]:
    """What every report begins with; `gpu`: its name."""
    return {
        "gpu": gpu,
        "command": report.command(),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Packages by name, and of the driver what nvidia-smi and libcuda say. Starts no work on the GPU."""
    found = machine.package_versions(_PACKAGES)
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        names = ("driver_version", "clocks.max.sm", "power.limit", "mig.mode.current", "persistence_mode")
        command = [smi, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            said = done.stdout.strip() or done.stderr.strip() or f"status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = f"not known: {failure(error)}"
        found[f"nvidia-smi ({', '.join(names)})"] = said
    for name, library, call in (
        ("CUDA of the driver", "cuda.bindings.driver", "cuDriverGetVersion"),
        ("CUDA runtime", "cuda.bindings.runtime", "cudaRuntimeGetVersion"),
    ):
        found[name] = _ask(library, call)
    return found


def _ask(library: str, call: str) -> str:
    try:
        module: Any = __import__(library, fromlist=[call])
        status, version = getattr(module, call)()
        return f"{version}" if int(status) == 0 else f"not known: {status}"
    except Exception as error:  # noqa: BLE001  # a version is not worth a run; the reason is stored in its place
        return f"not known: {failure(error)}"


def end_on_sigterm() -> None:
    """Let SIGTERM raise `SystemExit`, so that processes that were started here are ended."""

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def run_child(
    command: Sequence[str], limit_s: float, log: Path, watch: Callable[[], object] = lambda: None
) -> tuple[int | None, float]:
    """Run `command` from the root of the tree, its output to `log`: its exit status, None at the limit; and seconds.

    A crash or a hang of it can't touch this process. At the limit, or when this process is told to end, it and its own
    children are ended. watch: called every second meanwhile.
    """
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while True:
                left = limit_s - (time.monotonic() - start)
                try:
                    return process.wait(timeout=min(1.0, max(left, 0.01))), time.monotonic() - start
                except subprocess.TimeoutExpired:
                    watch()
                    if left <= 0:
                        return None, time.monotonic() - start
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """And its whole group: told first, that it may end the groups of its own children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    with suppress(ProcessLookupError):  # nothing of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path, length: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-length:].strip()
