from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from mpmmu_rt.errors import BundleError, OutputError
from mpmmu_rt.files import (
    atomic_file,
    parse_json_object,
    read_bounded,
    result_file,
    sha256_file,
    sha256_of,
)
from mpmmu_rt.places import claimed, is_fed


class Cut(Exception):
    """What goes wrong in the middle of a block."""


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with atomic_file(path) as partial:
        partial.write_text("1")
        assert not path.exists()
        assert partial.parent == tmp_path  # a rename across file systems is no rename
    assert path.read_text() == "1"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert listing(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("kind", [Cut, KeyboardInterrupt, SystemExit])
def test_a_file_that_fails_leaves_what_was_there(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(kind), atomic_file(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise kind
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["out.csv"]


def test_a_file_over_a_folder_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="out"), atomic_file(tmp_path / "out") as partial:
        partial.write_text("x")
    assert listing(tmp_path) == ["out"]


def test_a_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"the folder .*/no does not exist, expected") as caught,
        atomic_file(tmp_path / "no" / "out.csv"),
    ):
        pytest.fail("the block must not run")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'no'}"


def test_bounded_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5, BundleError, "h") == b"12345"
    with pytest.raises(BundleError, match="larger than 4 bytes") as caught:
        read_bounded(path, 4, BundleError, "h")
    assert caught.value.hint == "h"
    for missing in (tmp_path / "no", tmp_path):
        with pytest.raises(BundleError, match=r"can't be read: .*, expected a file"):
            read_bounded(missing, 4, BundleError, "h")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(BundleError, match="larger than 1000 bytes"):
        read_bounded(Path("/dev/zero"), 1000, BundleError, "h")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"\x00\x01\x02\x80", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"[1]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON NoneType, expected an object"),
        (b'"text"', "holds a JSON str, expected an object"),
    ],
)
def test_what_is_not_a_json_object_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(BundleError, match=f"f.json {problem}"):
        parse_json_object(Path("f.json"), data, BundleError, "h")


def test_a_json_object_is_read() -> None:
    assert parse_json_object(Path("f"), b'\xef\xbb\xbf{"a": [1]}', BundleError, "h") == {"a": [1]}


@pytest.mark.parametrize(
    "data", [b'{"a": 1, "b": 2, "a": 3}', b'{"b": [{"a": 1, "a": 1}]}', b'{"a": {}, "\\u0061": {}}']
)
def test_a_key_that_is_there_twice_is_refused(data: bytes) -> None:
    """Of two values one reader takes the first, and another the last."""
    with pytest.raises(BundleError, match=r"^f has the key 'a' twice in one object, expected every key once$"):
        parse_json_object(Path("f"), data, BundleError, "hint")
    assert parse_json_object(Path("f"), b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}', BundleError, "hint")


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9999
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_digest_of_a_folder_is_what_sha256sum_says(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for name in ("part-1", "_rows.json", "a b", "Z"):
        (folder / name).write_text(name)
    before = sha256_of(folder)
    listed = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in ("Z", "_rows.json", "a b", "part-1"))
    assert before == hashlib.sha256(listed.encode()).hexdigest()
    if shutil.which("sha256sum"):
        command = 'export LC_ALL=C; cd "$1"; sha256sum * | sha256sum'
        done = subprocess.run(["bash", "-c", command, "-", folder], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == before
    (folder / "a b").rename(folder / "c")
    assert sha256_of(folder) != before
    (folder / "c").rename(folder / "a b")
    assert sha256_of(folder) == before
    (folder / "more").write_text("")
    assert sha256_of(folder) != before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_result_goes_into_a_pipe_and_never_takes_its_place(tmp_path: Path) -> None:
    """As root, a rename onto /dev/null would put a file into its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    with result_file(pipe) as file:
        file.write("a result")
    assert reader.communicate(timeout=20)[0] == "a result"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert listing(tmp_path) == ["pipe"]
    with pytest.raises(OutputError, match="pipe is a device or a pipe, expected a free path"), claimed(pipe):
        pytest.fail("the block must not run")


def test_a_result_goes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there/result")
    for text in ("first", "second"):
        with result_file(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "there/result").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert is_fed(Path("/dev/null"))
    assert not is_fed(tmp_path / "link")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files have no names here")
def test_a_result_goes_behind_what_an_open_file_holds(tmp_path: Path) -> None:
    with (tmp_path / "log").open("a") as log:
        log.write("before\n")
        log.flush()
        with result_file(Path(f"/proc/self/fd/{log.fileno()}")) as file:
            file.write("a result\n")
        log.write("behind\n")
    assert (tmp_path / "log").read_text() == "before\na result\nbehind\n"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no such disk here")
def test_a_file_on_the_disk_in_memory_is_a_file() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "out.csv"
        path.write_text("there")
        assert not is_fed(path)
        with claimed(path), atomic_file(path) as partial:
            partial.write_text("new")
        assert path.read_text() == "new"
