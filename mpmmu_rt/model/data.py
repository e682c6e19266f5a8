"""What training learns from: every image once, and the rows that pair them.

A manifest may pair each mammogram of a patient with each of her ultrasound images. Stage 1 learns from images
and sees every file once; stage 2 learns from rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np

from mpmmu_rt.cases import Manifest, require_complete, require_people
from mpmmu_rt.errors import ManifestError
from mpmmu_rt.image_warnings import ImageWarning, warnings_of
from mpmmu_rt.images import Preprocessing, read_with_warnings, require_two_in
from mpmmu_rt.known_images import digest
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality
from mpmmu_rt.subject import NOBODY, Subject, named_otherwise

from .phantom import patient, phantom_pixels

SHARED = "a row of another patient has the same image: it may be learned from and tested on"
SAME_PERSON = "a row of another patient is of the same one by its header: she may be learned from and tested on"
MAX_DECODERS = 8  # threads; each may hold one decoded image of up to 200 million pixels


@dataclass(frozen=True)
class TrainingData:
    """Unique images and the rows made of them; for M images of a modality and N rows:

    `pixels[modality]` uint8 [M, 1, S, S], `image_of_row[modality]` int64 [N], `label` int64 [N] (0 benign,
    1 malignant), `groups` N patients. `source` says where it all comes from, for the model card; `warnings` what the
    headers of the images say against them.
    """

    pixels: dict[Modality, Array]
    image_of_row: dict[Modality, Array]
    label: Array
    groups: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    warnings: tuple[ImageWarning, ...] = ()

    def images(self, modality: Modality, rows: Array) -> tuple[Array, Array]:
        """The distinct images of `rows`, int64 [K] ascending, and their labels, int64 [K].

        An image is malignant if any of the rows that use it is: it shows that lesion.
        """
        index, position = np.unique(self.image_of_row[modality][rows], return_inverse=True)
        label = np.zeros(len(index), np.int64)
        np.maximum.at(label, position, self.label[rows])
        return index, label

    @cached_property
    def sha256(self) -> str:
        """Of everything that training sees: tells whether two data are the same."""
        digest = hashlib.sha256(repr((self.preprocessing, self.groups, self.label.tolist())).encode())
        for name in MODALITIES:
            digest.update(repr((self.pixels[name].shape, self.image_of_row[name].tolist())).encode())
            digest.update(np.ascontiguousarray(self.pixels[name]).data)
        return digest.hexdigest()


def read_data(
    manifest: Manifest | None, phantom: int | None, seed: int, preprocessing: Preprocessing, progress: Progress = silent
) -> TrainingData:
    """What is trained on: the cases of the manifest, else so many phantoms."""
    if manifest is not None:
        return data_from_manifest(manifest, preprocessing, progress)
    return data_from_phantoms(phantom or 0, seed, preprocessing)


def data_from_manifest(manifest: Manifest, preprocessing: Preprocessing, progress: Progress = silent) -> TrainingData:
    """Decode every file of `manifest` once.

    Raises `ManifestError` if a row lacks an image or its label, or if two patients share a file, which would
    leak through the split; `ImageError` for the first image that can't be read: training data must be whole.
    """
    require_people(manifest)
    require_complete(manifest, labels=True)
    groups = tuple(case.group for case in manifest.cases)
    files: dict[Modality, dict[Path, int]] = {}
    image_of_row: dict[Modality, Array] = {}
    for name in MODALITIES:
        paths = [path.resolve() for case in manifest.cases if (path := case.image(name)) is not None]
        _check_owners(manifest.path, paths, groups)
        files[name] = {path: index for index, path in enumerate(dict.fromkeys(paths))}
        image_of_row[name] = np.array([files[name][path] for path in paths], np.int64)
    pixels, warned, subjects = _decode(files, preprocessing, progress)
    of_pairs: list[ImageWarning] = []
    for row in range(len(groups)):
        image = {name: image_of_row[name][row] for name in MODALITIES}
        texts = require_two_in(
            manifest.path,
            row,
            {name: pixels[name][image[name]] for name in MODALITIES},
            {name: subjects[name][image[name]] for name in MODALITIES},
        )
        of_pairs += warnings_of(manifest.path.name, row + 1, "ultrasound", texts, grave=True)
    return TrainingData(
        pixels,
        image_of_row,
        np.array([case.label for case in manifest.cases], np.int64),
        groups,
        preprocessing,
        source=f"{manifest.path.name}, sha256 {manifest.sha256}",
        warnings=tuple(
            one
            for name in MODALITIES
            for row, index in zip(*_first_rows(image_of_row[name]), strict=True)
            for one in warnings_of(manifest.path.name, row + 1, name, warned[name][index])
        )
        + tuple(of_pairs)
        + tuple(
            one
            for text, found in (
                (SHARED, _of_several(pixels, image_of_row, groups)),
                (SAME_PERSON, _of_one_person(subjects, image_of_row, groups)),
            )
            for row, name in found
            for one in warnings_of(manifest.path.name, row + 1, name, (text,), grave=True)
        ),
    )


def data_from_phantoms(count: int, seed: int, preprocessing: Preprocessing) -> TrainingData:
    """`count` phantoms, one row and one patient's place each."""
    pixels, label = phantom_pixels(count, seed=seed, preprocessing=preprocessing)
    rows = np.arange(count)
    return TrainingData(
        pixels,
        {name: rows for name in MODALITIES},
        label,
        tuple(patient(seed, row) for row in range(count)),
        preprocessing,
        source=f"{count} generated phantoms, seed {seed}: no patients",
    )


