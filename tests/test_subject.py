"""Two images of two patients are no case, and two breasts a warning: where DICOM headers tell, at every door."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt import load
from mpmmu_rt.cases import Case, read_manifest
from mpmmu_rt.errors import ImageError, ManifestError
from mpmmu_rt.explain import explain
from mpmmu_rt.export.cases import of_manifest
from mpmmu_rt.image_warnings import ImageWarning, lines, summary
from mpmmu_rt.images import Preprocessing, read_image, read_with_warnings
from mpmmu_rt.model.data import SAME_PERSON, data_from_manifest
from mpmmu_rt.pairs import read_pairs
from mpmmu_rt.predictor import HeaderWarning
from mpmmu_rt.progress import silent
from mpmmu_rt.run import decode
from mpmmu_rt.serving.answers import read_pair
from mpmmu_rt.spec import MODALITIES, Array, Modality
from mpmmu_rt.subject import NOBODY, Subject, named_otherwise, require_one

TWO = "are of two patients by their headers"
PSEUDONYM = "by their headers the images are of two patients, one at least under a pseudonym (PatientID)"
ISSUERS = "the patient's ids are of two issuers by their headers: they can't be compared (PatientID)"
BREASTS = "the mammogram is of the left breast and the ultrasound image of the right one"
BORN = "by their headers the patients of the two images were born on different days (PatientBirthDate)"
SIZE = Preprocessing(48)
Elements = Mapping[str, object]
Pair = Callable[[Elements, Elements], dict[Modality, Path]]


def noise(seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (64, 48), np.uint8)


@pytest.fixture
def pair(save_dicom: Callable[..., Path]) -> Pair:
    """A mammogram and an ultrasound image with these elements, under new names each time."""
    numbers = itertools.count()

    def save(mammography: Elements, ultrasound: Elements) -> dict[Modality, Path]:
        of: dict[Modality, tuple[str, Elements]] = {
            "mammography": ("MG", mammography),
            "ultrasound": ("US", ultrasound),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom, of dates that are none: of what writes, and not of what reads
            return {
                modality: save_dicom(noise(at), name=f"{next(numbers)}.dcm", Modality=kind, **elements)
                for at, (modality, (kind, elements)) in enumerate(of.items())
            }

    return save


def said(paths: Mapping[Modality, Path]) -> tuple[str, ...]:
    return require_one({modality: read_image(path).subject for modality, path in paths.items()})


def one(**elements: object) -> Elements:
    return elements


@pytest.mark.parametrize(
    ("mammography", "ultrasound"),
    [
        (one(PatientID="17"), one(PatientID="18")),
        (one(PatientID="17", IssuerOfPatientID="A"), one(PatientID="18", IssuerOfPatientID="A")),
        (one(PatientID="17", IssuerOfPatientID="HOSP"), one(PatientID="18", IssuerOfPatientID="Hosp")),
        (one(PatientID="17", IssuerOfPatientID="A"), one(PatientID="18")),
        (one(PatientID="17", PatientIdentityRemoved="NO"), one(PatientID="18")),
        (one(PatientID="17"), one(PatientID="017")),
        (one(PatientID="a7"), one(PatientID="A7")),
    ],
)
def test_two_patients_are_no_case(pair: Pair, mammography: Elements, ultrasound: Elements) -> None:
    with pytest.raises(ImageError, match=TWO) as caught:
        said(pair(mammography, ultrasound))
    assert "17" not in str(caught.value) + caught.value.hint, "a patient's id is in no message"
    assert caught.value.hint.startswith("name the images of one patient")


@pytest.mark.parametrize(
    ("mammography", "ultrasound"),
    [
        (one(), one()),
        (one(PatientID="17"), one()),
        (one(PatientID="17"), one(PatientID="")),
        (one(PatientID="17"), one(PatientID="17")),
        (one(PatientID="17 "), one(PatientID=" 17")),
        (one(PatientID="17"), one(PatientID="anonymous")),
        (one(PatientID="17"), one(PatientID="ANONYMISED^")),
        (one(PatientID="17"), one(PatientID="De-identified")),
        (one(PatientID="17"), one(PatientID="00000000")),
        (one(ImageLaterality="L"), one(ImageLaterality="L")),
        (one(ImageLaterality="L"), one(Laterality="L")),
        (one(ImageLaterality="L"), one()),
        (one(ImageLaterality="L"), one(Laterality="B")),
        (one(ImageLaterality="L", Laterality="R"), one(Laterality="L")),  # of the image before that of the series
        (one(ImageLaterality="L"), one(ImageLaterality="U", Laterality="R")),
        (one(PatientBirthDate="19610203"), one()),
        (one(PatientBirthDate="19610203"), one(PatientBirthDate="1961.02.03")),
        (one(PatientBirthDate="19610203"), one(PatientBirthDate="19000101")),
        (one(PatientBirthDate="19610203"), one(PatientBirthDate="19610230")),
        (one(PatientBirthDate="19610203"), one(PatientBirthDate="XXXXXXXX")),
        (one(StudyDate="20240101"), one()),
        (one(StudyDate="20240101"), one(StudyDate="20240629")),
        (one(StudyDate="20240629"), one(AcquisitionDate="20240101")),
        (one(StudyDate="20240101"), one(StudyDate="20240102", ContentDate="20260102")),  # of the study before others
        (one(StudyDate="20240101"), one(StudyDate="18991231", ContentDate="20240101")),
    ],
)
def test_nothing_is_said_of_one_or_of_what_is_not_told(pair: Pair, mammography: Elements, ultrasound: Elements) -> None:
    assert said(pair(mammography, ultrasound)) == ()


def test_ids_of_two_issuers_are_not_compared_and_that_is_said(pair: Pair) -> None:
    for issuer in ("B", "H\u00f4pital"):
        first = one(PatientID="17", IssuerOfPatientID="A", SpecificCharacterSet="ISO_IR 192")
        second = one(PatientID="18", IssuerOfPatientID=issuer, SpecificCharacterSet="ISO_IR 192")
        assert said(pair(first, second)) == (ISSUERS,)
        assert said(pair(first, {**second, "PatientID": "17"})) == ()


@pytest.mark.parametrize("removed", [("YES", "YES"), ("YES", None), (None, "YES")])
def test_pseudonyms_may_be_of_one(pair: Pair, removed: tuple[str | None, str | None]) -> None:
    first, second = removed
    found = said(
        pair(one(PatientID="a", PatientIdentityRemoved=first), one(PatientID="b", PatientIdentityRemoved=second))
    )
    assert found == (PSEUDONYM,)


def test_two_breasts_are_said(pair: Pair) -> None:
    assert said(pair(one(ImageLaterality="L"), one(ImageLaterality="R"))) == (BREASTS,)
    assert said(pair(one(ImageLaterality="L"), one(Laterality="R"))) == (BREASTS,)


@pytest.mark.parametrize("issuer", ["A", "B"])
def test_two_dates_of_birth_are_said(pair: Pair, issuer: str) -> None:
    """Also where ids can't be compared: it is what people compare then."""
    first = one(PatientID="17", PatientBirthDate="19610203", IssuerOfPatientID="A")
    second = one(PatientID="17", PatientBirthDate="19610302", IssuerOfPatientID=issuer)
    assert said(pair(first, second)) == (BORN,)


