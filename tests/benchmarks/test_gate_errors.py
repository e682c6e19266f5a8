"""The study of the gate's errors: what is injected is there, it goes on, and its rules are what others do."""

from __future__ import annotations

import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gate_errors import LINES, RULES, Cell, describe, left, read, run, said, share, wanted
from mpmmu_rt.child import answered

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests/data/bundle_613dfc9"


def turn(slow: float, every: int) -> Any:
    given = [str(STORED), "onnxruntime:fp32", "8", "0.7", str(slow), str(every)]
    command = [sys.executable, "-m", "benchmarks.gate_errors", "turn", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return np.array(answered("a turn", done.stdout, ""))


@pytest.mark.slow
def test_the_slowdown_is_in_the_calls() -> None:
    """Large ones, which no noise hides: three times as long, and every tenth call eleven times as long."""
    plain, each, tenth = turn(0, 1), turn(2.0, 1), turn(1.0, 10)
    assert np.median(each) > 2 * np.median(plain)
    phases = sorted(float(np.median(tenth[first::10])) for first in range(10))
    assert phases[-1] > 5 * np.median(phases)


def test_what_is_done_is_not_done_again() -> None:
    plan = wanted(Namespace(equals=3, slowed=2, noise="quiet,bursts", slowdowns="0.03,0.05,0.1,0.2", every="1,10"))
    assert sum(plan.values()) == 2 * 3 + 2 * 2 * 8
    done = [{"cell": {"slow": 0.0, "every": 1, "noise": "quiet"}}] * 2
    todo = left(plan, done, random.Random(0))
    assert len(todo) == sum(plan.values()) - 2
    assert (todo.count(Cell(0.0, 1, "quiet")), todo.count(Cell(0.2, 10, "bursts"))) == (1, 2)
    assert todo != sorted(todo, key=str)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    given = Namespace(
        target="onnxruntime:fp32",
        batch=1,
        equals=1,
        slowed=0,
        slowdowns="0.2",
        every="1",
        noise="bursts",
        turn=0.02,
        budget=2.0,
        minutes=60,
    )
    (tmp_path / LINES).write_text('{"cut off')
    run(tmp_path, STORED, given)
    (first,) = read(tmp_path)
    assert first["cell"] == {"slow": 0.0, "every": 1, "noise": "bursts"}
    assert len(first["samples_ms"]["a"]) == first["rounds"] >= 1
    run(tmp_path, STORED, given)
    assert read(tmp_path) == [first]
    text = describe([first])
    assert "| bursts: equals | 1 |" in text
    assert f"{first['answer']}" in text


def test_other_rules() -> None:
    a = [10.0 + 0.01 * i for i in range(40)]
    for factor, want in ((1.0, []), (1.04, []), (1.06, ["rank test and 1.05", "medians ±5 %"]), (1.2, list(RULES))):
        assert [name for name, rule in RULES.items() if rule(a, [factor * ms for ms in a])] == want
    assert [name for name, rule in RULES.items() if rule(a[:2], [1.06 * ms for ms in a[:2]])] == ["medians ±5 %"]
    line = {"samples_ms": {"a": [[1.0], [1.0]], "b": [[1.2], [0.9]]}}
    assert said("mean:10%", line, turns=1)
    assert not said("mean:10%", line)


def test_intervals_are_clopper_and_pearsons() -> None:
    assert share(0, 200) == "0.0% (0.0% to 1.8%)"  # 1 - 0.025 ** (1 / 200)
    assert share(200, 200) == "100.0% (98.2% to 100.0%)"
    assert share(0, 0) == "-"
