"""Contenders that take turns, so that what else the machine does meanwhile meets them all alike.

`race` calls them in one process. Engines with thread pools of their own are not equals there: threads of one that wait
for work spin, and slow down the next one's. `race_processes` starts a fresh process for every turn instead.

A ratio is that of one round; its spread is the interquartile range over the rounds.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpmmu_rt.spec import Array

LEAST_CALLS = 3  # in a turn of several
Call = Callable[[], object]


def turns(names: Iterable[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: every contender once, shuffled, so that none always follows the same other; the same
    orders in every run."""
    order, drawn = list(names), random.Random(0)
    for _ in range(rounds):
        drawn.shuffle(order)
        yield list(order)


def race(calls: Mapping[str, Call], rounds: int, *, turn_s: float = 0.0) -> dict[str, Array]:
    """Milliseconds of every contender in every round: float64 [rounds] each, after two turns of each to warm up.

    turn_s: a turn repeats its call for so many seconds and at least `LEAST_CALLS` times, and counts the median; at 0 it
    is one call.
    """
    for call in calls.values():
        _turn(call, turn_s)
        _turn(call, turn_s)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for order in turns(calls, rounds):
        for name in order:
            spent[name].append(_turn(calls[name], turn_s))
    return {name: np.array(values) for name, values in spent.items()}


def _turn(call: Call, turn_s: float) -> float:
    samples: list[float] = []
    least = LEAST_CALLS if turn_s else 1
    until = time.perf_counter() + turn_s
    while len(samples) < least or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    return float(np.median(samples))


@dataclass(frozen=True)
class Command:
    """A process to start. environment: variables on top of this process's. before: called first, and not timed."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Call = lambda: None


@dataclass(frozen=True)
class Ran:
    """What a process said: its first line on stdout, and the seconds from its start to that line."""

    line: str
    seconds: float


def race_processes(commands: Mapping[str, Command], rounds: int) -> dict[str, list[Ran]]:
    """Of every contender in every round what its process said, after one turn of each to warm up (files in memory).

    Raises `RuntimeError` for a process that fails or says nothing.
    """
    for command in commands.values():
        run(command)
    found: dict[str, list[Ran]] = {name: [] for name in commands}
    for order in turns(commands, rounds):
        for name in order:
            found[name].append(run(commands[name]))
    return found


def run(command: Command) -> Ran:
    command.before()
    start = time.perf_counter()
    with subprocess.Popen(
        command.arguments, stdout=subprocess.PIPE, text=True, env=os.environ | command.environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.communicate()
    if process.returncode or not line:
        said = "said nothing" if not process.returncode else f"failed with status {process.returncode}"
        raise RuntimeError(f"{' '.join(command.arguments)} {said}")
    return Ran(line.rstrip("\n"), seconds)


def ratio(over: Array, under: Array, digits: int = 2) -> str:
    """Of two contenders of a race: the median of the rounds' ratios, and their quartiles."""
    return spread(over / under, digits)


def spread(values: Array | Sequence[float], digits: int = 2) -> str:
    """The median and, in brackets, the quartiles."""
    low, middle, high = (f"{value:.{digits}f}" for value in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low} to {high})"
