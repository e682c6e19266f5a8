"""The file of a baseline: each value of its kind or refused, of one bundle and one code, and nobody's writing lost."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpmmu_rt import baseline
from mpmmu_rt.baseline import judge_against, save
from mpmmu_rt.baseline_file import FEWEST_TURNS, HINT, MOST_SESSIONS, MOST_TURNS, Baseline
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.conditions import plain
from mpmmu_rt.errors import BundleError, UsageError

from .test_baseline import SIDE, STORED, counted, edit, quiet, steady, stored  # noqa: F401
from .test_counts import LEAKS

Change = Callable[[dict[str, Any]], object]


def break_json(entry: dict[str, Any], where: str) -> None:
    day = entry["sessions"][0]
    match where:
        case "schema":
            entry["schema"] = "mpmmu-bench/1"
        case "no session":
            entry["sessions"] = []
        case "few turns":
            day["samples_ms"], day["control_ms"] = day["samples_ms"][:15], day["control_ms"][:15]
        case "a turn of nothing":
            day["samples_ms"][3] = []
        case "a time of 0":
            day["samples_ms"][3][1] = 0
        case "no number":
            day["samples_ms"][3][1] = "x"
        case "not finite":
            day["control_ms"][2] = math.inf
        case "fewer controls":
            day["control_ms"].pop()
        case "a list":
            entry["conditions"] = [1]
        case key:
            del entry[key]


@pytest.mark.parametrize(
    "where",
    [
        *("schema", "no session", "few turns", "a turn of nothing", "a time of 0", "no number", "not finite"),
        *("fewer controls", "a list", "conditions", "counts", "sessions", "bundle_digest"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(stored: Path, where: str) -> None:  # noqa: F811
    entry = json.loads(stored.read_text())
    break_json(entry, where)
    stored.write_text(json.dumps(entry))
    with pytest.raises(
        UsageError, match=r"b\.json (is a malformed baseline|has the schema 'mpmmu-bench/1'): ?|expected"
    ):
        judge_against(stored, SIDE, 2)


def day(entry: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = entry["sessions"][0]
    return found


def turns(value: Any) -> Change:
    return lambda entry: day(entry).update(samples_ms=[value] * len(day(entry)["control_ms"]))


def counts(**changes: Any) -> Change:
    return lambda entry: entry["counts"].update(changes)


# Each was judged by, or ended in an internal error.
CHANGES: dict[str, tuple[Change, str]] = {
    "a turn that is a text of digits": (turns("123"), "the times are `123`"),
    "a turn that is a mapping": (turns({"0.4": 1}), "the times are "),
    "a time in quotes": (turns([1.0, "2.5"]), "a time is `2.5` instead of "),
    "a time that is true": (turns([1.0, True]), "a time is `True` instead of "),
    "times whose sum is infinite": (turns([1.7e308] * 40), "instead of 1e-06 to 1e+09 ms"),
    "times of nothing": (turns([5e-324]), "instead of 1e-06 to 1e+09 ms"),
    "a time too large for a float": (turns([10**400]), "instead of 1e-06 to 1e+09 ms"),
    "a control too large": (lambda entry: day(entry)["control_ms"].append(10**400), "instead of 1e-06 to 1e+09 ms"),
    "no counts": (lambda entry: entry.update(counts={}), "the counts are `{}`"),
    "counts of pairs": (lambda entry: entry.update(counts=[["a", 1]]), "the counts are "),
    "a count that is not finite": (counts(threads=float("inf")), "the count `threads` is `inf`"),
    "a count that is no number": (counts(threads=float("nan")), "the count `threads` is `nan`"),
    "a count too large for a float": (counts(threads=10**400), "the count `threads` is "),
    "a count that is true": (counts(threads=True), "the count `threads` is `True`"),
    "a count that is a list": (counts(threads=[1]), "the count `threads` is `[1]`"),
    "conditions of pairs": (lambda entry: entry.update(conditions=[["batch", 2]]), "the conditions are "),
    "a name that is a list": (lambda entry: entry.update(bundle=[1]), "`[1]` is no text"),
    "more sessions than are kept": (
        lambda entry: entry.update(sessions=entry["sessions"] * (MOST_SESSIONS + 1)),
        f"it holds 8 sessions instead of 1 to {MOST_SESSIONS}",
    ),
    "sessions that are no list": (lambda entry: entry.update(sessions={"a": 1}), "it holds `{'a': 1}` sessions"),
    "more turns than are taken": (
        lambda entry: day(entry).update(samples_ms=[[1.0]] * 2000, control_ms=[1.0] * 2000),
        f"2000 turns and 2000 controls instead of {FEWEST_TURNS} to {MOST_TURNS} of both",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_value_of_another_kind_is_refused(stored: Path, what: str) -> None:  # noqa: F811
    change, said = CHANGES[what]
    entry = json.loads(stored.read_text())
    change(entry)
    stored.write_text(json.dumps(entry))
    with pytest.raises(UsageError, match=r"b\.json is a malformed baseline: .*, expected all of") as caught:
        judge_against(stored, SIDE, 2)
    assert said in str(caught.value)
    assert caught.value.hint == HINT


def test_a_key_that_is_there_twice_is_refused(stored: Path) -> None:  # noqa: F811
    """The last of them was judged by, whatever the first said."""
    text = stored.read_text()
    for key in ("sessions", "counts", "threads"):
        value = json.dumps(json.loads(text)["counts"]["threads"] + 9 if key == "threads" else json.loads(text)[key])
        stored.write_text(text.replace(f'"{key}": ', f'"{key}": {value}, "{key}": ', 1))
        with pytest.raises(UsageError, match=rf"b\.json has the key '{key}' twice in one object, expected") as caught:
            judge_against(stored, SIDE, 2)
        assert caught.value.hint == HINT


@pytest.mark.parametrize("held", [{"a": 1}, {"parameters.head": None}, {"operators.head.Add": 3}])
def test_counts_that_judge_nothing_are_refused(stored: Path, held: dict[str, Any]) -> None:  # noqa: F811
    """It was green however the bundle had grown."""
    entry = json.loads(stored.read_text())
    stored.write_text(json.dumps(entry | {"counts": held}))
    with pytest.raises(
        UsageError, match=r"b\.json holds none of the \d+ counts that are judged here, expected"
    ) as caught:
        judge_against(stored, SIDE, 2)
    assert caught.value.hint == HINT


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_file_that_was_changed_is_judged_by_or_refused(
    stored: Path,  # noqa: F811
    counted: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One value, chosen at random, is another: an answer of the gate's, or the two lines of a usage error."""
    monkeypatch.setattr(baseline, "count", lambda *_: counted)  # which was counted in a process of its own
    real = baseline.judge_against
    monkeypatch.setattr("mpmmu_rt.cli._baseline.judge_against", lambda *a, **k: real(*a, **k, turn=steady(10.2)))
    rng, whole, refused = random.Random(3), json.loads(stored.read_text()), 0
    strange: list[Any] = [
        None,
        "text",
        "12.5",
        -1,
        0,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        [],
        {},
        True,
        [0],
        10**400,
    ]
    for index in range(100):
        entry = json.loads(json.dumps(whole))
        place, key = rng.choice(places(entry))
        place[key] = rng.choice(strange)
        stored.write_text(json.dumps(entry))
        arguments = ["bench", str(STORED), "--batch", "2", "--baseline", str(stored), "--budget", "9s", "--json", "-"]
        done = CliRunner().invoke(app, [*arguments, *(["--allow-different"] if index % 2 else [])])
        if done.exit_code == 2:
            refused += 1
            assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
            assert done.stdout == ""
        else:
            assert done.exit_code in (0, 4, 5), done.output
            assert json.loads(done.stdout)["schema"] == "mpmmu-judgement/1"
    assert 10 < refused < 95


