"""The report of the whole way on a GPU in words, and what in it is wrong or missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.stage import ending
from benchmarks.report import table

AHEAD = ", pixels copied ahead"  # ends the name of a variant that copies beside the device's work; else it is the same


def problems(report: Mapping[str, Any]) -> list[str]:
    """Whatever did not run, or did not run as it should; nothing where all is proven and measured."""
    if not report["targets"]:
        return ["the bundle lists no GPU target"]
    found = []
    for target, one in report["targets"].items():
        found += [f"{target}: {key}: {one[key]}" for key in ("not_run", "failed") if key in one]
        for name, facts in one.get("variants", {}).items():
            found += [f"{target}, {name}: {facts[key]}" for key in ("failed", "problem") if facts.get(key)]
        for batch, rows in one.get("batches", {}).items():
            for name, row in rows.items():
                where = f"{target}, {name}, batch {batch}"
                found += [f"{where}: {row[key]}" for key in ("not_run", "failed") if key in row]
                if not row.get("compared", True):
                    found.append(f"{where}: compared with nothing, as there is no answer: {report['expected']}")
    return found


def overhead(stages_ms: Mapping[str, float], wall_ms: float) -> float | None:
    """`wall_ms` over what the device takes, minus 1: in a CUDA graph over `device`, and without over the parts that
    can't overlap; None where neither was timed."""
    if "device" in stages_ms:
        return wall_ms / stages_ms["device"] - 1
    if not {"mammography", "ultrasound", "attention_pool", "head", "transfers"} <= set(stages_ms):
        return None
    encoders = max(stages_ms["mammography"], stages_ms["ultrasound"])
    return wall_ms / (encoders + sum(stages_ms[name] for name in ("attention_pool", "head", "transfers"))) - 1


def markdown(report: Mapping[str, Any]) -> str:
    rows, facts = [], []
    for target, found in report["targets"].items():
        for key, words in (("not_run", "*not measured*"), ("failed", "**failed**")):
            if key in found:
                rows.append((target, "", f"{words}: {found[key]}", *[""] * 10))
        for name, one in found.get("variants", {}).items():
            facts.append((target, name, *fact_cells(one)))
        for batch, measured in found.get("batches", {}).items():
            rows += [
                (target, batch, *row_cells(name, row, measured.get(name.removesuffix(AHEAD), row)))
                for name, row in measured.items()
            ]
    if not rows:
        rows.append(("none", "", "the bundle lists no GPU target", *[""] * 10))
    bundle = report["bundle"]
    return "\n".join(
        [
            f"# The whole way on {report['gpu']}",
            "",
            f"Made by `{report['command']}`.",
            "",
            f"{report['date']}, commit {report['commit']}, bundle {bundle['name']} ({bundle['digest'][:12]}), "
            f"{report['rounds']} rounds. How it is measured: `benchmarks/gpu/device_path.py`. Clocks are as found.",
            "",
            "Differences from the processor: of probabilities, and of embeddings relative to the largest. Crossings: "
            "cases whose probability moved by more than 1e-4; head: the largest difference from the processor's head "
            "on the same embedding. Again: the first call, asked again at the end; how far its embedding is from "
            f"before, where not the same to the bit. Expected answers: {report.get('expected', 'not known')}.",
            "",
            table(
                "target | batch | variant | runs | graph | wall p50, ms | p99 | stages, ms | overhead | max Δp | "
                "embedding | crossings, flips of cases; head | again",
                rows,
            ),
            "## What ran",
            "",
            table("target | variant | ran as | largest batch | captured batches | remarks", facts),
            *ending(problems(report), report.get("versions", {})),
        ]
    )


def fact_cells(one: Mapping[str, Any]) -> tuple[object, ...]:
    if "failed" in one:
        return (f"**failed**: {one['failed']}", "", "", "")
    remarks = [*([f"**{one['problem']}**"] if one.get("problem") else []), *one["remarks"]]
    pool = f" ({one['pool']})" if one.get("pool") else ""
    captured = one.get("captured")
    shown = "" if captured is None else f"{len(captured)}: {', '.join(map(str, captured))}" if captured else "none"
    return f"{one['ran']}{pool}", one["largest_batch"] or "any", shown, "; ".join(remarks)


def row_cells(name: str, row: Mapping[str, Any], plain: Mapping[str, Any]) -> tuple[object, ...]:
    """plain: the row whose time of the device is all its own: the overhead is over that."""
    words = {"failed": f"**failed**: {row.get('failed')}", "not_run": f"*not measured*: {row.get('not_run')}"}
    said = [name, *(words[key] for key in words if key in row)]
    if not row.get("compared", True):
        said.append("**compared with nothing**")
    stages, alone = row.get("stages_ms", {}), plain.get("stages_ms", {})
    on_device = name.startswith("device path") or "device" in stages
    more = overhead(alone, row["wall_p50_ms"]) if on_device and stages and alone else None
    graph = {True: "yes", False: "no"}.get(row.get("graph"), "")  # type: ignore[arg-type]
    counts = f"{row.get('crossings', 0):.0f}, {row.get('flips', 0):.0f} of {row.get('cases', 0)}"
    head = f"; {row['max_head']:.1e}" if "max_head" in row else "; head not checked"
    again = f"{row['again']:.1e}" if row.get("again") else "same" if "again" in row else ""
    return (
        "; ".join(said),
        row.get("runs_per_call", ""),
        graph,
        *(f"{row[key]:.3f}" if key in row else "" for key in ("wall_p50_ms", "wall_p99_ms")),
        ", ".join(f"{stage} {ms:.3f}" for stage, ms in stages.items()),
        "" if more is None else f"{more:+.1%}",
        *(f"{row[key]:.1e}" if key in row else "" for key in ("max_difference", "max_embedding")),
        counts + head if "max_difference" in row else "",
        again,
    )
