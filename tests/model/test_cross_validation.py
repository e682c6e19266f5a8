"""Cross-validation: every patient tested once and never learned from; killed, it goes on to the same result."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt.cli import app
from mpmmu_rt.errors import CheckpointError, ManifestError
from mpmmu_rt.metrics import too_few
from mpmmu_rt.model import training_state
from mpmmu_rt.model.config import HeadConfig, ModelConfig, tiny
from mpmmu_rt.model.cross_validation import cross_validate, fold_splits
from mpmmu_rt.model.data import TrainingData, data_from_phantoms
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.model.split import patient_labels
from mpmmu_rt.model.stage_one import TRAINING_PRESETS, TrainingConfig

FOLDS = 3


def cohort() -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Patients of one to four rows each, in no order, some with rows of both classes."""
    rng = np.random.default_rng(3)
    groups = [f"p{number}" for number in range(45) for _ in range(int(rng.integers(1, 5)))]
    label = np.array([int(int(group[1:]) % 3 == 0 and rng.random() < 0.8) for group in groups])
    order = rng.permutation(len(groups))
    return label[order], tuple(groups[row] for row in order)


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_every_patient_is_tested_once_and_in_one_part_only(folds: int) -> None:
    label, groups = cohort()
    labels = patient_labels(label, groups)
    splits = fold_splits(label, groups, folds, seed=5)
    assert len(splits) == folds
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(label)))
    malignant = [sum(labels[name] for name in {groups[row] for row in split.test}) for split in splits]
    assert max(malignant) - min(malignant) <= 1  # stratified
    for split in splits:
        parts = [{groups[row] for row in rows} for rows in split.parts().values()]
        assert sum(map(len, parts)) == len(labels) == len(set.union(*parts))
        assert sum(len(rows) for rows in split.parts().values()) == len(label)
        for part in parts:
            assert {labels[name] for name in part} == {0, 1}
        share = len(parts[1]) / (len(parts[0]) + len(parts[1]))
        assert share == pytest.approx(2 / 9, abs=0.05)
    again, other = (fold_splits(label, groups, folds, seed=seed) for seed in (5, 6))
    assert [split.test.tolist() for split in again] == [split.test.tolist() for split in splits]
    assert [split.test.tolist() for split in other] != [split.test.tolist() for split in splits]


@pytest.mark.parametrize(("malignant", "folds"), [(4, 5), (4, 2), (5, 2), (3, 3)])
def test_too_few_patients_are_refused(malignant: int, folds: int) -> None:
    label = np.array([1] * malignant + [0] * 30)
    groups = tuple(map(str, range(len(label))))
    message = rf"there are {malignant} malignant patients, too few for {folds} folds"
    with pytest.raises(ManifestError, match=message) as caught:
        fold_splits(label, groups, folds, seed=0)
    hinted = re.match(r"--folds (\d+), or more malignant cases; ", caught.value.hint)
    assert (hinted is None) == (malignant < 4)
    if hinted:
        assert len(fold_splits(label, groups, int(hinted[1]), seed=0)) == int(hinted[1])


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_what_a_training_of_few_patients_proposes_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of each class can be trained on, and can't be dealt into five folds."""
    manifest = write_phantoms(40, tmp_path / "cases", seed=0)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    few = [row for label in "01" for row in [one for one in rows if one["label"] == label][:4]]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(few[0]))
        writer.writeheader()
        writer.writerows(few)
    options = [str(manifest), "--preset", "tiny", "--size", "32", "--epochs", "1", "-o", str(tmp_path / "c")]
    monkeypatch.setattr("sys.argv", ["mpmmu-rt", "train", *options])
    done = CliRunner().invoke(app, ["train", *options])
    assert done.exit_code == 0, done.stderr
    hinted = shlex.split(done.stderr.partition("`mpmmu-rt ")[2].partition("`")[0])
    assert hinted == ["train", *options, "--folds=4", "--overwrite"]
    done = CliRunner().invoke(app, hinted)
    assert done.exit_code == 0, done.stderr


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    config = tiny()
    return replace(
        config,
        mammography=replace(config.mammography, width=8),
        ultrasound=replace(config.ultrasound, width=8),
        head=HeadConfig(trees=10, hidden=4, folds=2),
    )


@pytest.fixture(scope="module")
def data(model: ModelConfig) -> TrainingData:
    return data_from_phantoms(60, 1, model.preprocessing)