@pytest.mark.parametrize("keyword", ["StudyDate", "AcquisitionDate", "ContentDate"])
def test_two_examinations_are_said(pair: Pair, keyword: str) -> None:
    words = "the two images were taken 181 days apart by their headers, expected one examination's"
    assert said(pair({keyword: "20240101"}, one(StudyDate="20240630"))) == (words,)
    assert said(pair(one(StudyDate="20240630"), {keyword: "2024.01.01"})) == (words,)


def test_the_side_of_a_frame_counts(save_dicom: Callable[..., Path]) -> None:
    dataset = pytest.importorskip("pydicom").Dataset
    groups = []
    for side in "LR":
        anatomy, frame = dataset(), dataset()
        anatomy.FrameLaterality = side
        frame.FrameAnatomySequence = [anatomy]
        groups.append(frame)
    path = save_dicom(
        np.concatenate([noise(0), noise(1)]), Rows=64, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups
    )
    assert [read_image(path, frame=at).subject.side for at in range(2)] == ["left", "right"]


@pytest.mark.parametrize("implicit", [False, True])
def test_either_way_to_write_elements(save_dicom: Callable[..., Path], implicit: bool) -> None:
    known = {"PatientID": "17", "IssuerOfPatientID": "A", "PatientIdentityRemoved": "YES", "ImageLaterality": "R"}
    subject = read_image(save_dicom(noise(0), implicit=implicit, **known)).subject
    assert (bool(subject.patient), bool(subject.issuer), subject.pseudonym, subject.side) == (True, True, True, "right")


