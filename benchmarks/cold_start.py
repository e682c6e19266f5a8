"""From starting a process to its first prediction, without a cache of compiled models, with a cold and a warm one.

    python -m benchmarks.cold_start BUNDLE [TARGET …] > benchmarks/results/cold_start_<machine>.md

The process opens the bundle (all digests), loads the target and predicts one pair. The three take turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared.blob_cache import VARIABLE

ROUNDS = 9


def start(bundle: Path, target: str, cache: str) -> float:
    """Seconds."""
    command = [sys.executable, "-m", "mpmmu_rt.bench", str(bundle.resolve()), target, "1"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {VARIABLE: cache}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        spent = time.perf_counter() - begin
        process.communicate()
    if process.returncode:
        raise RuntimeError(f"{target} failed with status {process.returncode}")
    return spent


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main(bundle: Path, targets: list[str]) -> None:
    print(f"# Start to first prediction\n\n{machine.describe()}\n\nLoad {os.getloadavg()}, {ROUNDS} rounds.\n")
    print("Seconds, median and quartiles.\n\n| target | cache off | cold | warm | warm / off |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        for target in targets:
            found: dict[str, list[float]] = {"off": [], "cold": [], "warm": []}
            for _ in range(ROUNDS):
                found["off"].append(start(bundle, target, "off"))
                shutil.rmtree(cache, ignore_errors=True)
                found["cold"].append(start(bundle, target, str(cache)))
                found["warm"].append(start(bundle, target, str(cache)))
            ratio = [warm / off for warm, off in zip(found["warm"], found["off"], strict=True)]
            print(f"| {target} | {' | '.join(map(spread, found.values()))} | {spread(ratio)} |", flush=True)
    print(f"\nLoad at the end: {os.getloadavg()}.")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    main(
        path, sys.argv[2:] or [one for one in Bundle.open(path).targets if one.startswith(("openvino", "onnxruntime:"))]
    )
