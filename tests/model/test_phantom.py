from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from mpmmu_rt.cases import read_manifest, require_complete
from mpmmu_rt.errors import OutputError, UsageError
from mpmmu_rt.images import Preprocessing, read_grey
from mpmmu_rt.model import phantom
from mpmmu_rt.model.data import data_from_phantoms
from mpmmu_rt.model.phantom import Phantom, ceilings, draw, phantom_pixels, write_phantoms

MANY = 1500


def same(a: Phantom, b: Phantom) -> bool:
    images = np.array_equal(a.mammography, b.mammography) and np.array_equal(a.ultrasound, b.ultrasound)
    return images and (a.label, a.signs) == (b.label, b.signs)


@pytest.fixture(scope="module")
def facts() -> tuple[np.ndarray, np.ndarray]:
    """Label [N] and the bits (suspicious mammogram, suspicious ultrasound image) [N, 2] of many phantoms."""
    phantoms = [(p.label, p.signs) for p in draw(MANY, seed=7, side=phantom.MIN_SIDE)]
    names = (phantom.MAMMOGRAPHY_SIGN, phantom.ULTRASOUND_SIGN)
    bits = np.array([[name in signs for name in names] for _, signs in phantoms])
    return np.array([label for label, _ in phantoms]), bits


def test_a_prefix_does_not_depend_on_the_count() -> None:
    long = list(draw(6, seed=3, side=80))
    assert all(same(a, b) for a, b in zip(draw(4, seed=3, side=80), long[:4], strict=True))
    assert all(same(a, b) for a, b in zip(islice(draw(10**9, seed=3, side=80), 2), long[:2], strict=True))


def test_phantoms_and_seeds_differ() -> None:
    first, second = draw(2, seed=3, side=64)
    other = next(draw(1, seed=4, side=64))
    assert not same(first, second)
    assert not same(first, other)


def test_label_and_signs_do_not_depend_on_the_side() -> None:
    small, large = (list(draw(20, seed=1, side=side)) for side in (64, 96))
    assert [(p.label, p.signs) for p in small] == [(p.label, p.signs) for p in large]


def test_images_are_grey_uint8_with_content() -> None:
    for item in draw(8, seed=0, side=97):
        for image in (item.mammography, item.ultrasound):
            assert image.shape == (97, 97)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert image.std() > 10
            assert (image == 255).mean() < 0.25, "saturated"


@pytest.mark.slow
def test_the_proportions_are_those_of_the_constants(facts: tuple[np.ndarray, np.ndarray]) -> None:
    label, bits = facts
    malignant, benign = bits[label == 1], bits[label == 0]
    expected = (
        (label == 1, phantom.MALIGNANT),
        (malignant[:, 0] & ~malignant[:, 1], phantom.MAMMOGRAPHY_ONLY),
        (~malignant[:, 0] & malignant[:, 1], phantom.ULTRASOUND_ONLY),
        (malignant.all(1), phantom.BOTH),
        (benign[:, 0], phantom.MAMMOGRAPHY_MIMIC),
        (benign[:, 1], phantom.ULTRASOUND_MIMIC),
        (benign.all(1), phantom.MAMMOGRAPHY_MIMIC * phantom.ULTRASOUND_MIMIC),
    )
    for seen, share in expected:
        error = (share * (1 - share) / len(seen)) ** 0.5
        assert abs(seen.mean() - share) < 4 * error
    assert malignant.any(1).all(), "a malignant phantom without any sign"


def test_the_ceilings_are_what_a_perfect_reader_reaches(facts: tuple[np.ndarray, np.ndarray]) -> None:
    label, bits = facts
    # The likelihood ratio grows with the number of suspicious images; mammography's single sign weighs more.
    scores = {"mammography": bits[:, 0], "ultrasound": bits[:, 1], "fused": bits @ (1.1, 1.0)}
    limits = ceilings()
    for name, score in scores.items():
        assert roc_auc_score(label, score) == pytest.approx(limits[name], abs=0.035)  # 3 standard errors


