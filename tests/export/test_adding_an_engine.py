"""A new engine comes in through two doors, one file in the runtime and one in the export, and is then served by all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt import engines, load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cli import app
from mpmmu_rt.export import Data, Limits, Wanted, targets
from mpmmu_rt.export.targets import Family, onnxruntime, onnxruntime_cuda, openvino, tensorrt
from mpmmu_rt.spec import MODALITIES, Target

TOY = Path(__file__).parents[1] / "toy"
FP32, FP16 = Target("toy", "fp32"), Target("toy", "fp16")
# mypy holds each module to the protocol.
FAMILIES: tuple[Family, ...] = (onnxruntime, openvino, onnxruntime_cuda, tensorrt)


@pytest.fixture
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both files in their places, as if they lay there, and the one line in the list."""
    names = {"engine": engines, "family": targets}
    for source, package in names.items():
        folder = tmp_path / source
        folder.mkdir()
        shutil.copy(TOY / f"{source}.py", folder / "toy.py")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setitem(engines._MODULES, "toy", ("mpmmu_rt.engines.toy", "ENGINE"))
    yield
    for package in names.values():
        sys.modules.pop(f"{package.__name__}.toy", None)
        if hasattr(package, "toy"):
            del package.toy


def mpmmu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_engine_has_its_export_side() -> None:
    assert tuple(dict.fromkeys(targets.family(name) for name in engines.engines())) == (
        *(onnxruntime, openvino, tensorrt, onnxruntime_cuda),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_toy")
def test_a_toy_engine_is_exported_verified_and_run(
    finished: Callable[[Wanted], Bundle], few: Data, phantom_manifest: Path, tmp_path: Path
) -> None:
    wide = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
    bundle = finished(Wanted((FP32, FP16), gate=few, limits=wide))
    assert bundle.targets == ("onnxruntime:fp32", "toy:fp32", "toy:fp16")
    reports = bundle.entry["precision"]
    assert reports["toy:fp32"]["decisions_flipped"] == 0
    assert reports["toy:fp16"]["bits"] == 11
    assert reports["toy:fp16"]["mean_difference"] > 0
    assert "engines/toy-fp16/bits.json" in bundle.entry["files"]

    listed = json.loads(mpmmu("doctor", "--json", "-").stdout)["targets"]
    assert [target["usable"] for target in listed if target["name"].startswith("toy:")] == [True, True]
    assert "toy:fp16" in mpmmu("inspect", bundle.path).stdout
    for target in (FP32, FP16):
        verified = mpmmu("verify", bundle.path, "--target", target)
        assert verified.exit_code == 0, verified.stderr
    output = tmp_path / "predictions.csv"
    ran = mpmmu("run", bundle.path, phantom_manifest, "-o", output, "--target", FP16)
    assert ran.exit_code == 0, ran.stderr
    assert len(output.read_text().splitlines()) == 13

    pixels = few.first(12)
    with load(bundle.path) as exact, load(bundle.path, "toy:fp16") as toy:
        want, got = exact.predict(pixels).embedding, toy.predict(pixels).embedding
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-5 < error < 2**-11, "it was the toy that ran"
    assert set(pixels) == set(MODALITIES)


@pytest.mark.slow
@pytest.mark.usefixtures("_toy")
def test_a_toy_that_changes_decisions_is_taken_away_again(
    finished: Callable[[Wanted], Bundle], few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"):
        monkeypatch.delitem(engines._MODULES, name)
    # FP16 comes first, and FP32 opens what is left when it has been taken away.
    limits = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=0)
    bundle = finished(Wanted(gate=few, limits=limits))
    assert bundle.targets == ("onnxruntime:fp32", "toy:fp32")
    assert "toy:fp16 changes decisions" in bundle.entry["precision"]["toy:fp16"]["reason"]
    assert not list(bundle.path.rglob("*toy*"))
