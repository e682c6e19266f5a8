"""DICOM to grey, on data sets made here and on real ones, against the standard's formulas in NumPy."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.errors import ImageError, MissingPackage
from mpmmu_rt.images import read_grey, read_image
from mpmmu_rt.spec import Array

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels.utils import pack_bits  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

DATA = Path(__file__).parents[2] / "shared" / "data" / "dicom"
H, W = 33, 47


def ramp(low: int, high: int, dtype: Any = np.uint16) -> Array:
    """Distinct rows and columns, from `low` to `high`, both reached."""
    y, x = np.mgrid[:H, :W]
    fraction = (x / (W - 1) + 2 * y / (H - 1)) / 3
    return np.asarray(np.rint(low + fraction * (high - low)), dtype)


def rgb8() -> Array:
    return np.stack([ramp(0, 255), ramp(0, 255)[::-1], ramp(10, 200)[:, ::-1]], axis=-1).astype(np.uint8)


def luma(rgb: Array) -> Array:
    return np.asarray(rgb.astype(np.float64) @ [0.299, 0.587, 0.114])


def to_255(values: Array, low: float, high: float) -> Array:
    return np.rint(255 * np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)).astype(np.uint8)


def dataset(stored: Array, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> Any:
    """A minimal image: stored values [H, W], [H, W, 3] or, with NumberOfFrames, [F, H, W]."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.Modality = "MG"
    ds.SamplesPerPixel = 3 if stored.shape[-1] == 3 else 1
    ds.PhotometricInterpretation = "RGB" if ds.SamplesPerPixel == 3 else "MONOCHROME2"
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = stored.shape[:2] if ds.SamplesPerPixel == 3 else stored.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = stored.itemsize * 8
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    data = stored.astype(stored.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
    ds.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    if "HighBit" not in ds:
        ds.HighBit = ds.BitsStored - 1
    return ds


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(ds: Any, name: str = "image") -> Path:
        path = tmp_path / name
        ds.save_as(path, enforce_file_format=True)
        return path

    return save


Save = Callable[..., Path]


def refused(path: Path, message: str, hint: str = ".", **options: Any) -> ImageError:
    with pytest.raises(ImageError, match=message) as caught:
        read_grey(path, **options)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value) + caught.value.hint
    assert re.search(hint, caught.value.hint)
    return caught.value


# values ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int16, np.uint32])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_a_window_the_images_own_range_counts(save: Save, syntax: UID, dtype: Any) -> None:
    stored = ramp(3, 120, dtype)
    np.testing.assert_array_equal(read_grey(save(dataset(stored, syntax))), to_255(stored, 3, 120))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_8_bits_without_a_window_stay_as_they_are(
    save: Save, tmp_path: Path, syntax: UID, dtype: Any, photometric: str
) -> None:
    """As a PNG of the same pixels, and as a window of all of them."""
    stored = ramp(3, 120, dtype)
    ds = dataset(stored, syntax, BitsStored=8, PhotometricInterpretation=photometric)
    shown = stored.astype(np.uint8) if photometric == "MONOCHROME2" else 255 - stored.astype(np.uint8)
    Image.fromarray(shown).save(tmp_path / "a.png")
    for elements in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}, {"WindowCenter": 128, "WindowWidth": 256}):
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        np.testing.assert_array_equal(read_grey(save(ds)), read_grey(tmp_path / "a.png"))


def test_a_flat_image_of_8_bits_is_as_flat_as_it_was(save: Save) -> None:
    """Stretched, one bright pixel would leave nothing of it, which was a refusal; as it is, it is whole."""
    stored = ramp(3, 20, np.uint8)
    stored[5, 5] = 255
    np.testing.assert_array_equal(read_grey(save(dataset(stored))), stored)


@pytest.mark.parametrize("bits", [4, 7])
def test_fewer_bits_without_a_window_are_shares_of_their_range(save: Save, bits: int) -> None:
    stored = ramp(1, 2**bits - 3, np.uint8)
    np.testing.assert_array_equal(read_grey(save(dataset(stored, BitsStored=bits))), to_255(stored, 0, 2**bits - 1))


@pytest.mark.parametrize("rescale", [{"RescaleSlope": 2}, {"RescaleIntercept": -9}])
def test_8_bits_that_are_rescaled_are_stretched(save: Save, rescale: dict[str, int]) -> None:
    stored = ramp(3, 120, np.uint8)
    np.testing.assert_array_equal(read_grey(save(dataset(stored, **rescale))), to_255(stored, 3, 120))


