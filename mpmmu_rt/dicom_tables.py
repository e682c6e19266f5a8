"""Stored values of a DICOM image to grey, by the tables of its header (PS3.3 C.7.6.3, C.11.1, C.11.2, C.11.6).

    stored ─ modality LUT or rescale ─▶ values ─ VOI LUT or window ─▶ share of the output range ─ polarity ─▶ grey

Where a table can't mean what it says, the image is refused: most of them would become black without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dicom_values
from ._optional import require
from .dicom_values import group, number, shown, text
from .errors import ImageError
from .grey import as_float64, check_content, check_spread, luma, stretch, to_uint8
from .spec import Array

_COLOURS = ("Red", "Green", "Blue")
_FRAME_TYPES = ("XRay3DFrameTypeSequence", "USImageDescriptionSequence")  # of enhanced images, else the header


def monochrome_grey(header: Any, stored: Array, frame: int) -> Array:
    """Stored values, integer or float [H, W], the standard's way to uint8 [H, W]. Raises `ImageError`."""
    _check_presentation(header, frame)
    _check_supplemental(header, stored)
    valid = ~_padding(header, stored)
    transformation = group(header, frame, "PixelValueTransformationSequence")
    values = _rescale(header, transformation, stored)
    voi = group(header, frame, "FrameVOILUTSequence")
    fraction = _apply_voi(voi, values, signed=_may_be_negative(header, transformation))
    if fraction is None and _is_grey(header, transformation, stored):
        grey = to_uint8(values / (2.0**header.BitsStored - 1))
    elif fraction is None:
        grey = stretch(values, valid)
        check_spread(grey[valid])
    else:
        grey = to_uint8(fraction)
    check_content(grey[valid])
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    grey[~valid] = 0
    return grey


def _is_grey(header: Any, transformation: Any, stored: Array) -> bool:
    """Whether stored values are unsigned, of up to 8 bits, and mapped to nothing else: grey, as in a PNG file."""
    slope, intercept = number(transformation, "RescaleSlope"), number(transformation, "RescaleIntercept")
    mapped = transformation.get("ModalityLUTSequence") or slope not in (None, 1.0) or intercept not in (None, 0.0)
    return stored.dtype.kind == "u" and header.BitsStored <= 8 and not mapped


def palette_grey(header: Any, stored: Array) -> Array:
    """Indices, integer [H, W], through the palette (PS3.3 C.7.6.3.1.5, .6) to luma, uint8 [H, W]."""
    first, bits, table = _palette(header)
    if bits > 8 and table.max() < 2 ** (bits - 1):
        raise _too_narrow("palette", int(table.max()), bits)
    grey: Array = luma(table[None], bits)[0][(stored.astype(np.int64) - first).clip(0, len(table) - 1)]
    return grey


def _check_presentation(header: Any, frame: int) -> None:
    """What the stored values of a monochrome image are to be taken for, beyond its photometric interpretation."""
    shape, photometric = text(header, "PresentationLUTShape").upper(), header.PhotometricInterpretation
    expected = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if shape and shape != expected:  # PS3.3 C.8.11.1.1.2, C.11.6
        raise ImageError(
            f"has the presentation LUT shape {shown(shape)} with {photometric}, expected {expected}: "
            "one of both says that it is a negative",
            hint="export it again: which of both is right can't be seen in the file",
        )
    if header.get("PresentationLUTSequence"):
        raise ImageError(
            "has a presentation LUT of its own, expected IDENTITY or INVERSE",
            hint="export it with its presentation applied, as a new image for presentation",
        )
    for macro in _FRAME_TYPES:
        presentation = text(group(header, frame, macro), "PixelPresentation").upper()
        if presentation in ("COLOR", "MIXED"):  # PS3.3 C.8.16.2.1.1.1
            raise ImageError(
                f"has the pixel presentation {presentation}: some of its values are colours, expected MONOCHROME",
                hint="export the grey image alone, or one of RGB",
            )
    if header.get("EnhancedPaletteColorLookupTableSequence"):  # PS3.3 C.7.6.23
        raise ImageError(
            "blends grey with a colour palette, expected one of both", hint="export the grey image alone, or one of RGB"
        )


def _check_supplemental(header: Any, stored: Array) -> None:
    """Refuse values that a supplemental palette (PS3.3 C.7.6.19) makes colours; without one there are none."""
    if "RedPaletteColorLookupTableDescriptor" not in header or stored.dtype.kind not in "iu":
        return
    signed = header.get("PixelRepresentation") == 1
    _, first, _ = dicom_values.descriptor(header, "RedPaletteColorLookupTableDescriptor", signed=signed)
    if stored.max() >= first:
        raise ImageError(
            f"is {header.PhotometricInterpretation} and has a palette that makes colours of the values from {first}, "
            f"expected none of these, found values up to {stored.max()}",
            hint="export the grey image alone, or one of RGB",
        )


def _padding(header: Any, stored: Array) -> Array:
    """Where the image is padded, bool [H, W] (PS3.3 C.7.5.1.1.2)."""
    if header.get("PixelPaddingValue") is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, np.bool_)
    limits = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit")]
    low, high = sorted(_in_stored_bits(header, limits[0] if limit is None else limit) for limit in limits)
    inside: Array = (stored >= low) & (stored <= high)
    return inside


