from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mpmmu_rt.errors import UsageError

from ._report import bars, check_output, note, print_json, table, write_json
from .export import REFERENCE_BUNDLE, warn_untrained


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(help=f"Bundle to measure [default: {REFERENCE_BUNDLE}, exported if absent].")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Pairs per call.")] = 32,
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    json_to: Annotated[str | None, typer.Option("--json", help="Write the result as JSON to a file, or to - .")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="How long to measure.")] = 3.0,
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
    from mpmmu_rt.engines import engine
    from mpmmu_rt.latency import Effort
    from mpmmu_rt.spec import Target

    judging = {"--max-slowdown": max_slowdown, "--allow-counts": allow_counts, "--allow-different": allow_different}
    _check(save, baseline, judging, budget, seconds != 3.0, json_to)
    chosen = Target.parse(target)
    engine(chosen)  # before a long export
    if json_to and json_to != "-":
        check_output(Path(json_to))
    if bundle is None:
        bundle = _reference()
    if save or baseline:
        from ._baseline import judge_baseline, save_baseline

        if save:
            save_baseline(save, bundle, chosen, batch, budget=budget or "120s")
        elif baseline:
            judge_baseline(
                baseline,
                bundle,
                chosen,
                batch,
                max_slowdown=max_slowdown or "5%",
                allow_counts=allow_counts or [],
                allow_different=allow_different,
                budget=budget or "120s",
                json_to=json_to,
            )
        return
    with bars() as progress:
        result = measure(bundle, chosen, batch, effort=Effort(measure_ms=seconds * 1e3), progress=progress)
    if json_to == "-":
        print_json(result.entry)
    else:
        typer.echo(_describe(result.entry))
        if json_to:
            write_json(Path(json_to), result.entry)
    for remark in result.entry["remarks"]:
        note(f"note: {remark}")
    if result.warning:
        note(f"warning: {result.warning}")
    warn_untrained(Bundle.open(bundle).trained)


def _check(
    save: Path | None,
    baseline: Path | None,
    judging: Mapping[str, object],
    budget: str | None,
    seconds: bool,
    json_to: str | None,
) -> None:
    """Raise `UsageError` for options that would do nothing: who gives them must not believe that they do."""
    if save and baseline:
        raise UsageError("--save and --baseline are both given, expected one", hint="judge first, and save then")
    if not baseline and (idle := [name for name, value in judging.items() if value]):
        raise UsageError(f"{idle[0]} is given without --baseline, expected both", hint="--baseline FILE, or compare")
    if budget and not (save or baseline):
        raise UsageError("--budget is given without --save or --baseline, expected one", hint="--seconds 10")
    if seconds and (save or baseline):
        raise UsageError("--seconds is given with turns of fresh processes, expected --budget", hint="--budget 120s")
    if json_to and save:
        raise UsageError("--json is given with --save, whose file is JSON, expected one of them", hint="--save FILE")


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


def _describe(entry: dict[str, Any]) -> str:
    latency, batch = entry["latency_ms"], entry["batch"]
    per_pair = [[stage, f"{spent:.3f}", f"{spent / batch:.3f}"] for stage, spent in entry["stages_ms"].items()]
    total = ["all", f"{latency['p50']:.3f}", f"{latency['p50'] / batch:.3f}"]
    return "\n".join(
        [
            table(
                ["target", "batch", "p50 ms", "p90 ms", "p99 ms", "mean ms", "n", "pairs/s"],
                [
                    [
                        entry["target"],
                        str(batch),
                        *(f"{latency[key]:.2f}" for key in ("p50", "p90", "p99", "mean")),
                        str(latency["n"]),
                        f"{entry['throughput_pairs_per_s']:.1f}",
                    ]
                ],
            ),
            "",
            table(["stage", "p50 ms", "per pair"], [*per_pair, total]),
            "",
            f"cold start {entry['cold_start_ms']:.0f} ms (process start to first prediction), "
            f"peak memory {entry['peak_rss_bytes'] / 1e6:.0f} MB",
            f"measured: {entry['contract']}",
            f"on: {entry['machine']['cpu']}, {entry['machine']['threads']} threads, "
            + ", ".join(f"{name} {version}" for name, version in entry["machine"]["packages"].items()),
        ]
    )