CONFIG: TrainingConfig = replace(TRAINING_PRESETS["tiny"], epochs=2, seed=4)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_result(
    data: TrainingData, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watch(description: str, done: int, total: int, *more: str) -> None:
        seen.append(description)

    whole = cross_validate(data, model, CONFIG, FOLDS, work_dir=tmp_path / "whole", progress=watch)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert (whole["folds"], whole["patients"]) == (FOLDS, 60)
    assert {text.partition(":")[0] for text in seen} == {f"fold {number} of {FOLDS}" for number in (1, 2, 3)}
    for name in ("mammography", "ultrasound", "fused"):
        found = whole["test"][name]
        assert found["true_positive"] + found["false_negative"] == whole["malignant_patients"]
        assert 0 < found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"] < 1
        assert len(whole["auc_by_fold"][name]) == FOLDS

    class Killed(Exception):
        pass

    def kill(description: str, done: int, total: int, *more: str) -> None:
        if description == "fold 2 of 3: training the ultrasound encoder":
            raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        cross_validate(data, model, CONFIG, FOLDS, work_dir=folder, progress=kill)
    assert sorted(path.name for path in folder.iterdir()) == ["fold-1-of-3.json", "fold-2-of-3"]
    seen.clear()
    assert cross_validate(data, model, CONFIG, FOLDS, work_dir=folder, progress=watch) == whole
    assert not any(text.startswith("fold 1 ") for text in seen)
    assert sorted(path.name for path in folder.iterdir()) == [f"fold-{number}-of-3.json" for number in (1, 2, 3)]
    other = replace(CONFIG, seed=9)
    with pytest.raises(CheckpointError, match="is a fold of a training with another configuration"):
        cross_validate(data, model, other, FOLDS, work_dir=folder)
    with pytest.raises(CheckpointError, match="another kind of device or other releases of mpmmu-rt"):
        cross_validate(data, model, CONFIG, FOLDS, work_dir=folder, device="meta")
    with monkeypatch.context() as patch:
        patch.setattr(training_state, "__version__", "0.0.1")
        with pytest.raises(CheckpointError, match="is a fold of a training with another configuration"):
            cross_validate(data, model, CONFIG, FOLDS, work_dir=folder)
    kept = folder / "fold-1-of-3.json"
    entry = json.loads(kept.read_text())
    for altered in (entry["fused"][1:], [1 - entry["fused"][0], *entry["fused"][1:]]):
        kept.write_text(json.dumps(entry | {"fused": altered}))
        with pytest.raises(CheckpointError, match=r"fold-1-of-3\.json was altered or damaged") as caught:
            cross_validate(data, model, CONFIG, FOLDS, work_dir=folder)
        assert caught.value.hint == "remove fold-1-of-3.json: that fold is trained anew"


@pytest.mark.parametrize(
    ("benign", "malignant", "low", "high", "why"),
    [
        (2, 1, 0.2, 0.9, "1 malignant and 2 benign patients tested, expected 10 of each or more"),
        (40, 9, 0.8, 0.9, "9 malignant and 40 benign patients tested"),
        (40, 20, 0.7, 0.93, "the interval of the AUC is 0.23 wide, expected at most 0.2"),
        (40, 20, None, None, "the interval of the AUC can't be estimated"),
        (10, 10, 0.75, 0.94, ""),
    ],
)
def test_what_does_not_tell(benign: int, malignant: int, low: float | None, high: float | None, why: str) -> None:
    said = too_few(benign, malignant, low, high)
    assert said.startswith(why)
    assert bool(said) is bool(why)


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_train_says_what_its_table_is_worth_and_the_next_step_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    options = ["--phantom", "60", "--preset", "tiny", "--epochs", "1", "--seed", "3", "-o", str(checkpoint)]
    options.append("--single-modality")
    monkeypatch.setattr("sys.argv", ["mpmmu-rt", "train", *options])
    first = CliRunner().invoke(app, ["train", *options])
    assert first.exit_code == 0, first.stderr
    assert " too few to tell" in first.stdout
    assert "too few to tell: " in first.stdout
    assert " test images would be warned of as unlike the images learnt from" in first.stdout
    hinted = first.stderr.partition("`mpmmu-rt train ")[2].partition("`")[0].split()
    assert hinted == [*options, "--folds=5", "--overwrite"]
    second = CliRunner().invoke(app, ["train", *hinted, "--folds", "2"])
    assert second.exit_code == 0, second.stderr
    assert "out of fold" in second.stdout
    assert "2 folds, each of 60 patients tested once" in " ".join(second.stdout.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    assert (checkpoint / "head_mammography.skops").exists()
    assert (checkpoint / "head_ultrasound.skops").exists()
    card = json.loads((checkpoint / "config.json").read_text())["card"]
    assert card["metrics"]["cross_validation"]["patients"] == 60
    assert "patients tested, expected 10 of each" in card["metrics"]["weakness"]