def _check_owners(manifest: Path, paths: list[Path], groups: tuple[str, ...]) -> None:
    owners: dict[Path, str] = {}
    for path, group in zip(paths, groups, strict=True):
        if owners.setdefault(path, group) != group:
            raise ManifestError(
                f"{manifest}: {path.name} belongs to the patients `{owners[path]}` and `{group}`, expected one",
                hint="group the rows of one person by the `patient` column",
            )


def _of_several(
    pixels: Mapping[Modality, Array], image_of_row: Mapping[Modality, Array], groups: Sequence[str]
) -> Iterator[tuple[int, Modality]]:
    """The rows, and in them the modalities, whose image an earlier row has of another patient: as the model sees it,
    whatever its file is called."""
    digests = {name: [digest(image) for image in pixels[name]] for name in MODALITIES}
    owners: dict[str, str] = {}
    for row, group in enumerate(groups):
        for name in MODALITIES:
            if owners.setdefault(digests[name][image_of_row[name][row]], group) != group:
                yield row, name


def _of_one_person(
    subjects: Mapping[Modality, Sequence[Subject]], image_of_row: Mapping[Modality, Array], groups: Sequence[str]
) -> Iterator[tuple[int, Modality]]:
    """The rows, and in them the modalities, whose image is by its header of the person of an earlier row of another
    patient."""
    places = [(row, name) for row in range(len(groups)) for name in MODALITIES]
    shown = ((subjects[name][image_of_row[name][row]], groups[row]) for row, name in places)
    return compress(places, named_otherwise(shown))


def _first_rows(image_of_row: Array) -> tuple[list[int], list[int]]:
    """The first row that uses each image, and the image."""
    image, row = np.unique(image_of_row, return_index=True)
    return row.tolist(), image.tolist()


def _decode(
    files: dict[Modality, dict[Path, int]], preprocessing: Preprocessing, progress: Progress
) -> tuple[dict[Modality, Array], dict[Modality, list[tuple[str, ...]]], dict[Modality, list[Subject]]]:
    """The pixels of every file, what its header says against it, and whom it shows."""
    jobs = [(name, path, index) for name, paths in files.items() for path, index in paths.items()]
    size = preprocessing.size
    pixels: dict[Modality, Array] = {
        name: np.empty((len(paths), 1, size, size), np.uint8) for name, paths in files.items()
    }
    warnings: dict[Modality, list[tuple[str, ...]]] = {name: [()] * len(paths) for name, paths in files.items()}
    subjects = {name: [NOBODY] * len(paths) for name, paths in files.items()}
    with ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1)) as pool:
        decoded = pool.map(lambda job: read_with_warnings(job[1], preprocessing, modality=job[0]), jobs)
        try:
            for done, ((name, _, index), read) in enumerate(zip(jobs, decoded, strict=True), 1):
                pixels[name][index], warnings[name][index], subjects[name][index] = read
                progress("reading images", done, len(jobs), "images")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # don't decode the rest for nothing
            raise
    return pixels, warnings, subjects
