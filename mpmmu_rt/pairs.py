"""What every door holds of a pair: two images and not one twice, with something in each; and whether they look swapped,
or unlike those that the model has learnt from.

Files are held to it as they are read (`read_pairs`, `run.decode`), pixels that a stranger sends as they come
(`require_pairs`). `Predictor.predict` itself looks at their form alone: what explains and proves a model asks it of
images that are covered, and of one grey.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from .errors import ImageError
from .grey import check_content
from .images import Preprocessing, named, read_with_warnings, require_two, same_image
from .modality_check import ModalityCheck
from .spec import MODALITIES, Array, Modality
from .subject import require_one


def require_two_files(paths: Mapping[Modality, Path]) -> None:
    """Raise `ImageError` where one file is named for both modalities, before it is called what it is not."""
    first, second = (paths[modality] for modality in MODALITIES)
    if first == second:
        raise ImageError(
            f"{first} is given for both modalities, expected an image of each", hint="name the patient's two images"
        )
    with suppress(OSError, ValueError):  # what can't be looked at says so when it is read
        if os.path.samefile(first, second):
            raise same_image()


def require_pairs(pixels: Mapping[Modality, Array], where: Callable[[int], str] = lambda case: "") -> None:
    """Raise `ImageError` for a case whose images are one and the same, or one of them a single grey value.

    pixels: uint8 [N, 1, S, S] by modality. where: what a message begins with that is about a case, counted from 0.
    """
    for case in range(len(pixels["mammography"])):
        images = {modality: array[case] for modality, array in pixels.items()}
        with _where(where(case)):
            require_two(images)
            for modality, image in images.items():
                with named(f"`{modality}`"):
                    check_content(image[0])


@contextmanager
def _where(case: str) -> Iterator[None]:
    """What is raised about a case says about which."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{case}{error}", hint=error.hint) from error


def said_against(pixels: Mapping[Modality, Array], check: ModalityCheck | None) -> tuple[tuple[str, ...], ...]:
    """What is to be said against each case of pixels uint8 [N, 1, S, S], of both modalities or of one. check: of the
    bundle; None for none."""
    cases = len(next(iter(pixels.values())))
    return ((),) * cases if check is None or not cases else check.against(pixels)


def read_pairs(
    paths: Mapping[Modality, Sequence[Path]],
    preprocessing: Preprocessing,
    check: ModalityCheck | None,
    frame: int | None,
) -> tuple[dict[Modality, Array], list[str]]:
    """Image files, row by row of the same patient, to pixels uint8 [N, 1, S, S]; and what is to be said against them,
    which begins with their paths. Raises `ImageError`."""
    rows = [dict(zip(MODALITIES, row, strict=True)) for row in zip(*paths.values(), strict=True)]
    for row in rows:
        require_two_files(row)
    read = {
        modality: [read_with_warnings(path, preprocessing, modality=modality, frame=frame) for path in files]
        for modality, files in paths.items()
    }
    said = [
        f"{path}: {one}"
        for name, files in paths.items()
        for path, of in zip(files, read[name], strict=True)
        for one in of.warnings
    ]
    pixels: dict[Modality, Array] = {modality: np.stack([one.pixels for one in of]) for modality, of in read.items()}
    names = [", ".join(map(str, row.values())) for row in rows]
    wheres = [f"{name}: " if len(rows) > 1 else "" for name in names]
    require_pairs(pixels, wheres.__getitem__)
    against = said_against(pixels, check)
    for case, name in enumerate(names):
        with _where(wheres[case]):
            of_pair = require_one({modality: of[case].subject for modality, of in read.items()})
        said += [f"{name}: {one}" for one in (*of_pair, *against[case])]
    return pixels, said
