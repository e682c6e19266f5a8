"""The cold start: from starting a process to its first prediction, and what the time goes to.

The child says when it had finished each part, on the monotonic clock, which all processes of a system share; the first
part begins when the parent started it. The total is the parent's: until it has read the first word.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .child import FIRST, answer, limit_s, python, run_timed, telling
from .engines import engine, head_target
from .errors import quoted
from .predictor import Predictor
from .spec import Target
from .tiles import tile

# Stamped before anything of ours is imported.
_CHILD = "import time; began = time.monotonic_ns(); from mpmmu_rt.cold_start import child; child(began)"
PARTS = {
    "interpreter": "from starting the process to the first line of Python",
    "imports": "NumPy, this package and the engine's library",
    "open and digests": "every file of the bundle is held to its SHA-256",
    "load": "the engine builds or reads what it runs",
    "pixels": "golden pixels are read, which a user has already",
    "first call": "one pair; what an engine compiles on first use counts here",
}


@dataclass(frozen=True)
class ColdStart:
    """Times in ms. parts_ms: by the names of `PARTS`, in order. second_call_ms: of the same pair again, not part of the
    total. peak_rss_bytes: after one batch more; None where the system does not tell."""

    total_ms: float
    parts_ms: dict[str, float]
    second_call_ms: float
    peak_rss_bytes: int | None

    @property
    def remainder_ms(self) -> float:
        """What no part explains."""
        return self.total_ms - sum(self.parts_ms.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "total_ms": self.total_ms,
            "parts_ms": self.parts_ms,
            "remainder_ms": self.remainder_ms,
            "second_call_ms": self.second_call_ms,
        }


def measure(path: Path, target: Target, batch: int) -> ColdStart:
    """Start a process, and have it predict one pair, the same again, and `batch`. Raises what the child raised."""
    hint = f"`mpmmu-rt verify {quoted(path)} --target {target}` runs the same here"
    what = f"cold start of {path} on {target}"
    started, spent, said = run_timed(what, command(path, target, batch), hint, limit_s(batch))
    ends = [started, *said["ends_ns"]]
    parts = {name: (end - begin) / 1e6 for name, begin, end in zip(PARTS, ends, ends[1:], strict=False)}
    return ColdStart(spent / 1e6, parts, said["second_call_ms"], said["peak_rss_bytes"])


def command(path: Path, target: Target, batch: int) -> list[str]:
    """What starts the child."""
    return python("-c", _CHILD, str(path.resolve()), str(target), str(batch))


def child(began: int) -> None:
    path, target, batch = sys.argv[1:]
    telling(lambda: _predict(began, Path(path), Target.parse(target), int(batch)))


def _predict(began: int, path: Path, target: Target, batch: int) -> None:
    ends = [began]
    engine(target)  # imports its library
    if (head := head_target(target)).engine != target.engine:
        engine(head)
    ends.append(time.monotonic_ns())
    bundle = Bundle.open(path)
    ends.append(time.monotonic_ns())
    with Predictor(bundle, target, unproven=True) as predictor:
        ends.append(time.monotonic_ns())
        golden = bundle.golden()
        pixels = tile(golden, 1)
        ends.append(time.monotonic_ns())
        predictor.predict(pixels)
        ends.append(time.monotonic_ns())
        print(FIRST, flush=True)
        start = time.perf_counter()
        predictor.predict(pixels)
        second_call_ms = (time.perf_counter() - start) * 1e3
        predictor.predict(tile(golden, batch))
    answer({"ends_ns": ends, "second_call_ms": second_call_ms, "peak_rss_bytes": _peak_rss_bytes()})


def _peak_rss_bytes() -> int | None:
    """Of this program; None where the system does not tell. Linux's `ru_maxrss` is that of the program before exec too:
    of the parent, until then."""
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(match[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
