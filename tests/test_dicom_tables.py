"""Tables, presentation and padding of DICOM images, against the standard's words written down in NumPy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")

Save = Callable[..., Path]
H, W = 48, 64
COLOURS = ("Red", "Green", "Blue")


def ramp(low: float, high: float, dtype: Any = np.uint16) -> Array:
    y, x = np.mgrid[:H, :W]
    return np.asarray(np.rint(low + (high - low) * (x + y) / (H + W - 2)), dtype)


def curve(count: int, top: int) -> Array:
    return np.rint(top * (np.arange(count) / (count - 1)) ** 0.6).astype(int)


def lut(count: int, first: int, bits: int, table: Array, vr: str, data_vr: str = "US") -> Any:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", vr, [count % 2**16, first, bits])
    data = table.astype("<u2").tobytes() if data_vr == "OW" else table.tolist()
    item.add_new("LUTData", data_vr, data)
    return pydicom.Sequence([item])


def palette(count: int, first: int, bits: int, tables: list[Array], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(more)
    for colour, table in zip(COLOURS, tables, strict=True):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [count % 2**16, first, bits]
        found[f"{colour}PaletteColorLookupTableData"] = table.astype("<u2" if bits > 8 else np.uint8).tobytes()
    return found


def refused(path: Path, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_grey(path)
    assert "\n" not in str(caught.value) + caught.value.hint
    assert caught.value.hint


def to_255(values: Array, low: float, high: float) -> Array:
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


# descriptors ───────────────────────────────────────────────────────────────────────────────────────

# (pixels signed, rescale or none, first value mapped): the VR of the first value by PS3.3 C.11.2.1.1
SIGNS = [
    (True, None, -1200), (False, None, 40000), (False, (1, -2000), -1500), (False, (-1, 0), -3000),
    (True, (1, 40000), 39000), (False, (1, 0), 33000), (True, (2, 0), -2000),
]  # fmt: skip


@pytest.mark.parametrize(("signed", "rescale", "first"), SIGNS)
@pytest.mark.parametrize("implicit", [False, True])
def test_the_sign_of_the_first_value_mapped(
    save_dicom: Save, signed: bool, rescale: tuple[float, float] | None, first: int, implicit: bool
) -> None:
    slope, intercept = rescale or (1, 0)
    low, high = sorted(((first - intercept) / slope, (first + 3000 - intercept) / slope))
    stored = ramp(low, high, np.int16 if signed else np.uint16)
    table = curve(3000, 4095)
    elements: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    elements["VOILUTSequence"] = lut(3000, first, 12, table, "SS" if first < 0 else "US")
    values = stored.astype(int) * slope + intercept
    expected = to_255(table[np.clip(values - first, 0, 2999)], 0, 4095)
    np.testing.assert_array_equal(read_grey(save_dicom(stored, implicit=implicit, **elements)), expected)


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("count", [40000, 65535, 65536])
def test_the_number_of_entries_is_never_negative(save_dicom: Save, count: int, implicit: bool, data_vr: str) -> None:
    stored, table = ramp(-20000, 19999, np.int16), np.linspace(0, 65535, count).astype(int)
    path = save_dicom(stored, implicit=implicit, VOILUTSequence=lut(count, -20000, 16, table, "SS", data_vr))
    np.testing.assert_array_equal(read_grey(path), to_255(table[stored.astype(int) + 20000], 0, 65535))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_modality_lut_and_then_an_unsigned_voi_lut(save_dicom: Save, signed: bool, implicit: bool) -> None:
    """What comes out of a modality LUT is unsigned, whatever the pixels are."""
    first = -100 if signed else 33000
    stored = ramp(first, first + 499, np.int16 if signed else np.uint16)
    modality, voi = np.linspace(60000, 40000, 500).astype(int), curve(25536, 65535)
    path = save_dicom(
        stored,
        implicit=implicit,
        ModalityLUTSequence=lut(500, first, 16, modality, "SS" if signed else "US"),
        VOILUTSequence=lut(25536, 40000, 16, voi, "US"),
    )
    values = modality[stored.astype(int) - first]
    np.testing.assert_array_equal(read_grey(path), to_255(voi[values - 40000], 0, 65535))


@pytest.mark.parametrize("implicit", [False, True])
def test_palette_of_65536_entries(save_dicom: Save, implicit: bool) -> None:
    stored = ramp(0, 65535)
    tables = [np.arange(65536)] * 3
    path = save_dicom(stored, implicit=implicit, PhotometricInterpretation="PALETTE COLOR", **palette(0, 0, 16, tables))
    assert np.abs(read_grey(path) - stored / 257.0).max() <= 0.51


@pytest.mark.parametrize("first", [0, 100])
def test_indices_outside_a_palette_take_its_ends(save_dicom: Save, first: int) -> None:
    stored, table = ramp(0, 255, np.uint8), np.linspace(10, 250, 120).astype(int)
    elements = palette(120, first, 8, [table] * 3, PhotometricInterpretation="PALETTE COLOR")
    expected = table[np.clip(stored.astype(int) - first, 0, 119)]
    np.testing.assert_array_equal(read_grey(save_dicom(stored, **elements)), expected)


def test_palettes_of_8_bits_in_words(save_dicom: Save) -> None:
    """The note of PS3.3 C.7.6.3.1.5: their length tells."""
    stored, table = ramp(0, 255, np.uint8), np.arange(256)[::-1]
    elements = palette(256, 0, 8, [table] * 3, PhotometricInterpretation="PALETTE COLOR")
    for colour in COLOURS:
        elements[f"{colour}PaletteColorLookupTableData"] = table.astype("<u2").tobytes()
    np.testing.assert_array_equal(read_grey(save_dicom(stored, **elements)), 255 - stored)


def test_segmented_palette(save_dicom: Save) -> None:
    stored = ramp(0, 255, np.uint8)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    segments = struct.pack("<7H", 0, 2, 0, 1000, 1, 254, 65024)  # two entries, then a line of 254 to 65024
    for colour in COLOURS:
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = segments[: 12 + 2]
    table = np.concatenate([[0, 1000], np.rint(1000 + (65024 - 1000) * np.arange(1, 255) / 254)])
    assert np.abs(read_grey(save_dicom(stored, **elements)) - table[stored] * 255 / 65535).max() <= 1
    for colour in COLOURS:
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = segments[:8] + b"\7\0" + segments[10:]
    refused(save_dicom(stored, **elements), "has a segmented palette that can't be expanded")


# tables that can't mean what they say ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("bits", "top"), [(16, 4095), (16, 255), (16, 32767), (12, 255), (14, 4095), (12, 2047)])
def test_voi_luts_that_end_early_are_refused(save_dicom: Save, bits: int, top: int) -> None:
    path = save_dicom(ramp(0, 4095), BitsStored=12, VOILUTSequence=lut(4096, 0, bits, curve(4096, top), "US"))
    refused(path, f"has a VOI LUT of {bits} bits whose entries end at {top}, expected some of {2 ** (bits - 1)} to")


def test_a_modality_lut_may_end_anywhere(save_dicom: Save) -> None:
    """Its output is in units of its own, not the display's range."""
    stored, table = ramp(0, 255, np.uint8), np.arange(256) * 3
    grey = read_grey(save_dicom(stored, ModalityLUTSequence=lut(256, 0, 16, table, "US")))
    np.testing.assert_array_equal(grey, stored)


