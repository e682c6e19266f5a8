"""Batched inference on files: decoding overlaps with inference, and no row is ever lost or made twice.

Finished rows go to a journal beside the output (`predictions.csv.partial`, `mpmmu_rt.journal`), flushed to the disk
batch by batch. When every case has its row, the output is written in the manifest's order, under a temporary name, and
renamed.

Which cases make a batch is told by the manifest alone: so many rows of it, less those that can't be read. The size of a
batch changes the last bits of an engine's answers; so a run that was killed and went on gives the same rows to the bit.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import origin, single
from .bundle import Bundle
from .cases import Case, Manifest
from .checks import shortest
from .errors import AnswerError, ImageError, OutputError, UsageError
from .files import sha256_file
from .image_marks import ASKING, mark, were_exchanged, written_since
from .images import Preprocessing, read_with_warnings, require_two
from .journal import COLUMNS as COLUMNS
from .journal import SCHEMA, Layout, Row, There, open_journal, require_apart
from .latency import Latency, summarise
from .machine import usable_threads
from .modality_check import ModalityCheck
from .pairs import require_two_files, said_against
from .places import claimed, written
from .predictor import Prediction, Predictor
from .progress import Progress, silent
from .spec import MODALITIES, Array, Modality, StrPath, Target
from .subject import Subject, require_one

MOST_LETTERS = 4000  # of a cell
EXTRAS = ("base", "embedding", "files")  # columns that can be asked for


@dataclass(frozen=True)
class Asked:
    """What rows are to be made of."""

    bundle: Bundle
    target: Target
    batch: int = 32
    frame: int | None = None
    columns: Sequence[str] = ()  # of `EXTRAS`
    alone: bool = False  # whether a case may have one image


@dataclass(frozen=True)
class Allowed:
    """What may become of rows that are there already: see `open_journal`."""

    resume: bool = False
    overwrite: bool = False
    retry_failed: bool = False
    require_verified: bool = False


@dataclass(frozen=True)
class Decoded:
    """A case and its pixels (uint8 [1, S, S] per modality), or the reason why there are none.

    basis: `both`, or the one modality that there is, where that may be. warnings: what headers and pixels of its images
    say against them, one line; "" if nothing. digests: SHA-256 of each image
    file, where that was asked for and it could be read. mark: of the files, before they were read. subjects: whom the
    images show by their headers.
    """

    case: Case
    pixels: dict[Modality, Array]
    error: str
    warnings: str
    decode_ms: float
    digests: Mapping[Modality, str] = field(default_factory=dict)
    basis: str = single.BOTH
    mark: str = ""
    subjects: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a run did. Times are wall times in ms; `batch_latency` is of full and partial batches alike, but for the
    first, which is cold: `first_batch_ms`."""

    cases: int
    predicted: int  # in this run
    failed: int  # in the whole output
    resumed: int  # rows found in the journal
    first_error: str
    warned: int  # rows with warnings, in the whole output
    first_warning: str
    wall_ms: float
    decode_ms: float  # summed over all decoding threads
    batch_latency: Latency | None
    first_batch_ms: float | None
    stages_ms: dict[str, float]
    single: int  # rows that rest on one image, in the whole output
    header: dict[str, Any]  # of the rows: what another run must have in common to go on from them
    earlier: Sequence[origin.Entry] = ()  # who made the rows that were there: see `origin`
    outdated: int = 0  # rows that were there and were made again: their images were exchanged since

    @property
    def pairs_per_s(self) -> float:
        return self.predicted / self.wall_ms * 1e3 if self.wall_ms else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "predicted": self.predicted,
            "failed": self.failed,
            "warned": self.warned,
            "from_one_image": self.single,
            "resumed": self.resumed,
            "earlier": list(self.earlier),
            "outdated": self.outdated,
            "wall_ms": self.wall_ms,
            "decode_ms": self.decode_ms,
            "throughput_pairs_per_s": self.pairs_per_s,
            "batch_latency_ms": self.batch_latency.to_json() if self.batch_latency else None,
            "first_batch_ms": self.first_batch_ms,
            "stages_ms": self.stages_ms,
        }


