"""Random coded pictures and random damage: what is read is what was coded, or is refused.

`python tests/streams/test_random_streams.py 10000` draws more of them than the suite does. What is accepted must be
what an independent decoder (imagecodecs; for RLE, pydicom) makes of the same bytes, and where bytes were zeroed, the
end is missing, or the header or a size was changed, it must be the picture that was coded.
"""

from __future__ import annotations

import collections
import io
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: pip install 'mpmmu-rt[codecs]'")
from pydicom.encaps import encapsulate  # noqa: E402

COUNT = 300
JPEG, LOSSLESS, JPEG_LS, JPEG_2000, RLE = (f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.70", "4.80", "4.90", "5"))
LUMA = [0.299, 0.587, 0.114]


@dataclass
class Drawn:
    """One coded picture. `grey` is right for it, within `tolerance`; `header` are DICOM elements, None for a file."""

    form: str
    stream: bytes
    grey: Array
    tolerance: int
    independent: Callable[[bytes], Array]
    header: dict[str, Any] | None = None
    damage: str = "none"


def picture(chance: random.Random, bits: int, colour: bool) -> Array:
    """Structure over a blank border, with or without noise: unsigned [H, W] or [H, W, 3]."""
    height, width = chance.randrange(16, 90), chance.randrange(16, 90)
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(chance.getrandbits(32))
    planes = []
    for _ in range(3 if colour else 1):
        waves = 0.5 + 0.25 * np.sin(x / chance.uniform(2, 30)) + 0.2 * np.cos(y / chance.uniform(2, 30))
        waves = waves + noise.normal(0, 0.02, x.shape) * chance.randrange(2)
        inside = np.hypot(x - width / 2, y - height / 2) < chance.uniform(0.3, 1) * max(height, width)
        planes.append(np.where(inside, waves, 0))
    values = (np.stack(planes, -1).clip(0, 1) * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return np.asarray(values if colour else values[..., 0])


def to_grey(values: Array, bits: int) -> Array:
    """Colour to its luma; grey of more than 8 bits is stretched from its own range."""
    if values.ndim == 3:
        rgb: Array = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
        return np.array(Image.fromarray(rgb).convert("L"))
    if bits == 8:
        return values
    wide = values.astype(np.float64)
    return np.asarray(np.rint(255 * (wide - wide.min()) / (wide.max() - wide.min())), np.uint8)


def draw_jpeg(chance: random.Random) -> Drawn:
    colour, as_file = chance.random() < 0.6, chance.random() < 0.5
    values = picture(chance, 8, colour)
    options: dict[str, Any] = {"quality": chance.randrange(20, 101), "optimize": chance.random() < 0.3}
    if colour:
        options |= {"keep_rgb": True} if chance.random() < 0.2 else {"subsampling": chance.choice([0, 1, 2])}
    if chance.random() < 0.3:
        options["progressive"] = True
    if chance.random() < 0.3:
        options["restart_marker_blocks"] = chance.randrange(1, 40)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "jpeg", **options)
    kind = "RGB" if options.get("keep_rgb") else "YCBCR"

    def independent(data: bytes) -> Array:
        decoded = imagecodecs.jpeg8_decode(data, **({"colorspace": kind, "outcolorspace": "RGB"} if colour else {}))
        return to_grey(np.asarray(decoded), 8)

    photometric = "MONOCHROME2" if not colour else "RGB" if kind == "RGB" else "YBR_FULL_422"
    header = None if as_file else dicom_header(values, 8, JPEG, photometric)
    return Drawn("JPEG", out.getvalue(), independent(out.getvalue()), 1, independent, header)


def draw_lossless(chance: random.Random) -> Drawn:
    colour = chance.random() < 0.3
    bits = 8 if colour else chance.choice([8, 10, 12, 16])
    values = picture(chance, bits, colour)
    predictor = chance.randrange(1, 8)
    stream = imagecodecs.jpeg8_encode(
        values, lossless=True, predictor=predictor, bitspersample=bits, colorspace="RGB" if colour else None
    )

    def independent(data: bytes) -> Array:  # another decoder than the product's
        return to_grey(np.asarray(imagecodecs.jpegsof3_decode(data)), bits)

    header = dicom_header(values, bits, LOSSLESS, "RGB" if colour else "MONOCHROME2")
    return Drawn("JPEG lossless", stream, to_grey(values, bits), 0, independent, header)


def draw_jpeg_ls(chance: random.Random) -> Drawn:
    colour = chance.random() < 0.3
    bits = 8 if colour else chance.choice([8, 16])
    values = picture(chance, bits, colour)
    stream = imagecodecs.jpegls_encode(values)
    header = dicom_header(values, bits, JPEG_LS, "RGB" if colour else "MONOCHROME2")
    return Drawn(
        "JPEG-LS",
        stream,
        to_grey(values, bits),
        0,
        lambda data: to_grey(np.asarray(imagecodecs.jpegls_decode(data)), bits),
        header,
    )


def draw_jpeg_2000(chance: random.Random) -> Drawn:
    colour = chance.random() < 0.3
    bits = 8 if colour else chance.choice([8, 16])
    values = picture(chance, bits, colour)
    out = io.BytesIO()
    options: dict[str, Any] = {"num_resolutions": chance.randrange(1, 5)}
    if chance.random() < 0.4:
        options["tile_size"] = (chance.randrange(16, 64), chance.randrange(16, 64))
    if chance.random() < 0.5:
        options["progression"] = chance.choice(["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"])
    if chance.random() < 0.4:
        options["codeblock_size"] = (2 ** chance.randrange(2, 7), 2 ** chance.randrange(2, 7))
    if chance.random() < 0.3:
        options["precinct_size"] = (2 ** chance.randrange(5, 8), 2 ** chance.randrange(5, 8))
    if chance.random() < 0.3:
        options |= {
            "quality_mode": "rates",
            "quality_layers": sorted({chance.randrange(1, 40) for _ in range(3)})[::-1],
        }
    if colour:
        options["mct"] = chance.randrange(2)
    Image.fromarray(values).save(
        out,
        "jpeg2000",
        no_jp2=chance.random() < 0.9,
        irreversible="tile_size" not in options and chance.random() < 0.3,
        **options,
    )

    def independent(data: bytes) -> Array:
        return to_grey(np.asarray(imagecodecs.jpeg2k_decode(data)), bits)

    photometric = "MONOCHROME2" if not colour else chance.choice(["RGB", "YBR_RCT"]) if options["mct"] else "RGB"
    header = dicom_header(values, bits, JPEG_2000, photometric)
    return Drawn("JPEG 2000", out.getvalue(), independent(out.getvalue()), 1, independent, header)


def draw_rle(chance: random.Random) -> Drawn:
    colour = chance.random() < 0.4
    bits = 8 if colour else chance.choice([8, 12, 16])
    values = picture(chance, bits, colour)
    samples = values.reshape(*values.shape[:2], -1)
    planes = [
        plane.astype(f"u{values.itemsize}") >> shift & 255
        for plane in np.moveaxis(samples, -1, 0)
        for shift in range(8 * (values.itemsize - 1), -1, -8)
    ]
    segments = []
    for plane in planes:
        packed = b"".join(imagecodecs.packbits_encode(row.astype(np.uint8).tobytes()) for row in plane)
        segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1].tolist()
    head = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    grey = to_grey(values, bits)
    header = dicom_header(values, bits, RLE, "RGB" if colour else "MONOCHROME2")

    def independent(data: bytes) -> Array:
        ds = pydicom.Dataset()
        for keyword, value in header.items():
            if keyword != "syntax":
                setattr(ds, keyword, value)
        buffer = pydicom.pixels.decoders.rle._rle_decode_frame(
            data, ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated
        )
        planes = np.frombuffer(buffer, f"<u{values.itemsize}").reshape(ds.SamplesPerPixel, ds.Rows, ds.Columns)
        return to_grey(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0), bits)

    return Drawn("RLE", head + b"".join(segments), grey, 0, independent, header)


