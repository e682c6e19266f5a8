"""Weights to start training from, as people have them on disk."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from mpmmu_rt.cli import app
from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.config import EncoderConfig, tiny
from mpmmu_rt.model.encoder import Encoder, load_backbone
from mpmmu_rt.model.weights import Weights


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """As torchvision's resnet18 of 16 channels would have it: three colours, 1000 classes, no attention."""
    torch.manual_seed(3)
    plain = Encoder(EncoderConfig(arch="resnet18", attention="none", width=16)).state_dict()
    found = {name: value.clone() for name, value in plain.items() if not name.startswith("fc.")}
    found["conv1.weight"] = torch.randn(16, 3, 7, 7)
    found["fc.weight"], found["fc.bias"] = torch.randn(1000, 128), torch.randn(1000)
    return found


def same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> bool:
    return list(got) == list(want) and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 90},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_a_state_dict_is_found_in_what_people_save(state: dict[str, Tensor], tmp_path: Path, wrapped: Any) -> None:
    torch.save(wrapped(state), tmp_path / "w.pth")
    found = Weights.read(str(tmp_path / "w.pth"))
    assert same(found.state, state)
    report = load_backbone(Encoder(tiny().mammography), found.state)
    assert report.summed_to_grey == ("conv1.weight",)


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    assert {name: value.shape for name, value in Weights.read(tmp_path / "w.safetensors").state.items()} == {
        name: value.shape for name, value in state.items()
    }


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harm()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        Weights.read(tmp_path / "w.pth")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        Weights.read(tmp_path / "p.pkl")
    assert not Path("harm-was-done").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", bytes(1000)])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_weights(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Weights.read(tmp_path / name)


@pytest.mark.parametrize("content", [3, [1, 2], {}, {"epoch": 3}, {"state_dict": [torch.zeros(2)]}])
def test_a_file_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="expected names of tensors"):
        Weights.read(tmp_path / "w.pth")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no file, expected weights"):
        Weights.read(tmp_path / "no.pth")


def test_they_are_looked_for_before_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("case_id,mammography,ultrasound,label\na,m.png,u.png,0\n")  # no image is there
    command = ["train", str(tmp_path / "m.csv"), "--weights", str(tmp_path / "no.pth"), "-o", str(tmp_path / "c")]
    done = CliRunner().invoke(app, [*command, "--preset", "tiny"])
    assert done.exit_code == 1
    assert "no.pth is no file" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_training_starts_from_them_and_says_so(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": state}, path)
    command = ["train", "--phantom", "60", "--preset", "tiny", "--epochs", "1"]
    encoders, cards = {}, {}
    for name, options in (("a", ["--weights", str(path)]), ("b", [])):
        done = CliRunner().invoke(app, [*command, *options, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
        trained = checkpoints.load(tmp_path / name)
        encoders[name], cards[name] = trained.encoders["mammography"], trained.card
    layer = "layer1.0.conv1.weight"
    last = {name: encoder.state_dict()[layer] for name, encoder in encoders.items()}
    moved = {name: float((tensor - state[layer]).abs().max()) for name, tensor in last.items()}
    assert moved["a"] < 0.05 < moved["b"], "one epoch from it, and from elsewhere"
    how = cards["a"]["training"]
    assert how["started_from"] == {"file": "resnet18.pth", "sha256": Weights.read(path).sha256}
    assert cards["b"]["training"]["started_from"] == "random weights"
    assert (how["epochs"]["ultrasound"]["run"], how["epochs"]["ultrasound"]["chosen"]) == (1, 1)
    assert (how["learning_rate"], how["batch_size"]) == (2e-3, 32)
    assert cards["a"]["command"].startswith("mpmmu-rt")
    assert cards["a"]["date"] <= cards["b"]["date"]
    other = CliRunner().invoke(app, [*command, "--weights", str(tmp_path / "no.pth"), "-o", str(tmp_path / "c")])
    assert other.exit_code == 1
    assert "no.pth is no file" in other.stderr
    torch.save({name: value for name, value in state.items() if not name.startswith("layer4")}, path)
    halved = CliRunner().invoke(app, [*command, "--weights", str(path), "-o", str(tmp_path / "d")])
    assert halved.exit_code == 1
    assert "does not fit resnet18" in halved.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_they_are_read_once(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Folds that start from what lies there hours later tell nothing of the model that stands beside them."""
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": state}, path)
    ended = threading.Event()

    def exchange() -> None:
        while not list((tmp_path / "a.training").glob("*.safetensors")) and not ended.is_set():
            time.sleep(0.01)
        path.write_bytes(b"other weights")

    thread = threading.Thread(target=exchange)
    thread.start()
    command = ["train", "--phantom", "60", "--preset", "tiny", "--epochs", "1", "--folds", "2", "-o"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--weights", str(path)])
    ended.set()
    thread.join()
    assert done.exit_code == 0, done.stderr
    assert checkpoints.load(tmp_path / "a").card["metrics"]["cross_validation"]["folds"] == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_an_error_of_two_lines(tmp_path: Path, zipped: bool) -> None:
    """torch raises AssertionError, IndexError, struct.error and others, as the damage is."""
    path = tmp_path / "w.pth"
    torch.save({"bn1.weight": torch.ones(4)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, min(600, len(whole)), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            Weights.read(path)
        except CheckpointError:
            refused += 1
    assert refused > 20
