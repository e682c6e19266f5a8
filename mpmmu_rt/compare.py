"""Two bundles, or two targets of one, against each other on this machine: is B slower?

Every turn is a fresh process (`python -m mpmmu_rt.compare BUNDLE TARGET BATCH SECONDS [LEAST]`) that opens the bundle,
warms up, times its calls and holds the answers to the golden ones. In the first rounds, as many as a tenth of the
budget has room for, A has two turns: what they differ by is the noise floor. `gate.py` judges. Before the rounds
`counts.py` counts what noise can't touch, of both sides.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .child import answer, limit_s, python, run, telling
from .counts import Counts, Moved, count, moved
from .errors import BundleError, UsageError, quoted
from .gate import STATISTICS, Rule, Verdict, judge, statistics, undecided
from .latency import Effort, sample
from .machine import describe
from .predictor import Predictor
from .progress import Progress, silent
from .spec import Array, Target
from .tiles import hold_to_golden, tile

SCHEMA = "mpmmu-compare/1"
FLOOR_ROUNDS, FLOOR_SHARE = 4, 0.1  # in which A has two turns, and how much of the budget the second ones may take
TURN_S = 1.0
LEAST_CALLS = 3  # of a turn
LEAST_CALLS_BY_LOT = 2  # where both sides take turns: what a round says is judged by its sign
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Side:
    """What is measured: a bundle on a target."""

    path: Path
    target: Target

    def __str__(self) -> str:
        return f"{self.path} on {self.target}"


@dataclass
class Turns:
    """Raw samples: of each round the ms of the calls of A, of B, and in the first rounds of A's second turn."""

    a: list[list[float]] = field(default_factory=list)
    b: list[list[float]] = field(default_factory=list)
    again: list[list[float]] = field(default_factory=list)

    def logs(self) -> list[dict[str, float]]:
        """log(B / A) of each round, of both statistics."""
        return [_ratio(b, a) for a, b in zip(self.a, self.b, strict=True)]

    def noise_floor(self) -> dict[str, float]:
        """The largest difference of A from itself, of both statistics: 0.01 is 1 %."""
        found = [_ratio(again, a) for a, again in zip(self.a, self.again, strict=False)]
        return {name: math.expm1(max(abs(one[name]) for one in found)) for name in STATISTICS if found}


@dataclass(frozen=True)
class Comparison:
    """The verdict, and all that it rests on."""

    a: Side
    b: Side
    batch: int
    rule: Rule
    verdict: Verdict
    turns: Turns
    seconds: float
    bundles: tuple[Bundle, Bundle]
    counts: tuple[Counts, Counts]
    moved: list[Moved]  # counts that differ

    @property
    def cut_short(self) -> bool:
        """Whether it ended because the budget did, and a larger one would bring more rounds."""
        return self.verdict.rounds < MOST_ROUNDS and judge(self.turns.logs(), self.rule) is None

    @property
    def more(self) -> list[Moved]:
        """The counts that grew beyond what is allowed: B is refused for them, however long it takes."""
        return [one for one in self.moved if one.worse]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "answer": self.verdict.answer,
            "reason": self.verdict.reason,
            "counts": dict(zip("ab", self.counts, strict=True)),
            "moved": [one.to_json() for one in self.moved],
            "rounds": self.verdict.rounds,
            "estimates": self.verdict.estimates_json(),
            "noise_floor": self.turns.noise_floor(),
            "rule": asdict(self.rule),
            "batch": self.batch,
            **{
                name: {
                    "bundle": str(side.path),
                    "digest": bundle.digest,
                    "target": str(side.target),
                    "warning": bundle.warning,
                }
                for name, side, bundle in zip("ab", (self.a, self.b), self.bundles, strict=True)
            },
            "samples_ms": asdict(self.turns),
            "seconds": self.seconds,
            "machine": describe(),
        }


Turn = Callable[[Side, int, float], list[float]]  # side, pairs a call, seconds → ms of each call


def compare(
    a: Side,
    b: Side,
    batch: int,
    *,
    rule: Rule | None = None,
    allow_counts: Mapping[str, float] | None = None,
    budget_s: float = 120.0,
    turn_s: float = TURN_S,
    progress: Progress = silent,
) -> Comparison:
    """Rounds until the gate can tell, or no further one fits into `budget_s` seconds: then it can't.

    allow_counts: see `counts.moved`; two targets of one bundle differ in their counts by nature, and are not judged by
    them. turn_s: how long a turn times its calls, of which there are at least two. Counting, some seconds, is not
    part of the budget. Raises `UsageError` for no budget, no pairs or a count that there is not, what `Bundle.open`
    raises, and of a side that can't run or answers wrongly what its process raised.
    """
    if not 0 < budget_s < math.inf or batch < 1:
        raise UsageError(
            f"budget {budget_s:g} s and batch {batch}, expected more than 0 s and at least 1 pair",
            hint="--budget 120s --batch 32",
        )
    rule = rule or Rule()
    bundles = Bundle.open(a.path), Bundle.open(b.path)
    sides, counts = (a, b), list[Counts]()
    for done, side in enumerate(sides):
        progress("counting", done, len(sides), "bundles")
        counts.append(count(side.path, side.target, batch))
    progress("counting", len(sides), len(sides), "bundles")
    differ = moved(counts[0], counts[1], allow_counts, judged=a.target == b.target)
    started = time.monotonic()
    turns, verdict = race(sides, batch, rule=rule, budget_s=budget_s, turn_s=turn_s, progress=progress)
    spent = time.monotonic() - started
    require_same(*bundles)
    return Comparison(a, b, batch, rule, verdict, turns, spent, bundles, (counts[0], counts[1]), differ)