def draw_png(chance: random.Random) -> Drawn:
    colour = chance.random() < 0.4
    values = picture(chance, 8, colour)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "png", compress_level=chance.randrange(10))

    def independent(data: bytes) -> Array:
        decoded = np.asarray(imagecodecs.png_decode(data))
        return to_grey(decoded, 8) if colour else decoded

    return Drawn("PNG", out.getvalue(), independent(out.getvalue()), 0, independent)


def dicom_header(values: Array, bits: int, syntax: str, photometric: str) -> dict[str, Any]:
    return {
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 3 if values.ndim == 3 else 1,
        "BitsAllocated": values.itemsize * 8,
        "BitsStored": bits,
        "PixelRepresentation": 0,
        "PhotometricInterpretation": photometric,
        "syntax": syntax,
    }


DRAWS = [draw_jpeg, draw_jpeg, draw_lossless, draw_jpeg_ls, draw_jpeg_2000, draw_jpeg_2000, draw_rle, draw_png]


def damage(drawn: Drawn, chance: random.Random) -> None:
    """One of: nothing, a cut, a hole, a flipped byte, bytes twice, other sizes in the header or in the stream."""
    data = bytearray(drawn.stream)
    begin = len(data) // 8
    at = chance.randrange(begin, max(begin + 1, len(data) - 2))
    kind = chance.choice(["none", "cut", "hole", "flip", "twice", "size", "header", "end"])
    if kind == "cut":  # what is left goes on to the stream's own end
        data[at : len(data) - 2 - chance.randrange(2) * chance.randrange(len(data) - at)] = b""
    elif kind == "hole":
        size = min(chance.choice([64, 128, 512]), len(data) - 2 - begin)
        if drawn.form == "JPEG lossless":  # of which a ramp may be zeros
            size = min(max(size, 128), len(data) - 2 - begin)
        at = chance.randrange(begin, len(data) - 1 - size)
        data[at : at + size] = bytes(size)
    elif kind == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "twice":
        data[at:at] = data[at : at + chance.randrange(1, 60)]
    elif kind == "end":
        del data[len(data) - chance.randrange(1, 40) :]
    elif kind == "size":
        markers = {"JPEG": b"\xff\xc0", "JPEG lossless": b"\xff\xc3", "JPEG-LS": b"\xff\xf7"}
        found = data.find(markers[drawn.form]) if drawn.form in markers else -1
        if found >= 0:
            side = found + 5 + 2 * chance.randrange(2)
            (old,) = struct.unpack_from(">H", data, side)
            struct.pack_into(
                ">H", data, side, max(1, old + chance.choice([-17, 17] if drawn.header is None else [-9, -1, 1, 17]))
            )
        else:
            kind = "none"
    elif kind == "header" and drawn.header is not None:
        key = chance.choice(["Rows", "Columns", "exchanged", "BitsStored", "SamplesPerPixel", "frames", "colour"])
        if key == "exchanged":
            rows, columns = drawn.header["Rows"], drawn.header["Columns"]
            drawn.header |= {"Rows": columns, "Columns": rows}
            kind = "header" if rows != columns else "none"
        elif key == "colour":
            says = drawn.header["PhotometricInterpretation"]
            others = {"RGB": ["YBR_FULL", "YBR_FULL_422", "YBR_ICT"], "YBR_FULL_422": ["RGB", "YBR_RCT", "YBR_FULL"]}
            if drawn.form == "JPEG" and says in others:
                drawn.header["PhotometricInterpretation"] = chance.choice(others[says])
            else:
                kind = "none"
        elif key == "frames":
            drawn.header["NumberOfFrames"] = 2
        elif key == "SamplesPerPixel":
            drawn.header["SamplesPerPixel"] = 4 - drawn.header["SamplesPerPixel"]
        elif key == "BitsStored":
            drawn.header["BitsStored"] = chance.randrange(2, 17)
            kind = "bits"
        else:
            drawn.header[key] += chance.choice([-8, -1, 1, 8])
    else:
        kind = "none"
    drawn.damage = kind if bytes(data) != drawn.stream or kind in ("header", "bits") else "none"
    drawn.stream = bytes(data)


