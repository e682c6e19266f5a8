"""Stored turns of a bundle, and whether another one is slower: for where the two can't take turns.

A baseline holds sessions: of each the raw calls of some turns, fresh processes as in `compare.py`, and of each turn the
time of a *control*, a computation that is no part of this package. Judging takes new turns, each paired with a stored
one that is drawn by lot and not used again, and asks `gate.py`'s sequential test of the pairs' log(new / stored).

What that costs. In `compare` the coin is fair by construction: which side came first was drawn by lot. Here it is an
assumption, exchangeability: that a turn of today is, but for the change that is looked for, as likely to be the faster
one of a pair as a turn of the day on which the baseline was taken. It fails as a whole where the machine itself is
another one today, which no number of turns would show: all pairs would say the same. So the pairs are judged twice,
moved up and down by what the machine is known to move by on its own, the *floor*: the largest of

    what medians of the quarters of a session differ by (drift within it),
    what medians of sessions differ by (`bench --save` to the same file adds one, on another day), and
    what the control differs by, today from then.

`slower` must hold for pairs moved down by the floor and `not slower` for pairs moved up: a machine that moves by more
than what is allowed can't tell. The error rates of `gate.py` hold for shifts between then and now of the floor at the
most. A shift beyond it, that neither the control nor another session has shown, is taken for the bundle's: `compare`,
which needs no such assumption, is to be preferred wherever both bundles can be had.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import gate
from .baseline_file import FEWEST_TURNS, HINT, MOST_SESSIONS, MOST_TURNS, Baseline, Session
from .bundle import Bundle
from .compare import TURN_S, Side, Turn, require_same, take_turn
from .conditions import WHAT, conditions, control_ms, differences, plain
from .counts import Counts, Moved, count, may_not_grow, moved
from .errors import MpmmuError, UsageError
from .gate import MOST_SLOWDOWN, STATISTICS, Estimate, Rule, Verdict, statistics
from .machine import now, package_versions
from .progress import Progress, silent
from .spec import StrPath

_DIGITS = 5  # of a stored time in ms: ten nanoseconds
TRIPWIRE = 0.25  # at the least, and 5 times what is allowed, under other conditions
EXIT_CODES = {"not slower": 0, "no alarm": 0, "slower": 4, "far slower": 4, "cannot tell": 5}


@dataclass(frozen=True)
class Judgement:
    """stored: what was judged by. turns: the new ones. floor: see `Baseline.floor`, as shares; empty under other
    conditions, where it is not known. different: conditions that are not the same."""

    stored: Baseline
    verdict: Verdict
    answer: str  # a key of EXIT_CODES
    rule: Rule
    floor: dict[str, float]
    different: list[str]
    moved: list[Moved]
    counts: Counts
    conditions: Mapping[str, Any]
    turns: list[list[float]]
    control_ms: list[float]
    bundle: str
    digest: str

    @property
    def more(self) -> list[Moved]:
        return [one for one in self.moved if one.worse]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "mpmmu-judgement/1",
            "answer": self.answer,
            "reason": self.verdict.reason,
            "rounds": self.verdict.rounds,
            "estimates": self.verdict.estimates_json(),
            "floor": self.floor,
            "rule": asdict(self.rule),
            "different": self.different,
            "counts": self.counts,
            "moved": [one.to_json() for one in self.moved],
            "conditions": dict(self.conditions),
            "samples_ms": self.turns,
            "control_ms": self.control_ms,
            "bundle": self.bundle,
            "bundle_digest": self.digest,
        }


def save(
    path: StrPath, side: Side, batch: int, *, budget_s: float, progress: Progress = silent, turn: Turn = take_turn
) -> Baseline:
    """Take a session of as many turns as fit into `budget_s` seconds, at most `MOST_TURNS`, and write it to `path`; a
    baseline of the same bundle that is there already gets one session more.

    Raises `UsageError` for a budget of too few turns, a file that is no baseline, and one of another bundle, of another
    version of this package or of other conditions or counts, or that somebody else wrote meanwhile; and what
    `counts.count`, turns and `require_same` raise.
    """
    path, bundle = Path(path), Bundle.open(side.path)
    here, version = conditions(bundle, side.target, batch, TURN_S), package_versions(("mpmmu-rt",)).get("mpmmu-rt", "")
    old = _lies(path)
    counted = count(side.path, side.target, batch)
    if old:
        # Of the same code: a slower version of it would be taken for what the machine moves by from day to day.
        same = {"bundle": bundle.digest[:12], "mpmmu-rt": version}
        then = {"bundle": old.digest[:12], "mpmmu-rt": old.version or "unknown"}
        told = differences({**old.conditions, **then}, here | same) or list(map(str, moved(old.counts, counted, None)))
        if told:
            raise UsageError(
                f"{path} was taken under other conditions ({'; '.join(told)}), expected the same to add a session",
                hint="name another file, or remove this one",
            )
    session = _session(side, batch, budget_s, progress, turn)
    require_same(bundle)
    if _lies(path) != old:  # of two that add a session at once one would be lost
        raise UsageError(
            f"{path} was written while a session for it was taken, expected nobody else to write it",
            hint="the same command again, once that has ended, adds a session to what is there then",
        )
    sessions = [*(old.sessions if old else []), session][-MOST_SESSIONS:]
    found = Baseline(here, plain(bundle.name), bundle.digest, counted, sessions, version)
    found.write(path)
    return found


def _lies(path: Path) -> Baseline | None:
    return Baseline.read(path) if path.exists() else None


def _session(side: Side, batch: int, budget_s: float, progress: Progress, turn: Turn) -> Session:
    turns, control = list[list[float]](), list[float]()
    started, longest = time.monotonic(), 0.0
    while len(turns) < MOST_TURNS and (spent := time.monotonic() - started) + longest <= budget_s:
        progress("taking turns", len(turns), MOST_TURNS, "turns")
        begin = time.monotonic()
        control.append(control_ms())
        turns.append([round(ms, _DIGITS) for ms in turn(side, batch, TURN_S)])
        longest = max(longest, time.monotonic() - begin)
        if (need := FEWEST_TURNS * (spent + longest) / len(turns)) > 1.5 * budget_s:
            raise _too_short(budget_s, need)
    progress("taking turns", MOST_TURNS, MOST_TURNS, "turns")
    if len(turns) < FEWEST_TURNS:
        raise _too_short(budget_s, FEWEST_TURNS * (longest + budget_s / max(1, len(turns))))
    return Session(now(), turns, control)


def judge_against(
    path: StrPath,
    side: Side,
    batch: int,
    *,
    rule: Rule | None = None,
    allow_counts: Mapping[str, float] | None = None,
    allow_different: bool = False,
    budget_s: float = 120.0,
    progress: Progress = silent,
    turn: Turn = take_turn,
) -> Judgement:
    """New turns against the baseline at `path`, until it can be told, or no more fit into the budget.

    allow_different: where conditions differ, look for a slowdown of 25 % or of 5 times what is allowed alone, whichever
    is more: the answers are then `far slower`, `no alarm` and `cannot tell`, and counts are not judged. A baseline of
    another target, batch or image size is refused all the same.

    Raises `UsageError` for other conditions than the baseline's and for a file that is none, and what `compare` raises.
    """
    stored, rule = Baseline.read(Path(path)), rule or Rule()
    bundle = Bundle.open(side.path)
    here = conditions(bundle, side.target, batch, TURN_S)
    different = differences(stored.conditions, here)
    if different and (not allow_different or any(stored.conditions.get(name) != here[name] for name in WHAT)):
        raise UsageError(
            f"{path} was taken under other conditions ({'; '.join(different)}), expected the same",
            hint=_way_out(stored.conditions, here, rule),
        )
    if different:
        rule = _tripwire(rule)
    counted = count(side.path, side.target, batch)
    if not different:
        _require_counts(path, stored.counts, counted)
    differ = moved(stored.counts, counted, allow_counts, judged=not different)
    drawn = random.Random()
    pool = [one for session in stored.sessions for one in session.turns]
    drawn.shuffle(pool)
    turns, control, rounds = list[list[float]](), list[float](), list[dict[str, float]]()
    started, longest, verdict = time.monotonic(), 0.0, None
    floor: dict[str, float] = {}
    while verdict is None:
        spent = time.monotonic() - started
        if spent + longest > budget_s or len(turns) == len(pool):
            verdict = gate.undecided(rounds, rule, _undecided(rounds, floor, rule, spent, len(pool)))
            break
        progress("taking turns", min(round(spent), round(budget_s)), round(budget_s), "s")
        begin = time.monotonic()
        control.append(control_ms())
        turns.append(turn(side, batch, float(here["turn_s"])))
        longest = max(longest, time.monotonic() - begin)
        new, old = statistics(turns[-1]), statistics(pool[len(turns) - 1])
        rounds.append({name: math.log(new[name] / old[name]) for name in STATISTICS})
        floor = {} if different else stored.floor(control)
        verdict = judge(rounds, rule, floor)
    progress("taking turns", round(budget_s), round(budget_s), "s")
    require_same(bundle)
    answer = {"slower": "far slower", "not slower": "no alarm"}.get(verdict.answer, verdict.answer)
    return Judgement(
        stored=stored,
        verdict=verdict,
        answer=answer if different else verdict.answer,
        rule=rule,
        floor={name: math.expm1(value) for name, value in floor.items()},
        different=different,
        moved=differ,
        counts=counted,
        conditions=here,
        turns=turns,
        control_ms=control,
        bundle=bundle.name,
        digest=bundle.digest,
    )


def judge(rounds: list[dict[str, float]], rule: Rule, floor: Mapping[str, float]) -> Verdict | None:
    """`gate.judge` of pairs of new and stored turns, on the side of caution: see the module. floor: in log; empty where
    it is not known."""
    up, down = ([{name: one[name] + sign * floor.get(name, 0.0) for name in one} for one in rounds] for sign in (1, -1))
    for moved_rounds, wanted in ((up, ("not slower",)), (down, ("slower", "cannot tell"))):
        found = gate.judge(moved_rounds, rule)
        if found and found.answer in wanted:
            return Verdict(found.answer, _reason(found, floor), found.rounds, _estimates(rounds, rule))
    return None


def _require_counts(path: StrPath, then: Counts, here: Counts) -> None:
    """Raise `UsageError` where no count would be judged: it would look as if none had grown."""
    if not any(may_not_grow(name) and then.get(name) is not None and here[name] is not None for name in here):
        raise UsageError(
            f"{path} holds none of the {len(here)} counts that are judged here, expected some: {next(iter(here))}, …",
            hint=HINT,
        )


def _tripwire(rule: Rule) -> Rule:
    return Rule(min(max(TRIPWIRE, 5 * rule.max_slowdown), MOST_SLOWDOWN), rule.alpha)


def _way_out(stored: Mapping[str, Any], here: Mapping[str, Any], rule: Rule) -> str:
    if any(stored.get(name) != here[name] for name in WHAT):
        return (
            "measure what it was taken of, or take one of this with --save FILE, FILE being a free path: "
            "--allow-different is for another machine or version"
        )
    return (
        "take a baseline here with --save, or pass --allow-different, which only sees a slowdown of "
        f"{_tripwire(rule).max_slowdown:.0%} or more"
    )


def _too_short(budget_s: float, need_s: float) -> MpmmuError:
    return UsageError(
        f"{FEWEST_TURNS} turns don't fit into {budget_s:g} s, expected a baseline of at least as many",
        hint=f"--budget {math.ceil(1.2 * need_s)}s",
    )


def _reason(found: Verdict, floor: Mapping[str, float]) -> str:
    return "; ".join([found.reason, *([f"the machine itself moves by {_share(floor):.1%}"] if floor else [])])


def _undecided(rounds: list[dict[str, float]], floor: Mapping[str, float], rule: Rule, spent: float, most: int) -> str:
    if not rounds:
        return "no turn fits into the budget"
    if floor and (moves := _share(floor)) >= rule.max_slowdown:
        return f"the machine itself moves by {moves:.1%}, more than the {rule.max_slowdown:.1%} that are allowed"
    if len(rounds) == 1:
        return f"1 turn in {spent:.0f} s was not enough"
    whole = ", all that the baseline holds," if len(rounds) == most else ""
    return f"{len(rounds)} turns{whole} in {spent:.0f} s were not enough"


def _share(floor: Mapping[str, float]) -> float:
    return math.expm1(max(floor.values()))


def _estimates(rounds: list[dict[str, float]], rule: Rule) -> dict[str, Estimate]:
    return {name: gate.estimate([one[name] for one in rounds], rule.alpha) for name in STATISTICS}
