"""`run` from PNG files against the bench from memory, in turns, and the memory that it holds meanwhile.

    python -m benchmarks.cpu.long_run BUNDLE TARGET [PAIRS] [PASSES] > benchmarks/results/long_run_<machine>.md

A pass runs PAIRS generated phantoms (1,000 unless given) from their files, between two measurements of the same
number of pairs from memory. Resident memory is read every 0.2 s while files are run.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import report
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.run import run
from mpmmu_rt.tiles import tile

BATCH = 32
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory:
    """Resident bytes of this process, sampled in the background while the block runs."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        stopped = False
        while not stopped:  # a pass that is shorter than the pause has one sample
            self.samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE)
            stopped = self._stop.wait(0.2)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def from_memory(predictor: Predictor, pairs: int) -> float:
    """Pairs per second."""
    pixels = tile(predictor.bundle.golden(), BATCH)
    predictor.predict(pixels)
    start = time.perf_counter()
    for _ in range(-(-pairs // BATCH)):
        predictor.predict(pixels)
    return -(-pairs // BATCH) * BATCH / (time.perf_counter() - start)


def main(bundle: Path, target: str, pairs: int, passes: int) -> None:
    with tempfile.TemporaryDirectory() as temporary, load(bundle, target) as predictor:
        manifest = read_manifest(write_phantoms(pairs, Path(temporary) / "cases", seed=11))
        sizes = [path.stat().st_size for path in Path(temporary).rglob("*.png")]
        print(report.heading(f"Long run: {target}, {pairs} PNG pairs, {passes} passes, batch {BATCH}"))
        print(f"Files of {np.median(sizes) / 1e3:.0f} kB (median).\n")
        print(
            report.columns("pass | run, pairs/s | memory, pairs/s | ratio | resident MB at 10 % | 50 % | 100 % | peak")
        )
        before = from_memory(predictor, pairs)
        ratios, ends = [], []
        for number in range(1, passes + 1):
            with Memory() as memory:
                summary = run(predictor, manifest, Path(temporary) / "predictions.csv", batch=BATCH, overwrite=True)
            if summary.failed or summary.predicted != pairs:
                raise RuntimeError(f"{summary.failed} of {pairs} failed: {summary.first_error}")
            after = from_memory(predictor, pairs)
            ratios.append(2 * summary.pairs_per_s / (before + after))
            held = np.array(memory.samples) / 1e6
            at = [held[int(share * (len(held) - 1))] for share in (0.1, 0.5, 1.0)]
            ends.append(at[-1])
            speeds = f"{summary.pairs_per_s:.1f}", f"{(before + after) / 2:.1f}", f"{ratios[-1]:.3f}"
            print(report.row([number, *speeds, *(f"{value:.0f}" for value in (*at, held.max()))]), flush=True)
            before = after
        print(f"\nRatio: median {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}).")
        print(f"Resident after the first pass {ends[0]:.0f} MB, after the last {ends[-1]:.0f} MB.")
        print(report.load("at the end"))


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target")
    parser.add_argument("pairs", type=int, nargs="?", default=1000)
    parser.add_argument("passes", type=int, nargs="?", default=3)
    given = parser.parse_args()
    main(given.bundle, given.target, given.pairs, given.passes)
