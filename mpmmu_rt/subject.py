"""Whose breast, and which, a DICOM header says that an image shows: a case is one patient's.

PS3.3 C.7.1.1 (PatientID, IssuerOfPatientID, PatientIdentityRemoved), C.7.3.1 (Laterality of a series), C.8.11.2
(ImageLaterality) and C.7.6.16.2.8 (FrameLaterality). No other format says any of it. What a header says of a patient is
compared, and is in no message.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .dicom_values import group, text
from .errors import ImageError
from .spec import MODALITIES, Modality

KEYWORDS = "PatientID IssuerOfPatientID PatientIdentityRemoved ImageLaterality Laterality"
_SIDES = {"L": "left", "R": "right"}
# What anonymisers leave where they leave no pseudonym; letters and digits of it.
_NOBODY = re.compile(
    "|ANON|ANONYMI[SZ]ED|ANONYMOUS|ANONYMOUSPATIENT|DEIDENTIFIED|NA|NIL|NONE|NOTAVAILABLE|NULL|PATIENT|REDACTED|REMOVED|"
    "UNKNOWN|UNKNOWNPATIENT|0+|X+"
)
_KEY = os.urandom(16)  # so that nobody finds an id by trying all


@dataclass(frozen=True)
class Subject:
    """patient, issuer: digests, of this process, of the patient's id and of who gave it; "" where they are not told.
    pseudonym: whether the id is one. side: "left", "right" or ""."""

    patient: str = ""
    issuer: str = ""
    pseudonym: bool = False
    side: str = ""

    def comparable(self, other: Subject) -> bool:
        """Ids of two issuers say nothing of each other."""
        return not self.issuer or not other.issuer or self.issuer == other.issuer


NOBODY = Subject()  # of every format but DICOM


def subject_of(header: Any, frame: int) -> Subject:
    """Of a DICOM header with the elements of `KEYWORDS`."""
    anatomy = group(header, frame, "FrameAnatomySequence")
    sides = (text(header, "ImageLaterality"), text(anatomy, "FrameLaterality"), text(header, "Laterality"))
    known, issuer = text(header, "PatientID"), text(header, "IssuerOfPatientID").casefold()
    return Subject(
        patient=_digest(known) if _names_somebody(known) else "",
        issuer=_digest(issuer) if issuer else "",
        pseudonym=text(header, "PatientIdentityRemoved").upper() == "YES",
        side=_SIDES.get(next((one for one in sides if one), "").upper(), ""),
    )


def _names_somebody(known: str) -> bool:
    """Not by letters beyond ASCII, nor by codes that switch to others: one id may be stored in several ways."""
    letters = re.sub("[^A-Z0-9]", "", known.upper())
    return known.isascii() and known.isprintable() and not _NOBODY.fullmatch(letters)


def _digest(given: str) -> str:
    return hashlib.blake2b(given.encode("utf-8", "replace"), digest_size=16, key=_KEY).hexdigest()


def require_one(subjects: Mapping[Modality, Subject]) -> tuple[str, ...]:
    """What is to be said against a case whose images are of these. Raises `ImageError` where they are two patients'."""
    mammogram, ultrasound = (subjects[modality] for modality in MODALITIES)
    said = []
    if mammogram.patient and ultrasound.patient and mammogram.patient != ultrasound.patient:
        if not mammogram.comparable(ultrasound):
            said.append("the patient's ids are of two issuers by their headers: they can't be compared (PatientID)")
        elif mammogram.pseudonym or ultrasound.pseudonym:
            said.append("by their headers the images are of two patients, one at least under a pseudonym (PatientID)")
        else:
            raise ImageError(
                "the mammogram and the ultrasound image are of two patients by their headers (PatientID), expected "
                "one patient's",
                hint="name the images of one patient; if they are, and an id was only written otherwise, correct it in "
                "the file",
            )
    if mammogram.side and ultrasound.side and mammogram.side != ultrasound.side:
        said.append(
            f"the mammogram is of the {mammogram.side} breast and the ultrasound image of the {ultrasound.side} one"
        )
    return tuple(said)
