"""DICOM images to grey, the standard's way (PS3.3 C.7.6.3, C.11.1, C.11.2). See `images` for what grey means.

pydicom reads the header and uncompressed pixel data; `streams` decodes what is compressed. What pydicom would do
silently wrong is checked or done here.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from . import dicom_header
from ._optional import require
from .dicom_tables import monochrome_grey, palette_grey
from .dicom_values import is_uid, shown, text
from .errors import ImageError
from .grey import GreyImage, check_depth, check_sides, choose_frame, luma
from .spec import Array, Modality
from .streams.dicom import decode_frame
from .streams.frames import split
from .subject import KEYWORDS as SUBJECT_KEYWORDS
from .subject import subject_of

# Only these are looked at: a defect in a name, a date or a private element has no say in the pixels,
# and pydicom, which checks an element when it is converted, has no occasion to warn about it.
_HEADER_KEYWORDS = f"""
    {dicom_header.KEYWORDS}
    {SUBJECT_KEYWORDS}
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
    ExtendedOffsetTable ExtendedOffsetTableLengths
"""
_PURPOSE = "reading a DICOM image"
_INTEGER_PIXELS = 0x7FE00010
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, _INTEGER_PIXELS)  # float, double float, integer
_OVERLAY_BITS_ALLOCATED = tuple(0x60000100 + (group << 16) for group in range(0, 0x20, 2))
_UNDEFINED_LENGTH = 0xFFFFFFFF
_UID_LENGTH = 64
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SYNTAX = b"\x02\0\x10\0UI"  # its element, in the file meta, which is explicit and little endian
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom decodes all of these to RGB


def read_dicom(stream: BinaryIO, frame: int | None, modality: Modality | None) -> GreyImage:
    """One frame of a DICOM file; `modality`: what it is expected to show, None if either will do."""
    header, element, pixel_bytes = _read_header(stream)
    warnings = dicom_header.check_object(header, modality)
    coded = _transfer_syntax(header).is_encapsulated
    dicom_header.check_attributes(header, integers=element == _INTEGER_PIXELS, coded=coded)
    frame = choose_frame(_frames(header), frame)
    check_sides(header.Columns, header.Rows)
    _check_layout(header)
    aspect = dicom_header.aspect(header, frame)
    stored, beyond = _stored(stream, header, pixel_bytes, frame)
    if beyond and not _has_overlay(header):
        warnings.append(f"it has bits above its {header.BitsStored} bits stored that no overlay accounts for")
    return GreyImage(_grey(header, stored, frame), aspect, tuple(warnings), subject_of(header, frame))


def _stored(stream: BinaryIO, header: Any, pixel_bytes: int, frame: int) -> tuple[Array, bool]:
    """The decoded samples of one frame, [H, W] or [H, W, 3], and whether bits beyond those that are stored are set."""
    pixels = require("pydicom.pixels", _PURPOSE)
    syntax = _transfer_syntax(header)
    if syntax.is_encapsulated != (pixel_bytes == _UNDEFINED_LENGTH):
        raise ImageError(
            f"has pixel data that contradict its transfer syntax ({shown(syntax.name, 80)}), expected those of it",
            hint="export it again, or correct it with dcmconv",
        )
    if syntax.is_encapsulated:
        return decode_frame(_frame_stream(stream, header, frame), header), False
    _check_length(header, pixel_bytes, stream)
    cells: Array = pixels.pixel_array(stream, index=frame, transfer_syntax_uid=syntax, correct_unused_bits=False)
    return _without_unused_bits(header, cells)


def _without_unused_bits(header: Any, cells: Array) -> tuple[Array, bool]:
    """Uncompressed cells, integers of BitsAllocated bits, without the bits beyond BitsStored, and whether any was set.

    These are to be ignored (PS3.5 8.1.1): once, overlays were kept there. A sign may fill them or not.
    """
    unused = 0 if cells.dtype.kind == "f" else header.BitsAllocated - header.BitsStored
    if unused == 0 or (cells.dtype.kind == "u" and cells.max() < 2**header.BitsStored):
        return cells, False
    stored: Array = (cells << unused) >> unused
    filled = (stored != cells) & (cells >> header.BitsStored != 0)
    return stored, bool(filled.any())


def _has_overlay(header: Any) -> bool:
    """Whether an overlay says that it is kept in the bits of the pixels (PS3.3 C.9.2, retired)."""
    return any(tag in header and header[tag].value not in (None, 1) for tag in _OVERLAY_BITS_ALLOCATED)


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


def _read_header(stream: BinaryIO) -> tuple[Any, int, int]:
    """The elements of `_HEADER_KEYWORDS`; the tag of the pixel data and their length in bytes, which are not read."""
    filereader = require("pydicom.filereader", _PURPOSE)
    tag = require("pydicom.tag", _PURPOSE).Tag
    head = stream.read(2**16)
    _check_syntax(head)
    if _DEFLATED in head:  # in the file meta, which is never deflated itself
        raise ImageError(
            "has the deflated transfer syntax, which inflates without bound, expected any other",
            hint="convert it with `dcmconv +te` (DCMTK)",
        )
    stream.seek(0)
    found: list[tuple[int, int]] = []
    wanted = [tag(name) for name in (*_HEADER_KEYWORDS.split(), *_OVERLAY_BITS_ALLOCATED)]
    seen = set[int]()

    def at_pixel_data(element: int, vr: str | None, length: int) -> bool:
        if element in _PIXEL_ELEMENTS:
            found.append((element, length))
        elif element in seen and element in wanted:  # pydicom takes the last, others the first
            raise ImageError(
                f"has the element {tag(element)} twice, expected it once",
                hint="the file is damaged or was joined from two: export it again",
            )
        seen.add(element)
        return bool(found)

    header = filereader.read_partial(
        stream,
        at_pixel_data,
        force=True,
        specific_tags=wanted,
    )
    if not found:
        modality = shown(text(header, "Modality")) or "unknown"
        raise ImageError(
            f"holds no pixel data (modality {modality}), expected a DICOM image",
            hint="a report, a presentation state or a truncated file: export the image itself",
        )
    return header, *found[0]


def _check_syntax(head: bytes) -> None:
    """Refuse a transfer syntax that is no UID before pydicom prints it, with all that a damaged length makes part of
    it: the patient's name, say."""
    found = head.find(_SYNTAX)
    if found < 0:
        return
    start = found + len(_SYNTAX) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    value = head[start : start + length].decode("ascii", "replace").strip(" \0")
    if not is_uid(value):
        got = f"of {length} characters" if length > _UID_LENGTH else "that is no UID"
        raise ImageError(
            f"has a transfer syntax {got}, expected a UID of at most {_UID_LENGTH}",
            hint="the file is damaged: export it again",
        )


def _frames(header: Any) -> int:
    if "NumberOfFrames" not in header:
        return 1
    stated = text(header, "NumberOfFrames")
    if not stated.isdecimal() or int(stated) < 1:
        raise ImageError(f"has NumberOfFrames `{shown(stated)}`, expected a positive integer", hint="export it again")
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
            f"has the photometric interpretation {shown(photometric, 40)} with {samples} sample(s) per pixel, "
            f"expected MONOCHROME1, MONOCHROME2 or PALETTE COLOR with 1, or RGB or YBR with 3",
            hint="export it as MONOCHROME2 or RGB",
        )
    if photometric.startswith("YBR") and header.BitsAllocated != 8 and not _transfer_syntax(header).is_encapsulated:
        raise ImageError(
            f"has YBR colours of {header.BitsAllocated} bits allocated, expected 8",
            hint="export it as RGB or MONOCHROME2",
        )
    if "HighBit" in header and header.HighBit != header.BitsStored - 1:
        raise ImageError(
            f"has HighBit {shown(header.HighBit)}, expected BitsStored - 1, which is {header.BitsStored - 1}",
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
