"""The whole way on a GPU: is it right, what does it take, and where does the time go.

    python -m benchmarks.gpu.device_path BUNDLE [--targets TARGET …] [--batches N …] [--name device_path]
                                                            writes results/<gpu>/device_path.json and .md
    python -m benchmarks.gpu.device_path BUNDLE --write-expected FILE   on any machine with onnxruntime, no GPU needed

For every GPU target that BUNDLE lists, or that is named (`torch:fp32` and `torch-compile:fp16` are those of
`benchmarks.gpu.torch_engine`): latency at batch 1, 8, 32 and 128, with CUDA graphs and without, and of the
whole-graph engine. Every call gets other cases than the one before (noise, each of another grey level), and is held to
what onnxruntime:fp32 says of them on the processor, here or in the FILE that was written elsewhere (see
`device_answers.Judge`); the first comes again at the end, to see whether it says the same to the bit. A target that
can't run here, or that fails, is listed with the reason, and so is a variant that did not run as it was asked to:
without its CUDA graph, or as the whole graph. The exit code then says so. It has run (results/nvidia-h200/,
results/nvidia-h100/) for `torch`, `torch-compile` and `onnxruntime-cuda`, **for TensorRT nowhere.**

wall: from pixels in host memory to probabilities in host memory, input checks included. Embeddings go to memory that
the caller has touched before: where every answer is kept, new memory costs 0.2 ms at batch 32 (on two cores of a Xeon
with AMX), and more where a virtual machine has to get it from its host. device: between two CUDA events, around the
launch of the graph. host copies: of pixels to pinned memory and of answers from it. The ledger of the stages is taken
without graphs, from events around each. overhead: the wall time over the device's; without graphs over the longer of
the two encoders and the sum of pool, head and transfers; with pixels copied ahead, where `device` holds a part of the
copies, over the device's time of the same variant without. Variants of a target take turns within each round. runs: a
batch larger than the engines take comes in so many parts.

Time: the expected answers take 10 to 60 s of processor (none with `--expected`), a target about 20 s plus what its
engines take to load, and minutes where they have to be built anew; BF16 and INT8 are first asked every case on its own.
Each target runs in a process of its own, with its share of `--seconds`; results are written after every batch, and what
no longer fits is "not run: out of time".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device_answers import Cases, Judge, ask_processor, draw, write_expected
from benchmarks.gpu.device_report import markdown, problems
from benchmarks.gpu.device_variants import Variant, problem, variants
from benchmarks.gpu.stage import (
    NEVER,
    OUT_OF_TIME,
    Deadline,
    conditions,
    end_on_sigterm,
    failure,
    no_gpu,
    parser,
    run_child,
    say,
    tail,
    with_bundle,
)
from benchmarks.report import commit_of_tree, folder_of, save
from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.files import atomic_file
from mpmmu_rt.spec import Array, Target

BATCHES = (1, 8, 32, 128)
ROUNDS = 50
ENOUGH_ROUNDS = 10  # of them, where the time runs out
WARM_UP = 10
STEP = 13  # cases further on at each call: no batch size divides it
SECONDS = 540.0
LEAST_SECONDS = 20.0  # with less, a target is not begun
# Of its share, a quarter at the most: a target measures no more then, and judges what it has measured.
JUDGING_SECONDS = 15.0
GPU_ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
Note = Callable[[Mapping[str, Any]], object]


# ---------------------------------------------------------------- how long?


def measure(running: Sequence[Variant], judge: Judge, batch: int, deadline: Deadline = NEVER) -> dict[str, Any]:
    """Of each variant, by name: percentiles, stages, differences; `failed` for one that raised or is wrong."""
    walls: dict[str, list[float]] = {one.name: [] for one in running}
    stages: dict[str, list[Mapping[str, float]]] = {one.name: [] for one in running}
    said: dict[str, list[tuple[int, slice, dict[str, Array]]]] = {one.name: [] for one in running}
    failed: dict[str, str] = {}
    for turn in [*range(WARM_UP + ROUNDS), 0]:  # at the end the first call again: does it say the same?
        if deadline.passed:
            break
        start = turn * STEP % (judge.cases.count - batch + 1)
        rows = slice(start, start + batch)
        pixels = judge.cases.rows(rows)
        for one in running:
            if one.name in failed:
                continue
            try:
                embedding = one.room(batch)
                begin = time.perf_counter()
                got, spent = one.call(pixels, embedding)
                wall = (time.perf_counter() - begin) * 1e3
            except Exception as error:  # noqa: BLE001  # TensorRT and CUDA raise all kinds: recorded, the others go on
                failed[one.name] = f"batch {batch}, call {turn}: {failure(error)}"
                continue
            said[one.name].append((turn, rows, got))
            if turn >= WARM_UP:
                walls[one.name].append(wall)
                stages[one.name].append(spent)
    found: dict[str, Any] = {}
    for one in running:  # judged afterwards: the processor's head is not to run between what is timed
        row: dict[str, Any] = {"runs_per_call": one.runs(batch), "rounds": len(walls[one.name])}
        row |= judged(judge, said[one.name], one.alone) | repeated(said[one.name])
        if one.name in failed:
            row["failed"] = failed[one.name]
        if row["rounds"] >= min(ENOUGH_ROUNDS, ROUNDS):
            p50, p99 = (float(x) for x in np.percentile(walls[one.name], [50, 99]))
            row |= {"wall_p50_ms": p50, "wall_p99_ms": p99, "stages_ms": medians(stages[one.name])}
            row["graph"] = "device" in row["stages_ms"] if one.asked else None
            if one.asked.get("graphs") and not row["graph"]:
                row.setdefault("failed", f"batch {batch} ran without a CUDA graph")
        elif "failed" not in row:
            row["not_run"] = f"{OUT_OF_TIME} after {row['rounds']} rounds"
        found[one.name] = row
    return found


def judged(judge: Judge, calls: Sequence[tuple[int, slice, dict[str, Array]]], alone: Array | None) -> dict[str, Any]:
    """The worst of all calls, sums of counts; `failed` says what was wrong with the first that was."""
    counts = ("strangers", "crossings", "flips", "clear_flips")
    total: dict[str, Any] = {"compared": judge.cases.want is not None, "cases": 0}
    for turn, rows, got in calls:
        figures, wrong = judge.call(got, rows, alone)
        total["cases"] += rows.stop - rows.start
        for name, value in figures.items():
            total[name] = total.get(name, 0) + value if name in counts else max(total.get(name, 0.0), value)
        if wrong:
            total.setdefault("failed", f"ParityError: batch {rows.stop - rows.start}, call {turn}: {'; '.join(wrong)}")
    return total


def repeated(calls: Sequence[tuple[int, slice, dict[str, Array]]]) -> dict[str, float]:
    """`again`: how far the last call's embeddings are from the first's, relative to the largest, if it is the same
    call; 0 where all that was said is the same to the bit."""
    if len(calls) < 2 or calls[-1][0] != calls[0][0]:
        return {}
    first, last = calls[0][2], calls[-1][2]
    if all(first[name].tobytes() == last[name].tobytes() for name in first):
        return {"again": 0.0}
    one, other = (said["embedding"].astype(np.float64) for said in (first, last))
    far = float(np.abs(one - other).max() / np.abs(one).max())
    return {"again": far or float(np.finfo(np.float64).tiny)}  # of the probabilities alone


def medians(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {stage: float(np.median([spent[stage] for spent in stages])) for stage in stages[0]}


def of_target(
    bundle: Bundle,
    target: Target,
    cases: Cases,
    deadline: Deadline = NEVER,
    note: Note = lambda report: None,
    batches: Sequence[int] = (),
) -> dict[str, Any]:
    """`batches` → batch → variant → figures, and `variants` → facts; or `not_run` or `failed`, and why.

    note: is given the report so far, after every batch. batches: in that order; `BATCHES` if none are named.
    """
    report: dict[str, Any] = {"variants": {}, "batches": {}}
    try:
        if reason := problem(target):
            return {"not_run": str(reason)}
        with ExitStack() as closing:
            start = time.perf_counter()
            running, failed = variants(bundle, target, closing)
            judge = Judge(bundle, target, cases, closing)
            report["load_s"] = time.perf_counter() - start
            report["variants"] = {name: {"failed": why} for name, why in failed.items()}
            for one in running if judge.coarse else ():
                try:
                    one.ask_alone(judge, deadline)
                except Exception as error:  # noqa: BLE001  # TensorRT and CUDA raise all kinds: recorded, others go on
                    one.wrong = failure(error)
            note(report)
            report["head_check"] = judge.why_no_head or "the processor's head on the embeddings of this target"
            for batch in batches or BATCHES:
                if deadline.passed:
                    report["batches"][str(batch)] = {one.name: {"not_run": OUT_OF_TIME} for one in running}
                    continue
                report["batches"][str(batch)] = measure(running, judge, batch, deadline)
                for one in running:
                    report["variants"][one.name] = one.facts() | {"problem": one.problem()}
                note(report)
    except Exception as error:  # noqa: BLE001  # TensorRT and CUDA raise all kinds: what was measured so far is kept
        report["failed"] = failure(error)
    return report


# ---------------------------------------------------------------- all of it


def in_process(arguments: Sequence[str], folder: Path) -> Callable[[Target, Deadline, Note], dict[str, Any]]:
    """Runs a target in a process of its own: a CUDA error, a crash or a hang there ends with it."""

    def run(target: Target, deadline: Deadline, note: Note) -> dict[str, Any]:
        part, log = folder / "part.json", folder / "part.log"
        part.unlink(missing_ok=True)

        def so_far() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {}
            return found

        child = [sys.executable, "-m", "benchmarks.gpu.device_path", *arguments, "--targets", str(target)]
        left = deadline.left()
        child += ["--part", str(part), "--seconds", f"{left - min(JUDGING_SECONDS, left / 4):.0f}"]
        status, seconds = run_child(child, deadline.left(), log, watch=lambda: note(so_far()))
        report = so_far()
        if status is None:
            report["failed"] = f"{OUT_OF_TIME}: ended after {seconds:.0f} s. {tail(log)}".strip()
        elif status or not report:
            report.setdefault("failed", f"its process ended with status {status}: {tail(log)}")
        print(tail(log, 4000), file=sys.stderr)
        return report

    return run


def targets_of(bundle: Bundle) -> list[Target]:
    """GPU targets that the bundle lists, in its order."""
    found = [Target.parse(text) for text in bundle.targets]
    return [target for target in found if target.engine in GPU_ENGINES]


def on_gpu(
    bundle: Bundle,
    targets: Sequence[Target],
    run: Callable[[Target, Deadline, Note], dict[str, Any]],
    keep: Callable[[Mapping[str, Any]], object],
    *,
    source: str,
    name: str,
    commit: str,
    deadline: Deadline = NEVER,
) -> dict[str, Any]:
    """Run all targets. keep: is given the report so far, time and again. source: of the expected answers."""
    report: dict[str, Any] = {
        **conditions(name, commit),
        "bundle": {"name": bundle.name, "trained": bundle.trained, "digest": bundle.digest},
        "machine": machine.describe(),
        "expected": source,
        "rounds": ROUNDS,
        "targets": {str(target): {"not_run": "not yet"} for target in targets},
    }
    keep(report)
    for done, target in enumerate(targets):

        def note(found: Mapping[str, Any], target: Target = target) -> None:
            if found:
                report["targets"][str(target)] = found
                keep(report)

        left = deadline.left()
        if left < LEAST_SECONDS:
            note({"not_run": OUT_OF_TIME})
            continue
        # Half as much again as its share: what one does not need goes to those that follow.
        share = deadline if done + 1 == len(targets) else Deadline.after(min(left, 1.5 * left / (len(targets) - done)))
        print(f"{target}: at most {share.left():.0f} s", file=sys.stderr)
        note(run(target, share, note))
    return report


def main() -> int:
    options = parser(__doc__, SECONDS)
    with_bundle(options, required=True)
    options.add_argument("--write-expected", type=Path, help="only write that file; needs no GPU")
    options.add_argument("--batches", type=int, nargs="*", default=[], help=f"in that order; else {BATCHES}")
    options.add_argument("--name", default="device_path", help="of the results' files")
    options.add_argument("--part", type=Path, help=argparse.SUPPRESS)  # one target, in this process; its report only
    given = options.parse_args()
    deadline = Deadline.after(given.seconds)
    end_on_sigterm()
    try:
        if given.write_expected:
            bundle = Bundle.open(given.bundle)
            pixels = draw(bundle)
            write_expected(given.write_expected, bundle, pixels, ask_processor(bundle, pixels))
            return 0
        return evidence(given, deadline)
    except MpmmuError as error:
        return say(error)


def evidence(given: argparse.Namespace, deadline: Deadline) -> int:
    here = gpu()
    if here is None:
        raise no_gpu("run it on a machine with a GPU; --write-expected works without")
    bundle = Bundle.open(given.bundle)
    targets = [Target.parse(name) for name in given.targets] or targets_of(bundle)
    if given.part:
        cases = Cases.drawn(bundle, given.expected)

        def keep_part(report: Mapping[str, Any]) -> None:
            with atomic_file(given.part) as partial:
                partial.write_text(json.dumps(report, default=str), encoding="utf-8")

        keep_part(of_target(bundle, targets[0], cases, deadline, keep_part, given.batches))
        return 0
    folder = given.out or folder_of(here.name)

    def keep(report: Mapping[str, Any]) -> None:
        save(folder, given.name, report, markdown(report))

    with tempfile.TemporaryDirectory(prefix="evidence-") as scratch:
        print("asking the processor what is expected", file=sys.stderr)
        cases = Cases.drawn(bundle, given.expected)
        arguments = [str(given.bundle.resolve()), "--batches", *map(str, given.batches)]
        if cases.want is not None:
            file = Path(scratch) / "expected.npz"
            write_expected(file, bundle, cases.pixels, cases.want)
            arguments += ["--expected", str(file)]
        report = on_gpu(
            bundle,
            targets,
            in_process(arguments, Path(scratch)),
            keep,
            source=cases.source,
            name=here.name,
            commit=given.commit or commit_of_tree(),
            deadline=deadline,
        )
    print(markdown(report))
    wrong = problems(report)
    for one in wrong:
        print(f"not proven: {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
