"""What Nsight Compute says of the attention pool kernel: how near to the memory's speed, and what holds it up.

    python -m benchmarks.gpu.kernel_profile [--batch 32] [--element float16]    writes results/<gpu>/kernel_profile.json

The strategy that `plan.choose` takes for the reference model's pools is launched a few times in a process of its own,
of which `ncu` profiles the kernels of the last, with clocks and caches left as they are. Needs `ncu`, and leave to read
the counters.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from benchmarks.gpu.stage import conditions, end_on_sigterm, parser, run_child, say, tail
from benchmarks.report import commit_of_tree, folder_of, save, table
from mpmmu_rt._optional import require
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import EngineError, MissingPackage, MpmmuError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import AttentionPool
from mpmmu_rt.kernels.plan import LAUNCHES, ElementType

SECONDS = 60.0
TIMES = 3
SHAPE = check.Shape(1, ("cbam", 2048, 7, 7), ("eca", 2048, 7, 7), hidden=128)  # the reference model's; cases are given
_PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute")
# What the page shows, of all that is stored.
SHOWN = (
    "gpu__time_duration.sum",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
    "smsp__inst_executed.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block_dynamic",
    "launch__grid_size",
    "launch__block_size",
)


def launch(element: ElementType, batch: int) -> str:
    """A few launches, one after the other; returns the strategy."""
    cupy = require("cupy", "this benchmark")
    pools = SHAPE.pools()
    maps = check.random_maps(pools, batch, seed=1)
    pool = AttentionPool(pools, batch, element)
    inputs = [cupy.asarray(check.to_element(one, element)[0]) for one in maps]
    for _ in range(TIMES):
        pool(*inputs)
    cupy.cuda.Device().synchronize()
    return str(pool.strategy)


def profiler() -> str:
    """The path of `ncu`. Raises `MissingPackage`."""
    places = [place for folder in _PLACES for place in (folder, *map(str, sorted(Path(folder).glob("*"))))]
    for path in (None, *places):
        if found := shutil.which("ncu", path=path):
            return found
    raise MissingPackage("ncu is not on the path, expected Nsight Compute", hint="it comes with the CUDA toolkit")


def read(said: str) -> dict[str, dict[str, str]]:
    """Of each kernel its metrics by name, with units, out of what `ncu --csv --page raw` prints between its messages.

    Raises `EngineError` where there are none.
    """
    lines = said.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:])))) if start is not None else []
    if len(rows) < 2:  # the first holds the units
        raise EngineError(
            f"ncu gave no metrics: {' '.join(said.split())[-600:]}",
            hint="the driver has to let this user read performance counters",
        )
    units = rows[0]
    return {
        row["Kernel Name"]: {name: f"{value} {units[name]}".strip() for name, value in row.items() if name and value}
        for row in rows[1:]
    }


def profile(element: ElementType, batch: int, seconds: float) -> dict[str, dict[str, str]]:
    options = ["--set", "full", "--clock-control", "none", "--cache-control", "none", "--csv", "--page", "raw"]
    count = len(LAUNCHES)
    options += ["--kernel-name", "regex:attention_pool", "--launch-skip", str((TIMES - 1) * count)]
    options += ["--launch-count", str(count)]
    launched = ["-m", "benchmarks.gpu.kernel_profile", "--launch", "--element", element, "--batch", str(batch)]
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        log = Path(scratch) / "log"
        status, spent = run_child([profiler(), *options, sys.executable, *launched], seconds, log)
        said = log.read_text(encoding="utf-8", errors="replace")
        if status != 0:
            raise EngineError(
                f"ncu ended with status {status} after {spent:.0f} s, expected 0: {tail(log, 600)}",
                hint="run it by hand: see benchmarks/gpu/kernel_profile.py",
            )
    return read(said)


def markdown(report: Mapping[str, Any]) -> str:
    found = report["metrics"]
    return "\n".join(
        [
            f"# Attention pool kernel under Nsight Compute on {report['gpu']}",
            "",
            f"Made by `{report['command']}`.",
            "",
            f"{report['date']}, commit {report['commit']}; {report['element']}, batch {report['batch']}. Clocks are as "
            "found. All metrics are in `kernel_profile.json`.",
            "",
            table(
                " | ".join(["metric", *found]),
                [(name, *(one.get(name, "*not measured*") for one in found.values())) for name in SHOWN],
            ),
        ]
    )


def main() -> int:
    options = parser(__doc__, SECONDS)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--element", choices=get_args(ElementType), default="float16")
    options.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)  # what is profiled
    given = options.parse_args()
    end_on_sigterm()
    try:
        if given.launch:
            print(launch(given.element, given.batch))
            return 0
        here = gpu()
        if here is None:
            raise EngineError("there is no NVIDIA GPU and driver here, expected one", hint="run it where there is one")
        report = conditions(here.name, given.commit or commit_of_tree()) | {
            "element": given.element,
            "batch": given.batch,
            "metrics": profile(given.element, given.batch, given.seconds),
        }
        save(given.out or folder_of(here.name), "kernel_profile", report, markdown(report))
        print(markdown(report))
    except MpmmuError as error:
        return say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
