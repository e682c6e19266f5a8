"""Baselines: what they refuse, and how often they are wrong on simulated noise, with days that differ."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt import baseline, gate
from mpmmu_rt.baseline import judge, judge_against, save
from mpmmu_rt.baseline_file import FEWEST_TURNS, MOST_SESSIONS, MOST_TURNS, Baseline, Session
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.compare import TURN_S, Side, take_turn
from mpmmu_rt.conditions import WHAT, conditions, control_ms, differences
from mpmmu_rt.counts import Counts, count
from mpmmu_rt.errors import UsageError
from mpmmu_rt.files import MAX_JSON_BYTES
from mpmmu_rt.gate import STATISTICS, Rule, statistics
from mpmmu_rt.latency import Effort
from mpmmu_rt.spec import Target

from .test_gate import CALLS, KINDS

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
FP32 = Target.parse("onnxruntime:fp32")
SIDE = Side(STORED, FP32)
TURNS = 40
COUNT = int(os.environ.get("MPMMU_RT_SIMULATIONS", "12"))  # of each kind


def turn(weather: Iterator[float], level: float, calls: int = CALLS) -> list[float]:
    return [level * next(weather) for _ in range(calls)]


def session(
    rng: np.random.Generator, kind: str, level: float = 1.0, *, seen: bool = True, turns: int = TURNS
) -> Session:
    """A day on which everything takes `level` times as long; seen: the control too."""
    weather, control = KINDS[kind](rng), KINDS["white"](rng)
    taken = [turn(weather, level) for _ in range(turns)]
    return Session("2026-11-26T12:00:00+00:00", taken, [level**seen * next(control) for _ in range(turns)])


def answer(rng: np.random.Generator, days: list[Session], today: Session, slow: float = 1.0) -> str:
    """As `judge_against` judges today's turns, of which each call takes `slow` times as long."""
    stored = Baseline({}, "b", "d", {}, days)
    pool = [statistics(one) for day in days for one in day.turns]
    rng.shuffle(pool)
    rounds: list[dict[str, float]] = []
    for index, calls in enumerate(today.turns):
        new = statistics([slow * ms for ms in calls])
        rounds.append({name: math.log(new[name] / pool[index][name]) for name in STATISTICS})
        if index % 3 == 0 and (found := judge(rounds, Rule(), stored.floor(today.control_ms[: index + 1]))):
            return found.answer
    return "cannot tell"


