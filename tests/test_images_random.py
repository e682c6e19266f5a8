"""DICOM, TIFF and PNG files at random against other readers: the same grey, or a refusal.

pydicom's own pipeline, tifffile and imagecodecs read the same bytes; of DICOM, NumPy computes what was meant as well. A
file without a fault must not be refused. MPMMU_RANDOM_IMAGES=10000 looks further; what it found is in the other tests.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")
tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: pip install 'mpmmu-rt[dev]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: pip install 'mpmmu-rt[dev]'")
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut  # noqa: E402

COUNT = int(os.environ.get("MPMMU_RANDOM_IMAGES", "150"))
SEED = int(os.environ.get("MPMMU_RANDOM_SEED", "0"))
H, W = 34, 45
REC601 = np.array([0.299, 0.587, 0.114])
Random = np.random.Generator


def field(random: Random) -> Array:
    """Shares 0..1, both reached, in distinct rows and columns, [H, W]."""
    y, x = np.mgrid[:H, :W]
    waves = y * random.uniform(0.5, 2) + x * random.uniform(0.5, 2) + 9 * np.sin(x * random.uniform(0.1, 0.7))
    return np.asarray((waves - waves.min()) / (waves.max() - waves.min()))


def one(random: Random, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def spread(grey: Array, wanted: Array, tolerance: float) -> bool:
    return grey.shape == wanted.shape and bool(np.abs(grey - wanted).max() <= tolerance)


# DICOM ─────────────────────────────────────────────────────────────────────────────────────────────


class Made:
    """A data set, what it should look like (shares of the display, [H, W]), and whether something is wrong with it."""

    def __init__(self, random: Random) -> None:
        self.random, self.ds, self.faults = random, pydicom.Dataset(), list[str]()
        self.implicit = one(random, False, True)
        self.big = not self.implicit and one(random, False, False, True)
        self.allocated = one(random, 8, 16, 16, 16)
        self.signed = one(random, False, True)
        self.bits = self.allocated if self.allocated == 8 else one(random, 10, 12, 12, 14, 15, 16)
        low, high = self.ends()
        span = (high - low) * random.uniform(0.4, 1)
        start = random.uniform(low, high - span)
        self.stored = np.rint(start + span * field(random)).astype(np.int64)

    def ends(self) -> tuple[int, int]:
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def is_grey(self) -> bool:
        """Whether it is unsigned, of 8 bits, and nothing maps it: then it is shown as it is."""
        ds = self.ds
        mapped = {"ModalityLUTSequence", "VOILUTSequence", "WindowCenter"} & set(ds.dir())
        identity = (ds.get("RescaleSlope", 1), ds.get("RescaleIntercept", 0)) == (1, 0)
        return self.bits == 8 and not self.signed and identity and not mapped

    def lut(self, first_input: float, last_input: float, signed: bool, fault: bool) -> tuple[Any, Array, int, int]:
        """(sequence, table, first value mapped, bits), for inputs that are whole numbers."""
        random = self.random
        first = int(np.clip(first_input + random.integers(-20, 50), *((-32768, 32767) if signed else (0, 65535))))
        count = int(np.clip(last_input - first + random.integers(-30, 30), 40, 65536))
        bits = one(random, 8, 10, 12, 14, 16)
        top = 2**bits - 1
        if fault:
            top = int(2 ** (bits - random.uniform(1.1, 4)))
            self.faults.append("narrow LUT")
        shape = np.linspace(0, 1, count) ** random.uniform(0.4, 2.5)
        table = np.rint(top * (shape if one(random, True, False) else 1 - shape)).astype(np.int64)
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "SS" if signed else "US", [count % 2**16, first, bits])
        packed = bits == 8 and one(random, True, False)
        order = ">" if self.big else "<"
        if packed:
            data = table.astype(np.uint8).tobytes()
            data += b"\0" * (len(data) % 2)
            data = np.frombuffer(data, "<u2").astype(f"{order}u2").tobytes()
            packed = len(data) != 2 * count
        else:
            data = table.astype(f"{order}u2").tobytes()
        item.add_new("LUTData", "OW", data)
        if bits > 8 and one(random, *[False] * 30, True):  # of 8 bits it would be whole, in bytes
            item["LUTData"].value = data[: len(data) // 2 // 2 * 2]
            self.faults.append("half a LUT")
        return pydicom.Sequence([item]), table, first, bits

    def make(self) -> Array:
        random, ds = self.random, self.ds
        values, rescaled_sign = self._modality()
        share = self._voi(values, rescaled_sign)
        if self.is_grey():
            share = values / (2**self.bits - 1)
        ds.PhotometricInterpretation = one(random, "MONOCHROME1", "MONOCHROME2", "MONOCHROME2")
        inverse = ds.PhotometricInterpretation == "MONOCHROME1"
        shape = one(random, None, None, "INVERSE" if inverse else "IDENTITY", one(random, "IDENTITY", "INVERSE"))
        if shape is not None:
            ds.PresentationLUTShape = shape
            if (shape == "INVERSE") != inverse:
                self.faults.append("presentation LUT shape")
        return 1 - share if inverse else share

    def _modality(self) -> tuple[Array, bool]:
        random, ds, values = self.random, self.ds, self.stored.astype(np.float64)
        kind = one(random, "none", "none", "rescale", "rescale", "LUT")
        if kind == "rescale":
            ds.RescaleSlope = slope = one(random, 1, 1, 2, -1, 3)
            ds.RescaleIntercept = intercept = one(random, 0, -1024, int(-random.integers(3000)), 32000)
            return values * slope + intercept, min(end * slope + intercept for end in self.ends()) < 0
        if kind == "LUT":
            sequence, table, first, _ = self.lut(self.stored.min(), self.stored.max(), self.signed, False)
            ds.ModalityLUTSequence = sequence
            return table[np.clip(self.stored - first, 0, len(table) - 1)].astype(np.float64), False
        return values, self.signed

    def _voi(self, values: Array, signed: bool) -> Array:
        random, ds = self.random, self.ds
        low, high = float(values.min()), float(values.max())
        kind = one(random, "none", "window", "window", "LUT", "LUT")
        limits = (-32768, 32767) if signed else (0, 65535)
        if kind == "LUT" and (high < limits[0] or low > limits[1] or high - low < 60):
            kind = "none"
        if kind == "LUT":
            fault = one(random, False, False, False, True)
            sequence, table, first, bits = self.lut(low, high, signed, fault)
            ds.VOILUTSequence = sequence
            index = np.clip(np.rint(values - first), 0, len(table) - 1).astype(np.int64)
            return np.asarray(table[index] / (2.0**bits - 1))
        if kind == "none":
            return (values - low) / ((high - low) or 1)
        width = float(f"{max(2.0, (high - low) * random.uniform(0.3, 1.5)):.2f}")
        center = float(f"{low + (high - low) * random.uniform(0.3, 0.7):.2f}")
        ds.WindowCenter, ds.WindowWidth = center, width
        function = one(random, None, "LINEAR", "LINEAR_EXACT", "SIGMOID")
        if function:
            ds.VOILUTFunction = function
        if function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
        if function == "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0, 1)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)

    def save(self, path: Path) -> None:
        random, ds = self.random, self.ds
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.3", "MG"
        ds.SamplesPerPixel, ds.Rows, ds.Columns = 1, H, W
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = self.allocated, self.bits, self.bits - 1
        ds.PixelRepresentation = int(self.signed)
        cells = self.stored & (2**self.bits - 1 if one(random, False, True) else 2**self.allocated - 1)
        if self.bits < self.allocated and one(random, *[False] * 3, True):  # an old overlay, which is to be ignored
            cells = cells | random.integers(0, 2, cells.shape) << self.allocated - 1
        data = cells.astype(f"{'>' if self.big else '<'}u{self.allocated // 8}").tobytes()
        ds.add_new("PixelData", "OB" if self.allocated == 8 else "OW", data + b"\0" * (len(data) % 2))
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" + ("" if self.implicit else ".2" if self.big else ".1")
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3"
        with warnings.catch_warnings(action="ignore"):
            ds.save_as(path, enforce_file_format=True)


def pydicoms_grey(path: Path) -> Array | None:
    """The display of pydicom's own pipeline, 0..255, or None where it is known to have rules of its own.

    It guesses the sign of descriptors in implicit VR, indexes in the type of 8-bit entries, and has none of 10 to 14.
    """
    ds = pydicom.dcmread(path)
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        if name in ds and (ds.original_encoding != (False, True) or ds[name][0].LUTDescriptor[2] != 16):
            return None
    stored = ds.pixel_array
    if np.ptp(stored.astype(int)) > np.iinfo(stored.dtype).max:  # it subtracts in the type of the pixels
        return None
    values = apply_modality_lut(stored, ds)
    low, high = float(values.min()), float(values.max())
    if "VOILUTSequence" in ds:
        if high - ds.VOILUTSequence[0].LUTDescriptor[1] > 65535:  # it indexes in 16 bits
            return None
        shown = apply_voi_lut(values, ds, prefer_lut=True).astype(np.float64)
        low, high = 0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in ds:
        shown = apply_voi_lut(values, ds)
        if "ModalityLUTSequence" in ds:
            low, high = 0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        else:
            ends = (-(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1)
            low, high = ends if ds.PixelRepresentation else (0, 2**ds.BitsStored - 1)
            if "RescaleSlope" in ds:
                low, high = (end * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for end in (low, high))
    else:
        shown = values.astype(np.float64)
        if stored.dtype == np.uint8 and (ds.get("RescaleSlope", 1), ds.get("RescaleIntercept", 0)) == (1, 0):
            low, high = (low, high) if "ModalityLUTSequence" in ds else (0, 255)
    grey = 255 * (shown - low) / ((high - low) or 1)
    return np.asarray(255 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey)


@pytest.mark.slow
def test_random_dicom(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        made = Made(np.random.default_rng((SEED, 1, number)))
        wanted = 255 * made.make()
        made.save(tmp_path / "a.dcm")
        try:
            grey = read_grey(tmp_path / "a.dcm")
        except ImageError as error:
            blank = "is blank" in str(error) and np.ptp(np.rint(wanted)) < 2
            squeezed = "99 % of its pixels" in str(error)
            if not (made.faults or blank or squeezed):
                raise AssertionError((number, made.ds)) from error
            seen[", ".join(made.faults) or "blank"] += 1
            continue
        assert not made.faults, (number, made.faults, made.ds)
        assert spread(grey, wanted, 0.51), (number, made.ds)
        with warnings.catch_warnings(action="ignore"):  # of float input, and of bits beyond those that are stored
            theirs = pydicoms_grey(tmp_path / "a.dcm")
        assert theirs is None or spread(grey, theirs, 1.01), (number, made.ds)
        seen["read" if theirs is None else "read as pydicom does"] += 1
    assert {"narrow LUT", "presentation LUT shape", "read as pydicom does", "read"} <= set(seen), seen
    assert seen["blank"] < COUNT / 20


# TIFF ──────────────────────────────────────────────────────────────────────────────────────────────

KINDS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
THEIR_WORDS = ("broadcast", "unknown pixel mode", "conversion from", "Error", "can't be read")
PATCHED = [254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339]


def random_tiff(random: Random) -> bytes:
    kind, colour = one(random, *KINDS), one(random, "grey", "grey", "grey", "rgb", "alpha", "rgba")
    if colour != "grey":
        kind = one(random, "u1", "u2")
    channels = {"grey": 1, "rgb": 3, "alpha": 2, "rgba": 4}[colour]
    info = (np.finfo if kind[0] == "f" else np.iinfo)(kind)
    low, high = (-900.0, 1800.0) if kind[0] == "f" else (float(info.min), float(info.max))
    if kind in ("u2", "i2", "u4", "i4", "u8", "i8") and colour == "grey":
        low, high = max(low, -3000), 4000
    samples = np.stack([field(random) for _ in range(channels)], -1) * (high - low) + low
    samples = (samples if kind[0] == "f" else np.rint(samples)).astype(kind)
    photometric = "rgb" if colour.startswith("rgb") else one(random, "minisblack", "minisblack", "miniswhite")
    compression = one(random, None, None, "deflate", "lzw", "packbits", "lzma")
    predictable = compression in ("deflate", "lzw", "lzma") and kind not in ("i8", "u8")  # tifffile has none
    options: dict[str, Any] = {
        "photometric": photometric,
        "compression": compression,
        "predictor": predictable and one(random, False, True),
        "planarconfig": "separate" if channels > 1 and one(random, False, True) else None,
        "extrasamples": [one(random, 0, 1, 2)] if colour in ("alpha", "rgba") else None,
        "rowsperstrip": one(random, None, 1, 5, 16),
        "metadata": None,
        "resolution": one(random, None, (300, 300), (72, 72)),
    }
    if one(random, False, False, True):
        options |= {"tile": (one(random, 16, 32), one(random, 16, 48)), "rowsperstrip": None}
    data = np.moveaxis(samples, -1, 0) if options["planarconfig"] else samples
    stream = io.BytesIO()
    kind_of_file = {"bigtiff": one(random, False, True), "byteorder": one(random, "<", ">")}
    with warnings.catch_warnings(action="ignore"), tifffile.TiffWriter(stream, **kind_of_file) as writer:
        writer.write(np.squeeze(data), **options)
    return stream.getvalue()


def patched(random: Random, data: bytes) -> bytes:
    """One tag of the directory with another number, type or value, or without its name."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        big, order = file.is_bigtiff, file.byteorder
        tags = [tag for tag in file.pages[0].tags.values() if tag.code in PATCHED]
    tag = tags[int(random.integers(len(tags)))]
    at = tag.offset + (12 if big else 8)
    how = one(random, "value", "value", "value", "count", "absent")
    if how == "absent":
        struct.pack_into(f"{order}H", changed, tag.offset, 65000)
    elif how == "count":
        struct.pack_into(
            f"{order}{'Q' if big else 'I'}", changed, tag.offset + 4, int(tag.count + random.integers(1, 3))
        )
    else:
        code = {3: "H", 4: "I", 16: "Q"}[tag.dtype]
        (value,) = struct.unpack_from(f"{order}{code}", changed, at)
        value = one(random, value + 1, value - 1, value * 2, value // 2, 0, 1, 2, 3, 4, 8, 16)
        struct.pack_into(f"{order}{code}", changed, at, int(value) % 2 ** (8 * struct.calcsize(code)))
    return bytes(changed)


def tifffiles_grey(data: bytes, whole: bytes) -> Array:
    """The display of tifffile's array, by the tags: 0..255 [H, W]. Of `whole`, where it can't read `data`."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            file.pages[0].asarray()
    except Exception:  # noqa: BLE001
        data = whole
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        array, photometric, bits = page.asarray(), int(page.photometric), page.bitspersample
        extra = tuple(int(value) for value in page.extrasamples)
        separate = int(page.planarconfig) == 2 and page.samplesperpixel > 1
        orientation = int(page.tags[274].value) if 274 in page.tags else 1
    if separate:
        array = np.moveaxis(array, 0, -1)
    channels = array if array.ndim == 3 else array[..., None]
    colours = channels[..., : 3 if photometric == 2 else 1]
    if photometric != 2 and len(extra) == 0 and (array.dtype.kind != "u" or bits > 8):
        exact = colours[..., 0].astype(object if array.dtype.kind in "iu" else np.float64)
        shown = np.asarray(exact - exact.min(), np.float64)
        grey = 255 * shown / (shown.max() or 1)
    else:
        share = colours.astype(np.float64) * 255 / (2**bits - 1)
        grey = share @ REC601 if photometric == 2 else share[..., 0]
    if photometric == 0:
        grey = 255 - grey
    if 2 in extra:
        grey = grey * channels[..., colours.shape[-1] + extra.index(2)] / (2.0**bits - 1)
    turns = [grey, np.fliplr(grey), np.rot90(grey, 2), np.flipud(grey), grey.T, np.rot90(grey, -1), np.rot90(grey, 2).T]
    return np.asarray([*turns, np.rot90(grey)][orientation - 1])


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_random_tiff(tmp_path: Path, broken: bool) -> None:
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        random = np.random.default_rng((SEED, 2 + broken, number))
        data = random_tiff(random)
        whole, data = data, patched(random, data) if broken else data
        (tmp_path / "a.tif").write_bytes(data)
        try:
            grey = read_grey(tmp_path / "a.tif")
        except ImageError as error:
            ours = not any(word in str(error) for word in THEIR_WORDS)
            if not (ours and (broken or "16 bits per colour channel" in str(error))):
                raise AssertionError(number) from error
            seen["refused"] += 1
            continue
        assert spread(grey, tifffiles_grey(data, whole), 1.51), number
        seen["read"] += 1
    assert seen["read"] > COUNT / 20
    assert seen["refused"] > COUNT / 4 if broken else seen["refused"] < COUNT / 5  # dark colours by chance


# PNG ───────────────────────────────────────────────────────────────────────────────────────────────


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def random_png(random: Random) -> tuple[bytes, int, int, tuple[int, ...]]:
    """(file, bits, colour type, transparent samples)."""
    colour = one(random, 0, 0, 2, 3, 4, 6)
    bits = {0: one(random, 1, 2, 4, 8, 16), 3: one(random, 1, 2, 4, 8)}.get(colour, one(random, 8, 16))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    samples = np.rint(np.stack([field(random) for _ in range(channels)], -1) * (2**bits - 1)).astype(np.uint16)
    planes = (samples.reshape(H, -1)[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(H, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(planes, axis=1))
    extra, transparent = [], tuple[int, ...]()
    if colour == 3:
        extra.append(chunk(b"PLTE", random.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes()))
        if one(random, False, True):
            extra.append(
                chunk(b"tRNS", random.integers(0, 256, int(random.integers(1, 2**bits + 1)), dtype=np.uint8).tobytes())
            )
    elif colour in (0, 2) and one(random, False, True):
        transparent = tuple(int(value) for value in samples[int(random.integers(H)), int(random.integers(W))])
        extra.append(chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)))
    head = struct.pack(">IIBBBBB", W, H, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts), bits, colour, transparent


def imagecodecs_grey(data: bytes, bits: int, colour: int, transparent: tuple[int, ...]) -> Array:
    """The display of imagecodecs' array, 0..255 [H, W]: palettes and tRNS are expanded by libpng."""
    array = imagecodecs.png_decode(data).astype(np.float64)
    channels = array if array.ndim == 3 else array[..., None]
    top = 65535.0 if bits == 16 else 255.0
    alpha = channels[..., -1] / top if channels.shape[-1] in (2, 4) else np.ones(channels.shape[:2])
    if colour == 0 and bits == 16:
        values = channels[..., 0]
        inside = values[alpha > 0]
        return np.asarray(255 * (values - inside.min()) / (np.ptp(inside) or 1) * (alpha > 0))
    colours = channels[..., : 3 if channels.shape[-1] >= 3 else 1] * 255 / top
    return np.asarray((colours @ REC601 if colours.shape[-1] == 3 else colours[..., 0]) * alpha)


@pytest.mark.slow
def test_random_png(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        data, bits, colour, transparent = random_png(np.random.default_rng((SEED, 4, number)))
        (tmp_path / "a.png").write_bytes(data)
        wanted = imagecodecs_grey(data, bits, colour, transparent)
        try:
            grey = read_grey(tmp_path / "a.png")
        except ImageError as error:
            deep = bits == 16 and colour in (2, 4, 6)  # dark by chance, or with one transparent colour
            if not (deep or np.ptp(np.rint(wanted)) == 0):
                raise AssertionError((number, bits, colour, transparent)) from error
            seen["refused"] += 1
            continue
        assert spread(grey, wanted, 1.51), (number, bits, colour, transparent)
        seen["read"] += 1
    assert seen["read"] > COUNT / 2
