"""`--retry-failed` on a cluster: rows with errors are made again, and what succeeded is kept, as parts.

A shard without errors is a part as it is. Of another the rows without errors are kept beside the parts, and the worker
that takes the shard makes the others: those of a batch together, as `mpmmu_rt.run` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mpmmu_rt import origin
from mpmmu_rt.files import sha256_of
from mpmmu_rt.journal import COLUMNS, Layout, Row, require_same_rows, require_unchanged
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.run_record import read_record

from .parts import Parts, cells_of_output
from .plan import Plan

_ERROR = COLUMNS.index("error")


def counted(plan: Plan, parts: Parts, layout: Layout, progress: Progress = silent) -> tuple[int, int]:
    """How many rows there are of an unfinished run, and how many of these have errors. Raises `OutputError`."""
    there = parts.done()
    count = failed = 0
    for shard in plan.shards:
        progress("counting rows", shard.index, len(plan.shards), "shards")
        if shard.index in there:
            rows = parts.read(shard.index, plan.ids(shard), layout)
            failed += len(rows) - len(_without_errors(rows))
            count += len(rows)
        elif parts.keeps(shard.index):
            count += len(parts.kept(shard.index, plan.ids(shard), layout))
    return count, failed


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
) -> list[origin.Entry]:
    """Of a finished output, which the document beside it tells to be this run's: make parts of what succeeded. Returns
    who made these rows.

    Raises `OutputError` for an output that is not, or was changed since.
    """
    entry = read_record(output)
    require_same_rows(output, entry, layout.header)
    require_unchanged(output, entry, sha256_of(output))
    cells = cells_of_output(output, layout.columns)
    count = failed = 0
    for shard in plan.shards:
        progress("looking for errors", shard.index, len(plan.shards), "shards")
        ids = plan.ids(shard)
        here = replace(layout, case_ids=frozenset(ids))
        rows = [row for one in islice(cells, shard.rows) if (row := here.row(one)) is not None]
        kept = _without_errors(rows)
        count, failed = count + len(rows), failed + len(rows) - len(kept)
        if len(kept) == len(ids):
            parts.write(shard.index, kept)
        else:
            parts.keep(shard.index, kept)
    return origin.taken_over(origin.of_record(entry), count, failed, dropped=True)


def _without_errors(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row[_ERROR]]
