"""The attention pool kernel: what the compiler says of it, and on a GPU whether it is right and how long it takes.

    python -m benchmarks.attention_pool --resources    needs nvcc, no GPU; writes results/attention_pool_resources.md
    python -m benchmarks.attention_pool --gpu          writes results/<gpu>/attention_pool.json and .md

`--gpu` checks every kind of strategy in every element type and layout against the float64 reference, runs
compute-sanitizer where it is installed, and times. A time is the difference of two CUDA events around replays of a CUDA
graph that holds many launches, divided by their number; the median of REPEATS. "cold": the launches take turns over
input sets of three times the L2 cache together. "warm": one input set, as after an encoder that has just written it.
The floor is `plan.floor` at the bandwidth of a device-to-device copy that is measured first, or an empty launch in the
same kind of graph, whichever is longer. torch is timed on the same cold input sets, with events around as many calls.

Steps, by value, and about how long they may take on 16 cores (guesses: **no GPU has run this yet**):

     20 s   compile a hundred kernels, 1 s to 2 s each, on all cores
     15 s   the product's shapes against the reference
     30 s   bandwidth, empty launch, and the kernel at 7 x 7 in float16, batch 1, 8, 32, 128
    130 s   memcheck, memcheck with a planted mistake that it has to catch, racecheck: 60 s each at the most
     60 s   torch eager and torch.compile on the same
     30 s   the other shapes against the reference
     90 s   the other times, and torch on them

What does not fit in `--seconds` is "not run: out of time". Results are written after every step; a step or a row that
raises is recorded and the rest goes on. The exit code is 1 unless all has run, and was right.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attention_pool_check import (
    NOT_INSTALLED,
    PASSED,
    SANITIZER_SECONDS,
    Ahead,
    checked_by_sanitizer,
    overread,
    parts,
    sanitize,
    validate,
)
from benchmarks.attention_pool_times import REPEATS, Clock, Row, ceilings, product, time_pool, time_torch
from benchmarks.evidence import (
    OUT_OF_TIME,
    RESULTS,
    Deadline,
    commit_of_tree,
    end_on_sigterm,
    failure,
    folder_of,
    save,
    say,
    table,
    versions,
)
from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import device_facts
from mpmmu_rt.kernels.plan import SAMPLES, Device, ElementType, choose, floor
from mpmmu_rt.kernels.resources import ARCHITECTURES, instances, with_nvcc

BATCHES = (1, 8, 32, 128)
SECONDS = 540.0
TIMED_MAPS: tuple[tuple[int, ElementType], ...] = ((7, "float16"), (7, "float32"), (32, "float16"))
# By data sheet and programming guide, for the table of what would be chosen.
KNOWN = {
    "A100 (8.0)": Device((8, 0), 108, 163 << 10, 164 << 10, 40 << 20),
    "RTX 4090 (8.9)": Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20),
    "H200 (9.0)": Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20),
    "RTX 5090 (12.0)": Device((12, 0), 170, 99 << 10, 100 << 10, 96 << 20),
}


# ---------------------------------------------------------------- without a GPU


def resources() -> str:
    """Every instance for every architecture, as Markdown. Raises `EngineError` without nvcc."""
    rows = []
    for architecture in ARCHITECTURES:
        found = {one.name: one for one in with_nvcc(architecture, instances(architecture))}
        for exchange in ("alone", "cluster", "grid"):
            part = [one for one in found.values() if f"_{exchange}_" in one.name]
            for samples in SAMPLES if part else ():
                some = [one for one in part if one.name.endswith(f"_{samples}")]
                registers = sorted({one.registers for one in some})
                spills = sum(one.spill_bytes + one.stack_bytes for one in some)
                shared = max(one.shared_bytes for one in some)
                span = f"{registers[0]} to {registers[-1]}" if len(registers) > 1 else registers[0]
                rows.append((architecture, exchange, samples, len(some), span, shared, spills))
        print(f"sm_{architecture}: {len(found)} kernels", file=sys.stderr)
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", version)
    return f"""# Attention pool kernel: resources, floor and choice

Made by `python -m benchmarks.attention_pool --resources`. No GPU was used: nothing on this page is a time.

## What ptxas says

nvcc {release[0] if release else version}, `-std=c++17`, 256 threads. Each row: float32, float16 and bfloat16, channels
first and last. Shared memory is dynamic: its size is in the third table.

{
        table(
            "sm | exchange | samples at once | kernels | registers | static shared, bytes | spills and stack, bytes",
            rows,
        )
    }
## Floor

2048 channels, CBAM (128 hidden units) and ECA. Bytes: feature maps and float32 weights read once, embedding written
once. One launch.

{table("feature map | element | batch | bytes | operations", floors())}
## What is chosen

By the cost model of `kernels/plan.py`, which no measurement has confirmed: *not measured*. "held": CBAM's feature map
stays in shared memory; "re-read": it does not; "one pass": ECA.

