"""Bundles of earlier versions open, verify and answer as they did.

`data/bundle_613dfc9` was exported at that commit: ResNet-18 with 4 channels at 32 × 32, untrained, on a processor with
VNNI. What that commit said is in its golden vectors.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.engines import known_engine
from mpmmu_rt.facts import AS_PROVEN_PROBABILITY
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.spec import MODALITIES, Target
from mpmmu_rt.verify import verify

BEFORE = Path(__file__).parent / "data" / "bundle_613dfc9"
TARGETS = ("onnxruntime:fp32", "openvino:fp32", "openvino:int8", "onnxruntime-cuda:fp16", "tensorrt:fp16")
DIGEST = "91d19744dbe3e2e00389f66d78289f066ee8e6c68134b7d084e8223b8afe5272"


def test_it_opens_and_says_the_same_of_itself() -> None:
    bundle = Bundle.open(BEFORE)
    assert bundle.digest == DIGEST
    assert bundle.targets == TARGETS
    assert bundle.preprocessing == Preprocessing(32, "pad", "stored")  # pixels as they are stored, as it was trained
    assert (bundle.threshold, bundle.trained) == (0.4, True)
    described = CliRunner().invoke(app, ["inspect", str(BEFORE)])
    assert described.exit_code == 0, described.stderr
    assert "decisions flipped" in described.stdout
    assert "ΔAUC -0.1333" in described.stdout  # it holds the loss, +0.1333
    assert "0.0000" not in described.stdout


def test_a_later_one_with_more_keys_and_another_engine_opens(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BEFORE, tmp_path / "later.bundle"))
    entry = json.loads((folder / "bundle.json").read_text())
    more = {"of_tomorrow": {"x": 1}, "targets": [*entry["targets"], "quantum:fp32"]}
    seal(folder, {key: value for key, value in (entry | more).items() if key != "sha256"})
    assert Bundle.open(folder).entry["of_tomorrow"] == {"x": 1}
    said = CliRunner().invoke(app, ["inspect", str(folder)])
    assert said.exit_code == 0, said.stderr
    assert re.search(r"^quantum:fp32 +unknown to this version$", said.stdout, re.MULTILINE)
    with load(folder) as predictor:
        assert predictor.bundle.trained


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[:3])
def test_it_verifies_and_answers_as_before(target: str) -> None:
    with load(BEFORE, target) as predictor:
        assert [check.name for check in verify(predictor) if not check.passed] == []
        golden = predictor.bundle.golden()
        said = predictor.predict({modality: golden[f"{modality}.pixels"] for modality in MODALITIES})
        want = golden if target.endswith("fp32") else predictor.bundle.golden_of(predictor.target, golden)
    # INT8: as far as single codes may go that lie next to a step, on a processor that sums in another order.
    tolerance = 1e-5 if target.endswith("fp32") else AS_PROVEN_PROBABILITY
    np.testing.assert_allclose(said.probability, want["probability"], atol=tolerance)


@pytest.mark.parametrize("target", TARGETS[3:])
def test_its_graphs_for_gpus_are_found_where_they_were(target: str) -> None:
    bundle, wanted = Bundle.open(BEFORE), Target.parse(target)
    for modality in MODALITIES:
        graph = known_engine(wanted).graph(bundle, modality, wanted.precision)
        assert graph == BEFORE / f"engines/{target.replace(':', '-')}/{modality}.onnx"
        assert graph.is_file()
