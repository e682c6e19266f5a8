"""What is gone on from on a cluster. `--retry-failed`: rows with errors are made again, and what succeeded is kept, as
parts.

A shard without errors is a part as it is. Of another the rows without errors are kept beside the parts, and the worker
that takes the shard makes the others: those of a batch together, as `mpmmu_rt.run` does. A shard of which an image was
written since its rows were is made again, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from mpmmu_rt import origin
from mpmmu_rt.cases import Case
from mpmmu_rt.files import sha256_of
from mpmmu_rt.image_marks import ASKING, written_after, written_since
from mpmmu_rt.journal import COLUMNS, Layout, Row, require_same_rows, require_unchanged
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.run_record import read_record

from .parts import Parts, cells_of_output
from .plan import Plan

_ERROR = COLUMNS.index("error")


@dataclass
class Counted:
    """rows: there of an unfinished run, `failed` of them with an error. exchanged: the same of each shard whose images
    are others now."""

    rows: int = 0
    failed: int = 0
    exchanged: dict[int, tuple[int, int]] = field(default_factory=dict)


def counted(plan: Plan, parts: Parts, layout: Layout, progress: Progress = silent) -> Counted:
    """What there is of an unfinished run. Raises `OutputError`."""
    there, found = parts.done(), Counted()
    with ThreadPoolExecutor(ASKING) as pool:
        for shard in plan.shards:
            progress("counting rows", shard.index, len(plan.shards), "shards")
            if not (shard.index in there or parts.keeps(shard.index)):
                continue
            cases = plan.cases(shard)
            ids = [case.case_id for case in cases]
            if shard.index in there:
                rows = parts.read(shard.index, ids, layout)
            else:
                rows = list(parts.kept(shard.index, ids, layout).values())
            good = {row[0] for row in _without_errors(rows)}  # others say nothing of an image
            failed = len(rows) - len(good)
            found.rows, found.failed = found.rows + len(rows), found.failed + failed
            answered = [case for case in cases if case.case_id in good]
            if any(pool.map(partial(written_after, parts.written_ns(shard.index)), answered)):
                found.exchanged[shard.index] = len(rows), failed
    return found


def drop_failed(plan: Plan, parts: Parts, layout: Layout, progress: Progress = silent) -> None:
    """Of an unfinished run: have the shards of parts with errors done again. Raises `OutputError`."""
    there = parts.done()
    for shard in plan.shards:
        progress("looking for errors", shard.index, len(plan.shards), "shards")
        if shard.index in there:
            ids = plan.ids(shard)
            rows = parts.read(shard.index, ids, layout)
            kept = _without_errors(rows)
            if len(kept) < len(rows):
                parts.keep(shard.index, kept)


def take_over(
    output: Path, plan: Plan, parts: Parts, layout: Layout, progress: Progress = silent
) -> tuple[list[origin.Entry], int]:
    """Of a finished output, which the document beside it tells to be this run's: make parts of what succeeded. Returns
    who made these rows, and how many others are made again as an image was written since that run began.

    Raises `OutputError` for an output that is not, or was changed since.
    """
    entry = read_record(output)
    require_same_rows(output, entry, layout.header)
    require_unchanged(output, entry, sha256_of(output))
    cells = cells_of_output(output, layout.columns)
    made = origin.of_record(entry)
    started = origin.started(made)
    count = failed = outdated = 0
    with ThreadPoolExecutor(ASKING) as pool:
        for shard in plan.shards:
            progress("looking for errors", shard.index, len(plan.shards), "shards")
            cases = plan.cases(shard)
            here = replace(layout, case_ids=frozenset(case.case_id for case in cases))
            rows = [row for one in islice(cells, shard.rows) if (row := here.row(one)) is not None]
            good = _without_errors(rows)
            exchanged = set() if started is None else _exchanged(pool, started, cases)
            kept = [row for row in good if row[0] not in exchanged]
            count, failed = count + len(rows), failed + len(rows) - len(good)
            outdated += len(good) - len(kept)
            if len(kept) == len(cases):
                parts.write(shard.index, kept)
            else:
                parts.keep(shard.index, kept)
    earlier = origin.taken_over(made, count, failed, dropped=True)
    return (origin.without(earlier, count - failed - outdated, 0) if outdated else earlier), outdated


def _exchanged(pool: ThreadPoolExecutor, started: str, cases: Sequence[Case]) -> set[str]:
    """Ids of those of which an image was written since."""
    since = pool.map(partial(written_since, started), cases)
    return {case.case_id for case, one in zip(cases, since, strict=True) if one}


def _without_errors(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row[_ERROR]]
