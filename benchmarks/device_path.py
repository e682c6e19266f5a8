"""The whole way on a GPU: is it right, what does it take, and where does the time go.

    python -m benchmarks.device_path BUNDLE [--targets TARGET …]    writes results/<gpu>/device_path.json and .md

For every GPU target that BUNDLE lists: latency at batch 1, 8, 32 and 128, with CUDA graphs and without, and of the
whole-graph engine. Every call gets other cases than the one before (noise, each of another grey level), and its
embeddings and probabilities are held to onnxruntime:fp32 on the processor. A target that can't run here, or that fails,
is listed with the reason; the exit code then says so. **No GPU has run this yet.**

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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention_pool import commit_of_tree, folder_of
from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine, known_engine
from mpmmu_rt.engines.tensorrt_build import gpu
from mpmmu_rt.errors import MpmmuError, ParityError
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import TOLERANCES, Tolerance, probability_difference, relative_difference

BATCHES = (1, 8, 32, 128)
ROUNDS = 50
WARM_UP = 10
STEP = 13  # cases further on at each call: no batch size divides it
GPU_ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
# What a variant asks of a TensorRT pipeline.
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "device path, CUDA graph": {"graphs": True},
    "device path, no graph": {"graphs": False},
    "whole graph, CUDA graph": {"graphs": True, "whole_graph": True},
}
Pixels = dict[Modality, Array]
Call = Callable[[Pixels], tuple[dict[str, Array], Mapping[str, float]]]


@dataclass(frozen=True)
class Cases:
    """Pixels of 2 · max(BATCHES) cases, and what the processor says of them: `probability`, `embedding`."""

    pixels: Pixels
    want: Mapping[str, Array]

    @classmethod
    def drawn(cls, bundle: Bundle) -> Cases:
        count = 2 * max(BATCHES)
        rng = np.random.default_rng(5)
        pixels: Pixels = {}
        for modality in MODALITIES:
            shape = (count, *(int(length) for length in bundle.tensors[f"{modality}_pixels"].shape[1:]))
            grey = rng.uniform(40, 200, (count, 1, 1, 1)).astype(np.float32)
            noise = rng.standard_normal(shape, np.float32)
            pixels[modality] = np.clip(grey + 50 * noise, 0, 255).astype(np.uint8)
        with Predictor(bundle, Target.parse(DEFAULT_TARGET)) as predictor:
            starts = range(0, count, 32)
            parts = [predictor.predict({m: pixels[m][at : at + 32] for m in MODALITIES}) for at in starts]
        names = ("probability", "embedding")
        return cls(pixels, {name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def rows(self, start: int, batch: int) -> tuple[Pixels, dict[str, Array]]:
        rows = slice(start, start + batch)
        pixels: Pixels = {modality: array[rows] for modality, array in self.pixels.items()}
        return pixels, {name: array[rows] for name, array in self.want.items()}


def targets_of(bundle: Bundle) -> list[Target]:
    """GPU targets that the bundle lists, in its order."""
    found = [Target.parse(text) for text in bundle.targets]
    return [target for target in found if target.engine in GPU_ENGINES]


def variants(bundle: Bundle, target: Target, closing: ExitStack) -> dict[str, Call]:
    """What to run of a target, by name. Raises `MpmmuError` where it can't run."""
    if target.engine == "onnxruntime-cuda":
        predictor = closing.enter_context(Predictor(bundle, target))

        def predict(pixels: Pixels) -> tuple[dict[str, Array], Mapping[str, float]]:
            found = predictor.predict(pixels)
            return {"probability": found.probability, "embedding": found.embedding}, found.stages_ms

        return {"onnxruntime-cuda": predict}
    calls: dict[str, Call] = {}
    for name, asked in VARIANTS.items():
        pipeline = engine(target).pipeline(bundle, target.precision, 1, **asked)
        closing.callback(pipeline.close)
        if name.partition(",")[0] != getattr(pipeline, "name", ""):
            name = f"{name}: the whole graph ran instead ({getattr(pipeline, 'reason', '')})"
        width = int(bundle.tensors["embedding"].shape[1])

        def run(
            pixels: Pixels, pipeline: Any = pipeline, width: int = width
        ) -> tuple[dict[str, Array], Mapping[str, float]]:
            embedding = np.empty((len(pixels["mammography"]), width), np.float32)
            said, stages = pipeline.run(pixels, embedding)
            return {"probability": said["probability"], "embedding": embedding}, stages

        calls[name] = run
    return calls


