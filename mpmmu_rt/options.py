"""How people write shares, durations and allowances, on the command line and in tests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .errors import UsageError

_MOST_MS = 3.6e6  # for which a case may wait for others


def share(text: str | float, example: str = "--max-slowdown 5%") -> float:
    """`5%` and `0.05` are 0.05. Raises `UsageError`, also for `5`: whoever writes it means 5 %, not 500 %."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", str(text))
    if not match:
        raise UsageError(f"`{text}` is no share, expected a number such as 5% or 0.05", hint=example)
    if not match[2] and float(match[1]) >= 1:
        raise UsageError(
            f"`{text}` has no unit and would be {float(match[1]):.0%}, expected a number below 1, or one with %",
            hint=example,
        )
    return float(match[1]) / (100 if match[2] else 1)


def duration(text: str | float) -> float:
    """Seconds: `90`, `90s` and `1.5m` are 90. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([sm]?)\s*", str(text))
    if not match or not 0 < (found := float(match[1]) * (60 if match[2] == "m" else 1)) < math.inf:
        raise UsageError(
            f"`{text}` is no duration, expected seconds or minutes, such as 120s or 2m", hint="--budget 120s"
        )
    return found


def delay_ms(text: str) -> float:
    """Milliseconds: `2`, `2ms`, `2000us` and `0.002s` are 2; 0 is none. Raises `UsageError`, also for over an hour."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|)\s*", text)
    if not match or (found := float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "": 1.0}[match[2]]) > _MOST_MS:
        raise UsageError(
            f"`{text[:60]}` is no delay, expected milliseconds such as 2ms, or 0, and an hour at most",
            hint="--max-delay 2ms",
        )
    return found


def allowances(texts: Sequence[str]) -> dict[str, float]:
    """`parameters.head=5%` is {"parameters.head": 0.05}; without a share, any growth is. Raises `UsageError`."""
    named = {
        name.strip(): (share(most, "--allow-counts NAME=5%") if given else math.inf)
        for name, given, most in (text.partition("=") for text in texts)
    }
    if "" in named:
        raise UsageError(
            "a count without a name is allowed to grow, expected NAME or NAME=5%", hint="--allow-counts bytes=5%"
        )
    return named
