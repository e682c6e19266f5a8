"""What a DICOM object says that it is: the image that was asked for, another one, or one with a doubt in its row."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import Predictor, load
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.errors import ImageError
from mpmmu_rt.export.cases import of_manifest
from mpmmu_rt.images import Preprocessing, preprocess, read_grey, read_image, read_pixels, read_with_warnings
from mpmmu_rt.model.data import data_from_manifest
from mpmmu_rt.progress import silent
from mpmmu_rt.run import run
from mpmmu_rt.spec import Array, Modality

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")

Save = Callable[..., Path]
STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURE = STORAGE + "7"


def picture() -> Array:
    y, x = np.mgrid[:40, :50]
    return np.asarray((x * 5 + y * 3) % 256, np.uint8)


def refused(path: Path, message: str, hint: str = ".", modality: Modality | None = None) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path, modality=modality)
    assert "\n" not in str(caught.value) + caught.value.hint
    assert hint in caught.value.hint or hint == "."


# modality and SOP class ────────────────────────────────────────────────────────────────────────────


def test_each_modality_in_its_column(save_dicom: Save) -> None:
    mg, us = save_dicom(picture(), name="mg"), save_dicom(picture(), name="us", Modality="US")
    assert read_image(mg, modality="mammography").warnings == ()
    assert read_image(us, modality="ultrasound").warnings == ()
    refused(mg, r"mg is a mammogram \(modality MG\), expected an ultrasound", "under `mammography`", "ultrasound")
    refused(us, r"us is an ultrasound image \(modality US\), expected a mammogram", "under `ultrasound`", "mammography")
    np.testing.assert_array_equal(read_grey(mg), read_grey(us))  # nothing is expected: either will do


@pytest.mark.parametrize(
    "modality", ["SEG", "RTSTRUCT", "RTDOSE", "SR", "PR", "KO", "CT", "MR", "CR", "DX", "PT", "XA", "DOC"]
)
@pytest.mark.parametrize("expected", [None, "mammography", "ultrasound"])
def test_other_modalities_are_refused(save_dicom: Save, modality: str, expected: Modality | None) -> None:
    path = save_dicom(picture(), Modality=modality, SOPClassUID=SECONDARY_CAPTURE)
    refused(path, f"has the modality {modality.upper()}, expected MG .* or US", "export the image itself", expected)


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [
        ("MG", STORAGE + "66.4"), ("US", STORAGE + "66.4"), ("MG", STORAGE + "88.50"), ("MG", STORAGE + "481.2"),
        ("MG", STORAGE + "6.1"), ("US", STORAGE + "1.2"), ("US", STORAGE + "1"), ("US", STORAGE + "2"),
        ("OT", STORAGE + "1.1"), ("OT", STORAGE + "2"), ("MG", STORAGE + "4"), ("MG", STORAGE + "7.1"), ("MG", "1.2.3"),
    ],
)  # fmt: skip
def test_sop_classes_that_contradict_are_refused(save_dicom: Save, modality: str, sop_class: str) -> None:
    refused(
        save_dicom(picture(), Modality=modality, SOPClassUID=sop_class),
        f"of the SOP class .* and the modality {modality}",
    )


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [
        ("MG", STORAGE + "1.2"), ("MG", STORAGE + "1"), ("MG", STORAGE + "1.1"), ("MG", STORAGE + "13.1.3"),
        ("MG", STORAGE + "13.1.4"), ("US", STORAGE + "6.1"), ("US", STORAGE + "6"), ("US", STORAGE + "3.1"),
        (None, STORAGE + "1.2"), (None, STORAGE + "6.1"),
    ],
)  # fmt: skip
def test_images_of_either_modality_are_read(save_dicom: Save, modality: str | None, sop_class: str) -> None:
    assert read_image(save_dicom(picture(), Modality=modality, SOPClassUID=sop_class)).warnings == ()


@pytest.mark.parametrize("modality", ["MG", "US"])
def test_a_secondary_capture_is_read_with_a_warning(save_dicom: Save, modality: str) -> None:
    """Digitised films (DDSM) and what archives export are such; nothing ties their grey values to the device's."""
    image = read_image(save_dicom(picture(), Modality=modality, SOPClassUID=SECONDARY_CAPTURE))
    assert image.warnings == ("it is a secondary capture, made from an image and not by the device",)


