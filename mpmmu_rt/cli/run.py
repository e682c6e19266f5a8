from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpmmu_rt.errors import ImageError, OutputError, UsageError

from . import _ray
from ._proven import looked_up, note_verdict, warn_never_run
from ._report import JsonTo, bars, check_json, count, going_on, milliseconds, next_command, note, put_file, put_json
from ._target import AUTO, RoundingOption, TargetOption, taken

if TYPE_CHECKING:
    from mpmmu_rt.origin import Entry
    from mpmmu_rt.run import Allowed, Asked
    from mpmmu_rt.run_record import Made


def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle to run.")],
    manifest: Annotated[
        str,
        typer.Argument(metavar="MANIFEST", help="CSV with case_id,mammography,ultrasound; with --ray Parquet, too."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write, or - for stdout.")] = Path(
        "predictions.csv"
    ),
    target: TargetOption = AUTO,
    allow_rounding: RoundingOption = False,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Cases per batch.")] = 32,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    columns: Annotated[
        str, typer.Option("--columns", help="More columns, of base,embedding,files: learners, digests.")
    ] = "",
    allow_single: Annotated[
        bool,
        typer.Option(
            "--allow-single", help="Predict cases with one image by heads for it alone; each row says what it rests on."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run, with the same options.")
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Make the rows of a run again that have errors, or whose images were replaced."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT or an unfinished run.")] = False,
    require_verified: Annotated[
        bool,
        typer.Option(
            "--require-verified",
            help="Refuse a bundle that `verify` did not pass on this machine, and earlier rows that it did not cover.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="[ADDRESS]", help="On a Ray cluster: `local` starts one here, `auto` joins one."),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option("--ray-workers", min=1, help="Predictors [default: as many as there is room for].")
    ] = None,
    ray_cpus: Annotated[int, typer.Option("--ray-cpus", min=1, help="Processor cores of each Predictor.")] = 1,
    json_to: JsonTo = None,
) -> None:
    """Predict every case of a manifest; exit code 1 if any has no probability."""
    from mpmmu_rt import origin, run_record
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.engines import engine
    from mpmmu_rt.machine import now
    from mpmmu_rt.places import claimed, written
    from mpmmu_rt.run import Allowed, Asked, extra_columns
    from mpmmu_rt.single import COLUMN, require_single

    _check(output, json_to, going_on=resume or retry_failed, overwrite=overwrite)
    on_ray = _ray.asked(ray, ray_workers, ray_cpus, output)
    listed = _ray.place(manifest, output, on_ray=on_ray is not None)
    to = output if output == Path("-") or (on_ray and output.suffix == ".parquet") else written(output)
    check_json(json_to, bundle, manifest, to, run_record.place_of(to))
    started = now()
    opened = Bundle.open(bundle)
    wanted, choice = taken(opened, target, allow_rounding=allow_rounding)
    asked = tuple(name.strip() for name in columns.split(",") if name.strip())
    extra_columns(opened, asked)
    engine(wanted)
    opened.require_proven(wanted)
    if allow_single:
        require_single(opened, wanted)
    verdict = looked_up(opened, wanted, require=require_verified)
    by = origin.made_by(started, verdict)

    with _place(to) as path, claimed(path):
        run_record.check_place(path)
        what = Asked(opened, wanted, batch, frame, asked, allow_single)
        allowed = Allowed(
            resume=resume, overwrite=overwrite, retry_failed=retry_failed, require_verified=require_verified
        )
        warn_never_run(opened, wanted, bundle)
        if on_ray:
            made = _ray.run_on(on_ray, what, listed, path, allowed, by)
        else:
            made = _here(what, Path(listed), path, allowed, by, keeps=output != Path("-"))
        summary = made.summary
        whole = f"{output} is whole, and what it was made with is not written beside it"
        with going_on(output, lambda: whole if output != Path("-") else "rows for stdout are not kept", "--overwrite"):
            entry = run_record.record(made, output, by, choice)
            if output == Path("-"):
                put_file(path)
            else:
                place = run_record.keep(path, entry)
    put_json(json_to, entry)
    note(
        f"wrote {output}: {count(summary.cases - summary.failed, 'prediction')}, {count(summary.failed, 'error')}"
        + (f" ({count(summary.resumed, 'row')} there already)" if summary.resumed else "")
        + ("" if output == Path("-") else f"; what they were made with: {place.name if to == output else place}")
    )
    _note_speed(made, batch)
    if summary.outdated:
        note(
            f"warning: {count(summary.outdated, 'row')} that {'was' if summary.outdated == 1 else 'were'} there "
            f"already {'was' if summary.outdated == 1 else 'were'} made again: images were written since"
        )
    for remark in made.listing.remarks:
        note(f"warning: {remark}")
    if summary.warned:
        note(
            f"warning: {summary.warned} of {summary.cases} rows of {output} have warnings; the first is "
            f"{summary.first_warning}"
        )
    if summary.single:
        note(
            f"warning: {summary.single} of {summary.cases} rows rest on one image alone; the column `{COLUMN}` of "
            f"{output} says which"
        )
    for remark in made.remarks:
        note(f"note: {remark}")
    note_verdict(verdict, wanted, bundle)
    unverified = sum(one["rows"] for one in origin.unverified(summary.earlier))
    if verdict.passed and unverified:
        note(f"warning: {unverified} of {summary.cases} rows were there, of a run that is not known to be verified")
    for other, rows in origin.elsewhere(summary.earlier, by).items():
        note(f"note: {count(rows, 'row')} taken over from another {other}: the last digits may differ")
    if summary.failed and opened.single_heads and not allow_single:
        note("note: --allow-single predicts cases of which one image is there by heads for it alone")
    if not summary.failed:
        next_command("bench", bundle, "--batch", batch)
    if summary.failed:
        raise ImageError(
            f"{summary.failed} of {summary.cases} cases have no probability, expected one for each; the first is "
            f"{summary.first_error}",
            hint="the column `error` says why for each"
            if output == Path("-")
            else f"the column `error` of {output} says why for each; once the files are repaired, --retry-failed makes "
            "these again",
        )