def require_same(*bundles: Bundle) -> None:
    """Raise `BundleError`, or what `Bundle.open` does, unless these still lie where they were opened: each turn opens
    what is there, so that the times of one that was exported to the same place meanwhile are among the others."""
    for one in bundles:
        if Bundle.open(one.path).digest != one.digest:
            raise BundleError(
                f"{one.path} was replaced by another bundle while it was measured, expected the same to the end",
                hint="measure again once nothing writes there; an export belongs to another path",
            )


def take_turn(side: Side, batch: int, turn_s: float, least: int = LEAST_CALLS) -> list[float]:
    """The ms of each call, at least so many, of a fresh process. Raises `EngineError`."""
    command = python("-m", "mpmmu_rt.compare", str(side.path.resolve()), str(side.target), str(batch))
    hint = f"`mpmmu-rt verify {quoted(side.path)} --target {side.target}` says what is wrong"
    calls: list[float] = run(f"a turn of {side}", [*command, str(turn_s), str(least)], hint, limit_s(batch, turn_s))
    return calls


def _turn_by_lot(side: Side, batch: int, turn_s: float) -> list[float]:
    return take_turn(side, batch, turn_s, LEAST_CALLS_BY_LOT)


def race(
    sides: tuple[Side, Side],
    batch: int,
    *,
    rule: Rule,
    budget_s: float,
    turn_s: float = TURN_S,
    progress: Progress = silent,
    turn: Turn = _turn_by_lot,
) -> tuple[Turns, Verdict]:
    """The rounds of `compare` alone. turn: how a turn is taken."""
    turns, drawn, started = Turns(), random.Random(), time.monotonic()
    longest, verdict = 0.0, None  # longest: s of a turn, the mean of its round
    while verdict is None:
        spent = time.monotonic() - started
        rounds = len(turns.a)
        floor = rounds < FLOOR_ROUNDS and (len(turns.again) + 1) * longest <= FLOOR_SHARE * budget_s
        count = 3 if floor else 2
        if spent + count * longest > budget_s or rounds == MOST_ROUNDS:
            few = f"1 round in {spent:.0f} s was" if rounds == 1 else f"{rounds} rounds in {spent:.0f} s were"
            why = f"{few} not enough" if rounds else f"no round fits into {budget_s:g} s"
            verdict = undecided(turns.logs(), rule, why)
            break
        progress("taking turns", min(round(spent), round(budget_s)), round(budget_s), "s")
        begin = time.monotonic()
        _round(turns, sides, drawn, lambda side: turn(side, batch, turn_s), floor)
        longest = max(longest, (time.monotonic() - begin) / count)
        verdict = judge(turns.logs(), rule)
    progress("taking turns", round(budget_s), round(budget_s), "s")
    return turns, verdict


def _round(
    turns: Turns, sides: tuple[Side, Side], drawn: random.Random, take: Callable[[Side], list[float]], floor: bool
) -> None:
    """One more, its turns in an order drawn by lot. floor: A has two of them."""
    a, b = sides
    wanted = [(turns.a, a), (turns.b, b), *([(turns.again, a)] if floor else [])]
    drawn.shuffle(wanted)
    taken = [(samples, take(side)) for samples, side in wanted]
    for samples, calls in taken:
        samples.append(calls)


def _ratio(over: list[float], under: list[float]) -> dict[str, float]:
    above, below = statistics(over), statistics(under)
    return {name: math.log(above[name] / below[name]) for name in STATISTICS}


def _measure(path: Path, target: Target, batch: int, seconds: float, least: int) -> list[float]:
    bundle = Bundle.open(path)
    golden = bundle.golden()
    pixels, answers = tile(golden, batch), list[Array]()
    with Predictor(bundle, target, unproven=True) as predictor:
        effort = Effort(warmup_ms=seconds * 300, measure_ms=seconds * 1e3, min_samples=least, max_warmup_ms=0)
        calls = sample(lambda: answers.append(predictor.predict(pixels).probability), effort)
    hold_to_golden(target, answers, golden)
    return calls


def _main(path: str, target: str, batch: str, seconds: str, least: str = str(LEAST_CALLS)) -> None:
    answer(_measure(Path(path), Target.parse(target), int(batch), float(seconds), int(least)))


if __name__ == "__main__":
    telling(lambda: _main(*sys.argv[1:]))