@pytest.mark.parametrize("modality", ["OT", None, ""])
@pytest.mark.parametrize("expected", [None, "mammography", "ultrasound"])
def test_where_nothing_tells_there_is_a_warning(
    save_dicom: Save, modality: str | None, expected: Modality | None
) -> None:
    """Modality is optional in a secondary capture (PS3.3 C.8.6.1), and PNG has none either."""
    path = save_dicom(picture(), Modality=modality, SOPClassUID=SECONDARY_CAPTURE)
    warnings = read_image(path, modality=expected).warnings
    assert warnings[0] == "its header does not say whether it is a mammogram or an ultrasound image"


def test_the_file_meta_counts_where_the_data_set_has_no_sop_class(save_dicom: Save) -> None:
    path = save_dicom(picture(), SOPClassUID=None)
    data = path.read_bytes()
    assert data.count(b"1.2.840.10008.5.1.4.1.1.1.2\0") == 1
    path.write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.6.1\0"))
    refused(path, "of the SOP class Ultrasound Image Storage and the modality MG")


# intent and doubts ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "elements",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": STORAGE + "1.2.1"},
        {"SOPClassUID": STORAGE + "1.1.1"},
        {"SOPClassUID": STORAGE + "13.1.5"},
        {"SOPClassUID": STORAGE + "13.1.3", "PresentationIntentType": "FOR PROCESSING"},
    ],
)
def test_raw_detector_data_are_refused(save_dicom: Save, elements: dict[str, Any]) -> None:
    refused(save_dicom(picture(), **elements), "is FOR PROCESSING .*, expected an image FOR PRESENTATION", "same view")


def test_test_objects_are_refused(save_dicom: Save) -> None:
    refused(save_dicom(picture(), QualityControlImage="YES"), "is a quality control image")
    assert read_image(save_dicom(picture(), QualityControlImage="NO")).warnings == ()


def region(**elements: Any) -> Any:
    item = pydicom.Dataset()
    usual = {"RegionSpatialFormat": 1, "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3}
    for keyword, value in (usual | {"PhysicalDeltaX": 0.01, "PhysicalDeltaY": 0.01} | elements).items():
        setattr(item, keyword, value)
    return item


DOUBTS: list[tuple[dict[str, Any], str]] = [
    ({"BurnedInAnnotation": "YES"}, "it has burned-in annotation: text is part of the picture"),
    ({"ImageType": ["DERIVED", "SECONDARY"]}, "its image type is DERIVED\\SECONDARY, made after the examination"),
    ({"ImageType": ["ORIGINAL", "SECONDARY", "OTHER"]}, "its image type is ORIGINAL\\SECONDARY, made after the"),
    ({"QualityControlImage": "BOTH"}, "it is a quality control image of a patient and a test object"),
    ({"BodyPartExamined": "THYROID"}, "the body part examined is THYROID"),
]


@pytest.mark.parametrize(("elements", "warning"), DOUBTS, ids=[warning for _, warning in DOUBTS])
def test_doubts_are_warnings(save_dicom: Save, elements: dict[str, Any], warning: str) -> None:
    (found,) = read_image(save_dicom(picture(), **elements)).warnings
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("data", "shows"), [(1, ""), (None, ""), (2, "colour flow"), (3, "a spectrum"), (4, "a spectrum"), (18, "")]
)
def test_what_is_no_tissue_is_a_warning(save_dicom: Save, data: int | None, shows: str) -> None:
    """Its colours become grey like any other."""
    regions = [region(), region()]
    for one in regions:
        if data is not None:
            one.RegionDataType = data
    found = read_image(save_dicom(picture(), Modality="US", SequenceOfUltrasoundRegions=regions)).warnings
    said = f"an ultrasound region of it shows {shows} (Doppler), and not tissue alone"
    assert found[1:] == ((said,) if shows else ())


def test_several_regions_are_a_warning(save_dicom: Save) -> None:
    path = save_dicom(picture(), Modality="US", SequenceOfUltrasoundRegions=[region(), region()])
    assert read_image(path).warnings == ("it shows 2 ultrasound regions: more than one picture in one",)
    assert read_image(save_dicom(picture(), Modality="US", SequenceOfUltrasoundRegions=[region()])).warnings == ()


