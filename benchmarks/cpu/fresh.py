"""The whole model on every CPU target of a bundle of the reference model, and torch eager, in fresh processes.

    mpmmu-rt export -o reference.bundle --calibrate-phantoms 16 \\
        --target openvino:fp32 --target openvino:bf16 --target openvino:int8
    python -m benchmarks.cpu.fresh reference.bundle [--rounds 5] [--batches 1,32] [--seconds 2] > benchmarks/results/…

Every turn is a process of its own that loads its model, warms up and calls it for so many seconds, at least three
times: engines that share a process spin against each other (`benchmarks.cpu.targets` races so, for what differs by
little). A turn counts the median of its calls; a ratio is that of one round.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.racing import Command, race_processes, ratio, spread
from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.child import answer, answered
from mpmmu_rt.compare import LEAST_CALLS
from mpmmu_rt.engines import known_engine
from mpmmu_rt.latency import Effort, sample
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import Target
from mpmmu_rt.tiles import tile

TORCH, AGAINST = "torch eager + scikit-learn", "onnxruntime:fp32"


def commands(bundle: Bundle, checkpoint: Path, batch: int, seconds: float) -> dict[str, Command]:
    """Of each contender, by name: what prints the ms of each call as `mpmmu_rt.child.answer` does."""
    python = [sys.executable, "-m"]
    mine = [str(bundle.path), str(batch), str(seconds)]
    found = {TORCH: Command([*python, "benchmarks.cpu.fresh", "--torch", str(checkpoint), *mine])}
    for target in bundle.targets:
        parsed = Target.parse(target)
        if target.startswith(("openvino:", "onnxruntime:")) and not known_engine(parsed).problem(parsed.precision):
            found[target] = Command([*python, "mpmmu_rt.compare", str(bundle.path), target, str(batch), str(seconds)])
    return found


def torch_eager(checkpoint: Path, path: Path, batch: int, seconds: float) -> None:
    """A turn of torch: prints the ms of each call."""
    import torch

    from mpmmu_rt.export import encoders
    from mpmmu_rt.model import checkpoint as checkpoints

    torch.set_num_threads(machine.usable_threads())
    bundle, kept = Bundle.open(path), checkpoints.load(checkpoint)
    original = encoders.Encoders(dict(kept.encoders), bundle.preprocessing.size)
    pixels = tile(bundle.golden(), batch)
    effort = Effort(warmup_ms=seconds * 300, measure_ms=seconds * 1e3, min_samples=LEAST_CALLS, max_warmup_ms=0)
    answer(sample(lambda: kept.head.predict_proba(original.run(pixels, batch=32)["embedding"]), effort))


def main(path: Path, rounds: int, batches: list[int], seconds: float) -> None:
    from mpmmu_rt.export import reference
    from mpmmu_rt.model import checkpoint as checkpoints

    bundle = Bundle.open(path)
    print(report.heading("CPU targets in fresh processes", ("torch", "scikit-learn")), end="", flush=True)
    print(f"{rounds} rounds, turns of {seconds:g} s. Medians of the rounds, quartiles in brackets.")
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        checkpoints.save(reference.build(silent), checkpoint)
        for batch in batches:
            ran = race_processes(commands(bundle, checkpoint, batch, seconds), rounds)
            spent = {
                name: np.array([np.median(answered(name, one.line, "")) / batch for one in said])
                for name, said in ran.items()
            }
            print(f"\n### Whole model, batch {batch}\n")
            print(report.columns(f" | ms per pair | times torch | times {AGAINST}"))
            for name, values in spent.items():
                against = ratio(spent[TORCH], values), ratio(spent[AGAINST], values)
                print(report.row([name, spread(values), *against]), flush=True)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn's calls")
    if sys.argv[1:2] == ["--torch"]:
        kept, of_bundle, cases, lasting = sys.argv[2:]
        torch_eager(Path(kept), Path(of_bundle), int(cases), float(lasting))
    else:
        given = parser.parse_args()
        main(given.bundle, given.rounds, [int(one) for one in given.batches.split(",")], given.seconds)