def test_8_bits_behind_a_modality_lut_are_stretched(save: Save) -> None:
    stored = ramp(3, 120, np.uint8)
    ds = dataset(stored)
    ds.ModalityLUTSequence = lut(np.arange(256) + 500, 0, 16)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(stored, 3, 120))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_8_bits_is_black(save: Save, photometric: str) -> None:
    stored = ramp(3, 120, np.uint8)
    stored[:, :9] = 250
    grey = read_grey(save(dataset(stored, PixelPaddingValue=250, PhotometricInterpretation=photometric)))
    assert not grey[:, :9].any()
    np.testing.assert_array_equal(grey[:, 9:], (stored if photometric == "MONOCHROME2" else 255 - stored)[:, 9:])


def test_12_bits_in_16_signed(save: Save) -> None:
    stored = ramp(-1500, 2000, np.int16)
    grey = read_grey(save(dataset(stored, BitsStored=12)))
    np.testing.assert_array_equal(grey, to_255(stored, -1500, 2000))


def test_unused_upper_bits_do_not_count(save: Save) -> None:
    stored = ramp(0, 4000)
    overlaid = stored | np.where(stored % 2 == 0, 0x1000, 0).astype(np.uint16)  # an old overlay in bit 12
    ds = dataset(overlaid, BitsStored=12)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(stored, 0, 4000))
    doubt = "it has bits above its 12 bits stored that no overlay accounts for"
    assert read_image(save(ds)).warnings == (doubt,)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 12)
    assert read_image(save(ds)).warnings == ()


@pytest.mark.parametrize("filled", [False, True])
def test_a_sign_may_fill_the_upper_bits_or_not(save: Save, filled: bool) -> None:
    stored = ramp(-1500, 2000, np.int16)
    path = save(dataset(stored if filled else stored & 0xFFF, BitsStored=12))
    assert read_image(path).warnings == ()
    np.testing.assert_array_equal(read_grey(path), to_255(stored, -1500, 2000))


def test_monochrome1_is_inverted(save: Save) -> None:
    stored = ramp(100, 900)
    grey = read_grey(save(dataset(stored, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(grey, 255 - to_255(stored, 100, 900))
    assert grey[0, 0] == 255


def test_monochrome1_is_inverted_after_the_window(save: Save) -> None:
    stored = ramp(0, 1000)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 300, "WindowWidth": 201}
    np.testing.assert_array_equal(read_grey(save(dataset(stored, **elements))), 255 - to_255(stored, 199.5, 399.5))


def test_linear_window(save: Save) -> None:
    """PS3.3 C.11.2.1.2.1: from c - 0.5 - (w - 1)/2 to c - 0.5 + (w - 1)/2."""
    stored = ramp(0, 1000)
    grey = read_grey(save(dataset(stored, WindowCenter=500, WindowWidth=401)))
    np.testing.assert_array_equal(grey, to_255(stored, 299.5, 699.5))
    assert (grey[stored < 300] == 0).all()
    assert (grey[stored > 699] == 255).all()


def test_window_on_rescaled_signed_values(save: Save) -> None:
    stored = ramp(-500, 1500, np.int16)
    elements = {"RescaleSlope": "0.5", "RescaleIntercept": "-1024", "WindowCenter": -800, "WindowWidth": 301}
    expected = to_255(stored * 0.5 - 1024, -950.5, -650.5)
    np.testing.assert_array_equal(read_grey(save(dataset(stored, **elements))), expected)


def test_negative_rescale_slope_inverts(save: Save) -> None:
    stored = ramp(0, 1000)
    grey = read_grey(save(dataset(stored, RescaleSlope=-2, RescaleIntercept=7)))
    np.testing.assert_array_equal(grey, to_255(-stored.astype(float), -1000, 0))


def test_linear_exact_window(save: Save) -> None:
    stored = ramp(0, 1000)
    ds = dataset(stored, WindowCenter=500, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(stored, 300, 700))


def test_sigmoid_window(save: Save) -> None:
    stored = ramp(0, 4000)
    ds = dataset(stored, WindowCenter=1000, WindowWidth=300, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (stored.astype(float) - 1000) / 300))
    np.testing.assert_allclose(read_grey(save(ds)), expected, atol=0.501)


def test_window_of_width_1_is_a_threshold(save: Save) -> None:
    stored = ramp(0, 1000)
    grey = read_grey(save(dataset(stored, WindowCenter=500, WindowWidth=1)))
    np.testing.assert_array_equal(grey, np.where(stored > 499.5, 255, 0))


def test_the_first_of_several_windows(save: Save) -> None:
    stored = ramp(0, 1000)
    grey = read_grey(save(dataset(stored, WindowCenter=[300, 900], WindowWidth=[201, 11])))
    np.testing.assert_array_equal(grey, to_255(stored, 199.5, 399.5))


def test_overlong_decimal_strings_are_read_without_a_warning(save: Save) -> None:
    stored = ramp(0, 1000)
    path = save(dataset(stored, RescaleSlope="12", RescaleIntercept="0", WindowCenter="34", WindowWidth="56"))
    data = path.read_bytes()
    for old, new in (
        (b"12", b"0.500000000000000000"),
        (b"34", b"250.5000000000000000"),
        (b"56", b"301.0000000000000000"),
    ):
        assert data.count(b"DS\x02\x00" + old) == 1
        data = data.replace(b"DS\x02\x00" + old, b"DS" + struct.pack("<H", len(new)) + new)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_grey(path), to_255(stored * 0.5, 100, 400))


