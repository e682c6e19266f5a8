"""Files that appear whole or not at all, bounded reads, and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import MpmmuError
from .places import is_fed, unwritable

MAX_JSON_BYTES = 16 * 2**20

ErrorFactory = Callable[..., MpmmuError]


def _umask() -> int:
    # The only portable way to read it is to set it; mkstemp and mkdtemp ignore it and make private files.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


UMASK = _umask()  # read once: while it is set, another thread's files would get it


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written or replaced, whatever its times are set to afterwards; these come last."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sha256_of(path: Path) -> str:
    """Of a file its digest; of a folder that of the list of its files and their digests, which `sha256sum` makes: a
    line for each, in the order of their names' code points."""
    if path.is_file():
        return sha256_file(path)
    found = hashlib.sha256()
    for name in sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()):
        found.update(f"{sha256_file(path / name)}  {name}\n".encode())
    return found.hexdigest()


def read_bounded(path: Path, limit: int, error: ErrorFactory, hint: str) -> bytes:
    """The bytes of `path`, or `error` if it is absent, unreadable or larger than `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as cause:
        raise error(f"{path} can't be read: {cause.strerror}, expected a file", hint=hint) from cause
    if len(data) > limit:
        raise error(f"{path} is larger than {limit} bytes, expected a file of that size at most", hint=hint)
    return data


class _Twice(Exception):
    """A key that an object has twice; `str` is the key."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}")


def parse_json_object(
    path: Path, data: bytes, error: ErrorFactory, hint: str, *, twice: bool = False, finite: bool = False
) -> dict[str, object]:
    """`data` as a JSON object, or `error`.

    twice: keys may be there twice, and the last counts: for who finds that otherwise. Who reads such a file with other
    eyes, or an editor, takes the first. finite: NaN and Infinity, which JSON has not and Python reads, are refused.
    """
    hook, constant = None if twice else _once, _no_number if finite else None
    try:
        entry = json.loads(data, object_pairs_hook=hook, parse_constant=constant)
    except _Twice as cause:
        key = f"{str(cause)[:60]!r}"
        raise error(f"{path} has the key {key} twice in one object, expected every key once", hint=hint) from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not valid JSON: {cause}", hint=hint) from cause
    if not isinstance(entry, dict):
        raise error(f"{path} holds a JSON {type(entry).__name__}, expected an object", hint=hint)
    return entry


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it becomes `path`, else it goes away.

    private: for its owner alone, whatever the umask says.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except FileNotFoundError as error:  # any other error is the system's to tell, and the caller's to bear or not
        raise unwritable(path, error) from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        partial.chmod(0o600 if private else 0o666 & ~UMASK)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def result_file(path: Path) -> Iterator[TextIO]:
    """A file to write a result to that a person named the place of: as `atomic_file`, through a link to what it names;
    or behind what was written to `path` already, where it `is_fed`."""
    if is_fed(path):
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        return
    with atomic_file(path.resolve()) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        yield file


def as_json(entry: object) -> str:
    """`entry` as a document for people too; NaN is no JSON."""
    return json.dumps(entry, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, entry: object) -> None:
    """`entry` as a document for people too, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(as_json(entry), encoding="utf-8")


def rounded(entry: Any, name: str = "") -> Any:
    """`entry` with its floats rounded to what was measured: times in ms to 1e-4, others to nine digits, which a float32
    needs. name: its key, or that of what it lies in, which ends in `_ms` for times."""
    if isinstance(entry, Mapping):
        return {key: rounded(value, name if name.endswith("_ms") else str(key)) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [rounded(value, name) for value in entry]
    if isinstance(entry, float):
        return round(entry, 4) if name.endswith("_ms") else float(f"{entry:.9g}")
    return entry
