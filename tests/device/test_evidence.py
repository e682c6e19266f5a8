"""The script of the GPU evidence, on the simulated GPU: its figures are no times, but every line of it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import device_path
from mpmmu_rt.spec import Target

RTX = Target("tensorrt-rtx", "fp32")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_path, "BATCHES", (1, 40))  # 40: more than the engines take at once
    monkeypatch.setattr(device_path, "ROUNDS", 2)
    monkeypatch.setattr(device_path, "WARM_UP", 1)


def test_every_variant_is_compared_and_measured(plug: Callable[..., Any]) -> None:
    bundle = plug().target.bundle
    found = device_path.of_target(bundle, RTX, device_path.Cases.drawn(bundle))
    assert list(found) == ["1", "40"]
    for rows in found.values():
        assert list(rows) == list(device_path.VARIANTS)
        for row in rows.values():
            assert 0 <= row["max_difference"] < 1e-4
            assert 0 < row["max_embedding"] < 1e-4
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


@pytest.mark.parametrize("fault", ["pixels of the first call", "every part is the first", "other embeddings"])
def test_what_is_fast_but_wrong_is_found(plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    bundle = plug().target.bundle
    cases, first = device_path.Cases.drawn(bundle), []
    original = device_path.variants

    def variants(*given: Any) -> dict[str, Any]:
        name, call = next(iter(original(*given).items()))

        def wrong(pixels: device_path.Pixels) -> Any:
            first.append(pixels)
            if fault == "pixels of the first call":
                same = [one for one in first if len(one["ultrasound"]) == len(pixels["ultrasound"])]
                return call(same[0])
            got, spent = call(pixels)
            if fault == "other embeddings":
                return got | {"embedding": np.roll(got["embedding"], 1, 1)}, spent
            return {key: np.resize(array[:32], array.shape) for key, array in got.items()}, spent

        return {name: wrong}

    monkeypatch.setattr(device_path, "variants", variants)
    found = device_path.of_target(bundle, RTX, cases)
    assert found["failed"].startswith("ParityError: device path, CUDA graph, batch ")
    report = {"gpu": "", "date": "", "commit": "", "rounds": 2, "bundle": {"name": "", "digest": ""}}
    assert "**failed**" in device_path.markdown({**report, "targets": {"x": found}})


def test_without_the_kernel_the_row_says_so(plug: Callable[..., Any]) -> None:
    bundle = plug(cupy=False).target.bundle
    with pytest.warns(RuntimeWarning, match="without the fused attention pool"):
        found = device_path.of_target(bundle, RTX, device_path.Cases.drawn(bundle))
    assert "device path, CUDA graph: the whole graph ran instead" in next(iter(found["1"]))


def test_overhead_is_over_what_can_t_overlap() -> None:
    stages = {"mammography": 2.0, "ultrasound": 3.0, "attention_pool": 0.5, "head": 0.25, "transfers": 0.25}
    assert device_path.overhead(stages, 4.2) == pytest.approx(0.05)
    assert device_path.overhead({"device": 1.0}, 4.2) is None
