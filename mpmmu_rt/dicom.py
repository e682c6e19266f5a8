"""DICOM images to grey, the standard's way (PS3.3 C.7.6.3, C.11.1, C.11.2). See `images` for what grey means.

pydicom decodes the pixel data; what it would do silently wrong is checked or done here.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from . import dicom_header
from ._optional import require
from .dicom_tables import monochrome_grey, palette_grey
from .dicom_values import text
from .errors import ImageError
from .grey import GreyImage, check_depth, check_sides, choose_frame, luma
from .spec import Array, Modality

# Only these are looked at: a defect in a name, a date or a private element has no say in the pixels,
# and pydicom, which checks an element when it is converted, has no occasion to warn about it.
_HEADER_KEYWORDS = f"""
    {dicom_header.KEYWORDS}
    Modality NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    ModalityLUTSequence RescaleSlope RescaleIntercept
    VOILUTSequence VOILUTFunction WindowCenter WindowWidth
    RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_PURPOSE = "reading a DICOM image"
_INTEGER_PIXELS = 0x7FE00010
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, _INTEGER_PIXELS)  # float, double float, integer
_UNDEFINED_LENGTH = 0xFFFFFFFF
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom decodes all of these to RGB
_DECODERS = {  # part of a transfer syntax's name -> what reads it; the first that fits
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}


def read_dicom(stream: BinaryIO, frame: int | None, modality: Modality | None) -> GreyImage:
    """One frame of a DICOM file; `modality`: what it is expected to show, None if either will do."""
    header, element, pixel_bytes = _read_header(stream)
    warnings = dicom_header.check_object(header, modality)
    dicom_header.check_attributes(header, integers=element == _INTEGER_PIXELS)
    frame = choose_frame(_frames(header), frame)
    check_sides(header.Columns, header.Rows)
    _check_layout(header)
    aspect = dicom_header.aspect(header, frame)
    stored = _stored(stream, header, pixel_bytes, frame)
    return GreyImage(_grey(header, stored, frame), aspect, tuple(warnings))


def _stored(stream: BinaryIO, header: Any, pixel_bytes: int, frame: int) -> Array:
    """The decoded samples of one frame, [H, W] or [H, W, 3]."""
    pixels = require("pydicom.pixels", _PURPOSE)
    syntax = _transfer_syntax(header)
    if syntax.is_encapsulated != (pixel_bytes == _UNDEFINED_LENGTH):
        raise ImageError(
            f"has pixel data that contradict its transfer syntax ({syntax.name})",
            hint="export it again, or correct it with dcmconv",
        )
    if syntax.is_encapsulated:
        return _in_stored_bits(header, _decompress(stream, frame, syntax))
    _check_length(header, pixel_bytes)
    stored: Array = pixels.pixel_array(stream, index=frame, transfer_syntax_uid=syntax)
    return stored


def _grey(header: Any, stored: Array, frame: int) -> Array:
    if header.SamplesPerPixel == 3:
        if stored.dtype.kind != "u":
            raise ImageError("has signed colour samples, expected unsigned ones", hint="export it as 8-bit RGB")
        grey = luma(stored, header.BitsStored)
        if header.BitsStored > 8:
            check_depth(grey)
        return grey
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return palette_grey(header, stored)
    return monochrome_grey(header, stored, frame)


def _in_stored_bits(header: Any, decoded: Array) -> Array:
    """Decompressed integers [H, W, …] by BitsStored, whose sign some codecs can't carry; what exceeds it is refused.

    Uncompressed, the bits beyond are to be ignored (PS3.5 8.1.1). Here they are an overlay, or another image's header.
    """
    bits, signed = header.BitsStored, header.PixelRepresentation == 1
    low, high = int(decoded.min()), int(decoded.max())
    if high >= 2**bits or low < (-(2 ** (bits - 1)) if signed else 0):
        raise ImageError(
            f"holds compressed values from {low} to {high}, expected {bits} bits, as its BitsStored says",
            hint="export it again uncompressed: its header and its pixels contradict each other",
        )
    if not signed or high < 2 ** (bits - 1):
        return decoded
    unused = 8 * decoded.itemsize - bits
    extended: Array = (decoded << unused) >> unused
    return extended


def _read_header(stream: BinaryIO) -> tuple[Any, int, int]:
    """The elements of `_HEADER_KEYWORDS`; the tag of the pixel data and their length in bytes, which are not read."""
    filereader = require("pydicom.filereader", _PURPOSE)
    tag = require("pydicom.tag", _PURPOSE).Tag
    if _DEFLATED in stream.read(2**16):  # in the file meta, which is never deflated itself
        raise ImageError(
            "has the deflated transfer syntax, which inflates without bound, expected any other",
            hint="convert it with `dcmconv +te` (DCMTK)",
        )
    stream.seek(0)
    found: list[tuple[int, int]] = []

    def at_pixel_data(element: int, vr: str | None, length: int) -> bool:
        if element in _PIXEL_ELEMENTS:
            found.append((element, length))
        return bool(found)

    header = filereader.read_partial(
        stream, at_pixel_data, force=True, specific_tags=[tag(name) for name in _HEADER_KEYWORDS.split()]
    )
    if not found:
        modality = text(header, "Modality") or "unknown"
        raise ImageError(
            f"holds no pixel data (modality {modality}), expected a DICOM image",
            hint="a report, a presentation state or a truncated file: export the image itself",
        )
    return header, *found[0]


def _frames(header: Any) -> int:
    if "NumberOfFrames" not in header:
        return 1
    stated = text(header, "NumberOfFrames")
    if not stated.isdecimal() or int(stated) < 1:
        raise ImageError(f"has NumberOfFrames `{stated}`, expected a positive integer", hint="export it again")
    return int(stated)


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


def _check_length(header: Any, pixel_bytes: int) -> None:
    """Uncompressed pixel data must have the length that the header states, but for padding at the end.

    A row or column more than stated says that Rows, Columns or NumberOfFrames is wrong: part of an image
    looks like an image.
    """
    utils = require("pydicom.pixels.utils", _PURPOSE)
    expected = utils.get_expected_length(header)
    line_bytes = expected // (max(header.Rows, header.Columns) * _frames(header))
    if not expected <= pixel_bytes < expected + max(2, line_bytes):
        raise ImageError(
            f"holds {pixel_bytes} bytes of pixel data, expected {expected} by its Rows, Columns and frames",
            hint="the file is truncated or its header is wrong: export it again",
        )


def _decompress(stream: BinaryIO, frame: int, syntax: Any) -> Array:
    pixels = require("pydicom.pixels", _PURPOSE)
    packages = next((names for part, names in _DECODERS.items() if part in syntax.name), "")
    hint = "decompress it first, for example with `dcmdjpeg` (DCMTK) or `gdcmconv --raw`"
    try:
        decoded: Array = pixels.pixel_array(stream, index=frame, transfer_syntax_uid=syntax, correct_unused_bits=False)
    except RuntimeError as error:  # also NotImplementedError: no decoder, or every decoder failed
        raise ImageError(
            f"can't be decompressed ({' '.join(str(error).split())[:200]}), expected readable {syntax.name}",
            hint=f"pip install {packages}, if the file is whole; or {hint}" if packages else hint,
        ) from error
    return decoded
