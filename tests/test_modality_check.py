"""A pair whose images are in each other's column is a warning, where the training has seen such images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.errors import BundleError, CheckpointError
from mpmmu_rt.export import Wanted, export_checkpoint
from mpmmu_rt.image_figures import FIGURES, figures
from mpmmu_rt.images import Preprocessing, read_pixels
from mpmmu_rt.modality_check import SAYS, ModalityCheck, figures_of
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model import modality_fit
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import HeaderWarning
from mpmmu_rt.run import run
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .conftest import Traced

Pixels = dict[Modality, Array]


def turned(pixels: Pixels) -> Pixels:
    return {"mammography": pixels["ultrasound"], "ultrasound": pixels["mammography"]}


@pytest.fixture(scope="module")
def check() -> ModalityCheck:
    pixels, _ = phantom_pixels(120, seed=0, preprocessing=Preprocessing(size=48))
    return modality_fit.fit(pixels["mammography"], pixels["ultrasound"])


def test_phantoms_that_were_swapped_are_seen_and_others_are_not(check: ModalityCheck) -> None:
    others, _ = phantom_pixels(150, seed=11, preprocessing=Preprocessing(size=48))
    assert check.swapped(figures_of(others)).sum() == 0
    assert check.swapped(figures_of(turned(others))).sum() >= 147


def test_one_strange_image_is_no_swap(check: ModalityCheck) -> None:
    pixels, _ = phantom_pixels(40, seed=12, preprocessing=Preprocessing(size=48))
    for modality in MODALITIES:
        both: Pixels = dict.fromkeys(MODALITIES, pixels[modality])
        assert not check.swapped(figures_of(both)).any(), f"two of {modality}: wrong, and not swapped"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 48])
def test_figures_are_finite_of_any_image(size: int) -> None:
    rng = np.random.default_rng(size)
    pixels = np.concatenate(
        [rng.integers(0, 256, (3, 1, size, size), np.uint8), np.zeros((1, 1, size, size), np.uint8)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no steps, of one pixel
        found = figures(pixels)
    assert found.shape == (4, len(FIGURES))
    assert size == 1 or np.isfinite(found).all()


@pytest.mark.parametrize("size", [2, 3, 7, 48, 224, 512])
def test_figures_are_what_their_definition_says(size: int) -> None:
    """`figures` sums integers; this is its docstring in floats."""
    rng = np.random.default_rng(size)
    pixels = (rng.beta(0.4, 0.6, (5, 1, size, size)) * 255.99).astype(np.uint8)
    pixels[3], pixels[4] = 255, np.arange(size, dtype=np.uint8)[:, None]
    grey = pixels[:, 0].astype(np.float64) / 255
    mean, deviation = grey.mean((1, 2)), grey.std((1, 2))
    scale = np.maximum(deviation, 1e-3)
    down, right = (np.abs(np.diff(grey, axis=axis)).sum((1, 2)) / size**2 for axis in (1, 2))
    third, half = max(1, size // 3), max(1, size // 2)
    wanted = [
        (pixels[:, 0] < 8).mean((1, 2)),
        (pixels[:, 0] >= 200).mean((1, 2)),
        mean,
        deviation,
        (down + right) / scale,
        np.log((down + 1e-4) / (right + 1e-4)),
        (grey[:, :third].mean((1, 2)) - grey[:, -third:].mean((1, 2))) / scale,
        np.abs(grey[:, :, :half].mean((1, 2)) - grey[:, :, -half:].mean((1, 2))) / scale,
    ]
    np.testing.assert_allclose(figures(pixels), np.stack(wanted, 1), rtol=1e-9, atol=1e-9)


def test_it_reads_back_what_it_wrote(check: ModalityCheck) -> None:
    again = ModalityCheck.from_json(json.loads(json.dumps(check.to_json())))
    assert again is not None
    pixels, _ = phantom_pixels(20, seed=13, preprocessing=Preprocessing(size=48))
    found = figures(pixels["ultrasound"])
    np.testing.assert_allclose(again.log_odds(found), check.log_odds(found), rtol=1e-6)
    assert ModalityCheck.from_json(None) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["intercept", "margin"])
def test_a_check_by_no_number_is_refused(check: ModalityCheck, name: str, value: float) -> None:
    """Python's JSON has them: every pair would pass, or every pair be warned of."""
    with pytest.raises(ValueError, match="does not hold 8 finite numbers each"):
        ModalityCheck.from_json(json.loads(json.dumps(check.to_json() | {name: value})))


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        {},
        {"figures": []},
        {"weights": [1.0]},
        {"scales": [0.0] * 8},
        {"means": ["x"] * 8},
        {"means": ["1"] * 8},
        {"margin": None},
        {"margin": "1"},
    ],
)
def test_a_check_that_makes_no_sense_is_refused(
    check: ModalityCheck, small_model: Checkpoint, tmp_path: Path, wrong: object
) -> None:
    entry = check.to_json() | wrong if isinstance(wrong, dict) and wrong else wrong
    if entry == {}:
        entry = {"figures": list(FIGURES)}
    checkpoints.save(small_model, tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modality_check": entry}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoints.load(tmp_path / "c")


@pytest.fixture(scope="module")
def checking(
    check: ModalityCheck, small_model: Checkpoint, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("checking")
    parts = (small_model.config, small_model.encoders, small_model.head, 0.4, small_model.card)
    checkpoints.save(Checkpoint(*parts, modality_check=check), folder / "c")
    wanted = Wanted((Target("onnxruntime", "fp32"),))
    with traced_once():
        return export_checkpoint(folder / "c", folder / "b", wanted=wanted)


@pytest.mark.slow
def test_run_and_predict_warn_of_a_swapped_pair_alone(checking: Bundle, phantom_manifest: Path, tmp_path: Path) -> None:
    cases = read_manifest(phantom_manifest).cases[:4]
    rows = [f"{one.case_id},{one.mammography},{one.ultrasound}" for one in cases[:3]]
    rows.append(f"{cases[3].case_id},{cases[3].ultrasound},{cases[3].mammography}")
    (tmp_path / "m.csv").write_text("\n".join(["case_id,mammography,ultrasound", *rows]) + "\n")
    with load(checking.path) as predictor:
        summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "p.csv")
        assert (summary.failed, summary.warned) == (0, 1)
        assert summary.first_warning == f"`{cases[3].case_id}`: {SAYS}"
        with pytest.warns(HeaderWarning, match="its images look swapped"):
            predictor.predict_files(str(cases[3].ultrasound), str(cases[3].mammography))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predictor.predict_files(str(cases[3].mammography), str(cases[3].ultrasound))


def test_a_bundle_whose_check_makes_no_sense_is_refused(checking: Bundle, tmp_path: Path) -> None:
    import shutil

    from mpmmu_rt.bundle import seal

    folder = Path(shutil.copytree(checking.path, tmp_path / "b"))
    entry = json.loads((folder / "bundle.json").read_text())
    entry["modality_check"]["weights"] = [1.0]
    seal(folder, {key: value for key, value in entry.items() if key not in ("files", "sha256")})
    with pytest.raises(BundleError, match="modality_check"):
        Bundle.open(folder)


@pytest.mark.real_data
@pytest.mark.slow
def test_on_real_images_of_other_patients(real_data: Path) -> None:
    """Fitted on four fifths of the patients, asked of the others: all 122 swapped pairs are seen, and no other is;
    one that was fitted on phantoms sees none."""
    cases = read_manifest(real_data / "real_pairs.csv").cases
    preprocessing = Preprocessing(size=64)
    pixels: Pixels = {}
    for modality in MODALITIES:
        read = {
            path: read_pixels(path, preprocessing, modality=modality)
            for path in {one.image(modality) for one in cases}
            if path
        }
        pixels[modality] = np.stack([read[path] for one in cases if (path := one.image(modality))])
    people = np.array([one.group for one in cases])
    known = list(dict.fromkeys(people))
    false, seen = 0, 0
    for fold in range(5):
        asked = np.isin(people, known[fold::5])
        fitted = modality_fit.fit(*(pixels[modality][~asked] for modality in MODALITIES))
        of_fold: Pixels = {modality: array[asked] for modality, array in pixels.items()}
        false += int(fitted.swapped(figures_of(of_fold)).sum())
        seen += int(fitted.swapped(figures_of(turned(of_fold))).sum())
    assert (false, seen) == (0, len(cases))
    drawn, _ = phantom_pixels(100, seed=3, preprocessing=preprocessing)
    of_phantoms = modality_fit.fit(*(drawn[modality] for modality in MODALITIES))
    assert of_phantoms.swapped(figures_of(pixels)).sum() == 0, "one that knows phantoms alone raises no alarm"
    assert of_phantoms.swapped(figures_of(turned(pixels))).sum() == 0, "and sees no swap"
