"""A lock between processes: one measures at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .places import lock


def lock_path() -> Path:
    """One for each user of this machine, as others can't open it."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"mpmmu-rt-latency-{user}.lock"


@contextmanager
def alone(path: Path | None = None) -> Iterator[None]:
    """Wait until no other process is inside. The system opens it for a process that dies there."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # no link to someone else's file
    handle = os.open(path or lock_path(), flags, 0o600)
    try:
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
