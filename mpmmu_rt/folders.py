"""Folders that appear whole or not at all, and that never take the place of what somebody else put there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .errors import OutputError
from .files import UMASK
from .places import claimed

# What systems leave in folders that are looked at: not a person's doing, and never read.
LEFT_BY_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_HEAD_BYTES = 100  # of a document, in which it names its schema
# By systems, by Python beside what it imports, and by `atomic_file` where it is killed.
_LEFT = re.compile(
    rf"{'|'.join(map(re.escape, LEFT_BY_SYSTEMS))}|.+\.cpython-\d+(\.opt-\d)?\.pyc|\..+\.[a-z0-9_]{{8}}\.partial"
)


@dataclass(frozen=True)
class Kind:
    """What one kind of output folder holds, so that nothing else goes with an earlier one that is replaced.

    files: all it may hold, as patterns of paths with `/`: `*` stands for anything in a name, `**` for anything. marker:
    the file that each has. schema: what the marker, a JSON document, names first, where others have files of that name;
    it may be of any version. listed: the marker's lines after the first name the files instead, where no pattern tells
    ours from others.
    """

    marker: str
    files: tuple[str, ...] = ()
    schema: str | None = None
    listed: bool = False

    def marks(self, folder: Path) -> bool:
        """Whether `folder` is one of this kind."""
        marker = folder / self.marker
        if not marker.is_file():
            return False
        if self.schema is None:
            return True
        with marker.open("rb") as file:
            begins = file.read(_HEAD_BYTES)
        name = re.escape(self.schema.partition("/")[0])
        return re.match(rf'\s*\{{\s*"schema":\s*"{name}/'.encode(), begins) is not None

    def strangers(self, folder: Path) -> Iterator[str]:
        """Paths in `folder` of what no output of this kind holds. Empty folders are none."""
        listed: set[str] = set()
        if self.listed:
            listed = set((folder / self.marker).read_text(encoding="utf-8", errors="replace").splitlines()[1:])
        for name in files_in(folder):
            ours = name == self.marker or name in listed or any(_matches(name, one) for one in self.files)
            if not (ours or _LEFT.fullmatch(name.rpartition("/")[2])):
                yield name


def _matches(name: str, pattern: str) -> bool:
    expression = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.fullmatch(expression, name, re.DOTALL) is not None


def _raise(error: OSError) -> None:
    raise error


def files_in(folder: Path) -> Iterator[str]:
    """Of all that is no folder, links to folders too, the path with `/`, in order."""
    for root, folders, files in os.walk(folder, onerror=_raise):  # what can't be looked at could be anybody's
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in sorted([*files, *links]):
            yield (Path(root) / name).relative_to(folder).as_posix()


@contextmanager
def atomic_folder(path: Path, kind: Kind, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block succeeds it becomes `path`, else it goes away.

    An existing `path` is replaced only if `overwrite` is set, and it is of the `kind` and holds nothing else. Raises
    `OutputError`, also where another process is writing `path`.
    """
    with claimed(path):
        check_replaceable(path, kind, overwrite=overwrite)  # once it is held: nobody changes it any more
        with _replacing(path, kind, overwrite=overwrite) as partial:
            yield partial


@contextmanager
def _replacing(path: Path, kind: Kind, *, overwrite: bool) -> Iterator[Path]:
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        for one in (partial, *partial.rglob("*")):  # libraries write private files beside others
            one.chmod((0o777 if one.is_dir() else 0o666) & ~UMASK)
        check_replaceable(path, kind, overwrite=overwrite)
        if path.exists():
            old = partial.with_suffix(".old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(path: Path, kind: Kind, *, overwrite: bool) -> None:
    """Raise `OutputError` unless `atomic_folder` may write `path`; called early, before long work."""
    if path.is_symlink():
        raise OutputError(f"{path} is a link, expected a free path or a folder", hint="name the folder itself with -o")
    if not path.exists():
        return
    if not kind.marks(path):
        marker = kind.marker if kind.schema is None else f"{kind.marker} of `{kind.schema}`"
        raise OutputError(
            f"{path} exists and holds no {marker}, expected a free path or an earlier output",
            hint="choose another path with -o; a folder of another kind is never replaced",
        )
    require_own(path, kind)
    if not overwrite:
        raise OutputError(f"{path} exists already, expected a free path", hint="choose another -o, or pass --overwrite")


def require_own(folder: Path, kind: Kind) -> None:
    """Raise `OutputError` where `folder`, which is going to be removed, holds what somebody else put there, or is a
    link."""
    if folder.is_symlink():
        raise OutputError(
            f"{folder} is a link, expected a free path or a folder", hint="remove it, or choose another path with -o"
        )
    if not folder.exists():
        return
    if found := list(islice(kind.strangers(folder), 2)):
        named = found[0] if len(found) == 1 else f"{found[0]} and more"
        raise OutputError(
            f"{folder} holds {named}, which no earlier output has and which would be lost, expected one alone",
            hint="move it elsewhere, or choose another path with -o",
        )
