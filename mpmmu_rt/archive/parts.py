"""What is there of an output: a file for each finished shard, which appears whole or not at all.

The folder `<output>.partial` holds one folder for what is made, named by the digest of all that rows depend on: a
worker that outlived its run can write into no other's. In it lie the parts, how often each shard was begun, and of
shards whose rows with errors shall be made again the others. It counts once its `header.json` is there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import OutputError, quoted
from mpmmu_rt.files import atomic_file, write_json
from mpmmu_rt.journal import Layout, Row, how_to_go_on
from mpmmu_rt.origin import Entry

FORMATS = ("csv", "parquet")
_NAME = re.compile(r"part-(\d{8})\.(csv|parquet)")


class Parts:
    """The parts of one output. header: all that its rows depend on, JSON values."""

    def __init__(self, work: Path, header: Mapping[str, Any], columns: Sequence[str], form: str) -> None:
        """work: `<output>.partial`, which need not be there. form: of `FORMATS`."""
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
        self.work, self.folder, self.header = work, work / digest, dict(header)
        self.columns = tuple(columns)
        self._form = form

    @property
    def _header_file(self) -> Path:
        return self.folder / "header.json"

    def begun(self) -> bool:
        """Whether there is something to go on from. Raises `OutputError` where another run's parts are there."""
        for other in self.work.glob("*/header.json"):
            found = json.loads(other.read_bytes())
            if differs := [key for key in self.header if found.get(key) != self.header[key]]:
                raise OutputError(
                    f"{self.work} belongs to another run (other {', '.join(differs)}), expected this run's",
                    hint=how_to_go_on(differs, found),
                )
        return self._header_file.exists()

    def clear(self) -> None:
        """Make room for a run that is not begun: `seal` tells that it is."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        for folder in ("parts", "begun", "kept"):
            (self.folder / folder).mkdir(parents=True)

    def seal(self, by: Entry | None = None, earlier: Sequence[Entry] = ()) -> None:
        """by, earlier: see `mpmmu_rt.origin`."""
        write_json(self._header_file, {**self.header, "made_by": by, "earlier": list(earlier)})

    def sealed(self) -> dict[str, Any]:
        """What `seal` wrote; of an earlier version the header alone."""
        found: dict[str, Any] = json.loads(self._header_file.read_bytes())
        return found

    def done(self) -> set[int]:
        """Indices of the shards whose part is there."""
        names = (_NAME.fullmatch(path.name) for path in (self.folder / "parts").iterdir())
        return {int(name[1]) for name in names if name}

    def path(self, index: int) -> Path:
        return self.folder / "parts" / f"part-{index:08}.{self._form}"

    def begin(self, index: int) -> int:
        """How often this shard was begun before, and has not been finished."""
        path = self.folder / "begun" / f"{index:08}"
        with path.open("a+b") as file:
            file.write(b".")
            return file.tell() - 1

    def write(self, index: int, rows: Sequence[Row]) -> None:
        self._write(self.path(index), rows)
        (self.folder / "begun" / f"{index:08}").unlink(missing_ok=True)
        self._kept(index).unlink(missing_ok=True)

    def read(self, index: int, ids: Sequence[str], layout: Layout) -> list[Row]:
        """The rows of a part, which must be those of the cases `ids`. Raises `OutputError`."""
        rows = self._rows(self.path(index), ids, layout)
        if [row[0] for row in rows] != list(ids):
            raise _damaged(self.path(index))
        return rows

    def keep(self, index: int, rows: Sequence[Row]) -> None:
        """Have a shard done again, but for `rows`: a part that is there goes once these are."""
        if rows:
            self._kept(index).parent.mkdir(exist_ok=True)  # an earlier version has begun without
            self._write(self._kept(index), rows)
        self.path(index).unlink(missing_ok=True)

    def drop(self, index: int) -> None:
        """Have a shard done again, whole."""
        self.path(index).unlink(missing_ok=True)
        self._kept(index).unlink(missing_ok=True)

    def written_ns(self, index: int) -> int:
        """When the rows of a shard were written, or what is kept of them."""
        path = self.path(index)
        return (path if path.exists() else self._kept(index)).stat().st_mtime_ns

    def keeps(self, index: int) -> bool:
        return self._kept(index).exists()

    def kept(self, index: int, ids: Sequence[str], layout: Layout) -> dict[str, Row]:
        """What `keep` was told of a shard, whose cases are `ids`; nothing of most. Raises `OutputError`."""
        path = self._kept(index)
        if not self.keeps(index):
            return {}
        rows = {row[0]: row for row in self._rows(path, ids, layout)}
        if not rows:
            raise _damaged(path)
        return rows

    def _kept(self, index: int) -> Path:
        return self.folder / "kept" / self.path(index).name

    def _write(self, path: Path, rows: Sequence[Row]) -> None:
        with atomic_file(path) as partial:
            if self._form == "csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows(rows)
            else:
                _write_parquet(partial, self.columns, rows)

    def _rows(self, path: Path, ids: Sequence[str], layout: Layout) -> list[Row]:
        """Those that can be read; of a file that can't be, none."""
        layout = replace(layout, case_ids=frozenset(ids))
        try:
            cells = _read_parquet(path, self.columns) if self._form == "parquet" else _read_csv(path)
        except (OSError, ValueError, csv.Error):
            return []
        return [row for one in cells if (row := layout.row(one)) is not None]


def _damaged(path: Path) -> OutputError:
    return OutputError(
        f"{path} is damaged, expected the rows that this run has written",
        hint=f"rm {quoted(path)}, then pass --resume",
    )


def holds_rows(work: Path) -> bool:
    """Whether there is something to go on from in `<output>.partial`, by whichever run."""
    begun = [path.parent for path in work.glob("*/header.json")]
    return any(any(folder.glob(f"{kind}/part-*")) for folder in begun for kind in ("parts", "kept"))


def cells_of_output(output: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a finished output, in order: one CSV, or a folder of Parquet parts."""
    if output.is_dir():
        for path in sorted(output.glob("part-*.parquet")):
            yield from _read_parquet(path, columns)
        return
    with output.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        next(reader, None)
        yield from reader


def _read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))


def _write_parquet(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    arrow, parquet = require("pyarrow", "Parquet"), require("pyarrow.parquet", "Parquet")
    table = arrow.table({name: _column(arrow, name, [row[at] for row in rows]) for at, name in enumerate(columns)})
    parquet.write_table(table, path)


def _column(arrow: Any, name: str, cells: Sequence[str]) -> Any:
    """Numbers as float32, empty cells as null."""
    if name == "probability" or name.startswith("base_"):
        return arrow.array([float(cell) if cell else None for cell in cells], arrow.float32())
    return arrow.array([cell or None for cell in cells], arrow.string())


def _read_parquet(path: Path, columns: Sequence[str]) -> list[list[str]]:
    from mpmmu_rt.checks import shortest

    table = require("pyarrow.parquet", "Parquet").read_table(path, columns=list(columns))
    return [
        ["" if cell is None else cell if isinstance(cell, str) else shortest(np.float32(cell)) for cell in row.values()]
        for row in table.to_pylist()
    ]
