"""Files of a bundle that an engine goes on reading while it is loaded: ONNX Runtime maps what it does not pack."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .bundle import WEIGHTS, Bundle, target_folder
from .errors import DigestMismatch, EngineError
from .files import stamp
from .spec import Target


@dataclass
class _File:
    path: Path
    handle: int
    digest: str
    seen: tuple[int, ...]


class Held:
    """The files of weights that a target may read, as they are when this is made. Whoever replaces one by renaming
    changes nothing of it.

    Any number of threads may ask. Raises `DigestMismatch` for one that is not there.
    """

    def __init__(self, bundle: Bundle, target: Target) -> None:
        self._lock = threading.Lock()
        self._files: list[_File] = []
        handles: list[int] = []
        self._close = weakref.finalize(self, _close, handles)
        folders = {PurePosixPath(graph).parent for graph in bundle.entry["graphs"].values()}
        folders.add(PurePosixPath(target_folder(target.engine, target.precision)))
        for name in sorted(str(folder / WEIGHTS) for folder in folders):
            if (facts := bundle.entry["files"].get(name)) is None:
                continue
            path = bundle.root / name
            try:
                handles.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            except OSError:
                bundle.check_files()
                raise
            self._files.append(_File(path, handles[-1], str(facts["sha256"]), stamp(os.fstat(handles[-1]))))

    def require_untouched(self) -> None:
        """Raise `DigestMismatch` where one was written to meanwhile, and is another now; `EngineError` where that can't
        be told. Asked before a call, and behind it, when what was written during the call is seen.

        Only a file that was touched, renamed or linked is hashed again.
        """
        with self._lock:
            for one in self._files:
                try:
                    now = stamp(os.fstat(one.handle))
                    if now != one.seen and _sha256(one.handle) != one.digest:
                        raise DigestMismatch(
                            f"{one.path} was written to while it was in use, expected the file as it was loaded",
                            hint="load the bundle again; to replace one that is in use, rename another into its place",
                        )
                except OSError as error:
                    raise EngineError(
                        f"{one.path} can't be looked at ({error.strerror}), expected the file as it was loaded",
                        hint="load the bundle again, from a disk that keeps files that are in use",
                    ) from error
                one.seen = now

    def close(self) -> None:
        with self._lock:
            self._files = []
            self._close()


def _sha256(handle: int) -> str:
    with open(handle, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)
