"""How long work tells what it is doing; the CLI draws it as a bar."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done and how far: `done` of `total` steps of that description."""

    def __call__(self, description: str, done: int, total: int) -> None: ...


def silent(description: str, done: int, total: int) -> None:
    """Report to nobody."""