{table("device | feature map | element | batch | strategy | shared memory of a block, bytes", choices())}"""


def floors() -> Iterable[tuple[object, ...]]:
    for size in (7, 32):
        branches = (product(size)[0].branch, product(size)[1].branch)
        for element in ("float32", "float16"):
            for batch in BATCHES:
                least = floor(branches, batch, element)
                yield f"{size} x {size}", element, batch, f"{least.bytes:,}", f"{least.operations:,}"


def choices() -> Iterable[tuple[object, ...]]:
    for name, device in KNOWN.items():
        for size in (7, 32):
            branches = (product(size)[0].branch, product(size)[1].branch)
            for batch in BATCHES:
                one = choose(branches, batch, "float16", False, device)
                yield name, f"{size} x {size}", one.element, batch, one, f"{one.shared_bytes:,}"


# ---------------------------------------------------------------- with a GPU


def on_gpu(folder: Path | None, commit: str, deadline: Deadline) -> dict[str, Any]:
    """All steps; writes both files after each. Raises `MpmmuError` where there is no GPU or no CuPy."""
    cupy, facts = require("cupy", "this benchmark"), device_facts()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    folder = folder or folder_of(name)
    report: dict[str, Any] = {
        "gpu": name,
        "device": asdict(facts),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
        "cupy": cupy.__version__,
        "versions": versions(),
        "machine": machine.describe(),
        "repeats": REPEATS,
    }
    run_steps(report, Ahead(), lambda: save(folder, "attention_pool", report, markdown(report)), deadline)
    return report


def run_steps(report: dict[str, Any], ahead: Ahead, keep: Callable[[], object], deadline: Deadline) -> None:
    """The steps of the module's docstring, into `report`: `checked`, `sanitizer`, `ceilings`, `times`, `errors`."""
    rows = [Row(*what, batch) for what in TIMED_MAPS for batch in BATCHES]
    first, others = rows[: len(BATCHES)], rows[len(BATCHES) :]
    product_parts, other_parts = parts(check.LARGE[:2]), parts([*check.SMALL, *check.LARGE[2:]])
    report |= {"checked": [], "sanitizer": {}, "ceilings": None, "times": [], "errors": []}
    clocks: list[Clock] = []

    def step(name: str, work: Callable[[], object]) -> None:
        """One that raises, or has no time left, is recorded."""
        print(f"{name}: {deadline.left():.0f} s left", file=sys.stderr)
        try:
            if deadline.passed:
                report["errors"].append(f"{name}: not run: {OUT_OF_TIME}")
            else:
                work()
        except Exception as error:  # noqa: BLE001  # of CuPy, CUDA and torch, all kinds: what was measured is kept
            report["errors"].append(f"{name}: {failure(error)}")
        keep()

    def checked(found: list[dict[str, Any]]) -> None:
        report["checked"] += found
        keep()

    def begin() -> None:
        for part in product_parts:
            ahead.ask(part.strategies())
        for row in rows:
            ahead.ask(row.strategies())
        for part in other_parts:
            ahead.ask(part.strategies())

    def still() -> None:
        ahead.finish(deadline)
        report["errors"] += [f"compile: {one}" for one in ahead.failures()]

    def measure_ceilings() -> None:
        clocks.append(Clock())
        report["ceilings"] = ceilings(clocks[0])

    def timed(row: Row) -> None:
        if report["ceilings"] is None:
            raise RuntimeError("the bandwidth and the empty launch were not measured")
        report["times"].append(time_pool(clocks[0], row, report["ceilings"], deadline))

    def with_torch(row: Row) -> None:
        found = next((one for one in report["times"] if Row(one["size"], one["element"], one["batch"]) == row), None)
        if found is None:
            raise RuntimeError("the kernel has no row of this")
        found["torch"] = time_torch(row, require("cupy", "this benchmark"))

    def sanitized(name: str, tool: str, **options: bool) -> None:
        report["sanitizer"][name] = sanitize(tool, min(SANITIZER_SECONDS, deadline.left()), **options)

    try:
        step("compile", begin)
        step(
            "check the product's shapes", lambda: validate(product_parts, ahead=ahead, deadline=deadline, keep=checked)
        )
        step("compile the rest", still)
        step("bandwidth and empty launch", measure_ceilings)
        for row in first:
            step(f"time {row}", partial(timed, row))
        step("memcheck", lambda: sanitized("memcheck", "memcheck"))
        step("memcheck of a mistake", lambda: sanitized("memcheck of a planted mistake", "memcheck", planted=True))
        step("racecheck", lambda: sanitized("racecheck", "racecheck"))
        for row in first:
            step(f"torch {row}", partial(with_torch, row))
        step("check other shapes", lambda: validate(other_parts, ahead=ahead, deadline=deadline, keep=checked))
        for row in others:
            step(f"time {row}", partial(timed, row))
        for row in others:
            step(f"torch {row}", partial(with_torch, row))
    finally:
        ahead.close()
        keep()


