"""The native library beside the Python runtime and beside ONNX Runtime used by hand in C++, in fresh processes.

    python -m benchmarks.native.table BUNDLE [--rounds N] [--seconds S] > benchmarks/results/native_<machine>.md

They take turns: to the first prediction, and for so many seconds at batch 1 and at 32. By hand means that nothing is
checked, no digest and no answer: the whole graph in one session, whose gates are not exact, and the four graphs that
the library runs, which tells what our part adds. Needs g++, CMake, and the headers of docs/native.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.racing import Command, Ran, race_processes, ratio, spread
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.spec import Array
from tests.native.native import SOURCES, build, checked, engines, tool

PYTHON = """
import sys, time
import numpy as np
import mpmmu_rt
bundle, batch, threads, seconds, side = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), int(sys.argv[5])
drawn = np.random.default_rng(1)
pixels = {m: drawn.integers(0, 256, (batch, 1, side, side), np.uint8) for m in ("mammography", "ultrasound")}
with mpmmu_rt.load(bundle, threads=threads) as predictor:
    predictor.predict(pixels)
    if seconds:  # as contender.cpp has it
        predictor.predict(pixels)
    spent, end, used = [], time.perf_counter() + seconds, time.process_time() if seconds else 0.0
    while time.perf_counter() < end:
        start = time.perf_counter()
        predictor.predict(pixels)
        spent.append((time.perf_counter() - start) * 1e3)
    used = (time.process_time() - used) * 1e3 / max(1, len(spent))
    kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))
    print(kb, np.median(spent or [0.0]), used, flush=True)
"""
NAMES = {
    "native": "native library",
    "python": "Python runtime",
    "raw": "ONNX Runtime by hand",
    "parts": "… on the same graphs",
}


def built(folder: Path) -> Path:
    """The contender of C++, linked with the library that CMake built into `folder`."""
    build(folder)
    include = ["-I", str(SOURCES / "include"), "-I", str(SOURCES / "src")]
    source, program = Path(__file__).with_name("contender.cpp"), folder / "contender"
    link = ["-L", str(folder), "-lmpmmu", f"-Wl,-rpath,{folder}", "-ldl"]
    checked([tool("g++"), "-std=c++17", "-O2", *include, str(source), *link, "-o", str(program)])
    return program


def contenders(program: Path, bundle: Path, batch: int, seconds: float) -> dict[str, Command]:
    side, threads = Bundle.open(bundle).preprocessing.size, usable_threads()
    rest = list(map(str, (bundle, batch, threads, seconds, side)))
    variables = {"MPMMU_ONNXRUNTIME": str(engines()["onnxruntime"])}
    return {
        "native": Command([str(program), "native", *rest], variables),
        "python": Command([sys.executable, "-c", PYTHON, *rest]),
        "raw": Command([str(program), "raw", *rest], variables),
        "parts": Command([str(program), "parts", *rest], variables),
    }


def few(rounds: int) -> int:
    """Rounds of what takes long."""
    return max(3, rounds // 3)


def bytes_of(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.2f}"


def column(ran: Sequence[Ran], at: int) -> Array:
    """Of each round: resident kB, median ms of a call, the processor's ms of a call, seconds to the first line."""
    return np.array([[*map(float, one.line.split()), one.seconds][at] for one in ran])


def show(said: Mapping[tuple[str, str, int], Array], sizes: Mapping[str, str]) -> None:
    print(report.columns("| start, s | resident then, MB | p50 batch 1, ms | p50 batch 32, ms | our part, MB"))
    for name, label in NAMES.items():
        kb = f"{np.median(said['start', name, 0]) / 1e3:.0f}"
        times = [spread(said[f"batch {batch}", name, 1], 1) for batch in (1, 32)]
        print(report.row([label, spread(said["start", name, 3]), kb, *times, sizes[name]]))
    columns = {"start": 3, "batch 1": 1, "batch 32": 1}
    print()
    print(report.columns(f"| {' | '.join(columns)} | {' | '.join(f'processor, {what}' for what in columns)}"))
    for other in ("python", "raw", "parts"):
        pairs = [(what, at) for what, at in columns.items()] + [(what, 2) for what in columns]
        ratios = [ratio(said[what, "native", at], said[what, other, at], 3) for what, at in pairs]
        print(report.row([f"native / {NAMES[other]}", *ratios]))


def main(bundle: Path, rounds: int, seconds: float) -> None:
    print(report.heading("The native library beside Python, and beside ONNX Runtime by hand"))
    print(f"Bundle `{bundle.name}`, onnxruntime:fp32. {rounds} rounds of fresh processes, {few(rounds)} at batch 32;")
    print("median and quartiles.\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program = built(folder)
        checked([tool("strip"), str(library := (folder / "libmpmmu.so").resolve())])
        found = {"start": race_processes(contenders(program, bundle, 1, 0), rounds)}
        for batch in (1, 32):
            times = rounds if batch == 1 else few(rounds)
            found[f"batch {batch}"] = race_processes(contenders(program, bundle, batch, seconds), times)
        modules = (report.ROOT / "mpmmu_rt").rglob("*.py")
        sizes = {"native": bytes_of(library), "python": bytes_of(*modules), "raw": "0", "parts": "0"}
    said = {(what, name, at): column(ran[name], at) for what, ran in found.items() for name in NAMES for at in range(4)}
    show(said, sizes)
    engine = engines()["onnxruntime"]
    print("\nstart: of the process, to its first prediction. our part: the library, stripped; the modules of Python.")
    print("processor: its time, of all threads, which what else runs on the machine disturbs less.")
    print(f"All of them need {engine.name}, {bytes_of(engine)} MB.")
    print(report.load("at the end"))


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    main(given.bundle, given.rounds, given.seconds)
