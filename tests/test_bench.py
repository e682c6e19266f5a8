"""bench: what is in its document, and that speed without the right answer is an error. No time is judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.bench import bench
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli._bench_text import describe
from mpmmu_rt.errors import BundleError, EngineError, UsageError
from mpmmu_rt.latency import Effort
from mpmmu_rt.spec import MODALITIES, Array, Target
from mpmmu_rt.tiles import tile

from .changed import seldom

SHORT = Effort(warmup_ms=1, measure_ms=5, min_samples=6, max_samples=200, max_warmup_ms=1)
FP32 = Target("onnxruntime", "fp32")


@pytest.mark.slow
def test_the_document(bundle_folder: Path) -> None:
    seen: list[str] = []
    entry = bench(
        bundle_folder,
        FP32,
        7,
        effort=SHORT,
        idle_s=(0, 0.01),
        batches=(1, 2),
        progress=lambda text, *more: seen.append(text),
    ).entry
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert (entry["schema"], entry["target"], entry["batch"]) == ("mpmmu-bench/2", "onnxruntime:fp32", 7)
    latency = entry["latency_ms"]
    assert len(entry["samples_ms"]) == latency["n"] >= 6
    assert latency["mean"] == pytest.approx(np.mean(entry["samples_ms"]))
    assert latency["p50"] == pytest.approx(np.median(entry["samples_ms"]))
    assert latency["p999"] is None
    assert entry["throughput_pairs_per_s"] == pytest.approx(7 / latency["mean"] * 1e3)
    assert tuple(entry["stages_ms"]) == ("mammography", "ultrasound", "attention_pool", "head", "checks")
    assert min(entry["stages_ms"].values()) > 0
    assert entry["bundle_digest"] == Bundle.open(bundle_folder).digest
    assert entry["bundle"]["trained"] is True
    assert entry["bundle"]["parity"]["passed"] is True
    assert entry["peak_rss_bytes"] > 2**20
    assert entry["cold_start_ms"] == entry["cold_start"]["total_ms"]
    assert entry["conditions"]["machine"] == entry["machine"]
    assert entry["conditions"]["state"] in ("stable", "unstable")
    assert entry["conditions"]["warmup"]["calls"] >= 2
    assert [gap["seconds"] for gap in entry["idle"]["gaps"]] == [0, 0.01]
    assert [step["batch"] for step in entry["sweep"]["steps"]] == [1, 2]
    assert entry["sweep"]["knee"] in (1, 2)
    for said in ("from 7 pixel pairs", "warm-up of ", "excludes decoding", " thread"):
        assert said in entry["contract"]
    assert list(dict.fromkeys(seen)) == ["cold start", "measuring", "idle", "sweep"]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "batch"), [("onnxruntime:fp32", 8), ("openvino:fp32", 32)])
def test_the_parts_explain_the_total_within_two_percent(bundle_folder: Path, target: str, batch: int) -> None:
    """Of calls of a few ms, shorter than any real model's. Beside other tests one may wait between any two stages: the
    best of three."""
    effort = Effort(warmup_ms=20, measure_ms=100, max_warmup_ms=0)
    left: dict[str, list[float]] = {"ledger": [], "cold_start": []}
    for _ in range(3):
        entry = bench(bundle_folder, Target.parse(target), batch, effort=effort).entry
        for name, rests in left.items():
            rests.append(entry[name]["remainder_ms"] / entry[name]["total_ms"])
        assert sum(entry["ledger"]["stages_ms"].values()) < entry["ledger"]["total_ms"]
        if max(min(rests) for rests in left.values()) <= 0.02:
            break
    assert {name: min(rests) <= 0.02 for name, rests in left.items()} == dict.fromkeys(left, True), left


def test_tiling_repeats_the_golden_pairs_in_order(bundle_folder: Path) -> None:
    golden = Bundle.open(bundle_folder).golden()
    for batch in (1, 4, 7):
        pixels = tile(golden, batch)
        for modality in MODALITIES:
            assert pixels[modality].shape == (batch, 1, 48, 48)
            for row in range(batch):
                np.testing.assert_array_equal(pixels[modality][row], golden[f"{modality}.pixels"][row % 4])


def test_fast_but_wrong_is_an_error(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Array] = {name: vectors[name] for name in vectors.files}
    golden["probability"][2] += 0.01
    with path.open("wb") as file:
        np.savez(file, **golden)  # type: ignore[arg-type]
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with pytest.raises(EngineError, match=r"was fast but wrong: golden probabilities differ by 0\.0\d+"):
        bench(folder, FP32, 3, effort=SHORT)


@pytest.mark.slow
def test_every_answer_is_held_to_the_golden_ones(tmp_path: Path) -> None:
    """Of a target that is wrong in one call of 50 the last call is right, as good as always."""
    many = replace(SHORT, min_samples=500, max_samples=500)
    with pytest.raises(EngineError, match="was fast but wrong"):
        bench(seldom(tmp_path / "seldom.bundle"), FP32, 1, effort=many)


def test_a_damaged_bundle_is_not_measured(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    (folder / "onnx/head.onnx").unlink()
    with pytest.raises(BundleError):
        bench(folder, FP32, 1, effort=SHORT)


@pytest.mark.parametrize(
    "wrong", [{"idle_s": (-1,)}, {"idle_s": (float("nan"),)}, {"batches": (0,)}, {"batches": (9999,)}]
)
def test_what_makes_no_sense_is_refused_before_anything_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        bench(Path("no.bundle"), FP32, 1, **wrong)


@pytest.fixture(scope="module")
def entry(bundle_folder: Path) -> dict[str, Any]:
    return bench(bundle_folder, FP32, 2, effort=SHORT, idle_s=(0, 0.01), batches=(1, 2)).entry


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_text_fits_the_terminal(entry: dict[str, Any], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = describe(entry)
    assert max(len(line) for line in text.splitlines() if " " in line.strip()) <= columns
    for said in ("pairs/s", "head", "open and digests", "silence", "knee", "stable: ", "measured: ", "peak memory"):
        assert said in text
    assert ("p99.9 ms: -" if columns == 40 else "p99.9 ms  mean ms") in text


def test_the_text_says_what_a_percentile_takes(entry: dict[str, Any]) -> None:
    few = {"p50": 2.0, "p90": None, "p99": None, "p999": None, "mean": 100.0, "n": 12}
    text = " ".join(describe(entry | {"latency_ms": few}).split())
    assert "-: 12 samples do not tell: p90 takes 36 (--seconds 4), p99 takes 368 (--seconds 37)" in text
    text = " ".join(describe(entry | {"latency_ms": few | {"mean": 1000.0}}).split())
    assert "p99 takes 368 (--seconds 368), p99.9 takes 3688 (more than can be had here)" in text