def test_palettes_that_end_early_are_refused(save_dicom: Save) -> None:
    stored = ramp(0, 255, np.uint8)
    for top in (255, 4095, 32767):
        tables = [curve(256, top)] * 3
        elements = palette(256, 0, 16, tables, PhotometricInterpretation="PALETTE COLOR")
        refused(save_dicom(stored, **elements), f"has a palette of 16 bits whose entries end at {top}")


def test_palettes_of_different_shapes_are_refused(save_dicom: Save) -> None:
    elements = palette(256, 0, 8, [np.arange(256)] * 3, PhotometricInterpretation="PALETTE COLOR")
    elements["GreenPaletteColorLookupTableDescriptor"] = [256, 1, 8]
    refused(save_dicom(ramp(0, 255, np.uint8), **elements), "has palettes of different shapes")


@pytest.mark.parametrize("entries", [299, 301, 1])
def test_tables_of_another_length_are_refused(save_dicom: Save, entries: int) -> None:
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        path = save_dicom(ramp(0, 299), **{name: lut(300, 0, 12, np.full(entries, 4095), "US", "OW")})
        refused(path, f"has a LUT of {entries} entries up to 4095, expected 300 of 12 bits")


@pytest.mark.parametrize("keyword", ["LUTDescriptor", "LUTData"])
def test_tables_without_a_part_are_refused(save_dicom: Save, keyword: str) -> None:
    sequence = lut(300, 0, 12, curve(300, 4095), "US")
    delattr(sequence[0], keyword)
    refused(save_dicom(ramp(0, 299), VOILUTSequence=sequence), f"has a look-up table without {keyword}")
    sequence = lut(300, 0, 12, curve(300, 4095), "US")
    sequence[0].LUTDescriptor = [300, 0]
    refused(save_dicom(ramp(0, 299), VOILUTSequence=sequence), "has a LUTDescriptor of 4 bytes, expected three values")


