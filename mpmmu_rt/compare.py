"""Two bundles, or two targets of one, against each other on this machine: is B slower?

Every turn is a fresh process (`python -m mpmmu_rt.compare BUNDLE TARGET BATCH SECONDS`) that opens the bundle, warms
up, times its calls and holds the answers to the golden ones. In the first rounds A has two turns: what they differ by
is the noise floor. `gate.py` judges.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .bench import hold_to_golden, tile
from .bundle import Bundle
from .errors import EngineError, UsageError
from .gate import STATISTICS, Rule, Verdict, judge, statistics, undecided
from .latency import Effort, sample
from .machine import describe
from .predictor import Predictor
from .progress import Progress, silent
from .spec import Array, Target

SCHEMA = "mpmmu-compare/1"
FLOOR_ROUNDS = 4  # in which A has two turns
TURN_S = 1.0
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
    digests: tuple[str, str]

    def to_json(self) -> dict[str, Any]:
        """JSON values; an end of an interval that is not known is null."""
        estimates = {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(one).items()}
            for name, one in self.verdict.estimates.items()
        }
        return {
            "schema": SCHEMA,
            "answer": self.verdict.answer,
            "reason": self.verdict.reason,
            "rounds": self.verdict.rounds,
            "estimates": estimates,
            "noise_floor": self.turns.noise_floor(),
            "rule": asdict(self.rule),
            "batch": self.batch,
            **{
                name: {"bundle": str(side.path), "digest": digest, "target": str(side.target)}
                for name, side, digest in zip("ab", (self.a, self.b), self.digests, strict=True)
            },
            "samples_ms": asdict(self.turns),
            "seconds": self.seconds,
            "machine": describe(),
        }


def compare(
    a: Side,
    b: Side,
    batch: int,
    *,
    rule: Rule | None = None,
    budget_s: float = 120.0,
    turn_s: float = TURN_S,
    progress: Progress = silent,
) -> Comparison:
    """Rounds until the gate can tell, or no further one fits into `budget_s` seconds: then it can't.

    turn_s: how long a turn times its calls, of which there are at least three. Raises `UsageError` for no budget or
    no pairs, what `Bundle.open` raises, and `EngineError` for a side that can't run or answers wrongly.
    """
    if budget_s <= 0 or batch < 1:
        raise UsageError(f"budget {budget_s:g} s and batch {batch}, expected more than 0 s and at least 1 pair")
    rule = rule or Rule()
    digests = Bundle.open(a.path).digest, Bundle.open(b.path).digest
    turns, drawn, started = Turns(), random.Random(), time.monotonic()
    longest, verdict = 0.0, None
    while verdict is None:
        spent = time.monotonic() - started
        count = len(turns.a)
        if spent + longest > budget_s or count == MOST_ROUNDS:
            why = f"{count} rounds in {spent:.0f} s were not enough" if count else f"no round fits into {budget_s:g} s"
            verdict = undecided(turns.logs(), rule, why)
            break
        progress("rounds", min(round(spent), round(budget_s)), round(budget_s))
        begin = time.monotonic()
        _round(turns, (a, b), batch, turn_s, drawn)
        longest = max(longest, time.monotonic() - begin)
        verdict = judge(turns.logs(), rule)
    progress("rounds", round(budget_s), round(budget_s))
    return Comparison(a, b, batch, rule, verdict, turns, time.monotonic() - started, digests)


def _round(turns: Turns, sides: tuple[Side, Side], batch: int, turn_s: float, drawn: random.Random) -> None:
    """One more, its turns in an order drawn by lot."""
    a, b = sides
    wanted = [(turns.a, a), (turns.b, b), *([(turns.again, a)] if len(turns.a) < FLOOR_ROUNDS else [])]
    drawn.shuffle(wanted)
    taken = [(samples, _turn(side, batch, turn_s)) for samples, side in wanted]
    for samples, calls in taken:
        samples.append(calls)


def _turn(side: Side, batch: int, turn_s: float) -> list[float]:
    """The ms of each call, of a fresh process."""
    command = [sys.executable, "-m", "mpmmu_rt.compare", str(side.path.resolve()), str(side.target), str(batch)]
    done = subprocess.run([*command, str(turn_s)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()[-1:]), "nothing")
        raise EngineError(
            f"the process that measures {side} ended with status {done.returncode} and said: {said}",
            hint=f"`mpmmu-rt verify {side.path} --target {side.target}` says what is wrong",
        )
    calls: list[float] = json.loads(done.stdout)
    return calls


def _ratio(over: list[float], under: list[float]) -> dict[str, float]:
    above, below = statistics(over), statistics(under)
    return {name: math.log(above[name] / below[name]) for name in STATISTICS}


def _measure(path: Path, target: Target, batch: int, seconds: float) -> list[float]:
    bundle = Bundle.open(path)
    golden = bundle.golden()
    pixels, answers = tile(golden, batch), list[Array]()
    with Predictor(bundle, target) as predictor:
        effort = Effort(warmup_ms=seconds * 300, measure_ms=seconds * 1e3, min_samples=3)
        calls = sample(lambda: answers.append(predictor.predict(pixels).probability), effort)
    hold_to_golden(target, answers, golden)
    return calls


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), Target.parse(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