def test_the_ceilings_by_hand_and_in_the_docstring() -> None:
    limits = ceilings()
    # One bit: (1 + sensitivity - false positive rate) / 2.
    assert limits["mammography"] == pytest.approx((1 + 0.33 + 0.38 - 0.14) / 2)
    assert limits["ultrasound"] == pytest.approx((1 + 0.29 + 0.38 - 0.14) / 2)
    text = phantom.__doc__ or ""
    for name in ("mammography", "ultrasound", "fused"):
        assert f"{limits[name]:.3f}" in text, name
    assert limits["fused"] > max(limits["mammography"], limits["ultrasound"]) + 0.1


def test_a_useless_sign_has_no_ceiling_above_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAMMOGRAPHY_ONLY", 0.3), ("ULTRASOUND_ONLY", 0.7), ("BOTH", 0.0)):
        monkeypatch.setattr(phantom, name, value)
    monkeypatch.setattr(phantom, "MAMMOGRAPHY_MIMIC", 0.3)
    assert ceilings()["mammography"] == pytest.approx(0.5)


@pytest.mark.slow
def test_the_signs_are_in_the_images() -> None:
    """Simple measures of the image, which know nothing of the label, tell sign from no sign."""
    shadow, spicules, is_shadow, is_spiculated = [], [], [], []
    for item in draw(120, seed=11, side=128):
        is_shadow.append(phantom.ULTRASOUND_SIGN in item.signs)
        is_spiculated.append(phantom.MAMMOGRAPHY_SIGN in item.signs)
        columns = item.ultrasound[85:].mean(0)
        smooth = np.convolve(columns, np.ones(9) / 9, "valid")
        shadow.append(np.median(smooth) - smooth.min())
        image = item.mammography.astype(float)
        edges = np.hypot(*np.gradient(image))[:, 16:-16]
        spicules.append(np.sort(edges[32:96].ravel())[-200:].mean())
    assert roc_auc_score(is_shadow, shadow) > 0.9
    assert roc_auc_score(is_spiculated, spicules) > 0.7


def test_pixels_are_those_of_the_phantoms() -> None:
    preprocessing = Preprocessing(size=128)
    pixels, label = phantom_pixels(5, seed=2, preprocessing=preprocessing)
    assert label.dtype == np.int64
    for row, item in enumerate(draw(5, seed=2, side=128)):
        assert label[row] == item.label
        assert np.array_equal(pixels["mammography"][row, 0], item.mammography)
        assert np.array_equal(pixels["ultrasound"][row, 0], item.ultrasound)
    small, _ = phantom_pixels(2, seed=2, preprocessing=Preprocessing(size=48))
    assert small["ultrasound"].shape == (2, 1, 48, 48)


def test_written_phantoms_are_a_readable_manifest(tmp_path: Path) -> None:
    path = write_phantoms(3, tmp_path / "phantoms", seed=5)
    manifest = read_manifest(path)
    require_complete(manifest, labels=True)
    assert [case.case_id for case in manifest.cases] == ["phantom-0000", "phantom-0001", "phantom-0002"]
    for case, item in zip(manifest.cases, draw(3, seed=5), strict=True):
        assert case.label == item.label
        assert case.mammography is not None
        assert case.ultrasound is not None
        assert np.array_equal(read_grey(case.mammography), item.mammography)
        assert np.array_equal(read_grey(case.ultrasound), item.ultrasound)
    with path.open(encoding="utf-8") as stream:
        assert next(csv.reader(stream)) == ["case_id", "mammography", "ultrasound", "label", "patient"]
    # The same drawings have the same names in training, and no other seed's have.
    size = Preprocessing(size=32)
    assert tuple(case.group for case in manifest.cases) == data_from_phantoms(3, 5, size).groups
    assert not set(data_from_phantoms(3, 5, size).groups) & set(data_from_phantoms(3, 6, size).groups)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    save = Image.Image.save

    def fail(image: Image.Image, path: Path) -> None:
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_phantoms(3, tmp_path / "phantoms", seed=5)
    assert len(saved) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_phantoms(1, tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("count", "seed", "side"), [(0, 0, 64), (1, -1, 64), (1, 0, 63)])
def test_senseless_arguments_are_refused_at_the_call(count: int, seed: int, side: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        draw(count, seed=seed, side=side)
