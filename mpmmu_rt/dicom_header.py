"""What a DICOM object says that it is: before a pixel is read, is it the image that was asked for?

PS3.3 A.8 (secondary capture), A.26 (mammography), A.6 and A.59 (ultrasound), C.7.3.1.1.1 (modality), C.7.6.1 (image),
C.8.5.5 (ultrasound regions), C.8.11.1 (presentation intent), 10.7 (pixel spacing); UIDs of PS3.4 B.5 and PS3.6 A.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._optional import require
from .dicom_values import group, is_uid, numbers, shown, text
from .errors import ImageError
from .geometry import Stated, pixel_aspect
from .spec import Modality

KEYWORDS = """
    SOPClassUID ImageType ConversionType PresentationIntentType BurnedInAnnotation QualityControlImage
    BodyPartExamined PixelPresentation PresentationLUTShape PresentationLUTSequence
    EnhancedPaletteColorLookupTableSequence SequenceOfUltrasoundRegions
    PixelAspectRatio PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
"""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SOP_CLASSES: dict[str, Modality | None] = {  # what it tells; None: the modality has to
    _STORAGE + "1.2": "mammography",  # digital mammography, for presentation
    _STORAGE + "13.1.3": "mammography",  # tomosynthesis
    _STORAGE + "13.1.4": "mammography",  # breast projection, for presentation
    _STORAGE + "1": None,  # computed radiography
    _STORAGE + "1.1": None,  # digital x-ray, for presentation
    _STORAGE + "3": "ultrasound",  # several frames, retired
    _STORAGE + "3.1": "ultrasound",
    _STORAGE + "6": "ultrasound",  # retired
    _STORAGE + "6.1": "ultrasound",
    _STORAGE + "6.2": "ultrasound",  # enhanced volume
    _STORAGE + "7": None,  # secondary capture: a digitised film, or what a workstation exported
    _STORAGE + "7.2": None,
    _STORAGE + "7.3": None,
    _STORAGE + "7.4": None,
}
_SECONDARY_CAPTURE = tuple(_STORAGE + end for end in ("7", "7.2", "7.3", "7.4"))
_RADIOGRAPHS = (_STORAGE + "1", _STORAGE + "1.1")  # of any part of the body
_FOR_PROCESSING = tuple(_STORAGE + end for end in ("1.1.1", "1.2.1", "13.1.5"))
_MODALITIES: dict[str, Modality | None] = {"MG": "mammography", "US": "ultrasound", "OT": None, "": None}
_NAMES = {"mammography": "a mammogram (modality MG)", "ultrasound": "an ultrasound image (modality US)"}
# RegionDataType, C.8.5.5. UltrasoundColorDataPresent tells nothing: devices say so of grey pictures in RGB.
_NO_TISSUE = {2: "colour flow (Doppler)", 3: "a spectrum (Doppler)", 4: "a spectrum (Doppler)"}
_DAMAGED = "the file is damaged: export it again"
_REQUIRED = ("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated")
_ALLOWED = {"BitsAllocated": (1, 8, 16, 32, 64), "PixelRepresentation": (0, 1), "PlanarConfiguration": (0, 1)}
_OF_INTEGERS = ("BitsStored", "PixelRepresentation")


def check_object(header: Any, modality: Modality | None) -> list[str]:
    """What speaks against an image of `modality` (None: of either). Raises `ImageError` if it can't be one."""
    told = _kind(header, modality)
    _check_intent(header)
    return [*_doubts(header, told), *_regions_doubt(header)]


def check_attributes(header: Any, *, integers: bool, coded: bool) -> None:
    """Raise `ImageError` unless the header has what every image needs (PS3.3 C.7.6.3, C.7.6.24).

    coded: the pixels are encapsulated, so that their stream says how samples lie beside each other (PS3.5 8.2).
    """
    colour = ("PlanarConfiguration",) if header.get("SamplesPerPixel") == 3 and not coded else ()
    for keyword in (*_REQUIRED, *colour, *(_OF_INTEGERS if integers else ())):
        value = header.get(keyword)
        if value is None or value == "":
            raise ImageError(f"lacks {keyword}, expected an image's header", hint=_DAMAGED)
        if keyword != "PhotometricInterpretation" and not isinstance(value, int):
            raise ImageError(f"has {keyword} `{shown(value, 40)}`, expected one integer", hint=_DAMAGED)
        if keyword in _ALLOWED and value not in _ALLOWED[keyword]:
            allowed = ", ".join(map(str, _ALLOWED[keyword]))
            raise ImageError(f"has {keyword} {value}, expected one of {allowed}", hint=_DAMAGED)
    if integers and not 1 <= header.BitsStored <= header.BitsAllocated:
        raise ImageError(
            f"has {header.BitsStored} bits stored of {header.BitsAllocated} allocated, expected 1 to all of them",
            hint=_DAMAGED,
        )
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if not isinstance(header.get(keyword), (int, type(None))):
            raise ImageError(f"has {keyword} `{shown(header.get(keyword), 40)}`, expected one integer", hint=_DAMAGED)


