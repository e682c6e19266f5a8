"""What runs on the cluster: an actor that holds one Predictor and turns shards of the manifest into parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mpmmu_rt._optional import quote_no_files
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Case
from mpmmu_rt.child import as_line
from mpmmu_rt.errors import EngineError, MpmmuError, OutputError
from mpmmu_rt.journal import COLUMNS, Layout, Row
from mpmmu_rt.machine import THREADS_VARIABLE, describe
from mpmmu_rt.places import unwritable
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.run import Decoded, Decoder, Ledger, batched, rows_of
from mpmmu_rt.spec import Target
from mpmmu_rt.verify import require_replayed

from . import contained
from .parts import Parts
from .plan import Plan, Shard

MOST_BEGUN = 20  # of a shard that ends its worker each time


@dataclass(frozen=True)
class Job:
    """All that a worker is told. head_target: what the head must run on, as on the driver's machine. threads: of its
    engine. folder: the one that paths are relative to."""

    bundle: str
    digest: str
    target: str
    head_target: str
    plan: Plan  # without its shards
    header: Mapping[str, Any]
    columns: tuple[str, ...]
    work: str
    form: str
    batch: int
    frame: int | None
    files: bool
    alone: bool  # whether a case may have one image
    threads: int
    folder: str

    def parts(self) -> Parts:
        return Parts(Path(self.work), self.header, self.columns, self.form)


class Worker:
    """An actor of Ray Data: takes shards, returns what became of them."""

    def __init__(self, job: Job) -> None:
        """What opening the bundle raises, or `ParityError` where its golden vectors don't come out here, is told with
        the first shard: of an actor that can't be made Ray keeps no error but its text."""
        self._refusal = ""
        try:
            self._open(job)
        except MpmmuError as error:
            self._refusal = as_line(error)

    def _open(self, job: Job) -> None:
        quote_no_files()
        if Path(job.folder).is_dir():
            os.chdir(job.folder)
        os.environ[THREADS_VARIABLE] = str(job.threads)  # for those that decode, too
        self._job = job
        bundle = Bundle.open(job.bundle)
        if bundle.digest != job.digest:
            raise OutputError(
                f"{job.bundle} is another bundle on this node than on the driver's, expected the same",
                hint="put the bundle on a file system that all nodes share",
            )
        self._predictor = Predictor(bundle, Target.parse(job.target), threads=job.threads)
        if str(self._predictor.head_target) != job.head_target:
            raise EngineError(
                f"the head runs on {self._predictor.head_target} on this node and on {job.head_target} on the "
                "driver's, expected the same: they differ in the last digits",
                hint="install the same packages on all nodes",
            )
        require_replayed(self._predictor)
        self._parts = job.parts()
        self._layout = Layout(dict(job.header), bundle, frozenset(), job.columns[len(COLUMNS) :])
        self._processor = describe()["cpu"]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """row: the fields of a `Shard`. Returns what `_made` says, or the `error` that ends the job."""
        shard = Shard(**row)
        made = {"index": shard.index, "rows": 0, "predicted": 0, "decode_ms": 0.0, "engine_ms": 0.0, "processor": ""}
        made["remarks"] = "[]"
        if self._refusal:
            return {**made, "error": self._refusal}
        try:
            return {**self._made(shard), "error": ""}
        except MpmmuError as error:
            return {**made, "error": as_line(error)}
        except OSError as error:
            return {**made, "error": as_line(unwritable(Path(self._job.work), error))}

    def _made(self, shard: Shard) -> dict[str, Any]:
        ledger, made = Ledger(), shard.rows
        if not self._parts.path(shard.index).exists():  # else made by a worker that was taken for lost
            begun = self._parts.begin(shard.index)
            if begun >= MOST_BEGUN:
                raise EngineError(
                    f"the rows at line {shard.line} of the manifest have ended their worker {begun} times, expected "
                    "an answer",
                    hint="run these rows alone, without --ray, to see what ends it",
                )
            cases = self._job.plan.cases(shard)
            rows = self._parts.kept(shard.index, [case.case_id for case in cases], self._layout)
            made -= len(rows)
            rows |= self._rows(cases, rows.keys(), ledger, contain=begun > 0)
            self._parts.write(shard.index, [rows[case.case_id] for case in cases])
        return {
            "index": shard.index,
            "rows": made,
            "predicted": ledger.predicted,
            "decode_ms": ledger.decode_ms,
            "engine_ms": sum(ledger.batches_ms),
            "processor": str(self._processor),
            "remarks": json.dumps(self._predictor.remarks),  # a text: Ray's tables have no lists of nothing
        }

    def _rows(self, cases: list[Case], without: Set[str], ledger: Ledger, *, contain: bool) -> dict[str, Row]:
        extra = self._job.columns[len(COLUMNS) :]
        rows: dict[str, Row] = {}
        batches = batched(cases, self._job.batch, without=without)
        with self._decoder([case for one in batches for case in one], contain=contain) as decoded:
            for one in batches:
                rows |= {
                    row[0]: row for row in rows_of(self._predictor, list(islice(decoded, len(one))), ledger, extra)
                }
        return rows

    @contextmanager
    def _decoder(self, cases: list[Case], *, contain: bool) -> Iterator[Iterator[Decoded]]:
        job, bundle = self._job, self._predictor.bundle
        if contain:
            yield contained.decoded(
                cases,
                bundle.preprocessing,
                frame=job.frame,
                digests=job.files,
                check=bundle.modality_check,
                alone=job.alone,
            )
            return
        decoder = Decoder(
            cases,
            bundle.preprocessing,
            frame=job.frame,
            ahead=2 * job.batch,
            digests=job.files,
            check=bundle.modality_check,
            alone=job.alone,
        )
        with decoder as decoded:
            yield decoded
