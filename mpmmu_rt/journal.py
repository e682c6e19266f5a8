"""The rows of `run` on disk while it works: a JSON line that says what they belong to and who made them
(`mpmmu_rt.origin`), then one CSV line per case, with a mark of its images behind (`mpmmu_rt.image_marks`).

Behind the rows of a batch stands an empty line: a batch counts as a whole or not at all, and what a crash cut off is
dropped. A later row of a case stands for an earlier one. What no run can have written is refused. A run that goes on
writes the rows that it takes over anew, for its own first line to count them. A journal without a row is removed: there
is nothing in it to go on from.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from . import origin
from .bundle import CLASSES, Bundle
from .checks import decide
from .errors import OutputError
from .files import atomic_file, sha256_file
from .image_marks import is_mark
from .single_record import BOTH, COLUMN
from .spec import MODALITIES, Modality

SCHEMA = "mpmmu-run/4"
# Keys of a header that parts depend on, and what a row says does not, but for its last digits.
_OF_PARTS = {"batch", "batches", "format", "threads"}
COLUMNS = ("case_id", "probability", "decision", "error", "warnings")
MAX_OUTPUT_BYTES = 2**30
Row = tuple[str, ...]
_SHA256 = re.compile(r"[0-9a-f]{64}|")
_AGAIN = "pass --overwrite instead of --resume to start again"


@dataclass(frozen=True)
class Layout:
    """What rows belong to, and how they look: `header` is in the journal's first line, and `extra` the columns behind
    `COLUMNS`."""

    header: dict[str, Any]
    bundle: Bundle
    case_ids: Set[str]
    extra: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS + self.extra

    def row(self, cells: Sequence[str]) -> Row | None:
        """`cells`, if they say what a run may have written: an error, or a probability and its decision."""
        if len(cells) != len(self.columns):
            return None
        case_id, probability, decision, error, _, *extra = cells
        try:
            if error:
                holds = not probability and not decision
            else:
                basis = extra[self.extra.index(COLUMN)] if COLUMN in self.extra else BOTH
                value = float(probability)
                holds = 0 <= value <= 1 and decision == decision_of(value, self.bundle, basis)
            holds &= all(_is_extra(name, cell) for name, cell in zip(self.extra, extra, strict=True))
        except (ValueError, KeyError):
            return None
        return tuple(cells) if holds and case_id in self.case_ids else None


def decision_of(probability: float | np.float32, bundle: Bundle, basis: str = BOTH) -> str:
    """basis: `both`, or the modality that the probability rests on. Raises `KeyError` for one without a head."""
    threshold = bundle.threshold if basis == BOTH else bundle.single_heads[cast(Modality, basis)].threshold
    return CLASSES[int(decide(np.asarray(probability), threshold))]


def _is_extra(name: str, cell: str) -> bool:
    if name == COLUMN:
        return cell in ("", BOTH, *MODALITIES)
    if name.startswith("base_"):
        return not cell or math.isfinite(float(cell))
    return _SHA256.fullmatch(cell) is not None


@dataclass(frozen=True)
class There:
    """What a run may go on from. found: what says who made it. marks: of the images of each row; of a finished output
    none are kept. rows: by case."""

    found: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(default_factory=dict)
    marks: Mapping[str, str] | None = None

    @property
    def started(self) -> str | None:
        """When the process began that made the last of the rows, if that is known."""
        return origin.started(self.found)

    def without(self, ids: Set[str]) -> dict[str, Row]:
        return {case_id: row for case_id, row in self.rows.items() if case_id not in ids}


class Journal:
    """The finished rows, in memory (`rows`, by case) and on disk. outdated: how many that were there were dropped, as
    their images are others now."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        rows: Mapping[str, Row],
        marks: Mapping[str, str],
        by: origin.Entry,
        earlier: Sequence[origin.Entry] = (),
        outdated: int = 0,
    ) -> None:
        """What lies at `path` is replaced by `rows`, whole or not at all. by, earlier: see `origin`."""
        self.path = path
        self.rows = dict(rows)
        self.earlier = tuple(earlier)
        self.outdated = outdated
        self._columns = layout.columns
        with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            file.write(json.dumps({**layout.header, "made_by": by, "earlier": self.earlier}) + "\n")
            _write(file, [(*row, marks[case_id]) for case_id, row in rows.items()])
        self._file = path.open("a", encoding="utf-8", newline="")

    def add(self, rows: Sequence[Row], marks: Mapping[str, str]) -> None:
        _write(self._file, [(*row, marks[row[0]]) for row in rows])
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.update({row[0]: row for row in rows})

    def finish(self, output: Path, rows: Sequence[Row]) -> None:
        """Write `output`, with its header, and remove the journal, and what was said of an earlier output."""
        from . import run_record

        with atomic_file(output) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())  # from here on nothing can be wanting but the rename
            run_record.drop(output)
        self._file.close()
        self.path.unlink()

    def close(self) -> None:
        """Keep the rows for later; of none, nothing."""
        if self._file.closed:
            return
        self._file.close()
        if not self.rows:
            self.path.unlink(missing_ok=True)


