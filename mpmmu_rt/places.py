"""The places that commands write to: held by one process at a time, cleared of what a killed one left, with room."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MpmmuError, OutputError, quoted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BUSY = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})
# How libraries that don't raise OSError, and `shutil.copytree`, pass on what the system told them.
_FULL_TEXT = re.compile(r"no space left|disk quota exceeded|file too large|os error (28|122|27)\b", re.IGNORECASE)
_OPEN_FILE = re.compile(r"/dev/(stdin|stdout|stderr|fd/.*)|/proc/[^/]+/fd/.*")
_MOST_BYTES = 255 - len("..partial.12345678.partial")  # of a name, on most file systems, with that around it
_BUNDLE = "bundle.json"  # in a folder that is one
_LOCKED_BYTE = 2**30  # beyond what is written: Windows lets nobody read a byte that is locked

# Output → process and thread that hold it. A fork inherits it, and holds nothing.
_held: dict[Path, tuple[int, int]] = {}
_entering = threading.Lock()


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Hold `output`, a file or a folder, for this process, and clear what a killed one left beside it.

    The lock is the system's, on the file `.<name>.lock`, and goes with the process however that ends. Claims of one
    thread may be nested. Raises `OutputError` where another process or thread holds it, where its folder can't be
    written, and where that is a bundle's: so it stands before the work.
    """
    place = output.parent.resolve() / output.name
    _require_name(output)
    require_no_bundle(output)
    if is_fed(output) and not output.is_dir():
        raise OutputError(
            f"{output} is a device or a pipe, expected a free path, a file or a folder",
            hint="choose another -o; `run -o -` writes rows to stdout",
        )
    me = (os.getpid(), threading.get_ident())
    with _entering:
        if _held.get(place) == me:
            nested, handle = True, -1
        elif place in _held and _held[place][0] == me[0]:
            raise _taken(output, "another thread of this process")
        else:
            nested, handle = False, _lock(output, place)
            _held[place] = me
    if nested:
        yield
        return
    try:
        _clear(place)
        yield
    finally:
        if os.getpid() == me[0]:  # a fork that leaves by this way lets go of nothing
            _let_go(place, handle)


def is_fed(path: Path) -> bool:
    """Whether what is written to `path` goes on from there: a device, a pipe, what stands for an open file. Nothing can
    be renamed onto it: as root that would put a file into the place of `/dev/null`."""
    try:
        other = path.exists() and not path.is_file()
    except OSError:  # a name that is too long, a folder that can't be searched
        return False
    return other or _OPEN_FILE.fullmatch(os.path.abspath(path)) is not None


def written(output: Path) -> Path:
    """What is written for `output`: of a link to a file, or to nothing yet, what it names. A rename onto the link would
    leave that as it was."""
    return Path(os.path.realpath(output)) if output.is_symlink() and not is_fed(output) else output


def _require_name(output: Path) -> None:
    """Raise `OutputError` for a name that has no room for what stands before and behind it while it is written."""
    if not 1 <= (count := len(os.fsencode(output.name))) <= _MOST_BYTES:
        got = f"has a name of {count} bytes" if count else "is a folder without a name"
        raise OutputError(f"{output} {got}, expected one of 1 to {_MOST_BYTES}", hint="choose another -o")


def require_no_bundle(output: Path, hint: str = "choose another -o") -> None:
    """Raise `OutputError` where `output` lies in a bundle, which could not be opened with another file in it."""
    place = output.parent.resolve() / output.name
    if found := next((folder for folder in place.parents if (folder / _BUNDLE).is_file()), None):
        raise OutputError(
            f"{output} lies in {found}, which is a bundle and holds no other file, expected another place",
            hint=hint,
        )


def require_other(output: Path, read: Iterable[Path | None]) -> None:
    """Raise `OutputError` where `output` is one of the files that are `read`, by whichever name: once it is replaced
    that is lost."""
    if not output.is_file():
        return
    place = output.stat()
    for path in read:
        with contextlib.suppress(OSError, ValueError):  # what can't be looked at says so when it is read
            if path is not None and os.path.samestat(place, path.stat()):
                raise OutputError(f"{output} is read here, expected another file", hint="choose another place")


