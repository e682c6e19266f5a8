"""Generated pairs of images, called phantoms: something to try training and deployment on without data.

A phantom is no patient and nothing measured on phantoms says anything about patients. It exists so that the
whole way, from files to a verified bundle, can be walked and can fail.

The generative model. A label is drawn in the proportion of the paper's cohort, 279 malignant to 384 benign.
Each image then either shows the suspicious signs of its modality or it doesn't:

- of malignant phantoms, the mammogram alone is suspicious with probability `MAMMOGRAPHY_ONLY`, the
  ultrasound image alone with `ULTRASOUND_ONLY`, and both otherwise (`BOTH`);
- of benign phantoms, either image is a mimic with probability `MAMMOGRAPHY_MIMIC` and `ULTRASOUND_MIMIC`,
  independently.

Given its signs an image depends on nothing else, so a modality's evidence is one bit and no reader, however
good, can be better than `ceilings()`: AUC 0.785 for mammography, 0.765 for ultrasound and 0.912 for both
(the paper's patients: 0.745, 0.723, 0.879). A suspicious mammogram shows a spiculated, irregular mass, and
in `CALCIFIED` of such cases a cluster of micro-calcifications; a suspicious ultrasound image shows an
irregular mass, taller than wide, with a shadow behind it. Otherwise the mass is round or oval and smooth,
and in ultrasound wider than tall with enhancement behind it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from mpmmu_rt.errors import UsageError
from mpmmu_rt.folders import Kind, atomic_folder, check_replaceable
from mpmmu_rt.images import Preprocessing, preprocess
from mpmmu_rt.places import require_room
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath

MALIGNANT = 279 / 663  # the paper's cohort
MAMMOGRAPHY_ONLY = 0.33
ULTRASOUND_ONLY = 0.29
BOTH = 1 - MAMMOGRAPHY_ONLY - ULTRASOUND_ONLY
MAMMOGRAPHY_MIMIC = 0.14
ULTRASOUND_MIMIC = 0.14
CALCIFIED = 0.6

MAMMOGRAPHY_SIGN = "spiculated mass"
CALCIFICATION_SIGN = "micro-calcifications"
ULTRASOUND_SIGN = "irregular mass with shadow"

MIN_SIDE = 64
MANIFEST = "manifest.csv"
KIND = Kind(MANIFEST, tuple(f"{name}/phantom-*.png" for name in MODALITIES))
BYTES = 84_000  # of a phantom of 256 × 256 on disk: both images


@dataclass(frozen=True)
class Lesion:
    """Where a mass was drawn, as an ellipse: its centre and half axes in shares of the image's side."""

    y: float
    x: float
    half_height: float
    half_width: float

    def reach(self, y: float, x: float) -> float:
        """How far a place is from the centre: 1 on the ellipse."""
        return float(np.hypot((y - self.y) / self.half_height, (x - self.x) / self.half_width))


@dataclass(frozen=True)
class Phantom:
    """A generated pair: two images, uint8 [H, W], a label (0 benign, 1 malignant), the signs drawn, and where the mass
    lies in each image."""

    mammography: Array
    ultrasound: Array
    label: int
    signs: tuple[str, ...]
    lesions: dict[Modality, Lesion]

    def image(self, modality: Modality) -> Array:
        return self.mammography if modality == "mammography" else self.ultrasound


