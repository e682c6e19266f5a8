"""The ablation: what is compared, what is reused, and the test of a difference over splits."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cli import app
from mpmmu_rt.cli._ablate_text import markdown, text
from mpmmu_rt.errors import CheckpointError, UsageError
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model import ablation
from mpmmu_rt.model.ablation import COMPARISONS, FUSED, PUBLISHED, SOFT_VOTE, STACKING, Study, ablate, paired
from mpmmu_rt.model.config import HeadConfig, ModelConfig, tiny
from mpmmu_rt.model.data import TrainingData, data_from_phantoms
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.model.stage_one import TrainingConfig, embed, known_device, train_encoder
from mpmmu_rt.model.training import fuse
from mpmmu_rt.places import claimed
from mpmmu_rt.spec import MODALITIES, Array


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    config = tiny()
    return replace(
        config,
        mammography=replace(config.mammography, width=4),
        ultrasound=replace(config.ultrasound, width=4),
        head=HeadConfig(trees=5, hidden=4, folds=2),
        preprocessing=Preprocessing(size=32),
    )


@pytest.fixture(scope="module")
def data(model: ModelConfig) -> TrainingData:
    return data_from_phantoms(60, 1, model.preprocessing)


def study(data: TrainingData, model: ModelConfig, folder: Path, seeds: Iterable[int] = (0, 1)) -> Study:
    return Study(data, model, TrainingConfig(epochs=1, batch_size=8, learning_rate=1e-3), tuple(seeds), folder)


@pytest.fixture(scope="module")
def made(
    data: TrainingData, model: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ablation") / "runs"
    return folder, ablate(study(data, model, folder))


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.slow
def test_everything_that_the_paper_compares_is_there(made: tuple[Path, dict[str, Any]]) -> None:
    _, entry = made
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    names = [one["name"] for one in entry["rows"]]
    assert len(set(names)) == len(names) == 12
    assert {name for pair in COMPARISONS for name in pair} <= set(names)
    assert set(PUBLISHED) <= set(names)
    areas = {one["name"]: one["auc"] for one in entry["rows"]}
    assert areas[FUSED] == areas[STACKING]
    assert all(len(one) == 2 for one in areas.values())
    assert len({tuple(one) for one in areas.values()}) > 6  # each is another system
    assert [one["seed"] for one in entry["parts"]] == [0, 1]


@pytest.mark.slow
def test_a_row_is_what_training_it_alone_gives(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig, tmp_path: Path
) -> None:
    """The fused head with attention of seed 1, by hand."""
    from mpmmu_rt.metrics import area_under_curve
    from mpmmu_rt.model.stacking import fit_head

    whole = study(data, model, tmp_path)
    split, training = whole.split(1), replace(whole.training, seed=1)
    embedding = {}
    for modality in MODALITIES:
        path = tmp_path / f"{modality}.state"
        encoder, _ = train_encoder(data, modality, split, model.encoder(modality), training, state_file=path)
        embedding[modality] = embed(encoder, data.pixels[modality])
    learn, fused = np.concatenate([split.train, split.validation]), fuse(embedding)
    groups = [data.groups[row] for row in learn]
    head = fit_head(fused[learn], data.label[learn], groups, model.head, seed=1)
    said = head.predict_proba(fused[split.test])[:, 1]
    (row,) = (one for one in made[1]["rows"] if one["name"] == FUSED)
    assert row["auc"][1] == pytest.approx(area_under_curve(data.label[split.test], said))


@pytest.mark.slow
def test_what_is_there_is_not_made_again(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig
) -> None:
    folder, entry = made
    before, said = written(folder), list[str]()
    assert ablate(study(data, model, folder), say=said.append) == entry
    assert written(folder) == before
    assert [text.rpartition(": ")[2] for text in said] == ["there already"] * 8
    more = ablate(study(data, model, folder, range(3)))
    assert written(folder).items() > before.items()
    assert [one["auc"][:2] for one in more["rows"]] == [one["auc"] for one in entry["rows"]]
    # Another configuration shares no run with it.
    other = study(data, replace(model, head=replace(model.head, trees=6)), folder, [0])
    ablate(other)
    assert len([name for name in written(folder) if name.startswith("heads-")]) == 4
    assert len(list(folder.glob("*.npy"))) == 12


@pytest.mark.slow
def test_what_another_kind_of_device_made_is_not_taken(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig
) -> None:
    """A GPU trains in bfloat16: half of the seeds from there would be another study."""
    folder, _ = made
    before = written(folder)
    with pytest.raises(RuntimeError, match="meta"):  # a device without numbers: it trains, instead of taking them
        ablate(replace(study(data, model, folder), device="meta"))
    assert written(folder) == before


@pytest.mark.slow
def test_an_interrupted_study_goes_on(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig, tmp_path: Path
) -> None:
    def stop(description: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
        if description == "seed 1, ultrasound, attention none" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        ablate(study(data, model, tmp_path / "runs"), progress=stop)
    assert len(list((tmp_path / "runs").glob("*.npy"))) == 6
    assert ablate(study(data, model, tmp_path / "runs")) == made[1]
    assert not list((tmp_path / "runs").glob("*.safetensors"))


@pytest.mark.slow
def test_a_damaged_run_is_an_error_that_names_it(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig, tmp_path: Path
) -> None:
    ablate(study(data, model, tmp_path, [0]))
    path = next(tmp_path.glob("mammography-none-*.npy"))
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):  # one bit of a float32
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            ablate(study(data, model, tmp_path, [0]))
        assert caught.value.hint == f"remove {path.name}: that encoder is trained anew"
    path.unlink()
    ablate(study(data, model, tmp_path, [0]))


@pytest.mark.slow
def test_figures_that_were_altered_are_measured_again(
    made: tuple[Path, dict[str, Any]], data: TrainingData, model: ModelConfig
) -> None:
    folder, entry = made
    for one in folder.glob("heads-*.json"):  # other studies' too
        one.unlink()
    assert ablate(study(data, model, folder)) == entry
    heads = min(folder.glob("heads-*.json"))
    before = heads.read_text()
    heads.write_text(before.replace('"auc": {\n        "value": 0', '"auc": {\n        "value": 9', 1))
    assert heads.read_text() != before
    assert ablate(study(data, model, folder)) == entry
    assert heads.read_text() == before


def test_the_corrected_test_by_hand() -> None:
    """Differences 1, 2, 3 over splits with a ninth as many test rows: s² = 1, error² = 1/3 + 1/9, t = 2 / (2/3) = 3."""
    found = paired([0, 0, 0], [1, 2, 3], 1 / 9)
    assert (found["mean"], found["spread"]) == (2, 1)
    assert found["t"] == pytest.approx(3)
    assert found["p"] == pytest.approx(2 * stats.t.sf(3, 2))
    assert found["high"] == pytest.approx(2 + 4.302653 * 2 / 3)
    plain = stats.ttest_rel([1, 2, 3], [0, 0, 0])  # which takes overlapping training sets for independent ones
    assert found["p"] > plain.pvalue
    assert paired([0], [1], 0.1)["p"] is paired([0, 0], [1, 1], 0.1)["p"] is None
    assert paired([None, 0, 0], [1, 1, 3], 0.1)["splits"] == 2


@pytest.mark.parametrize("steps", [(7, 4, 6), (1, 2, 3), (8, 3)])
def test_the_same_difference_in_every_split_is_no_proof(steps: Sequence[int]) -> None:
    """Of areas on the grid of 9 pairs: their differences are equal but for rounding, and p was 1e-16."""
    found = paired([step / 9 for step in steps], [(step + 1) / 9 for step in steps], 0.1)
    assert found["mean"] == pytest.approx(1 / 9)
    assert found["spread"] == pytest.approx(0, abs=1e-15)
    assert (found["p"], found["low"], found["high"]) == (None, None, None)


def test_no_difference_is_found_in_one_of_twenty() -> None:
    """2000 studies of 5 splits of one data set: what splits share doesn't count as evidence."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        # Nadeau and Bengio: estimates on splits of one data set correlate by the share of test rows, here 1/10.
        shared = rng.normal(0, math.sqrt(0.1))
        differences = shared + rng.normal(0, math.sqrt(0.9), 5)
        found += (paired([0.0] * 5, differences.tolist(), 1 / 9)["p"] or 1) < 0.05
    assert found / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
