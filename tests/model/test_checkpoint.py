from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
import torch
from sklearn.dummy import DummyClassifier
from typer.testing import CliRunner

from mpmmu_rt.cli import app
from mpmmu_rt.errors import CheckpointError, OutputError
from mpmmu_rt.files import sha256_file
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import ModelConfig, reference, tiny
from mpmmu_rt.spec import MODALITIES


class Bomb:
    """A pickle that leaves a file behind if anything ever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / checkpoints.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(small_model: Checkpoint, folder: Path) -> None:
    loaded = checkpoints.load(folder)
    assert loaded.config == small_model.config
    assert loaded.threshold == small_model.threshold
    assert loaded.card == small_model.card
    pixels = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    with torch.inference_mode():
        for modality in MODALITIES:
            assert torch.equal(loaded.encoders[modality](pixels), small_model.encoders[modality](pixels))
    embedding = np.random.default_rng(0).normal(size=(20, loaded.head.n_features_in_)).astype(np.float32)
    np.testing.assert_array_equal(loaded.head.predict_proba(embedding), small_model.head.predict_proba(embedding))


def test_it_holds_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "head.skops",
        "mammography.safetensors",
        "ultrasound.safetensors",
    ]


@pytest.mark.parametrize("config", [reference(), tiny()])
def test_config_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", ["mammography.safetensors", "ultrasound.safetensors", "head.skops"])
def test_one_changed_byte_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not the file that config.json was written with"):
        checkpoints.load(folder)


def test_swapped_encoders_are_noticed(folder: Path) -> None:
    first, second = (folder / f"{modality}.safetensors" for modality in MODALITIES)
    first.rename(folder / "spare")
    second.rename(first)
    (folder / "spare").rename(second)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["head.joblib", "head.pkl"])
def test_a_pickle_runs_only_if_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "head.skops").unlink()
    with (folder / name).open("wb") as file:
        pickle.dump(Bomb(tmp_path / "ran"), file)
    for trusted in (None, tmp_path / name, folder / "head.skops"):
        with pytest.raises(CheckpointError, match=f"{name} is a pickle") as caught:
            checkpoints.load(folder, trust_pickle=trusted)
        assert f"--trust-pickle {folder / name}" in caught.value.hint
    assert not (tmp_path / "ran").exists()
    checkpoints.load(folder, trust_pickle=folder / name)
    assert (tmp_path / "ran").exists()  # the bomb is live: the refusals above meant something


def test_a_trusted_head_is_used(small_model: Checkpoint, folder: Path) -> None:
    (folder / "head.skops").unlink()
    joblib.dump(small_model.head, folder / "head.joblib")
    loaded = checkpoints.load(folder, trust_pickle=folder / "head.joblib")
    assert type(loaded.head) is type(small_model.head)
    joblib.dump(DummyClassifier(), folder / "head.joblib")
    other = checkpoints.load(folder, trust_pickle=folder / "head.joblib")
    assert isinstance(other.head, DummyClassifier)
    assert other.digest != loaded.digest  # `config.json`, which is the same, names neither


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_pickle_that_is_vouched_for_is_not_passed_over(
    small_model: Checkpoint, folder: Path, tmp_path: Path, place: str
) -> None:
    """A head that was fitted anew, beside the one of the training."""
    path = (folder if place == "beside" else tmp_path) / "head.joblib"
    joblib.dump(small_model.head, path)
    with pytest.raises(CheckpointError, match=r"holds head\.skops, and --trust-pickle names .*, expected one head"):
        checkpoints.load(folder, trust_pickle=path)
    done = CliRunner().invoke(app, ["export", str(folder), "-o", str(tmp_path / "b"), "--trust-pickle", str(path)])
    assert done.exit_code == 1
    assert "expected one head" in done.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"cno_such_package\nHead\n."])
def test_a_trusted_head_that_can_not_be_unpickled(folder: Path, content: bytes) -> None:
    (folder / "head.skops").unlink()
    (folder / "head.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"head\.pkl can't be unpickled"):
        checkpoints.load(folder, trust_pickle=folder / "head.pkl")


def test_skops_with_a_foreign_type_is_refused(folder: Path) -> None:
    skops.io.dump(np.random.default_rng, folder / "head.skops")
    digests = json.loads((folder / "config.json").read_text())["files"] | {
        "head.skops": sha256_file(folder / "head.skops")
    }
    edit(folder, files=digests)
    with pytest.raises(CheckpointError, match="not known to be safe"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    "damage", [lambda data: b"no ZIP", lambda data: data[:-40], lambda data: data[:40] + data[41:]]
)
def test_a_head_that_is_damaged_under_its_own_digest(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """As who writes a head of their own into `files` may have it."""
    path = folder / "head.skops"
    path.write_bytes(damage(path.read_bytes()))
    digests = json.loads((folder / "config.json").read_text())["files"] | {"head.skops": sha256_file(path)}
    edit(folder, files=digests)
    with pytest.raises(CheckpointError, match="is not a readable skops file"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "other/9"}, "has the schema 'other/9', expected `mpmmu-checkpoint/1`"),
        ({"threshold": 1.5}, r"has the threshold 1.5, expected a number in 0..1"),
        ({"threshold": True}, "has the threshold True"),
        ({"threshold": float("nan")}, "has the threshold nan"),
        ({"model": {"arch": "resnet50"}}, "`model` holds arch; expected head, mammography"),
        ({"files": None}, "lacks `files` or `card`"),
    ],
)
def test_a_config_that_is_off(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(folder)


def test_weights_of_another_network(folder: Path) -> None:
    entry = json.loads((folder / "config.json").read_text())
    entry["model"]["mammography"]["width"] = 16
    edit(folder, **entry)
    with pytest.raises(CheckpointError, match="does not hold the weights of the configured resnet18"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["config.json", "mammography.safetensors", "head.skops"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"can't be read|is missing|holds no head\.skops"):
        checkpoints.load(folder)


def test_saving_replaces_only_a_checkpoint(small_model: Checkpoint, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        checkpoints.save(small_model, folder)
    checkpoints.save(small_model, folder, overwrite=True)
    checkpoints.load(folder)
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "cat.png").touch()
    with pytest.raises(OutputError, match=r"holds no config\.json"):
        checkpoints.save(small_model, mine, overwrite=True)
    assert (mine / "cat.png").exists()
    (mine / "config.json").write_text('{"name": "app"}')  # as many programs have one
    with pytest.raises(OutputError, match=r"holds no config\.json of `mpmmu-checkpoint/1`"):
        checkpoints.save(small_model, mine, overwrite=True)
    assert (mine / "cat.png").exists()
    (folder / "head.joblib").write_bytes(b"")  # which a person puts there
    with pytest.raises(OutputError, match=r"holds head\.joblib, which no earlier output has"):
        checkpoints.save(small_model, folder, overwrite=True)
    assert (folder / "head.joblib").exists()