def _write(file: TextIO, rows: Sequence[Row]) -> None:
    """A batch, and the empty line that says that it is whole."""
    csv.writer(file, lineterminator="\n").writerows(rows)
    file.write("\n")


def place_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def finished(path: Path) -> int:
    """How many rows a run that goes on finds in the journal at `path`: those of whole batches."""
    return sum(1 for line in _whole(path.read_bytes()).split(b"\n")[1:] if line)


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n\n") + 2] if b"\n\n" in data else b""


def require_apart(output: Path, manifest: Path) -> None:
    """Raise `OutputError` where `manifest` lies where a run that writes `output` puts something, or in a folder that it
    replaces."""
    from . import run_record

    found = manifest.resolve()
    for place in (output, place_of(output), run_record.place_of(output)):
        is_replaced = place != output or output.suffix == ".parquet"  # of other outputs a folder is refused as such
        if place.resolve() in (found, *(found.parents if is_replaced else ())):
            is_it = "the manifest itself" if place.resolve() == found else "a folder that holds the manifest"
            of_it = "" if place == output else f", and where {output} is written with"
            raise OutputError(f"{place} is {is_it}{of_it}, expected another file", hint="choose another -o")


def open_journal(
    output: Path,
    layout: Layout,
    *,
    resume: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    by: origin.Entry | None = None,
    require_verified: bool = False,
    marked: Callable[[], Mapping[str, str]],
    outdated: Callable[[There], Set[str]],
) -> Journal:
    """The journal of a run that shall write `output`, which this process holds. marked: the marks of all cases as they
    are now. outdated: of what is there the cases whose rows are to be made again, as their images are others now.

    resume: go on with an unfinished run, if there is one. retry_failed: as `resume`, or go on from a finished output;
    rows with an error are made again. by: of `origin.made_by`. require_verified: of rows that are there none is taken
    whose run is not known to have been verified, or `ParityError` is raised. Raises `OutputError` for what is in the
    way, or belongs to another run.
    """
    path = place_of(output)
    going_on = resume or retry_failed
    if output.is_dir():
        raise OutputError(f"{output} is a folder, expected a file to write", hint="name a file with -o")
    if path.is_dir():
        raise OutputError(
            f"{path} holds the parts of an unfinished run with --ray, expected none",
            hint="finish it as it was begun, with --ray --resume; or remove it",
        )
    if path.exists() and path.stat().st_size == 0:
        path.unlink()
    begun = resume and path.exists()  # by a run that was allowed to replace what is there
    if output.exists() and not (overwrite or retry_failed or begun):
        raise OutputError(
            f"{output} exists already, expected a free path",
            hint="choose another -o, or pass --overwrite, or --retry-failed to make its rows with errors again",
        )
    there = There()
    if path.exists() and going_on:
        there = _read(path, layout)
    elif path.exists() and not overwrite:
        raise OutputError(
            f"{path} holds the rows of an unfinished run, expected no such file",
            hint="pass --resume to go on with it, or --overwrite to start again",
        )
    elif retry_failed and output.exists():
        there = _read_output(output, layout)
    failed = {case_id for case_id, row in there.rows.items() if row[COLUMNS.index("error")]}
    others = outdated(there)
    earlier = origin.taken_over(there.found, len(there.rows), len(failed), dropped=retry_failed)
    rows = there.without(others | failed if retry_failed else others)
    if others:
        earlier = origin.without(earlier, len(rows), 0 if retry_failed else len(failed - others))
    if require_verified:
        origin.require_verified(earlier, output)
    marks = marked() if there.marks is None and rows else there.marks or {}
    dropped = len(others - failed) if retry_failed else len(others)
    return Journal(path, layout, rows, marks, by or origin.made_by(), earlier, dropped)


