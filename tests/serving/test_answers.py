"""Requests that share a batch: each has its answer or its error, whatever the others are."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.errors import AnswerError, ImageError, MpmmuError, PixelsError
from mpmmu_rt.images import Preprocessing, read_pixels
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.serving.answers import Answer, Pixels, answers, as_ours, read_pair
from mpmmu_rt.spec import MODALITIES, Array, Modality
from tests.test_predictor import AVERAGE, SAME, levels, tiny_bundle

from .serving import BUNDLE, encoded, random_pixels


def test_rows_are_what_the_predictor_says_of_each_request_alone(predictor: Predictor) -> None:
    rng = np.random.default_rng(1)
    requests = [random_pixels(rng, count) for count in (1, 5, 2, 1, 9)]
    for pixels, said in zip(requests, answers(predictor, requests), strict=True):
        want = predictor.predict(pixels)
        assert isinstance(said, Answer)
        assert want.base_probability is not None
        assert said.base_probability is not None
        np.testing.assert_array_equal(said.probability[:, 0], want.probability)
        np.testing.assert_array_equal(said.base_probability, want.base_probability)
        np.testing.assert_array_equal(said.decision[:, 0], want.malignant)
        assert [str(one.dtype) for one in (said.probability, said.decision)] == ["float32", "uint8"]


def test_what_is_malformed_is_its_own_error_and_moves_nobody(predictor: Predictor) -> None:
    rng = np.random.default_rng(2)
    good = [random_pixels(rng, count) for count in (2, 3)]
    uneven = random_pixels(rng, 2)
    uneven["ultrasound"] = uneven["ultrasound"][:1]
    floats: dict[Modality, Array] = {name: array.astype(np.float32) for name, array in random_pixels(rng, 1).items()}
    sent: list[Pixels | MpmmuError] = [
        random_pixels(rng, 1, size=31),
        good[0],
        uneven,
        random_pixels(rng, 0),
        floats,
        ImageError("is no image", hint="send one"),
        good[1],
    ]
    said = answers(predictor, sent)
    kinds = [type(one) for one in said]
    assert kinds == [PixelsError, Answer, PixelsError, PixelsError, PixelsError, ImageError, Answer]
    assert "uint8[1, 1, 31, 31]" in str(said[0])
    assert "2 mammograms and 1 ultrasound images" in str(said[2])
    for index, pixels in ((1, good[0]), (6, good[1])):
        one = said[index]
        assert isinstance(one, Answer)
        np.testing.assert_array_equal(one.probability[:, 0], predictor.predict(pixels).probability)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_case_without_a_number_costs_its_own_request_alone(rooted: Path, order: tuple[int, ...]) -> None:
    greys = ((250, 180), (140, 90, 200, 10), (20,), (240,))
    with load(rooted) as predictor:
        said = answers(predictor, [levels(*greys[index]) for index in order])
    for index, one in zip(order, said, strict=True):
        if index in (1, 2):
            assert isinstance(one, AnswerError)
            assert one.rows == ((1, 3) if index == 1 else (0,))
            assert "gave no number for the cases" in str(one)
        else:
            assert isinstance(one, Answer)
            want = (np.array(greys[index]) / 255 - 0.5) ** 0.5
            np.testing.assert_allclose(one.probability[:, 0], want, atol=1e-6)


def test_an_engine_that_fails_is_everybodys_error_but_not_that_of_the_malformed(tmp_path: Path) -> None:
    predictor = load(tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE))
    predictor.close()
    predictor._process = -1  # as after a fork
    said = answers(predictor, [levels(1), levels(2), ImageError("is no image")])
    assert [type(one).__name__ for one in said] == ["EngineError", "EngineError", "ImageError"]


def test_weights_that_are_written_over_are_everybodys_error_in_two_lines(tmp_path: Path) -> None:
    """Triton would send Python's traceback to all of them, the malformed as well."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "b"))
    good, malformed = random_pixels(RNG, 1), random_pixels(RNG, 1, size=31)
    with load(folder) as predictor:
        time.sleep(0.02)  # the clock's tick
        with (folder / "onnx/weights.bin").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"?")
        said = answers(predictor, [good, malformed, good])
    assert [type(one).__name__ for one in said] == ["DigestMismatch", "PixelsError", "DigestMismatch"]


def test_a_defect_of_ours_is_told_in_two_lines_and_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("one\ntwo")
    except ValueError as error:
        said = as_ours(error)
    assert str(said) == "internal error: ValueError: one two, expected an answer"
    assert said.hint
    assert f'File "{__file__}"' in caplog.text


def test_no_request_is_no_answer(predictor: Predictor) -> None:
    assert answers(predictor, []) == []


# ---------------------------------------------------------------- files

PREPROCESSING = Preprocessing(32)
RNG = np.random.default_rng(3)
PNG, JPEG = (encoded(RNG.integers(0, 256, (50, 40), np.uint8), kind) for kind in ("PNG", "JPEG"))


def pair(mammography: bytes, ultrasound: bytes) -> dict[Modality, memoryview]:
    return {"mammography": memoryview(mammography), "ultrasound": memoryview(ultrasound)}


def test_files_in_memory_are_the_pixels_of_files_on_disk(tmp_path: Path) -> None:
    found, warnings = read_pair(pair(PNG, JPEG), PREPROCESSING)
    assert warnings == ()
    for name, data in zip(MODALITIES, (PNG, JPEG), strict=True):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(found[name][0], read_pixels(tmp_path / name, PREPROCESSING))


def test_what_a_header_says_comes_with_the_pixels(save_dicom: Callable[..., Path]) -> None:
    stored = RNG.integers(0, 4096, (50, 40), np.uint16)
    data = save_dicom(stored, BitsStored=12, RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=None).read_bytes()
    found, _ = read_pair(pair(data, PNG), PREPROCESSING)
    assert found["mammography"].shape == (1, 1, 32, 32)
    with pytest.raises(ImageError, match=r"^`ultrasound` "):  # it says that it is a mammogram
        read_pair(pair(PNG, data), PREPROCESSING)


@pytest.mark.parametrize(
    ("mammography", "ultrasound", "says"),
    [
        (PNG, PNG, "are the same, pixel by pixel"),
        (b"", JPEG, "`mammography` is empty"),
        (PNG, b"hello, world", "`ultrasound` begins with"),
        (PNG[:-20], JPEG, "`mammography` "),
        (PNG, JPEG[: len(JPEG) // 2], "`ultrasound` "),
    ],
)
def test_bad_files(mammography: bytes, ultrasound: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        read_pair(pair(mammography, ultrasound), PREPROCESSING)
    assert caught.value.hint