def test_harmless_defects_elsewhere_do_not_warn(save: Save) -> None:
    path = save(dataset(ramp(0, 1000), PatientBirthDate="19700101", SpecificCharacterSet="ISO_IR 100"))
    path.write_bytes(path.read_bytes().replace(b"19700101", b"1.1.1970"))
    assert read_grey(path).max() == 255


@pytest.mark.parametrize(
    ("function", "width"), [("LINEAR", 0), ("LINEAR", -5), ("SIGMOID", 0), ("LINEAR_EXACT", 0), ("CUBIC", 9)]
)
def test_impossible_windows(save: Save, function: str, width: float) -> None:
    ds = dataset(ramp(0, 9), WindowCenter=5, WindowWidth=width, VOILUTFunction=function)
    refused(save(ds), f"has a {function} window of width {width}, expected LINEAR")


@pytest.mark.parametrize(("there", "missing"), [("Center", "Width"), ("Width", "Center")])
@pytest.mark.parametrize("empty", [False, True])
def test_half_a_window_is_refused(save: Save, there: str, missing: str, empty: bool) -> None:
    ds = dataset(ramp(0, 1000), **{f"Window{there}": 500})
    if empty:
        setattr(ds, f"Window{missing}", None)
    refused(save(ds), f"has a Window{there} and no Window{missing}, expected both or neither", "whole window")


def test_an_empty_window_is_none(save: Save) -> None:
    stored = ramp(100, 900)
    ds = dataset(stored, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(stored, 100, 900))


def test_a_window_that_shows_nothing_is_blank(save: Save) -> None:
    ds = dataset(ramp(0, 1000), WindowCenter=30000, WindowWidth=100)
    refused(save(ds), "is blank: grey value 0 everywhere, expected an image with content", "window")


# look-up tables ────────────────────────────────────────────────────────────────────────────────────


def lut(table: Array, first: int, bits: int, vr: str = "US", packed: bool = False) -> Any:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table) % 2**16, first, bits])
    data = table.astype(np.uint8 if packed else "<u2").tobytes() if vr == "OW" else table.tolist()
    item.add_new("LUTData", vr, data)
    return pydicom.Sequence([item])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["US", "OW"])
def test_voi_lut_goes_before_the_window(save: Save, syntax: UID, vr: str) -> None:
    stored, table = ramp(0, 1000), (np.arange(600) ** 2 // 88)
    ds = dataset(stored, syntax, VOILUTSequence=lut(table, 200, 12, vr), WindowCenter=1, WindowWidth=2)
    expected = table[np.clip(stored.astype(int) - 200, 0, 599)]
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(expected, 0, 4095))


@pytest.mark.parametrize("packed", [False, True])
def test_8_bit_voi_lut_of_more_than_256_entries(save: Save, packed: bool) -> None:
    """pydicom's apply_voi wraps here: it indexes in the type of the entries."""
    stored, table = ramp(0, 1000), np.arange(1000) // 4
    ds = dataset(stored, VOILUTSequence=lut(table, 0, 8, "OW", packed))
    np.testing.assert_array_equal(read_grey(save(ds)), table[np.minimum(stored, 999)])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_voi_lut_with_a_negative_first_value(save: Save, syntax: UID) -> None:
    stored, table = ramp(-700, 700, np.int16), np.arange(1001) * 4
    ds = dataset(stored, syntax, VOILUTSequence=lut(table, -500, 12))
    expected = table[np.clip(stored.astype(int) + 500, 0, 1000)]
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(expected, 0, 4095))


def test_modality_lut_then_window(save: Save) -> None:
    stored, table = ramp(0, 255, np.uint8), np.arange(256)[::-1] * 3
    ds = dataset(stored, ModalityLUTSequence=lut(table, 0, 16), WindowCenter=400, WindowWidth=301)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(table[stored], 249.5, 549.5))


def test_voi_lut_of_65536_entries(save: Save) -> None:
    stored, table = ramp(0, 65535), np.arange(65536)[::-1]
    ds = dataset(stored, VOILUTSequence=lut(table, 0, 16, "OW"))
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(table[stored], 0, 65535))


