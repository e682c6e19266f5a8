"""Whose breast, and which, a DICOM header says that an image shows: a case is one patient's.

PS3.3 C.7.1.1 (PatientID, IssuerOfPatientID, PatientIdentityRemoved), C.7.3.1 (Laterality of a series), C.8.11.2
(ImageLaterality) and C.7.6.16.2.8 (FrameLaterality). No other format says any of it. What a header says of a patient is
compared, and is in no message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .dicom_values import group, text
from .errors import ImageError
from .spec import MODALITIES, Modality

KEYWORDS = "PatientID IssuerOfPatientID PatientIdentityRemoved ImageLaterality Laterality"
_SIDES = {"L": "left", "R": "right"}
# What anonymisers leave where they leave no pseudonym.
_NOBODY = {"", "0", "ANON", "ANONYMIZED", "ANONYMOUS", "NA", "N/A", "NONE", "UNKNOWN"}


@dataclass(frozen=True)
class Subject:
    """patient, issuer: digests of the patient's id and of who gave it; "" where they are not told. pseudonym: whether
    the id is one. side: "left", "right" or ""."""

    patient: str = ""
    issuer: str = ""
    pseudonym: bool = False
    side: str = ""

    @property
    def person(self) -> str:
        """ "" where nobody is named."""
        return self.patient and self.patient + self.issuer


NOBODY = Subject()  # of every format but DICOM


def subject_of(header: Any, frame: int) -> Subject:
    """Of a DICOM header with the elements of `KEYWORDS`."""
    anatomy = group(header, frame, "FrameAnatomySequence")
    sides = (text(header, "ImageLaterality"), text(anatomy, "FrameLaterality"), text(header, "Laterality"))
    return Subject(
        patient=_digest(text(header, "PatientID")),
        issuer=_digest(text(header, "IssuerOfPatientID")),
        pseudonym=text(header, "PatientIdentityRemoved").upper() == "YES",
        side=_SIDES.get(next((one for one in sides if one), "").upper(), ""),
    )


def _digest(given: str) -> str:
    """ "" of what names nobody, and of letters beyond ASCII, which the same id may have in other codes."""
    if given.upper() in _NOBODY or not given.isascii() or "\N{REPLACEMENT CHARACTER}" in given:
        return ""
    return hashlib.blake2b(given.encode(), digest_size=16).hexdigest()


def require_one(subjects: Mapping[Modality, Subject]) -> tuple[str, ...]:
    """What is to be said against a case whose images are of these. Raises `ImageError` where they are two patients'."""
    mammogram, ultrasound = (subjects[modality] for modality in MODALITIES)
    said = []
    if _are_two(mammogram, ultrasound):
        if not mammogram.pseudonym and not ultrasound.pseudonym:
            raise ImageError(
                "the mammogram and the ultrasound image are of two patients by their headers (PatientID), expected "
                "one patient's",
                hint="name the images of one patient; if they are, and an id was only written otherwise, correct it in "
                "the file",
            )
        said.append("by their headers the images are of two patients, whose ids are pseudonyms (PatientID)")
    if mammogram.side and ultrasound.side and mammogram.side != ultrasound.side:
        said.append(
            f"the mammogram is of the {mammogram.side} breast and the ultrasound image of the {ultrasound.side} one"
        )
    return tuple(said)


def _are_two(one: Subject, other: Subject) -> bool:
    """Ids of two issuers can't be compared."""
    same_issuer = not one.issuer or not other.issuer or one.issuer == other.issuer
    return bool(one.patient and other.patient) and one.patient != other.patient and same_issuer
