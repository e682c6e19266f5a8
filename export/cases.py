"""The cases that a bundle is proven, judged and calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from mpmmu_rt.cases import Case, Manifest, read_manifest, require_complete
from mpmmu_rt.decisions import UNKNOWN
from mpmmu_rt.errors import UsageError
from mpmmu_rt.image_warnings import ImageWarning, warnings_of
from mpmmu_rt.images import Preprocessing, read_with_warnings, require_two_in
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath
from mpmmu_rt.subject import Subject

Pixels = Mapping[Modality, Array]


@dataclass(frozen=True)
class Data:
    """Pixels uint8 [N, 1, S, S] per modality; labels int [N], `UNKNOWN` of a case that has none, None where no case has
    one; source says in words what they are; ids are those of the manifest, if they are of one; warnings, what the
    headers say against the images of each case."""

    pixels: Pixels
    labels: Array | None
    source: str
    ids: tuple[str, ...] = ()
    warnings: tuple[tuple[ImageWarning, ...], ...] = ()

    def rows(self, chosen: Sequence[int], source: str) -> Data:
        pixels: dict[Modality, Array] = {modality: self.pixels[modality][chosen] for modality in MODALITIES}
        ids = tuple(self.ids[row] for row in chosen) if self.ids else ()
        warnings = tuple(self.warnings[row] for row in chosen) if self.warnings else ()
        return Data(pixels, None if self.labels is None else self.labels[chosen], source, ids, warnings)

    def name(self, row: int) -> str:
        """What messages call a case."""
        return f"case `{self.ids[row]}`" if self.ids else f"case {row + 1} of {self.source}"

    def require_usable(self, size: int, what: str) -> None:
        """Raise `UsageError` unless these are cases of a model that sees images of `size`: what people pass is not held
        to its types. what: in words, what they are for."""
        wrong = self._wrong(size)
        if wrong:
            raise UsageError(
                f"{what}: {wrong}",
                hint="Data(pixels, labels, source): uint8 [N, 1, S, S] of each modality; 0, 1 or -1 (unknown) per case",
            )

    def _wrong(self, size: int) -> str:
        """What was got and what was expected; "" for what is as it should be."""
        if not isinstance(self.pixels, Mapping) or set(self.pixels) != set(MODALITIES):
            held = ", ".join(map(str, self.pixels)) if isinstance(self.pixels, Mapping) else type(self.pixels).__name__
            return f"the pixels are {held}, expected {' and '.join(MODALITIES)}"
        for modality, images in self.pixels.items():
            got = f"{images.dtype}{list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
            if not got.startswith("uint8[") or images.shape[1:] != (1, size, size) or not len(images):
                return f"the {modality} images are {got}, expected uint8[N, 1, {size}, {size}] with at least one case"
        counts = [len(self.pixels[modality]) for modality in MODALITIES]
        if len(set(counts)) != 1:
            return f"there are {counts[0]} mammograms and {counts[1]} ultrasound images, expected one pair per case"
        if self.labels is not None:
            labels: Any = self.labels
            count = counts[0]
            if not isinstance(labels, np.ndarray):
                return f"the labels are a {type(labels).__name__}, expected an array [{count}]"
            if labels.shape != (count,) or not np.isin(labels, (0, 1, UNKNOWN)).all():
                held = ", ".join(sorted(dict.fromkeys(map(str, labels.reshape(-1).tolist())))[:4])
                return f"the labels are {labels.dtype}{list(labels.shape)} of {held}, expected 0, 1 or -1 [{count}]"
        if len(self.ids) not in (0, counts[0]):
            return f"there are {len(self.ids)} ids of {counts[0]} cases, expected one of each, or none"
        return ""

    def first(self, count: int) -> dict[Modality, Array]:
        """The pixels of the first `count` cases."""
        return {modality: self.pixels[modality][:count] for modality in MODALITIES}


def phantoms(count: int, seed: int, preprocessing: Preprocessing, progress: Progress) -> Data:
    progress(f"drawing {count} phantoms", 0, 1)
    pixels, labels = phantom_pixels(count, seed=seed, preprocessing=preprocessing)
    progress(f"drawing {count} phantoms", 1, 1)
    return Data(pixels, labels, f"{count} generated phantoms")


def manifest_of(given: StrPath | Manifest) -> Manifest:
    """What was read, or lies there. Raises `ManifestError`."""
    return given if isinstance(given, Manifest) else read_manifest(given)


def of_manifest(given: StrPath | Manifest, preprocessing: Preprocessing, progress: Progress) -> Data:
    """Every case of a manifest. Raises what reading it and its images raises."""
    manifest = manifest_of(given)
    return of_cases(manifest, range(len(manifest.cases)), preprocessing, progress)[0]


def of_cases(
    manifest: Manifest, rows: Sequence[int], preprocessing: Preprocessing, progress: Progress
) -> tuple[Data, tuple[Case, ...]]:
    """The cases of those `rows` of the manifest. Raises what reading their images raises."""
    path, cases = manifest.path, tuple(manifest.cases[row] for row in rows)
    known = any(case.label is not None for case in cases)
    require_complete(replace(manifest, cases=cases), labels=False)
    images: dict[Modality, list[Array]] = {modality: [] for modality in MODALITIES}
    warnings: list[tuple[ImageWarning, ...]] = []
    for done, (row, case) in enumerate(zip(rows, cases, strict=True), 1):
        of_case: tuple[ImageWarning, ...] = ()
        subjects: dict[Modality, Subject] = {}
        for modality in MODALITIES:
            path_of_image = cast("Path", case.image(modality))
            image, texts, subjects[modality] = read_with_warnings(path_of_image, preprocessing, modality=modality)
            images[modality].append(image)
            of_case += warnings_of(path.name, row + 1, modality, texts)
        texts = require_two_in(path, row, {modality: images[modality][-1] for modality in MODALITIES}, subjects)
        warnings.append(of_case + warnings_of(path.name, row + 1, "ultrasound", texts, grave=True))
        progress(f"reading {path.name}", done, len(cases), "cases")
    pixels = {modality: np.stack(arrays) for modality, arrays in images.items()}
    labels = np.array([UNKNOWN if case.label is None else case.label for case in cases]) if known else None
    source = f"{len(cases)} cases of {path.name}, sha256 {manifest.sha256[:12]}"
    ids = tuple(case.case_id for case in cases)
    return Data(pixels, labels, source, ids, tuple(warnings)), cases


def halves(data: Data, cases: Sequence[Case]) -> tuple[Data, Data]:
    """(to calibrate on, to judge on): every other patient of a manifest. Raises `UsageError` for fewer than two."""
    patients = list(dict.fromkeys(case.group for case in cases))
    if len(patients) < 2:
        raise UsageError(
            f"the calibration manifest holds {len(patients)} patient, expected at least two: one to calibrate on and "
            "one to judge INT8 on",
            hint="use some hundred cases, or give --parity another manifest",
        )
    first = set(patients[::2])
    rows = [row for row, case in enumerate(cases) if case.group in first]
    rest = sorted(set(range(len(cases))) - set(rows))
    return data.rows(rows, f"{len(rows)} cases of {data.source}"), data.rows(
        rest, f"{len(rest)} others of {data.source}"
    )
