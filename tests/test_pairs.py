"""One pair of images through every door of Python: the same refusals, and words that fit the door."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mpmmu_rt import load
from mpmmu_rt.bundle import seal
from mpmmu_rt.cases import Case, read_manifest
from mpmmu_rt.checks import decide, shortest, shown
from mpmmu_rt.cli import app
from mpmmu_rt.errors import ImageError
from mpmmu_rt.explain import explain
from mpmmu_rt.pairs import require_pairs
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.run import run
from mpmmu_rt.serving.answers import read_pair
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .test_predictor import AVERAGE, SAME, tiny_bundle

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
Save = Callable[..., Path]


def checks(first: int, other: int) -> Array:
    """4 × 4 of two greys."""
    return np.where(np.indices((4, 4)).sum(0) % 2, first, other).astype(np.uint8)


def averaging(folder: Path, threshold: float = 0.5) -> Path:
    """A bundle that says the mean grey of both images, 4 × 4."""
    tiny_bundle(folder, pool=SAME, head=AVERAGE)
    entry = json.loads((folder / "bundle.json").read_text())
    seal(folder, {key: value for key, value in entry.items() if key != "sha256"} | {"threshold": threshold})
    return folder


def pair(folder: Path) -> list[Path]:
    paths = [folder / f"{modality}.png" for modality in MODALITIES]
    for path, array in zip(paths, (checks(178, 179), checks(179, 178)), strict=True):
        Image.fromarray(np.kron(array, np.ones((8, 8), np.uint8))).save(path)
    return paths


def by_run(predictor: Predictor, paths: tuple[Path, Path], folder: Path) -> str:
    (folder / "m.csv").write_text(f"case_id,mammography,ultrasound\na,{paths[0]},{paths[1]}\n")
    run(predictor, read_manifest(folder / "m.csv"), folder / "out.csv", overwrite=True)
    with (folder / "out.csv").open(newline="") as file:
        return next(csv.DictReader(file))["error"]


def by_files(predictor: Predictor, paths: tuple[Path, Path], folder: Path) -> str:
    with pytest.raises(ImageError) as caught:
        predictor.predict_files(*paths)
    return f"{caught.value}; {caught.value.hint}"


def by_explain(predictor: Predictor, paths: tuple[Path, Path], folder: Path) -> str:
    with pytest.raises(ImageError) as caught:
        explain(predictor, Case("a", *paths))
    return f"{caught.value}; {caught.value.hint}"


def by_triton(predictor: Predictor, paths: tuple[Path, Path], folder: Path) -> str:
    sent = {modality: memoryview(path.read_bytes()) for modality, path in zip(MODALITIES, paths, strict=True)}
    with pytest.raises(ImageError) as caught:
        read_pair(sent, predictor.bundle.preprocessing)
    return f"{caught.value}; {caught.value.hint}"


DOORS = [by_run, by_files, by_explain, by_triton]


@pytest.mark.parametrize("door", DOORS)
def test_one_dicom_file_for_both_is_called_so_and_not_another_modality(
    save_dicom: Save, tmp_path: Path, door: Callable[[Predictor, tuple[Path, Path], Path], str]
) -> None:
    """It was a mammogram in the wrong place to some doors, which told people to exchange the two."""
    given = save_dicom(np.arange(16, dtype=np.uint8).reshape(4, 4) * 10)
    (tmp_path / "link.dcm").symlink_to(given)
    with load(averaging(tmp_path / "b")) as predictor:
        same, linked = (door(predictor, (given, path), tmp_path) for path in (given, tmp_path / "link.dcm"))
    one = "the mammogram and the ultrasound image are the same, pixel by pixel, expected an image of each"
    twice = one if door is by_triton else f"{given} is given for both modalities, expected an image of each"
    assert same == f"{twice}; name the patient's two images"
    assert linked == f"{one}; name the patient's two images"


@pytest.mark.parametrize("door", DOORS)
def test_an_image_of_the_other_modality_is_refused_in_words_that_fit_the_door(
    save_dicom: Save, tmp_path: Path, door: Callable[[Predictor, tuple[Path, Path], Path], str]
) -> None:
    """Only one door in four has a manifest with columns."""
    greys = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    sonogram, mammogram = save_dicom(greys, name="u.dcm", Modality="US"), save_dicom(greys[::-1], name="m.dcm")
    with load(averaging(tmp_path / "b")) as predictor:
        said = door(predictor, (sonogram, mammogram), tmp_path)
    assert re.search(r"u\.dcm|`mammography`", said)
    assert "is an ultrasound image (modality US), expected a mammogram (modality MG)" in said
    assert said.endswith("; name it under `ultrasound`: the two may be exchanged")


def test_of_several_pairs_the_one_that_is_none_is_named(tmp_path: Path) -> None:
    mammogram, sonogram = pair(tmp_path)
    copy = Path(shutil.copy(mammogram, tmp_path / "copy.png"))
    with load(averaging(tmp_path / "b")) as predictor, pytest.raises(ImageError) as caught:
        predictor.predict_files([mammogram, mammogram], [sonogram, copy])
    assert str(caught.value).startswith(f"{mammogram}, {copy}: the mammogram and the ultrasound image are the same")


@pytest.mark.parametrize("modality", MODALITIES)
def test_pixels_of_one_grey_are_refused_as_a_file_of_them_is(modality: Modality) -> None:
    pixels = {name: np.stack([checks(1, 2 + at), checks(3, 4 + at)])[:, None] for at, name in enumerate(MODALITIES)}
    require_pairs(pixels)
    pixels[modality][1] = 9
    with pytest.raises(ImageError) as caught:
        require_pairs(pixels, lambda case: f"case {case}: ")
    assert str(caught.value).startswith(f"case 1: `{modality}` is blank: grey value 9 everywhere")


@pytest.mark.parametrize(
    ("probability", "threshold", "style", "says"),
    [
        (0.25, 0.5, "f", "0.2500"),
        (0.39996, 0.4, "f", "0.39996"),
        (0.4, 0.4, "f", "0.4000"),
        (0.4 + 1e-7, 0.4, "f", "0.4000"),
        (np.nextafter(np.float32(0.4), np.float32(0)), 0.4, "f", "0.39999998"),
        (0.39996, 0.4, "g", "0.39996"),
        (0.25, 0.4, "g", "0.25"),
    ],
)
def test_a_probability_is_shown_on_its_side_of_the_threshold(
    probability: float, threshold: float, style: str, says: str
) -> None:
    text = shown(probability, threshold, "g" if style == "g" else "f")
    assert text == says
    assert decide(np.array(float(text)), threshold) == decide(np.array(probability), threshold)


def predicted(bundle: Path, paths: list[Path]) -> tuple[str, dict[str, object]]:
    """What the command prints, and its JSON."""
    command = ["predict", str(bundle), "--mammography", str(paths[0]), "--ultrasound", str(paths[1])]
    command += ["--target", "onnxruntime:fp32"]
    done = [CliRunner().invoke(app, [*command, *more]) for more in ([], ["--json", "-"])]
    assert [one.exit_code for one in done] == [0, 0], done[0].stderr
    return " ".join(done[0].stdout.split()), json.loads(done[1].stdout)


def test_what_is_printed_and_what_is_decided_do_not_contradict_each_other(tmp_path: Path) -> None:
    """A threshold that is the probability, as `run` writes it: JSON had more digits of it, and was below."""
    paths = pair(tmp_path)
    with load(averaging(tmp_path / "any")) as predictor:
        exact = shortest(predictor.predict_files(*paths).probability[0])
    for name, threshold, says in (
        ("at", float(exact), f"malignant: probability of malignancy {exact}, threshold {exact}"),
        ("above", float(exact) + 1e-6, "benign: probability of malignancy 0.7000, threshold 0.700001"),
        ("below", float(exact) - 1e-5, "malignant: probability of malignancy 0.7000, threshold 0.69999"),
    ):
        text, entry = predicted(averaging(tmp_path / name, threshold), paths)
        assert text.startswith(says)
        assert (entry["probability"], entry["threshold"]) == (float(exact), threshold)
        assert (entry["decision"] == "malignant") == (float(exact) >= threshold)


def test_an_explanation_says_whether_its_target_was_verified_here(tmp_path: Path) -> None:
    """As `run`, `predict` and `serve` do."""
    folder = shutil.copytree(STORED, tmp_path / "b")
    grey, command = np.random.default_rng(0), ["explain", str(folder), "-o", str(tmp_path / "explanation")]
    for modality in MODALITIES:
        Image.fromarray(grey.integers(0, 256, (40, 40), np.uint8)).save(tmp_path / f"{modality}.png")
        command += [f"--{modality}", str(tmp_path / f"{modality}.png")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "note: onnxruntime:fp32 is not verified on this machine: there is no b.verified.json; " in said
    assert said.endswith(f"`mpmmu-rt verify {folder} --target onnxruntime:fp32`")