def ceilings() -> dict[str, float]:
    """The best AUC of a reader who sees every sign, for each modality and for both (`fused`).

    The reader sees the bits (mammography, ultrasound) and ranks by the likelihood ratio, which is optimal
    (Neyman and Pearson); AUC = P(ratio of a malignant > of a benign) + P(equal) / 2.
    """
    malignant = {(0, 0): 0.0, (1, 0): MAMMOGRAPHY_ONLY, (0, 1): ULTRASOUND_ONLY, (1, 1): BOTH}
    benign = {
        (m, u): (MAMMOGRAPHY_MIMIC if m else 1 - MAMMOGRAPHY_MIMIC) * (ULTRASOUND_MIMIC if u else 1 - ULTRASOUND_MIMIC)
        for m, u in product((0, 1), repeat=2)
    }

    def area(seen: tuple[bool, bool]) -> float:
        chances: dict[tuple[int, ...], list[float]] = {}
        for bits in malignant:
            key = tuple(bit for bit, see in zip(bits, seen, strict=True) if see)
            entry = chances.setdefault(key, [0.0, 0.0])
            entry[0] += malignant[bits]
            entry[1] += benign[bits]
        # p's ratio p[0] / p[1] against q's, multiplied out: a ratio may be infinite
        return sum(
            p[0] * q[1] * (1 + float(np.sign(p[0] * q[1] - q[0] * p[1]))) / 2
            for p, q in product(chances.values(), repeat=2)
        )

    return {
        "mammography": area((True, False)),
        "ultrasound": area((False, True)),
        "fused": area((True, True)),
    }


def draw(count: int, *, seed: int, side: int = 256) -> Iterator[Phantom]:
    """Yield `count` phantoms of `side` × `side`, lazily. Phantom i depends on (seed, i, side) alone.

    Label and signs don't depend on `side` either. Raises `UsageError` at the call, not at the first phantom.
    """
    if count < 1 or seed < 0 or side < MIN_SIDE:
        raise UsageError(
            f"phantoms were asked for with count {count}, seed {seed}, side {side}, "
            f"expected count ≥ 1, seed ≥ 0 and side ≥ {MIN_SIDE}",
            hint="600 phantoms with seed 0 are a good start",
        )
    return (_phantom(np.random.default_rng([seed, index]), side) for index in range(count))


def phantom_pixels(count: int, *, seed: int, preprocessing: Preprocessing) -> tuple[dict[Modality, Array], Array]:
    """Pixels uint8 [N, 1, S, S] per modality, through the same preprocessing as files, and label int64 [N]."""
    size = preprocessing.size
    pixels: dict[Modality, Array] = {name: np.empty((count, 1, size, size), np.uint8) for name in MODALITIES}
    label = np.empty(count, np.int64)
    for row, phantom in enumerate(draw(count, seed=seed, side=max(size, 128))):
        label[row] = phantom.label
        for name in MODALITIES:
            pixels[name][row] = preprocess(phantom.image(name), preprocessing)
    return pixels, label


def write_phantoms(count: int, folder: StrPath, *, seed: int) -> Path:
    """Write phantoms as PNG files with `manifest.csv` into the new `folder`; return the manifest's path.

    All or nothing. Raises `OutputError` if `folder` exists, its parent doesn't, or it can't be written.
    """
    phantoms, folder = draw(count, seed=seed), Path(folder)
    check_replaceable(folder, KIND, overwrite=False)
    require_room(folder, BYTES * count, f"{count} phantoms")
    with atomic_folder(folder, KIND, overwrite=False) as partial:
        _write(phantoms, partial, seed)
    return folder / MANIFEST


def patient(seed: int, index: int) -> str:
    """What stands in a patient's place: the same phantom has the same name, in files and in training."""
    return f"phantom-{seed}-{index:04d}"


def _write(phantoms: Iterator[Phantom], folder: Path, seed: int) -> None:
    from PIL import Image

    for name in MODALITIES:
        (folder / name).mkdir(parents=True)
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["case_id", *MODALITIES, "label", "patient"])
        for index, phantom in enumerate(phantoms):
            case_id = f"phantom-{index:04d}"
            files = [f"{name}/{case_id}.png" for name in MODALITIES]
            for name, file in zip(MODALITIES, files, strict=True):
                Image.fromarray(phantom.image(name)).save(folder / file)
            table.writerow([case_id, *files, phantom.label, patient(seed, index)])


