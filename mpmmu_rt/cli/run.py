from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import ImageError

from ._proven import looked_up, note_verdict, warn_never_run
from ._report import bars, count, milliseconds, next_command, note, print_json
from .export import warn_untrained


def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle to run.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with case_id,mammography,ultrasound.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Cases per batch.")] = 32,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT or an unfinished run.")] = False,
    require_verified: Annotated[
        bool, typer.Option("--require-verified", help="Refuse a bundle that `verify` did not pass on this machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Predict every case of a manifest; exit code 1 if the images of any could not be read."""
    from mpmmu_rt import run_record
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.engines import engine
    from mpmmu_rt.machine import now
    from mpmmu_rt.predictor import Predictor
    from mpmmu_rt.run import run as run_manifest
    from mpmmu_rt.spec import Target

    cases, started = read_manifest(manifest), now()
    run_record.check_place(output)
    opened, wanted = Bundle.open(bundle), Target.parse(target)
    engine(wanted)
    verdict = looked_up(opened, wanted, require=require_verified)
    with Predictor(opened, wanted) as predictor, bars() as progress:
        warn_never_run(opened, wanted, bundle)
        opened.require_proven(wanted)
        summary = run_manifest(
            predictor,
            cases,
            output,
            batch=batch,
            frame=frame,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        trained, head, remarks = predictor.bundle.trained, predictor.head_target, predictor.remarks
        entry = run_record.record(predictor, cases, output, summary, verdict, started)
    place = run_record.keep(output, entry)
    if as_json:
        print_json(entry)
    note(
        f"wrote {output}: {count(summary.cases - summary.failed, 'prediction')}, {count(summary.failed, 'error')}"
        + (f" ({count(summary.resumed, 'row')} there already)" if summary.resumed else "")
        + f"; what they were made with: {place.name}"
    )
    if summary.batch_latency:
        latency = summary.batch_latency
        stages = ", ".join(f"{stage} {spent / summary.predicted:.2f}" for stage, spent in summary.stages_ms.items())
        note(
            f"{summary.pairs_per_s:.1f} pairs/s from files on {target} (head on {head}); batch of ≤ {batch}: "
            f"p50 {milliseconds(latency.p50)}, p99 {milliseconds(latency.p99)} (n = {latency.n})"
        )
        decode_ms = summary.decode_ms / max(1, summary.cases - summary.resumed)
        note(f"ms per pair: decode {decode_ms:.2f} (in other threads), {stages}")
    for remark in cases.remarks:
        note(f"warning: {remark}")
    if summary.warned:
        note(
            f"warning: {summary.warned} of {summary.cases} rows of {output} have warnings; the first is "
            f"{summary.first_warning}"
        )
    for remark in remarks:
        note(f"note: {remark}")
    note_verdict(verdict, wanted, bundle)
    warn_untrained(trained)
    if not summary.failed:
        next_command("bench", bundle, "--batch", batch)
    if summary.failed:
        raise ImageError(
            f"{summary.failed} of {summary.cases} cases could not be read, expected none; the first is "
            f"{summary.first_error}",
            hint=f"the column `error` of {output} says why for each",
        )