def test_the_share_of_the_test_part_counts_patients(
    data: TrainingData, model: ModelConfig, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """As the splits do: where patients have several rows, those of the test part may have more than others."""
    several = replace(
        data, groups=tuple("p0" if row < 12 else f"p{row}" for row in range(60)), label=_alike(data.label)
    )
    entry = ablate(study(several, model, tmp_path))
    patients, rows = entry["parts"][0]["patients"], entry["parts"][0]["rows"]
    share = patients["test"] / (patients["train"] + patients["validation"])
    assert share != rows["test"] / (rows["train"] + rows["validation"])
    areas = {one["name"]: one["auc"] for one in entry["rows"]}
    for one in entry["comparisons"]:
        again = paired(areas[one["first"]], areas[one["second"]], share)
        assert again == {key: one[key] for key in again}


def _alike(label: Array) -> Array:
    found = label.copy()
    found[:12] = 0
    return found


@pytest.mark.slow
def test_the_tables_fit_and_tell_what_is_not_ours(made: tuple[Path, dict[str, Any]]) -> None:
    entry = made[1] | {"machine": {"cpu": "x", "threads": 1, "packages": {"torch": "2"}}}
    plain, marked = text(entry), markdown(entry)
    assert max(map(len, plain.splitlines())) <= 80
    for whole in (plain, marked):
        assert "published, other data" in whole
        assert "can't be compared" in " ".join(whole.split())
        assert all(value in whole for value in PUBLISHED.values())
        assert "mammography, with CBAM" in whole
        assert SOFT_VOTE in whole
        assert "So few can't rank these systems" in " ".join(whole.split())


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_the_command(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["ablate", *map(str, arguments)])

    both = call("x.csv", "--phantom", 60)
    assert both.exit_code == 2
    assert "mpmmu-rt ablate --phantom 600 --preset tiny" in both.stderr
    result = call("--phantom", 60, "--seeds", 1, "--epochs", 1, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "left" in result.stderr
    entry = json.loads((tmp_path / "out/ablation.json").read_text())
    assert entry["schema"] == ablation.SCHEMA
    assert (tmp_path / "out/ablation.md").read_text().startswith("# Ablation: 60 generated phantoms")
    again = call("--phantom", 60, "--seeds", 1, "--epochs", 1, "-o", tmp_path / "out", "--json", "-")
    assert again.stderr.count("there already") == 4
    assert json.loads(again.stdout)["rows"] == entry["rows"]
    for name in ("ablation.json", "ablation.md"):
        mine = tmp_path / f"of {name}" / name
        mine.parent.mkdir()
        mine.write_text("years of work")
        refused = call("--phantom", 60, "--seeds", 1, "--epochs", 1, "-o", mine.parent)
        assert refused.exit_code == 1
        assert f"{mine} exists and is no ablation, expected a free place" in refused.stderr
        assert mine.read_text() == "years of work"
    nested = tmp_path / "not" / "yet"
    nested.parent.mkdir()
    found: list[Any] = []
    with claimed(nested):
        thread = threading.Thread(target=lambda: found.append(call("--phantom", 60, "-o", nested)))
        thread.start()
        thread.join()
    assert found[0].exit_code == 1
    assert "is being written by another thread" in found[0].stderr
    assert not nested.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_manifest_whose_name_is_no_text(tmp_path: Path) -> None:
    """The page was what failed, behind all of the training."""
    made = write_phantoms(60, tmp_path / "p", seed=0)
    manifest = made.rename(made.with_name(os.fsdecode(b"of \xff.csv")))
    asked = ["ablate", str(manifest), "--seeds", "1", "--epochs", "1", "--json", "-", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out/ablation.md").read_text().startswith(r"# Ablation: of \udcff.csv, sha256 ")


def test_no_bundle_is_written_into(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link", folder / "ablation"):
        done = CliRunner().invoke(app, ["ablate", "--phantom", "60", "--epochs", "1", "-o", str(place)])
        assert done.exit_code == 1
        assert f"lies in {folder}, which is a bundle and holds no other file" in done.stderr
    Bundle.open(folder)


def test_a_device_that_there_is_not() -> None:
    assert known_device("cpu") == "cpu"
    for name in ("tpu", "meta"):  # a tensor of `meta` has no numbers
        with pytest.raises(UsageError, match=f"torch can't compute on the device `{name}`"):
            known_device(name)