# presentation ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", "LIN OD"])
def test_the_presentation_lut_shape_goes_with_the_photometric_interpretation(
    save_dicom: Save, photometric: str, shape: str
) -> None:
    path = save_dicom(ramp(0, 4095), PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    if (photometric, shape) in (("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")):
        plain = save_dicom(ramp(0, 4095), name="plain", PhotometricInterpretation=photometric)
        np.testing.assert_array_equal(read_grey(path), read_grey(plain))
    else:
        refused(path, f"has the presentation LUT shape {shape} with {photometric}, expected I")


def test_a_presentation_lut_of_its_own_is_refused(save_dicom: Save) -> None:
    path = save_dicom(ramp(0, 4095), PresentationLUTSequence=lut(4096, 0, 12, curve(4096, 4095), "US"))
    refused(path, "has a presentation LUT of its own")


@pytest.mark.parametrize("presentation", ["COLOR", "MIXED"])
def test_colour_among_grey_is_refused(save_dicom: Save, presentation: str) -> None:
    tables = [np.full(100, 65535), np.zeros(100), np.zeros(100)]
    supplemental = palette(100, 256, 16, tables)
    stored = ramp(0, 255)
    refused(save_dicom(stored, PixelPresentation=presentation), f"has the pixel presentation {presentation}")
    refused(save_dicom(stored, PixelPresentation=presentation, **supplemental), "has the pixel presentation")
    np.testing.assert_array_equal(read_grey(save_dicom(stored, **supplemental)), to_255(stored, 0, 255))
    stored[20:30, 20:40] = 300
    refused(save_dicom(stored, **supplemental), "has a palette that makes colours of the values from 256")


def test_colour_among_grey_in_an_enhanced_image_is_refused(save_dicom: Save) -> None:
    described, groups = pydicom.Dataset(), pydicom.Dataset()
    described.PixelPresentation = "COLOR"
    groups.USImageDescriptionSequence = [described]
    path = save_dicom(ramp(0, 255), Modality="US", SharedFunctionalGroupsSequence=[groups])
    refused(path, "has the pixel presentation COLOR")


def test_blending_is_refused(save_dicom: Save) -> None:
    path = save_dicom(ramp(0, 255), Modality="US", EnhancedPaletteColorLookupTableSequence=[pydicom.Dataset()])
    with pytest.raises(ImageError):
        read_grey(path)


# padding and depth ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("signed", "bits", "stated", "vr", "cells"),
    [
        (False, 12, 0, "US", 0), (False, 12, 4095, "US", 4095), (False, 16, 65535, "US", 65535),
        (False, 16, -1, "SS", 65535), (True, 16, -2000, "SS", -2000), (True, 16, 63536, "US", -2000),
        (True, 12, -2048, "SS", -2048), (True, 12, 63488, "US", -2048), (True, 12, 2048, "US", -2048),
    ],
)  # fmt: skip
def test_padding_as_it_is_stated(save_dicom: Save, signed: bool, bits: int, stated: int, vr: str, cells: int) -> None:
    stored = ramp(100, 1900, np.int16 if signed else np.uint16)
    stored[:, :10] = cells
    path = save_dicom(stored, BitsStored=bits, name="whole")
    ds = pydicom.dcmread(path)
    ds.add_new("PixelPaddingValue", vr, stated)
    ds.save_as(path)
    grey = read_grey(path)
    assert not grey[:, :10].any()
    inside = stored[:, 10:]
    np.testing.assert_array_equal(grey[:, 10:], to_255(inside, int(inside.min()), int(inside.max())))


@pytest.mark.parametrize(
    ("signed", "bits", "stated", "limit"),
    [
        (False, 12, 65535, None),
        (False, 12, 4096, None),
        (True, 12, -2049, None),
        (True, 12, 5000, None),
        (False, 12, 0, 65535),
    ],
)
def test_padding_outside_the_stored_bits_is_refused(
    save_dicom: Save, signed: bool, bits: int, stated: int, limit: int | None
) -> None:
    stored = ramp(100, 1900, np.int16 if signed else np.uint16)
    path = save_dicom(stored, BitsStored=bits, PixelPaddingValue=stated, PixelPaddingRangeLimit=limit)
    refused(path, f"has the padding value {limit or stated} and 12 bits stored, expected a value from")


@pytest.mark.parametrize("marker", [(3, 3), (8, 20)])
@pytest.mark.parametrize("top", [1000, 3800, 16000])
def test_deep_colour_that_uses_little_of_its_range_is_refused(
    save_dicom: Save, top: int, marker: tuple[int, int]
) -> None:
    rgb = np.repeat(ramp(200, top)[..., None], 3, axis=-1)
    rgb[: marker[0], : marker[1]] = 65535
    refused(save_dicom(rgb), "has 16 bits per colour channel and grey values up to")


@pytest.mark.parametrize("value", [65535, 30000])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_marker_far_from_all_else_without_a_window_is_refused(save_dicom: Save, photometric: str, value: int) -> None:
    stored = ramp(200, 3000)
    stored[:3, :3] = value
    path = save_dicom(stored, PhotometricInterpretation=photometric)
    refused(
        path, "has 99 % of its pixels in the grey values .* expected at least 32: its range is that of a few others"
    )
    windowed = save_dicom(stored, WindowCenter=1600, WindowWidth=2801, name="windowed")
    np.testing.assert_array_equal(read_grey(windowed), to_255(stored, 199.5, 2999.5))


def test_a_dead_pixel_below_all_others_is_refused(save_dicom: Save) -> None:
    stored = ramp(0, 3000, np.int16)
    stored[5, 5] = -32768
    refused(save_dicom(stored), "has 99 % of its pixels in the grey values 23")
