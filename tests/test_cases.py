from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mpmmu_rt import cases
from mpmmu_rt.cases import Case, Manifest, read_manifest, require_complete, require_people
from mpmmu_rt.errors import ManifestError

HEADER = "case_id,mammography,ultrasound,label\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes) -> Manifest:
    return read_manifest(write(folder, text))


def test_a_manifest_keeps_its_order_and_resolves_paths_beside_it(tmp_path: Path) -> None:
    text = HEADER + "b,m/1.png,u/1.png,1\na,/abs/2.png,../2.png,0\nc,3.png,3.png,\n"
    manifest = read(tmp_path, text)
    assert manifest.cases == (
        Case("b", tmp_path / "m/1.png", tmp_path / "u/1.png", 1),
        Case("a", Path("/abs/2.png"), tmp_path / "../2.png", 0),
        Case("c", tmp_path / "3.png", tmp_path / "3.png", None),
    )
    assert manifest.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert manifest.path == tmp_path / "manifest.csv"


@pytest.mark.parametrize(
    "text",
    [
        "case_id,mammography,ultrasound\na,m,u\n",
        "case_id,mammography,ultrasound\na,m,u",
        "\ufeffcase_id,mammography,ultrasound\r\na,m,u\r\n",
        " case_id , mammography,ultrasound \n a , m ,u \n",
        "ultrasound,note,case_id,mammography\nu,any thing,a,m\n",
        '"case_id","mammography","ultrasound"\n"a","m","u"\n',
        "case_id,mammography,ultrasound\n\n\na,m,u\n\n",
    ],
)
def test_ways_to_write_the_same_case(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).cases == (Case("a", tmp_path / "m", tmp_path / "u"),)


def test_cells_may_hold_commas_quotes_and_other_alphabets(tmp_path: Path) -> None:
    (case,) = read(tmp_path, HEADER + '"Ä, ""7""","m,1.png",超音波.png,1\n').cases
    assert case == Case('Ä, "7"', tmp_path / "m,1.png", tmp_path / "超音波.png", 1)


def test_an_absent_image_is_a_matter_of_its_case(tmp_path: Path) -> None:
    (case,) = read(tmp_path, HEADER + "a,,no/such.png,0\n").cases
    assert case.mammography is None
    assert case.image("mammography") is None
    assert case.image("ultrasound") == tmp_path / "no/such.png"


def test_patients_group_cases(tmp_path: Path) -> None:
    text = "case_id,mammography,ultrasound,patient\na,m,u,P\nb,m,u,P\nc,m,u,\n"
    assert [case.group for case in read(tmp_path, text).cases] == ["P", "P", "c"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty, expected a CSV header"),
        ("\n\n", "is empty, expected a CSV header"),
        (HEADER, "has a header and no case"),
        ("case_id,mammography\na,m\n", "missing: ultrasound"),
        ("case_id;mammography;ultrasound\na;m;u\n", "cells separated by semicolons, expected commas"),
        ("case_id\tmammography\tultrasound\na\tm\tu\n", "cells separated by tabs, expected commas"),
        ("Case_ID,mammography,ultrasound\na,m,u\n", "missing: case_id"),
        ("a,m.png,u.png\n", "missing: case_id, mammography, ultrasound"),
        ("case_id,mammography,ultrasound,label,label\na,m,u,0,1\n", "names the column `label` twice"),
        ("case_id,mammography,ultrasound,, \na,m,u,,\n", "names the column `` twice"),
        (HEADER + "a,m,u,0\na,m2,u2,1\n", "uses the case_id `a` 2 times"),
        (HEADER + "a,m,u,0\n a ,m2,u2,1\n", "uses the case_id `a` 2 times"),
        (HEADER + ",m,u,0\n", r":2 has the case_id ''"),
        (HEADER + "a,m,u,0\n   ,m,u,0\n", r":3 has the case_id ''"),
        (HEADER + f"{'x' * 201},m,u,0\n", "expected 1 to 200 printable"),
        (HEADER + "a\x1b[31m,m,u,0\n", "printable"),
        (HEADER + '"a\nb",m,u,0\n', "printable"),
        (HEADER + "a,m,u\n", ":2 has more or fewer cells"),
        (HEADER + "a,m,u,0,5\n", ":2 has more or fewer cells"),
        (HEADER + "a,m,u,2\n", "has the label `2`"),
        (HEADER + "a,m,u,-1\n", "has the label `-1`"),
        (HEADER + "a,m,u,1.0\n", "has the label `1.0`"),
        (HEADER + "a,m,u,malignant\n", "has the label `malignant`"),
        (HEADER + "a,m,u,nan\n", "has the label `nan`"),
        (HEADER + 'a,"m,u,0\n', "is not valid CSV"),
        (HEADER + 'a,"m"x,u,0\n', "is not valid CSV"),
        (HEADER + f"a,{'m' * 140_000},u,0\n", "is not valid CSV: field larger"),
        ((HEADER + "a,m,u,0\n").encode("utf-16"), r"is not UTF-8 text \(byte 0\)"),
        (HEADER.encode() + "ä,m,u,0\n".encode("latin-1"), "is not UTF-8 text"),
        (b"\xef\xbb\xbfcase_id\xff", r"is not UTF-8 text \(byte 10\)"),
        ((HEADER + "a,m,u,0\n").encode("utf-16-le"), "holds NUL bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not UTF-8 text"),
    ],
)
def test_a_manifest_that_is_doubtful_is_refused_whole(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "manifest.csv") in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["no.csv", "."])
def test_what_can_not_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"can't be read: .*, expected a CSV file"):
        read_manifest(tmp_path / name)