def aspect(header: Any, frame: int) -> float:
    """The height of a pixel over its width (PS3.3 10.7, C.7.6.3.1.7, C.8.5.5). Raises `ImageError`."""
    return pixel_aspect(_stated(header, frame))


def _kind(header: Any, expected: Modality | None) -> Modality | None:
    """What the modality and the SOP class say that it is; None if neither tells."""
    stated = text(header, "Modality").upper()
    if stated not in _MODALITIES:
        raise ImageError(
            f"has the modality {shown(stated)}, expected MG (a mammogram) or US (an ultrasound image)",
            hint="export the image itself: masks, reports, plans and images of other devices are not for this model",
        )
    told = _MODALITIES[stated]
    for sop_class in _sop_classes(header):
        if sop_class in _FOR_PROCESSING:
            raise _for_processing()
        of_class = _SOP_CLASSES.get(sop_class)
        other = told is not None and of_class is not None and told != of_class
        if sop_class not in _SOP_CLASSES or other or (sop_class in _RADIOGRAPHS and told != "mammography"):
            name = shown(_name_of(sop_class), 80)
            raise ImageError(
                f"is of the SOP class {name} and the modality {stated or 'unknown'}, expected a mammogram "
                "(MG), an ultrasound image (US) or a secondary capture of either",
                hint="export the image itself, or correct its modality if that is wrong",
            )
        told = told or of_class
    if expected is not None and told is not None and told != expected:
        raise ImageError(
            f"is {_NAMES[told]}, expected {_NAMES[expected]}",
            hint=f"name it under `{told}`: the two may be exchanged",
        )
    return told


def _name_of(uid: str) -> str:
    """pydicom prints what is no UID, and more than that where a length is damaged."""
    return str(require("pydicom.uid", "reading a DICOM image").UID(uid).name) if is_uid(uid) else uid


def _sop_classes(header: Any) -> list[str]:
    """That of the data set and that of the file meta, where they are; they should be the same (PS3.10 7.1)."""
    meta = text(header.file_meta, "MediaStorageSOPClassUID") if hasattr(header, "file_meta") else ""
    return list(dict.fromkeys(uid for uid in (text(header, "SOPClassUID"), meta) if uid))


def _check_intent(header: Any) -> None:
    if text(header, "PresentationIntentType").upper() == "FOR PROCESSING":  # PS3.3 C.8.11.1.1.1
        raise _for_processing()
    if text(header, "QualityControlImage").upper() == "YES":
        raise ImageError(
            "is a quality control image (of a test object), expected one of a patient",
            hint="remove it from the manifest",
        )


def _for_processing() -> ImageError:
    return ImageError(
        "is FOR PROCESSING (raw data of the detector), expected an image FOR PRESENTATION",
        hint="export the image FOR PRESENTATION of the same view: it is what a radiologist, and the model, looks at",
    )


def _doubts(header: Any, told: Modality | None) -> Iterator[str]:
    if told is None:
        yield "its header does not say whether it is a mammogram or an ultrasound image"
    if any(uid in _SECONDARY_CAPTURE for uid in _sop_classes(header)):
        yield "it is a secondary capture, made from an image and not by the device"
    image_type = [part.strip().upper() for part in text(header, "ImageType").split("\\")]
    if "SECONDARY" in image_type[1:2]:  # PS3.3 C.7.6.1.1.2
        yield f"its image type is {shown(image_type[0])}\\SECONDARY, made after the examination"
    if text(header, "BurnedInAnnotation").upper() == "YES":
        yield "it has burned-in annotation: text is part of the picture"
    if text(header, "QualityControlImage").upper() == "BOTH":
        yield "it is a quality control image of a patient and a test object"
    part = text(header, "BodyPartExamined").upper()
    if part and part != "BREAST":
        yield f"the body part examined is {shown(part)}"


def _regions_doubt(header: Any) -> Iterator[str]:
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if len(regions) > 1:
        yield f"it shows {len(regions)} ultrasound regions: more than one picture in one"
    kinds = [_NO_TISSUE.get(region.get("RegionDataType")) for region in regions]
    for kind in dict.fromkeys(one for one in kinds if one):
        yield f"an ultrasound region of it shows {kind}, and not tissue alone"


def _stated(header: Any, frame: int) -> Iterator[Stated]:
    measures = group(header, frame, "PixelMeasuresSequence")
    sources = [(measures, "PixelSpacing")]
    sources += [
        (header, name)
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
    ]
    for dataset, name in sources:
        values = numbers(dataset, name)
        if values and len(values) != 2:
            raise ImageError(f"has {len(values)} value(s) of {name}, expected 2", hint="export it again")
        if values:
            yield name, values[0], values[1]
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        deltas = region.get("PhysicalDeltaX"), region.get("PhysicalDeltaY")
        # Two-dimensional, in cm both ways: not the time axis of an M-mode or a spectrum.
        if region.get("RegionSpatialFormat") == 1 and units == (3, 3) and None not in deltas:
            yield "ultrasound regions", abs(float(deltas[1])), abs(float(deltas[0]))
