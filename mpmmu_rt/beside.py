"""What else ran on this machine while something was measured, by name: from /proc (proc(5)), or nothing without it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .conditions import plain

SUSPECT = 0.05  # of a core, over the whole time
_PROC = Path("/proc")


@dataclass(frozen=True)
class _Process:
    name: str
    parent: int
    seconds: float  # of processor time, its ended children not included
    started: int


@contextmanager
def beside() -> Iterator[list[str]]:
    """Yields a list that is filled when the block ends: `name (pid) took 0.9 of a core`, the busiest first, of each
    process that is not this one's child and ran for longer than `SUSPECT`. One that ended before the block did is not
    seen."""
    found: list[str] = []
    before, begin = _processes(), time.monotonic()
    try:
        yield found
    finally:
        after, spent = _processes(), max(time.monotonic() - begin, 1e-9)
        own = _family(after)
        shares = []
        for pid, one in after.items():
            earlier = before.get(pid)
            known = earlier.seconds if earlier and earlier.started == one.started else 0.0
            shares.append(((one.seconds - known) / spent, pid, one.name))
        found += [
            f"{plain(name)} ({pid}) took {share:.2g} of a core"
            for share, pid, name in sorted(shares, reverse=True)
            if share >= SUSPECT and pid not in own
        ]


def _family(processes: dict[int, _Process]) -> set[int]:
    """This process and what it started."""
    own, more = {os.getpid()}, True
    while more:
        children = {pid for pid, one in processes.items() if one.parent in own} - own
        own |= children
        more = bool(children)
    return own


def _processes() -> dict[int, _Process]:
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    found = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended, or is hidden
            continue
        name = text[text.find("(") + 1 : text.rfind(")")]  # may hold spaces and parentheses
        rest = text[text.rfind(")") + 1 :].split()
        seconds = (int(rest[11]) + int(rest[12])) / ticks
        found[int(path.parent.name)] = _Process(name, int(rest[1]), seconds, int(rest[19]))
    return found
