"""What every image reader shares: bounds that hold before decoding, and ranges mapped to grey.

Messages begin with their verb: `images.read_grey` puts the path in front.
"""

from __future__ import annotations

import numpy as np

from .errors import ImageError
from .spec import Array

MAX_PIXELS = 200_000_000
MIN_SIDE = 16


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


def choose_frame(frames: int, frame: int | None) -> int:
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


def stretch(values: Array, valid: Array | None = None) -> Array:
    """Map min..max of float64 [H, W], which is overwritten, to uint8 0..255.

    Where the bool mask `valid` is False, values take no part in the range and become 0 (black).
    """
    if not np.isfinite(values).all():
        raise ImageError("holds NaN or infinity, expected finite values", hint="export it again from its source")
    inside = values if valid is None else values[valid]
    if inside.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = inside.min(), inside.max()
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
