"""The contenders of `benchmarks.cpu.fresh`: each prints the ms of its calls, and all that run here are there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.cpu.fresh import TORCH, commands
from benchmarks.racing import run
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.child import answered


@pytest.mark.slow
def test_every_contender_says_what_its_calls_took(
    bundle_folder: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    found = commands(Bundle.open(bundle_folder), checkpoint_folder, 3, 0.01)
    assert list(found) == [TORCH, "onnxruntime:fp32", "openvino:fp32"]
    for name, command in found.items():
        calls = answered(name, run(command).line, "")
        assert len(calls) >= 3, name
        assert min(calls) > 0, name


@pytest.mark.slow
def test_what_can_not_run_takes_no_part(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert list(commands(Bundle.open(bundle_folder), bundle_folder, 1, 0.01)) == [TORCH, "onnxruntime:fp32"]
