"""All targets of a bundle in one table: ranked, recommended for a reason, and what can't run says why."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt.bench import bench
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.choice import choose_target
from mpmmu_rt.cli import app
from mpmmu_rt.cli._bench_text import describe
from mpmmu_rt.latency import Effort
from mpmmu_rt.report_html import page
from mpmmu_rt.spec import Array, Target
from mpmmu_rt.survey import TURNS, Timed, recommend, survey


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def row(target: str, median_ms: float | None, *, proven: bool = True) -> Timed:
    return Timed(
        target, proven, 1, 200, median_ms, 1e3 / median_ms if median_ms else None, 9, "" if median_ms else "no"
    )


def test_every_target_that_runs_is_timed_and_the_fastest_comes_first(bundle_folder: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    found = survey(Bundle.open(bundle_folder), 3, seconds=0.01, progress=lambda *said: seen.append(said[:4]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rows = {one["target"]: one for one in found["rows"]}
    assert set(rows) == set(Bundle.open(bundle_folder).targets) == {"onnxruntime:fp32", "openvino:fp32"}
    assert [one["median_ms"] for one in found["rows"]] == sorted(one["median_ms"] for one in found["rows"])
    for one in found["rows"]:
        assert one["n"] >= 3 * TURNS
        assert one["pairs_per_s"] == pytest.approx(3 / one["median_ms"] * 1e3)
        assert (one["proven"], one["flipped"], one["problem"]) == (True, 0, "")
    assert found["recommended"] == {"exact": found["rows"][0]["target"], "rounding": None}
    assert {(name, unit) for name, _, _, unit in seen} == {("all targets in turn", "turns")}
    assert all(0 <= done <= total for _, done, total, _ in seen)


def test_what_cannot_run_says_why(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    *_, last = survey(Bundle.open(bundle_folder), 2, seconds=0.01)["rows"]
    assert (last["target"], last["median_ms"], last["n"]) == ("openvino:fp32", None, 0)
    assert "needs the package `openvino`" in last["problem"]


def test_fast_but_wrong_is_no_candidate(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Array] = {name: vectors[name] for name in vectors.files}
    golden["probability"][1] += 0.01
    with path.open("wb") as file:
        np.savez(file, **golden)  # type: ignore[arg-type]
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    found = survey(Bundle.open(folder), 3, seconds=0.01)
    assert found["recommended"] == {"exact": None, "rounding": None}
    assert all("was fast but wrong" in one["problem"] for one in found["rows"])


@pytest.mark.parametrize(
    ("rows", "exact", "rounding"),
    [
        ([row("openvino:int8", 1), row("openvino:fp32", 2)], "openvino:fp32", "openvino:int8"),
        ([row("openvino:fp32", 1), row("openvino:bf16", 2)], "openvino:fp32", None),
        ([row("tensorrt:fp16", 1, proven=False), row("onnxruntime:fp32", 2)], "onnxruntime:fp32", None),
        ([row("tensorrt:fp32", 1, proven=False), row("openvino:bf16", 2)], None, "openvino:bf16"),
        ([row("onnxruntime:fp32", 3), row("openvino:fp32", None)], "onnxruntime:fp32", None),
        ([], None, None),
    ],
)
def test_recommended_is_what_was_proven(rows: list[Timed], exact: str | None, rounding: str | None) -> None:
    assert recommend(rows) == {"exact": exact, "rounding": rounding}


@pytest.fixture(scope="module")
def entry(bundle_folder: Path) -> dict[str, Any]:
    return bench(bundle_folder, Target.parse("onnxruntime:fp32"), 2, effort=Effort(1, 5, 6, 200, 1)).entry


def test_a_document_of_one_target_has_no_others(entry: dict[str, Any]) -> None:
    assert entry["targets"] is None
    assert "all targets" not in describe(entry)
    assert "All targets" not in page(entry)


@pytest.mark.parametrize("columns", [80, 40])
def test_the_table_and_what_it_recommends(entry: dict[str, Any], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [row("openvino:int8", 2.0), row("tensorrt:fp16", 3.0, proven=False), row("openvino:fp32", 5.0)]
    rows = [*rows, replace(row("tensorrt-rtx:fp16@86", None), problem="there is no GPU, as far as one can see")]
    targets = {"rows": [asdict(one) for one in rows], "recommended": recommend(rows)}
    whole = entry | {"targets": targets, "conditions": entry["conditions"] | {"state": "unstable"}}
    text = describe(whole, "model.bundle")
    assert [line for line in text.splitlines() if len(line) > columns and " " in line.strip()] == []
    said = " ".join(text.split())
    assert "tensorrt-rtx:fp16@86 can't run here: there is no GPU, as far as one can see" in said
    assert "recommended: --target openvino:fp32, the fastest that is proven and computes in FP32" in said
    assert "--target openvino:int8: 2.5 times as fast; at export it flipped 1 of 200 decisions" in said
    assert "`mpmmu-rt verify model.bundle MANIFEST --target openvino:int8`" in said
    assert "built and never run before" in said
    assert said.endswith("the machine was not stable: measure again before you decide")
    calm = describe(whole | {"conditions": entry["conditions"] | {"state": "stable"}})
    assert "measure again" not in calm
    table = said.partition("all targets, batch 2")[2]
    assert table.index("openvino:int8") < table.index("tensorrt:fp16") < table.index("openvino:fp32")
    assert "All targets" in page(whole)


@pytest.mark.slow
def test_bench_shows_all_where_none_is_named(bundle_folder: Path) -> None:
    options = ("--batch", 2, "--seconds", 0.1, "--idle", "none", "--json", "-")
    every, one = (
        json.loads(call("bench", bundle_folder, *options, *more).stdout) for more in ([], ["--target", "openvino:fp32"])
    )
    assert (every["target"], one["target"]) == (str(choose_target(bundle_folder).target), "openvino:fp32")
    assert (one["chosen"], one["targets"]) == (None, None)
    assert {found["target"] for found in every["targets"]["rows"]} == {"onnxruntime:fp32", "openvino:fp32"}
