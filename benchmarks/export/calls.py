"""The way of an export through our own code: which function calls which, down to a depth.

    python -m benchmarks.export.calls CHECKPOINT [TARGET …] [--depth 4] > benchmarks/results/export_calls.md

Only functions of `export/` are shown, by their module, and those of the same name in a row once with their number.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from benchmarks import report
from mpmmu_rt.export import Limits, Wanted, export_checkpoint
from mpmmu_rt.spec import Target

MARK = "/export/"  # also where an older tree is traced
# Limits that refuse nothing: the way is what is shown, not the model.
LIMITS = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)


class Visit(NamedTuple):
    depth: int
    module: str
    function: str


class Way:
    """A profile function (`sys.setprofile`) that notes every call of a function in `export/`."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self._depth = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if MARK not in file or "site-packages" in file or function.startswith("<"):
            return
        if event == "call":
            module = file.rpartition(MARK)[2].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            self.visits.append(Visit(self._depth, module, function))
            self._depth += 1
        elif event == "return":
            self._depth -= 1


def lines(visits: list[Visit], depth: int) -> Iterator[str]:
    for visit, same in groupby(visit for visit in visits if visit.depth <= depth):
        count = len(list(same))
        yield f"{'  ' * visit.depth}{visit.module}.{visit.function}" + (f"  x {count}" if count > 1 else "")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("targets", nargs="*", type=Target.parse)
    parser.add_argument("--depth", type=int, default=4)
    given = parser.parse_args()
    way = Way()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Wanted(tuple(given.targets), limits=LIMITS)
        sys.setprofile(way)
        export_checkpoint(given.checkpoint, Path(folder) / "b", wanted=wanted)
        sys.setprofile(None)
    print(report.heading("The way of an export, by depth"))
    print("```text", *lines(way.visits, given.depth), "```", sep="\n")
    print(f"\n{len(way.visits)} calls, deeper ones included.")


if __name__ == "__main__":
    main()
