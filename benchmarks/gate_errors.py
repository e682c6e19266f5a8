"""How often the latency gate is wrong, and how often it can't tell, on this machine; and what other rules say of the
same samples.

    python -m benchmarks.gate_errors run FOLDER BUNDLE [--equals 200] [--slowed 40] [--noise quiet,bursts] …
    python -m benchmarks.gate_errors report FOLDER > benchmarks/results/gate_errors_<machine>.md

`run` compares a bundle with itself, B slowed down by real work inside of the engine's call: matrix products for so much
of the time that the call has taken. `every tenth`: the same work altogether, all of it in every tenth call. `bursts`:
another process keeps one core busy, half a second to three at a time, with one to six seconds between. A comparison is
`mpmmu_rt.compare.race` as `mpmmu-rt compare` runs it, with turns that are shorter; counts are left out. Which is
next is drawn by lot, so that what the machine does meets all alike. Each comparison is a line of the file
FOLDER/comparisons.jsonl once it is over: `run` goes on where it was stopped, and `report` may be asked at any time.
Under `taskset -c 0` the turns have one core, and leave the others to other work; bursts go where they like.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from mpmmu_rt.child import answered
from mpmmu_rt.compare import Side, race
from mpmmu_rt.gate import Rule
from mpmmu_rt.spec import Target

SLOWDOWNS = (0.03, 0.05, 0.10, 0.20)
EVERY = (1, 10)
NOISE = ("quiet", "bursts")
LINES = "comparisons.jsonl"
_BURSTS = """
import os, random, time
os.sched_setaffinity(0, range(os.cpu_count()))
while True:
    until = time.monotonic() + random.uniform(0.5, 3)
    while time.monotonic() < until:
        pass
    time.sleep(random.uniform(1, 6))
"""


@dataclass(frozen=True)
class Cell:
    """What is compared. slow: B's mean call takes so much longer, 0.05 for 5 %; every: which of its calls do."""

    slow: float
    every: int
    noise: str

    def __str__(self) -> str:
        calls = "" if self.every == 1 else f", every {self.every}th call by {self.slow * self.every:.0%}"
        return f"{self.noise}: {f'{self.slow:.0%} slower{calls}' if self.slow else 'equals'}"


def wanted(given: argparse.Namespace) -> dict[Cell, int]:
    noise, slowdowns, every = given.noise.split(","), given.slowdowns.split(","), given.every.split(",")
    cells = {Cell(0.0, 1, one): given.equals for one in noise}
    slower = [Cell(float(slow), int(calls), one) for one in noise for slow in slowdowns for calls in every]
    return cells | dict.fromkeys(slower, given.slowed)


def left(plan: dict[Cell, int], done: Sequence[dict[str, Any]], drawn: random.Random) -> list[Cell]:
    """The comparisons still to be made, in an order drawn by lot."""
    made = [Cell(**one["cell"]) for one in done]
    todo = [cell for cell, count in plan.items() for _ in range(count - made.count(cell))]
    drawn.shuffle(todo)
    return todo


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines: the last one may have been cut off with the power."""
    path = folder / LINES
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run(folder: Path, bundle: Path, given: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target, until = Target.parse(given.target), time.monotonic() + 60 * given.minutes
    todo = left(wanted(given), read(folder), random.Random())
    for number, cell in enumerate(todo):
        if time.monotonic() > until:
            return
        line = compared(cell, bundle, target, given.batch, turn_s=given.turn, budget_s=given.budget)
        path = folder / LINES
        whole = path.read_bytes() if path.exists() else b""
        with path.open("r+b" if whole else "wb") as file:
            file.truncate(whole.rfind(b"\n") + 1)
            file.seek(0, 2)
            file.write((json.dumps(line) + "\n").encode())
        print(f"{number + 1} of {len(todo)}: {cell}: {line['answer']} in {line['seconds']:.0f} s", file=sys.stderr)


def compared(cell: Cell, bundle: Path, target: Target, batch: int, *, turn_s: float, budget_s: float) -> dict[str, Any]:
    a, b = Side(bundle, target), Side(bundle, target)

    def turn(side: Side, batch: int, seconds: float) -> list[float]:
        slow = cell.slow if side is b else 0.0
        given = [side.path.resolve(), side.target, batch, seconds, slow, cell.every]
        command = [sys.executable, "-m", "benchmarks.gate_errors", "turn", *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        calls: list[float] = answered(side.path.name, done.stdout, "")
        return calls

    with bursts(cell.noise):
        begin = time.monotonic()
        turns, verdict = race((a, b), batch, rule=Rule(), budget_s=budget_s, turn_s=turn_s, turn=turn)
    return {
        "cell": asdict(cell),
        "target": str(target),
        "batch": batch,
        "turn_s": turn_s,
        "budget_s": budget_s,
        "cores": len(os.sched_getaffinity(0)),
        "answer": verdict.answer,
        "reason": verdict.reason,
        "rounds": verdict.rounds,
        "seconds": time.monotonic() - begin,
        "noise_floor": turns.noise_floor(),
        "samples_ms": {"a": turns.a, "b": turns.b},
    }


@contextmanager
def bursts(noise: str) -> Iterator[None]:
    if noise == "quiet":
        yield
        return
    with subprocess.Popen([sys.executable, "-c", _BURSTS]) as burning:
        try:
            yield
        finally:
            burning.kill()


def turn(bundle: str, target: str, batch: str, seconds: str, slow: str, every: str) -> None:
    """The process of a turn: `mpmmu_rt.compare`'s own, with slower calls."""
    slow_down(float(slow), int(every))
    sys.argv = ["mpmmu_rt.compare", bundle, target, batch, seconds]
    runpy.run_module("mpmmu_rt.compare", run_name="__main__", alter_sys=False)


