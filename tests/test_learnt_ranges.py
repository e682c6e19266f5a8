"""An image that is unlike those that the model has learnt from is a warning, at every door that reads images."""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks import unlike_images
from mpmmu_rt import learnt_ranges, load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.errors import BundleError, CheckpointError
from mpmmu_rt.image_figures import FIGURES, figures
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.learnt_ranges import UNLIKE, LearntRange
from mpmmu_rt.modality_check import SAYS, ModalityCheck
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model import modality_fit
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import HeaderWarning
from mpmmu_rt.run import decode, run
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .swapped import checking

Pixels = dict[Modality, Array]
SIZE = Preprocessing(size=48)


@pytest.fixture(scope="module")
def check() -> ModalityCheck:
    pixels, _ = phantom_pixels(120, seed=0, preprocessing=SIZE)
    return modality_fit.fit(pixels["mammography"], pixels["ultrasound"])


@pytest.fixture(scope="module")
def others() -> Pixels:
    return phantom_pixels(150, seed=11, preprocessing=SIZE)[0]


def warned(check: ModalityCheck, pixels: Pixels) -> int:
    return sum(any(UNLIKE in text for text in one) for one in check.against(pixels))


@pytest.mark.parametrize("modality", MODALITIES)
def test_images_as_they_should_be_are_not_warned_of_and_strange_ones_are(
    check: ModalityCheck, others: Pixels, modality: Modality
) -> None:
    assert warned(check, others) == 0
    image = others[modality]
    assert warned(check, {modality: np.minimum(4 * image.astype(int), 255).astype(np.uint8)}) == 150
    assert warned(check, {modality: np.random.default_rng(0).permutation(image, axis=2)}) == 150
    assert warned(check, {modality: 255 - image}) >= 120, "a bright ultrasound image has a dark negative"
    assert warned(check, {modality: image[..., ::-1]}) == 0, "mirrored is as good as any"


def test_it_names_the_figure_that_is_furthest_outside(check: ModalityCheck, others: Pixels) -> None:
    (first,) = check.against(
        {name: array[:1] if name == "ultrasound" else 255 - array[:1] for name, array in others.items()}
    )
    (said,) = first
    found = re.fullmatch(
        rf"mammography: {UNLIKE}: its share of bright pixels is (0\.\d\d), theirs 0\.00 to (0\.\d\d) "
        r"\(and 2 other figures\)",
        said,
    )
    assert found
    assert float(found[1]) > float(found[2])


def test_the_worst_figure_is_that_of_the_most_margins() -> None:
    ranges = LearntRange(np.zeros(8), np.ones(8), np.full(8, 0.5))
    inside = np.full(8, 1.5)
    assert ranges.against(inside) == ""
    assert ranges.against(np.full(8, -0.5)) == ""
    one, two = inside.copy(), inside.copy()
    one[2], two[2], two[3] = -0.51, -0.51, 7.0
    assert ranges.against(one) == f"{UNLIKE}: its mean grey is -0.51, theirs 0.00 to 1.00"
    assert ranges.against(two) == f"{UNLIKE}: its contrast is 7.00, theirs 0.00 to 1.00 (and 1 other figure)"
    assert (ranges.outside(two[None]) > 0).sum() == 2


def test_a_pair_that_looks_swapped_is_said_to_be_that_alone(check: ModalityCheck, others: Pixels) -> None:
    turned: Pixels = {"mammography": others["ultrasound"][:9], "ultrasound": others["mammography"][:9]}
    assert check.against(turned) == ((SAYS,),) * 9


def test_of_both_images_both_are_said(check: ModalityCheck, others: Pixels) -> None:
    noise: Pixels = {name: np.random.default_rng(0).integers(0, 256, (1, 1, 48, 48), np.uint8) for name in MODALITIES}
    ((first, second),) = replace(check, margin=1e9).against(noise)
    assert (first.startswith("mammography: "), second.startswith("ultrasound: ")) == (True, True)


def test_too_few_images_have_no_range(others: Pixels) -> None:
    few, enough = modality_fit.FEWEST - 1, modality_fit.FEWEST
    assert modality_fit.fit(others["mammography"][:few], others["ultrasound"]).learnt is None
    found = modality_fit.fit(others["mammography"][:enough], others["ultrasound"])
    assert found.learnt is not None
    blind = replace(found, learnt=None)
    assert blind.against({"mammography": 255 - others["mammography"]}) == ((),) * 150


def test_where_all_are_alike_something_may_differ() -> None:
    ranges = modality_fit.learnt_range(np.full((30, 8), 0.5))
    assert ranges.against(np.full(8, 0.5 + 0.9 * modality_fit.LEAST)) == ""
    assert ranges.against(np.full(8, 0.5 + 1.1 * modality_fit.LEAST))


