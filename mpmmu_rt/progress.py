"""How long work tells what it is doing: the CLI draws it as a bar, or says it in a line now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

EVERY_S = 10.0


class Progress(Protocol):
    """Called with what is being done and how far: `done` of `total` steps of that description.

    unit: of a step, in the plural. detail: what else there is to say now, as of an epoch its loss.
    """

    def __call__(self, description: str, done: int, total: int, unit: str = "", detail: str = "", /) -> None: ...


def silent(description: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
    """Report to nobody."""


def counted(done: int, total: int, unit: str) -> str:
    """`45 of 180 batches`, `45 %`; nothing of a single step."""
    if unit == "%":
        return f"{done} %"
    return "" if total == 1 else f"{done} of {total} {unit}".rstrip()


@dataclass(frozen=True)
class _State:
    description: str
    done: int
    total: int
    unit: str
    detail: str
    first: int  # done when it was first told, at `since`
    since: float

    def line(self, now: float) -> str:
        spent = now - self.since
        how_far = ", ".join(part for part in (counted(self.done, self.total, self.unit), self.detail) if part)
        times = f"{spent:.0f} s"
        if self.first < self.done < self.total:
            times += f", about {spent / (self.done - self.first) * (self.total - self.done):.0f} s left"
        elif self.done >= self.total:
            times = f"done, and what follows is under way; {times}"
        return f"{self.description}: {how_far}; {times}" if how_far else f"{self.description}; {times}"


class Lines:
    """Progress in lines, for where there is no terminal: while it is entered one every `every_s` seconds (`EVERY_S`),
    also while a step takes long, and none of work that takes less."""

    def __init__(self, write: Callable[[str], None], every_s: float | None = None) -> None:
        self._write, self._every_s = write, EVERY_S if every_s is None else every_s
        self._state: _State | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

    def __call__(self, description: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
        known = self._state
        if known is None or known.description != description:
            first, since = done, time.monotonic()
        else:
            first, since = known.first, known.since
        self._state = _State(description, done, total, unit, detail, first, since)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._left.wait(self._every_s):
            if state := self._state:
                with contextlib.suppress(OSError):  # a log that can't be written is no reason to stop
                    self._write(state.line(time.monotonic()))
