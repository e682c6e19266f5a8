"""DICOM images to grey, the standard's way (PS3.3 C.7.6.3, C.11.1, C.11.2). See `images` for what grey means.

pydicom reads the header and uncompressed pixel data; `streams` decodes what is compressed. What pydicom would do
silently wrong is checked or done here.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from ._optional import require
from .errors import ImageError
from .grey import check_content, check_sides, choose_frame, stretch, to_uint8
from .spec import Array
from .streams.dicom import decode_frame
from .streams.frames import split

# Only these are looked at: a defect in a name, a date or a private element has no say in the pixels,
# and pydicom, which checks an element when it is converted, has no occasion to warn about it.
_HEADER_KEYWORDS = """
    Modality NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    ModalityLUTSequence RescaleSlope RescaleIntercept
    VOILUTSequence VOILUTFunction WindowCenter WindowWidth PixelPresentation
    RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    ExtendedOffsetTable ExtendedOffsetTableLengths
"""
_PURPOSE = "reading a DICOM image"
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double float, integer
_UNDEFINED_LENGTH = 0xFFFFFFFF
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom decodes all of these to RGB


def read_dicom(stream: BinaryIO, frame: int | None) -> Array:
    pixels = require("pydicom.pixels", _PURPOSE)
    header, pixel_bytes = _read_header(stream)
    frame = choose_frame(_frames(header), frame)
    check_sides(header.Columns, header.Rows)
    _check_layout(header)
    syntax = _transfer_syntax(header)
    if syntax.is_encapsulated != (pixel_bytes == _UNDEFINED_LENGTH):
        raise ImageError(
            f"has pixel data that contradict its transfer syntax ({syntax.name})",
            hint="export it again, or correct it with dcmconv",
        )
    if syntax.is_encapsulated:
        stored = decode_frame(_frame_stream(stream, header, frame), header)
    else:
        _check_length(header, pixel_bytes, stream)
        stored = pixels.pixel_array(stream, index=frame, transfer_syntax_uid=syntax)
    if header.SamplesPerPixel == 3:
        return _luma(stored, header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _palette_grey(header, stored)
    return _monochrome_grey(header, stored, frame)


def _read_header(stream: BinaryIO) -> tuple[Any, int]:
    """The elements of `_HEADER_KEYWORDS`, and the length of the pixel data in bytes, which are not read."""
    filereader = require("pydicom.filereader", _PURPOSE)
    tag = require("pydicom.tag", _PURPOSE).Tag
    if _DEFLATED in stream.read(2**16):  # in the file meta, which is never deflated itself
        raise ImageError(
            "has the deflated transfer syntax, which inflates without bound, expected any other",
            hint="convert it with `dcmconv +te` (DCMTK)",
        )
    stream.seek(0)
    lengths: list[int] = []

    def at_pixel_data(element: int, vr: str | None, length: int) -> bool:
        if element in _PIXEL_ELEMENTS:
            lengths.append(length)
        return bool(lengths)

    header = filereader.read_partial(
        stream, at_pixel_data, force=True, specific_tags=[tag(name) for name in _HEADER_KEYWORDS.split()]
    )
    if not lengths:
        modality = _text(header, "Modality") or "unknown"
        raise ImageError(
            f"holds no pixel data (modality {modality}), expected a DICOM image",
            hint="a report, a presentation state or a truncated file: export the image itself",
        )
    return header, lengths[0]


def _text(dataset: Any, keyword: str) -> str:
    """The undecoded value of a text or number element, "" when absent or empty.

    Not through pydicom's conversion, which warns about values that are harmless here: decimal strings
    of more than 16 characters are everywhere in rescale and window.
    """
    if keyword not in dataset:
        return ""
    value = dataset.get_item(keyword).value or b""
    return (value.decode("ascii") if isinstance(value, bytes) else str(value)).strip(" \0")


def _number(dataset: Any, keyword: str) -> float | None:
    """The first value of a decimal string (of several windows, the first counts); None if absent or empty."""
    text = _text(dataset, keyword).split("\\")[0]
    if not text:
        return None
    number = float(text)
    if not np.isfinite(number):
        raise ImageError(f"has the {keyword} {text}, expected a finite number", hint="export it again")
    return number


def _frames(header: Any) -> int:
    if "NumberOfFrames" not in header:
        return 1
    text = _text(header, "NumberOfFrames")
    if not text.isdecimal() or int(text) < 1:
        raise ImageError(f"has NumberOfFrames `{text}`, expected a positive integer", hint="export it again")
    return int(text)


def _transfer_syntax(header: Any) -> Any:
    uid = require("pydicom.uid", _PURPOSE)
    if "TransferSyntaxUID" in header.file_meta:
        return header.file_meta.TransferSyntaxUID
    # Without file meta a data set can only be uncompressed; pydicom tells the three ways apart.
    implicit, little = header.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _check_layout(header: Any) -> None:
    """Refuse what pydicom would decode to wrong values without a word."""
    photometric, samples = header.PhotometricInterpretation, header.SamplesPerPixel
    expected = {1: (*_MONOCHROME, "PALETTE COLOR"), 3: _COLOUR}.get(samples, ())
    converted = photometric in ("YBR_ICT", "YBR_RCT") and not _transfer_syntax(header).is_encapsulated
    if photometric not in expected or converted:
        raise ImageError(
            f"has the photometric interpretation {photometric} with {samples} sample(s) per pixel, "
            f"expected MONOCHROME1, MONOCHROME2 or PALETTE COLOR with 1, or RGB or YBR with 3",
            hint="export it as MONOCHROME2 or RGB",
        )
    if "HighBit" in header and header.HighBit != header.BitsStored - 1:
        raise ImageError(
            f"has HighBit {header.HighBit}, expected BitsStored - 1, which is {header.BitsStored - 1}",
            hint="export it again: other positions of the bits are retired in DICOM",
        )


def _check_length(header: Any, pixel_bytes: int, stream: BinaryIO) -> None:
    """Uncompressed pixel data must have the length that the header states, but for padding at the end.

    A row or column more than stated says that Rows, Columns or NumberOfFrames is wrong: part of an image
    looks like an image. PS3.5 pads with one zero to an even length; writers that pad with more are known, with
    zeros all the same.
    """
    utils = require("pydicom.pixels.utils", _PURPOSE)
    expected = utils.get_expected_length(header)
    line_bytes = expected // (max(header.Rows, header.Columns) * _frames(header))
    if not expected <= pixel_bytes < expected + max(2, line_bytes):
        raise ImageError(
            f"holds {pixel_bytes} bytes of pixel data, expected {expected} by its Rows, Columns and frames",
            hint="the file is truncated or its header is wrong: export it again",
        )
    stream.seek(_head_bytes(header) + expected, 1)
    if stream.read(pixel_bytes - expected).strip(b"\0"):
        raise ImageError(
            f"holds {pixel_bytes} bytes of pixel data, expected {expected} by its Rows, Columns and frames, and zeros "
            "after them",
            hint="its header is wrong: export it again",
        )


def _head_bytes(header: Any) -> int:
    """Bytes before the value of the pixel data element: tag, VR where it is explicit, length (PS3.5 7.1.2, 7.1.3)."""
    return 8 if header.original_encoding[0] else 12


def _frame_stream(stream: BinaryIO, header: Any, frame: int) -> bytes:
    """The coded bytes of one frame. `stream` stands before the pixel data element, as `_read_header` leaves it."""
    stream.seek(_head_bytes(header), 1)
    tables = [header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")]
    extended = (tables[0] or b"", tables[1] or b"") if any(tables) else None
    return split(stream.read(), _frames(header), extended)[frame]


def _luma(rgb: Array, bits: int) -> Array:
    """Unsigned RGB [H, W, 3] of `bits` bits to its ITU-R 601 luma, uint8 [H, W]."""
    from PIL import Image

    if rgb.dtype.kind != "u":
        raise ImageError("has signed colour samples, expected unsigned ones", hint="export it as 8-bit RGB")
    rgb8 = rgb if bits == 8 and rgb.dtype == np.uint8 else to_uint8(rgb / (2.0**bits - 1))
    return np.array(Image.fromarray(rgb8).convert("L"))


def _palette_grey(header: Any, stored: Array) -> Array:
    """Indices, integer [H, W], through the palette to luma, uint8 [H, W]."""
    processing = require("pydicom.pixels.processing", _PURPOSE)
    rgb: Array = processing.apply_color_lut(stored, header)[..., :3]
    if rgb.itemsize < stored.itemsize:  # pydicom looks up in the palette's type: index 300 would become 44
        raise ImageError(
            f"has {stored.itemsize * 8}-bit indices into a {rgb.itemsize * 8}-bit palette, expected equal",
            hint="export it as RGB",
        )
    bits = header.RedPaletteColorLookupTableDescriptor[2]
    return _luma(rgb, bits)


def _monochrome_grey(header: Any, stored: Array, frame: int) -> Array:
    """Stored values, integer or float [H, W], the standard's way to uint8 [H, W]."""
    valid = ~_padding(header, stored)
    values = _rescale(_group(header, frame, "PixelValueTransformationSequence"), stored)
    fraction = _apply_voi(_group(header, frame, "FrameVOILUTSequence"), values)
    grey = stretch(values, valid) if fraction is None else to_uint8(fraction)
    check_content(grey[valid])
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    grey[~valid] = 0
    return grey


