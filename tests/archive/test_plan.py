"""A manifest in shards says what `read_manifest` says, and is held by nobody."""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.archive import plan as plans
from mpmmu_rt.archive.plan import read_plan, spooled
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.errors import ManifestError


def write(path: Path, rows: list[list[str]], *, begin: str = "") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(begin)
        csv.writer(file).writerows(rows)
    return path


HEADER = ["case_id", "note", "mammography", "ultrasound", "label"]


def odd(count: int) -> list[list[str]]:
    """Ids and notes with what a CSV must quote, line breaks too, and letters of several bytes."""
    rng = np.random.default_rng(count)
    notes = ("", "a, b", 'she said "x"', "two\nlines", "two\r\nlines", "Ω", " padded ")
    return [
        [f"c{i},{'é' * int(rng.integers(0, 4))}", str(rng.choice(notes)), f"m/{i}.png", f"u/{i}.png", "01"[i % 2]]
        for i in range(count)
    ]


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (7, 3), (9, 3), (50, 64), (333, 10)])
def test_shards_hold_the_same_cases(tmp_path: Path, begin: str, count: int, rows: int) -> None:
    path = write(tmp_path / "m.csv", [HEADER, *odd(count)], begin=begin)
    want = read_manifest(path)
    found = read_plan(path, rows)
    assert (found.sha256, found.rows) == (want.sha256, count)
    assert [shard.index for shard in found.shards] == list(range(-(-count // rows)))
    assert [case for shard in found.shards for case in found.cases(shard)] == list(want.cases)


def test_blank_lines_are_no_cases(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("case_id,mammography,ultrasound\n\na,1,2\n\n\nb,1,2\nc,1,2\n\n")
    found = read_plan(path, 2)
    assert [[case.case_id for case in found.cases(shard)] for shard in found.shards] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("count", [5, 3000])
def test_lines_end_as_they_do_for_one_process(tmp_path: Path, end: str, count: int) -> None:
    """The longer file has lines that begin in one chunk and end in the next."""
    path = tmp_path / "m.csv"
    lines = [",".join(HEADER), *(f'c{i},"two{end}lines",m/{i}.png,u/{i}.png,1' for i in range(count))]
    path.write_bytes("".join(line + end for line in lines).encode())
    want = read_manifest(path)
    found = read_plan(path, 7)
    assert (found.sha256, found.rows) == (want.sha256, count)
    assert [case for shard in found.shards for case in found.cases(shard)] == list(want.cases)
    assert [shard.line for shard in found.shards[:2]] == [2, 2 + 7 * (4 if end == "\r\r\n" else 2)][: len(found.shards)]
    path.write_bytes(path.read_bytes() + b"x,y" + end.encode())
    said = []
    for read in (read_manifest, lambda path: read_plan(path, 7)):
        with pytest.raises(ManifestError, match="has more or fewer cells") as caught:
            read(path)
        said.append(str(caught.value))
    assert said[0] == said[1], "the number of the line, too"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("case_id,mammography\na,1\n", "missing: ultrasound"),
        ("case_id,mammography,ultrasound\n", "has a header and no case"),
        ("case_id,mammography,ultrasound\na,1,2\nb,1\n", ":3 has more or fewer cells"),
        ("case_id,mammography,ultrasound\na,1,2\n,1,2\n", ":3 has the case_id ''"),
        ("case_id,mammography,ultrasound\na,1,2\nb,1,2\nc,1,2\nb,1,2\n", "the case_id `b` in two rows, 2 and 4"),
        (
            "case_id,mammography,ultrasound\n\u00e9,1,2\nb,1,2\nc,1,2\ne\u0301,1,2\n",
            "the same letters otherwise encoded",
        ),
        ('case_id,mammography,ultrasound\na,1,"2\n', "is not valid CSV"),
        ("case_id,mammography,ultrasound\na,1,\0\n", "NUL"),
        ("case_id,mammography,ultrasound\na,1," + "x" * 2**20 + "\n", "a line of 1048576 bytes or more"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=match):
        read_plan(path, 2)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"case_id,mammography,ultrasound\na,1,2\nb\xff,1,2\n")
    with pytest.raises(ManifestError, match=r"is not UTF-8 text \(byte 38\)"):
        read_plan(path, 2)


def test_ids_that_are_folded_alike_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_folded", lambda case_id: len(case_id))
    path = write(tmp_path / "m.csv", [HEADER, *odd(40)])
    assert read_plan(path, 7).rows == 40
    rows = odd(40)
    rows[33][0] = rows[11][0]
    with pytest.raises(ManifestError, match="in two rows, 12 and 34"):
        read_plan(write(path, [HEADER, *rows]), 7)


def test_a_manifest_that_changed_since_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", [HEADER, *odd(9)])
    found = read_plan(path, 3)
    rows = odd(9)
    rows[4][2] = "m/5.png"
    write(path, [HEADER, *rows])
    assert found.cases(found.shards[0])
    with pytest.raises(ManifestError, match="has other rows at line"):
        found.cases(found.shards[1])
    path.unlink()
    with pytest.raises(ManifestError, match="can't be read on this node: No such file"):
        found.cases(found.shards[1])


def test_a_manifest_in_parquet_has_the_same_cases(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = odd(100)
    want = read_manifest(write(tmp_path / "m.csv", [HEADER, *rows]))
    columns = {name: [row[at] for row in rows] for at, name in enumerate(HEADER)}
    label = [int(cell) for cell in columns["label"]]
    parquet.write_table(arrow.table({**columns, "label": label}), tmp_path / "m.parquet", row_group_size=17)
    spooled(tmp_path / "m.parquet", tmp_path / "copy.csv")
    found = read_plan(tmp_path / "m.parquet", 8, copy=tmp_path / "copy.csv")
    assert [case for shard in found.shards for case in found.cases(shard)] == list(want.cases)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ManifestError, match="can't be read as Parquet"):
        spooled(tmp_path / "m.parquet", tmp_path / "copy.csv")


def test_no_row_is_held(tmp_path: Path) -> None:
    """Its peak is far below that of `read_manifest`, which holds every case. (Not nearer to 16 bytes a row: pathlib
    interns the parts of paths, in a table of the interpreter's that grows by megabytes at a time and stays.)"""
    path = write(tmp_path / "m.csv", [HEADER, *odd(20_000)])

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            read()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: read_plan(path, 256)) < peak(lambda: read_manifest(path)) / 5