def write(drawn: Drawn, path: Path) -> None:
    if drawn.header is None:
        path.write_bytes(drawn.stream)
        return
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = drawn.header["syntax"]
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.Modality = "US"
    for keyword, value in drawn.header.items():
        if keyword != "syntax":
            setattr(ds, keyword, value)
    ds.HighBit = ds.BitsStored - 1
    ds.PixelData = encapsulate([drawn.stream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)


def verdict(seed: int, folder: Path) -> tuple[str, str, str]:
    """Form, damage, and what came of it: right, refused, unseen (another valid stream), or WRONG."""
    chance = random.Random(seed)
    drawn = chance.choice(DRAWS)(chance)
    damage(drawn, chance)
    path = folder / "image.dcm" if drawn.header is not None else folder / "image"
    write(drawn, path)
    try:
        grey = read_grey(path)
    except ImageError:
        whole = drawn.damage == "none" and drawn.grey.min() < drawn.grey.max()  # else it is refused as blank
        return drawn.form, drawn.damage, "REFUSED" if whole else "refused"
    if grey.shape == drawn.grey.shape and np.abs(grey.astype(int) - drawn.grey).max() <= drawn.tolerance:
        return drawn.form, drawn.damage, "right"
    try:
        other = drawn.independent(drawn.stream + b"\0" * (len(drawn.stream) % 2))  # as encapsulated
    except Exception:  # noqa: BLE001  whatever it raises, it refuses
        return drawn.form, drawn.damage, "WRONG: the independent decoder refuses it"
    if other.shape != grey.shape or np.abs(grey.astype(int) - other).max() > max(drawn.tolerance, 1):
        return drawn.form, drawn.damage, "WRONG: the independent decoder reads something else"
    # A changed byte may leave another valid stream, and so may bytes less or more within one block. RLE has no end.
    possible = drawn.damage in ("flip", "twice", "cut") or (drawn.form, drawn.damage) == ("RLE", "end")
    return drawn.form, drawn.damage, "unseen" if possible else "WRONG: as another"


def search(seeds: range, folder: Path) -> dict[tuple[str, str, str], list[int]]:
    found: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    for seed in seeds:
        found[verdict(seed, folder)].append(seed)
    return found


@pytest.mark.slow
def test_random_streams(tmp_path: Path) -> None:
    found = search(range(COUNT), tmp_path)
    counted = collections.Counter[str]()
    for (_, _, what), seeds in found.items():
        counted[what] += len(seeds)
    assert not {key: seeds for key, seeds in found.items() if key[2] not in ("right", "refused", "unseen")}
    assert counted["refused"] > COUNT // 3
    assert counted["right"] > COUNT // 8


if __name__ == "__main__":
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        for what, seeds in sorted(search(range(first, first + int(sys.argv[1])), Path(name)).items()):
            print(len(seeds), *what, seeds[:5])