def test_an_id_in_other_letters_can_not_be_compared(save_dicom: Callable[..., Path]) -> None:
    """The same id has other bytes in another character set, and two ids have the same signs for what is not read."""
    ways = (("ISO_IR 192", "M\u00fcller"), ("ISO_IR 100", "M\u00fcller"), ("\\ISO 2022 IR 87", "\u5c71\u7530"))
    for at, (sets, known) in enumerate(ways):
        path = save_dicom(noise(0), name=f"{at}.dcm", SpecificCharacterSet=sets.split("\\"), PatientID=known)
        assert read_image(path).subject == NOBODY


def test_a_subject_holds_no_id(save_dicom: Callable[..., Path]) -> None:
    """It may be shown: in a traceback, say. Nor what another process could find it by, which tries all ids."""
    known = {"PatientID": "SECRET-17", "IssuerOfPatientID": "SECRET-18", "PatientBirthDate": "19610203"}
    path = save_dicom(noise(0), StudyDate="20240101", **known)
    subject = read_image(path).subject
    assert subject.patient
    assert subject.issuer
    assert subject.born
    assert subject.taken
    assert not re.search(f"SECRET|1961|{date(1961, 2, 3).toordinal()}|{subject.taken}", repr(subject))
    script = "import sys; from mpmmu_rt.images import read_image; print(read_image(sys.argv[1]).subject.patient)"
    other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() != subject.patient


@pytest.mark.parametrize("tag", [b"\x08\x00\x16\x00UI", b"\x02\x00\x10\x00UI", b"\x02\x00\x02\x00UI"])
def test_a_damaged_length_prints_no_name(
    save_dicom: Callable[..., Path], tag: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a UID that runs into the patient's elements: pydicom prints what is none."""
    path = save_dicom(noise(0), PatientName="SECRETNAME", PatientID="SECRETID17")
    data = bytearray(path.read_bytes())
    start = data.find(tag) + 8
    for end in (data.find(b"SECRETNAME") + 10, data.find(b"SECRETID17") + 10, start + 40):
        length = end - start + (end - start) % 2
        data[start - 2 : start] = length.to_bytes(2, "little")
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with contextlib.suppress(ImageError):
                read_image(path)
        assert "SECRET" not in " ".join(str(one.message) for one in told) + "".join(capfd.readouterr())


def test_one_id_of_two_dates_of_birth_is_of_two_persons() -> None:
    """Two hospitals count from 1, and mostly name no issuer."""
    born = [Subject("17", born="a"), Subject("17", born="b"), Subject("17"), Subject("17", born="a")]
    assert list(named_otherwise(zip(born[:2], "xy", strict=True))) == [False, False]
    assert list(named_otherwise(zip(born[1:3], "xy", strict=True))) == [False, True]
    assert list(named_otherwise(zip(born[::3], "xy", strict=True))) == [False, True]
    assert list(named_otherwise(zip(born[::3], "xx", strict=True))) == [False, False]


def test_other_formats_tell_nobody(phantom_manifest: Path) -> None:
    path = read_manifest(phantom_manifest).cases[0].mammography
    assert path
    assert read_with_warnings(path, SIZE).subject == NOBODY == Subject()


@pytest.fixture
def two(pair: Pair) -> dict[Modality, Path]:
    return pair(one(PatientID="17"), one(PatientID="18"))


@pytest.fixture
def breasts(pair: Pair) -> dict[Modality, Path]:
    return pair(one(ImageLaterality="L", PatientID="17"), one(Laterality="R", PatientID="17"))


def written(paths: Mapping[Modality, Path], to: Path) -> Path:
    """Each row the same pair, of patients of both classes."""
    with to.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "mammography", "ultrasound", "label", "patient"])
        writer.writerow(["a", *(str(paths[modality]) for modality in MODALITIES), 1, "a"])
    return to


def test_run_evaluate_and_verify(two: dict[Modality, Path], breasts: dict[Modality, Path]) -> None:
    """They ask `run.decode`: of two patients the row is an error."""
    refused = decode(Case("a", two["mammography"], two["ultrasound"]), SIZE, None)
    assert TWO in refused.error
    assert "17" not in refused.error
    warned = decode(Case("a", breasts["mammography"], breasts["ultrasound"]), SIZE, None)
    assert (warned.error, warned.warnings) == ("", BREASTS)
    alone = decode(Case("a", two["mammography"], None), SIZE, None, alone=True)
    assert not alone.error


