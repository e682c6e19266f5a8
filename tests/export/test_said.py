"""What a bundle and its graphs say of the model on their own, and what users may say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import mpmmu_rt
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import UsageError
from mpmmu_rt.export import Wanted, export_bundle
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.spec import Target


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 3, 5, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.conv(pixels.float() / 255).mean((2, 3))
        return out


def custom() -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    return {
        "mammography": Net(0),
        "ultrasound": Net(1),
        "head": LogisticRegression().fit(x, x[:, 0] > 0),
        "wanted": Wanted((Target("onnxruntime", "fp32"),)),
    }


def props(path: Path) -> dict[str, str]:
    model = onnx.load(str(path), load_external_data=False)
    assert (model.producer_name, model.producer_version) == ("mpmmu-rt", mpmmu_rt.__version__)
    return {item.key.removeprefix("mpmmu_rt."): item.value for item in model.metadata_props}


def test_every_graph_says_what_it_is(tmp_path: Path) -> None:
    card = {"licence": "CC-BY-4.0", "readers": np.int64(3), "auc": np.float32(0.5), "sizes": np.arange(2)}
    card |= {"metrics": {"test": {"auc": 0.87}}}  # not as `train` writes it
    bundle = export_bundle(str(tmp_path / "a.bundle"), **custom(), preprocessing=32, name="ours", card=card)
    assert bundle.entry["card"]["readers"] == 3
    assert (bundle.entry["card"]["auc"], bundle.entry["card"]["sizes"]) == (0.5, [0, 1])
    assert bundle.preprocessing == Preprocessing(size=32)
    found = {graph: props(bundle.path / path) for graph, path in bundle.entry["graphs"].items()}
    assert len(found) == 12
    digests = set()
    for said in found.values():
        assert (said["model"], said["licence"]) == ("ours", "CC-BY-4.0")
        assert "Not a medical device" in said["intended_use"]
        assert "warning" not in said
        digests.add(said["source_sha256"])
    assert len(digests) == 1
    assert "## Licence\n\nCC-BY-4.0\n" in (bundle.path / "MODEL_CARD.md").read_text()
    other = export_bundle(tmp_path / "b.bundle", **(custom() | {"ultrasound": Net(2)}), preprocessing=Preprocessing(32))
    said = props(other.path / other.entry["graphs"]["head"])
    assert said["source_sha256"] not in digests
    assert said["licence"] == other.entry["card"]["license"]
    assert said["licence"].startswith("not stated")


def test_graphs_in_8_bits_say_it_too(int8_folder: Path) -> None:
    """A quantised graph is another graph, and goes the same ways: into a device without its bundle."""
    bundle = Bundle.open(int8_folder)
    quantised = [path for name, path in bundle.entry["graphs"].items() if "int8" in name or "int8" in path]
    assert len(quantised) == 2
    head = props(bundle.path / bundle.entry["graphs"]["head"])
    del head["mpmmu.head"]
    assert "intended_use" in head
    for path in quantised:
        assert props(bundle.path / path) == head


def test_a_bundle_made_twice_is_the_same(tmp_path: Path) -> None:
    first, second = (export_bundle(tmp_path / name, **custom(), preprocessing=32) for name in "ab")
    assert first.entry["files"] == second.entry["files"]


@pytest.mark.parametrize("given", [None, "224", 3.5, True, {"size": 224}])
def test_preprocessing_that_is_none_is_refused_at_once(tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match=r"preprocessing is a .*, expected a Preprocessing or the size"):
        export_bundle(tmp_path / "a.bundle", **custom(), preprocessing=given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), torch.zeros(2), b"bytes"])
def test_a_card_that_is_no_json_is_refused_at_once(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match="the card's `n` can't be written as JSON"):
        export_bundle(tmp_path / "a.bundle", **custom(), preprocessing=32, card={"n": value})
    assert list(tmp_path.iterdir()) == []


def test_what_a_bundle_learnt_from_is_unknown_of_own_modules(tmp_path: Path) -> None:
    bundle = export_bundle(tmp_path / "a.bundle", **custom(), preprocessing=32)
    assert not Bundle.open(bundle.path).known_images.known
