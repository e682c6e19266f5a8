"""What every image reader shares: bounds that hold before decoding, and ranges mapped to grey.

Messages begin with their verb: `images.read_image` puts the path in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ImageError
from .spec import Array
from .subject import NOBODY, Subject

MAX_PIXELS = 200_000_000
MIN_SIDE = 16
MIN_SPREAD = 32
BULK = 0.99  # of the pixels: what the rest are is markers, letters and dead pixels


@dataclass(frozen=True)
class GreyImage:
    """A decoded image: grey uint8 [H, W]; pixel_aspect, the height of a pixel over its width, 1.0 where it is square.

    warnings: what its header says against it that is no reason to refuse it, each without a full stop. subject: whom
    it shows, by its header.
    """

    grey: Array
    pixel_aspect: float = 1.0
    warnings: tuple[str, ...] = ()
    subject: Subject = NOBODY


def printable(words: str) -> str:
    """On one line, and nothing that a terminal takes for an order: what headers hold may be anything."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def check_sides(width: int, height: int) -> None:
    """Bounds before anything is decoded: what the header says is what the decoder would allocate."""
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"is {width} x {height} pixels, expected at least {MIN_SIDE} on both sides",
            hint="use the original image, not a thumbnail",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"is {width} x {height} pixels, expected at most {MAX_PIXELS} in all",
            hint="export the image at the resolution of the detector",
        )


def check_content(grey: Array) -> None:
    """Refuse uint8 of any shape that holds less than two grey values: nothing in it can be judged."""
    if grey.size == 0 or grey.min() == grey.max():
        seen = f"grey value {grey.min()} everywhere" if grey.size else "nothing but padding"
        raise ImageError(
            f"is blank: {seen}, expected an image with content",
            hint="check the export, in DICOM also the window",
        )


def check_spread(grey: Array) -> None:
    """Refuse uint8 of any shape that was mapped from its own range and lies in a small part of it.

    A marker of 65535 in an image of 12 bits leaves 15 of 255 grey values for all of the tissue. Background (0) and what
    is saturated (255) do not count.
    """
    counts = _histogram(grey)
    counts[[0, 255]] = 0
    low, high = _bulk(counts, (1 - BULK) / 2), _bulk(counts, (1 + BULK) / 2)
    if counts.any() and high - low < MIN_SPREAD:
        raise ImageError(
            f"has 99 % of its pixels in the grey values {low} to {high} of 0 to 255, expected at least {MIN_SPREAD}: "
            "its range is that of a few others, such as a marker",
            hint="export it as DICOM with a window, or as 8-bit grey",
        )


def check_depth(grey: Array) -> None:
    """Refuse the luma, uint8 of any shape, of deep colours that use the lower half of their range only.

    Of 12-bit data in 16 next to nothing is left. What is black or has the largest value (a marker) does not count.
    """
    counts = _histogram(grey)
    top = int(grey.max())
    counts[[0, top]] = 0
    bulk = _bulk(counts, BULK) if counts.any() else top
    if bulk < 128:
        raise ImageError(
            f"has 16 bits per colour channel and grey values up to {bulk} of 255, but for less than 1 % of its pixels, "
            "expected 128 or more: fine detail would be lost",
            hint="map its values to the whole range and save it in 8 bits; without markers, 16-bit grey will do too",
        )


def _histogram(grey: Array) -> Array:
    """How many pixels have each grey value, int64 [256]; of large images, of every n-th pixel (n is odd)."""
    return np.bincount(grey.ravel()[:: grey.size // 2**20 | 1], minlength=256)


def _bulk(counts: Array, share: float) -> int:
    """The grey value up to which `share` of the pixels go."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum()))


def luma(rgb: Array, bits: int) -> Array:
    """Unsigned RGB [H, W, 3] of `bits` bits to its ITU-R 601 luma, uint8 [H, W]."""
    from PIL import Image

    rgb8 = rgb if bits == 8 and rgb.dtype == np.uint8 else to_uint8(rgb / (2.0**bits - 1))
    return np.array(Image.fromarray(rgb8).convert("L"))


def choose_frame(frames: int, frame: int | None) -> int:
    """Which of so many. A file that holds one image is that image, whatever is to be taken of others."""
    if frames == 1 and (frame or 0) >= 0:
        return 0
    if frame is None and frames > 1:
        raise ImageError(
            f"holds {frames} frames, expected one image",
            hint=f"choose one with `frame` (0 to {frames - 1}), or export it as a file of its own",
        )
    if not 0 <= (frame or 0) < frames:
        raise ImageError(
            f"holds {frames} frame(s), expected `frame` from 0 to {frames - 1}, got {frame}",
            hint="frames are counted from 0",
        )
    return frame or 0


def as_float64(values: Array) -> Array:
    """A copy in float64. No warning of signalling NaN: `stretch` refuses every NaN."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def stretch(values: Array, valid: Array | None = None) -> Array:
    """Map min..max of float64 [H, W], which is overwritten, to uint8 0..255.

    Where the bool mask `valid` is False, values take no part in the range and become 0 (black).
    """
    if not np.isfinite(values).all():
        raise ImageError("holds NaN or infinity, expected finite values", hint="export it again from its source")
    inside = values if valid is None else values[valid]
    if inside.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = float(inside.min()), float(inside.max())
    if not np.isfinite(high - low):
        raise ImageError(f"holds values from {low:g} to {high:g}, expected a finite range", hint="export it again")
    values -= low
    values /= (high - low) or 1.0  # constant: becomes 0 everywhere, and is refused as blank
    grey = to_uint8(values)
    if valid is not None:
        grey[~valid] = 0
    return grey


def to_uint8(fraction: Array) -> Array:
    """Round fractions of the display range, float64 clipped to 0..1 and overwritten, to uint8 0..255."""
    fraction.clip(0.0, 1.0, out=fraction)
    fraction *= 255.0
    return np.rint(fraction, out=fraction).astype(np.uint8)