def test_damaged_lut(save: Save) -> None:
    sequence = lut(np.arange(100), 0, 12)
    sequence[0].LUTDescriptor = [300, 0, 12]
    refused(
        save(dataset(ramp(0, 99), VOILUTSequence=sequence)),
        "has a LUT of 100 entries up to 99, expected 300 of 12",
    )
    refused(
        save(dataset(ramp(0, 99), VOILUTSequence=lut(np.arange(300), 0, 8))),
        "up to 299, expected 300 of 8 bits",
    )


# padding ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 65535])
def test_padding_is_black_and_stretches_nothing(save: Save, padding: int, photometric: str) -> None:
    stored = ramp(1000, 3000)
    stored[:, :9] = padding
    ds = dataset(stored, PixelPaddingValue=padding, PhotometricInterpretation=photometric)
    grey = read_grey(save(ds))
    assert not grey[:, :9].any()
    inside = stored[:, 9:]
    expected = to_255(inside, inside.min(), inside.max())
    np.testing.assert_array_equal(grey[:, 9:], expected if photometric == "MONOCHROME2" else 255 - expected)


def test_padding_range_and_signed_padding_stated_unsigned(save: Save) -> None:
    stored = ramp(0, 1000, np.int16)
    stored[:4], stored[4:6] = -2000, -1990
    ds = dataset(stored)
    ds.add_new("PixelPaddingValue", "US", 63536)  # -2000 as a bit pattern
    ds.add_new("PixelPaddingRangeLimit", "US", 63546)  # -1990
    grey = read_grey(save(ds))
    assert not grey[:6].any()
    np.testing.assert_array_equal(grey[6:], to_255(stored[6:], stored[6:].min(), 1000))


def test_padding_is_black_under_a_window_too(save: Save) -> None:
    stored = ramp(0, 1000)
    stored[:, :9] = 65535
    grey = read_grey(save(dataset(stored, PixelPaddingValue=65535, WindowCenter=500, WindowWidth=400)))
    assert not grey[:, :9].any()


@pytest.mark.parametrize(("value", "seen"), [(700, "grey value"), (65535, "nothing but padding")])
def test_a_constant_image_in_its_padding_is_blank(save: Save, value: int, seen: str) -> None:
    stored = np.full((H, W), value, np.uint16)
    stored[:3] = 65535
    ds = dataset(stored, PixelPaddingValue=65535, PhotometricInterpretation="MONOCHROME1")
    refused(save(ds), f"is blank: {seen}")


# colour ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb(save: Save, planar: int) -> None:
    rgb = rgb8()
    ds = dataset(rgb, PlanarConfiguration=planar, WindowCenter=3, WindowWidth=4)  # no window for colour
    if planar:
        ds.PixelData = rgb.transpose(2, 0, 1).tobytes() + b"\0"
    assert np.abs(read_grey(save(ds)) - luma(rgb)).max() <= 0.51


def test_rgb_of_16_bits(save: Save) -> None:
    rgb = rgb8().astype(np.uint16) * 16
    assert np.abs(read_grey(save(dataset(rgb, BitsStored=12))) - luma(rgb) * 255 / 4095).max() <= 1


def test_ybr_full(save: Save) -> None:
    """Y of YBR_FULL is the luma itself."""
    ybr = np.stack([ramp(20, 230), ramp(118, 138), ramp(138, 118)], axis=-1).astype(np.uint8)
    grey = read_grey(save(dataset(ybr, PhotometricInterpretation="YBR_FULL")))
    assert np.abs(grey.astype(int) - ybr[..., 0]).max() <= 1


def test_ybr_full_422(save: Save) -> None:
    y = np.add.outer(np.arange(32) * 2, np.arange(48) * 3).astype(np.uint8) + 20
    packed = np.stack([y[:, ::2], y[:, 1::2], np.full((32, 24), 120), np.full((32, 24), 135)], axis=-1)
    ds = dataset(np.repeat(y[..., None], 3, axis=-1), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = packed.astype(np.uint8).tobytes()
    assert np.abs(read_grey(save(ds)).astype(int) - y).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colour(save: Save, bits: int) -> None:
    index = ramp(0, 255, np.uint8)
    table = np.random.default_rng(2).integers(0, 2**bits, (256, 3)).astype(f"<u{bits // 8}")
    ds = dataset(index, PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table[:, channel].tobytes())
    expected = luma(table[index]) * 255 / (2**bits - 1)
    assert np.abs(read_grey(save(ds)) - expected).max() <= 1.01


def test_wide_indices_into_a_narrow_palette(save: Save) -> None:
    """pydicom looks up in the type of the palette: index 300 would become 44."""
    index, table = ramp(0, 320), (np.arange(300) * 7 % 251).astype(np.uint8)
    ds = dataset(index, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [300, 0, 8])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.tobytes())
    np.testing.assert_array_equal(read_grey(save(ds)), table[np.minimum(index, 299)])


