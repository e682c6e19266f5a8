from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import UsageError

from ._bench_text import MOST_SECONDS, describe
from ._report import bars, check_output, note, print_json, write_html, write_json
from .export import REFERENCE_BUNDLE, warn_untrained


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(help=f"Bundle to measure [default: {REFERENCE_BUNDLE}, exported if absent].")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Pairs per call.")] = 32,
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    json_to: Annotated[str | None, typer.Option("--json", help="Write the result as JSON to a file, or to - .")] = None,
    html_to: Annotated[Path | None, typer.Option("--html", help="Write a report with plots: one HTML page.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=MOST_SECONDS, help="How long to measure.")] = 3.0,
    idle: Annotated[
        str, typer.Option("--idle", help="Seconds of silence after which the first call is measured, or none.")
    ] = "0,1",
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Other batches to measure: 1,2,4,8 or auto, powers of two.")
    ] = None,
) -> None:
    """Measure latency, throughput, memory and cold start, and say what is included."""
    from mpmmu_rt.bench import bench as measure
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.curves import check_gaps
    from mpmmu_rt.engines import engine
    from mpmmu_rt.latency import Effort
    from mpmmu_rt.spec import Target

    chosen = Target.parse(target)
    silences, sizes = _silences(idle), _batches(sweep, batch)
    check_gaps(silences)
    engine(chosen)  # before a long export
    if json_to and json_to != "-":
        check_output(Path(json_to))
    if html_to:
        check_output(html_to, stdout=False)
    if bundle is None:
        bundle = _reference()
    with bars() as progress:
        effort = Effort(measure_ms=seconds * 1e3, max_warmup_ms=min(5000.0, seconds * 2e3))
        result = measure(bundle, chosen, batch, effort=effort, idle_s=silences, batches=sizes, progress=progress)
    if json_to == "-":
        print_json(result.entry)
    else:
        typer.echo(describe(result.entry))
        if json_to:
            write_json(Path(json_to), result.entry)
    if html_to:
        write_html(html_to, result.entry)
    for remark in result.entry["remarks"]:
        note(f"note: {remark}")
    if result.warning:
        note(f"warning: {result.warning}")
    warn_untrained(Bundle.open(bundle).trained)


def _silences(text: str) -> list[float]:
    if text.strip() == "none":
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--idle is `{text}`, expected seconds such as 0,1,10, or none", hint="--idle 0,1,10"
        ) from error


def _batches(text: str | None, batch: int) -> list[int]:
    if text is None:
        return []
    if text.strip() == "auto":
        return [1 << power for power in range(batch.bit_length()) if 1 << power < batch] + [batch]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--sweep is `{text}`, expected batches such as 1,2,4,8, or auto", hint="--sweep 1,2,4,8"
        ) from error


def _reference() -> Path:
    """The bundle in the default place; made in a process of its own, so that torch is no part of what is measured."""
    if REFERENCE_BUNDLE.exists():
        note(f"measuring {REFERENCE_BUNDLE}")
        return REFERENCE_BUNDLE
    note(f"no bundle is given and {REFERENCE_BUNDLE} does not exist: exporting the reference model there first")
    code = subprocess.run(
        [sys.executable, "-m", "mpmmu_rt", "export", "-o", str(REFERENCE_BUNDLE)], stdout=sys.stderr, check=False
    ).returncode
    if code:
        raise typer.Exit(code)
    return REFERENCE_BUNDLE