def slow_down(slow: float, every: int) -> None:
    """From here on, every such call of the engines on the processor takes slow * every longer."""
    from mpmmu_rt.engines.shared.host_head import HostHead

    if not slow:
        return
    engine_call, work, calls = HostHead.run, np.random.default_rng(0).random((48, 48)).astype(np.float32), 0

    def slower(self: HostHead, pixels: Any, embedding: Any) -> Any:
        nonlocal calls
        begin = time.perf_counter()
        found = engine_call(self, pixels, embedding)
        calls += 1
        if calls % every == 0:
            until = time.perf_counter() + (time.perf_counter() - begin) * slow * every
            while time.perf_counter() < until:
                np.matmul(work, work)
        return found

    HostHead.run = slower  # type: ignore[method-assign]


# ---------------------------------------------------------------- other rules


def means_differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """`pytest-benchmark --benchmark-compare-fail=mean:10%`."""
    return float(np.mean(b)) > 1.10 * float(np.mean(a))


def ranks_differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """asv's: Mann-Whitney's test with p < 0.002, and medians that differ by a factor of 1.05."""
    from scipy.stats import mannwhitneyu

    if float(np.median(b)) <= 1.05 * float(np.median(a)):
        return False
    return bool(mannwhitneyu(a, b, alternative="two-sided").pvalue < 0.002)


def medians_differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """Medians by more than 5 %."""
    return float(np.median(b)) > 1.05 * float(np.median(a))


RULES = {"mean:10%": means_differ, "rank test and 1.05": ranks_differ, "medians ±5 %": medians_differ}


def said(rule: str, line: dict[str, Any], *, turns: int | None = None) -> bool:
    """Red, by that rule, of the calls of the first `turns` turns of each side, or of all."""
    a, b = ([ms for turn in line["samples_ms"][side][:turns] for ms in turn] for side in "ab")
    return RULES[rule](a, b)


def share(count: int, of: int) -> str:
    """With Clopper and Pearson's interval, 95 %."""
    from scipy.stats import binomtest

    if not of:
        return "-"
    ends = binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{count / of:.1%} ({ends.low:.1%} to {ends.high:.1%})"


def describe(lines: Sequence[dict[str, Any]]) -> str:
    cells: dict[Cell, list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault(Cell(**line["cell"]), []).append(line)
    order = sorted(cells, key=lambda one: (NOISE.index(one.noise), one.slow, one.every))
    ours, theirs = [], []
    for cell in order:
        some = cells[cell]
        answers = [line["answer"] for line in some]
        told = [one for one in answers if one != "cannot tell"]
        middle = (
            f"{np.median([line['seconds'] for line in some]):.0f} s, {np.median([line['rounds'] for line in some]):.0f}"
        )
        shares = [share(answers.count(one), len(some)) for one in ("slower", "not slower", "cannot tell")]
        ours.append([cell, len(some), *shares, share(told.count("slower"), len(told)), middle])
        counts = [sum(said(rule, line, turns=turns) for line in some) for turns in (1, None) for rule in RULES]
        theirs.append([cell, *(share(count, len(some)) for count in counts)])
    kinds = sorted({tuple(line[one] for one in ("target", "batch", "cores", "turn_s", "budget_s")) for line in lines})
    calls = [len(turn) for line in lines for turn in line["samples_ms"]["a"]]
    conditions = "; ".join(
        f"{target}, batch {batch}, {cores} cores, turns of {turn:g} s, at most {budget:g} s a comparison"
        for target, batch, cores, turn, budget in kinds
    )
    names = [f"{rule}, {which}" for which in ("one run each", "all runs") for rule in RULES]
    return "\n".join(
        [
            f"{len(lines)} comparisons, {sum(line['seconds'] for line in lines) / 3600:.1f} hours; {conditions}; "
            f"{np.median(calls):.0f} calls in a turn at the median. Allowed: 5 %.",
            "In brackets: Clopper and Pearson's interval, 95 %.\n",
            "## The gate\n",
            report.table(
                "what | n | slower | not slower | cannot tell | slower, where it can tell | median time, rounds", ours
            ),
            "## Other rules, of the same samples: how often they are red\n",
            report.table(f"what | {' | '.join(names)}", theirs),
        ]
    )


def main() -> None:
    if sys.argv[1:2] == ["turn"]:  # the process of a turn: nothing else is to be loaded
        turn(*sys.argv[2:])
        return
    parser = report.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("bundle", type=Path)
    running.add_argument("--equals", type=int, default=200, help="comparisons of equals, of each noise")
    running.add_argument("--slowed", type=int, default=40, help="of each slowdown and noise")
    running.add_argument("--slowdowns", default=",".join(map(str, SLOWDOWNS)))
    running.add_argument("--every", default=",".join(map(str, EVERY)), help="which calls are slower: each such one")
    running.add_argument("--noise", default=",".join(NOISE))
    running.add_argument("--target", default="onnxruntime:fp32")
    running.add_argument("--batch", type=int, default=4)
    running.add_argument("--turn", type=float, default=0.15, help="seconds of a turn's calls")
    running.add_argument("--budget", type=float, default=60.0, help="seconds of a comparison")
    running.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    commands.add_parser("report").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.folder, given.bundle, given)
    else:
        print(report.heading("How often the latency gate is wrong"))
        print(describe(read(given.folder)))


if __name__ == "__main__":
    main()