def _here(asked: Asked, manifest: Path, output: Path, allowed: Allowed, by: Entry, *, keeps: bool) -> Made:
    """In this process. keeps: what is finished when it is interrupted stays."""
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.journal import finished, place_of
    from mpmmu_rt.predictor import Predictor
    from mpmmu_rt.run import run as run_manifest
    from mpmmu_rt.run_record import Made

    cases = read_manifest(manifest)

    rows = place_of(output)

    def begun() -> bool:
        return rows.exists() and rows.stat().st_size > 0

    def kept() -> str:
        if not keeps:
            return "rows for stdout are not kept"
        if not begun():
            return "no row was finished"
        return f"{count(finished(rows), 'row')} kept in {rows}"

    with (
        going_on(output, kept, *(["--resume"] if keeps else []), begun=begun),
        Predictor(asked.bundle, asked.target) as predictor,
        bars() as progress,
    ):
        summary = run_manifest(
            predictor,
            cases,
            output,
            batch=asked.batch,
            frame=asked.frame,
            columns=asked.columns,
            allow_single=asked.alone,
            resume=allowed.resume,
            overwrite=allowed.overwrite,
            retry_failed=allowed.retry_failed,
            require_verified=allowed.require_verified,
            by=by,
            progress=progress,
        )
        return Made(asked, predictor.head_target, predictor.remarks, cases, summary)


def _check(output: Path, json_to: str | None, *, going_on: bool, overwrite: bool) -> None:
    """Raise `UsageError` for options that contradict each other, `OutputError` for no file."""
    if not output.name:
        raise OutputError(f"{output} is a folder, expected a file to write", hint="name a file, or - for stdout")
    if going_on and overwrite:
        raise UsageError(
            "--overwrite is given with --resume or --retry-failed, expected one of them",
            hint="leave --overwrite out to go on",
        )
    if output == Path("-") and (going_on or json_to == "-"):
        other = "--json -" if json_to == "-" else "--resume or --retry-failed"
        raise UsageError(f"{other} is given with -o -, expected one of them", hint="name a file with -o")


@contextmanager
def _place(output: Path) -> Iterator[Path]:
    """Where rows are written: for stdout into a folder that goes away."""
    if output != Path("-"):
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="mpmmu-rt-") as folder:
        yield Path(folder) / "predictions.csv"


def _note_speed(made: Made, batch: int) -> None:
    summary, target, head_target = made.summary, made.asked.target, made.head_target
    if made.processors:
        processors = ", ".join(made.processors)
        note(f"{summary.pairs_per_s:.1f} pairs/s from files on {target} (head on {head_target}), on {processors}")
    if summary.first_batch_ms is None:
        return
    stages = ", ".join(f"{stage} {spent / summary.predicted:.2f}" for stage, spent in summary.stages_ms.items())
    of_batches = f"the first batch took {milliseconds(summary.first_batch_ms)}, cold"
    if summary.batch_latency:
        told = ((name, getattr(summary.batch_latency, name)) for name in ("p50", "p99"))
        found = [f"{name} {milliseconds(value)}" for name, value in told if value is not None]
        found = found or [f"mean {milliseconds(summary.batch_latency.mean)}"]
        of_batches = (
            f"batch of ≤ {batch}: {', '.join(found)} (n = {summary.batch_latency.n}, without the first, which is cold: "
            f"{milliseconds(summary.first_batch_ms)})"
        )
    note(f"{summary.pairs_per_s:.1f} pairs/s from files on {target} (head on {head_target}); {of_batches}")
    decode_ms = summary.decode_ms / max(1, summary.cases - summary.resumed)
    note(f"ms per pair: decode {decode_ms:.2f} (in other threads), {stages}")
