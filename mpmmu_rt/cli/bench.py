from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpmmu_rt.errors import UsageError
from mpmmu_rt.files import rounded

from ._bench_text import MOST_SECONDS, describe
from ._report import JsonTo, bars, check_html, check_json, note, put_json, quiet, say, write_html
from ._target import AUTO, RoundingOption, check_rounding, taken
from .export import REFERENCE_BUNDLE

if TYPE_CHECKING:
    from mpmmu_rt.spec import Target


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(help=f"Bundle to measure [default: {REFERENCE_BUNDLE}, exported if absent].")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Pairs per call.")] = 32,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Engine and precision [default: auto, and all others beside it; with --save and --baseline "
            "onnxruntime:fp32].",
        ),
    ] = None,
    allow_rounding: RoundingOption = False,
    json_to: JsonTo = None,
    html_to: Annotated[Path | None, typer.Option("--html", help="Write a report with plots: one HTML page.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=MOST_SECONDS, help="How long to measure.")] = 3.0,
    idle: Annotated[
        str, typer.Option("--idle", help="Seconds of silence after which the first call is measured, or none.")
    ] = "0,1",
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Other batches to measure: 1,2,4,8 or auto, powers of two.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Instead, take turns of fresh processes and keep them as a baseline.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Instead, judge against a baseline: exit codes as of compare.")
    ] = None,
    max_slowdown: Annotated[
        str | None, typer.Option("--max-slowdown", help="With --baseline: what is allowed [default: 5%].")
    ] = None,
    allow_counts: Annotated[
        list[str] | None, typer.Option("--allow-counts", help="With --baseline: as of compare.")
    ] = None,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="With --baseline: of another machine or version, as a tripwire.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", help="With --save or --baseline: how long to measure [default: 120s].")
    ] = None,
) -> None:
    """Measure latency, throughput, memory and cold start, and say what is included."""
    from mpmmu_rt.bench import bench as measure
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.curves import check_gaps
    from mpmmu_rt.engines import engine
    from mpmmu_rt.latency import Effort
    from mpmmu_rt.survey import survey

    judging = {"--max-slowdown": max_slowdown, "--allow-counts": allow_counts, "--allow-different": allow_different}
    measuring = {"--seconds": seconds != 3.0, "--html": html_to, "--sweep": sweep, "--idle": idle != "0,1"}
    _check(save, baseline, judging, measuring, budget, json_to)
    named = _named(target, allow_rounding=allow_rounding, turns=bool(save or baseline))
    silences, sizes = _silences(idle), _batches(sweep, batch)
    check_gaps(silences)
    if named:
        engine(named)  # before a long export
    check_json(json_to, bundle, html_to, baseline)
    check_html(html_to, bundle)
    if bundle is None:
        bundle = _reference()
    if named and (save or baseline):
        from ._baseline import judge_baseline, save_baseline

        if save:
            save_baseline(save, bundle, named, batch, budget=budget or "120s")
        elif baseline:
            judge_baseline(
                baseline,
                bundle,
                named,
                batch,
                max_slowdown=max_slowdown or "5%",
                allow_counts=allow_counts or [],
                allow_different=allow_different,
                budget=budget or "120s",
                json_to=json_to,
            )
        return
    chosen, opened, choice = named, None, None
    if chosen is None:
        opened = Bundle.open(bundle)
        chosen, choice = taken(opened, AUTO, allow_rounding=allow_rounding)
    with bars() as progress:
        effort = Effort(measure_ms=seconds * 1e3, max_warmup_ms=min(5000.0, seconds * 2e3))
        result = measure(bundle, chosen, batch, effort=effort, idle_s=silences, batches=sizes, progress=progress)
        if opened and choice:
            result.entry["chosen"] = choice.to_json()
            result.entry["targets"] = survey(opened, batch, seconds=seconds / 3, progress=progress)
    entry = rounded(result.entry)
    if not put_json(json_to, entry):
        say(describe(entry, bundle))
    if html_to:
        write_html(html_to, entry)
    for remark in entry["remarks"]:
        note(f"note: {remark}")
    if result.warning:
        note(f"warning: {result.warning}")


def _named(target: str | None, *, allow_rounding: bool, turns: bool) -> Target | None:
    """The target to measure, where it does not depend on the machine: what is kept as a baseline, and judged by one,
    has a name."""
    from mpmmu_rt.predictor import DEFAULT_TARGET
    from mpmmu_rt.spec import Target

    if turns and (allow_rounding or target == AUTO):
        raise UsageError(
            f"{'--allow-rounding' if allow_rounding else '--target auto'} is given with --save or --baseline, expected "
            "a target by name: a baseline must not become one of another target where the machine changes",
            hint=f"--target {DEFAULT_TARGET}, which it is without",
        )
    check_rounding(target or AUTO, allow_rounding=allow_rounding)
    if target in (None, AUTO):
        return Target.parse(DEFAULT_TARGET) if turns else None
    return Target.parse(str(target))


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


def _check(
    save: Path | None,
    baseline: Path | None,
    judging: Mapping[str, object],
    measuring: Mapping[str, object],
    budget: str | None,
    json_to: str | None,
) -> None:
    """Raise `UsageError` for options that would do nothing: who gives them must not believe that they do."""
    if save and baseline:
        raise UsageError("--save and --baseline are both given, expected one", hint="judge first, and save then")
    if not baseline and (idle := [name for name, value in judging.items() if value]):
        raise UsageError(f"{idle[0]} is given without --baseline, expected both", hint="--baseline FILE, or compare")
    if budget and not (save or baseline):
        raise UsageError("--budget is given without --save or --baseline, expected one", hint="--seconds 10")
    if (save or baseline) and (given := [name for name, value in measuring.items() if value]):
        hint = "--budget 120s" if given[0] == "--seconds" else f"measure without --save and --baseline for {given[0]}"
        raise UsageError(f"{given[0]} is given with turns of fresh processes, which have no such option", hint=hint)
    if json_to and save:
        raise UsageError("--json is given with --save, whose file is JSON, expected one of them", hint="--save FILE")


def _reference() -> Path:
    """The bundle in the default place; made in a process of its own, so that torch is no part of what is measured."""
    if REFERENCE_BUNDLE.exists():
        note(f"measuring {REFERENCE_BUNDLE}")
        return REFERENCE_BUNDLE
    from mpmmu_rt.child import python

    note(f"no bundle is given and {REFERENCE_BUNDLE} does not exist: exporting the reference model there first")
    code = subprocess.run(
        python("-m", "mpmmu_rt", *(["--quiet"] if quiet() else []), "export", "-o", str(REFERENCE_BUNDLE)),
        stdout=sys.stderr,
        check=False,
    ).returncode
    if code:
        raise typer.Exit(code)
    return REFERENCE_BUNDLE
