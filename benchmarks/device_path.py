"""The whole way on a GPU: is it right, what does it take, and where does the time go.

    python -m benchmarks.device_path BUNDLE [--targets TARGET …]    writes results/<gpu>/device_path.json and .md

For every GPU target that BUNDLE has graphs for: probabilities against the first target's on the processor
(onnxruntime:fp32), then latency at batch 1, 8, 32 and 128, with CUDA graphs and without, and the whole-graph engine.
A target that can't run here is listed with the reason. **No GPU has run this yet.**

wall: from pixels in host memory to probabilities in host memory, input checks included. device: between two CUDA
events around the launch of the graph. The ledger of the stages is taken without graphs, from events around each; the
overhead is the wall time over the longest of the two encoders and the sum of pool, head and transfers. Variants of a
target take turns within each round.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention_pool import commit_of_tree, folder_of
from mpmmu_rt import machine
from mpmmu_rt.bench import tile
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine, known_engine
from mpmmu_rt.engines.tensorrt_build import gpu
from mpmmu_rt.errors import MpmmuError, ParityError
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.spec import Array, Modality, Target
from mpmmu_rt.verify import TOLERANCES, probability_difference

BATCHES = (1, 8, 32, 128)
ROUNDS = 50
WARM_UP = 10
GPU_ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
# What a variant asks of a TensorRT pipeline.
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "device path, CUDA graph": {"graphs": True},
    "device path, no graph": {"graphs": False},
    "whole graph, CUDA graph": {"graphs": True, "whole_graph": True},
}
Pixels = dict[Modality, Array]
Call = Callable[[Pixels], tuple[Array, Mapping[str, float]]]


def targets_of(bundle: Bundle) -> list[Target]:
    """GPU targets that the bundle lists, in its order."""
    found = [Target.parse(text) for text in bundle.targets]
    return [target for target in found if target.engine in GPU_ENGINES]


def variants(bundle: Bundle, target: Target, closing: ExitStack) -> dict[str, Call]:
    """What to run of a target, by name. Raises `MpmmuError` where it can't run."""
    if target.engine == "onnxruntime-cuda":
        predictor = closing.enter_context(Predictor(bundle, target))

        def predict(pixels: Pixels) -> tuple[Array, Mapping[str, float]]:
            found = predictor.predict(pixels)
            return found.probability, found.stages_ms

        return {"onnxruntime-cuda": predict}
    calls: dict[str, Call] = {}
    for name, asked in VARIANTS.items():
        pipeline = engine(target).pipeline(bundle, target.precision, 1, **asked)
        closing.callback(pipeline.close)
        if name.partition(",")[0] != getattr(pipeline, "name", ""):
            name = f"{name}: the whole graph ran instead ({getattr(pipeline, 'reason', '')})"
        width = int(bundle.tensors["embedding"].shape[1])

        def run(pixels: Pixels, pipeline: Any = pipeline, width: int = width) -> tuple[Array, Mapping[str, float]]:
            said, stages = pipeline.run(pixels, np.empty((len(pixels["mammography"]), width), np.float32))
            return said["probability"], stages

        calls[name] = run
    return calls


