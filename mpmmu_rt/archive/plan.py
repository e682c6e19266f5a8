"""The rows of a manifest of any size in shards, without holding them."""

from __future__ import annotations

import csv
import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mpmmu_rt.cases import (
    Case,
    case_of,
    cells_of,
    composed,
    decoded,
    folder_of,
    is_relative,
    no_case,
    remarks_of,
    same_letters,
    take_header,
    unreadable,
    valid_csv,
)
from mpmmu_rt.columns import near_misses
from mpmmu_rt.errors import ManifestError
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES

MAX_LINE_BYTES = 2**20
_CHUNK_BYTES = 2**16
_EVERY = 20_000  # rows between two signs of life


@dataclass(frozen=True)
class Shard:
    """begin, end: where its rows lie in the CSV, in bytes; line: of the first of them; rows: how many they are; digest:
    of their bytes, BLAKE2b of 16."""

    index: int
    begin: int
    end: int
    line: int
    rows: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """A manifest that was read once: every row was checked, and none is held.

    path: the manifest's own, whose folder images are relative to; csv: where its rows lie, the same or a copy; sha256:
    of its bytes; folder: of the images, None where all their paths are absolute.
    """

    path: Path
    csv: Path
    header: tuple[str, ...]
    sha256: str
    shards: tuple[Shard, ...] = ()
    folder: str | None = None

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def remarks(self) -> tuple[str, ...]:
        return remarks_of(self.path, near_misses(self.header))

    def cases(self, shard: Shard) -> list[Case]:
        """Those of a shard, in order. Raises `ManifestError` where the file is not there, or not what it was."""
        try:
            with self.csv.open("rb") as file:
                file.seek(shard.begin)
                data = file.read(shard.end - shard.begin)
        except OSError as error:
            raise ManifestError(
                f"manifest {self.csv} can't be read on this node: {error.strerror}, expected it as on the driver's",
                hint="put it on a file system that all nodes share",
            ) from error
        if _digest(data).hexdigest() != shard.digest:
            raise ManifestError(
                f"{self.csv} has other rows at line {shard.line} than when it was read first, expected it unchanged",
                hint="put back what it was, or start again with --overwrite",
            )
        reader = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), self.header, strict=True)
        return [case_of(self.path, *cells_of(self.path, shard.line + reader.line_num - 1, row)) for row in reader]

    def ids(self, shard: Shard) -> list[str]:
        return [case.case_id for case in self.cases(shard)]


def read_plan(
    path: Path, rows: int, *, copy: Path | None = None, absolute: bool = False, progress: Progress = silent
) -> Plan:
    """Read a manifest once, checking each row as `read_manifest` does, and cut it into shards of `rows` rows.

    copy: a CSV that has its rows, where `path` itself is none. absolute: images must be. Memory: 16 bytes a row, to
    find ids that come twice, and a `Shard` for each `rows`. Raises `ManifestError`.
    """
    source = copy or path
    try:
        size = source.stat().st_size
        with source.open("rb") as file:
            plan = Plan(path, source, (), "")
            check = _require_absolute if absolute else case_of
            return _read(plan, file, rows, check, lambda done: progress("reading the manifest", done, size, "bytes"))
    except OSError as error:
        raise unreadable(path, error) from error