@pytest.mark.parametrize(
    "elements",
    [
        {"BurnedInAnnotation": "NO"},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "SECONDARY"]},
        {"PresentationIntentType": "FOR PRESENTATION"},
        {"BodyPartExamined": "BREAST"},
    ],
)
def test_what_is_usual_is_no_warning(save_dicom: Save, elements: dict[str, Any]) -> None:
    assert read_image(save_dicom(picture(), **elements)).warnings == ()


# rows of run, training, export ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Any:
    with load(bundle_folder) as loaded:
        yield loaded


def test_columns_that_were_exchanged_are_a_row_with_an_error(
    predictor: Predictor, save_dicom: Save, tmp_path: Path
) -> None:
    save_dicom(picture(), name="mg.dcm")
    save_dicom(picture()[::-1].copy(), name="us.dcm", Modality="US", BurnedInAnnotation="YES")
    lines = ["case_id,mammography,ultrasound", "right,mg.dcm,us.dcm", "exchanged,us.dcm,mg.dcm"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        right, exchanged = csv.DictReader(file)
    assert (right["error"], right["decision"] != "") == ("", True)
    assert right["warnings"] == "ultrasound: it has burned-in annotation: text is part of the picture"
    assert (exchanged["probability"], exchanged["decision"]) == ("", "")
    assert "us.dcm is an ultrasound image (modality US), expected a mammogram (modality MG)" in exchanged["error"]
    assert (summary.failed, summary.warned) == (1, 1)
    assert summary.first_warning == f"`right`: {right['warnings']}"
    assert summary.to_json()["warned"] == 1


def test_warnings_outlive_an_interruption(predictor: Predictor, save_dicom: Save, tmp_path: Path) -> None:
    save_dicom(picture(), name="mg.dcm", BurnedInAnnotation="YES")
    save_dicom(picture()[::-1].copy(), name="us.dcm", Modality="US")
    (tmp_path / "m.csv").write_text("case_id,mammography,ultrasound\na,mg.dcm,us.dcm\nb,mg.dcm,us.dcm\n")
    run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "whole.csv", batch=1)
    partial = tmp_path / "out.csv.partial"

    def stop(description: str, done: int, total: int, *more: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", batch=1, progress=stop)
    assert "burned-in" in partial.read_text()
    summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", batch=1, resume=True)
    assert (summary.resumed, summary.warned) == (1, 2)
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_training_and_export_expect_the_modality_too(save_dicom: Save, tmp_path: Path) -> None:
    save_dicom(picture(), name="mg.dcm")
    save_dicom(picture()[::-1].copy(), name="us.dcm", Modality="US")
    (tmp_path / "m.csv").write_text("case_id,mammography,ultrasound,label\na,us.dcm,mg.dcm,1\n")
    with pytest.raises(ImageError, match="expected a mammogram"):
        data_from_manifest(read_manifest(tmp_path / "m.csv"), Preprocessing(32))
    with pytest.raises(ImageError, match="expected a mammogram"):
        of_manifest(tmp_path / "m.csv", Preprocessing(32), silent)


# pixels that are not square ────────────────────────────────────────────────────────────────────────


def circle() -> Array:
    """Stored 80 wide and 40 high: of pixels twice as high as wide."""
    y, x = np.mgrid[:128, :256]
    return np.where(((y - 64) * 2.0) ** 2 + (x - 128.0) ** 2 < 80**2, 220, 20).astype(np.uint8)


def sides(pixels: Array) -> tuple[int, int]:
    seen = pixels[0] > 120
    return int(seen.any(1).sum()), int(seen.any(0).sum())


SPACINGS: list[dict[str, Any]] = [
    {"PixelAspectRatio": [2, 1]},
    {"PixelSpacing": [0.2, 0.1]},
    {"ImagerPixelSpacing": [0.14, 0.07]},
    {"NominalScannedPixelSpacing": [0.1, 0.05]},
    {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.28, 0.14]},
    {"Modality": "US", "SequenceOfUltrasoundRegions": [region(PhysicalDeltaX=0.01, PhysicalDeltaY=0.02)]},
    {"Modality": "US", "SequenceOfUltrasoundRegions": [region(PhysicalDeltaX=0.01, PhysicalDeltaY=-0.02)]},
]


