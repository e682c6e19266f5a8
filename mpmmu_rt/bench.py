"""Latency and throughput of a bundle on a target, with the conditions that give them a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import cold_start
from .bundle import Bundle
from .curves import check_gaps, idle_gaps, sweep, sweep_json
from .errors import UsageError
from .latency import Effort, Latency, Measured, measure, summarise
from .ledger import ledger
from .machine import describe, now
from .predictor import Predictor
from .progress import Progress, silent
from .spec import Array, StrPath, Target
from .stability import Conditions, Snapshot, judge, observe, take
from .tiles import hold_to_golden, tile

SCHEMA = "mpmmu-bench/2"
MOST_PAIRS = 4096


@dataclass(frozen=True)
class Bench:
    """The result; `entry` is the JSON document, `latency` its percentiles, `warning` what is doubtful about it.

    `targets` of the document, what the bundle's others take, is `mpmmu_rt.survey`'s to fill; `chosen`, how its target
    was chosen where none was named, `mpmmu_rt.choice`'s.
    """

    entry: dict[str, Any]
    latency: Latency
    warning: str


def bench(
    path: StrPath,
    target: Target,
    batch: int,
    *,
    effort: Effort | None = None,
    idle_s: Sequence[float] = (),
    batches: Sequence[int] = (),
    progress: Progress = silent,
) -> Bench:
    """Measure `batch` pairs at a time on `target`.

    idle_s: silences, in seconds, whose first call after them, of one pair, is measured too. batches: of a sweep, each
    measured a third as long. Raises `UsageError` for silences or batches that make no sense, what opening and
    predicting raise, also in the process that starts cold, and `EngineError` if the probabilities that were timed are
    not the golden ones.
    """
    effort = effort or Effort()
    check_gaps(idle_s)
    for size, hint in ((batch, "--batch 32"), *((size, "--sweep 1,2,4,8") for size in batches)):
        if not 1 <= size <= MOST_PAIRS:
            raise UsageError(f"a batch of {size}, expected 1 to {MOST_PAIRS} pairs", hint=hint)
    path = Path(path)
    bundle = Bundle.open(path)
    progress("cold start", 0, 1)
    cold = cold_start.measure(path, target, batch)
    progress("cold start", 1, 1)
    golden = bundle.golden()
    with Predictor(bundle, target, unproven=True) as predictor:
        calls = _Calls(predictor, golden)
        before: list[Snapshot] = []

        def settled() -> None:
            calls.forget()
            before.append(take())

        done = measure(lambda: calls.predict(batch), effort, _shown(progress, "measuring"), settled)
        after = take()
        stages = {name: list(spent) for name, spent in calls.stages.items()}
        curves: dict[str, Any] = {"idle": None, "sweep": None}
        if idle_s:
            for _ in range(2):  # what an engine compiles for one pair
                calls.predict(1)
            gaps = idle_gaps(lambda: calls.predict(1), idle_s, _shown(progress, "idle"))
            curves["idle"] = {"batch": 1, "gaps": [gap.to_json() for gap in gaps]}
        if batches:
            short = replace(
                effort,
                measure_ms=effort.measure_ms / 3,
                max_warmup_ms=effort.max_warmup_ms / 3,
                min_samples=min(effort.min_samples, 6),
            )
            curves["sweep"] = sweep_json(sweep(calls.predict, batches, short, _shown(progress, "sweep")))
        remarks, threads, head = predictor.remarks, predictor.threads, predictor.head_target
    hold_to_golden(target, calls.answers, golden)
    latency = summarise(done.samples_ms)
    conditions = _conditions(latency, done, before[0], after, threads)
    what = (
        "1 pixel pair in host memory to 1 probability"
        if batch == 1
        else f"{batch} pixel pairs in host memory to {batch} probabilities"
    )
    contract = (
        f"from {what} in host memory, wall clock, {threads} {'thread' if threads == 1 else 'threads'}; includes input "
        f"checks, both encoders, attention pool and head (on {head}); excludes decoding, preprocessing and loading; "
        f"warm-up of {done.warmup}; nothing clipped"
    )
    entry = {
        "schema": SCHEMA,
        "measured_at": now(),
        "target": str(target),
        "head_target": str(head),
        "remarks": list(remarks),
        "batch": batch,
        "latency_ms": latency.to_json(),
        "samples_ms": done.samples_ms,
        "throughput_pairs_per_s": batch / latency.mean * 1e3,
        "stages_ms": {stage: float(np.median(spent)) for stage, spent in stages.items()},
        "ledger": ledger(done.samples_ms, stages, target, bundle.targets).to_json(),
        "contract": contract,
        "conditions": conditions.to_json(),
        "machine": conditions.facts["machine"],
        "warning": bundle.warning,
        "bundle": {"name": bundle.name, "trained": bundle.trained, "parity": _parity(bundle, target)},
        "bundle_digest": bundle.digest,
        "peak_rss_bytes": cold.peak_rss_bytes,
        "cold_start_ms": cold.total_ms,
        "cold_start": cold.to_json(),
        **curves,
        "targets": None,
        "chosen": None,
    }
    return Bench(entry, latency, "" if conditions.state == "stable" else conditions.line)


class _Calls:
    """Predictions of the golden pixels in batches of any size, all their answers, and the time of each stage."""

    def __init__(self, predictor: Predictor, golden: dict[str, Array]) -> None:
        self._predictor, self._golden = predictor, golden
        self._pixels: dict[int, Any] = {}
        self.answers: list[Array] = []
        self.stages: dict[str, list[float]] = {}

    def predict(self, batch: int) -> None:
        if batch not in self._pixels:  # at most one other size at a time: a sweep need not hold all
            self._pixels = {batch: tile(self._golden, batch)}
        prediction = self._predictor.predict(self._pixels[batch])
        self.answers.append(prediction.probability)
        for stage, spent in prediction.stages_ms.items():
            self.stages.setdefault(stage, []).append(spent)

    def forget(self) -> None:
        self.stages = {}


def _shown(progress: Progress, what: str) -> Callable[[float], None]:
    return lambda share: progress(what, round(share * 100), 100, "%")


def _conditions(latency: Latency, done: Measured, before: Snapshot, after: Snapshot, threads: int) -> Conditions:
    reasons = []
    if done.settled is False:
        reasons.append(f"the warm-up did not settle in {len(done.warmup_ms)} calls")
    if not latency.stable:
        reasons.append(f"the medians of the two halves of the run differ by {latency.drift:.0%}")
    facts = {
        "drift": latency.drift,
        "warmup": {"settled": done.settled, "calls": len(done.warmup_ms), "ms": sum(done.warmup_ms)},
        "machine": describe(),
    }
    return replace(judge(observe(before, after), threads, tuple(reasons)), facts=facts)


def _parity(bundle: Bundle, target: Target) -> dict[str, Any] | None:
    """What the export measured of this target in decisions; None where it said nothing of it."""
    found = bundle.proof(target)
    wanted = ("passed", "cases", "decisions_flipped", "auc_original", "auc_exported", "source")
    return {name: found[name] for name in wanted if name in found} if found else None
