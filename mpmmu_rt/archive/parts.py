"""What is there of an output: a file for each finished shard, which appears whole or not at all.

The folder `<output>.partial` holds one folder for what is made, named by the digest of all that rows depend on: a
worker that outlived its run can write into no other's. In it lie the parts, and how often each shard was begun.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import OutputError
from mpmmu_rt.files import atomic_file, write_json
from mpmmu_rt.journal import Layout, Row, how_to_go_on

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

    def make(self) -> None:
        """Raises `OutputError` where another run's parts are there."""
        for other in self.work.glob("*/header.json"):
            found = json.loads(other.read_bytes())
            if differs := [key for key in self.header if found.get(key) != self.header[key]]:
                raise OutputError(
                    f"{self.work} belongs to another run (other {', '.join(differs)}), expected this run's",
                    hint=how_to_go_on([key for key in differs if key != "head_target"], found),
                )
        for folder in (self.folder / "parts", self.folder / "begun"):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "header.json", self.header)

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
        with atomic_file(self.path(index)) as partial:
            if self._form == "csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows(rows)
            else:
                _write_parquet(partial, self.columns, rows)
        (self.folder / "begun" / f"{index:08}").unlink(missing_ok=True)

    def read(self, index: int, ids: Sequence[str], layout: Layout) -> list[Row]:
        """The rows of a part, which must be those of the cases `ids`. Raises `OutputError`."""
        path = self.path(index)
        try:
            cells = _read_parquet(path, self.columns) if self._form == "parquet" else _read_csv(path)
        except (OSError, ValueError, csv.Error):
            cells = []
        rows = [row for one in cells if (row := layout.row(one)) is not None]
        if [row[0] for row in rows] != list(ids):
            raise OutputError(
                f"{path} is damaged, expected the rows that this run has written",
                hint=f"rm {path}, then pass --resume",
            )
        return rows


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
    from mpmmu_rt.run import shortest

    table = require("pyarrow.parquet", "Parquet").read_table(path, columns=list(columns))
    return [
        ["" if cell is None else cell if isinstance(cell, str) else shortest(np.float32(cell)) for cell in row.values()]
        for row in table.to_pylist()
    ]
