"""What a ledger says of given times. What targets run here is stood in for by which are installed."""

from __future__ import annotations

import sys

import pytest

from mpmmu_rt.cli._bench_text import _ledger
from mpmmu_rt.engines import known_engine
from mpmmu_rt.facts import FASTER_ENCODERS, faster_encoders
from mpmmu_rt.ledger import advice, ledger
from mpmmu_rt.machine import describe
from mpmmu_rt.spec import Target

ORT, OV, INT8 = (Target.parse(text) for text in ("onnxruntime:fp32", "openvino:fp32", "openvino:int8"))
SLOW_ENCODERS = {"mammography": 60.0, "ultrasound": 36.0, "attention_pool": 2.0, "head": 1.0}
BOTH = "encoders are 96% of a call: twice as fast there is 1.92 times in all"


def test_means_add_up() -> None:
    found = ledger([10.0, 20.0], {"encoders": [8.0, 16.0], "head": [1.0, 2.0]}, OV, [])
    assert (found.total_ms, found.stages_ms) == (15.0, {"encoders": 12.0, "head": 1.5})
    assert found.remainder_ms == pytest.approx(1.5)
    assert found.to_json()["advice"] == found.advice


def test_encoders_of_both_modalities_are_one_part() -> None:
    assert advice(SLOW_ENCODERS, 100.0, ORT, [str(INT8)]).startswith(f"{BOTH}; try --target openvino:int8, which this")


def test_encoders_that_run_at_the_same_time_are_no_more_than_the_call() -> None:
    """On two streams of a GPU: 20 + 13 + 1 + 1 ms in a call of 25."""
    stages = {"mammography": 20.0, "ultrasound": 13.0, "attention_pool": 1.0, "head": 1.0}
    target = Target.parse("onnxruntime-cuda:fp16")
    found = ledger([25.0], {name: [spent] for name, spent in stages.items()}, target, [])
    assert found.remainder_ms == -10.0
    assert found.advice == "encoders are 92% of a call: twice as fast there is 1.85 times in all"
    assert next(line.split()[:4] for line in _ledger(found.to_json(), 1).splitlines() if "time" in line) == (
        ["at", "the", "same", "time"]
    )


def test_the_fastest_target_that_the_bundle_has() -> None:
    assert "try --target openvino:fp32, which" in advice(SLOW_ENCODERS, 100.0, ORT, [str(ORT), str(OV)])
    assert "export it again with --calibrate MANIFEST and try openvino:int8" in advice(SLOW_ENCODERS, 100.0, OV, [])
    usable = [
        one for one in faster_encoders(describe()["cpu_features"]) if not known_engine(one).problem(one.precision)
    ]
    assert advice(SLOW_ENCODERS, 100.0, usable[0], []).endswith("no target that runs here is known to be faster")


def test_what_is_not_installed_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert advice(SLOW_ENCODERS, 100.0, ORT, [str(INT8)]) == f"{BOTH}; no target that runs here is known to be faster"


def test_of_a_gpu_nothing_is_known() -> None:
    assert advice(SLOW_ENCODERS, 100.0, Target.parse("tensorrt:fp16"), [str(INT8)]) == BOTH


def test_a_head_that_is_slow() -> None:
    assert advice({"encoders": 1.0, "head": 3.0}, 4.0, OV, []) == (
        "head is 75% of a call: twice as fast there is 1.60 times in all; "
        "it is where it is known to be fastest: fewer or shallower trees make it faster"
    )


def test_a_head_that_is_faster_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'mpmmu-rt[cpu]'" in advice({"encoders": 1.0, "head": 3.0}, 4.0, OV, [])


def test_the_order_of_targets_is_the_stored_results() -> None:
    assert list(FASTER_ENCODERS)[-1] == ORT