@pytest.mark.parametrize("photometric", ["HSV", "YBR_PARTIAL_420", "MONOCHROME2", "YBR_RCT"])
def test_other_colour_spaces_are_refused(save: Save, photometric: str) -> None:
    ds = dataset(rgb8(), PhotometricInterpretation=photometric)
    refused(save(ds), rf"has the photometric interpretation {photometric} with 3 sample\(s\) per pixel, expected")


# frames ────────────────────────────────────────────────────────────────────────────────────────────


def test_frames_need_a_choice(save: Save) -> None:
    frames = np.stack([ramp(0, 1000), ramp(5, 2000)[::-1], ramp(9, 300)[:, ::-1]])
    path = save(dataset(frames, NumberOfFrames=3))
    refused(path, "holds 3 frames, expected one image", r"`frame` \(0 to 2\)")
    for index, stored in enumerate(frames):
        np.testing.assert_array_equal(read_grey(path, frame=index), to_255(stored, stored.min(), stored.max()))
    refused(path, r"holds 3 frame\(s\), expected `frame` from 0 to 2, got 3", frame=3)


def test_enhanced_frames_have_their_own_window(save: Save) -> None:
    def item(keyword: str, **elements: Any) -> Any:
        outer, inner = pydicom.Dataset(), pydicom.Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(outer, keyword, [inner])
        return outer

    frames = np.stack([ramp(0, 1000), ramp(0, 2000)])
    ds = dataset(frames, NumberOfFrames=2)
    ds.SharedFunctionalGroupsSequence = [
        item("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-100)
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item("FrameVOILUTSequence", WindowCenter=center, WindowWidth=401) for center in (500, 1500)
    ]
    path = save(ds)
    for index, center in enumerate((500, 1500)):
        expected = to_255(frames[index] * 2.0 - 100, center - 200.5, center + 199.5)
        np.testing.assert_array_equal(read_grey(path, frame=index), expected)


@pytest.mark.parametrize("frames", [0, -1])
def test_impossible_number_of_frames(save: Save, frames: int) -> None:
    refused(
        save(dataset(ramp(0, 9), NumberOfFrames=frames)),
        f"has NumberOfFrames `{frames}`, expected a positive",
    )


# transfer syntaxes ─────────────────────────────────────────────────────────────────────────────────


def encapsulated(stored: Array, syntax: UID, codestream: bytes, **elements: Any) -> Any:
    ds = dataset(stored, syntax, **elements)
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def codestream(stored: Array, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, format=kind, **options)
    return stream.getvalue()


def test_jpeg_baseline(save: Save) -> None:
    stored = ramp(0, 255, np.uint8)
    path = save(encapsulated(stored, JPEGBaseline8Bit, codestream(stored, "jpeg", quality=100)))
    assert np.abs(read_grey(path).astype(int) - stored).max() <= 2


def test_jpeg_baseline_colour(save: Save) -> None:
    data = codestream(rgb8(), "jpeg", quality=100, subsampling=0)
    path = save(encapsulated(rgb8(), JPEGBaseline8Bit, data, PhotometricInterpretation="YBR_FULL_422"))
    assert np.abs(read_grey(path) - luma(rgb8())).max() <= 3


def test_jpeg_2000_lossless_of_12_bits(save: Save) -> None:
    stored = ramp(100, 4000)
    data = codestream(stored, "jpeg2000", irreversible=False, no_jp2=True)
    path = save(encapsulated(stored, JPEG2000Lossless, data))
    np.testing.assert_array_equal(read_grey(path), to_255(stored, 100, 4000))


def test_rle(save: Save) -> None:
    ds = dataset(ramp(100, 4000))
    ds.compress(RLELossless)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(ramp(100, 4000), 100, 4000))


