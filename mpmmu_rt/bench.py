"""Latency and throughput of a bundle on a target, with the conditions that give them a meaning.

Run as a module (`python -m mpmmu_rt.bench BUNDLE TARGET BATCH`) it is the fresh process in which the cold start and
the memory are measured: it predicts one case, says so, then one batch, and prints its peak memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .checks import probability_difference
from .errors import EngineError
from .facts import TOLERANCES
from .latency import Effort, Latency, sample, summarise
from .machine import describe
from .predictor import Predictor
from .progress import Progress, silent
from .spec import MODALITIES, Array, Modality, Target

SCHEMA = "mpmmu-bench/1"


@dataclass(frozen=True)
class Bench:
    """The result; `entry` is the JSON document, `latency` its percentiles, `warning` what is doubtful about it."""

    entry: dict[str, Any]
    latency: Latency
    warning: str


def bench(
    path: Path, target: Target, batch: int, *, effort: Effort | None = None, progress: Progress = silent
) -> Bench:
    """Measure `batch` pairs at a time on `target`. Raises what opening and predicting raise, and `EngineError` if
    the probabilities that were timed are not the golden ones."""
    effort = effort or Effort()
    bundle = Bundle.open(path)
    progress("cold start", 0, 1)
    cold_start_ms, peak_rss_bytes = _fresh_process(path, target, batch)
    progress("cold start", 1, 1)
    golden = bundle.golden()
    pixels = tile(golden, batch)
    with Predictor(bundle, target) as predictor:
        threads, head = predictor.threads, predictor.head_target
        stages: dict[str, list[float]] = {}
        last: list[Array] = []

        def call() -> None:
            prediction = predictor.predict(pixels)
            last[:] = [prediction.probability]
            for stage, spent in prediction.stages_ms.items():
                stages.setdefault(stage, []).append(spent)

        samples = sample(call, effort, lambda share: progress("measuring", round(share * 100), 100))
        remarks = predictor.remarks
    hold_to_golden(target, last, golden)
    latency = summarise(samples)
    contract = (
        f"from {batch} pixel pairs in host memory to {batch} probabilities in host memory, wall clock, {threads} "
        f"threads; includes input checks, both encoders, attention pool and head (on {head}); excludes "
        f"decoding, preprocessing and loading; warm-up {effort.warmup_ms:g} ms, nothing clipped"
    )
    entry = {
        "schema": SCHEMA,
        "target": str(target),
        "head_target": str(head),
        "remarks": list(remarks),
        "batch": batch,
        "latency_ms": latency.to_json(),
        "throughput_pairs_per_s": batch / latency.mean * 1e3,
        # Warm-up calls were recorded too: only the measured ones count.
        "stages_ms": {stage: float(np.median(spent[-latency.n :])) for stage, spent in stages.items()},
        "contract": contract,
        "machine": describe(),
        "bundle_digest": bundle.digest,
        "peak_rss_bytes": peak_rss_bytes,
        "cold_start_ms": cold_start_ms,
    }
    return Bench(entry, latency, "" if latency.stable else _unsettled(latency))


def _unsettled(latency: Latency) -> str:
    return (
        f"the machine was not settled: the medians of the two halves of the run differ by {latency.drift:.0%}; "
        "close other programs and measure again before you compare"
    )


def hold_to_golden(target: Target, answers: Sequence[Array], golden: dict[str, Array]) -> None:
    """Raise `EngineError` unless these probabilities float32 [N], all of `tile`'s pixels, are the golden ones."""
    want = golden["probability"]
    difference = max(probability_difference(one, np.resize(want, len(one))) for one in answers)
    limit = TOLERANCES[target.precision].probability
    if not difference <= limit:
        raise EngineError(
            f"{target} was fast but wrong: golden probabilities differ by {difference:.3g}, expected at most "
            f"{limit:.3g}",
            hint="`mpmmu-rt verify BUNDLE` says in which stage",
        )


def tile(golden: dict[str, Array], batch: int) -> dict[Modality, Array]:
    """The golden pixels repeated to `batch` pairs: real images, whose answer is known."""
    count = len(golden["probability"])
    rows = np.arange(batch) % count
    return {modality: np.ascontiguousarray(golden[f"{modality}.pixels"][rows]) for modality in MODALITIES}


def _fresh_process(path: Path, target: Target, batch: int) -> tuple[float, int]:
    """Milliseconds from starting a process to its first prediction, and its peak memory after one batch, in bytes."""
    command = [sys.executable, "-m", "mpmmu_rt.bench", str(path.resolve()), str(target), str(batch)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        cold_start_ms = (time.perf_counter() - start) * 1e3
        out, errors = process.communicate()
    if process.returncode != 0:
        last = next(iter(errors.strip().splitlines()[-1:]), "no message")
        raise EngineError(f"the cold-start process failed: {last}", hint="run it again with --debug")
    return cold_start_ms, int(json.loads(out)["peak_rss_bytes"])


def _cold_start(path: Path, target: Target, batch: int) -> None:
    bundle = Bundle.open(path)
    golden = bundle.golden()
    with Predictor(bundle, target) as predictor:
        predictor.predict(tile(golden, 1))
        print("first prediction", flush=True)
        predictor.predict(tile(golden, batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak_rss_bytes": peak}))


if __name__ == "__main__":
    _cold_start(Path(sys.argv[1]), Target.parse(sys.argv[2]), int(sys.argv[3]))
