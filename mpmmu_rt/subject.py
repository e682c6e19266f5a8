"""Whose breast, which and when, a DICOM header says that an image shows: a case is one patient's, at one time.

PS3.3 C.7.1.1 (PatientID, IssuerOfPatientID, PatientBirthDate, PatientIdentityRemoved), C.7.2.1 (StudyDate), C.7.3.1
(Laterality of a series), C.7.6.1 (AcquisitionDate, ContentDate), C.8.11.2 (ImageLaterality) and C.7.6.16.2.8
(FrameLaterality). No other format says any of it. What a header says of a patient is compared, and is in no message.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from .dicom_values import group, text
from .errors import ImageError
from .spec import MODALITIES, Modality

APART = 180  # days: a lesion that is watched is looked at again after six months (ACR BI-RADS, category 3)
_DATES = ("StudyDate", "AcquisitionDate", "ContentDate")
KEYWORDS = (
    f"PatientID IssuerOfPatientID PatientBirthDate PatientIdentityRemoved ImageLaterality Laterality {' '.join(_DATES)}"
)
_SIDES = {"L": "left", "R": "right"}
# What anonymisers leave where they leave no pseudonym; letters and digits of it.
_NOBODY = re.compile(
    "|ANON|ANONYMI[SZ]ED|ANONYMOUS|ANONYMOUSPATIENT|DEIDENTIFIED|NA|NIL|NONE|NOTAVAILABLE|NULL|PATIENT|REDACTED|REMOVED|"
    "UNKNOWN|UNKNOWNPATIENT|0+|X+"
)
_KEY = os.urandom(16)  # so that nobody finds an id by trying all


@dataclass(frozen=True)
class Subject:
    """patient, issuer, born: digests, of this process, of the patient's id, of who gave it and of a date of birth; ""
    where they are not told. pseudonym: whether the id is one. side: "left", "right" or "". taken: the day of the
    examination, as `date.toordinal`, if it is told."""

    patient: str = ""
    issuer: str = ""
    born: str = ""
    pseudonym: bool = False
    side: str = ""
    taken: int | None = field(default=None, repr=False, compare=False)

    def comparable(self, other: Subject) -> bool:
        """Ids of two issuers say nothing of each other."""
        return not self.issuer or not other.issuer or self.issuer == other.issuer

    def may_be(self, other: Subject) -> bool:
        """Of the same id: two hospitals count their patients from 1, and mostly name no issuer."""
        return self.comparable(other) and not (self.born and other.born and self.born != other.born)


NOBODY = Subject()  # of every format but DICOM


def subject_of(header: Any, frame: int) -> Subject:
    """Of a DICOM header with the elements of `KEYWORDS`."""
    anatomy = group(header, frame, "FrameAnatomySequence")
    sides = (text(header, "ImageLaterality"), text(anatomy, "FrameLaterality"), text(header, "Laterality"))
    known, issuer = text(header, "PatientID"), text(header, "IssuerOfPatientID").casefold()
    born = _day(text(header, "PatientBirthDate"))
    return Subject(
        patient=_digest(known) if _names_somebody(known) else "",
        issuer=_digest(issuer) if issuer else "",
        born=_digest(str(born)) if born else "",
        pseudonym=text(header, "PatientIdentityRemoved").upper() == "YES",
        side=_SIDES.get(next((one for one in sides if one), "").upper(), ""),
        taken=next(filter(None, (_day(text(header, keyword)) for keyword in _DATES)), None),
    )


def _day(written: str) -> int | None:
    """Of a date as DICOM writes it (PS3.5 6.2, DA, and with the dots of ACR-NEMA). None of what is none, or is up to
    1900, as anonymisers write."""
    found = re.fullmatch(r"(\d{4})(\.?)(\d{2})\2(\d{2})", written, re.ASCII)
    try:
        day = date(int(found[1]), int(found[3]), int(found[4])) if found else date.min
    except ValueError:
        return None
    return day.toordinal() if day.year > 1900 else None


def _names_somebody(known: str) -> bool:
    """Not by letters beyond ASCII, nor by codes that switch to others: one id may be stored in several ways."""
    letters = re.sub("[^A-Z0-9]", "", known.upper())
    return known.isascii() and known.isprintable() and not _NOBODY.fullmatch(letters)


def _digest(given: str) -> str:
    return hashlib.blake2b(given.encode("utf-8", "replace"), digest_size=16, key=_KEY).hexdigest()


def named_otherwise(shown: Iterable[tuple[Subject, str]]) -> Iterator[bool]:
    """Of each image, and the name that its patient goes by: whether an earlier one is of the same person by its header,
    who goes by another name there."""
    earlier: dict[str, dict[tuple[Subject, str], None]] = {}
    for subject, name in shown:
        known = earlier.setdefault(subject.patient, {}) if subject.patient else {}
        yield any(name != other and subject.may_be(one) for one, other in known)
        known[subject, name] = None


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
    if mammogram.born and ultrasound.born and mammogram.born != ultrasound.born:
        said.append("by their headers the patients of the two images were born on different days (PatientBirthDate)")
    if mammogram.side and ultrasound.side and mammogram.side != ultrasound.side:
        said.append(
            f"the mammogram is of the {mammogram.side} breast and the ultrasound image of the {ultrasound.side} one"
        )
    if mammogram.taken and ultrasound.taken and (days := abs(mammogram.taken - ultrasound.taken)) > APART:
        said.append(f"the two images were taken {days} days apart by their headers, expected one examination's")
    return tuple(said)