@pytest.mark.parametrize(
    ("syntax", "message", "hint"),
    [
        (JPEGLosslessSV1, "has a JPEG stream with a segment that is cut off", "damaged"),
        (JPEGExtended12Bit, "has a JPEG stream with a segment that is cut off", "damaged"),
        (JPEGLSLossless, "has a JPEG-LS stream", "damaged"),
        (JPEG2000Lossless, "has a JPEG 2000 stream that begins with", "damaged"),
        (RLELossless, "has an RLE frame of 16 bytes", "damaged"),
        (
            MPEG2MPML,
            "has the transfer syntax MPEG2 Main Profile / Main Level, expected an uncompressed one",
            "Explicit VR",
        ),
        (HTJ2KLossless, "has the transfer syntax High-Throughput JPEG 2000", "Explicit VR"),
    ],
)
def test_what_can_not_be_decompressed(save: Save, syntax: UID, message: str, hint: str) -> None:
    ds = encapsulated(ramp(0, 4000), syntax, b"\xff\xd8\xff\xc3 no picture!", BitsStored=12)
    refused(save(ds), message, hint)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_without_its_decoder_the_extra_is_named(save: Save, monkeypatch: pytest.MonkeyPatch, syntax: UID) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="pip install 'mpmmu-rt[codecs]'")
    stored = ramp(0, 255, np.uint8)
    stream = imagecodecs.jpeg8_encode(stored, lossless=True) if syntax == JPEGLosslessSV1 else None
    path = save(encapsulated(stored, syntax, stream or imagecodecs.jpegls_encode(stored)))
    assert read_grey(path).max() == 255
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingPackage, match="reading JPEG Lossless or JPEG-LS in DICOM needs the package") as caught:
        read_grey(path)
    assert caught.value.hint == "pip install 'mpmmu-rt[codecs]'"


@pytest.mark.parametrize("extra", [b"\1\0", b"\0\0\0\7"])
def test_what_follows_uncompressed_pixels_is_zero(save: Save, extra: bytes) -> None:
    ds = dataset(ramp(0, 1000))
    ds.PixelData += extra
    refused(
        save(ds), r"holds 310\d bytes of pixel data, expected 3102 by its Rows, Columns and frames, and zeros after"
    )


def test_deflated_is_refused_before_it_inflates(save: Save) -> None:
    refused(
        save(dataset(ramp(0, 9), DeflatedExplicitVRLittleEndian)),
        "has the deflated transfer syntax",
        "dcmconv",
    )


def test_pixel_data_that_contradict_the_transfer_syntax(save: Save) -> None:
    path = save(encapsulated(ramp(0, 255, np.uint8), JPEGBaseline8Bit, b"\xff\xd8\xff\xd9"))
    old, new = JPEGBaseline8Bit.encode(), ExplicitVRLittleEndian.encode()
    path.write_bytes(path.read_bytes().replace(old, new.ljust(len(old), b"\0")))
    refused(path, "has pixel data that contradict its transfer syntax")


def stored_element(data: bytes, tag: int) -> tuple[int, bytes]:
    """Where an element of a short, explicit VR begins, and its bytes."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    at = data.index(head)
    return at, data[at : at + 8 + int.from_bytes(data[at + 6 : at + 8], "little")]


@pytest.mark.parametrize(
    ("tag", "old", "new"),
    [(0x00281050, b"2000", b"0400"), (0x00280004, b"MONOCHROME2", b"MONOCHROME1"), (0x00280011, b"", b"")],
)
@pytest.mark.parametrize("before", [False, True])
def test_an_element_that_is_there_twice_is_refused(
    save_dicom: Save, tag: int, old: bytes, new: bytes, before: bool
) -> None:
    """pydicom takes the last of them, other readers the first."""
    path = save_dicom(ramp(0, 4095, np.uint16), WindowCenter="2000", WindowWidth="3000")
    read_grey(path)
    data = path.read_bytes()
    at, element = stored_element(data, tag)
    other = element.replace(old, new)
    parts = [other, element] if before else [element, other]
    path.write_bytes(b"".join([data[:at], *parts, data[at + len(element) :]]))
    refused(path, rf"has the element \({tag >> 16:04x},{tag & 0xFFFF:04x}\) twice", "export it again")


def test_what_a_damaged_length_swallows_is_not_shown(save_dicom: Save) -> None:
    """It would be the patient's name, and the pixels: messages go to logs, and to whoever asked a server."""
    path = save_dicom(ramp(0, 255, np.uint8), PatientName="Doe^Jane")
    data = path.read_bytes()
    at, _ = stored_element(data, 0x00080060)  # Modality, of 2 bytes
    path.write_bytes(data[: at + 6] + b"\xff\xff" + data[at + 8 :])
    error = refused(path, r"holds no pixel data \(modality MG")
    assert "Doe" not in str(error)
    assert len(str(error)) < len(str(path)) + 100


def test_ybr_of_more_than_8_bits_is_not_called_damaged(save_dicom: Save) -> None:
    stored = np.stack([ramp(0, 4095, np.uint16)] * 3, axis=-1)
    path = save_dicom(stored, PhotometricInterpretation="YBR_FULL", BitsStored=12)
    refused(path, "has YBR colours of 16 bits allocated, expected 8", "as RGB or MONOCHROME2")


