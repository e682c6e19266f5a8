"""Maps over images: grey below, colour above, in the image's own aspect ratio."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from mpmmu_rt.grey import GreyImage
from mpmmu_rt.spec import Array

from .occlusion import Box

LONG_SIDE = 420  # pixels of a picture
SMALL_SIDE = 160  # of one of many
GAP = 4
MOST_OPAQUE = 0.75
LEAST_SPAN = 0.1  # a gate that differs by less from place to place is drawn paler, not stretched to the same contrast
# Okabe and Ito's vermilion and blue, which the colour-blind can tell apart.
FOR_MALIGNANT = (213, 94, 0)
FOR_BENIGN = (0, 114, 178)
ATTENDED = (240, 228, 66)


def shape_of(image: GreyImage, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """Height and width of the picture of an image: its aspect ratio as it is shown, and its long side."""
    height, width = image.grey.shape[0] * image.pixel_aspect, image.grey.shape[1]
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def plain(image: GreyImage) -> bytes:
    """PNG of the image alone."""
    return _png(np.repeat(_grey(image, shape_of(image))[..., None], 3, -1))


def signed(image: GreyImage, box: Box, found: Array, largest: float) -> bytes:
    """PNG: where `found` [S, S] is positive in `FOR_MALIGNANT`, where negative in `FOR_BENIGN`; the opacity grows with
    its size, up to `largest`."""
    values = _resized(found[box.slices], shape_of(image)) / (largest or 1.0)
    colour = np.where(values[..., None] > 0, FOR_MALIGNANT, FOR_BENIGN)
    return _png(_blended(image, colour, np.abs(values)))


def attended(image: GreyImage, box: Box, spatial: Array, size: int) -> bytes:
    """PNG: the spatial gate, [h, w] over the model's square of `size`, from its lowest value to its highest."""
    return _png(_attended(image, box, spatial, size, shape_of(image)))


def strip(image: GreyImage, box: Box, gates: Sequence[Array], size: int) -> bytes:
    """PNG: of several spatial gates, each as `attended` shows it, small, side by side."""
    shape = shape_of(image, SMALL_SIDE)
    gap = np.full((shape[0], GAP, 3), 255, np.uint8)
    parts: list[Array] = []
    for one in gates:
        parts += [*([gap] if parts else []), _attended(image, box, one, size, shape)]
    return _png(np.concatenate(parts, 1))


def _attended(image: GreyImage, box: Box, spatial: Array, size: int, shape: tuple[int, int]) -> Array:
    whole = _resized(spatial, (size, size))[box.slices]
    low, high = float(spatial.min()), float(spatial.max())
    values = (_resized(whole, shape) - low) / max(high - low, LEAST_SPAN)
    return _blended(image, np.broadcast_to(ATTENDED, (*values.shape, 3)), values)


def _grey(image: GreyImage, shape: tuple[int, int]) -> Array:
    from PIL import Image

    height, width = shape
    return np.asarray(Image.fromarray(image.grey).resize((width, height), Image.Resampling.BILINEAR))


def _resized(values: Array, shape: tuple[int, int]) -> Array:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _blended(image: GreyImage, colour: Array, strength: Array) -> Array:
    """uint8 [height, width, 3], of `strength` [height, width]."""
    opacity = (MOST_OPAQUE * np.clip(strength, 0, 1))[..., None]
    mixed = _grey(image, strength.shape)[..., None] * (1 - opacity) + colour * opacity
    return np.round(mixed).astype(np.uint8)


def _png(picture: Array) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture, np.uint8)).save(stream, "PNG")
    return stream.getvalue()
