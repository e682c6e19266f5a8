"""From starting a process to its first prediction, without a cache of compiled models, with a cold and a warm one.

    python -m benchmarks.cpu.cold_start BUNDLE [TARGET …] > benchmarks/results/cold_start_<machine>.md

The process opens the bundle (all digests), loads the target and predicts one pair. The three take turns.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.racing import Command, race_processes, ratio, spread
from mpmmu_rt import cold_start
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared.blob_cache import VARIABLE
from mpmmu_rt.spec import Target

ROUNDS = 9


def contenders(bundle: Path, target: str, folder: Path) -> dict[str, Command]:
    """Each cache in a folder of its own: the warm one is filled by the turn that warms up."""
    arguments = cold_start.command(bundle, Target.parse(target), 1)
    cold, warm = folder / "cold", folder / "warm"
    return {
        "off": Command(arguments, {VARIABLE: "off"}),
        "cold": Command(arguments, {VARIABLE: str(cold)}, before=lambda: shutil.rmtree(cold, ignore_errors=True)),
        "warm": Command(arguments, {VARIABLE: str(warm)}),
    }


def main(bundle: Path, targets: list[str]) -> None:
    print(report.heading("Start to first prediction"))
    print(f"{ROUNDS} rounds. Seconds, median and quartiles.\n")
    print(report.columns("target | cache off | cold | warm | warm / off"))
    for target in targets:
        with tempfile.TemporaryDirectory() as temporary:
            ran = race_processes(contenders(bundle, target, Path(temporary)), ROUNDS)
        found = {name: np.array([one.seconds for one in rounds]) for name, rounds in ran.items()}
        print(report.row([target, *map(spread, found.values()), ratio(found["warm"], found["off"])]), flush=True)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("targets", nargs="*", metavar="target", help="instead of all CPU targets of the bundle")
    given = parser.parse_args()
    listed = Bundle.open(given.bundle).targets
    main(given.bundle, given.targets or [one for one in listed if one.startswith(("openvino", "onnxruntime:"))])
