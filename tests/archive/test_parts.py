"""Parts of an output: whole or not there, and of one run alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpmmu_rt.archive.parts import FORMATS, Parts, holds_rows
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import OutputError
from mpmmu_rt.journal import COLUMNS, Layout, Row

HEADER = {"schema": "mpmmu-run/4", "manifest": "a", "batch": 3}
IDS = ("a", "b, c", "d")
ROWS: list[Row] = [
    ("a", "0.12345679", "benign", "", "said of it, twice"),
    ("b, c", "", "", 'x.png "is" broken', ""),
    ("d", "0.9", "malignant", "", ""),
]


@pytest.fixture(params=FORMATS)
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Parts:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    found = Parts(tmp_path / "p.partial", HEADER, COLUMNS, request.param)
    found.clear()
    found.seal()
    return found


@pytest.fixture
def layout(bundle_folder: Path) -> Layout:
    return Layout(dict(HEADER), Bundle.open(bundle_folder), frozenset(IDS))


def test_a_part_reads_back_what_was_written(parts: Parts, layout: Layout) -> None:
    assert parts.done() == set()
    parts.write(7, ROWS)
    assert parts.done() == {7}
    assert parts.read(7, IDS, layout) == ROWS


def test_a_part_that_is_not_whole_is_named(parts: Parts, layout: Layout) -> None:
    parts.write(7, ROWS)
    with pytest.raises(OutputError, match=r"part-00000007.* is damaged") as caught:
        parts.read(7, ("a", "d", "b, c"), layout)
    assert "--resume" in caught.value.hint
    data = parts.path(7).read_bytes()
    for cut in (0, 1, len(data) // 2, len(data) - 5):
        parts.path(7).write_bytes(data[:cut])
        with pytest.raises(OutputError, match="is damaged"):
            parts.read(7, IDS, layout)
    parts.path(7).unlink()
    with pytest.raises(OutputError, match="is damaged"):
        parts.read(7, IDS, layout)


def test_how_often_a_shard_was_begun(parts: Parts) -> None:
    assert [parts.begin(3) for _ in range(3)] == [0, 1, 2]
    assert parts.begin(4) == 0
    parts.write(3, ROWS)
    assert parts.begin(3) == 0


def test_parts_of_another_run_are_refused(parts: Parts) -> None:
    parts.write(0, ROWS)
    other = Parts(parts.work, HEADER | {"batch": 4}, COLUMNS, "csv")
    assert other.folder != parts.folder, "a worker that outlived its run writes into no other's parts"
    with pytest.raises(OutputError, match=r"belongs to another run \(other batch\)"):
        other.begun()
    assert parts.begun()
    assert parts.done() == {0}


def test_of_a_shard_that_is_done_again_the_other_rows_stay(parts: Parts, layout: Layout) -> None:
    parts.write(7, ROWS)
    assert parts.kept(7, IDS, layout) == {}
    parts.keep(7, [ROWS[0], ROWS[2]])
    assert parts.done() == set()
    assert holds_rows(parts.work)
    assert parts.kept(7, IDS, layout) == {"a": ROWS[0], "d": ROWS[2]}
    data = next(parts.folder.glob("kept/*")).read_bytes()
    next(parts.folder.glob("kept/*")).write_bytes(data[:1])
    with pytest.raises(OutputError, match=r"kept/part-00000007.* is damaged"):
        parts.kept(7, IDS, layout)
    parts.write(7, ROWS)
    assert parts.kept(7, IDS, layout) == {}
    parts.keep(7, [])
    assert parts.done() == set()
    assert not holds_rows(parts.work)


def test_what_was_not_begun_to_the_end_counts_for_nothing(parts: Parts, layout: Layout) -> None:
    parts.write(0, ROWS)
    (parts.folder / "header.json").unlink()
    assert not parts.begun()
    assert not holds_rows(parts.work)
    parts.clear()
    assert parts.done() == set()