def measure(calls: Mapping[str, Call], pixels: Pixels, want: Array, limit: float) -> dict[str, Any]:
    """Percentiles and stages of each call; raises `ParityError` for one that is fast but wrong."""
    found: dict[str, Any] = {}
    walls: dict[str, list[float]] = {name: [] for name in calls}
    stages: dict[str, list[Mapping[str, float]]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(WARM_UP):
            probability, _ = call(pixels)
        difference = probability_difference(probability, want)
        if not difference <= limit:
            raise ParityError(f"{name}: probabilities differ by {difference:.3g}, expected at most {limit:.3g}")
        found[name] = {"max_difference": difference}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            _, spent = call(pixels)
            walls[name].append((time.perf_counter() - start) * 1e3)
            stages[name].append(spent)
    for name in calls:
        p50, p99 = np.percentile(walls[name], [50, 99])
        names = stages[name][0]
        medians = {stage: float(np.median([spent[stage] for spent in stages[name]])) for stage in names}
        found[name] |= {"wall_p50_ms": float(p50), "wall_p99_ms": float(p99), "stages_ms": medians}
    return found


def overhead(stages_ms: Mapping[str, float], wall_ms: float) -> float | None:
    """`wall_ms` over what the parts take that can't overlap, minus 1; None where the parts are not known."""
    if not {"mammography", "ultrasound", "attention_pool", "head", "transfers"} <= set(stages_ms):
        return None
    encoders = max(stages_ms["mammography"], stages_ms["ultrasound"])
    return wall_ms / (encoders + sum(stages_ms[name] for name in ("attention_pool", "head", "transfers"))) - 1


def of_target(bundle: Bundle, target: Target, pixels: Pixels, want: Array) -> dict[str, Any]:
    """Figures of one target, by batch; or why there are none."""
    if problem := known_engine(target).problem(target.precision):
        return {"not_run": str(problem)}
    limit = TOLERANCES[target.precision].probability
    report: dict[str, Any] = {}
    with ExitStack() as closing:
        calls = variants(bundle, target, closing)
        for batch in BATCHES:
            rows: Pixels = {modality: np.ascontiguousarray(array[:batch]) for modality, array in pixels.items()}
            report[str(batch)] = measure(calls, rows, want[:batch], limit)
    return report


def on_gpu(path: Path, names: list[str], folder: Path | None, commit: str) -> str:
    """Run all; writes both files and returns the Markdown. Raises `MpmmuError`."""
    bundle = Bundle.open(path)
    targets = [Target.parse(name) for name in names] or targets_of(bundle)
    pixels = tile(bundle.golden(), max(BATCHES))
    with Predictor(bundle, Target.parse(DEFAULT_TARGET)) as predictor:
        want = predictor.predict(pixels).probability
    here = gpu()
    report: dict[str, Any] = {
        "gpu": here.name if here else "none",
        "capability": here.capability if here else None,
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
        "bundle": {"name": bundle.name, "trained": bundle.trained, "digest": bundle.digest},
        "machine": machine.describe(),
        "rounds": ROUNDS,
        "targets": {str(target): of_target(bundle, target, pixels, want) for target in targets},
    }
    text = markdown(report)
    if here:
        folder = folder or folder_of(here.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "device_path.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "device_path.md").write_text(text, encoding="utf-8")
    return text


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        f"# The whole way on {report['gpu']}",
        "",
        f"{report['date']}, commit {report['commit']}, bundle {report['bundle']['name']} "
        f"({report['bundle']['digest'][:12]}), {report['rounds']} rounds. How it is measured: "
        "`benchmarks/device_path.py`. Clocks are as found.",
        "",
        "| target | batch | variant | wall p50, ms | p99 | stages, ms | overhead | max Δp against the processor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target, found in report["targets"].items():
        if "not_run" in found:
            lines.append(f"| {target} | | *not measured*: {found['not_run']} | | | | | |")
            continue
        for batch, rows in found.items():
            ledger: Mapping[str, float] = next(
                (row["stages_ms"] for row in rows.values() if "attention_pool" in row["stages_ms"]), {}
            )
            for name, row in rows.items():
                stages = ", ".join(f"{stage} {ms:.3f}" for stage, ms in row["stages_ms"].items())
                more = overhead(ledger, row["wall_p50_ms"]) if name.startswith("device path") else None
                shown = "" if more is None else f"{more:+.1%}"
                times = f"{row['wall_p50_ms']:.3f} | {row['wall_p99_ms']:.3f}"
                lines.append(
                    f"| {target} | {batch} | {name} | {times} | {stages} | {shown} | {row['max_difference']:.1e} |"
                )
    if not report["targets"]:
        lines.append("| none | | the bundle lists no GPU target | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--targets", nargs="*", default=[], help="instead of all GPU targets of the bundle")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    try:
        print(on_gpu(arguments.bundle, arguments.targets, arguments.out, commit_of_tree()))
    except MpmmuError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
