"""Compiled models on disk, so that a process that starts again need not compile.

An entry is one file: a line of JSON (`facts` that it was made from, SHA-256 and length of the blob), padded to a page,
and the blob. Facts name everything that a compiled model depends on; another fact is another entry. The very bytes
that were hashed are handed out. The digest finds damage. Against other users of the machine there are owner and mode:
a folder or an entry that is another's, or that others may write to, is not used.

`MPMMU_RT_CACHE` names the folder, or is `off`; by default it is the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import MissingPackage, OutputError
from mpmmu_rt.files import atomic_file
from mpmmu_rt.spec import Array

SCHEMA = "mpmmu-blob/1"
VARIABLE = "MPMMU_RT_CACHE"
MAX_BYTES = 4 * 2**30  # of all entries together; what was not used for longest goes first
_PAGE = 4096  # the header's room, and the blob's alignment in memory
_SUFFIX = ".blob"
_ABANDONED_S = 24 * 3600.0  # nobody writes a model for a day


_SUSPENDED = ContextVar("_SUSPENDED", default=False)


class CacheWarning(RuntimeWarning):
    """The cache could not be used; the model was compiled instead."""


@contextmanager
def suspended() -> Iterator[None]:
    """There is no cache inside: for models that are tried once."""
    token = _SUSPENDED.set(True)
    try:
        yield
    finally:
        _SUSPENDED.reset(token)


@dataclass(frozen=True)
class BlobCache:
    """folder: where entries lie; made on the first `store`."""

    folder: Path

    @classmethod
    def default(cls) -> BlobCache | None:
        """The cache that the environment asks for, or None if it is off or its folder must not be trusted."""
        named = os.environ.get(VARIABLE, "")
        if named.lower() == "off" or _SUSPENDED.get():
            return None
        try:
            folder = Path(named or require("platformdirs", "the cache").user_cache_path("mpmmu-rt"))
            if not named and not folder.is_absolute():
                raise RuntimeError("the user has no home folder")
            cache = cls(folder.resolve())
        except (OSError, RuntimeError) as error:  # a user without a name and HOME; links that lead to each other
            _warn(f"there is no folder for the cache: {error}, expected one that only its owner may write to")
            return None
        return cache if cache._trusted() else None

    def holds(self, facts: Mapping[str, str]) -> bool:
        """Is there an entry? Whether it is whole, `load` finds out."""
        try:
            return self._path(facts).is_file()
        except OSError:  # a folder that can't be searched
            return False

    def load(self, facts: Mapping[str, str]) -> Array | None:
        """The blob, uint8 [bytes], that was stored with exactly these facts, or None. A damaged entry is removed,
        with a `CacheWarning`."""
        path = self._path(facts)
        if not self._trusted():
            return None
        try:
            with path.open("rb") as file:
                if problem := _others_may_write(found := os.fstat(file.fileno())):
                    raise ValueError(f"it {problem}")
                if (size := found.st_size) > MAX_BYTES:
                    raise ValueError(f"it has {size} bytes")
                room = np.empty(size + _PAGE, np.uint8)
                whole = room[-room.ctypes.data % _PAGE :][:size]
                if file.readinto(whole.data) != size:
                    raise ValueError("it was cut off while it was read")
            header = json.loads(whole[:_PAGE].tobytes())
            blob = whole[_PAGE:]
            if header["schema"] != SCHEMA or header["facts"] != dict(facts) or header["bytes"] != blob.size:
                raise ValueError("its header is another's")
            if hashlib.sha256(blob.data).hexdigest() != header["sha256"]:
                raise ValueError("its SHA-256 is another")
            with suppress(OSError):  # a cache that can only be read serves as well
                os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.drop(facts, str(error))
            return None
        return blob

    def drop(self, facts: Mapping[str, str], reason: str) -> None:
        """Remove an entry that can't be used, and say why in a `CacheWarning`."""
        path = self._path(facts)
        _warn(f"{path} can't be used: {reason}, expected the compiled model as it was stored")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _warn(f"{path} can't be removed: {error.strerror}")

    def store(self, facts: Mapping[str, str], blob: bytes) -> None:
        """Keep `blob` under `facts`, and remove what is too much. What fails is a `CacheWarning`."""
        entry = {"schema": SCHEMA, "facts": dict(facts), "bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
        header = json.dumps(entry).encode().ljust(_PAGE)
        if len(header) > _PAGE or len(header) + len(blob) > MAX_BYTES:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._trusted():
                return
            with atomic_file(self._path(facts), private=True) as partial, partial.open("wb") as file:
                file.write(header)
                file.write(blob)
            self._evict()
        except OutputError as error:  # the folder has just gone
            _warn(str(error))
        except OSError as error:
            _warn(f"{self.folder} can't be written: {error.strerror or error}, expected room for a compiled model")

    def entries(self) -> dict[Path, int]:
        """The files and their bytes, the one that was not used for longest first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # another process has just removed it
                continue
            found.append((facts.st_mtime, path, facts.st_size))
        return {path: size for _, path, size in sorted(found)}

    def _trusted(self) -> bool:
        """Is the folder its user's own, or still to be made? If not, a `CacheWarning` says so."""
        try:
            found = self.folder.stat()
        except FileNotFoundError:
            return True
        except OSError as error:
            problem = f"can't be read ({error.strerror})"
        else:
            problem = _others_may_write(found) if stat.S_ISDIR(found.st_mode) else "is no folder"
        if problem:
            _warn(f"{self.folder} {problem}, expected a folder that only its owner may write to")
        return not problem

    def _evict(self) -> None:
        for left in self.folder.glob(f".*{_SUFFIX}.*.partial"):  # by a process that was killed while it wrote
            with suppress(FileNotFoundError):  # another has just renamed or removed it
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()
        entries = self.entries()
        excess = sum(entries.values()) - MAX_BYTES
        for path, size in entries.items():
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _path(self, facts: Mapping[str, str]) -> Path:
        key = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key}{_SUFFIX}"


def user_cache() -> BlobCache | None:
    """The user's cache; None where it is off, or can't be had, which a `CacheWarning` says."""
    try:
        return BlobCache.default()
    except MissingPackage as error:  # a device may hold NumPy and one engine, and nothing else
        warnings.warn(
            f"engines that are built here are not kept, and built again at every start: {error} "
            f"(install it, or set {VARIABLE} to a folder, or to `off`)",
            CacheWarning,
            stacklevel=4,
        )
        return None


def _others_may_write(found: os.stat_result) -> str:
    """What speaks against a file or folder with these facts; "" for one that is the user's own."""
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        return f"belongs to user {found.st_uid} and has the mode {found.st_mode & 0o777:o}"
    return ""


def _warn(text: str) -> None:
    warnings.warn(f"{text} (set {VARIABLE} to another folder, or to `off`)", CacheWarning, stacklevel=3)
