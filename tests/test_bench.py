"""bench: what is in its document, and that speed without the right answer is an error. No time is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.bench import bench, tile
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.errors import BundleError, EngineError
from mpmmu_rt.latency import Effort
from mpmmu_rt.spec import MODALITIES, Array, Target

SHORT = Effort(warmup_ms=1, measure_ms=5, min_samples=6, max_samples=200)
FP32 = Target("onnxruntime", "fp32")


@pytest.mark.parametrize("batch", [1, 7])
def test_the_document(bundle_folder: Path, batch: int) -> None:
    seen: list[str] = []
    entry = bench(bundle_folder, FP32, batch, effort=SHORT, progress=lambda text, done, total: seen.append(text)).entry
    assert set(entry) == {
        *(
            "schema",
            "target",
            "head_target",
            "remarks",
            "batch",
            "latency_ms",
            "throughput_pairs_per_s",
            "stages_ms",
            "contract",
            "machine",
        ),
        *("bundle_digest", "peak_rss_bytes", "cold_start_ms"),
    }
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert (entry["schema"], entry["target"], entry["batch"]) == ("mpmmu-bench/1", "onnxruntime:fp32", batch)
    latency = entry["latency_ms"]
    assert list(latency) == ["p50", "p90", "p99", "mean", "n"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["n"] >= 6
    assert entry["throughput_pairs_per_s"] == pytest.approx(batch / latency["mean"] * 1e3)
    assert tuple(entry["stages_ms"]) == ("mammography", "ultrasound", "attention_pool", "head")
    assert min(entry["stages_ms"].values()) > 0
    assert entry["bundle_digest"] == Bundle.open(bundle_folder).digest
    assert entry["peak_rss_bytes"] > 2**20
    assert entry["cold_start_ms"] > 0
    assert entry["machine"]["threads"] >= 1
    for said in (f"from {batch} pixel pairs", "warm-up 1 ms", "excludes decoding", "threads"):
        assert said in entry["contract"]
    assert list(dict.fromkeys(seen)) == ["cold start", "measuring"]


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


def test_a_damaged_bundle_is_not_measured(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    (folder / "onnx/head.onnx").unlink()
    with pytest.raises(BundleError):
        bench(folder, FP32, 1, effort=SHORT)