def _in_stored_bits(header: Any, value: int) -> int:
    """A padding value as the pixels have it. Signed images often state its bit pattern. Raises `ImageError`."""
    bits, signed = header.BitsStored, header.PixelRepresentation == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    pattern = value % 2**header.BitsAllocated
    readings = [value, pattern - 2**header.BitsAllocated] if signed else [value, pattern]
    if signed and high < value < 2**bits:
        readings.append(value - 2**bits)
    found: int | None = next((reading for reading in readings if low <= reading <= high), None)
    if found is None:
        # Cells that hold it lose their upper bits when they are read, and become the brightest tissue of all.
        raise ImageError(
            f"has the padding value {value} and {bits} bits stored, expected a value from {low} to {high}",
            hint="export it again: its padding can't be told from tissue",
        )
    return found


def _may_be_negative(header: Any, transformation: Any) -> bool:
    """Whether the input of the VOI LUT may be negative, which decides the VR of its descriptor (PS3.3 C.11.2.1.1)."""
    if transformation.get("ModalityLUTSequence"):
        return False
    signed: bool = header.get("PixelRepresentation", 1) == 1  # floats are signed
    bits = header.get("BitsStored", 16)
    slope, intercept = number(transformation, "RescaleSlope"), number(transformation, "RescaleIntercept")
    if slope is None and intercept is None:
        return signed
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    mapped = [end * (1.0 if slope is None else slope) + (intercept or 0.0) for end in ends]
    return any(value < 0 for value in mapped)


def _rescale(header: Any, transformation: Any, stored: Array) -> Array:
    """Modality LUT, else rescale slope and intercept: float64 [H, W]."""
    values = as_float64(stored)
    if transformation.get("ModalityLUTSequence"):
        signed = header.get("PixelRepresentation") == 1
        return _look_up(transformation.ModalityLUTSequence[0], values, signed=signed)
    slope, intercept = number(transformation, "RescaleSlope"), number(transformation, "RescaleIntercept")
    values *= 1.0 if slope is None else slope
    values += intercept or 0.0
    return values


def _apply_voi(dataset: Any, values: Array, *, signed: bool) -> Array | None:
    """VOI LUT, else first window (PS3.3 C.11.2.1), else None: share of the output range, float64 [H, W]."""
    if dataset.get("VOILUTSequence"):
        return _look_up(dataset.VOILUTSequence[0], values, signed=signed, share=True)
    center, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if center is None and width is None:
        return None
    if center is None or width is None:
        there, missing = ("Width", "Center") if center is None else ("Center", "Width")
        raise ImageError(
            f"has a Window{there} and no Window{missing}, expected both or neither",
            hint="export it again with its whole window, or without one",
        )
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageError(
            f"has a {shown(function)} window of width {width:g}, expected LINEAR (≥ 1), LINEAR_EXACT or SIGMOID",
            hint="export it again with a valid window",
        )
    if function == "SIGMOID":
        return 0.5 + 0.5 * np.tanh(2.0 * (values - center) / width)  # 1 / (1 + exp(-4x)) that can't overflow
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:  # a LINEAR window of width 1 is a threshold
        return (values > center).astype(np.float64)
    return (values - (center - width / 2.0)) / width


def _look_up(item: Any, values: Array, *, signed: bool, share: bool = False) -> Array:
    """Values, float64 [H, W], which are overwritten, through the LUT of a sequence item: float64 [H, W].

    `share`: its output range is the display's, and becomes 0..1, so that entries of 12 bits that are stated as 16 would
    be black. Not pydicom's functions: they index in the type of the LUT, so that values beyond it wrap around.
    """
    count, first, bits = dicom_values.descriptor(item, "LUTDescriptor", signed=signed)
    table = dicom_values.entries(item, "LUTData", count, bits).astype(np.float64)
    if share:
        if table.max() < 2 ** (bits - 1):
            raise _too_narrow("VOI LUT", int(table.max()), bits)
        table /= 2**bits - 1
    values -= first
    np.rint(values, out=values)
    values.clip(0, count - 1, out=values)
    mapped: Array = table[values.astype(np.intp)]
    return mapped


def _too_narrow(kind: str, top: int, bits: int) -> ImageError:
    return ImageError(
        f"has a {kind} of {bits} bits whose entries end at {top}, expected some of {2 ** (bits - 1)} to {2**bits - 1}",
        hint="export it again, or correct the third value of its descriptor to the bits that its entries have",
    )


def _palette(header: Any) -> tuple[int, int, Array]:
    """(first index, bits of an entry, entries integer [N, 3])."""
    signed = header.PixelRepresentation == 1
    stated = [
        dicom_values.descriptor(header, f"{colour}PaletteColorLookupTableDescriptor", signed=signed)
        for colour in _COLOURS
    ]
    if len(set(stated)) != 1:
        raise ImageError(f"has palettes of different shapes {stated}, expected equal ones", hint="export it as RGB")
    count, first, bits = stated[0]
    segmented = "SegmentedRedPaletteColorLookupTableData" in header  # PS3.3 C.7.9.2
    if segmented and "RedPaletteColorLookupTableData" not in header:
        table: Array = _segmented(header, first, count, bits)
    else:
        columns = [
            dicom_values.entries(header, f"{colour}PaletteColorLookupTableData", count, bits) for colour in _COLOURS
        ]
        table = np.stack(columns, axis=-1)
    return first, bits, table


def _segmented(header: Any, first: int, count: int, bits: int) -> Array:
    """The entries of a segmented palette, which pydicom expands, integer [count, 3]."""
    apply = require("pydicom.pixels.processing", "reading a DICOM image").apply_color_lut
    try:
        if bits == 8 and count > 256:
            raise ValueError("pydicom indexes in the type of the entries")
        rgb: Array = apply(np.arange(count, dtype=np.int64) + first, header)
    except (ValueError, LookupError, TypeError) as error:
        raise ImageError(
            "has a segmented palette that can't be expanded, expected whole segments", hint="export it as RGB"
        ) from error
    return rgb[..., :3].astype(np.int64)
