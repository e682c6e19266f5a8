"""The native library beside the Python runtime and beside ONNX Runtime used by hand in C++, in fresh processes.

    python -m benchmarks.native.table BUNDLE [--rounds N] [--seconds S] > benchmarks/results/native_<machine>.md

The three take turns: to the first prediction, and for so many seconds at batch 1 and at 32. By hand means the whole
graph in one session, and nothing checked: no digest, no answer. Needs g++, CMake, and the headers of docs/native.md.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.racing import Command, race_processes, ratio, spread
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
    spent, end = [0.0], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        predictor.predict(pixels)
        spent.append((time.perf_counter() - start) * 1e3)
    kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))
    print(kb, np.median(spent[1:] or spent), flush=True)
"""
NAMES = {"native": "native library", "python": "Python runtime", "raw": "ONNX Runtime by hand"}


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
    }


def few(rounds: int) -> int:
    """Rounds of what takes long."""
    return max(3, rounds // 3)


def bytes_of(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.2f}"


def main(bundle: Path, rounds: int, seconds: float) -> None:
    print(report.heading("The native library beside Python, and beside ONNX Runtime by hand"))
    print(f"Bundle `{bundle.name}`, onnxruntime:fp32. {rounds} rounds of fresh processes, {few(rounds)} at batch 32;")
    print("median and quartiles.\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program = built(folder)
        checked([tool("strip"), str(library := (folder / "libmpmmu.so").resolve())])
        started = race_processes(contenders(program, bundle, 1, 0), rounds)
        start = {name: np.array([one.seconds for one in ran]) for name, ran in started.items()}
        kb = {name: np.array([float(one.line.split()[0]) for one in ran]) for name, ran in started.items()}
        calls: dict[int, dict[str, Array]] = {}
        for batch in (1, 32):
            ran = race_processes(
                contenders(program, bundle, batch, seconds), rounds if batch == 1 else max(3, rounds // 3)
            )
            calls[batch] = {name: np.array([float(one.line.split()[1]) for one in of]) for name, of in ran.items()}
        sizes = {
            "native": bytes_of(library),
            "python": bytes_of(*(report.ROOT / "mpmmu_rt").rglob("*.py")),
            "raw": "0",
        }
    print(report.columns("| start, s | resident then, MB | p50 batch 1, ms | p50 batch 32, ms | our part, MB"))
    for name, label in NAMES.items():
        latencies = [spread(calls[batch][name]) for batch in (1, 32)]
        print(report.row([label, spread(start[name]), f"{np.median(kb[name]) / 1e3:.0f}", *latencies, sizes[name]]))
    print()
    print(report.columns("| start | p50 batch 1 | p50 batch 32"))
    for other in ("python", "raw"):
        ratios = [ratio(calls[batch]["native"], calls[batch][other], 3) for batch in (1, 32)]
        print(report.row([f"native / {NAMES[other]}", ratio(start["native"], start[other], 3), *ratios]))
    engine = engines()["onnxruntime"]
    print("\nstart: of the process, to its first prediction. our part: the library, stripped; the modules of Python.")
    print(f"All three need {engine.name}, {bytes_of(engine)} MB.")
    print(report.load("at the end"))


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    main(given.bundle, given.rounds, given.seconds)