def test_one_bad_image_in_hundreds_widens_nothing_much(others: Pixels) -> None:
    """A blemish in the training part must not open the door to all like it."""
    clean, bad = figures(others["mammography"]), figures(255 - others["mammography"][:1])
    known = np.concatenate([np.tile(clean, (4, 1)), bad])
    assert (modality_fit.learnt_range(known).outside(bad) > 0).any()


def test_it_reads_back_what_it_wrote(check: ModalityCheck, others: Pixels) -> None:
    entry = json.loads(json.dumps(check.to_json()))
    again = ModalityCheck.from_json(entry)
    assert again is not None
    assert again.against({"mammography": 255 - others["mammography"]}) == check.against(
        {"mammography": 255 - others["mammography"]}
    )
    for before in (entry | {"learnt": None}, {key: value for key, value in entry.items() if key != "learnt"}):
        read = ModalityCheck.from_json(before)
        assert read is not None
        assert read.learnt is None


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _in_mammography(change: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda learnt: learnt | {"mammography": learnt["mammography"] | change}


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number": lambda learnt: 3,
    "of nothing": lambda learnt: {},
    "of one modality": lambda learnt: _without(learnt, "ultrasound"),
    "of a third": lambda learnt: learnt | {"mri": learnt["ultrasound"]},
    "a list": lambda learnt: learnt | {"mammography": [1.0] * 8},
    "no margin": lambda learnt: learnt | {"mammography": _without(learnt["mammography"], "margin")},
    "seven numbers": _in_mammography({"lowest": [0.0] * 7}),
    "texts": _in_mammography({"lowest": ["0"] * 8}),
    "truths": _in_mammography({"lowest": [False] * 8}),
    "no number": _in_mammography({"highest": [float("nan")] * 8}),
    "no bound": _in_mammography({"highest": [float("inf")] * 8}),
    "ends before it begins": _in_mammography({"lowest": [9.0] * 8}),
    "no width": _in_mammography({"margin": [0.0] * 8}),
    "below none": _in_mammography({"margin": [-0.1] * 8}),
}


@pytest.mark.parametrize("how", WRONG)
def test_ranges_that_make_no_sense_are_refused(check: ModalityCheck, how: str) -> None:
    """Nobody is told that an image is fine by ranges that nothing is outside of."""
    entry = json.loads(json.dumps(check.to_json()))
    assert ModalityCheck.from_json(entry) is not None
    with pytest.raises((ValueError, KeyError, TypeError)):
        ModalityCheck.from_json(entry | {"learnt": WRONG[how](entry["learnt"])})


def test_so_they_are_in_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    folder = checking(bundle_folder, tmp_path / "b")
    entry = json.loads((folder / "bundle.json").read_text())
    entry["modality_check"]["learnt"]["mammography"]["margin"][0] = 0
    seal(folder, _without(_without(entry, "files"), "sha256"))
    with pytest.raises(BundleError, match="a margin that is not above 0"):
        Bundle.open(folder)


