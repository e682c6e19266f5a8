"""Comparisons of real bundles in real processes: what is called slower is, and what can't run is said."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.cli.compare import EXIT_CODES
from mpmmu_rt.compare import Side, Turns, compare, race
from mpmmu_rt.errors import BundleError, EngineError, UsageError
from mpmmu_rt.gate import Rule
from mpmmu_rt.options import duration, share
from mpmmu_rt.spec import Target

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
TARGET = Target.parse("onnxruntime:fp32")
# Has a bundle of that name take three times as long, inside the timed call.
SLOW = """
import sys, time
if any("slow.bundle" in word for word in sys.orig_argv):
    from mpmmu_rt.predictor import Predictor
    original = Predictor.predict
    def predict(self, pixels):
        start = time.perf_counter()
        found = original(self, pixels)
        until = time.perf_counter() + 2 * (time.perf_counter() - start)
        while time.perf_counter() < until:
            pass
        return found
    Predictor.predict = predict
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Side, Side]:
    for name in ("fast.bundle", "slow.bundle"):
        shutil.copytree(STORED, tmp_path / name)
    return Side(tmp_path / "fast.bundle", TARGET), Side(tmp_path / "slow.bundle", TARGET)


@pytest.mark.slow
def test_what_takes_longer_is_called_slower(
    pair: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    found = compare(*pair, 4, rule=Rule(alpha=0.4), turn_s=0.1, budget_s=300)
    assert found.verdict.answer == "slower", found.verdict
    assert found.verdict.estimates["typical"].slowdown > 0.5
    entry = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (entry["schema"], entry["answer"], entry["rounds"]) == ("mpmmu-compare/1", "slower", found.verdict.rounds)
    assert len(entry["samples_ms"]["a"]) == len(entry["samples_ms"]["b"]) == entry["rounds"]
    assert len(entry["samples_ms"]["again"]) == 4
    assert set(entry["noise_floor"]) == {"typical", "tail"}


@pytest.mark.parametrize(("turn_s", "budget_s", "twice"), [(0.0, 60.0, 4), (0.06, 1.0, 1)])
def test_turns_that_are_long_leave_the_budget_to_the_rounds(turn_s: float, budget_s: float, twice: int) -> None:
    """A's second turns take a tenth of the budget at the most, after the first."""
    sides = Side(Path("a"), TARGET), Side(Path("b"), TARGET)

    def turn(side: Side, batch: int, seconds: float) -> list[float]:
        time.sleep(turn_s)
        return [1.0, 1.1] if side is sides[0] else [1.02, 1.12]

    turns, verdict = race(sides, 1, rule=Rule(), budget_s=budget_s, turn=turn)
    assert (verdict.answer, len(turns.again)) == ("not slower", twice)
    assert len(turns.a) == len(turns.b) == 6


@pytest.mark.slow
def test_a_budget_that_ends_can_not_tell(pair: tuple[Side, Side], tmp_path: Path) -> None:
    """Through the command: exit code 5, a table, the raw samples, and what to do."""
    arguments = ["compare", str(pair[0].path), str(pair[1].path), "--batch", "1", "--budget", "1s"]
    done = CliRunner().invoke(
        app, [*arguments, "--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html")]
    )
    assert done.exit_code == 5, done.output
    assert re.search(r"cannot tell: 1 round in \d+ s was not enough", " ".join(done.output.split()))
    entry = json.loads((tmp_path / "found.json").read_text())
    more = re.search(r"--budget (\d+)s gives it more rounds", done.output)
    assert more
    assert int(more[1]) >= max(2, 8 * entry["seconds"])  # in twice the 1 s there is no second round
    assert entry["estimates"]["typical"]["low"] is None
    assert min(entry["samples_ms"]["a"][0]) > 0
    assert "This machine cannot tell" in (tmp_path / "found.html").read_text()
    assert entry["moved"] == []
    assert "A and B are the same bundle, byte by byte: only the machine was compared" in done.output
    assert f"counts: all {len(entry['counts']['a'])} are the same" in done.output