def run(
    predictor: Predictor,
    manifest: Manifest,
    output: StrPath,
    *,
    batch: int = 32,
    frame: int | None = None,
    columns: Sequence[str] = (),
    allow_single: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    require_verified: bool = False,
    by: origin.Entry | None = None,
    progress: Progress = silent,
) -> Summary:
    """Predict every case of `manifest` and write `output`, a CSV with the columns `COLUMNS`, one row per case.

    A case whose images can't be read, or for which the engine has no number, gets a row with its error; what a DICOM
    header says against an image that can be read stands in the row's `warnings`. `frame` is the frame to take of files
    that hold several. columns: more of them, of `EXTRAS`: "base", what each base learner says; "embedding", the SHA-256
    of its float32 values; "files", that of both image files. allow_single: a case of which the manifest gives one image
    alone is predicted by the head for that modality; every row says in `modalities` what it rests on. resume,
    retry_failed, require_verified, by: `open_journal`; rows that are there are made again where an image was exchanged
    since (`Summary.outdated`). Through a link it writes the file that the link names.

    Raises `OutputError` if `output` or its journal is in the way or written by another process, `UsageError` for
    columns that there are not, `EngineError` if inference fails, and `MissingPackage` if a format needs a package; the
    journal stays, and `resume` goes on from it.
    """
    output = written(Path(output))
    require_apart(output, manifest.path)
    _require_no_image(output, manifest.cases)
    extra = extra_columns(predictor.bundle, columns, alone=allow_single)
    if allow_single:
        single.require_single(predictor.bundle, predictor.target)
    header = {
        "schema": SCHEMA,
        "bundle": predictor.bundle.digest,
        "manifest": manifest.sha256,
        "folder": manifest.folder,
        "target": str(predictor.target),
        "head_target": str(predictor.head_target),
        "frame": frame,
        "columns": list(extra),
        "batch": batch,
    }
    layout = Layout(header, predictor.bundle, {case.case_id for case in manifest.cases}, extra)
    with claimed(output):
        journal = open_journal(
            output,
            layout,
            resume=resume,
            overwrite=overwrite,
            retry_failed=retry_failed,
            by=by,
            require_verified=require_verified,
            marked=lambda: {case.case_id: mark(case) for case in manifest.cases},
            outdated=lambda there: _outdated(there, manifest.cases, 1 if retry_failed else batch),
        )
        try:
            batches = batched(manifest.cases, batch, without=journal.rows.keys())
            todo = [case for one in batches for case in one]
            ledger = Ledger()
            start = time.perf_counter()
            decoder = Decoder(
                todo,
                predictor.bundle.preprocessing,
                frame=frame,
                ahead=2 * batch,
                digests="files" in columns,
                check=predictor.bundle.modality_check,
                alone=allow_single,
            )
            with decoder as decoded:
                progress("predicting", len(journal.rows), len(manifest.cases), "cases")
                for one in batches:
                    items = list(islice(decoded, len(one)))
                    marks = {item.case.case_id: item.mark for item in items}
                    journal.add(rows_of(predictor, items, ledger, extra), marks)
                    progress("predicting", len(journal.rows), len(manifest.cases), "cases")
            wall_ms = (time.perf_counter() - start) * 1e3
            rows = [journal.rows[case.case_id] for case in manifest.cases]
            journal.finish(output, rows)
        finally:
            journal.close()
    errors = [f"`{row[0]}`: {row[3]}" for row in rows if row[3]]
    warnings = [f"`{row[0]}`: {row[4]}" for row in rows if row[4]]
    warm = ledger.batches_ms[1:]
    return Summary(
        cases=len(rows),
        predicted=ledger.predicted,
        failed=len(errors),
        resumed=len(rows) - len(todo),
        first_error=errors[0] if errors else "",
        warned=len(warnings),
        first_warning=warnings[0] if warnings else "",
        wall_ms=wall_ms,
        decode_ms=ledger.decode_ms,
        batch_latency=summarise(warm) if warm else None,
        first_batch_ms=ledger.batches_ms[0] if ledger.batches_ms else None,
        stages_ms=ledger.stages_ms,
        single=sum(rests_on_one(row, layout.columns) for row in rows),
        header=header,
        earlier=journal.earlier,
        outdated=journal.outdated,
    )


def _require_no_image(output: Path, cases: Sequence[Case]) -> None:
    """Raise `OutputError` where `output` is an image of a case, by whichever name: once it is replaced that is lost."""
    if not output.is_file():
        return
    place = output.stat()
    for case in cases:
        for path in (case.image(modality) for modality in MODALITIES):
            with suppress(OSError, ValueError):  # what can't be looked at says so when it is read
                if path is not None and os.path.samestat(place, path.stat()):
                    raise OutputError(
                        f"{output} is an image of the case `{case.case_id}`, expected another file",
                        hint="choose another -o",
                    )


