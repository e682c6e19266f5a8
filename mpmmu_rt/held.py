"""Files of a bundle that an engine goes on reading while it is loaded: ONNX Runtime maps what it does not pack."""

from __future__ import annotations

import os
import weakref
from pathlib import Path, PurePosixPath

from .bundle import Bundle
from .errors import DigestMismatch

WEIGHTS = "weights.bin"


class Held:
    """The files of weights, as they are when this is made. Whoever replaces one by renaming changes nothing of it.

    Raises `DigestMismatch` for one that is not there.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._files: list[tuple[Path, int, tuple[int, int]]] = []
        handles: list[int] = []
        self._close = weakref.finalize(self, _close, handles)
        for name in bundle.entry["files"]:
            if PurePosixPath(name).name == WEIGHTS:
                try:
                    handles.append(os.open(bundle.path / name, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
                except OSError:
                    bundle.check_files()
                    raise
                self._files.append((bundle.path / name, handles[-1], _seen(handles[-1])))

    def require_untouched(self) -> None:
        """Raise `DigestMismatch` where one was written to meanwhile. Asked before a call, and behind it, when what was
        written during the call is seen."""
        for path, handle, seen in self._files:
            if _seen(handle) != seen:
                raise DigestMismatch(
                    f"{path} was written to while it was in use, expected the file as it was loaded",
                    hint="load the bundle again; to replace one that is in use, rename another into its place",
                )

    def close(self) -> None:
        self._files = []
        self._close()


def _seen(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_size, found.st_mtime_ns


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)
