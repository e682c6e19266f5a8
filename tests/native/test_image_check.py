"""What is to be said against a pair, in Python's words: that it looks swapped, or an image is unlike the training's."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.learnt_ranges import UNLIKE
from mpmmu_rt.modality_check import SAYS, ModalityCheck
from mpmmu_rt.model import modality_fit
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .native import Library, Model, NativeError, address
from .test_build import decide
from .test_predict import STORED

SIDE = 32
RNG = np.random.default_rng(0)
ALTERED: list[Callable[[Array], Array]] = [
    lambda image: image,
    lambda image: 255 - image,
    lambda image: image[..., ::-1],
    lambda image: np.rot90(image, axes=(1, 2)),
    lambda image: RNG.permutation(image, axis=1),
    lambda image: np.minimum(image * float(RNG.uniform(1, 5)), 255).astype(np.uint8),
    lambda image: (255 * (image / 255) ** RNG.uniform(0.3, 3)).astype(np.uint8),
    lambda image: np.where(RNG.random(image.shape) < 0.3 * RNG.random(), RNG.integers(0, 256), image).astype(np.uint8),
    lambda image: RNG.integers(0, 256, image.shape, np.uint8),
]


@pytest.fixture(scope="module")
def phantoms() -> dict[Modality, Array]:
    return phantom_pixels(120, seed=0, preprocessing=Preprocessing(SIDE))[0]


@pytest.fixture(scope="module")
def bundle(phantoms: dict[Modality, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored one, with a check that was fitted on phantoms."""
    return knowing(modality_fit.fit(*phantoms.values()), tmp_path_factory.mktemp("check") / "b")


def knowing(check: ModalityCheck, folder: Path) -> Path:
    shutil.copytree(STORED, folder)
    seal(folder, json.loads((folder / "bundle.json").read_text()) | {"modality_check": check.to_json()})
    return folder


@pytest.fixture(scope="module")
def model(library: Library, bundle: Path) -> Iterator[Model]:
    with library.open(bundle, threads=1) as opened:
        yield opened


def said(model: Model, mammography: Array, ultrasound: Array) -> str:
    given, found = [np.ascontiguousarray(one) for one in (mammography, ultrasound)], ctypes.c_char_p(b"x")
    model.library.do("mpmmu_image_warning", model.handle, *map(address, given), ctypes.byref(found))
    assert found.value is not None
    return found.value.decode()


def test_it_says_what_python_says(model: Model, bundle: Path, phantoms: dict[Modality, Array]) -> None:
    check = Bundle.open(bundle).modality_check
    assert check is not None
    kinds = set()
    for _ in range(600):
        row = RNG.integers(len(phantoms["mammography"]))
        pair = [ALTERED[RNG.integers(len(ALTERED))](phantoms[modality][row]) for modality in MODALITIES]
        first, second = pair if RNG.random() < 0.8 else pair[::-1]
        (texts,) = check.against({"mammography": first[None], "ultrasound": second[None]})
        assert said(model, first, second) == "; ".join(texts)
        kinds.add((len(texts), SAYS in texts))
    assert kinds == {(0, False), (1, False), (2, False), (1, True)}, "all of it was seen"


def test_a_bundle_that_does_not_know_says_nothing(
    library: Library, phantoms: dict[Modality, Array], tmp_path: Path
) -> None:
    pair = phantoms["ultrasound"][0], phantoms["mammography"][0]
    with library.open(STORED, threads=1) as opened:
        assert said(opened, *pair) == ""
    few = modality_fit.fit(*(images[: modality_fit.FEWEST - 1] for images in phantoms.values()))
    with library.open(knowing(few, tmp_path / "few"), threads=1) as opened:
        assert said(opened, *pair) == SAYS
        assert said(opened, 255 - pair[1], pair[0]) == "", "it knows no ranges"


def test_what_makes_no_sense_is_refused_and_leaves_no_text(model: Model) -> None:
    image = address(np.zeros((SIDE, SIDE), np.uint8))
    for arguments in ((None, image, image), (model.handle, None, image), (model.handle, image, None)):
        found = ctypes.c_char_p(b"x")
        with pytest.raises(NativeError, match="is NULL, expected an address"):
            model.library.do("mpmmu_image_warning", *arguments, ctypes.byref(found))
        assert found.value is None
    with pytest.raises(NativeError, match="`warning` is NULL"):
        model.library.do("mpmmu_image_warning", model.handle, image, image, None)


def test_each_thread_has_its_own_text(model: Model, phantoms: dict[Modality, Array]) -> None:
    pairs = [(255 - phantoms["mammography"][row], phantoms["ultrasound"][row]) for row in range(16)]
    want = [said(model, *pair) for pair in pairs]
    assert len(set(want)) > 8
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            assert list(pool.map(lambda pair: said(model, *pair), pairs)) == want


def test_the_example_says_it(build_folder: Path, bundle: Path, phantoms: dict[Modality, Array], tmp_path: Path) -> None:
    paths = [tmp_path / "a.pgm", tmp_path / "b.pgm"]
    for path, grey in zip(paths, (255 - phantoms["mammography"][0, 0], phantoms["ultrasound"][0, 0]), strict=True):
        Image.fromarray(grey).save(path)
    ran = decide(build_folder / "decide", bundle, *paths)
    assert ran.returncode == 0
    assert ran.stderr.startswith(f"warning: mammography: {UNLIKE}: ")
    assert len(ran.stderr.splitlines()) == 1
