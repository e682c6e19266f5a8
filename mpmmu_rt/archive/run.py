"""`run` on a Ray cluster: the same manifest, the same rows."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpmmu_rt import origin, single
from mpmmu_rt.engines import head_target
from mpmmu_rt.errors import ManifestError, OutputError
from mpmmu_rt.files import atomic_file, sha256_file, write_json
from mpmmu_rt.folders import Kind, atomic_folder, check_replaceable
from mpmmu_rt.journal import SCHEMA, Layout, Row, place_of, require_apart
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.run import Allowed, Asked, Summary, extra_columns, rests_on_one
from mpmmu_rt.run_record import Made, drop
from mpmmu_rt.spec import Target

from .address import copied, is_address, local_path, without_secrets
from .again import counted, drop_failed, take_over
from .cluster import Cluster
from .parts import Parts, holds_rows
from .plan import Plan, read_plan, spooled
from .worker import Job

BATCHES = 8  # of a shard: what a killed worker loses
_OURS = re.compile(r"\.?manifest\.(csv|parquet).*|[0-9a-f]{16}")  # in `<output>.partial`
MARKER = "_rows.json"  # in a folder of Parquet parts; readers of Parquet pass over names that begin so
KIND = Kind(MARKER, ("part-*.parquet",), SCHEMA)


def run(
    asked: Asked,
    manifest: Path | str,
    output: Path,
    cluster: Cluster,
    *,
    allowed: Allowed,
    by: origin.Entry | None = None,
    progress: Progress = silent,
) -> Made:
    """Predict every case of `manifest`, a CSV or `.parquet` of any size, or the address of one, and write
    `output`: a CSV, or a folder of Parquet parts where its name ends in `.parquet`.

    All files must lie where every node of the cluster has them under the same path. The caller holds `output`
    (`places.claimed`), which is no link. by: of `origin.made_by`. Raises what `mpmmu_rt.run.run` raises; the parts that
    were made stay, and `resume` goes on.
    """
    form = "parquet" if output.suffix == ".parquet" else "csv"
    _check(manifest, output, form, allowed)
    extra = extra_columns(asked.bundle, asked.columns, alone=asked.alone)
    if asked.alone:
        single.require_single(asked.bundle, asked.target)
    work, head = place_of(output), head_target(asked.target)
    try:
        plan = _plan(manifest, work, asked.batch * BATCHES, progress)
        layout = Layout(_header(asked, plan, head, form, extra, cluster.cpus), asked.bundle, frozenset(), extra)
        job = _job(asked, plan, layout, work, cluster.cpus)
        parts = job.parts()
        earlier, outdated = _begin(output, plan, parts, layout, allowed, by or origin.made_by(), progress)
        start = time.perf_counter()
        resumed, total = _work(job, plan, parts, layout, cluster, progress)
    except BaseException:
        if not holds_rows(work):  # nothing to go on from
            shutil.rmtree(work, ignore_errors=True)  # which may not be there
        raise
    wall_ms = (time.perf_counter() - start) * 1e3
    seen = _finish(output, form, plan, parts, layout)
    summary = Summary(
        cases=plan.rows,
        predicted=total.predicted,
        failed=seen.failed,
        resumed=resumed,
        first_error=seen.first_error,
        warned=seen.warned,
        first_warning=seen.first_warning,
        wall_ms=wall_ms,
        decode_ms=total.decode_ms,
        batch_latency=None,
        first_batch_ms=None,
        stages_ms={"engine": total.engine_ms},
        single=seen.single,
        header=layout.header,
        earlier=earlier,
        outdated=outdated,
    )
    remarks = tuple(dict.fromkeys([*([said] if (said := asked.bundle.warning) else []), *total.remarks]))
    listing = _Listed(without_secrets(str(manifest)), plan) if is_address(manifest) else plan
    return Made(asked, head, remarks, listing, summary, tuple(sorted(total.processors)))


@dataclass(frozen=True)
class _Listed:
    """A manifest at an address, as `run_record` names it: not by its copy."""

    path: str
    plan: Plan

    @property
    def sha256(self) -> str:
        return self.plan.sha256

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(remark.replace(str(self.plan.path), self.path) for remark in self.plan.remarks)


def _header(asked: Asked, plan: Plan, head: Target, form: str, extra: tuple[str, ...], threads: int) -> dict[str, Any]:
    """All that parts depend on: another header is another run."""
    return {
        "schema": SCHEMA,
        "bundle": asked.bundle.digest,
        "manifest": plan.sha256,
        "folder": plan.folder,
        "target": str(asked.target),
        "head_target": str(head),
        "frame": asked.frame,
        "columns": list(extra),
        "batch": asked.batch,
        "batches": BATCHES,
        "format": form,
        "threads": threads,
    }


def _job(asked: Asked, plan: Plan, layout: Layout, work: Path, threads: int) -> Job:
    return Job(
        bundle=str(asked.bundle.root),
        digest=asked.bundle.digest,
        target=layout.header["target"],
        head_target=layout.header["head_target"],
        plan=replace(plan, shards=()),
        header=layout.header,
        columns=layout.columns,
        work=os.path.abspath(work),
        form=layout.header["format"],
        batch=asked.batch,
        frame=asked.frame,
        files="files" in asked.columns,
        alone=asked.alone,
        threads=threads,
        folder=str(Path.cwd()),
    )


def _check(manifest: Path | str, output: Path, form: str, allowed: Allowed) -> None:
    """Raise `OutputError` for what is in the way; with `overwrite` remove what an earlier run left."""
    work = place_of(output)
    if read := local_path(str(manifest)) if is_address(manifest) else Path(manifest):
        require_apart(output, read)
    if work.is_file():
        raise OutputError(
            f"{work} holds the rows of an unfinished run without --ray, expected none",
            hint="finish it as it was begun, with --resume; or remove it",
        )
    begun = any(work.glob("*/header.json"))
    if work.is_dir() and not begun and (other := [one for one in work.iterdir() if not _OURS.fullmatch(one.name)]):
        raise OutputError(
            f"{work} holds {other[0].name}, which no run has written, expected no such folder",
            hint="choose another -o, or move it away",
        )
    if begun and not (allowed.resume or allowed.retry_failed or allowed.overwrite):
        raise OutputError(
            f"{work} holds the parts of an unfinished run, expected no such folder",
            hint="pass --resume to go on with it, or --overwrite to start again",
        )
    may_replace = allowed.overwrite or allowed.retry_failed or (allowed.resume and begun)
    if form == "parquet":
        check_replaceable(output, KIND, overwrite=may_replace)
    elif output.is_symlink():
        raise OutputError(f"{output} is a link, expected a free path or a file", hint="name the file itself with -o")
    elif output.is_dir():
        raise OutputError(f"{output} is a folder, expected a file to write", hint="name a file with -o")
    elif output.exists() and not may_replace:
        raise OutputError(
            f"{output} exists already, expected a free path",
            hint="choose another -o, or pass --overwrite, or --retry-failed to make its rows with errors again",
        )
    if work.is_dir() and allowed.overwrite:
        shutil.rmtree(work)


def _begin(
    output: Path, plan: Plan, parts: Parts, layout: Layout, allowed: Allowed, by: origin.Entry, progress: Progress
) -> tuple[list[origin.Entry], int]:
    """Make the place of the parts, with what there is to go on from, and return who made that, and how many rows are
    made again as their images are others now. Raises `OutputError`, or `ParityError` where it must be verified and was
    not.

    It counts as begun at the end: killed before, a finished output stands as it was, and the same command begins anew.
    """
    earlier: list[origin.Entry] = []
    outdated, others = 0, list[int]()
    if begun := parts.begun():
        found = counted(plan, parts, layout, progress)
        earlier = origin.taken_over(parts.sealed(), found.rows, found.failed, dropped=allowed.retry_failed)
        if others := list(found.exchanged):
            outdated = sum(rows for rows, _ in found.exchanged.values())
            failed = found.failed - sum(failed for _, failed in found.exchanged.values())
            rows = found.rows - outdated
            earlier = origin.without(earlier, *((rows - failed, 0) if allowed.retry_failed else (rows, failed)))
    else:
        parts.clear()
        if allowed.retry_failed and output.exists():
            earlier, outdated = take_over(output, plan, parts, layout, progress)
    if allowed.require_verified:
        origin.require_verified(earlier, output)
    parts.seal(by, earlier)
    for index in others:  # once it is sealed: of what a killed one has dropped half, the counts hold
        parts.drop(index)
    if allowed.retry_failed and begun:
        drop_failed(plan, parts, layout, progress)
    return earlier, outdated


def _plan(manifest: Path | str, work: Path, rows: int, progress: Progress) -> Plan:
    work.mkdir(exist_ok=True)
    if is_address(manifest):
        return _plan_of_address(str(manifest), work, rows, progress)
    manifest = Path(manifest)
    if manifest.suffix != ".parquet":
        return replace(read_plan(manifest, rows, progress=progress), csv=Path(os.path.abspath(manifest)))
    copy = work / "manifest.csv"
    spooled(manifest, copy, progress)
    plan = read_plan(manifest, rows, copy=copy, progress=progress)
    return replace(plan, csv=Path(os.path.abspath(copy)), sha256=sha256_file(manifest))


def _plan_of_address(address: str, work: Path, rows: int, progress: Progress) -> Plan:
    copy, name = Path(os.path.abspath(work / "manifest.csv")), without_secrets(address)
    given = copy.with_suffix(".parquet") if name.endswith(".parquet") else copy
    copied(address, given, progress)
    sha256 = sha256_file(given)
    try:
        if given != copy:
            spooled(given, copy, progress)
            given.unlink()
        plan = read_plan(copy, rows, absolute=True, progress=progress)
    except ManifestError as error:
        said = str(error).replace(str(given), name).replace(str(copy), name)
        raise ManifestError(said, hint=error.hint) from error
    return replace(plan, sha256=sha256)


@dataclass
class _Total:
    """What the workers of this run said, added up: of each part nothing is held."""

    predicted: int = 0
    decode_ms: float = 0.0
    engine_ms: float = 0.0
    processors: set[str] = field(default_factory=set)
    remarks: dict[str, None] = field(default_factory=dict)  # in order, each once

    def add(self, one: Mapping[str, Any]) -> None:
        self.predicted += int(one["predicted"])
        self.decode_ms += float(one["decode_ms"])
        self.engine_ms += float(one["engine_ms"])
        self.processors.add(str(one["processor"]))
        self.remarks |= dict.fromkeys(json.loads(one["remarks"]))


def _work(
    job: Job, plan: Plan, parts: Parts, layout: Layout, cluster: Cluster, progress: Progress
) -> tuple[int, _Total]:
    """Have all missing parts made; how many rows were there already, and what the workers said."""
    there = parts.done()
    todo = [shard for shard in plan.shards if shard.index not in there]
    kept = sum(len(parts.kept(shard.index, plan.ids(shard), layout)) for shard in todo if parts.keeps(shard.index))
    resumed = ready = kept + plan.rows - sum(shard.rows for shard in todo)
    progress("predicting", ready, plan.rows, "cases")
    total = _Total()
    if not todo:
        return resumed, total
    with cluster.joined() as ray, contextlib.closing(cluster.work(ray, job, todo)) as made:
        for one in made:
            total.add(one)
            ready += int(one["rows"])
            progress("predicting", ready, plan.rows, "cases")
    return resumed, total


class _Seen:
    """What the rows say, while they go by."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self.failed = self.warned = self.single = 0
        self.first_error = self.first_warning = ""

    def row(self, row: Row) -> None:
        if row[3]:
            self.failed += 1
            self.first_error = self.first_error or f"`{row[0]}`: {row[3]}"
        if row[4]:
            self.warned += 1
            self.first_warning = self.first_warning or f"`{row[0]}`: {row[4]}"
        self.single += rests_on_one(row, self._columns)


def _placed(part: Path, folder: Path) -> None:
    """Without a copy where the file system can; the part stays until all are there."""
    try:
        os.link(part, folder / part.name)
    except OSError:
        shutil.copy2(part, folder / part.name)


def _finish(output: Path, form: str, plan: Plan, parts: Parts, layout: Layout) -> _Seen:
    """Write `output` of the parts, each checked, and remove what is left."""
    seen = _Seen(layout.columns)

    def rows() -> Iterator[list[Row]]:
        for shard in plan.shards:
            found = parts.read(shard.index, plan.ids(shard), layout)
            for row in found:
                seen.row(row)
            yield found

    if form == "csv":
        with atomic_file(output) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(layout.columns)
            for some in rows():
                writer.writerows(some)
            file.flush()
            os.fsync(file.fileno())  # from here on nothing can be wanting but the rename
            drop(output)
    else:
        for _ in rows():
            pass
        with atomic_folder(output, KIND, overwrite=True) as folder:
            for shard in plan.shards:
                _placed(parts.path(shard.index), folder)
            write_json(folder / MARKER, {**layout.header, "column_names": list(layout.columns)})
            drop(output)
    shutil.rmtree(parts.work)
    return seen
