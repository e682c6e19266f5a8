"""Batched inference on files: decoding overlaps with inference, and no row is ever lost or made twice.

Finished rows go to a journal beside the output (`predictions.csv.partial`), flushed to the disk batch by batch. When
every case has its row, the output is written in the manifest's order, under a temporary name, and renamed.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import CLASSES, Bundle
from .cases import Case, Manifest
from .checks import decide
from .errors import AnswerError, ImageError, OutputError
from .files import atomic_file
from .images import Preprocessing, read_with_warnings
from .latency import Latency, summarise
from .machine import usable_threads
from .predictor import Predictor
from .progress import Progress, silent
from .spec import MODALITIES, Array, Modality, StrPath

COLUMNS = ("case_id", "probability", "decision", "error", "warnings")
JOURNAL_SCHEMA = "mpmmu-run/2"
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Decoded:
    """A case and its pixels (uint8 [1, S, S] per modality), or the reason why there are none.

    warnings: what the headers of its images say against them, one line; "" if nothing.
    """

    case: Case
    pixels: dict[Modality, Array]
    error: str
    warnings: str
    decode_ms: float


@dataclass(frozen=True)
class Summary:
    """What a run did. Times are wall times in ms; `batch_latency` is of full and partial batches alike."""

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
    stages_ms: dict[str, float]

    @property
    def pairs_per_s(self) -> float:
        return self.predicted / self.wall_ms * 1e3 if self.wall_ms else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "predicted": self.predicted,
            "failed": self.failed,
            "warned": self.warned,
            "resumed": self.resumed,
            "wall_ms": self.wall_ms,
            "decode_ms": self.decode_ms,
            "throughput_pairs_per_s": self.pairs_per_s,
            "batch_latency_ms": self.batch_latency.to_json() if self.batch_latency else None,
            "stages_ms": self.stages_ms,
        }


def run(
    predictor: Predictor,
    manifest: Manifest,
    output: StrPath,
    *,
    batch: int = 32,
    frame: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Summary:
    """Predict every case of `manifest` and write `output`, a CSV with the columns `COLUMNS`, one row per case.

    A case whose images can't be read, or for which the engine has no number, gets a row with its error; what a DICOM
    header says against an image that can be read stands in the row's `warnings`. `frame` is the
    frame to take of files that hold several. Raises `OutputError` if `output` or its journal is in the way,
    `EngineError` if inference fails, and `MissingPackage` if a format needs a package; the journal stays, and `resume`
    goes on from it.
    """
    output = Path(output)
    journal = _Journal.open(output, predictor, manifest, frame=frame, resume=resume, overwrite=overwrite)
    try:
        todo = [case for case in manifest.cases if case.case_id not in journal.rows]
        ledger = _Ledger()
        start = time.perf_counter()
        with Decoder(todo, predictor.bundle.preprocessing, frame=frame, ahead=2 * batch) as decoded:
            _predict_all(predictor, decoded, journal, ledger, batch, len(manifest.cases), progress)
        wall_ms = (time.perf_counter() - start) * 1e3
        rows = [journal.rows[case.case_id] for case in manifest.cases]
        journal.finish(output, rows)
    finally:
        journal.close()
    errors = [f"`{row[0]}`: {row[3]}" for row in rows if row[3]]
    warnings = [f"`{row[0]}`: {row[4]}" for row in rows if row[4]]
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
        batch_latency=summarise(ledger.batches_ms) if ledger.batches_ms else None,
        stages_ms=ledger.stages_ms,
    )


class _Ledger:
    """Where the time went, added up while running."""

    def __init__(self) -> None:
        self.predicted = 0
        self.decode_ms = 0.0
        self.batches_ms: list[float] = []
        self.stages_ms: dict[str, float] = {}


def _predict_all(
    predictor: Predictor,
    decoded: Iterator[Decoded],
    journal: _Journal,
    ledger: _Ledger,
    batch: int,
    total: int,
    progress: Progress,
) -> None:
    progress("predicting", len(journal.rows), total, "cases")
    pending: list[Decoded] = []
    for item in decoded:
        ledger.decode_ms += item.decode_ms
        if item.error:
            journal.add([(item.case.case_id, "", "", item.error, item.warnings)])
        else:
            pending.append(item)
        if len(pending) == batch:
            journal.add(_predict(predictor, pending, ledger))
            pending = []
        progress("predicting", len(journal.rows), total, "cases")
    if pending:
        journal.add(_predict(predictor, pending, ledger))
    progress("predicting", len(journal.rows), total, "cases")


def _predict(predictor: Predictor, items: Sequence[Decoded], ledger: _Ledger) -> list[Row]:
    start = time.perf_counter()
    pixels = {modality: np.stack([item.pixels[modality] for item in items]) for modality in MODALITIES}
    try:
        prediction = predictor.predict(pixels)
    except AnswerError as error:
        if not error.rows:
            raise
        return _predict_the_others(predictor, items, ledger, error)
    ledger.batches_ms.append((time.perf_counter() - start) * 1e3)
    ledger.predicted += len(items)
    for stage, spent in prediction.stages_ms.items():
        ledger.stages_ms[stage] = ledger.stages_ms.get(stage, 0.0) + spent
    return [
        (
            item.case.case_id,
            np.format_float_positional(value, unique=True, trim="0"),
            _decide(value, predictor.bundle),
            "",
            item.warnings,
        )
        for item, value in zip(items, prediction.probability, strict=True)
    ]


def _predict_the_others(
    predictor: Predictor, items: Sequence[Decoded], ledger: _Ledger, error: AnswerError
) -> list[Row]:
    """Rows of a batch in which some cases have no answer: these with an error each, the others predicted again."""
    text = f"{predictor.target} gave no number for this case; {error.hint}"
    without = [(items[row].case.case_id, "", "", text, items[row].warnings) for row in error.rows]
    others = [item for row, item in enumerate(items) if row not in error.rows]
    return [*without, *(_predict(predictor, others, ledger) if others else [])]


def _decide(probability: float | np.float32, bundle: Bundle) -> str:
    return CLASSES[int(decide(np.asarray(probability), bundle.threshold))]


class Decoder:
    """Decodes cases in threads, in order, never more than `ahead` cases ahead of the consumer."""

    def __init__(self, cases: Sequence[Case], preprocessing: Preprocessing, *, frame: int | None, ahead: int) -> None:
        self._cases = iter(cases)
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
                self._futures.append(self._pool.submit(decode, case, self._preprocessing, self._frame))
            if not self._futures:
                return
            yield self._futures.popleft().result()


def decode(case: Case, preprocessing: Preprocessing, frame: int | None) -> Decoded:
    """Both images of a case to pixels; what is wrong with the images becomes `error`."""
    start = time.perf_counter()
    pixels: dict[Modality, Array] = {}
    warnings: list[str] = []
    error = ""
    try:
        for modality in MODALITIES:
            path = _path(case, modality)
            pixels[modality], found = read_with_warnings(path, preprocessing, modality=modality, frame=frame)
            warnings += [f"{modality}: {warning}" for warning in found]
    except ImageError as cause:
        error = _one_line(f"{cause}; {cause.hint}")
    return Decoded(case, pixels, error, _one_line("; ".join(warnings)), (time.perf_counter() - start) * 1e3)


def _one_line(text: str) -> str:
    """A path or a header may hold a line break, a line of the journal may not."""
    return " ".join(text.split())


def _path(case: Case, modality: Modality) -> Path:
    path = case.image(modality)
    if path is None:
        raise ImageError(f"no {modality} image is given, expected both", hint="add it to the manifest")
    if case.mammography == case.ultrasound:
        raise ImageError(f"{path} is given for both modalities, expected an image of each", hint="correct the manifest")
    return path


class _Journal:
    """The finished rows, on disk: a JSON line that says what they belong to, then one CSV line per case."""

    def __init__(self, path: Path, header: dict[str, Any], rows: dict[str, Row]) -> None:
        self.path = path
        self.rows = rows
        self._file = path.open("a", encoding="utf-8", newline="")
        if not rows:
            self._file.truncate(0)
            self._file.write(json.dumps(header) + "\n")

    @classmethod
    def open(
        cls,
        output: Path,
        predictor: Predictor,
        manifest: Manifest,
        *,
        frame: int | None,
        resume: bool,
        overwrite: bool,
    ) -> _Journal:
        path = output.with_name(output.name + ".partial")
        if output.resolve() == manifest.path.resolve():
            raise OutputError(f"{output} is the manifest itself, expected another file", hint="choose another -o")
        if not output.parent.is_dir():
            raise OutputError(
                f"the folder {output.parent} does not exist, expected the place to write {output.name} into",
                hint=f"mkdir -p {output.parent}",
            )
        if output.is_dir():
            raise OutputError(f"{output} is a folder, expected a file to write", hint="name a file with -o")
        if output.exists() and not overwrite:
            raise OutputError(
                f"{output} exists already, expected a free path", hint="choose another -o, or pass --overwrite"
            )
        header = {
            "schema": JOURNAL_SCHEMA,
            "bundle": predictor.bundle.digest,
            "manifest": manifest.sha256,
            "target": str(predictor.target),
            "frame": frame,
        }
        rows: dict[str, Row] = {}
        if path.exists() and resume:
            rows = _read_journal(path, header, manifest, predictor.bundle)
        elif path.exists() and not overwrite:
            raise OutputError(
                f"{path} holds the rows of an unfinished run, expected no such file",
                hint="pass --resume to go on with it, or --overwrite to start again",
            )
        return cls(path, header, rows)

    def add(self, rows: Sequence[Row]) -> None:
        csv.writer(self._file, lineterminator="\n").writerows(rows)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.update({row[0]: row for row in rows})

    def finish(self, output: Path, rows: Sequence[Row]) -> None:
        with atomic_file(output) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        self._file.close()


def _read_journal(path: Path, header: dict[str, Any], manifest: Manifest, bundle: Bundle) -> dict[str, Row]:
    """The whole rows of a journal; the line that a crash cut off is dropped from the file as well."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    first, _, rest = whole.decode("utf-8", errors="replace").partition("\n")
    try:
        found = json.loads(first) if whole else header  # cut off before its first line: nothing was done
    except ValueError:
        found = None
    if found != header:
        differs = [key for key in header if not isinstance(found, dict) or found.get(key) != header[key]]
        raise OutputError(
            f"{path} belongs to another run (other {', '.join(differs)}), expected this run's",
            hint="run it with what it was begun with, or pass --overwrite instead of --resume to start again",
        )
    known = {case.case_id for case in manifest.cases}
    rows: dict[str, Row] = {}
    for number, line in enumerate(rest.split("\n")[:-1], 2):
        row = _parse_row(line, known, bundle)
        if row is None:
            raise OutputError(
                f"{path} is damaged in line {number}, expected a row that this run has written",
                hint="pass --overwrite instead of --resume to start again",
            )
        rows[row[0]] = row
    if len(whole) != len(data):
        os.truncate(path, len(whole))
    return rows


def _parse_row(line: str, known: Set[str], bundle: Bundle) -> Row | None:
    """A line of the journal, if it says what a run may have written: an error, or a probability and its decision."""
    try:
        case_id, probability, decision, error, warnings = next(csv.reader([line], strict=True))
        if error:
            holds = not probability and not decision
        else:
            holds = 0 <= float(probability) <= 1 and decision == _decide(float(probability), bundle)
    except (ValueError, csv.Error, StopIteration):
        return None
    return (case_id, probability, decision, error, warnings) if holds and case_id in known else None