def _read(path: Path, layout: Layout) -> There:
    """The first line of a journal, and the rows of its whole batches; what a crash cut off is dropped."""
    data = path.read_bytes()
    first, line_end, _ = data.partition(b"\n")
    rest = _whole(data).decode("utf-8", errors="replace").partition("\n")[2]
    try:
        found = json.loads(first) if line_end else layout.header  # cut off before its first line: nothing was done
    except ValueError:
        found = None
    _require_same(path, found, layout.header)
    rows: dict[str, Row] = {}
    marks: dict[str, str] = {}
    for number, line in enumerate(rest.split("\n")[:-1], 2):
        if not line:
            continue
        parsed = _parsed(line, layout)
        if parsed is None:
            raise OutputError(
                f"{path} is damaged in line {number}, expected a row that this run has written", hint=_AGAIN
            )
        row, mark = parsed
        rows[row[0]], marks[row[0]] = row, mark
    return There(found or {}, rows, marks)


def _parsed(line: str, layout: Layout) -> tuple[Row, str] | None:
    """A row, and the mark of its images."""
    try:
        *cells, mark = next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration, ValueError):
        return None
    row = layout.row(cells)
    return (row, mark) if row is not None and is_mark(mark) else None


def _require_same(path: Path, found: object, header: dict[str, Any]) -> None:
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in origin.KEYS}
    if found != header:
        differs = [key for key in header if not isinstance(found, dict) or found.get(key) != header[key]]
        raise OutputError(
            f"{path} belongs to another run (other {', '.join(differs)}), expected this run's",
            hint=how_to_go_on(differs, found),
        )


def how_to_go_on(differs: Sequence[str], found: object) -> str:
    """The hint for rows of another run: `found` is the header that they have, and `differs` the keys. What `auto` came
    to is not on the command line that began it, and neither is where the head runs."""
    if "target" in differs:  # which says where the head runs
        differs = [key for key in differs if key != "head_target"]
    if len(differs) == 1 and isinstance(found, dict) and (value := found.get(differs[0])) is not None:
        again, said = "--overwrite instead of --resume starts again", " ".join(str(value).split())
        if option := {"target": "--target", "batch": "--batch", "threads": "--ray-cpus"}.get(differs[0]):
            return f"{option} {said[:40]} goes on with it; {again}"
        if differs[0] == "head_target":
            return f"its head ran on {said[:40]}: make that as it was (`mpmmu-rt doctor` says what runs here); {again}"
        if differs[0] == "folder":
            return f"its images are those of {said}: name the manifest there to go on with it; {again}"
    return "run it with what it was begun with, or pass --overwrite instead of --resume to start again"


def require_same_rows(output: Path, entry: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Raise `OutputError` where a finished `output`, with `entry` beside it, has rows of something else than `header`
    says: with --ray or without."""
    run = entry.get("run")
    found = {**run, "head_target": entry.get("head_target")} if isinstance(run, dict) else {}
    wanted = {key: value for key, value in header.items() if key not in _OF_PARTS}
    _require_same(output, {key: found.get(key) for key in wanted}, wanted)


def require_unchanged(output: Path, entry: Mapping[str, Any], digest: str) -> None:
    """Raise `OutputError` where `output` has another digest than its run wrote down."""
    if entry.get("output_sha256") != digest:
        raise OutputError(
            f"{output} is not {'the folder' if output.is_dir() else 'the file'} that its run wrote, expected it "
            "unchanged",
            hint="pass --overwrite instead of --retry-failed to start again",
        )


def _read_output(output: Path, layout: Layout) -> There:
    """Who made the rows of a finished output, which the document beside it tells to be this run's, and the rows."""
    from .run_record import read_record

    entry = read_record(output)
    require_same_rows(output, entry, layout.header)
    require_unchanged(output, entry, sha256_file(output) if output.stat().st_size <= MAX_OUTPUT_BYTES else "")
    reader = csv.reader(io.StringIO(output.read_text(encoding="utf-8"), newline=""))
    try:
        rows = [layout.row(cells) for cells in list(reader)[1:]]
    except csv.Error as error:
        raise OutputError(
            f"{output} is no CSV that can be read ({error}), expected the file as it was written",
            hint="pass --overwrite instead of --retry-failed to start again",
        ) from error
    return There(origin.of_record(entry), {row[0]: row for row in rows if row is not None})