class _Lines:
    """The lines of a CSV as text, counted in bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.offset = 0
        self.digest, self.of_shard = hashlib.sha256(), _digest()

    def _lines(self) -> Iterator[bytes]:
        """As `io.StringIO` ends them for `read_manifest`: by CR alone, too, which `readline` does not."""
        last = b""
        while data := self._file.read(_CHUNK_BYTES):
            *lines, last = (last + data).splitlines(keepends=True)
            yield from lines
            if len(last) >= MAX_LINE_BYTES:
                break
        if last:
            yield last

    def __iter__(self) -> Iterator[str]:
        for line in self._lines():
            if len(line) >= MAX_LINE_BYTES:
                raise ManifestError(
                    f"{self._path} has a line of {MAX_LINE_BYTES} bytes or more, expected a CSV file",
                    hint="save it as CSV UTF-8",
                )
            begin, self.offset = self.offset, self.offset + len(line)
            self.digest.update(line)
            self.of_shard.update(line)
            yield decoded(self._path, line, begin)


def _digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def _require_absolute(path: Path, line: int, cells: Mapping[str, str]) -> Case:
    """`case_of`, where there is no folder that images could be relative to. Raises `ManifestError`."""
    for modality in MODALITIES:
        if (cell := cells[modality]) and not Path(cell).is_absolute():
            raise ManifestError(
                f"{path}:{line} names the image {cell}, relative to an address, expected an absolute path: images are "
                "read from a file system that all nodes share",
                hint="mount the storage on all nodes and name the manifest by its path there",
            )
    return case_of(path, line, cells)


def _read(
    plan: Plan,
    file: BinaryIO,
    rows: int,
    check: Callable[[Path, int, Mapping[str, str]], Case],
    progress: Callable[[int], None],
) -> Plan:
    lines = _Lines(file, plan.path)
    reader = csv.DictReader(iter(lines), strict=True)
    ids = array("Q")
    shards: list[Shard] = []
    begin = line = count = 0
    relative = False

    def close_shard() -> None:
        if count:
            shards.append(Shard(len(shards), begin, lines.offset, line, count, lines.of_shard.hexdigest()))

    with valid_csv(plan.path, reader):
        header = take_header(plan.path, reader)
        begin, line, lines.of_shard = lines.offset, reader.line_num + 1, _digest()
        for row in reader:
            at, cells = cells_of(plan.path, reader.line_num, row)
            ids.append(_folded(check(plan.path, at, cells).case_id))
            relative = relative or is_relative(cells)
            count += 1
            if count == rows:
                close_shard()
                begin, line, count, lines.of_shard = lines.offset, reader.line_num + 1, 0, _digest()
            if len(ids) % _EVERY == 0:
                progress(lines.offset)
    close_shard()
    if not shards:
        raise no_case(plan.path)
    progress(lines.offset)
    found = replace(
        plan,
        header=tuple(header),
        sha256=lines.digest.hexdigest(),
        shards=tuple(shards),
        folder=folder_of(plan.path) if relative else None,
    )
    _check_unique(found, np.frombuffer(ids, np.uint64))
    return found


def _folded(case_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(composed(case_id).encode(), digest_size=8).digest(), "little")


def _check_unique(plan: Plan, folded: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    """Ids that are folded alike are looked up: one in 3e5 manifests of a million rows has such by chance."""
    ordered = np.sort(folded)
    doubtful = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not doubtful:
        return
    seen: dict[str, tuple[str, int]] = {}
    for shard in plan.shards:
        for place, case in enumerate(plan.cases(shard)):
            if _folded(case.case_id) not in doubtful:
                continue
            here = case.case_id, _row(shard, place, plan.shards)
            other, row = seen.setdefault(composed(case.case_id), here)
            if other != case.case_id:
                raise same_letters(plan.path, other, case.case_id)
            if row != here[1]:
                raise ManifestError(
                    f"{plan.path} has the case_id `{other}` in two rows, {row} and {here[1]}, expected one",
                    hint="give every case an id of its own",
                )


def _row(shard: Shard, place: int, shards: Sequence[Shard]) -> int:
    return shard.index * shards[0].rows + place + 1


def spooled(source: Path, to: Path, progress: Progress = silent) -> None:
    """Write the rows of a Parquet manifest as CSV. Raises `ManifestError`, `MissingPackage`."""
    from mpmmu_rt._optional import require
    from mpmmu_rt.files import atomic_file

    parquet = require("pyarrow.parquet", "a manifest in Parquet")
    try:
        file = parquet.ParquetFile(source)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ManifestError(
            f"manifest {source} can't be read as Parquet: {error}, expected a whole file", hint="write it again"
        ) from error
    with file, atomic_file(to) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(file.schema_arrow.names)
        done = 0
        for batch in file.iter_batches(batch_size=10_000):
            columns = [map(_text, column.to_pylist()) for column in batch.columns]
            writer.writerows(zip(*columns, strict=True))
            done += batch.num_rows
            progress("reading the manifest", done, file.metadata.num_rows, "rows")


def _text(value: object) -> str:
    return "" if value is None else str(value)