def problems(report: dict[str, Any]) -> list[str]:
    """Whatever is wrong, raised, or did not run; nothing where all is proven and measured.

    That compute-sanitizer or torch is not installed is no failure: the report says *not measured*.
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
        if "failed" in row.get("torch", {}):
            found.append(f"{where}, torch: {row['torch']['failed']}")
    return found


def markdown(report: dict[str, Any]) -> str:
    right = [one for one in report["checked"] if "difference" in one and "failed" not in one]
    worst = f"{max(one['difference'] for one in right):.1e}" if right else "not known"
    spills = max((one["local_bytes"] for one in right), default="not known")
    top = report["ceilings"]
    ceiling = "*not measured*"
    if top:
        empty_us = 1e3 * top["empty_launch_ms"]
        ceiling = f"{top['bytes_per_s'] / 1e12:.2f} TB/s, read and written; empty launch {empty_us:.2f} us"
    tools = [f"- compute-sanitizer, {name}: {said_of(one)}" for name, one in report["sanitizer"].items()]
    wrong = problems(report)
    shown = [*(f"- {one}" for one in wrong[:40]), *([f"- and {len(wrong) - 40} more"] if len(wrong) > 40 else [])]
    found = [f"- {name}: {version}" for name, version in report["versions"].items()]
    header = (
        "feature map | element | batch | floor, us | cold, us | cold / floor | warm, us | torch eager | "
        "torch.compile | chosen | fastest of those timed (us)"
    )
    return "\n".join(
        [
            f"# Attention pool kernel on {report['gpu']}",
            "",
            f"{report['date']}, commit {report['commit']}, driver {report['driver']}, NVRTC {report['nvrtc']}, CuPy "
            f"{report['cupy']}. How it is measured: see `benchmarks/attention_pool.py`. Clocks are as found.",
            "",
            f"- {len(right)} of {len(report['checked'])} combinations of shape, element type, layout and strategy "
            f"agree with the float64 reference; the largest relative difference of those is {worst}. Largest local "
            f"memory (spills): {spills} bytes.",
            *(tools or ["- compute-sanitizer: *not measured*"]),
            f"- copy in a graph: {ceiling}",
            "",
            table(header, map(time_cells, report["times"])),
            "## What is wrong or missing",
            "",
            *(shown or ["- nothing"]),
            "",
            "## Versions",
            "",
            *found,
            "",
        ]
    )


def said_of(one: dict[str, Any]) -> str:
    return ": ".join(str(one[key]) for key in ("result", "summary") if key in one)


def time_cells(row: dict[str, Any]) -> tuple[object, ...]:
    place = (f"{row['size']} x {row['size']}", row["element"], row["batch"])
    chosen, torch = row["strategies"][0], row.get("torch", {})
    timed = [one for one in row["strategies"] if "cold_ms" in one]
    floor_ms, cold = row["floor_ms"], chosen.get("cold_ms")
    shown: list[object] = [f"{1e3 * floor_ms:.2f}", *["*not measured*"] * 3]
    if cold is not None:
        shown[1:] = [f"{1e3 * cold:.2f}", f"{cold / floor_ms:.2f}", f"{1e3 * chosen['warm_ms']:.2f}"]
    for key in ("eager_ms", "compile_ms"):
        why = "**failed**" if "failed" in torch else "*not measured*"
        shown.append(f"{torch[key] / cold:.1f} x" if key in torch and cold is not None else why)
    best = min(timed, key=lambda one: one["cold_ms"], default=None)
    fastest = f"{best['strategy']} ({1e3 * best['cold_ms']:.2f})" if best else "none"
    return (*place, *shown, chosen["strategy"], fastest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--resources", action="store_true", help="compile for every architecture; needs nvcc")
    what.add_argument("--gpu", action="store_true", help="check and time; needs a GPU and CuPy")
    what.add_argument("--check", action="store_true", help="check the small shapes only; what the sanitizer runs")
    what.add_argument(
        "--overread", action="store_true", help="run the kernel with a mistake that memcheck has to catch"
    )
    parser.add_argument("--out", type=Path, help="folder for the results of --gpu, else results/<gpu>")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what does not fit in is left out")
    parser.add_argument("--commit", help="of the tree, where it has no repository")
    given = parser.parse_args()
    deadline = Deadline.after(given.seconds)
    end_on_sigterm()
    try:
        if given.resources:
            (RESULTS / "attention_pool_resources.md").write_text(resources(), encoding="utf-8")
        elif given.check:
            right, left_out = checked_by_sanitizer(given.seconds)
            print(f"{right} results are right, {left_out} not run")
            return 0 if right else 1
        elif given.overread:
            overread()
        else:
            report = on_gpu(given.out, given.commit or commit_of_tree(), deadline)
            print(markdown(report))
            for one in problems(report):
                print(f"not proven: {one}", file=sys.stderr)
            return 1 if problems(report) else 0
    except MpmmuError as error:
        return say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