def test_a_manifest_is_read_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEADER + "a,m,u,0\n"
    monkeypatch.setattr(cases, "MAX_MANIFEST_BYTES", len(text))
    assert len(read(tmp_path, text).cases) == 1
    with pytest.raises(ManifestError, match=f"is larger than {len(text)} bytes"):
        read(tmp_path, text + "\n")
    with pytest.raises(ManifestError, match="is larger than"):
        read_manifest(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("row", "labels", "problem"),
    [
        ("a,,u,0", False, "has no mammography image"),
        ("a,m,,0", False, "has no ultrasound image"),
        ("a,m,u,", True, "has no label"),
    ],
)
def test_training_needs_complete_cases(tmp_path: Path, row: str, labels: bool, problem: str) -> None:
    manifest = read(tmp_path, HEADER + "ok,m,u,1\n" + row + "\n")
    with pytest.raises(ManifestError, match=f"case `a` {problem}"):
        require_complete(manifest, labels=labels)


def test_labels_are_needed_only_where_asked(tmp_path: Path) -> None:
    require_complete(read(tmp_path, HEADER + "a,m,u,\n"), labels=False)
    require_complete(read(tmp_path, HEADER + "a,m,u,1\n"), labels=True)


@pytest.mark.parametrize(
    ("header", "near"),
    [
        ("case_id,mammography,ultrasound,label,patient", {}),
        ("case_id,mammography,ultrasound,label,patient,patient_id", {}),
        ("case_id,mammography,ultrasound,label,patient_id", {"patient": "patient_id"}),
        ("case_id,mammography,ultrasound,PatientID,Label", {"patient": "PatientID", "label": "Label"}),
        ("case_id,mammography,ultrasound,subject", {"patient": "subject"}),
        ("case_id,mammography,ultrasound,Patient No.,labels", {"patient": "Patient No.", "label": "labels"}),
        ("case_id,mammography,ultrasound,pateint", {"patient": "pateint"}),
        ("case_id,mammography,ultrasound,patient_age,birads,view,labeller,density,source", {}),
    ],
)
def test_columns_that_were_probably_meant(tmp_path: Path, header: str, near: dict[str, str]) -> None:
    manifest = read(tmp_path, f"{header}\n{','.join('a' if i < 3 else '' for i in range(header.count(',') + 1))}\n")
    assert manifest.near == near
    assert len(manifest.remarks) == len(near)


def test_a_required_column_that_was_probably_meant_is_in_the_hint(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, "CaseID,Mammogram,ultrasound\na,m,u\n")
    assert str(caught.value.hint).startswith("rename `CaseID` to `case_id`; rename `Mammogram` to `mammography`: ")


def test_persons_that_are_not_told_are_refused_where_they_decide_a_split(tmp_path: Path) -> None:
    manifest = read(tmp_path, "case_id,mammography,ultrasound,label,patient_id\na,m,u,0,P\nb,m2,u2,1,P\n")
    with pytest.raises(ManifestError, match="has the column `patient_id` and none named `patient`") as caught:
        require_people(manifest)
    assert "rename `patient_id` to `patient`" in str(caught.value.hint)
    require_people(read(tmp_path, "case_id,mammography,ultrasound,label\na,m,u,0\n"))


@pytest.mark.parametrize(
    ("patients", "says", "follows"),
    [
        (("P", "", "P"), "1 of 3 cases name no patient, the first is `b`", ("P", "b", "P")),
        (("P01", "p1", "Q"), "has the patients `P01` and `p1`", ("P01", "P01", "Q")),
        (("17", "18", "17.0"), "has the patients `17` and `17.0`", ("17", "18", "17.0x")),
    ],
)
def test_persons_that_may_be_one_are_refused_and_the_hint_works(
    tmp_path: Path, patients: tuple[str, ...], says: str, follows: tuple[str, ...]
) -> None:
    def written(names: tuple[str, ...]) -> Manifest:
        rows = "".join(f"{row},m{row},u{row},0,{name}\n" for row, name in zip("abc", names, strict=True))
        return read(tmp_path, f"case_id,mammography,ultrasound,label,patient\n{rows}")

    with pytest.raises(ManifestError, match=says):
        require_people(written(patients))
    require_people(written(follows))
    require_people(written(("", "", "")))


def test_a_label_that_was_probably_meant_is_in_the_hint(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no label") as caught:
        require_complete(read(tmp_path, "case_id,mammography,ultrasound,Class\na,m,u,1\n"), labels=True)
    assert caught.value.hint == "rename `Class` to `label`"


def test_ids_that_look_the_same_are_refused(tmp_path: Path) -> None:
    """Two rows of one name, which nobody can tell apart in what `run` writes."""
    text = HEADER + "f\u00e9,1,2,\nfe\u0301,3,4,\n"
    with pytest.raises(
        ManifestError, match=r"the case_ids 'f\\xe9' and 'fe\\u0301', the same letters otherwise"
    ) as caught:
        read(tmp_path, text)
    assert "NFC" in caught.value.hint
    assert len(read(tmp_path, HEADER + "fe\u0301,1,2,\nfe,3,4,\n007,5,6,\n7,7,8,\nFe,9,0,\n").cases) == 5


def test_the_folder_is_that_of_images_with_relative_paths(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + "a,1.png,/2.png,\n").folder == str(tmp_path)
    assert read(tmp_path, HEADER + "a,/1.png,/2.png,\nb,,,\n").folder is None
