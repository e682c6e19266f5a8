from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mpmmu_rt.bundle import KIND as BUNDLE
from mpmmu_rt.errors import OutputError
from mpmmu_rt.folders import Kind, atomic_folder, check_replaceable, files_in, require_own

KIND = Kind("mark", ("data", "inner/*.png"))


class Cut(Exception):
    """What goes wrong in the middle of a block."""


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def earlier(folder: Path) -> Path:
    """An output of an earlier run: the marker and another file."""
    folder.mkdir()
    (folder / "mark").write_text("old")
    (folder / "data").write_text("old")
    return folder


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_folder(path, KIND, overwrite=False) as partial:
        (partial / "mark").write_text("new")
        assert not path.exists()
    assert listing(tmp_path) == ["out", "out/mark"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask


def test_all_in_a_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    """Of libraries' files as well: safetensors writes private ones."""
    path = tmp_path / "out"
    with atomic_folder(path, KIND, overwrite=False) as partial:
        (partial / "inner").mkdir(mode=0o700)
        for name in ("mark", "inner/private"):
            (partial / name).touch(mode=0o600)
    mask = os.umask(0)
    os.umask(mask)
    for one in (path, path / "inner"):
        assert stat.S_IMODE(one.stat().st_mode) == 0o777 & ~mask
    for one in (path / "mark", path / "inner/private"):
        assert stat.S_IMODE(one.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("kind", [Cut, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path, kind: type[BaseException]) -> None:
    path = earlier(tmp_path / "out")
    with pytest.raises(kind), atomic_folder(path, KIND, overwrite=True) as partial:  # noqa: PT012
        (partial / "mark").write_text("half")
        raise kind
    assert listing(tmp_path) == ["out", "out/data", "out/mark"]
    assert (path / "mark").read_text() == "old"


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    with atomic_folder(path, KIND, overwrite=True) as partial:
        (partial / "mark").write_text("new")
        assert (path / "mark").read_text() == "old"
    assert listing(tmp_path) == ["out", "out/mark"]
    assert (path / "mark").read_text() == "new"


def test_an_earlier_output_needs_overwrite(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already") as caught:
        check_replaceable(path, KIND, overwrite=False)
    assert "--overwrite" in caught.value.hint
    check_replaceable(path, KIND, overwrite=True)


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def a_file(path: Path) -> None:
    path.write_text("years of work")


def marker_is_a_folder(path: Path) -> None:
    (path / "mark").mkdir(parents=True)


def link_to_an_output(path: Path) -> None:
    path.symlink_to(earlier(path.with_name("real")))


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("make", [foreign_folder, a_file, marker_is_a_folder, link_to_an_output, dangling_link])
def test_what_is_not_an_earlier_output_is_never_replaced(tmp_path: Path, make: object) -> None:
    path = tmp_path / "out"
    make(path)  # type: ignore[operator]
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="expected a free path"), atomic_folder(path, KIND, overwrite=True):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == before


def test_a_foreign_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with (  # noqa: PT012
        pytest.raises(OutputError, match="holds no mark"),
        atomic_folder(path, KIND, overwrite=True) as partial,
    ):
        (partial / "mark").write_text("new")
        foreign_folder(path)
    assert listing(tmp_path) == ["out", "out/thesis.tex"]


def a_file_beside(path: Path) -> str:
    (path / "notes.md").write_text("years of work")
    return "notes.md"


def a_file_of_a_pattern_elsewhere(path: Path) -> str:
    (path / "sub").mkdir()
    (path / "sub/data").write_text("years of work")
    return "sub/data"


def a_file_below_a_pattern(path: Path) -> str:
    (path / "inner/mine").mkdir(parents=True)
    (path / "inner/mine/0001.png").write_text("years of work")
    return "inner/mine/0001.png"


def a_hidden_file(path: Path) -> str:
    (path / ".git").mkdir()
    (path / ".git/HEAD").write_text("ref: refs/heads/main")
    return ".git/HEAD"


def a_link_to_a_folder(path: Path) -> str:
    (path / "images").symlink_to(path.parent, target_is_directory=True)
    return "images"


def a_dangling_link(path: Path) -> str:
    (path / "images").symlink_to(path / "nowhere")
    return "images"


@pytest.mark.parametrize(
    "put",
    [
        a_file_beside,
        a_file_of_a_pattern_elsewhere,
        a_file_below_a_pattern,
        a_hidden_file,
        a_link_to_a_folder,
        a_dangling_link,
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_somebody_put_into_an_output_is_never_lost(tmp_path: Path, put: object, overwrite: bool) -> None:
    """Also where `--overwrite` is not given: a hint that asks for it would be followed by another refusal."""
    path = earlier(tmp_path / "out")
    name = put(path)  # type: ignore[operator]
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=f"out holds {name}, which no earlier output has") as caught:
        check_replaceable(path, KIND, overwrite=overwrite)
    assert caught.value.hint == "move it elsewhere, or choose another path with -o"
    with pytest.raises(OutputError, match="would be lost"), atomic_folder(path, KIND, overwrite=overwrite):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == before
    (path / name).rename(tmp_path / "elsewhere")  # the hint
    check_replaceable(path, KIND, overwrite=True)


def test_several_strangers_are_said_to_be(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    for name in ("b.txt", "a.txt"):
        (path / name).touch()
    with pytest.raises(OutputError, match=r"holds a\.txt and more, which"):
        require_own(path, KIND)


def test_what_is_put_into_an_output_while_it_is_made_anew_is_not_lost(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    with (  # noqa: PT012
        pytest.raises(OutputError, match=r"holds notes\.md"),
        atomic_folder(path, KIND, overwrite=True) as partial,
    ):
        (partial / "mark").write_text("new")
        a_file_beside(path)
    assert listing(tmp_path) == ["out", "out/data", "out/mark", "out/notes.md"]


def test_what_systems_leave_in_an_output_goes_with_it(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    (path / "inner/__pycache__").mkdir(parents=True)
    left = (
        ".DS_Store",
        "inner/Thumbs.db",
        "inner/__pycache__/model.cpython-312.pyc",
        "inner/__pycache__/model.cpython-312.opt-1.pyc",
        "inner/.history.csv.ab_cd123.partial",
    )
    for name in (*left, "inner/0001.png"):
        (path / name).touch()
    (path / "empty").mkdir()
    with atomic_folder(path, KIND, overwrite=True) as partial:
        (partial / "mark").write_text("new")
    assert listing(tmp_path) == ["out", "out/mark"]


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ('{"schema": "mpmmu-toy/1"}', True),
        ('{\n  "schema": "mpmmu-toy/2",', True),  # of another version, and cut
        ('{"schema": "mpmmu-toys/1"}', False),
        ('{"name": "app", "schema": "mpmmu-toy/1"}', False),
        ('{"name": "app"}', False),
        ("", False),
    ],
)
def test_a_document_of_that_name_is_not_yet_ours(tmp_path: Path, text: str, ours: bool) -> None:
    """`config.json` and `report.json` are what many call theirs."""
    path, kind = tmp_path / "out", Kind("config.json", schema="mpmmu-toy/3")
    path.mkdir()
    (path / "config.json").write_text(text)
    assert kind.marks(path) == ours
    if not ours:
        with pytest.raises(OutputError, match=r"holds no config\.json of `mpmmu-toy/3`, expected"):
            check_replaceable(path, kind, overwrite=True)
        assert (path / "config.json").read_text() == text


def test_the_marker_lists_what_no_pattern_could(tmp_path: Path) -> None:
    path, kind = tmp_path / "out", Kind("mark", listed=True)
    with atomic_folder(path, kind, overwrite=False) as partial:
        (partial / "ours/1").mkdir(parents=True)
        (partial / "ours/1/model.py").touch()
        (partial / "mark").write_text("\n".join(["digest", *files_in(partial)]))
    check_replaceable(path, kind, overwrite=True)
    (path / "theirs/1").mkdir(parents=True)
    (path / "theirs/1/model.py").touch()
    with pytest.raises(OutputError, match=r"holds theirs/1/model\.py, which"):
        check_replaceable(path, kind, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_can_not_be_looked_into_is_not_removed(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    (path / "closed").mkdir(mode=0)
    with pytest.raises(PermissionError):
        check_replaceable(path, KIND, overwrite=True)


@pytest.mark.parametrize("make", [link_to_an_output, dangling_link])
def test_a_link_is_refused_before_the_work_that_ends_in_its_removal(tmp_path: Path, make: object) -> None:
    path = tmp_path / "out"
    make(path)  # type: ignore[operator]
    with pytest.raises(OutputError, match="out is a link, expected a free path or a folder") as caught:
        require_own(path, KIND)
    assert caught.value.hint == "remove it, or choose another path with -o"


def test_a_folder_that_is_not_there_has_no_strangers(tmp_path: Path) -> None:
    require_own(tmp_path / "out", KIND)


@pytest.mark.parametrize("folder", ["checkpoint_folder", "bundle_folder", "int8_folder"])
def test_what_the_package_writes_it_may_replace(folder: str, request: pytest.FixtureRequest) -> None:
    """Every file of it is of its kind: else `--overwrite` would refuse an output of its own."""
    pytest.importorskip("torch")
    from mpmmu_rt.model.checkpoint import KIND as CHECKPOINT

    kind = CHECKPOINT if folder == "checkpoint_folder" else BUNDLE
    check_replaceable(request.getfixturevalue(folder), kind, overwrite=True)