def answers(
    kind: str, count: int, *, slow: float = 1.0, spread: float = 0.0, days: int = 1, seen: bool = True
) -> list[str]:
    """spread: of days, whose levels are drawn with that standard deviation."""
    rng = np.random.default_rng([7, list(KINDS).index(kind), days])
    said = []
    for _ in range(count):
        levels = np.exp(rng.normal(0, spread, days + 1))
        *then, now = (session(rng, kind, float(level), seen=seen) for level in levels)
        said.append(answer(rng, then, now, slow))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equals_are_not_called_slower(kind: str) -> None:
    assert answers(kind, COUNT).count("slower") <= max(1, COUNT // 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["white", "bursts", "drift"])
def test_a_tenth_slower_is_not_let_through(kind: str) -> None:
    said = answers(kind, COUNT, slow=1.10)
    assert said.count("not slower") <= max(1, COUNT // 20)
    assert kind != "white" or said.count("slower") >= 0.9 * COUNT


@pytest.mark.slow
def test_equals_pass_on_a_quiet_machine() -> None:
    assert answers("white", COUNT).count("not slower") >= 0.9 * COUNT


@pytest.mark.slow
def test_days_that_differ_are_seen_by_the_control() -> None:
    """8 % from day to day, in one session: no verdict where nothing changed, and none let through that is slower."""
    assert answers("white", COUNT, spread=0.08).count("slower") <= max(1, COUNT // 60)
    assert answers("white", COUNT, spread=0.08, slow=1.10).count("not slower") <= max(1, COUNT // 20)


@pytest.mark.slow
def test_days_that_differ_are_seen_by_sessions() -> None:
    """A shift that the control does not see: sessions of five days show how large they are."""
    assert answers("white", COUNT, spread=0.04, days=5, seen=False).count("slower") <= max(1, COUNT // 60)


@pytest.mark.slow
def test_what_the_assumption_costs() -> None:
    """A shift that neither the control nor another session shows is taken for the bundle's, as the module says."""
    rng = np.random.default_rng(3)
    found = [answer(rng, [session(rng, "white")], session(rng, "white", 1.12, seen=False)) for _ in range(20)]
    assert found.count("slower") >= 18


def test_the_floor_is_the_largest_of_its_parts() -> None:
    def day(level: float, control: float, last: float = 1.0) -> Session:
        turns = [[level * (last if index >= 30 else 1.0)] * 3 for index in range(TURNS)]
        return Session("2026-11-26", turns, [control] * TURNS)

    def floor(*days: Session, control: float = 1.0) -> float:
        found = Baseline({}, "b", "d", {}, list(days)).floor([control] * 5)
        assert found["typical"] == found["tail"]
        return math.expm1(found["typical"])

    assert floor(day(1, 1)) == 0
    assert floor(day(1, 1, last=1.2)) == pytest.approx(0.2)
    assert floor(day(1, 1), day(1.3, 1)) == pytest.approx(0.3)
    assert floor(day(1, 1), control=0.8) == pytest.approx(0.25)
    assert floor(day(1, 1, last=1.2), day(1.1, 1), control=1.05) == pytest.approx(0.2)


def rounds(slowdown: float, count: int = 40) -> list[dict[str, float]]:
    return [dict.fromkeys(STATISTICS, math.log1p(slowdown))] * count


@pytest.mark.parametrize(
    ("slowdown", "floor", "said"),
    [
        (0.00, 0.00, "not slower"),
        (0.00, 0.04, "not slower"),
        (0.00, 0.06, None),
        (0.03, 0.04, None),
        (0.10, 0.04, "slower"),
        (0.10, 0.06, None),
        (-0.10, 0.06, "not slower"),
    ],
)
def test_the_floor_stands_between(slowdown: float, floor: float, said: str | None) -> None:
    found = judge(rounds(slowdown), Rule(), dict.fromkeys(STATISTICS, math.log1p(floor)))
    assert (found.answer if found else None) == said
    if found:
        assert found.estimates["typical"].slowdown == pytest.approx(slowdown)
        assert f"the machine itself moves by {floor:.1%}" in found.reason


# ---------------------------------------------------------------- files and conditions


@pytest.fixture(scope="module")
def counted() -> Counts:
    return count(STORED, FP32, 2)


@pytest.fixture
def stored(tmp_path: Path, counted: Counts) -> Path:
    """A baseline of this machine, its times made up: every call takes 10 ms, and every control what it takes here."""
    here, control = conditions(Bundle.open(STORED), FP32, 2, TURN_S), control_ms()
    held = Session("2026-11-26T12:00:00+00:00", [[10.0, 10.0, 10.0]] * TURNS, [control] * TURNS)
    Baseline(here, "a bundle", "0" * 64, counted, [held]).write(tmp_path / "b.json")
    return tmp_path / "b.json"


def edit(path: Path, **changes: Any) -> None:
    entry = json.loads(path.read_text())
    entry["conditions"] |= changes
    path.write_text(json.dumps(entry))


def steady(ms: float) -> Any:
    return lambda side, batch, seconds: [ms, ms, ms]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, stored: Path) -> None:
    """The control takes what it took: other tests run beside."""
    then = Baseline.read(stored).sessions[0].control_ms[0]
    monkeypatch.setattr(baseline, "control_ms", lambda: then)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_turns_are_judged_against_it(stored: Path) -> None:
    for ms, said in ((10.4, "not slower"), (11.0, "slower")):
        found = judge_against(stored, SIDE, 2, turn=steady(ms))
        assert (found.answer, found.different, found.more) == (said, [], [])
        entry = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert (entry["schema"], entry["answer"]) == ("mpmmu-judgement/1", said)
        assert len(entry["samples_ms"]) == len(entry["control_ms"]) == entry["rounds"]
    found = judge_against(stored, SIDE, 2, turn=steady(10.0), budget_s=1e-9)
    assert (found.answer, found.turns, found.verdict.reason) == ("cannot tell", [], "no turn fits into the budget")


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_all_that_the_baseline_holds_may_not_be_enough(stored: Path) -> None:
    taken = itertools.cycle([10.4, 10.6])
    found = judge_against(stored, SIDE, 2, turn=lambda side, batch, seconds: [next(taken)])
    assert (found.answer, found.verdict.rounds) == ("cannot tell", TURNS)
    assert "40 turns, all that the baseline holds, in" in found.verdict.reason


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_other_conditions_make_it_a_tripwire(stored: Path) -> None:
    edit(stored, processor="another", **{"numpy version": "1.0"})
    for ms, said, code in ((12.0, "no alarm", 0), (14.0, "far slower", 4)):
        found = judge_against(stored, SIDE, 2, allow_different=True, turn=steady(ms))
        assert (found.answer, baseline.EXIT_CODES[found.answer]) == (said, code)
        assert found.rule.max_slowdown == 0.25
        assert found.floor == {}  # of another machine it is not known, and not nothing
        assert "moves by" not in found.verdict.reason
    assert [one.partition(" → ")[0] for one in found.different] == ["processor another", "numpy version 1.0"]
    wide = judge_against(stored, SIDE, 2, rule=Rule(0.1), allow_different=True, turn=steady(14.0))
    assert (wide.rule.max_slowdown, wide.answer) == (0.5, "no alarm")
    widest = judge_against(stored, SIDE, 2, rule=Rule(gate.MOST_SLOWDOWN), allow_different=True, turn=steady(14.0))
    assert widest.rule.max_slowdown == gate.MOST_SLOWDOWN


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 32}, "batch 32 → 2"),
        ({"threads": 99}, "threads 99 → "),
        ({"target": "openvino:int8"}, "target openvino:int8 → onnxruntime:fp32"),
        ({"processor": "Abacus"}, "processor Abacus → "),
        ({"processor_features": "avx1024"}, "processor_features avx1024 → "),
        ({"onnxruntime version": "1.0"}, "onnxruntime version 1.0 → "),
        ({"torch-rt version": "1"}, "torch-rt version 1 → none"),
        ({"system": "Plan 9"}, "system Plan 9 → "),
        ({"python": "2.7"}, "python 2.7 → "),
        ({"gpu": "Voodoo"}, "gpu Voodoo → "),
        ({"held_to": "SSE41"}, "held_to SSE41 → "),
        ({"inputs": []}, "inputs [] → "),
    ],
)
def test_other_conditions_are_refused_with_what_differs(stored: Path, changes: dict[str, Any], said: str) -> None:
    edit(stored, **changes)
    with pytest.raises(UsageError) as caught:
        judge_against(stored, SIDE, 2)
    assert f"was taken under other conditions ({said}" in str(caught.value)
    way = "measure what it was taken of" if changes.keys() & set(WHAT) else "pass --allow-different, which only sees"
    assert way in caught.value.hint


