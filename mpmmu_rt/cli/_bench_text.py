"""The result of `bench` as text: from its JSON alone, for a terminal of 80 columns, and readable in 40."""

from __future__ import annotations

import math
from typing import Any

from ._report import count, fitted, wrapped

MOST_SECONDS = 600
_LABELS = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}


def describe(entry: dict[str, Any]) -> str:
    curves = [part(entry[name]) for name, part in (("idle", _idle), ("sweep", _sweep)) if entry[name]]
    parts = [
        _latency(entry),
        _ledger(entry["ledger"], entry["batch"]),
        _cold_start(entry["cold_start"]),
        *curves,
        _conditions(entry),
    ]
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
    rows += [("between stages", rest), ("all", total)]
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


def _conditions(entry: dict[str, Any]) -> str:
    from mpmmu_rt.stability import line_of

    machine = entry["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"peak memory {entry['peak_rss_bytes'] / 1e6:.0f} MB",
        line_of(entry["conditions"]),
        f"measured: {entry['contract']}",
        f"on: {machine['cpu']}, {count(machine['threads'], 'thread')}, {versions}",
    ]
    return wrapped("\n".join(lines))