def places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))[:3] if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def test_what_a_file_says_does_not_steer_the_terminal(stored: Path) -> None:  # noqa: F811
    entry = json.loads(stored.read_text()) | {"bundle": "\x1b]0;mine\x07\x1b[2J"}
    day(entry)["taken"] = "\x1b[31m2026"
    entry["counts"]["operators.\x1b[2J"] = "\x1b[2J"
    stored.write_text(json.dumps(entry))
    read = Baseline.read(stored)
    shown = [read.bundle, read.sessions[0].taken, *read.counts, *map(str, read.counts.values())]
    assert not [text for text in shown if not text.isprintable()]
    edit(stored, processor="\x1b[2J" + "x" * 10**6)
    with pytest.raises(UsageError, match=r"processor \?\[2Jx") as caught:
        judge_against(stored, SIDE, 2)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert plain("a\tb\u202ec → d") == "a?b?c → d"


# ---------------------------------------------------------------- what a session is added to


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:  # noqa: F811
    monkeypatch.setattr(baseline, "MOST_TURNS", FEWEST_TURNS)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_session_of_another_code_is_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes longer would be taken for what the machine moves by, and what it keeps for what was kept before."""
    path = tmp_path / "mine.json"
    save(path, SIDE, 2, budget_s=60, turn=steady(5.0))
    whole = path.read_text()
    for version, said in (("0.0.1", "mpmmu-rt 0.0.1 → "), ("", "mpmmu-rt unknown → ")):
        path.write_text(json.dumps(json.loads(whole) | {"mpmmu_rt": version}))
        with pytest.raises(UsageError, match=f"other conditions \\({said}.*expected the same to add a session"):
            save(path, SIDE, 2, budget_s=60, turn=steady(5.0))
    path.write_text(whole)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LEAKS.format(python=3, native=0))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(UsageError, match=r"other conditions \(kept\.python_kib 0 → 3"):
        save(path, SIDE, 2, budget_s=60, turn=steady(5.0))
    assert path.read_text() == whole


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_what_others_write_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path, taken = tmp_path / "mine.json", list[int]()

    def beside(*_: object) -> list[float]:
        if not taken:
            save(path, SIDE, 2, budget_s=60, turn=steady(4.0))
        taken.append(1)
        return [5.0]

    with pytest.raises(UsageError, match=r"mine\.json was written while a session for it was taken") as caught:
        save(path, SIDE, 2, budget_s=60, turn=beside)
    assert "the same command again" in caught.value.hint
    assert [one.turns[0] for one in save(path, SIDE, 2, budget_s=60, turn=beside).sessions] == [[4.0] * 3, [5.0]]


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_bundle_that_is_replaced_while_it_is_measured(tmp_path: Path, stored: Path) -> None:  # noqa: F811
    """Turns of two bundles are no session, and no judgement."""
    side = replace(SIDE, path=Path(shutil.copytree(STORED, tmp_path / "a.bundle")))
    names = iter(("second", "third"))

    def replacing() -> Callable[..., list[float]]:
        drawn = iter([next(names)])

        def turn(*_: object) -> list[float]:
            for name in drawn:
                seal(side.path, {**Bundle.open(side.path).entry, "name": name})
            return [10.0]

        return turn

    with pytest.raises(BundleError, match=r"a\.bundle was replaced by another bundle while it was measured") as caught:
        save(tmp_path / "new.json", side, 2, budget_s=60, turn=replacing())
    assert caught.value.hint
    assert not (tmp_path / "new.json").exists()
    with pytest.raises(BundleError, match="was replaced by another bundle"):
        judge_against(stored, side, 2, turn=replacing())
