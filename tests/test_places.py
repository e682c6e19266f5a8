"""Places that are written to: one process at a time, nothing left by one that was killed, and room."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from mpmmu_rt.cli import app
from mpmmu_rt.errors import OutputError
from mpmmu_rt.files import atomic_file
from mpmmu_rt.folders import Kind, atomic_folder
from mpmmu_rt.places import check_writable, claimed, is_full, require_other, require_room, written

HOLD = """
import sys, time
from pathlib import Path
from mpmmu_rt.folders import Kind, atomic_folder
from mpmmu_rt.places import claimed
out = Path(sys.argv[1])
with claimed(out):
    with atomic_folder(out, Kind("mark"), overwrite=True) as partial:
        (partial / "half").write_text("half")
        print("held", flush=True)
        time.sleep(60)
"""


def holder(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = holder(out)
    try:
        with (
            pytest.raises(OutputError, match=rf"out is being written by process {process.pid}, expected"),
            claimed(out),
        ):
            pytest.fail("the block must not run")
        with claimed(tmp_path / "other"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(names(tmp_path)) == 2, "the lock file and the half-written folder"
    with claimed(out):
        assert names(tmp_path) == [".out.lock"]
    assert names(tmp_path) == []


def test_a_folder_that_was_moved_aside_and_not_replaced_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".out.abc_1234.old"
    old.mkdir()
    (old / "mark").write_text("mine")
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "mark").read_text() == "mine"
    old.mkdir()
    with claimed(tmp_path / "out"):
        assert not old.exists(), "there is a newer one"


@pytest.mark.parametrize(
    "name",
    [
        *(".out.json.abcd1234.partial", ".out.abcd1234.partial.gz", "out.abcd1234.partial"),
        *(".out.partial", ".out.ABCD1234.partial"),
    ],
)
def test_what_others_left_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("another's")
    with claimed(tmp_path / "out"):
        pass
    assert names(tmp_path) == [name]


def test_a_link_beside_it_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "keep").write_text("")
    (tmp_path / ".out.abcd1234.partial").symlink_to(target)
    with claimed(tmp_path / "out"):
        pass
    assert (target / "keep").exists()


def test_what_is_written_of_a_link_is_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    links = {"file": tmp_path / "kept.csv", "two": tmp_path / "file", "folder-link": tmp_path / "folder"}
    for name, to in links.items():
        (tmp_path / name).symlink_to(to)
    (tmp_path / "null").symlink_to(os.devnull)
    assert written(tmp_path / "file") == written(tmp_path / "two") == (tmp_path / "kept.csv").resolve()
    for name in ("kept.csv", "folder", "folder-link", "null"):
        assert written(tmp_path / name) == tmp_path / name


def test_claims_of_one_thread_nest_and_those_of_two_do_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def other() -> None:
        try:
            with claimed(out):
                seen.append("in")
        except OutputError as error:
            seen.append(str(error))

    with claimed(out), claimed(out):
        with atomic_folder(out, Kind("mark"), overwrite=False) as partial:
            (partial / "mark").write_text("")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert "is being written by another thread of this process" in seen[0]
    other()
    assert seen[1] == "in"


def test_of_many_that_want_it_one_has_it_at_a_time(tmp_path: Path) -> None:
    """The lock file is removed by its holder: whoever opened it before must not believe to hold the place."""
    script = """
import os, sys, time
from pathlib import Path
from mpmmu_rt.errors import OutputError
from mpmmu_rt.places import claimed
out, mark = Path(sys.argv[1]), Path(sys.argv[2])
entered = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with claimed(out):
            handle = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails if another is inside
            os.close(handle)
            entered += 1
            mark.unlink()
    except OutputError:
        pass
print(entered)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "mark")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert int(stdout) > 0
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    for folder in (Path("/proc/self"), tmp_path / "no"):
        with pytest.raises(OutputError, match=f"{folder}.* expected the place to write x"), claimed(folder / "x"):
            pytest.fail("the block must not run")
        with pytest.raises(OutputError, match=f"{folder}.* expected the place to write x"):
            check_writable(folder / "x")


def test_what_is_read_is_not_written_over_by_any_name(tmp_path: Path) -> None:
    read = [None, tmp_path / "gone.png", tmp_path / "a.png"]
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "same.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"pixels")
    for name in ("a.png", "link.png", "same.png"):
        with pytest.raises(OutputError, match=f"{name} is read here, expected another file"):
            require_other(tmp_path / name, read)
    for name in ("b.png", "new.png"):
        require_other(tmp_path / name, read)