def made_unprintable(path: Path, written: bytes) -> None:
    """A line feed and the start of an order to the terminal, where `written` has stood."""
    data = path.read_bytes()
    assert data.count(written)
    path.write_bytes(data.replace(written, b"\n\x1b".ljust(len(written), b"[")))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Modality", "QQ"),
        ("PhotometricInterpretation", "MONOQQ"),
        ("NumberOfFrames", "7777"),
        ("RescaleSlope", "7777"),
        ("VOILUTFunction", "LINEQQ"),
        ("PresentationLUTShape", "IDENTQQ "),
    ],
)
def test_what_a_message_shows_of_a_header_is_one_line_of_text(save_dicom: Save, keyword: str, value: str) -> None:
    given = {"WindowCenter": "2000", "WindowWidth": "3000", keyword: value}
    path = save_dicom(ramp(0, 4095, np.uint16), **given)
    made_unprintable(path, b"7777" if "7" in value else b"QQ")
    error = refused(path, ".")
    assert str(error).isprintable()
    assert value.strip("Q7 ") + "…" in str(error)


def test_what_a_warning_shows_of_a_header_is_one_line_of_text(save_dicom: Save) -> None:
    """In `predictions.csv`, in a terminal, and in what a server says."""
    path = save_dicom(ramp(0, 4095, np.uint16), BodyPartExamined="ARQQM", ImageType=["ORIQQ", "SECONDARY"])
    made_unprintable(path, b"QQ")
    said = read_image(path).warnings
    assert "the body part examined is AR…" in said
    assert all(one.isprintable() for one in said)
    assert any(one.startswith("its image type is ORI…") for one in said)


# files ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".dcm", ".DICOM"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_without_preamble(tmp_path: Path, syntax: UID, suffix: str) -> None:
    ds, stored = dataset(ramp(0, 1000), syntax), ramp(0, 1000)
    ds.save_as(tmp_path / "whole", enforce_file_format=True)
    data = (tmp_path / "whole").read_bytes()
    meta_length = 12 + struct.unpack_from("<I", data, 140)[0]
    for start in (132, 132 + meta_length):  # without the preamble; without the file meta too
        path = tmp_path / f"{start}{suffix}"
        path.write_bytes(data[start:])
        np.testing.assert_array_equal(read_grey(path), to_255(stored, 0, 1000))
    refused(path.rename(tmp_path / "bare"), "begins with .*, expected a PNG, JPEG, TIFF, BMP or DICOM")


def test_a_preamble_that_looks_like_a_tiff(save: Save) -> None:
    ds = dataset(ramp(0, 1000))
    ds.preamble = b"II*\0" + bytes(124)
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(ramp(0, 1000), 0, 1000))


def test_text_named_dcm(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("case_id,mammography,ultrasound\n" * 30)
    refused(tmp_path / "a.dcm", "holds no pixel data|can't be read")


def test_no_pixel_data(save: Save) -> None:
    ds = dataset(ramp(0, 9), Modality="SR")
    del ds.PixelData
    refused(save(ds), r"holds no pixel data \(modality SR\), expected a DICOM image", "report")


@pytest.mark.parametrize("keyword", ["Rows", "BitsAllocated", "PhotometricInterpretation", "PixelRepresentation"])
def test_missing_attributes(save: Save, keyword: str) -> None:
    ds = dataset(ramp(0, 9))
    delattr(ds, keyword)
    refused(save(ds), f"lacks {keyword}, expected an image's header")


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("BitsAllocated", 12, "one of 1, 8, 16, 32, 64"),
        ("BitsAllocated", 24, "one of 1, 8, 16, 32, 64"),
        ("PixelRepresentation", 2, "one of 0, 1"),
        ("Rows", [33, 33], "one integer"),
        ("PixelPaddingValue", [1, 2], "one integer"),
    ],
)
def test_impossible_attributes(save: Save, keyword: str, value: Any, expected: str) -> None:
    refused(save(dataset(ramp(0, 9), **{keyword: value})), rf"has {keyword} `?.*, expected {expected}")


@pytest.mark.parametrize(("value", "message"), [(None, "lacks PlanarConfiguration"), (2, "expected one of 0, 1")])
def test_impossible_planes(save: Save, value: int | None, message: str) -> None:
    refused(save(dataset(rgb8(), PlanarConfiguration=value)), message)


def test_sides_are_checked_before_decoding(save: Save) -> None:
    refused(
        save(dataset(ramp(0, 9), Rows=40_000, Columns=5_001)),
        "is 5001 x 40000 pixels, expected at most 200000000",
    )
    refused(save(dataset(ramp(0, 9)[:15])), "is 47 x 15 pixels, expected at least 16")


@pytest.mark.parametrize("elements", [{"Rows": H - 1}, {"Rows": H + 1}, {"Columns": W - 1}, {"NumberOfFrames": 2}])
def test_a_header_that_shows_part_of_the_image(save: Save, elements: dict[str, int]) -> None:
    refused(
        save(dataset(ramp(0, 9), **elements)),
        r"holds 3102 bytes of pixel data, expected \d+ by its Rows",
        frame=0,
    )