def measure(calls: Mapping[str, Call], cases: Cases, batch: int, tolerance: Tolerance) -> dict[str, Any]:
    """Percentiles, stages and largest differences of each call; raises `ParityError` for one that is fast but wrong."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    stages: dict[str, list[Mapping[str, float]]] = {name: [] for name in calls}
    worst = {name: {"probability": 0.0, "embedding": 0.0} for name in calls}
    for turn in range(WARM_UP + ROUNDS):
        pixels, want = cases.rows(turn * STEP % max(BATCHES), batch)
        for name, call in calls.items():
            start = time.perf_counter()
            got, spent = call(pixels)
            if turn >= WARM_UP:
                walls[name].append((time.perf_counter() - start) * 1e3)
                stages[name].append(spent)
            off = {
                "probability": probability_difference(got["probability"], want["probability"]),
                "embedding": relative_difference(got["embedding"], want["embedding"]),
            }
            if not (off["probability"] <= tolerance.probability and off["embedding"] <= tolerance.relative):
                raise ParityError(
                    f"{name}, batch {batch}, call {turn}: probabilities differ by {off['probability']:.3g} and "
                    f"embeddings by {off['embedding']:.3g} of the largest, expected at most "
                    f"{tolerance.probability:.3g} and {tolerance.relative:.3g}"
                )
            worst[name] = {key: max(worst[name][key], value) for key, value in off.items()}
    found: dict[str, Any] = {}
    for name in calls:
        p50, p99 = np.percentile(walls[name], [50, 99])
        medians = {stage: float(np.median([spent[stage] for spent in stages[name]])) for stage in stages[name][0]}
        times = {"wall_p50_ms": float(p50), "wall_p99_ms": float(p99), "stages_ms": medians}
        found[name] = {"max_difference": worst[name]["probability"], "max_embedding": worst[name]["embedding"], **times}
    return found


def overhead(stages_ms: Mapping[str, float], wall_ms: float) -> float | None:
    """`wall_ms` over what the parts take that can't overlap, minus 1; None where the parts are not known."""
    if not {"mammography", "ultrasound", "attention_pool", "head", "transfers"} <= set(stages_ms):
        return None
    encoders = max(stages_ms["mammography"], stages_ms["ultrasound"])
    return wall_ms / (encoders + sum(stages_ms[name] for name in ("attention_pool", "head", "transfers"))) - 1


def of_target(bundle: Bundle, target: Target, cases: Cases) -> dict[str, Any]:
    """Figures of one target, by batch; or why there are none: it can't run here, or it `failed`."""
    report: dict[str, Any] = {}
    try:
        if problem := known_engine(target).problem(target.precision):
            return {"not_run": str(problem)}
        with ExitStack() as closing:
            calls = variants(bundle, target, closing)
            for batch in BATCHES:
                report[str(batch)] = measure(calls, cases, batch, TOLERANCES[target.precision])
    except MpmmuError as error:
        return report | {"failed": f"{type(error).__name__}: {error}"}
    return report


def on_gpu(path: Path, names: list[str], folder: Path | None, commit: str) -> tuple[str, bool]:
    """Run all; writes both files. Returns the Markdown, and whether everything ran and held."""
    bundle = Bundle.open(path)
    targets = [Target.parse(name) for name in names] or targets_of(bundle)
    cases = Cases.drawn(bundle)
    here = gpu()
    report: dict[str, Any] = {
        "gpu": here.name if here else "none",
        "capability": here.capability if here else None,
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
        "bundle": {"name": bundle.name, "trained": bundle.trained, "digest": bundle.digest},
        "machine": machine.describe(),
        "rounds": ROUNDS,
        "targets": {str(target): of_target(bundle, target, cases) for target in targets},
    }
    text = markdown(report)
    if here:
        folder = folder or folder_of(here.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "device_path.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "device_path.md").write_text(text, encoding="utf-8")
    found = report["targets"].values()
    return text, bool(found) and not any("failed" in one or "not_run" in one for one in found)


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        f"# The whole way on {report['gpu']}",
        "",
        f"{report['date']}, commit {report['commit']}, bundle {report['bundle']['name']} "
        f"({report['bundle']['digest'][:12]}), {report['rounds']} rounds. How it is measured: "
        "`benchmarks/device_path.py`. Clocks are as found.",
        "",
        "Differences from the processor: of probabilities, and of embeddings relative to the largest.",
        "",
        "| target | batch | variant | wall p50, ms | p99 | stages, ms | overhead | max Δp | embedding |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, found in report["targets"].items():
        for key, words in (("not_run", "*not measured*"), ("failed", "**failed**")):
            if key in found:
                lines.append(f"| {target} | | {words}: {found[key]} | | | | | | |")
        for batch, rows in found.items():
            if batch in ("not_run", "failed"):
                continue
            ledger: Mapping[str, float] = next(
                (row["stages_ms"] for row in rows.values() if "attention_pool" in row["stages_ms"]), {}
            )
            for name, row in rows.items():
                stages = ", ".join(f"{stage} {ms:.3f}" for stage, ms in row["stages_ms"].items())
                more = overhead(ledger, row["wall_p50_ms"]) if name.startswith("device path") else None
                shown = "" if more is None else f"{more:+.1%}"
                times = f"{row['wall_p50_ms']:.3f} | {row['wall_p99_ms']:.3f}"
                lines.append(
                    f"| {target} | {batch} | {name} | {times} | {stages} | {shown} | {row['max_difference']:.1e} | "
                    f"{row['max_embedding']:.1e} |"
                )
    if not report["targets"]:
        lines.append("| none | | the bundle lists no GPU target | | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--targets", nargs="*", default=[], help="instead of all GPU targets of the bundle")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    try:
        text, passed = on_gpu(arguments.bundle, arguments.targets, arguments.out, commit_of_tree())
    except MpmmuError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