def test_predict(two: dict[Modality, Path], breasts: dict[Modality, Path], bundle_folder: Path) -> None:
    with load(bundle_folder) as predictor:
        with pytest.raises(ImageError, match=TWO):
            predictor.predict_files(two["mammography"], two["ultrasound"])
        with pytest.warns(HeaderWarning, match=BREASTS):
            predictor.predict_files(breasts["mammography"], breasts["ultrasound"])


def test_of_several_it_says_which(two: dict[Modality, Path], breasts: dict[Modality, Path]) -> None:
    paths = {modality: [breasts[modality], two[modality]] for modality in MODALITIES}
    with pytest.raises(ImageError, match=rf"^{two['mammography']}, {two['ultrasound']}: the mammogram and .* {TWO}"):
        read_pairs(paths, SIZE, None, None)


def test_serve(two: dict[Modality, Path], breasts: dict[Modality, Path]) -> None:
    with pytest.raises(ImageError, match=TWO):
        read_pair({modality: memoryview(path.read_bytes()) for modality, path in two.items()}, SIZE)
    _, found = read_pair({modality: memoryview(path.read_bytes()) for modality, path in breasts.items()}, SIZE)
    assert found == (BREASTS,)


@pytest.mark.slow
def test_explain(two: dict[Modality, Path], breasts: dict[Modality, Path], bundle_folder: Path) -> None:
    with load(bundle_folder) as predictor:
        with pytest.raises(ImageError, match=TWO):
            explain(predictor, Case("a", two["mammography"], two["ultrasound"]))
        found = explain(predictor, Case("a", breasts["mammography"], breasts["ultrasound"]))
    assert found.warnings == (BREASTS,)


def test_train_and_ablate(two: dict[Modality, Path], breasts: dict[Modality, Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"two\.csv, row 1: .* {TWO}") as caught:
        data_from_manifest(read_manifest(written(two, tmp_path / "two.csv")), SIZE)
    assert caught.value.hint.startswith("name the images of one patient; if they are, and an id was only written")
    data = data_from_manifest(read_manifest(written(breasts, tmp_path / "m.csv")), SIZE)
    assert [str(found) for found in data.warnings] == [f"row 1 of m.csv, ultrasound: {BREASTS}"]


def test_one_person_under_two_names_is_said(save_dicom: Callable[..., Path], tmp_path: Path) -> None:
    """Patients are split, and never across: by the manifest, of which headers may know better."""
    rows = [("p", "17", "A"), ("q", "18", "A"), ("r", "17", "A"), ("r", "17", "A"), ("s", "17", "B"), ("t", "", "A")]
    rows += [("u", "18", ""), ("q", "18", "")]
    table = [["case_id", "mammography", "ultrasound", "label", "patient"]]
    for at, (patient, known, issuer) in enumerate(rows):
        whom = {"PatientID": known, "IssuerOfPatientID": issuer}
        paths = [
            save_dicom(noise(2 * at + of), name=f"{at}-{kind}.dcm", Modality=kind, **whom)
            for of, kind in enumerate(("MG", "US"))
        ]
        table.append([f"c{at}", *map(str, paths), str(at % 2), patient])
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    data = data_from_manifest(read_manifest(tmp_path / "m.csv"), SIZE)
    want = [f"row {row} of m.csv, {modality}: {SAME_PERSON}" for row in (3, 4, 7, 8) for modality in MODALITIES]
    assert [str(found) for found in data.warnings] == want
    assert data.warnings[0].grave


def test_what_is_of_the_patient_is_said_before_what_is_of_headers() -> None:
    found = [ImageWarning("m.csv", row, "mammography", chr(97 + row % 5)) for row in range(20)]
    found += [ImageWarning("m.csv", 30 + row, "ultrasound", f"grave {'abcd'[row]}", grave=True) for row in range(4)]
    report = summary(found)
    shown = lines(report)
    assert [line.strip() for line in shown[1:5]] == [f"1 x ultrasound: grave {one}" for one in "abcd"]
    assert shown[5].strip() == "and 5 more kinds"
    assert "grave a" in shown[-1]


def test_export_to_calibrate_and_to_prove(
    two: dict[Modality, Path], breasts: dict[Modality, Path], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=rf"two\.csv, row 1: .* {TWO}"):
        of_manifest(written(two, tmp_path / "two.csv"), SIZE, silent)
    data = of_manifest(written(breasts, tmp_path / "m.csv"), SIZE, silent)
    assert [str(found) for of_case in data.warnings for found in of_case] == [f"row 1 of m.csv, ultrasound: {BREASTS}"]