@pytest.mark.parametrize("number", [10**400, float("inf"), "1"])
def test_so_they_are_in_a_checkpoint(
    check: ModalityCheck, checkpoint_folder: Path, tmp_path: Path, number: object
) -> None:
    """JSON knows numbers that no float holds."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    learnt = _in_mammography({"margin": [number] * 8})(check.to_json()["learnt"])
    (folder / "config.json").write_text(json.dumps(config | {"modality_check": check.to_json() | {"learnt": learnt}}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoints.load(folder)


@pytest.fixture
def inverted(phantom_manifest: Path, tmp_path: Path) -> Path:
    """Six cases; of the third the mammogram is a negative."""
    rows = [["case_id", "mammography", "ultrasound", "label"]]
    for at, case in enumerate(read_manifest(phantom_manifest).cases[:6]):
        path = case.mammography
        if at == 2:
            with Image.open(str(path)) as image:
                Image.fromarray(255 - np.asarray(image.convert("L"))).save(path := tmp_path / "negative.png")
        rows.append([case.case_id, str(path), str(case.ultrasound), str(case.label)])
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "m.csv"


def test_run_and_predict_warn_of_it(bundle_folder: Path, inverted: Path, tmp_path: Path) -> None:
    cases = read_manifest(inverted).cases
    with load(checking(bundle_folder, tmp_path / "b")) as predictor:
        summary = run(predictor, read_manifest(inverted), tmp_path / "p.csv")
        assert (summary.failed, summary.warned) == (0, 1)
        assert summary.first_warning.startswith(f"`{cases[2].case_id}`: mammography: {UNLIKE}: its share of bright")
        with pytest.warns(HeaderWarning, match=f"mammography: {UNLIKE}"):
            predictor.predict_files(str(cases[2].mammography), str(cases[2].ultrasound))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predictor.predict_files(str(cases[1].mammography), str(cases[1].ultrasound))


def test_so_it_is_of_a_case_with_one_image(check: ModalityCheck, inverted: Path) -> None:
    case = replace(read_manifest(inverted).cases[2], ultrasound=None)
    alone = decode(case, SIZE, None, check=check, alone=True)
    assert not alone.error
    assert f"; mammography: {UNLIKE}" in alone.warnings


@pytest.mark.slow
def test_verify_evaluate_and_explain_count_it(bundle_folder: Path, inverted: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        assert done.exit_code == 0, done.stderr
        return " ".join(done.stderr.split()) + " " + " ".join(done.stdout.split())

    bundle, kept = checking(bundle_folder, tmp_path / "b"), tmp_path / "own.json"
    verify = ("verify", bundle, inverted, "--no-record", "--target", "onnxruntime:fp32")
    assert "1 of 6 cases have warnings, 1 that an image is unlike the training's; the first is `" in call(*verify)
    call(*verify, "--json", kept)
    own = json.loads(kept.read_text())["own_cases"]
    assert (own["warned"], own["look_swapped"], own["unlike_training"]) == (1, 0, 1)
    told = call("evaluate", bundle, inverted, "-o", tmp_path / "e", "--target", "onnxruntime:fp32")
    assert "1 of 6 cases have an image unlike those that the model has learnt from" in told
    assert "headers" not in told
    counted = json.loads(next((tmp_path / "e").glob("*.json")).read_text())["cases"]
    assert (counted["warned"], counted["look_swapped"], counted["unlike_training"]) == (1, 0, 1)
    third = read_manifest(inverted).cases[2].case_id
    assert f"the first is `{third}`: mammography: {UNLIKE}" in call(
        "explain", bundle, inverted, "--case", third, "-o", tmp_path / "x"
    )
    assert f"Mammography: {UNLIKE}" in (tmp_path / "x/explanation.html").read_text()


def test_inspect_says_what_is_warned_of(bundle_folder: Path, tmp_path: Path) -> None:
    def told(bundle: Path) -> str:
        done = CliRunner().invoke(app, ["inspect", str(bundle)])
        assert done.exit_code == 0, done.stderr
        return " ".join(done.stdout.split())

    folder = checking(bundle_folder, tmp_path / "b")
    assert "of images it warns: where a pair looks swapped, or one is unlike the training's" in told(folder)
    entry = json.loads((folder / "bundle.json").read_text())
    for check, said in ((entry["modality_check"] | {"learnt": None}, "where a pair looks swapped; not"), (None, "not")):
        seal(folder, _without(_without(entry, "files"), "sha256") | {"modality_check": check})
        assert f"of images it warns: {said}" in told(folder)


def test_the_benchmark_alters_what_it_says() -> None:
    image = (np.random.default_rng(0).beta(0.4, 0.6, (56, 56)) * 255.99).astype(np.uint8)
    altered = {name: np.asarray(alter(image)) for name, alter in unlike_images.ALTERED.items()}
    for name, one in altered.items():
        assert one.shape == image.shape, name
        assert (one.min() >= 0, one.max() <= 255) == (True, True), name
        assert (one == image).all() == (name == "as they are"), name


def test_the_page_shows_the_stored_result() -> None:
    root = Path(__file__).resolve().parents[1]
    stored, _, _ = (root / "benchmarks/results/unlike_images.md").read_text(encoding="utf-8").partition("## ")
    rows = [line for line in stored.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(unlike_images.ALTERED) + 2
    assert "\n".join(rows) in (root / "docs/evaluation.md").read_text(encoding="utf-8")


@pytest.mark.real_data
@pytest.mark.slow
def test_on_real_images_of_other_patients(real_data: Path) -> None:
    """Of 102 mammograms and 37 ultrasound images, each asked of ranges of other patients', none is warned of as it is,
    and every negative is (docs/evaluation.md)."""
    found = unlike_images.images_of(read_manifest(real_data / "real_pairs.csv"), Preprocessing(size=64))
    for images in found.values():
        assert sum(unlike_images.asked(images, lambda image: 255 - image)) == len(images)
        assert sum(unlike_images.asked(images, lambda image: image)) <= 1


def test_every_figure_has_a_name() -> None:
    assert tuple(learnt_ranges._NAMES) == FIGURES