def _padding(header: Any, stored: Array) -> Array:
    """Where the image is padded, bool [H, W]. Bit patterns: signed images often state the value unsigned."""
    if header.get("PixelPaddingValue") is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, np.bool_)
    limits = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)]
    low, high = np.sort(np.array(limits, np.int64).astype(stored.dtype))
    inside: Array = (stored >= low) & (stored <= high)
    return inside


def _group(header: Any, frame: int, macro: str) -> Any:
    """Where rescale or window is: the frame's or the shared `macro` of an enhanced image, else the header."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(groups)
        if items and items[index].get(macro):
            return items[index].get(macro)[0]
    return header


def _rescale(dataset: Any, stored: Array) -> Array:
    """Modality LUT, else rescale slope and intercept: float64 [H, W]."""
    if dataset.get("ModalityLUTSequence"):
        entries, _ = _look_up(dataset.ModalityLUTSequence[0], stored.astype(np.float64))
        return entries
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    values = stored.astype(np.float64)
    values *= 1.0 if slope is None else slope
    values += intercept or 0.0
    return values


def _apply_voi(dataset: Any, values: Array) -> Array | None:
    """VOI LUT, else first window (PS3.3 C.11.2.1), else None: share of the output range, float64 [H, W]."""
    if dataset.get("VOILUTSequence"):
        entries, top = _look_up(dataset.VOILUTSequence[0], values)
        return entries / top
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    function = _text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageError(
            f"has a {function} window of width {width:g}, expected LINEAR (≥ 1), LINEAR_EXACT or SIGMOID",
            hint="export it again with a valid window",
        )
    if function == "SIGMOID":
        return 0.5 + 0.5 * np.tanh(2.0 * (values - center) / width)  # 1 / (1 + exp(-4x)) that can't overflow
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:  # a LINEAR window of width 1 is a threshold
        return (values > center).astype(np.float64)
    return (values - (center - width / 2.0)) / width


def _look_up(item: Any, values: Array) -> tuple[Array, int]:
    """Values, float64 [H, W], through the LUT of a sequence item: float64 [H, W] and the LUT's largest value.

    Not pydicom's functions: they index in the type of the LUT, so that values beyond it wrap around.
    """
    count, first, bits = item.LUTDescriptor
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if item.original_encoding[1] else ">"
        table = np.frombuffer(data, np.uint8 if bits <= 8 and len(data) < 2 * count else f"{order}u2")
    else:
        table = np.atleast_1d(np.array(data, np.int64))
    if not 1 <= bits <= 16 or len(table) < count or table.max() >= 2**bits:
        raise ImageError(
            f"has a LUT of {len(table)} entries up to {table.max()}, expected {count} of {bits} bits",
            hint="export it again: its LUT is damaged",
        )
    index = np.rint(values - first).clip(0, count - 1).astype(np.intp)
    return table[index].astype(np.float64), 2**bits - 1