@pytest.mark.slow
def test_a_count_that_grew_is_refused_whatever_the_time_says(pair: tuple[Side, Side], tmp_path: Path) -> None:
    path = pair[1].path
    with (path / "onnx/weights.bin").open("ab") as file:
        file.write(bytes(47270))  # a tenth, rounded down
    seal(path, Bundle.open(STORED).entry)
    arguments = ["compare", str(pair[0].path), str(path), "--batch", "1", "--budget", "1s"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 4, done.output
    assert "--allow-counts bytes.weights" in done.output
    assert "refused: 1 count grew or changed; as for time, cannot tell: " in " ".join(done.output.split())
    assert "byte by byte" not in done.output
    assert ["bytes.weights", "472700", "519970", "+10.0%", "not", "allowed"] in [
        line.split() for line in done.output.splitlines()
    ]
    (one,) = json.loads((tmp_path / "found.json").read_text())["moved"]
    assert one == {"name": "bytes.weights", "a": 472700, "b": 519970, "worse": True}
    assert CliRunner().invoke(app, [*arguments, "--allow-counts", "bytes=10%"]).exit_code == 5


@pytest.mark.slow
def test_a_side_that_can_not_run_ends_it_with_the_reason(pair: tuple[Side, Side]) -> None:
    other = Side(pair[1].path, Target.parse("tensorrt-rtx:fp16"))  # of which the bundle has no engine
    with pytest.raises(EngineError, match=r"slow.bundle on tensorrt-rtx:fp16: the target tensorrt-rtx needs") as error:
        compare(pair[0], other, 1, turn_s=0.05, budget_s=20)
    assert error.value.hint


@pytest.mark.slow
def test_a_side_that_is_replaced_while_it_is_measured(pair: tuple[Side, Side]) -> None:
    """Its turns are of two bundles, and the digest of one."""
    names = iter(["another"])

    def progress(what: str, *_: object) -> None:
        for name in names if what == "taking turns" else ():
            seal(pair[1].path, {**Bundle.open(STORED).entry, "name": name})

    with pytest.raises(
        BundleError, match=r"slow\.bundle was replaced by another bundle while it was measured"
    ) as error:
        compare(*pair, 1, turn_s=0.02, budget_s=1, progress=progress)
    assert error.value.hint


def test_a_bundle_that_is_none_is_told_before_anything_runs(pair: tuple[Side, Side]) -> None:
    (pair[1].path / "bundle.json").write_text("{}")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        compare(*pair, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["A"], "A on onnxruntime:fp32 is compared with itself"),
        (["A", "B", "--max-slowdown", "a bit"], "`a bit` is no share"),
        (["A", "B", "--max-slowdown", "0%"], "max_slowdown is 0 and alpha 0.05"),
        (["A", "B", "--allow-counts", "=5%"], "a count without a name"),
        (["A", "B", "--max-slowdown", "5"], "`5` has no unit and would be 500%"),
        (["A", "B", "--allow-counts", "bytes=5"], "`5` has no unit and would be 500%"),
        (["A", "B", "--budget", "soon"], "`soon` is no duration"),
        (["A", "B", "--budget", "9" * 400], "9` is no duration"),
        (["A", "B", "--target", "onnxruntime:fp8"], "onnxruntime:fp8"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "hint:" in done.output


def test_shares_and_durations() -> None:
    assert [share(text) for text in ("5%", "0.05", "2.5 %", "12%")] == pytest.approx([0.05, 0.05, 0.025, 0.12])
    assert [share(number) for number in (0.05, 0.99)] == [0.05, 0.99]
    assert [duration(text) for text in ("90", "90s", "1.5m", 90, 90.0)] == [90] * 5
    for text in ("", "5%%", "-1%", "1", "5", "1.0", 5, 5.0, "nan"):
        with pytest.raises(UsageError, match="expected a number"):
            share(text)
    for text in ("0", "0.0s", "inf", "9" * 400, "9" * 308 + "m"):
        with pytest.raises(UsageError, match="no duration"):
            duration(text)


def test_a_round_is_the_ratio_of_its_turns() -> None:
    turns = Turns(a=[[1.0, 1.0, 2.0]], b=[[2.0, 2.0, 8.0]], again=[[1.1, 1.1, 1.8]])
    assert turns.logs() == [{"typical": pytest.approx(math.log(2)), "tail": pytest.approx(math.log(4))}]
    assert turns.noise_floor() == {"typical": pytest.approx(0.1), "tail": pytest.approx(2 / 1.8 - 1)}


@pytest.mark.parametrize(("budget", "batch"), [(0.0, 1), (1.0, 0), (math.nan, 1), (math.inf, 1)])
def test_a_comparison_of_nothing(pair: tuple[Side, Side], budget: float, batch: int) -> None:
    with pytest.raises(UsageError, match="expected more than 0 s and at least 1 pair"):
        compare(*pair, batch, budget_s=budget)


def test_every_answer_has_a_code_of_its_own() -> None:
    assert EXIT_CODES == {"not slower": 0, "slower": 4, "cannot tell": 5}
