"""Contenders that take turns: who is called when, what counts, and what a ratio and its spread are."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import racing
from benchmarks.racing import Command, race, race_processes, ratio, spread, turns

NAMES = ["a", "b", "c"]


def test_every_round_has_every_contender_once_and_the_order_changes() -> None:
    rounds = list(turns(NAMES, 30))
    assert all(sorted(order) == NAMES for order in rounds)
    assert {order[0] for order in rounds} == set(NAMES)
    follows = {(first, second) for order in rounds for first, second in pairwise(order)}
    assert len(follows) == 6  # every one behind every other
    assert rounds == list(turns(NAMES, 30))


def test_a_race_goes_by_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    found = race({name: partial(called.append, name) for name in NAMES}, 4)
    assert called[:6] == ["a", "a", "b", "b", "c", "c"]
    assert called[6:] == [name for order in turns(NAMES, 4) for name in order]
    assert list(found) == NAMES
    assert all(values.shape == (4,) for values in found.values())


def test_a_time_is_that_of_its_own_round_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the calls move: the n-th call of a takes n ms, of b 10 n."""
    now, calls = [0.0], dict.fromkeys("ab", 0)

    def call(name: str) -> None:
        calls[name] += 1
        now[0] += calls[name] * (1e-3 if name == "a" else 1e-2)

    monkeypatch.setattr("benchmarks.racing.time.perf_counter", lambda: now[0])
    found = race({name: partial(call, name) for name in "ab"}, 3)
    np.testing.assert_allclose(found["a"], [3, 4, 5])
    np.testing.assert_allclose(found["b"], [30, 40, 50])
    assert ratio(found["b"], found["a"]) == "10.00 (10.00 to 10.00)"


def test_a_long_turn_counts_the_median_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [0.0], [1e-3, 9e-3, 2e-3]
    done = [0]

    def call() -> None:
        now[0] += spent[done[0] % 3]
        done[0] += 1

    monkeypatch.setattr("benchmarks.racing.time.perf_counter", lambda: now[0])
    np.testing.assert_allclose(race({"one": call}, 2, turn_s=0.0115)["one"], [2, 2])
    assert done[0] == 4 * 3
    done[0] = 0
    race({"one": call}, 1, turn_s=1e-6)
    assert done[0] == 3 * racing.LEAST_CALLS


def test_a_ratio_is_per_round() -> None:
    """The machine at half its speed in two of five rounds moves both times, and no ratio."""
    slow = np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    assert ratio(30 * slow, 10 * slow) == "3.00 (3.00 to 3.00)"
    # Medians over medians would say 1.00.
    assert ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 2.0]), digits=1) == "1.5 (1.0 to 1.8)"


def test_a_spread_is_the_interquartile_range() -> None:
    assert spread([1, 2, 3, 4, 100]) == "3.00 (2.00 to 4.00)"
    assert spread([1, 2, 3, 4, 100], digits=0) == "3 (2 to 4)"


@pytest.mark.slow
def test_processes_take_turns_and_their_first_line_counts(tmp_path: Path) -> None:
    log, prepared = tmp_path / "log", list[str]()

    def command(name: str, wait: float) -> Command:
        code = (
            "import os, time\n"
            f"open({str(log)!r}, 'a').write(os.environ['NAME'])\n"
            f"time.sleep({wait})\n"
            "print(os.getpid(), flush=True)\n"
            "time.sleep(0.3)\n"
            "print('more')\n"
        )
        return Command([sys.executable, "-c", code], {"NAME": name}, before=partial(prepared.append, name))

    assert "NAME" not in os.environ
    start = time.perf_counter()
    found = race_processes({"a": command("a", 0), "b": command("b", 0.2)}, 3)
    spent = time.perf_counter() - start
    order = ["a", "b", *(name for one in turns("ab", 3) for name in one)]
    assert list(log.read_text()) == prepared == order
    pids = [one.line for rounds in found.values() for one in rounds]
    assert len(set(pids)) == 6
    assert all(pid.isdigit() for pid in pids)
    assert all(one.seconds > 0.2 for one in found["b"])
    # Each was waited for until its end, which its own time does not hold.
    assert sum(one.seconds for rounds in found.values() for one in rounds) < spent - 8 * 0.3


@pytest.mark.parametrize(("code", "words"), [("print(1); raise SystemExit(3)", "status 3"), ("", "said nothing")])
def test_a_process_that_fails_ends_the_race(code: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        race_processes({"one": Command([sys.executable, "-c", code])}, 1)
