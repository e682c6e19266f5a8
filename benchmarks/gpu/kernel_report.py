"""The report of the attention pool kernel on a GPU in words, and what in it is wrong or missing."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.kernel_check import NOT_INSTALLED, PASSED
from benchmarks.gpu.stage import ending
from benchmarks.report import table


def problems(report: dict[str, Any]) -> list[str]:
    """Whatever is wrong, raised, or did not run; nothing where all is proven and measured.

    That compute-sanitizer, torch or Triton is not installed is no failure: the report says *not measured*.
    """
    found = list(report["errors"])
    for row in report["checked"]:
        where = f"{row['shape']}, {row['element']}, channels_last={row['channels_last']}, {row.get('strategy', 'all')}"
        found += [f"{where}: {row[key]}" for key in ("failed", "not_run") if key in row]
    for name, one in report["sanitizer"].items():
        if one["result"] not in (PASSED, NOT_INSTALLED):
            found.append(f"compute-sanitizer, {name}: {one['result']}")
    for row in report["times"]:
        where = f"{row['size']} x {row['size']}, {row['element']}, batch {row['batch']}"
        for one in row["strategies"]:
            found += [f"{where}, {one['strategy']}: {one[key]}" for key in ("failed", "not_run") if key in one]
        for name in ("torch", "triton"):
            if "failed" in row.get(name, {}):
                found.append(f"{where}, {name}: {row[name]['failed']}")
    return found


def markdown(report: dict[str, Any]) -> str:
    right = [one for one in report["checked"] if "difference" in one and "failed" not in one]
    worst = f"{max(one['difference'] for one in right):.1e}" if right else "not known"
    spills = max((each["local_bytes"] for one in right for each in one["resources"].values()), default="not known")
    top = report["ceilings"]
    ceiling = "*not measured*"
    if top:
        empty_us = 1e3 * top["empty_launch_ms"]
        ceiling = f"{top['bytes_per_s'] / 1e12:.2f} TB/s; empty launch {empty_us:.2f} us"
    tools = [f"- compute-sanitizer, {name}: {said_of(one)}" for name, one in report["sanitizer"].items()]
    wrong = problems(report)
    more = [f"and {len(wrong) - 40} more"] if len(wrong) > 40 else []
    header = (
        "feature map | element | batch | floor, us | cold, us | cold / floor | warm, us | torch eager, captured | "
        "torch.compile, captured | Triton, captured | chosen | fastest of those timed (us)"
    )
    return "\n".join(
        [
            f"# Attention pool kernel on {report['gpu']}",
            "",
            f"Made by `{report['command']}`.",
            "",
            f"{report['date']}, commit {report['commit']}, driver {report['driver']}, NVRTC {report['nvrtc']}, CuPy "
            f"{report['cupy']}. How it is measured: see `benchmarks/gpu/kernel.py`. Clocks are as found.",
            "",
            f"- {len(right)} of {len(report['checked'])} combinations of shape, element type, layout and strategy "
            f"agree with the float64 reference; the largest relative difference of those is {worst}. Largest local "
            f"memory (spills): {spills} bytes.",
            *(tools or ["- compute-sanitizer: *not measured*"]),
            f"- a kernel that only reads: {ceiling}",
            "",
            table(header, map(time_cells, report["times"])),
            *ending([*wrong[:40], *more], report["versions"]),
        ]
    )


def said_of(one: dict[str, Any]) -> str:
    return ": ".join(str(one[key]) for key in ("result", "summary") if key in one)


def time_cells(row: dict[str, Any]) -> tuple[object, ...]:
    place = (f"{row['size']} x {row['size']}", row["element"], row["batch"])
    chosen, torch, triton = row["strategies"][0], row.get("torch", {}), row.get("triton", {})
    timed = [one for one in row["strategies"] if "cold_ms" in one]
    floor_ms, cold = row["floor_ms"], chosen.get("cold_ms")
    shown: list[object] = [f"{1e3 * floor_ms:.2f}", *["*not measured*"] * 3]
    if cold is not None:
        shown[1:] = [f"{1e3 * cold:.2f}", f"{cold / floor_ms:.2f}", f"{1e3 * chosen['warm_ms']:.2f}"]
    for rival, key in ((torch, "eager_ms"), (torch, "compile_ms"), (triton, "ms")):
        why = "**failed**" if "failed" in rival else "*not measured*"
        shown.append(f"{rival[key] / cold:.1f} x" if key in rival and cold is not None else why)
    best = min(timed, key=lambda one: one["cold_ms"], default=None)
    fastest = f"{best['strategy']} ({1e3 * best['cold_ms']:.2f})" if best else "none"
    return (*place, *shown, chosen["strategy"], fastest)
