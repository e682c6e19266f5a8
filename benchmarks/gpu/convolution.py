"""Which of cuDNN's convolutions are FP32 at which batch, as onnxruntime-gpu asks for them.

    python -m benchmarks.gpu.convolution BUNDLE [--expected FILE] [--batches 32 128]
                                                            writes results/<gpu>/convolution.json and .md

On an H200, with `use_tf32=0` and the algorithm by cuDNN's heuristics, embeddings of 128 cases were 3.5e-4 off, and
those of 32 by 1e-5. Here each way to choose the algorithm is asked, with TF32 left to the options and with it forbidden
to all of NVIDIA's libraries, each in a process of its own, of some 5 s: the largest difference of the embeddings from
the processor's, relative to the largest. 1e-5 is what sums in another order make; 1e-3, what TF32 does. **No GPU has
run this yet.**
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device_answers import Cases
from benchmarks.gpu.stage import (
    OUT_OF_TIME,
    Deadline,
    conditions,
    end_on_sigterm,
    failure,
    parser,
    run_child,
    say,
    tail,
    with_bundle,
)
from benchmarks.report import commit_of_tree, folder_of, save, table
from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import relative_difference
from mpmmu_rt.engines.onnxruntime_cuda import OnnxRuntimeCuda
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import EngineError, MpmmuError

SECONDS = 60.0
LEAST_SECONDS, MOST_SECONDS = 4.0, 20.0  # of one way
SEARCHES = ("HEURISTIC", "DEFAULT", "EXHAUSTIVE")
OVERRIDES = ("", "0")
VARIABLE = "NVIDIA_TF32_OVERRIDE"
BATCHES = (32, 128)


def differences(bundle: Bundle, cases: Cases, batches: Sequence[int], engine: OnnxRuntimeCuda) -> dict[str, float]:
    """By batch, of the first cases; the batch reaches the engine as it is."""
    if cases.want is None:
        raise EngineError(f"there is nothing to compare with: {cases.source}", hint="give --expected")
    embedder, found = engine.embedder(bundle, "fp32", machine.usable_threads()), {}
    for batch in batches:
        want = cases.want["embedding"][:batch]
        got = np.full_like(want, np.nan)
        embedder.embed(cases.rows(slice(0, batch)), got)
        found[str(batch)] = relative_difference(got, want)
    embedder.close()
    return found


def ask(given: argparse.Namespace, search: str, override: str, deadline: Deadline, log: Path) -> dict[str, Any]:
    """One way, in a process of its own."""
    limit = min(MOST_SECONDS, deadline.left())
    if limit < LEAST_SECONDS:
        return {"not_run": OUT_OF_TIME}
    child = [sys.executable, "-m", "benchmarks.gpu.convolution", str(given.bundle.resolve()), "--search", search]
    child += ["--override", override, "--batches", *map(str, given.batches)]
    child += ["--expected", str(given.expected.resolve())] if given.expected else []
    status, spent = run_child(child, limit, log)
    said = log.read_text(encoding="utf-8", errors="replace")
    found = next((line for line in reversed(said.splitlines()) if line.startswith("{")), None)
    if status != 0 or found is None:
        return {"failed": f"status {status} after {spent:.0f} s: {tail(log, 400)}"}
    return {"differences": json.loads(found), "seconds": spent}


def markdown(report: Mapping[str, Any]) -> str:
    rows = []
    for one in report["ways"]:
        words = one.get("not_run") or one.get("failed") or ""
        found = one.get("differences", {})
        cells = [f"{found[str(batch)]:.1e}" if str(batch) in found else "" for batch in report["batches"]]
        rows.append((one["search"], one["override"] or "not set", *cells, words))
    batches = " | ".join(f"batch {batch}" for batch in report["batches"])
    return "\n".join(
        [
            f"# FP32 convolutions of onnxruntime-gpu on {report['gpu']}",
            "",
            f"Made by `{report['command']}`.",
            "",
            f"{report['date']}, commit {report['commit']}. Embeddings' largest difference from the processor's, "
            "relative to the largest; `use_tf32=0` throughout.",
            "",
            table(f"cudnn_conv_algo_search | {VARIABLE} | {batches} | ", rows),
            *(f"- {name}: {version}" for name, version in report["versions"].items()),
            "",
        ]
    )


def main() -> int:
    options = parser(__doc__, SECONDS)
    with_bundle(options, required=True)
    options.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    options.add_argument("--search", choices=SEARCHES, help=argparse.SUPPRESS)  # what is asked: one way
    options.add_argument("--override", choices=OVERRIDES, default="", help=argparse.SUPPRESS)
    given = options.parse_args()
    deadline = Deadline.after(given.seconds)
    end_on_sigterm()
    try:
        if given.search:
            if given.override:
                os.environ[VARIABLE] = given.override  # before anything of NVIDIA's is loaded
            bundle = Bundle.open(given.bundle)
            engine = OnnxRuntimeCuda(cudnn_conv_algo_search=given.search)
            print(json.dumps(differences(bundle, Cases.drawn(bundle, given.expected), given.batches, engine)))
            return 0
        here = gpu()
        if here is None:
            raise EngineError("there is no NVIDIA GPU and driver here, expected one", hint="run it where there is one")
        return 0 if everything(given, here.name, deadline) else 1
    except MpmmuError as error:
        return say(error)


def everything(given: argparse.Namespace, name: str, deadline: Deadline) -> bool:
    """True if every way has run; what it found is no failure."""
    folder = given.out or folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    ways: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        **conditions(name, given.commit or commit_of_tree()),
        "batches": list(given.batches),
        "ways": ways,
    }
    log = folder / "convolution_way.log"
    for search, override in itertools.product(SEARCHES, OVERRIDES):
        try:
            found = ask(given, search, override, deadline, log)
        except OSError as error:
            found = {"failed": failure(error)}
        ways.append({"search": search, "override": override, **found})
        save(folder, "convolution", report, markdown(report))
    log.unlink(missing_ok=True)
    print(markdown(report))
    return all("differences" in one for one in ways)


if __name__ == "__main__":
    sys.exit(main())