def _phantom(rng: np.random.Generator, side: int) -> Phantom:
    label = int(rng.random() < MALIGNANT)
    where, mimic = rng.random(), rng.random(2)
    if label:
        suspicious = (where >= ULTRASOUND_ONLY, where < ULTRASOUND_ONLY or where >= 1 - BOTH)
    else:
        suspicious = (mimic[0] < MAMMOGRAPHY_MIMIC, mimic[1] < ULTRASOUND_MIMIC)
    calcified = bool(suspicious[0] and rng.random() < CALCIFIED)
    shown = (*suspicious[:1], calcified, *suspicious[1:])
    signs = (MAMMOGRAPHY_SIGN, CALCIFICATION_SIGN, ULTRASOUND_SIGN)
    mammogram, in_breast = _mammogram(rng, side, bool(suspicious[0]), calcified)
    ultrasound, in_echo = _ultrasound(rng, side, bool(suspicious[1]))
    drawn = tuple(sign for sign, is_shown in zip(signs, shown, strict=True) if is_shown)
    return Phantom(mammogram, ultrasound, label, drawn, {"mammography": in_breast, "ultrasound": in_echo})


# Images. Coordinates run from 0 to 1 in both directions; y is down. ─────────────────────────────────


def _grid(side: int) -> tuple[Array, Array]:
    """y [side, 1] and x [1, side], float64, of the pixel centres."""
    centres = (np.arange(side) + 0.5) / side
    return centres[:, None], centres[None, :]


def _texture(rng: np.random.Generator, side: int, slope: float) -> Array:
    """Noise with the amplitude spectrum 1 / f^slope, float64 [side, side], mean 0, deviation 1.

    Breast tissue in mammograms has a power spectrum near 1 / f³ (Burgess et al. 2001, Med. Phys. 28:419).
    """
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf  # no mean
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**slope, (side, side))
    return np.asarray(noise / noise.std())


def _lobes(rng: np.random.Generator, angle: Array, amplitude: float, orders: range) -> Array:
    """A closed outline's relative radius around 1, float64 of `angle`'s shape, by random harmonics."""
    radius = np.ones_like(angle)
    for order in orders:
        radius += amplitude * rng.uniform(0.4, 1.0) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius


def _soft(distance: Array, width: float) -> Array:
    """1 inside (distance < 0), 0 outside, with an edge about `width` wide."""
    return np.asarray(0.5 - 0.5 * np.tanh(distance / width))


def _mammogram(rng: np.random.Generator, side: int, suspicious: bool, calcified: bool) -> tuple[Array, Lesion]:
    """Breast outline on black, tissue texture, a mass; spicules and calcifications if asked: uint8 [H, W]."""
    y, x = _grid(side)
    outline = np.hypot((y - rng.uniform(0.45, 0.55)) / rng.uniform(0.44, 0.54), x / rng.uniform(0.78, 0.95))
    breast = _soft(outline - 1, 0.03)
    tissue = 0.34 + 0.075 * _texture(rng, side, 1.5) + 0.06 * (1 - outline)

    cy, cx, size = rng.uniform(0.35, 0.65), rng.uniform(0.25, 0.5), rng.uniform(0.075, 0.115)
    dy, dx = y - cy, x - cx
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    density = rng.uniform(0.22, 0.32)
    if suspicious:
        edge = size * _lobes(rng, angle, 0.07, range(3, 8))
        mass = _soft(distance - edge, 0.02) + _spicules(rng, distance, angle, size)
    else:
        edge = size * _lobes(rng, angle, 0.04, range(2, 4))
        mass = _soft(distance - edge, 0.012)
    image = tissue + density * np.minimum(mass, 1.2)
    if calcified:
        image += _calcifications(rng, y, x, (cy, cx), size)
    image = breast * image + 0.012 * rng.standard_normal((side, side))
    if rng.random() < 0.5:  # the other breast
        image, cx = image[:, ::-1], 1 - cx
    return _grey(image), Lesion(cy, cx, size, size)


def _spicules(rng: np.random.Generator, distance: Array, angle: Array, size: float) -> Array:
    """Thin lines that radiate from the mass and fade, float64 [H, W] in 0..1."""
    count = int(rng.integers(9, 15))
    directions = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    lines = np.zeros_like(distance)
    for direction in directions:
        length = size * rng.uniform(1.7, 2.6)
        across = distance * np.abs(np.sin((angle - direction) / 2)) * 2  # chord: 0 along the line
        line = np.exp(-((across / 0.010) ** 2)) * _soft(distance - length, 0.35 * size)
        lines = np.maximum(lines, 0.85 * line)
    return lines