def _let_go(place: Path, handle: int) -> None:
    with _entering:
        del _held[place]
        with contextlib.suppress(OSError):  # on Windows an open file stays, and the next takes it over
            _lock_file(place).unlink()
        os.close(handle)


def _lock_file(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _taken(output: Path, holder: str) -> OutputError:
    return OutputError(
        f"{output} is being written by {holder}, expected nobody else to write it",
        hint="wait until that ends, or choose another -o",
    )


def _lock(output: Path, place: Path) -> int:
    """The open lock file. Raises `OutputError`."""
    path = _lock_file(place)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # no link to someone else's file
    while True:
        try:
            handle = os.open(path, flags, 0o644)
        except OSError as error:
            raise unwritable(output, error) from error
        try:
            lock(handle, wait=False)
            ours = os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:  # its holder has just removed it: ours would be a lock that nobody else sees
            ours = False
        except OSError as error:
            holder = os.pread(handle, 100, 0).decode(errors="replace") if hasattr(os, "pread") else ""
            os.close(handle)
            if error.errno in _BUSY:
                raise _taken(output, holder.strip() or "another process") from error
            raise OutputError(
                f"the disk of {output} has no locks ({error.strerror}), expected to keep others from writing there",
                hint="choose another -o, on a local disk",
            ) from error
        if ours:
            with contextlib.suppress(OSError):  # a courtesy to who is refused, for which a disk may be too full
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()}".encode())
            return handle
        os.close(handle)


def lock(handle: int, *, wait: bool) -> None:
    """Take the system's lock of an open file, which goes with the process.

    Raises `OSError` where another has it, unless told to `wait`.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            while True:
                try:
                    msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                    return
                except OSError:  # after ten seconds
                    if not wait:
                        raise
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _clear(place: Path) -> None:
    """Remove what a process that was killed in `mpmmu_rt.files` left: we hold the place, so nobody else works there.

    A folder that was moved aside, to be replaced, and was not, comes back."""
    name = re.compile(rf"\.{re.escape(place.name)}(?:\.partial)?\.[a-z0-9_]{{8}}\.(partial|old)")
    for path in place.parent.iterdir():
        if (found := name.fullmatch(path.name)) is None or path.is_symlink():
            continue
        if found[1] == "old" and not place.exists():
            path.rename(place)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def unwritable(output: Path, error: OSError) -> OutputError:
    """What to raise for `error` of making a file beside `output`."""
    folder = output.parent
    if not folder.is_dir():
        return OutputError(
            f"the folder {folder} does not exist, expected the place to write {output.name} into",
            hint=f"mkdir -p {quoted(folder)}",
        )
    if is_full(error):
        return full(output, "nothing was begun", "try again")
    return OutputError(
        f"the folder {folder} can't be written ({error.strerror}), expected the place to write {output.name} into",
        hint="check its permissions, or choose another -o",
    )


def check_writable(output: Path) -> None:
    """Raise `OutputError` unless a file can be made in the folder of `output`: before the work that shall end there."""
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise unwritable(output, error) from error


def require_room(output: Path, need_bytes: float, what: str) -> None:
    """Raise `OutputError` where the disk of `output` has less than an estimate of what `what` takes."""
    try:
        free = shutil.disk_usage(output.parent).free
    except OSError as error:
        raise unwritable(output, error) from error
    if free < need_bytes:
        raise OutputError(
            f"the disk of {output} has {_size(free)} left, expected some {_size(need_bytes)} for {what}",
            hint="free some space, or choose another -o",
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def is_full(error: BaseException) -> bool:
    """Whether `error` comes from a disk without space, a quota or a limit of file sizes, whoever raised it."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        in_words = isinstance(error, shutil.Error) or not isinstance(error, OSError | MpmmuError)
        if in_words and _FULL_TEXT.search(str(error)):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return False


def full(output: Path, kept: str, then: str) -> OutputError:
    """What to raise where `output` could not be written for want of space. kept: what there is; then: what to do."""
    return OutputError(
        f"no space left on the disk of {output}, expected room for it; {kept}", hint=f"free some space, then {then}"
    )