@pytest.mark.parametrize("elements", SPACINGS, ids=lambda elements: " ".join(elements))
def test_a_circle_stays_round(save_dicom: Save, elements: dict[str, Any]) -> None:
    height, width = sides(read_pixels(save_dicom(circle(), **elements), Preprocessing(224)))
    assert abs(height - width) <= 2


def test_shared_pixel_measures_count(save_dicom: Save) -> None:
    measures, groups = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.2, 0.1]
    groups.PixelMeasuresSequence = [measures]
    assert read_image(save_dicom(circle(), SharedFunctionalGroupsSequence=[groups])).pixel_aspect == 2.0


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelSpacing": [0.07, 0.07]},
        {"PixelSpacing": [0.0699, 0.07]},
        {"PixelAspectRatio": [1, 1]},
        {"PixelSpacing": [0, 0]},
        {"PixelAspectRatio": [0, 0]},
        # The time axis of an M-mode, and a spectrum, are no lengths.
        {"Modality": "US", "SequenceOfUltrasoundRegions": [region(PhysicalUnitsXDirection=4, PhysicalDeltaX=0.5)]},
        {"Modality": "US", "SequenceOfUltrasoundRegions": [region(RegionSpatialFormat=2, PhysicalDeltaX=0.5)]},
    ],
    ids=lambda elements: " ".join(elements),
)
def test_square_pixels_are_left_alone(save_dicom: Save, elements: dict[str, Any]) -> None:
    path = save_dicom(circle(), **elements)
    assert read_image(path).pixel_aspect == 1.0
    np.testing.assert_array_equal(read_pixels(path, Preprocessing(64)), preprocess(read_grey(path), Preprocessing(64)))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            {"PixelSpacing": [0.2, 0.1], "PixelAspectRatio": [1, 1]},
            "states pixels of 2:1 by its PixelSpacing and of 1:1 by",
        ),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.2]}, "and of 0.5:1 by its ImagerPixelSpacing"),
        ({"PixelSpacing": [0.1, 0]}, "states pixels 0.1 high and 0 wide by its PixelSpacing"),
        ({"PixelSpacing": [0.1, -0.1]}, "states pixels 0.1 high and -0.1 wide"),
        ({"PixelAspectRatio": [9, 1]}, "expected a ratio from 1:8 to 8:1"),
        ({"PixelSpacing": [0.1]}, r"has 1 value\(s\) of PixelSpacing, expected 2"),
        (
            {"Modality": "US", "SequenceOfUltrasoundRegions": [region(), region(PhysicalDeltaX=0.02)]},
            "states pixels of 1:1 by its ultrasound regions and of 0.5:1",
        ),
    ],
)
def test_what_no_pixel_can_be_is_refused(save_dicom: Save, elements: dict[str, Any], message: str) -> None:
    refused(save_dicom(circle(), **elements), message)


def test_a_bundle_made_before_sees_rows_and_columns_and_says_so(save_dicom: Save) -> None:
    before = Preprocessing.from_json({"size": 224, "fit": "pad"})
    path = save_dicom(circle(), PixelAspectRatio=[2, 1])
    pixels, warnings, _ = read_with_warnings(path, before)
    np.testing.assert_array_equal(pixels, preprocess(read_grey(path), Preprocessing(224)))
    assert warnings == ("its pixels are not square (2:1), and this model takes them as if they were",)
    stretched, warnings, _ = read_with_warnings(path, Preprocessing(224, "stretch"))
    np.testing.assert_array_equal(stretched, preprocess(read_grey(path), Preprocessing(224, "stretch")))
    assert warnings == ()


@pytest.mark.parametrize("aspect", [0.3, 0.5, 1.5, 3.0])
def test_the_aspect_of_the_whole_is_kept(aspect: float) -> None:
    pixels = preprocess(np.full((60, 90), 200, np.uint8), Preprocessing(180), pixel_aspect=aspect)
    height, width = sides(pixels)
    assert height / width == pytest.approx(60 * aspect / 90, abs=0.02)
    assert max(height, width) == 180