def _calcifications(rng: np.random.Generator, y: Array, x: Array, centre: tuple[float, float], size: float) -> Array:
    """A cluster of bright specks in and around the mass, float64 [H, W]."""
    specks = np.zeros(np.broadcast_shapes(y.shape, x.shape))
    for _ in range(int(rng.integers(6, 14))):
        sy, sx = rng.normal(centre, 0.8 * size)
        speck = np.exp(-((y - sy) ** 2 + (x - sx) ** 2) / rng.uniform(0.005, 0.008) ** 2)
        specks += rng.uniform(0.3, 0.5) * speck
    return specks


def _ultrasound(rng: np.random.Generator, side: int, suspicious: bool) -> tuple[Array, Lesion]:
    """Layers, a hypoechoic mass and what lies behind it, attenuation and speckle: uint8 [H, W].

    The echo amplitude is multiplied by Rayleigh speckle, the magnitude of complex Gaussian noise (Burckhardt
    1978, IEEE Trans. Sonics Ultrason. 25:1), and shown on a logarithmic scale of `decibels`.
    """
    y, x = _grid(side)
    echo = _layers(rng, y, x) * np.exp(0.18 * _texture(rng, side, 1.2))
    cy, cx, size = rng.uniform(0.38, 0.5), rng.uniform(0.35, 0.65), rng.uniform(0.105, 0.14)
    ratio = rng.uniform(1.2, 1.5)  # of the axes
    half_height, half_width = (size * ratio**0.5, size / ratio**0.5)[:: 1 if suspicious else -1]
    dy, dx = (y - cy) / half_height, (x - cx) / half_width
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    lobes = _lobes(rng, angle, 0.07, range(3, 8)) if suspicious else _lobes(rng, angle, 0.02, range(2, 4))
    inside = _soft(distance - lobes, 0.18 if suspicious else 0.08)
    behind = _soft(np.abs(dx) - 0.85, 0.15) * _soft(-(dy - 0.6), 0.25) * (1 - inside)
    strength = rng.uniform(0.75, 1.0)
    echo = echo * np.exp(behind * strength * (-1.2 if suspicious else 0.6))
    echo = echo * np.exp(-inside * rng.uniform(1.3, 1.8)) * np.exp(-rng.uniform(0.6, 1.1) * y)
    decibels = 20 * np.log10(echo * _speckle(rng, side) + 1e-3)
    return _grey((decibels + rng.uniform(33, 37)) / 45), Lesion(cy, cx, half_height, half_width)


def _layers(rng: np.random.Generator, y: Array, x: Array) -> Array:
    """Echo amplitude of skin, fat, gland and muscle with wavy borders, float64 [H, W]."""
    amplitude = np.full(np.broadcast_shapes(y.shape, x.shape), 0.9)
    depth = 0.0
    for thickness, brightness in (
        (0.05, 0.35),
        (rng.uniform(0.12, 0.2), 0.75),
        (rng.uniform(0.5, 0.6), 0.45),
    ):
        wave = 0.012 * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * x + rng.random()))
        depth += thickness
        below = 1 - _soft(y - depth - wave, 0.01)
        amplitude = amplitude * (1 - below) + brightness * below
    return amplitude


def _speckle(rng: np.random.Generator, side: int) -> Array:
    """Rayleigh speckle of mean 1, float64 [H, W], coarser across the beam than along it."""
    along, across = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]
    cell = side / 256
    response = np.exp(-2 * np.pi**2 * cell**2 * ((1.5 * along) ** 2 + (3.0 * across) ** 2))
    noise = rng.standard_normal((side, side)) + 1j * rng.standard_normal((side, side))
    magnitude = np.abs(np.fft.ifft2(np.fft.fft2(noise) * response))
    out: Array = magnitude / magnitude.mean()
    return out


def _grey(image: Array) -> Array:
    """Float [H, W], 0..1 and beyond, to uint8 [H, W], C-contiguous."""
    return np.ascontiguousarray(np.rint(255 * image.clip(0, 1)).astype(np.uint8))
