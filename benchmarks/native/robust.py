"""The native library for long: fuzzed, under sanitizers, opened again and again.

    python -m benchmarks.native.robust BUNDLE [--seconds 600] [--calls 10000] [--opens 100000] \\
        [--parts fuzz threads opens checks] > benchmarks/results/native_robust_<machine>.md

libFuzzer, of clang, reads JSON, .npz files and sealed bundles for so many seconds, from the corpus in tests/native; two
threads share a model under ThreadSanitizer and under AddressSanitizer with UndefinedBehaviorSanitizer, so many calls
each, and at nothing left behind by models that are opened and closed; a bundle is opened, asked and closed so often,
and opened without an engine as often. Fails where anything is found, and where resident memory grows. Settings, bounds
and corpus are those of tests/native/test_robust.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

from benchmarks import report
from tests.native.native import HOST, SOURCES, build, build_use, checked, engines, json_folder, tool
from tests.native.test_robust import CORPUS, NOT_THE_ENGINES, RUN, SANITIZERS, steady

NAMES = {"thread": "ThreadSanitizer", "address": "AddressSanitizer, UBSan"}
OPENS_TO_FIND_LEAKS = 20


def fuzzed(folder: Path, seconds: int) -> str:
    """What libFuzzer says at its end; an assertion where an input fails."""
    with zipfile.ZipFile(CORPUS) as stored:
        stored.extractall(folder / "corpus")
    sources = [str(SOURCES / f"src/{name}.cpp") for name in ("bundle", "files", "json", "npz")]
    folders = ["-I", str(SOURCES / "src"), "-I", str(SOURCES / "include"), "-isystem", str(json_folder())]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
    command = [tool("clang++"), *flags, *folders, *sources, str(HOST / "reading.cpp"), "-lcrypto", "-lz"]
    checked([*command, "-o", str(folder / "reading")])
    run = [
        str(folder / "reading"),
        f"-max_total_time={seconds}",
        "-max_len=8192",
        "-timeout=20",
        str(folder / "corpus"),
    ]
    ran = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    (said,) = re.findall(r"Done (\d+ runs in \d+ second)", ran.stderr)
    return f"{said}s, nothing found"


def fuzz(folder: Path, given: argparse.Namespace) -> None:
    print(report.row(["libFuzzer: JSON, .npz, sealed bundles", fuzzed(folder, given.seconds)]), flush=True)


def threads(folder: Path, given: argparse.Namespace) -> None:
    for name, flags in SANITIZERS.items():
        place = build(folder / name, flags=flags, kind="Debug")
        program = build_use(place, place / "use", *flags.split())
        for target in ("onnxruntime:fp32", "openvino:int8"):
            command = [str(program), "threads", str(given.bundle), target, str(given.calls), "2"]
            said = checked(command, **_variables() | NOT_THE_ENGINES)
            assert said == f"{2 * given.calls} calls, 0 wrong\n", said
            print(report.row([f"two threads, {NAMES[name]}, {target}", said]), flush=True)
    leaks = [str(program), "opens", str(given.bundle), "onnxruntime:fp32", str(OPENS_TO_FIND_LEAKS)]
    checked(leaks, **_variables() | {"ASAN_OPTIONS": "detect_leaks=1"})
    print(report.row([f"LeakSanitizer, {OPENS_TO_FIND_LEAKS} opens, onnxruntime:fp32", "nothing left"]), flush=True)


def opens(folder: Path, given: argparse.Namespace) -> None:
    _resident(folder, "opens", str(given.bundle), "onnxruntime:fp32", str(given.opens))


def checks(folder: Path, given: argparse.Namespace) -> None:
    _resident(folder, "checks", str(given.bundle), str(given.opens))


def _resident(folder: Path, *arguments: str) -> None:
    place = build(folder / f"plain-{arguments[0]}")
    program = build_use(place, place / "use")
    said = steady(checked([str(program), *arguments], **_variables()))
    print(report.row([f"resident memory, {arguments[0]}", said]), flush=True)


def _variables() -> dict[str, str]:
    return RUN | {f"MPMMU_{name.upper()}": str(path) for name, path in engines().items()}


PARTS = {part.__name__: part for part in (fuzz, threads, opens, checks)}


def main(given: argparse.Namespace) -> None:
    print(report.heading("The native library for long"))
    print(report.columns("what | found"))
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.parts:
            PARTS[name](Path(temporary), given)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--opens", type=int, default=100_000)
    main(parser.parse_args())
