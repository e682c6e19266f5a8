"""The result of `bench` as text: from its JSON alone, for a terminal of 80 columns, and readable in 40."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mpmmu_rt.errors import quoted
from mpmmu_rt.report_parts import remainder

from ._report import count, fitted, wrapped

MOST_SECONDS = 600
_LABELS = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}


def describe(entry: dict[str, Any], bundle: Path | str = "BUNDLE") -> str:
    """bundle: what the commands that are recommended shall name."""
    curves = [part(entry[name]) for name, part in (("idle", _idle), ("sweep", _sweep)) if entry[name]]
    parts = [
        _latency(entry),
        _ledger(entry["ledger"], entry["batch"]),
        _cold_start(entry["cold_start"]),
        *curves,
        _conditions(entry),
    ]
    if entry["targets"] and len(entry["targets"]["rows"]) > 1:
        parts.append(_targets(entry["targets"], entry["batch"], bundle))
        if entry["conditions"]["state"] != "stable":
            parts.append(wrapped("the machine was not stable: measure again before you decide"))
    return "\n\n".join(parts)


def _latency(entry: dict[str, Any]) -> str:
    latency = entry["latency_ms"]
    header = [*(f"{label} ms" for label in _LABELS.values()), "mean ms", "n", "pairs/s"]
    told = ["-" if latency[key] is None else f"{latency[key]:.2f}" for key in _LABELS]
    row = [*told, f"{latency['mean']:.2f}", str(latency["n"]), f"{entry['throughput_pairs_per_s']:.1f}"]
    lines = [f"{entry['target']}, batch {entry['batch']}", fitted(header, [row])]
    if missing := _missing(latency):
        lines.append(wrapped(missing))
    return "\n".join(lines)


def _missing(latency: dict[str, Any]) -> str:
    """Why a percentile is not told, and what it takes."""
    from mpmmu_rt.latency import PERCENTILES, fewest

    absent = {_LABELS[key]: fewest(p) for key, p in PERCENTILES.items() if latency[key] is None}
    if not absent:
        return ""

    def way(count: int) -> str:
        seconds = math.ceil(count * latency["mean"] / 1e3)
        return f"--seconds {seconds}" if seconds <= MOST_SECONDS else "more than can be had here"

    takes = ", ".join(f"{label} takes {count} ({way(count)})" for label, count in absent.items())
    return f"-: {latency['n']} samples do not tell: {takes}"


def _ledger(ledger: dict[str, Any], batch: int) -> str:
    total, rest = ledger["total_ms"], ledger["remainder_ms"]
    rows = [(name.replace("_", " "), spent) for name, spent in ledger["stages_ms"].items()]
    rows += [(remainder(rest), rest), ("all", total)]
    cells = [[name, f"{spent:.3f}", f"{spent / batch:.3f}", f"{spent / total:.1%}"] for name, spent in rows]
    return fitted(["stage", "mean ms", "per pair", "share"], cells) + "\n" + wrapped(ledger["advice"])


def _cold_start(cold: dict[str, Any]) -> str:
    total = cold["total_ms"]
    rows = [*cold["parts_ms"].items(), ("not explained", cold["remainder_ms"]), ("all", total)]
    cells = [[name, f"{spent:.1f}", f"{spent / total:.1%}"] for name, spent in rows]
    note = f"a second call took {cold['second_call_ms']:.1f} ms"
    return fitted(["cold start", "ms", "share"], cells) + "\n" + wrapped(note)


def _idle(idle: dict[str, Any]) -> str:
    rows = [
        [f"{gap['seconds']:g}", f"{gap['median_ms']:.2f}", " ".join(f"{ms:.2f}" for ms in gap["samples_ms"])]
        for gap in idle["gaps"]
    ]
    return (
        fitted(["s of silence", "next call ms", "each"], rows) + f"\nbatch {idle['batch']}: a clinic asks for one pair"
    )


def _sweep(sweep: dict[str, Any]) -> str:
    rows = []
    for step in sweep["steps"]:
        p50 = "-" if step["p50_ms"] is None else f"{step['p50_ms']:.2f}"
        mark = "knee" if step["batch"] == sweep["knee"] else "" if step["settled"] is not False else "did not settle"
        rows.append([str(step["batch"]), p50, f"{step['mean_ms']:.2f}", f"{step['pairs_per_s']:.1f}", mark])
    said = f"knee: batch {sweep['knee']}, the smallest that reaches {sweep['enough']:.0%} of the best throughput"
    return fitted(["batch", "p50 ms", "mean ms", "pairs/s", ""], rows) + "\n" + wrapped(said)


def _targets(found: dict[str, Any], batch: int, bundle: Path | str) -> str:
    """All targets, fastest first, what can't run below them, and which to take."""
    ran = {row["target"]: row for row in found["rows"] if row["median_ms"] is not None}
    cells = [
        [
            name,
            f"{row['median_ms'] / batch:.3g}",
            f"{row['pairs_per_s']:.1f}",
            str(row["n"]),
            f"{row['flipped']} of {row['cases']}" if row["cases"] else "-",
            "" if row["proven"] else "built and never run before",
        ]
        for name, row in ran.items()
    ]
    header = [f"all targets, batch {batch}", "ms per pair", "pairs/s", "calls", "flipped at export", ""]
    if all(row["proven"] for row in ran.values()):
        header, cells = header[:-1], [row[:-1] for row in cells]
    lines = [fitted(header, cells)]
    lines += [wrapped(f"{row['target']} can't run here: {row['problem']}") for row in found["rows"] if row["problem"]]
    return "\n".join([*lines, "", *map(wrapped, _recommended(found["recommended"], ran, bundle))])


def _recommended(names: dict[str, str | None], ran: dict[str, Any], bundle: Path | str) -> list[str]:
    exact, rounding = names["exact"], names["rounding"]
    lines = []
    if exact:
        lines.append(f"recommended: --target {exact}, the fastest that is proven and computes in FP32")
    if rounding:
        row = ran[rounding]
        times = f"{ran[exact]['median_ms'] / row['median_ms']:.1f} times as fast; " if exact else ""
        flips = f"flipped {row['flipped']} of {row['cases']} decisions" if row["cases"] else "flipped no decision"
        lines.append(
            f"faster, with rounding: --target {rounding}: {times}at export it {flips}; hold it to your own cases: "
            f"`mpmmu-rt verify {quoted(bundle)} MANIFEST --target {rounding}`"
        )
    return [*lines, "medians of calls that took turns; whether a small difference is real: `mpmmu-rt compare`"]


def _conditions(entry: dict[str, Any]) -> str:
    from mpmmu_rt.stability import line_of

    machine = entry["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "peak memory: not known here"
        if (peak := entry["peak_rss_bytes"]) is None
        else f"peak memory {peak / 1e6:.0f} MB",
        line_of(entry["conditions"]),
        f"measured: {entry['contract']}",
        f"on: {machine['cpu']}, {count(machine['threads'], 'thread')}, {versions}",
    ]
    return wrapped("\n".join(lines))
