"""Are strange images warned of, and others not?

    python -m benchmarks.unlike_images MANIFEST [--others MANIFEST]

Patients are dealt into five parts, and what four have learnt (`mpmmu_rt.model.modality_fit`) is asked of the fifth's
images: as they are, where each warning is a false one, and altered. An altered image need not be strange: one that is
mirrored is not. Of --others, images from elsewhere and of other patients, it is counted how many are warned of, by what
each four have learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import report
from mpmmu_rt.cases import Manifest, read_manifest
from mpmmu_rt.image_figures import figures
from mpmmu_rt.images import Preprocessing, read_pixels
from mpmmu_rt.model.modality_fit import learnt_range
from mpmmu_rt.spec import MODALITIES, Array, Modality

PARTS = 5
SEED = 1
Known = list[tuple[str, Array]]
"""Patient and pixels uint8 [1, S, S] of each distinct image."""


def _brighter(image: Array, factor: float) -> Array:
    return np.minimum(image * factor, 255)


def _noisy(image: Array) -> Array:
    return np.clip(image + np.random.default_rng(SEED).normal(0, 40, image.shape), 0, 255)


def _blurred(image: Array) -> Array:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(len(image) / 37)))


def _middle(image: Array) -> Array:
    """A quarter of its width and height, enlarged: a lesion cut out."""
    size = len(image)
    box = (3 * size // 8, 3 * size // 8, 5 * size // 8, 5 * size // 8)
    return np.asarray(Image.fromarray(image).crop(box).resize((size, size)))


def _low_byte(image: Array) -> Array:
    """Of 16 bits the lower ones, as where bytes are read in the wrong order."""
    lower = np.random.default_rng(SEED).integers(0, 257, image.shape)
    return (image.astype(np.int64) * 257 + lower) % 256


ALTERED: Mapping[str, Callable[[Array], Array]] = {
    "as they are": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned by 90 degrees": np.rot90,
    "inverted": lambda image: 255 - image,
    "four times as bright": lambda image: _brighter(image, 4),
    "a quarter as bright": lambda image: _brighter(image, 0.25),
    "gamma 0.4": lambda image: 255 * (image / 255) ** 0.4,
    "gamma 2.5": lambda image: 255 * (image / 255) ** 2.5,
    "blurred": _blurred,
    "noise of 40 grey values": _noisy,
    "the middle, enlarged": _middle,
    "rows in another order": lambda image: image[np.random.default_rng(SEED).permutation(len(image))],
    "the lower bytes of 16 bits": _low_byte,
}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--others", type=Path, help="a manifest of images from elsewhere")
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    preprocessing = Preprocessing(size=given.size)
    print(report.heading("Images unlike those of the training", ("pillow", "scikit-learn")))
    known = read_manifest(given.manifest)
    people = {case.group for case in known.cases}
    of_known = images_of(known, preprocessing)
    for modality, images in of_known.items():
        patients = {patient for patient, _ in images}
        print(f"{modality}: {len(images)} images of {len(patients)} patients, {given.size} x {given.size}")
    print("\n" + report.columns("asked of | mammograms warned of | ultrasound images warned of"))
    for name, alter in ALTERED.items():
        print(report.row([name, *(share(asked(images, alter)) for images in of_known.values())]), flush=True)
    other = {"mammography": of_known["ultrasound"], "ultrasound": of_known["mammography"]}
    print(report.row(["the other modality", *(share(strangers(of_known[name], other[name])) for name in MODALITIES)]))
    if given.others:
        from_elsewhere = {
            modality: [one for one in images if one[0] not in people]
            for modality, images in images_of(read_manifest(given.others), preprocessing).items()
        }
        cells = (share(strangers(of_known[name], from_elsewhere[name])) for name in MODALITIES)
        print(report.row(["from elsewhere", *cells]))


def images_of(manifest: Manifest, preprocessing: Preprocessing) -> dict[Modality, Known]:
    found: dict[Modality, Known] = {}
    for modality in MODALITIES:
        paths = {path: case.group for case in manifest.cases if (path := case.image(modality)) is not None}
        found[modality] = [
            (patient, read_pixels(path, preprocessing, modality=modality)) for path, patient in paths.items()
        ]
    return found


def _dealt(images: Known) -> Iterator[tuple[Known, Known]]:
    """What is learnt from, and what is asked of."""
    patients = sorted({patient for patient, _ in images})
    np.random.default_rng(SEED).shuffle(patients)
    part = {patient: at % PARTS for at, patient in enumerate(patients)}
    for asked_of in range(PARTS):
        yield (
            [one for one in images if part[one[0]] != asked_of],
            [one for one in images if part[one[0]] == asked_of],
        )


def asked(images: Known, alter: Callable[[Array], Array]) -> list[bool]:
    """Whether each image, altered, is warned of by what was learnt from other patients."""
    found: list[bool] = []
    for learnt, others in _dealt(images):
        found += _warned(learnt, [np.ascontiguousarray(alter(pixels[0]), np.uint8)[None] for _, pixels in others])
    return found


def strangers(images: Known, others: Known) -> list[bool]:
    """Whether each of `others` is warned of, by what was learnt from each four of five parts of `images`."""
    found: list[bool] = []
    for learnt, _ in _dealt(images):
        found += _warned(learnt, [pixels for _, pixels in others])
    return found


def _warned(learnt: Known, pixels: list[Array]) -> list[bool]:
    ranges = learnt_range(figures(np.stack([one for _, one in learnt])))
    return [bool(one) for one in ranges.strange(figures(np.stack(pixels)))]


def share(warned: list[bool]) -> str:
    return f"{sum(warned)} of {len(warned)} ({np.mean(warned):.1%})"


if __name__ == "__main__":
    main()
