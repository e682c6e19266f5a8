"""The script of the GPU evidence, on the simulated GPU: its figures are no times, but every line of it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import device_path
from mpmmu_rt.bench import tile
from mpmmu_rt.errors import ParityError
from mpmmu_rt.predictor import load
from mpmmu_rt.spec import Target

RTX = Target("tensorrt-rtx", "fp32")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_path, "BATCHES", (1, 40))  # 40: more than the engines take at once
    monkeypatch.setattr(device_path, "ROUNDS", 2)
    monkeypatch.setattr(device_path, "WARM_UP", 1)


def test_every_variant_is_compared_and_measured(plug: Callable[..., Any]) -> None:
    bundle = plug().target.bundle
    pixels = tile(bundle.golden(), 40)
    with load(bundle.path) as predictor:
        want = predictor.predict(pixels).probability
    found = device_path.of_target(bundle, RTX, pixels, want)
    assert set(found) == {"1", "40"}
    for rows in found.values():
        assert list(rows) == list(device_path.VARIANTS)
        for row in rows.values():
            assert 0 <= row["max_difference"] < 1e-4
            assert 0 < row["wall_p50_ms"] <= row["wall_p99_ms"]
        ledger = rows["device path, no graph"]["stages_ms"]
        assert {"mammography", "ultrasound", "attention_pool", "head", "transfers"} <= set(ledger)
        assert "device" in rows["device path, CUDA graph"]["stages_ms"]
    text = device_path.markdown(
        {
            "gpu": "simulated",
            "date": "",
            "commit": "",
            "rounds": 2,
            "bundle": {"name": bundle.name, "digest": bundle.digest},
            "targets": json.loads(json.dumps({str(RTX): found, "tensorrt:fp16": {"not_run": "no TensorRT"}})),
        }
    )
    assert text.count("tensorrt-rtx:fp32") == 6
    assert "*not measured*: no TensorRT" in text
    with pytest.raises(ParityError, match="expected at most"):
        device_path.of_target(bundle, RTX, pixels, np.flip(want) + np.float32(0.01))


def test_without_the_kernel_the_row_says_so(plug: Callable[..., Any]) -> None:
    bundle = plug(cupy=False).target.bundle
    pixels = tile(bundle.golden(), 40)
    with load(bundle.path) as predictor:
        want = predictor.predict(pixels).probability
    with pytest.warns(RuntimeWarning, match="without the fused attention pool"):
        found = device_path.of_target(bundle, RTX, pixels, want)
    assert "device path, CUDA graph: the whole graph ran instead" in next(iter(found["1"]))


def test_overhead_is_over_what_can_t_overlap() -> None:
    stages = {"mammography": 2.0, "ultrasound": 3.0, "attention_pool": 0.5, "head": 0.25, "transfers": 0.25}
    assert device_path.overhead(stages, 4.2) == pytest.approx(0.05)
    assert device_path.overhead({"device": 1.0}, 4.2) is None