def _outdated(there: There, cases: Sequence[Case], batch: int) -> set[str]:
    """Of the cases that have answers those of which an image was exchanged since, and all that shared their batch: in a
    smaller one the others' last bits would be others. Rows with errors say nothing of an image."""
    marks, started = there.marks, there.started

    def is_other(case: Case) -> bool:
        if marks is not None:
            return were_exchanged(marks[case.case_id], case)
        return started is not None and written_since(started, case)

    have = [case for case in cases if (row := there.rows.get(case.case_id)) and not row[COLUMNS.index("error")]]
    with ThreadPoolExecutor(ASKING) as pool:
        others = {case.case_id for case, one in zip(have, pool.map(is_other, have), strict=True) if one}
    together = [{case.case_id for case in one} for one in batched(cases, batch)]
    return {case_id for ids in together if ids & others for case_id in ids if case_id in there.rows}


def rests_on_one(row: Row, columns: Sequence[str]) -> bool:
    """Whether a row of those columns is of one image alone."""
    return single.COLUMN in columns and row[columns.index(single.COLUMN)] in MODALITIES


def extra_columns(bundle: Bundle, asked: Sequence[str], *, alone: bool = False) -> tuple[str, ...]:
    """The columns behind `COLUMNS`, of those of `EXTRAS` that are asked for; before them what a row rests on, where
    that may be one image alone. Raises `UsageError`."""
    if unknown := [name for name in asked if name not in EXTRAS]:
        raise UsageError(
            f"the column `{unknown[0]}` is asked for, expected of {', '.join(EXTRAS)}",
            hint=f"--columns {','.join(EXTRAS)}",
        )
    if "base" in asked and bundle.learners is None:
        raise UsageError(
            f"{bundle.path} does not name its base learners, expected a bundle that does",
            hint="export it again with this version, or leave `base` out of --columns",
        )
    found = {
        "base": tuple(f"base_{name}" for name in bundle.learners or ()),
        "embedding": ("embedding_sha256",),
        "files": tuple(f"{modality}_sha256" for modality in MODALITIES),
    }
    basis = (single.COLUMN,) if alone else ()
    return basis + tuple(column for name in EXTRAS if name in asked for column in found[name])


def batched(cases: Sequence[Case], batch: int, *, without: Set[str] = frozenset()) -> list[list[Case]]:
    """Each `batch` consecutive cases, less those whose id is in `without`; none of nothing."""
    groups = [cases[begin : begin + batch] for begin in range(0, len(cases), batch)]
    left = [[case for case in group if case.case_id not in without] for group in groups]
    return [group for group in left if group]


class Ledger:
    """Where the time went, added up while running."""

    def __init__(self) -> None:
        self.predicted = 0
        self.decode_ms = 0.0
        self.batches_ms: list[float] = []
        self.stages_ms: dict[str, float] = {}


def rows_of(predictor: Predictor, items: Sequence[Decoded], ledger: Ledger, extra: tuple[str, ...]) -> list[Row]:
    """The rows of a batch, in any order: those that can't be read with their errors, the others predicted together; for
    themselves those of which there is one image."""
    ledger.decode_ms += sum(item.decode_ms for item in items)
    rows = [_failed(item, item.error, extra) for item in items if item.error]
    for basis in (single.BOTH, *MODALITIES):
        if readable := [item for item in items if not item.error and item.basis == basis]:
            rows += _predict(predictor, readable, ledger, extra)
    return rows


def _predict(predictor: Predictor, items: Sequence[Decoded], ledger: Ledger, extra: tuple[str, ...]) -> list[Row]:
    start = time.perf_counter()
    pixels = {modality: np.stack([item.pixels[modality] for item in items]) for modality in items[0].pixels}
    try:
        if items[0].basis == single.BOTH:
            prediction = predictor.predict(pixels)
        else:
            ((modality, images),) = pixels.items()
            prediction = predictor.predict_single(modality, images)
    except AnswerError as error:
        if not error.rows:
            raise
        return _predict_the_others(predictor, items, ledger, extra, error)
    ledger.batches_ms.append((time.perf_counter() - start) * 1e3)
    ledger.predicted += len(items)
    for stage, spent in prediction.stages_ms.items():
        ledger.stages_ms[stage] = ledger.stages_ms.get(stage, 0.0) + spent
    return [
        (
            item.case.case_id,
            shortest(value),
            decision,
            "",
            item.warnings,
            *_extras(item, prediction, row, extra),
        )
        for row, (item, value, decision) in enumerate(
            zip(items, prediction.probability, prediction.decision, strict=True)
        )
    ]


def _extras(item: Decoded, prediction: Prediction, row: int, extra: tuple[str, ...]) -> Iterator[str]:
    base = iter([] if prediction.base_probability is None else prediction.base_probability[row])
    for name in extra:
        if name == "embedding_sha256":
            yield hashlib.sha256(prediction.embedding[row].astype("<f4").tobytes()).hexdigest()
        elif name == single.COLUMN:
            yield item.basis
        elif name.startswith("base_"):
            yield shortest(next(base))
        else:
            yield _digest_cell(item, name)