def test_padding_after_the_pixels_is_fine(save: Save) -> None:
    ds = dataset(ramp(0, 1000))
    ds.PixelData += b"\0\0"
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(ramp(0, 1000), 0, 1000))


def test_high_bit_elsewhere_is_refused(save: Save) -> None:
    ds = dataset(ramp(0, 4000) * 16, BitsStored=12, HighBit=15)
    refused(save(ds), "has HighBit 15, expected BitsStored - 1, which is 11")


def test_one_bit(save: Save) -> None:
    bits = (ramp(0, 1000) % 3 == 0).astype(np.uint8)
    ds = dataset(bits, BitsAllocated=1, BitsStored=1)
    ds.PixelData = pack_bits(bits)
    np.testing.assert_array_equal(read_grey(save(ds)), bits * 255)


def test_float_pixel_data(save: Save) -> None:
    stored = ramp(-300, 4000, np.float32) / np.float32(8)
    ds = dataset(ramp(0, 9), BitsAllocated=32)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = stored.tobytes()
    np.testing.assert_array_equal(read_grey(save(ds)), to_255(stored, float(stored.min()), 500))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_truncated_anywhere_is_refused_or_whole(tmp_path: Path, syntax: UID) -> None:
    stored = np.random.default_rng(3).integers(0, 4096, (20, 30)).astype(np.uint16)
    table = np.arange(50) * 80
    ds = dataset(stored, ExplicitVRLittleEndian if syntax == RLELossless else syntax, VOILUTSequence=lut(table, 0, 12))
    if syntax == RLELossless:
        ds.compress(syntax)
    ds.save_as(tmp_path / "whole", enforce_file_format=True)
    data, whole = (tmp_path / "whole").read_bytes(), read_grey(tmp_path / "whole")
    for cut in [*range(1, len(data) - 40, 9), *range(len(data) - 40, len(data))]:
        (tmp_path / "cut.dcm").write_bytes(data[:cut])
        try:
            grey = read_grey(tmp_path / "cut.dcm")
        except ImageError as error:
            assert str(error).startswith(f"{tmp_path / 'cut.dcm'} ")  # noqa: PT017
        else:
            np.testing.assert_array_equal(grey, whole)
            assert cut > len(data) - 16


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    ds = dataset(ramp(0, 1000), WindowCenter=500, WindowWidth=300, VOILUTSequence=lut(np.arange(50), 0, 12))
    ds.save_as(tmp_path / "whole", enforce_file_format=True)
    data, random = (tmp_path / "whole").read_bytes(), np.random.default_rng(17)
    for _ in range(400):
        damaged = bytearray(data)
        for at in random.integers(132, len(data) - 2 * H * W, 3):
            damaged[at] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            assert read_grey(tmp_path / "a").dtype == np.uint8
        except ImageError as error:
            assert error.hint  # noqa: PT017


def test_without_pydicom_the_extra_is_named(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    path = save(dataset(ramp(0, 9)))
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingPackage, match="reading a DICOM image needs the package `pydicom`") as caught:
        read_grey(path)
    assert caught.value.hint == "pip install 'mpmmu-rt[dicom]'"


# real files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real DICOM files at {DATA}")
def test_real_files() -> None:
    """Stored values cut out of the bytes by hand: these files are uncompressed and end with their pixels."""
    photometric = set()
    for path in sorted(DATA.glob("*.dcm")):
        ds = pydicom.dcmread(path)
        photometric.add((ds.Modality, ds.PhotometricInterpretation))
        count = ds.Rows * ds.Columns * ds.SamplesPerPixel
        stored = np.frombuffer(ds["PixelData"].value, f"<u{ds.BitsAllocated // 8}", count)
        grey = read_grey(path)
        if ds.SamplesPerPixel == 3:
            assert ds.PlanarConfiguration == 1
            expected = luma(stored.reshape(3, ds.Rows, ds.Columns).transpose(1, 2, 0))
            assert np.abs(grey - expected).max() <= 0.51
        elif "WindowCenter" in ds:
            low = float(ds.WindowCenter) - 0.5 - (float(ds.WindowWidth) - 1) / 2
            high = low + float(ds.WindowWidth) - 1
            np.testing.assert_array_equal(grey, to_255(stored.reshape(ds.Rows, ds.Columns), low, high))
        else:
            values = stored.reshape(ds.Rows, ds.Columns)
            np.testing.assert_array_equal(grey, to_255(values, int(values.min()), int(values.max())))
    assert photometric == {("MG", "MONOCHROME2"), ("US", "MONOCHROME2"), ("US", "RGB")}