def test_room_is_asked_for_before(tmp_path: Path) -> None:
    require_room(tmp_path / "x", 1, "a byte")
    with pytest.raises(OutputError, match=r"left, expected some 1000000000\.0 GB for a world"):
        require_room(tmp_path / "x", 1e18, "a world")
    with pytest.raises(OutputError, match=r"no.* expected the place to write x"):
        require_room(tmp_path / "no" / "x", 1, "a byte")


def test_a_fork_holds_nothing_and_lets_go_of_nothing(tmp_path: Path) -> None:
    script = """
import os, sys, warnings
from pathlib import Path
from mpmmu_rt.errors import OutputError
from mpmmu_rt.places import claimed
out = Path(sys.argv[1])
with claimed(out):
    child = os.fork()
    if child == 0:
        try:
            with claimed(out):
                os._exit(3)
        except OutputError as error:
            print(error, flush=True)
    else:
        assert os.waitpid(child, 0)[1] == 0
        assert out.with_name(".out.lock").exists(), "the child has left the block, and its parent has not"
if child:
    print(out.with_name(".out.lock").exists())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refusal, left = done.stdout.splitlines()
    assert "out is being written by process" in refusal
    assert left == "False"


def test_a_disk_too_full_for_the_name_of_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is the system's; who holds it is a courtesy."""

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with claimed(tmp_path / "out"):
            assert names(tmp_path) == [".out.lock"]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)
def test_a_full_disk_is_known_whoever_tells(error: Exception) -> None:
    wrapped = ValueError("something else")
    wrapped.__cause__ = error
    assert is_full(error)
    assert is_full(wrapped)
    assert not is_full(ValueError("no space in the name"))
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")]))


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["phantom 12 -o {out}", "train --phantom 60 --preset tiny --epochs 1 -o {out}", "export {checkpoint} -o {out}"],
)
def test_no_room_while_writing_is_called_so(command: str, checkpoint_folder: Path, tmp_path: Path) -> None:
    """A limit of file sizes stands for a full disk: the system refuses in the same places."""
    arguments = command.format(out=tmp_path / "out", checkpoint=checkpoint_folder).split()
    done = subprocess.run(
        [sys.executable, "-m", "mpmmu_rt", *arguments], preexec_fn=_limited, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    error, hint = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert "no space left on the disk of" in error
    assert "Error" not in error
    assert hint.startswith("hint: free some space, then ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path, number: int, code: int, said: str) -> None:
    out = tmp_path / "checkpoint"
    arguments = ["train", "--phantom", "60", "--preset", "tiny", "--epochs", "200", "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "mpmmu_rt", *arguments], stderr=subprocess.PIPE, text=True)
    state = out.with_name("checkpoint.training") / "mammography.state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = subprocess.run([sys.executable, "-m", "mpmmu_rt", *arguments], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"{out} is being written by process {process.pid}" in second.stderr
    assert "going on with the training" not in second.stderr
    os.kill(process.pid, number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == code, stderr
    error, hint = stderr.splitlines()[-2:]
    assert error.startswith(f"error: {said}; ")
    assert "kept in" in error
    assert hint == f"hint: to go on: mpmmu-rt {' '.join(arguments)}"
    assert names(tmp_path) == ["checkpoint.training"]


def test_a_training_does_not_remove_what_lies_in_the_place_of_its_state(tmp_path: Path) -> None:
    (mine := tmp_path / "checkpoint.training").mkdir()
    (mine / "notes.md").write_text("years of work")
    ran = CliRunner().invoke(app, ["train", "--phantom", "60", "--preset", "tiny", "-o", str(tmp_path / "checkpoint")])
    assert ran.exit_code == 1
    assert f"{mine} holds notes.md, which no earlier output has" in ran.stderr
    assert names(tmp_path) == ["checkpoint.training"]


def test_a_name_without_room_for_what_stands_around_it_is_refused_before_the_work(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * 229)
    with claimed(longest), atomic_file(longest) as partial:
        partial.write_text("fits")
    for name in ("a" * 230, "ä" * 115, "a" * 300):
        with pytest.raises(OutputError, match="bytes, expected one of 1 to 229"), claimed(tmp_path / name):
            pytest.fail("the block must not run")
    for place in (Path("."), Path("/"), Path("/dev/stdout")):
        with pytest.raises(OutputError), claimed(place):
            pytest.fail("the block must not run")