def _digest_cell(item: Decoded, name: str) -> str:
    return next((digest for modality, digest in item.digests.items() if name == f"{modality}_sha256"), "")


def _failed(item: Decoded, error: str, extra: tuple[str, ...]) -> Row:
    return (item.case.case_id, "", "", error, item.warnings, *(_digest_cell(item, name) for name in extra))


def _predict_the_others(
    predictor: Predictor, items: Sequence[Decoded], ledger: Ledger, extra: tuple[str, ...], error: AnswerError
) -> list[Row]:
    """Rows of a batch in which some cases have no answer: these with an error each, the others predicted again."""
    text = f"{predictor.target} gave no number for this case; {error.hint}"
    without = [_failed(items[row], text, extra) for row in error.rows]
    others = [item for row, item in enumerate(items) if row not in error.rows]
    return [*without, *(_predict(predictor, others, ledger, extra) if others else [])]


class Decoder:
    """Decodes cases in threads, in order, never more than `ahead` cases ahead of the consumer."""

    def __init__(
        self,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        *,
        frame: int | None,
        ahead: int,
        digests: bool = False,
        check: ModalityCheck | None = None,
        alone: bool = False,
    ) -> None:
        """digests: take those of the files, too. check: warn of what it says. alone: a case may have
        one image."""
        self._cases = iter(cases)
        self._more = partial(decode, digests=digests, check=check, alone=alone)
        self._preprocessing = preprocessing
        self._frame = frame
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(usable_threads(), thread_name_prefix="decode")
        self._futures: deque[Future[Decoded]] = deque()

    def __enter__(self) -> Iterator[Decoded]:
        return self._results()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _results(self) -> Iterator[Decoded]:
        while True:
            while len(self._futures) < self._ahead and (case := next(self._cases, None)) is not None:
                self._futures.append(self._pool.submit(self._more, case, self._preprocessing, self._frame))
            if not self._futures:
                return
            yield self._futures.popleft().result()


def decode(
    case: Case,
    preprocessing: Preprocessing,
    frame: int | None,
    *,
    digests: bool = False,
    check: ModalityCheck | None = None,
    alone: bool = False,
) -> Decoded:
    """Both images of a case to pixels; what is wrong with the images becomes `error`. alone: of a case of which one is
    given, that one."""
    start = time.perf_counter()
    pixels: dict[Modality, Array] = {}
    files: dict[Modality, str] = {}
    subjects: dict[Modality, Subject] = {}
    warnings: list[str] = []
    error, marked = "", mark(case)
    given = [modality for modality in MODALITIES if case.image(modality) is not None]
    one = alone and len(given) == 1
    try:
        paths = {modality: _path(case, modality) for modality in (given if one else MODALITIES)}
        if not one:
            require_two_files(paths)
        for modality, path in paths.items():
            digest = partial(files.__setitem__, modality) if digests else None
            pixels[modality], found, subjects[modality] = read_with_warnings(
                path, preprocessing, modality=modality, frame=frame, digest=digest
            )
            warnings += [f"{modality}: {warning}" for warning in found]
        if not one:
            require_two(pixels)
            warnings += require_one(subjects)
    except ImageError as cause:
        error = _one_line(f"{cause}; {cause.hint}")
    if one:
        warnings.append(single.warning(given[0]))
    if not error:
        warnings += said_against({name: array[None] for name, array in pixels.items()}, check)[0]
    if digests and error:
        files = {**_digests(case, without=files.keys()), **files}
    said, spent_ms = _one_line("; ".join(warnings)), (time.perf_counter() - start) * 1e3
    basis, shown = given[0] if one else single.BOTH, tuple(subjects.values())
    return Decoded(case, pixels, error, said, spent_ms, files, basis, marked, shown)


def _digests(case: Case, *, without: Set[Modality]) -> dict[Modality, str]:
    """Those of files that were not decoded, for a row that is an error."""
    found: dict[Modality, str] = {}
    for modality in MODALITIES:
        path = None if modality in without else case.image(modality)
        with suppress(OSError, ValueError):  # what can't be read says so in its row, and what is no path
            if path is not None and path.is_file():
                found[modality] = sha256_file(path)
    return found


def _one_line(text: str) -> str:
    """For a cell. A path or a header may hold a line break, or what UTF-8 has no code for, and a header more letters
    than the 131,072 that Python's reader of CSV takes."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} …"


def _path(case: Case, modality: Modality) -> Path:
    path = case.image(modality)
    if path is None:
        raise ImageError(f"no {modality} image is given, expected both", hint="add it to the manifest")
    return path
