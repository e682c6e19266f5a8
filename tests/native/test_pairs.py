"""What is held against a pair of images, and against a model: as Python says it, or the native library has a hole."""

from __future__ import annotations

import json
import locale
import shutil
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.bundle import TRIED_INT8, UNTRAINED, Bundle, seal
from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.pairs import require_pairs
from mpmmu_rt.spec import Array, Modality

from .native import Library, NativeError, Said, checked, tool
from .test_predict import STORED, pixels


def one_twice(given: dict[Modality, Array], case: int) -> None:
    given["ultrasound"][case] = given["mammography"][case]


def one_grey(given: dict[Modality, Array], case: int) -> None:
    given["ultrasound"][case] = 128


@pytest.mark.parametrize("spoilt", [one_twice, one_grey])
@pytest.mark.parametrize(("cases", "case"), [(1, 0), (3, 0), (3, 2)])
def test_a_pair_that_is_none_is_refused(library: Library, spoilt: object, cases: int, case: int) -> None:
    """It would give a probability that looks right."""
    given = pixels(32, cases)
    assert callable(spoilt)
    spoilt(given, case)
    where = f"case {case} (counted from 0): " if cases > 1 else ""
    with pytest.raises(ImageError) as want:
        require_pairs(given, lambda _: where)
    said = Said(np.zeros(cases, np.float32), np.zeros(cases, np.uint8), None, np.zeros((cases, 64), np.float32))
    with library.open(STORED, threads=1) as model:
        with pytest.raises(NativeError) as caught:
            model.predict_into(given, said)
        assert (caught.value.status, str(caught.value)) == ("PIXELS_ERROR", str(want.value))
        assert caught.value.hint == want.value.hint
        assert np.isnan(said.probability).all()
        assert (said.malignant == 255).all()
        assert np.isfinite(model.predict(pixels(32, cases)).probability).all(), "the next call is another"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"trained": False}, UNTRAINED),
        ({"calibration": {"kind": "manifest"}}, ""),
        ({"calibration": {"kind": "phantoms", "seed": 1, "cases": 8}}, TRIED_INT8),
        ({"trained": False, "calibration": {"kind": "phantoms"}}, f"{UNTRAINED}; {TRIED_INT8}"),
    ],
)
def test_what_speaks_against_a_model_is_told(
    library: Library, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    folder = Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))
    seal(folder, json.loads((folder / "bundle.json").read_text()) | changes)
    assert (Bundle.open(folder).warning or "") == says
    with library.open(folder, threads=1) as model:
        assert model.info.warning.decode() == says


@pytest.mark.parametrize(("name", "point"), [("de_DE", ","), ("ps_AF", "\u066b")])  # the latter has two bytes
def test_a_locale_with_a_decimal_comma_changes_nothing(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, point: str
) -> None:
    checked([tool("localedef"), "-i", name, "-f", "UTF-8", str(tmp_path / f"{name}.UTF-8")])
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    given, before = pixels(32, 2), locale.setlocale(locale.LC_ALL)
    with library.open(STORED, threads=1) as model:
        want = model.predict(given)
    locale.setlocale(locale.LC_ALL, f"{name}.UTF-8")
    try:
        assert locale.localeconv()["decimal_point"] == point
        with library.open(STORED, threads=1) as model:
            assert (model.info.threshold, model.self_test().flipped) == (0.4, 0)
            np.testing.assert_array_equal(model.predict(given).probability, want.probability)
        with pytest.raises(NativeError, match=r"`pixel_aspect` is 9\.500000, expected a ratio"):
            library.preprocess(np.zeros((2, 2), np.uint8), Preprocessing(32), 9.5)
    finally:
        locale.setlocale(locale.LC_ALL, before)