@pytest.mark.parametrize("name", ["DNNL_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "NVIDIA_TF32_OVERRIDE"])
def test_what_the_environment_holds_computation_to_is_a_condition(
    stored: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(name, "17")
    with pytest.raises(UsageError, match=r"was taken under other conditions \(held_to .*17"):
        judge_against(stored, SIDE, 2)


@pytest.mark.parametrize("changes", [{"batch": 32}, {"target": "openvino:int8"}, {"inputs": ["of 512 x 512"]}])
def test_of_something_else_there_is_no_tripwire(stored: Path, changes: dict[str, Any]) -> None:
    """A batch of 1 is no alarm beside one of 32, and says nothing."""
    edit(stored, processor="another", **changes)
    with pytest.raises(UsageError, match=f"{next(iter(changes))} .* → ") as caught:
        judge_against(stored, SIDE, 2, allow_different=True, turn=steady(1.0))
    assert "--allow-different is for another machine or version" in caught.value.hint


def test_another_bundle_or_version_of_this_package_is_what_is_judged() -> None:
    here = conditions(Bundle.open(STORED), FP32, 2, TURN_S)
    assert not [name for name in here if "mpmmu" in name or "digest" in name]
    assert "numpy version" in here
    assert differences(here, here) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_counts_are_judged_too(stored: Path, tmp_path: Path) -> None:
    entry = json.loads(stored.read_text())
    entry["counts"]["parameters.head"] -= 100
    stored.write_text(json.dumps(entry))
    found = judge_against(stored, SIDE, 2, turn=steady(10.0))
    assert ([one.name for one in found.more], found.answer) == (["parameters.head"], "not slower")
    assert not judge_against(stored, SIDE, 2, allow_counts={"parameters": 0.05}, turn=steady(10.0)).more


@pytest.mark.slow
def test_sessions_are_added_to_the_same_bundle_under_the_same_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first turn is a real one, a short one."""
    monkeypatch.setattr(baseline, "MOST_TURNS", FEWEST_TURNS)
    path, taken = tmp_path / "b.json", []

    def short(side: Side, batch: int, seconds: float) -> list[float]:
        taken.append(seconds)
        return take_turn(side, batch, 0.01) if len(taken) == 1 else [5.0, 6.0, 7.0]

    first = save(path, SIDE, 1, budget_s=60, turn=short)
    assert len(first.sessions[0].turns) == FEWEST_TURNS == len(taken)
    assert min(first.sessions[0].turns[0]) > 0
    second = save(path, SIDE, 1, budget_s=60, turn=short)
    assert [one.turns for one in Baseline.read(path).sessions] == [one.turns for one in second.sessions]
    assert (len(second.sessions), second.sessions[0]) == (2, first.sessions[0])
    with pytest.raises(UsageError, match=r"other conditions \(batch 1 → 2\), expected the same to add a session"):
        save(path, SIDE, 2, budget_s=60, turn=short)
    other = Path(shutil.copytree(STORED, tmp_path / "c.bundle"))
    seal(other, {**Bundle.open(STORED).entry, "name": "another"})
    with pytest.raises(UsageError, match=r"other conditions \(bundle [0-9a-f]{12} → [0-9a-f]{12}\)"):
        save(path, replace(SIDE, path=other), 1, budget_s=60, turn=short)


@pytest.mark.slow
def test_the_largest_baseline_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest calls, of which a turn has 5,000; of one session, as the others are as large."""
    monkeypatch.setattr(baseline, "control_ms", lambda: 12.34567890123)
    most = Effort().max_samples
    found = save(tmp_path / "b.json", SIDE, 1, budget_s=60, turn=lambda side, batch, seconds: [0.2123456789] * most)
    size = (tmp_path / "b.json").stat().st_size
    assert len(found.sessions[0].turns) == MOST_TURNS
    assert MOST_SESSIONS * size < MAX_JSON_BYTES
    assert Baseline.read(tmp_path / "b.json").sessions == found.sessions


@pytest.mark.slow
def test_a_budget_that_is_too_short_is_told_with_one_that_is_not(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["bench", str(STORED), "--batch", "1", "--save", str(tmp_path / "b"), "--budget", "1"]
    )
    assert done.exit_code == 2
    assert f"{FEWEST_TURNS} turns don't fit into 1 s" in done.output
    assert 5 < int(done.output.partition("hint: --budget ")[2].strip().removesuffix("s")) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_what_it_found(stored: Path) -> None:
    """Real turns take less than 10 ms: no alarm, or no answer within the budget."""
    edit(stored, system="Plan 9")
    arguments = ["bench", str(STORED), "--batch", "2", "--baseline", str(stored), "--budget", "6s"]
    done = CliRunner().invoke(app, [*arguments, "--allow-different"])
    assert (done.exit_code, "no alarm: " in done.output) in ((0, True), (5, False)), done.output
    assert f"counts: all {len(Baseline.read(stored).counts)} are the same" in done.output
    assert "under other conditions (system Plan 9 → " in done.output
    rows = [line.split()[-1] for line in done.output.splitlines() if line.startswith(("typical ", "tail "))]
    assert rows in (["-", "-"], [])
    assert "not slower" not in done.output
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_one_of_both(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(STORED), "--save", "x", "--baseline", "y"])
    assert done.exit_code == 2
    assert "--save and --baseline are both given" in done.output
