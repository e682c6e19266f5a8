"""The attention pool kernel: what the compiler says of it, and on a GPU whether it is right and how long it takes.

    python -m benchmarks.gpu.kernel --resources    needs nvcc, no GPU; writes results/attention_pool_resources.md
    python -m benchmarks.gpu.kernel --gpu          writes results/<gpu>/attention_pool.json and .md

`--gpu` checks every kind of strategy in every element type and layout against the float64 reference, runs
compute-sanitizer where it is installed, and times. A time is the difference of two CUDA events around replays of a CUDA
graph that holds many launches, divided by their number; the median of REPEATS. "cold": the launches take turns over
input sets of three times the L2 cache together. "warm": one input set, as after an encoder that has just written it.
The floor is `plan.floor` at the bandwidth of a kernel that only reads, which is measured first, or an empty launch in
the same kind of graph, whichever is longer. Rivals are timed on the same cold input sets, in a CUDA graph as well:
torch eager, torch.compile, and `triton_pool`, written by hand.

Steps, by value, and about how long they may take on 16 cores:

     20 s   compile a hundred kernels, 1 s to 2 s each, on all cores
     15 s   the product's shapes against the reference
     30 s   bandwidth, empty launch, and the kernel at 7 x 7 in float16, batch 32, 128, 1, 8
     40 s   the rivals at batch 32 and 128
     60 s   memcheck, memcheck with a planted mistake that it has to catch, racecheck, side by side
     30 s   the other shapes against the reference
    120 s   the other times, and the rivals on them

What does not fit in `--seconds` is "not run: out of time". Results are written after every step; a step or a row that
raises is recorded and the rest goes on. The exit code is 1 unless all has run, and was right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.kernel_check import (
    SANITIZER_SECONDS,
    Ahead,
    checked_by_sanitizer,
    overread,
    parts,
    sanitize,
    validate,
)
from benchmarks.gpu.kernel_report import markdown, problems
from benchmarks.gpu.kernel_resources import BATCHES, resources
from benchmarks.gpu.kernel_times import REPEATS, Clock, Row, ceilings, time_pool, time_torch, time_triton
from benchmarks.gpu.stage import Deadline, Steps, conditions, end_on_sigterm, parser, say
from benchmarks.report import RESULTS, commit_of_tree, folder_of, save
from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import device_facts
from mpmmu_rt.kernels.plan import ElementType

SECONDS = 540.0
# By name: the tool, and whether it runs over the kernel with a mistake.
SANITIZED = {
    "memcheck": ("memcheck", False),
    "memcheck of a planted mistake": ("memcheck", True),
    "racecheck": ("racecheck", False),
}
TIMED_MAPS: tuple[tuple[int, ElementType], ...] = ((7, "float16"), (7, "float32"), (32, "float16"))


def on_gpu(folder: Path | None, commit: str, deadline: Deadline) -> dict[str, Any]:
    """All steps; writes both files after each. Raises `MpmmuError` where there is no GPU or no CuPy."""
    cupy, facts = require("cupy", "this benchmark"), device_facts()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    folder = folder or folder_of(name)
    report: dict[str, Any] = conditions(name, commit) | {
        "device": asdict(facts),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
        "cupy": cupy.__version__,
        "machine": machine.describe(),
        "repeats": REPEATS,
    }
    run_steps(report, Ahead(), lambda: save(folder, "attention_pool", report, markdown(report)), deadline)
    return report


def run_steps(report: dict[str, Any], ahead: Ahead, keep: Callable[[], object], deadline: Deadline) -> None:
    """The steps of the module's docstring, into `report`: `checked`, `sanitizer`, `ceilings`, `times`, `errors`."""
    rows = [Row(*what, batch) for what in TIMED_MAPS for batch in (32, 128, 1, 8)]  # the more telling first
    first, others = rows[: len(BATCHES)], rows[len(BATCHES) :]
    rivalled, unrivalled = first[:2], [*first[2:], *others]
    product_parts, other_parts = parts(check.LARGE[:2]), parts([*check.SMALL, *check.LARGE[2:]])
    report |= {"checked": [], "sanitizer": {}, "ceilings": None, "times": [], "errors": []}
    clocks: list[Clock] = []

    step = Steps(report, keep, deadline)

    def checked(found: list[dict[str, Any]]) -> None:
        report["checked"] += found
        keep()

    def begin() -> None:
        for part in product_parts:
            ahead.ask(part.work())
        for row in rows:
            ahead.ask(row.work())
        for part in other_parts:
            ahead.ask(part.work())

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

    def with_rivals(row: Row) -> None:
        found = next((one for one in report["times"] if Row(one["size"], one["element"], one["batch"]) == row), None)
        if found is None:
            raise RuntimeError("the kernel has no row of this")
        for name, rival in (("torch", time_torch), ("triton", time_triton)):
            found[name] = rival(row, require("cupy", "this benchmark"))
            keep()

    def sanitized() -> None:
        seconds = min(SANITIZER_SECONDS, deadline.left())
        with ThreadPoolExecutor(len(SANITIZED)) as threads:
            found = {name: threads.submit(sanitize, tool, seconds, planted=p) for name, (tool, p) in SANITIZED.items()}
            for name, future in found.items():
                report["sanitizer"][name] = future.result()

    try:
        step("compile", begin)
        step(
            "check the product's shapes", lambda: validate(product_parts, ahead=ahead, deadline=deadline, keep=checked)
        )
        step("compile the rest", still)
        step("bandwidth and empty launch", measure_ceilings)
        for row in first:
            step(f"time {row}", partial(timed, row))
        for row in rivalled:
            step(f"rivals {row}", partial(with_rivals, row))
        step("sanitizers", sanitized)
        step("check other shapes", lambda: validate(other_parts, ahead=ahead, deadline=deadline, keep=checked))
        for row in others:
            step(f"time {row}", partial(timed, row))
        for row in unrivalled:
            step(f"rivals {row}", partial(with_rivals, row))
    finally:
        ahead.close()
        keep()


def main() -> int:
    options = parser(__doc__, SECONDS)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--resources", action="store_true", help="compile for every architecture; needs nvcc")
    what.add_argument("--gpu", action="store_true", help="check and time; needs a GPU and CuPy")
    what.add_argument("--check", action="store_true", help="check the small shapes only; what the sanitizer runs")
    what.add_argument(
        "--overread", action="store_true", help="run the kernel with a mistake that memcheck has to catch"
    )
    given = options.parse_args()
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
