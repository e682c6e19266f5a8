"""Every kind of broken input, through the real command line: exit code and the two lines that a user sees.

The table in bad_input.md is what was reviewed by a person. `python tests/test_bad_input.py` writes it anew.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from PIL import Image
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, QuantileTransformer
from typer.testing import CliRunner

from mpmmu_rt import bundle as bundles
from mpmmu_rt.cli import app
from mpmmu_rt.files import sha256_file
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import load_skops
from mpmmu_rt.spec import Array

TABLE = Path(__file__).with_name("bad_input.md")
REGENERATE = "regenerate-bad-input"
HEADER = "case_id,mammography,ultrasound,label\n"


@dataclass(frozen=True)
class Place:
    """A folder with a good bundle, checkpoint and manifest of one case, of which a maker breaks one thing."""

    path: Path

    @property
    def bundle(self) -> Path:
        return self.path / "b"

    @property
    def checkpoint(self) -> Path:
        return self.path / "c"

    def manifest(self, text: str | bytes) -> None:
        (self.path / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())

    def cases(self, mammography: str) -> None:
        self.manifest(f"{HEADER}ok,mg.png,us.png,1\nbad,{mammography},us.png,0\n")

    def edit(self, *keys: str, value: object = None, remove: bool = False) -> None:
        """Change bundle.json and its own digest: someone wants it accepted."""
        path = self.bundle / "bundle.json"
        entry = json.loads(path.read_text())
        part: dict[str, Any] = entry
        for key in keys[:-1]:
            part = part[key]
        if remove:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value
        path.write_text(json.dumps(entry | {"sha256": bundles._own_digest(entry)}))

    def config(self, **changes: object) -> None:
        path = self.checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


Maker = Callable[[Place], object]
RUN = "run {b} {m} -o {p}/out.csv"
EXPORT = "export {c} -o {p}/new.bundle"


def picture() -> Image.Image:
    y, x = np.mgrid[:40, :50]
    return Image.fromarray(((x * 5 + y * 3) % 256).astype(np.uint8))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def seal(place: Place) -> None:
    bundles.seal(place.bundle, json.loads((place.bundle / "bundle.json").read_text()))


def other_weights(place: Place) -> None:
    path = place.bundle / "onnx/weights.bin"
    (np.fromfile(path, "<f4") * np.float32(1.1)).tofile(path)
    seal(place)


def golden_without_embedding(place: Place) -> None:
    path = place.bundle / "golden/golden.npz"
    with np.load(path) as vectors:
        kept: dict[str, Any] = {name: vectors[name] for name in vectors.files if name != "embedding"}
    np.savez(path, **kept)
    seal(place)


def threshold_by_hand(place: Place) -> None:
    path = place.bundle / "bundle.json"
    path.write_text(path.read_text().replace('"threshold": 0.4', '"threshold": 0.6'))


def key_twice(place: Place) -> None:
    path = place.bundle / "bundle.json"
    path.write_text(path.read_text().replace('"threshold": 0.4', '"threshold": 0.6, "threshold": 0.4'))


def huge_json(place: Place) -> None:
    with (place.bundle / "bundle.json").open("ab") as file:
        file.truncate(17 * 2**20)


def frames(place: Place) -> None:
    pages = [picture(), picture().rotate(180)]
    pages[0].save(place.path / "x.tif", save_all=True, append_images=pages[1:])
    place.cases("x.tif")


def image(data: bytes, name: str = "x.png") -> Maker:
    def make(place: Place) -> None:
        (place.path / name).write_bytes(data)
        place.cases(name)

    return make


NO_PALETTES: Mapping[str, object] = {}
STORAGE = "1.2.840.10008.5.1.4.1.1."


def deep_picture(top: int, marker: int) -> Array:
    values = np.asarray(picture(), np.uint16) * (top // 255)
    values[:3, :3] = marker
    return values


def mammogram(stored: Array | None = None, palettes: Mapping[str, object] = NO_PALETTES, **elements: object) -> Maker:
    """A mammogram in DICOM, but for the other elements; None leaves one out."""

    def make(place: Place) -> None:
        import pydicom

        pixels = np.asarray(picture()) if stored is None else stored
        bits = pixels.itemsize * 8
        ds = pydicom.Dataset()
        usual: dict[str, object] = {
            "SOPClassUID": STORAGE + "1.2", "SOPInstanceUID": "1.2.3", "Modality": "MG", "Rows": 40, "Columns": 50,
            "SamplesPerPixel": 1 if pixels.ndim == 2 else 3, "BitsAllocated": bits, "BitsStored": bits,
            "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB", "PixelRepresentation": 0,
            "PlanarConfiguration": None if pixels.ndim == 2 else 0,
        }  # fmt: skip
        for keyword, value in (usual | elements | dict(palettes)).items():
            if value is not None:
                setattr(ds, keyword, value)
        ds.HighBit = ds.BitsStored - 1
        ds.add_new("PixelData", "OB" if bits == 8 else "OW", pixels.tobytes())
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3"
        ds.save_as(place.path / "x.dcm", enforce_file_format=True)
        place.cases("x.dcm")

    return make


def lut(count: int, entries: int, top: int) -> object:
    import pydicom

    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [count, 0, 16])
    item.add_new("LUTData", "OW", np.linspace(0, top, entries).astype("<u2").tobytes())
    return [item]


def palette(first: int, bits: int, green: int = 256) -> dict[str, object]:
    found: dict[str, object] = {}
    for colour, count in (("Red", 256), ("Green", green), ("Blue", 256)):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [count, first, bits]
        found[f"{colour}PaletteColorLookupTableData"] = np.arange(count).astype("<u2").tobytes()
    return found


def tiff(tag: int, value: int | None, mode: str = "L") -> Maker:
    """A TIFF with another value of a tag of one value, or (None) without it."""

    def make(place: Place) -> None:
        picture().convert(mode).save(place.path / "x.tif", tiffinfo={277: len(mode)})
        data = bytearray((place.path / "x.tif").read_bytes())
        (directory,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, directory)
        entries = [directory + 2 + 12 * index for index in range(count)]
        at = next(entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == tag)
        if value is None:
            struct.pack_into("<H", data, at, 65000)
        else:
            struct.pack_into("<HII", data, at + 2, 4, 1, value)
        (place.path / "x.tif").write_bytes(data)
        place.cases("x.tif")

    return make


def saved(kind: str, array: Array, at: int = 0, value: bytes = b"", **options: Any) -> Maker:
    """An image that Pillow writes, with `value` instead of the bytes from `at` on."""

    def make(place: Place) -> None:
        path = place.path / f"x.{kind}"
        Image.fromarray(array).save(path, **options)
        data = path.read_bytes()
        path.write_bytes(data[:at] + value + data[at + len(value) :])
        place.cases(path.name)

    return make


def png_of_deep_colour(*chunks: tuple[bytes, bytes]) -> Maker:
    """16-bit RGB, which Pillow does not write: 12-bit values and a white marker."""
    rows = np.repeat(deep_picture(4095, 65535)[..., None], 3, axis=-1).astype(">u2")
    head = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    coded = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", coded), (b"IEND", b"")]
    data = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return image(b"\x89PNG\r\n\x1a\n" + b"".join(data))


def truncated_png(place: Place) -> None:
    shutil.copy(place.path / "mg.png", place.path / "x.png")
    cut(place.path / "x.png")
    place.cases("x.png")


def flat_png(place: Place) -> None:
    Image.new("L", (40, 50), 0).save(place.path / "x.png")
    place.cases("x.png")


def jpeg(change: Callable[[bytes], bytes], **options: Any) -> Maker:
    return lambda place: image(change(coded("jpeg", **options)), "x.jpg")(place)


def coded(kind: str, mode: str = "L", **options: Any) -> bytes:
    out = io.BytesIO()
    picture().convert(mode).save(out, kind, **options)
    return out.getvalue()


def half_scan(data: bytes) -> bytes:
    start = data.index(b"\xff\xda")
    return data[: (start + len(data)) // 2].rstrip(b"\xff") + data[-2:]


def dicom(stream: bytes, syntax: str, **elements: Any) -> Maker:
    """A DICOM file of 40 x 50 pixels around a coded stream, or around several, of `elements` that may contradict it."""

    def make(place: Place) -> None:
        import pydicom
        from pydicom.encaps import encapsulate

        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.{syntax}"
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        header = {
            "Modality": "MG",
            "Rows": 40,
            "Columns": 50,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 8,
            "BitsStored": 8,
            "PixelRepresentation": 0,
        }
        for keyword, value in (header | elements).items():
            setattr(ds, keyword, value)
        ds.HighBit = ds.BitsStored - 1
        ds.PixelData = encapsulate([stream])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.save_as(place.path / "x.dcm", enforce_file_format=True)
        place.cases("x.dcm")

    return make


def png_of_two_checksums(place: Place) -> None:
    data = bytearray(coded("png"))
    data[data.index(b"IDAT") + 30] ^= 1
    image(bytes(data))(place)


def resized_png(data: bytes, height: int) -> bytes:
    head = data[12:20] + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def tile_missing(data: bytes) -> bytes:
    start = data.index(b"\xff\x90\0\x0a")
    return data[:start] + data[data.index(b"\xff\x90\0\x0a", start + 1) :]


RGB: dict[str, Any] = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}


def baseline(schema: str) -> Maker:
    return lambda place: (place.path / "x.json").write_text(json.dumps({"schema": schema}))


def manifest(text: str | bytes) -> Maker:
    return lambda place: place.manifest(text)


def result(text: str) -> Maker:
    """A file that stands for a result of `bench`."""
    return lambda place: (place.path / "r.json").write_text(text)


def nothing(place: Place) -> None:
    pass


def foreign_output(place: Place) -> None:
    (place.path / "new.bundle").mkdir()
    (place.path / "new.bundle" / "thesis.tex").write_text("years of work")


def pickled_head(place: Place) -> None:
    (place.checkpoint / "head.skops").rename(place.checkpoint / "head.pkl")


def head(change: Callable[[Any, Any, Any], Any], **config: object) -> Maker:
    """Another head in the checkpoint, fitted on embeddings of its width: scikit-learn may do more than a bundle."""

    def make(place: Place) -> None:
        width = load_skops(place.checkpoint / "head.skops").n_features_in_
        x = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
        path = place.checkpoint / "head.skops"
        skops.io.dump(change(x, (x[:, 0] > 0).astype(int), width), path)
        files = json.loads((place.checkpoint / "config.json").read_text())["files"]
        place.config(files=files | {"head.skops": sha256_file(path)}, **config)

    return make


def multinomial(x: Any, y: Any, _: int) -> Any:
    old = LogisticRegression().fit(x, y)
    old.multi_class = "multinomial"
    return old


def weights_of_fewer(x: Any, y: Any, _: int) -> Any:
    voters = [("a", LogisticRegression()), ("b", GaussianNB())]
    return VotingClassifier(voters, voting="soft", weights=[1, 2]).fit(x, y).set_params(a="drop")


def box_cox(x: Any, y: Any, _: int) -> Any:
    return make_pipeline(PowerTransformer(method="box-cox"), LogisticRegression()).fit(np.abs(x) + 1, y)


def thresholded(**options: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda x, y, _: FixedThresholdClassifier(LogisticRegression(), **options).fit(x, y)


def bad_preprocessing(place: Place) -> None:
    model = json.loads((place.checkpoint / "config.json").read_text())["model"]
    place.config(model=model | {"preprocessing": {"size": 0, "fit": "pad"}})


def bad_arch(place: Place) -> None:
    model = json.loads((place.checkpoint / "config.json").read_text())["model"]
    place.config(model=model | {"ultrasound": model["ultrasound"] | {"arch": "resnet99"}})


def diverged(place: Place) -> None:
    """A training that ended in NaN, and was saved."""
    trained = checkpoints.load(place.checkpoint)
    with torch.no_grad():
        trained.encoders["ultrasound"].conv1.weight[0, 0, 0, 0] = torch.nan
    shutil.rmtree(place.checkpoint)
    checkpoints.save(trained, place.checkpoint)


def journal_of_another(place: Place) -> None:
    (place.path / "out.csv.partial").write_text('{"schema": "mpmmu-run/2"}\nok,0.5,malignant,,\n')


# name: (what makes it, command, exit code)
CASES: dict[str, tuple[Maker, str, int]] = {
    "manifest: not there": (lambda p: (p.path / "m.csv").unlink(), RUN, 1),
    "manifest: a folder": (nothing, "run {b} {p} -o {p}/out.csv", 1),
    "manifest: empty": (manifest(""), RUN, 1),
    "manifest: a header and no case": (manifest(HEADER), RUN, 1),
    "manifest: no header": (manifest("a,mg.png,us.png,1\n"), RUN, 1),
    "manifest: tabs": (manifest("case_id\tmammography\tultrasound\na\tmg.png\tus.png\n"), RUN, 1),
    "manifest: persons under another name": (
        manifest("case_id,mammography,ultrasound,label,PatientID\na,mg.png,us.png,0,P\nb,us.png,mg.png,1,P\n"),
        "train {m} -o {p}/new",
        1,
    ),
    "manifest: semicolons": (manifest("case_id;mammography;ultrasound\na;mg.png;us.png\n"), RUN, 1),
    "manifest: a column is missing": (manifest("case_id,mammography\na,mg.png\n"), RUN, 1),
    "manifest: a column twice": (manifest(HEADER.strip() + ",label\na,mg.png,us.png,0,1\n"), RUN, 1),
    "manifest: UTF-16, as Excel saves Unicode text": (manifest((HEADER + "a,m,u,0\n").encode("utf-16")), RUN, 1),
    "manifest: Latin-1": (manifest(HEADER.encode() + b"M\xfcller,mg.png,us.png,0\n"), RUN, 1),
    "manifest: a quote that never ends": (manifest(HEADER + 'a,"mg.png,us.png,0\n'), RUN, 1),
    "manifest: too few cells": (manifest(HEADER + "a,mg.png\n"), RUN, 1),
    "manifest: an id twice": (manifest(HEADER + "a,mg.png,us.png,0\na,us.png,mg.png,1\n"), RUN, 1),
    "manifest: ids that look the same": (
        manifest(HEADER + "\u00e9,mg.png,us.png,0\ne\u0301,us.png,mg.png,1\n"),
        RUN,
        1,
    ),
    "manifest: no id": (manifest(HEADER + ",mg.png,us.png,0\n"), RUN, 1),
    "manifest: a label that is no label": (manifest(HEADER + "a,mg.png,us.png,malignant\n"), RUN, 1),
    "manifest: an image itself": (lambda p: shutil.copy(p.path / "mg.png", p.path / "m.csv"), RUN, 1),
    "image: not there": (lambda p: p.cases("no.png"), RUN, 1),
    "image: none given": (lambda p: p.cases(""), RUN, 1),
    "image: empty": (image(b""), RUN, 1),
    "image: text": (image(b"<html>404</html>"), RUN, 1),
    "image: a GIF": (image(b"GIF89a" + bytes(20)), RUN, 1),
    "image: cut off": (truncated_png, RUN, 1),
    "image: all black": (flat_png, RUN, 1),
    "image: a folder": (lambda p: p.cases("c"), RUN, 1),
    "image: two pages": (frames, RUN, 1),
    "image: DICOM cut off after its preamble": (image(bytes(128) + b"DICM", "x.dcm"), RUN, 1),
    "header: ultrasound as mammography": (mammogram(SOPClassUID=STORAGE + "6.1", Modality="US"), RUN, 1),
    "header: a segmentation": (mammogram(SOPClassUID=STORAGE + "66.4", Modality="SEG"), RUN, 1),
    "header: a CT image called MG": (mammogram(SOPClassUID=STORAGE + "2"), RUN, 1),
    "header: raw detector data": (mammogram(PresentationIntentType="FOR PROCESSING"), RUN, 1),
    "header: a test object": (mammogram(QualityControlImage="YES"), RUN, 1),
    "header: no Rows": (mammogram(Rows=None), RUN, 1),
    "header: more bits stored than allocated": (mammogram(BitsStored=12), RUN, 1),
    "header: spacings that contradict": (mammogram(PixelSpacing=[0.2, 0.1], PixelAspectRatio=[1, 1]), RUN, 1),
    "header: pixels 9 times as high as wide": (mammogram(PixelAspectRatio=[9, 1]), RUN, 1),
    "header: a spacing of one value": (mammogram(PixelSpacing="0.1"), RUN, 1),
    "header: MONOCHROME2 that is inverse": (mammogram(PresentationLUTShape="INVERSE"), RUN, 1),
    "header: a presentation LUT": (mammogram(PresentationLUTSequence=lut(256, 256, 255)), RUN, 1),
    "header: grey and colours": (mammogram(PixelPresentation="COLOR"), RUN, 1),
    "header: values that are colours": (mammogram(palettes=palette(200, 16)), RUN, 1),
    "header: a VOI LUT of fewer bits": (mammogram(VOILUTSequence=lut(256, 256, 4095)), RUN, 1),
    "header: a LUT that is cut off": (mammogram(VOILUTSequence=lut(256, 100, 65535)), RUN, 1),
    "header: a palette of fewer bits": (
        mammogram(PhotometricInterpretation="PALETTE COLOR", palettes=palette(0, 16)),
        RUN,
        1,
    ),
    "header: palettes of different shapes": (
        mammogram(PhotometricInterpretation="PALETTE COLOR", palettes=palette(0, 16, 128)),
        RUN,
        1,
    ),
    "header: padding beyond the stored bits": (
        mammogram(deep_picture(4095, 65535), BitsStored=12, PixelPaddingValue=65535),
        RUN,
        1,
    ),
    "depth: a marker far above 12 bits, no window": (mammogram(deep_picture(4095, 65535)), RUN, 1),
    "depth: 12 bits in 16-bit colour, a white marker": (png_of_deep_colour(), RUN, 1),
    "depth: one transparent 16-bit colour": (png_of_deep_colour((b"tRNS", bytes(6))), RUN, 1),
    "aspect: a PNG with one resolution of 0": (saved("png", np.asarray(picture()), dpi=(0, 300)), RUN, 1),
    "format: a BMP of a compression that isn't known": (saved("bmp", np.asarray(picture()), 30, b"\x09"), RUN, 1),
    "tiff: no photometric interpretation": (tiff(262, None), RUN, 1),
    "tiff: Lab": (tiff(262, 8, "RGB"), RUN, 1),
    "tiff: YCbCr that isn't JPEG": (tiff(262, 6, "RGB"), RUN, 1),
    "tiff: a strip at 0": (tiff(273, 0), RUN, 1),
    "tiff: a strip over the tags": (tiff(273, 10), RUN, 1),
    "tiff: another width": (tiff(256, 49), RUN, 1),
    "tiff: another length": (tiff(257, 80), RUN, 1),
    "tiff: rows of a strip": (tiff(278, 7), RUN, 1),
    "tiff: fax": (tiff(259, 4), RUN, 1),
    "tiff: 24 bits of grey": (tiff(258, 24), RUN, 1),
    "tiff: an extra sample that is not named": (tiff(277, 2), RUN, 1),
    "tiff: planes in an order of its own": (tiff(284, 3, "RGB"), RUN, 1),
    "image: a JPEG scan that ends half way": (jpeg(half_scan), RUN, 1),
    "image: a JPEG scan with bytes left over": (jpeg(lambda d: d[:-2] + b"\x55" * 3 + d[-2:]), RUN, 1),
    "image: a JPEG scan with a hole": (
        jpeg(lambda d: d[:-300] + bytes(100) + d[-200:], quality=100),
        RUN,
        1,
    ),
    "image: a progressive JPEG without its last scan": (
        jpeg(lambda d: d[: d.rindex(b"\xff\xda")] + d[-2:], progressive=True),
        RUN,
        1,
    ),
    "image: JPEG with arithmetic coding": (jpeg(lambda d: d.replace(b"\xff\xc0", b"\xff\xc9")), RUN, 1),
    "image: JPEG of 12 bits": (jpeg(lambda d: d.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c")), RUN, 1),
    "image: two JPEG pictures in a file": (jpeg(lambda d: d + d), RUN, 1),
    "image: PNG pixels whose checksum is wrong": (png_of_two_checksums, RUN, 1),
    "image: PNG of more rows than its header": (
        lambda p: image(resized_png(coded("png"), 30))(p),
        RUN,
        1,
    ),
    "image: DICOM with Rows and Columns exchanged": (dicom(coded("jpeg"), "4.50", Rows=50, Columns=40), RUN, 1),
    "image: DICOM with other bits than its stream": (
        dicom(coded("jpeg"), "4.50", BitsAllocated=16, BitsStored=12),
        RUN,
        1,
    ),
    "image: DICOM of several frames and no number of them": (dicom(coded("jpeg") * 2, "4.50"), RUN, 1),
    "image: DICOM in YCbCr that says RGB": (dicom(coded("jpeg", "RGB"), "4.50", **RGB), RUN, 1),
    "image: DICOM in JPEG that is cut": (dicom(half_scan(coded("jpeg")), "4.50"), RUN, 1),
    "image: DICOM in JPEG 2000 without a tile": (
        dicom(tile_missing(coded("jpeg2000", no_jp2=True, tile_size=(25, 20))), "4.90"),
        RUN,
        1,
    ),
    "image: DICOM in High-Throughput JPEG 2000": (dicom(coded("jpeg2000", no_jp2=True), "4.201"), RUN, 1),
    "image: DICOM in RLE that is cut": (dicom(b"\1\0\0\0\x40" + bytes(59) + b"\xd0\7" * 9, "5"), RUN, 1),
    "bundle: not there": (lambda p: shutil.rmtree(p.bundle), RUN, 1),
    "bundle: a file": (nothing, "inspect {m}", 1),
    "bundle: another folder": (nothing, "inspect {p}", 1),
    "bundle: a checkpoint": (nothing, "verify {c}", 1),
    "bundle: bundle.json is no JSON": (
        lambda p: (p.bundle / "bundle.json").write_text('{"schema": "mpmmu'),
        "inspect {b}",
        3,
    ),
    "bundle: bundle.json is a list": (lambda p: (p.bundle / "bundle.json").write_text("[]"), "inspect {b}", 3),
    "bundle: bundle.json is huge": (huge_json, "inspect {b}", 3),
    "bundle: bundle.json is missing": (lambda p: (p.bundle / "bundle.json").unlink(), "verify {b}", 3),
    "bundle: bundle.json with a key twice": (key_twice, "inspect {b}", 3),
    "bundle: of a later version": (lambda p: p.edit("schema", value="mpmmu-bundle/2"), "run {b} {m}", 1),
    "bundle: threshold changed in an editor": (threshold_by_hand, RUN, 3),
    "bundle: one bit of the weights flipped": (lambda p: flip(p.bundle / "onnx/weights.bin"), RUN, 3),
    "bundle: one bit of a graph flipped": (lambda p: flip(p.bundle / "onnx/head.onnx"), "inspect {b}", 3),
    "bundle: copied half": (lambda p: cut(p.bundle / "onnx/weights.bin"), "bench {b}", 3),
    "bundle: a graph is missing": (lambda p: (p.bundle / "onnx/head.onnx").unlink(), RUN, 3),
    "bundle: a graph is a link": (lambda p: link(p.bundle / "onnx/head.onnx"), RUN, 3),
    "bundle: bundle.json is a link": (lambda p: link(p.bundle / "bundle.json"), RUN, 3),
    "bundle: a file that is not listed": (lambda p: (p.bundle / "notes.txt").write_text("mine"), RUN, 3),
    "bundle: not verified here": (nothing, RUN + " --target onnxruntime:fp32 --require-verified", 3),
    "bundle: sealed with threshold NaN": (lambda p: p.edit("threshold", value=float("nan")), RUN, 3),
    "bundle: sealed with a target twice": (lambda p: p.edit("targets", value=["onnxruntime:fp32"] * 2), RUN, 1),
    "bundle: sealed without a report": (lambda p: p.edit("parity", "checks", remove=True), "inspect {b}", 1),
    "bundle: sealed with other classes": (lambda p: p.edit("classes", value=["malignant", "benign"]), RUN, 1),
    "bundle: sealed without a key": (lambda p: p.edit("targets", remove=True), "inspect {b}", 1),
    "bundle: sealed with a path that leads out": (
        lambda p: p.edit("files", "../m.csv", value={"bytes": 1, "sha256": ""}),
        RUN,
        1,
    ),
    "bundle: sealed with a graph of elsewhere": (lambda p: p.edit("graphs", "head", value="/tmp/evil.onnx"), RUN, 1),
    "bundle: sealed with another image size": (lambda p: p.edit("preprocessing", "size", value=64), RUN, 1),
    "bundle: sealed with other weights": (other_weights, "verify {b} --target onnxruntime:fp32", 3),
    "bundle: sealed without a golden vector": (golden_without_embedding, "verify {b}", 1),
    "checkpoint: not there": (lambda p: shutil.rmtree(p.checkpoint), EXPORT, 1),
    "checkpoint: a bundle": (nothing, "export {b} -o {p}/new.bundle", 1),
    "checkpoint: of a later version": (lambda p: p.config(schema="mpmmu-checkpoint/2"), EXPORT, 1),
    "checkpoint: no card": (lambda p: p.config(card=None), EXPORT, 1),
    "checkpoint: threshold of 1.5": (lambda p: p.config(threshold=1.5), EXPORT, 1),
    "checkpoint: unknown architecture": (bad_arch, EXPORT, 1),
    "checkpoint: image size 0": (bad_preprocessing, EXPORT, 1),
    "checkpoint: one bit of the weights flipped": (
        lambda p: flip(p.checkpoint / "ultrasound.safetensors"),
        EXPORT,
        1,
    ),
    "checkpoint: a weight that is NaN": (diverged, EXPORT, 1),
    "checkpoint: weights missing": (lambda p: (p.checkpoint / "mammography.safetensors").unlink(), EXPORT, 1),
    "checkpoint: no head": (lambda p: (p.checkpoint / "head.skops").unlink(), EXPORT, 1),
    "checkpoint: a pickled head": (pickled_head, EXPORT, 1),
    "head: a threshold other than the checkpoint's": (head(thresholded(threshold=0.3)), EXPORT, 1),
    "head: a threshold on its decision": (
        head(thresholded(threshold=0.3, response_method="decision_function")),
        EXPORT,
        1,
    ),
    "head: a threshold for class 0": (head(thresholded(threshold=0.3, pos_label=0)), EXPORT, 1),
    "head: a threshold of 1.5": (head(thresholded(threshold=1.5)), EXPORT, 1),
    "head: multinomial of an older scikit-learn": (head(multinomial), EXPORT, 1),
    "head: a weighted learner dropped after the fit": (head(weights_of_fewer), EXPORT, 1),
    "head: hard votes": (
        head(lambda x, y, _: VotingClassifier([("a", LogisticRegression())]).fit(x, y)),
        EXPORT,
        1,
    ),
    "head: powers far from zero": (
        head(lambda x, y, _: make_pipeline(PowerTransformer(), LogisticRegression()).fit(x.astype(float) + 1e4, y)),
        EXPORT,
        1,
    ),
    "head: naive Bayes of what never varies": (
        head(
            lambda x, y, _: make_pipeline(
                QuantileTransformer(n_quantiles=9, output_distribution="normal"), GaussianNB(var_smoothing=1e-14)
            ).fit(np.arange(len(x))[:, None] // 39 + 0.0 * x, y)
        ),
        EXPORT,
        1,
    ),
    "head: nearest neighbours": (head(lambda x, y, _: KNeighborsClassifier().fit(x, y)), EXPORT, 1),
    "head: stochastic gradients of a hinge": (head(lambda x, y, _: SGDClassifier().fit(x, y)), EXPORT, 1),
    "head: powers of positive numbers only": (
        head(
            lambda x, y, _: make_pipeline(PowerTransformer(method="box-cox"), LogisticRegression()).fit(
                np.abs(x) + 1, y
            )
        ),
        EXPORT,
        1,
    ),
    "argument: target without precision": (nothing, RUN + " --target onnxruntime", 2),
    "argument: unknown engine": (nothing, RUN + " --target abacus:fp32", 2),
    "argument: precision that the engine lacks": (nothing, "verify {b} --target onnxruntime:fp16", 2),
    "argument: output exists": (lambda p: (p.path / "out.csv").write_text("mine"), RUN, 1),
    "argument: output is a folder": (nothing, "run {b} {m} -o {p} --overwrite", 1),
    "argument: output's folder does not exist": (nothing, "run {b} {m} -o {p}/no/out.csv", 1),
    "argument: output is the manifest": (nothing, "run {b} {m} -o {m} --overwrite", 1),
    "argument: an unfinished run is there": (journal_of_another, RUN, 1),
    "argument: another file where a run's document belongs": (
        lambda place: (place.path / "out.csv.json").write_text("a letter"),
        RUN,
        1,
    ),
    "argument: --resume of another run": (journal_of_another, RUN + " --resume", 1),
    "argument: -o in the bundle": (nothing, "run {b} {m} -o {b}/out.csv", 1),
    "argument: bench result into a folder": (nothing, "bench {b} --json {p}", 1),
    "argument: bench result into no folder": (nothing, "bench {b} --json {p}/no/x.json", 1),
    "argument: bench after a silence of words": (nothing, "bench {b} --idle soon", 2),
    "argument: bench after a silence that is negative": (nothing, "bench {b} --idle 0,-1", 2),
    "argument: bench of batches of words": (nothing, "bench {b} --sweep all", 2),
    "argument: bench of batches of nothing": (nothing, "bench {b} --sweep 0,1", 2),
    "argument: bench report into a folder": (nothing, "bench {b} --html {p}", 1),
    "argument: compare report into no folder": (nothing, "compare {b} {c} --html {p}/no/x.html", 1),
    "report: not there": (nothing, "report {p}/no.json -o {p}/r.html", 2),
    "report: no JSON": (nothing, "report {p}/mg.png -o {p}/r.html", 2),
    "report: of a bundle": (nothing, "report {b}/bundle.json -o {p}/r.html", 2),
    "report: of an earlier version": (result('{"schema": "mpmmu-bench/1"}'), "report {p}/r.json -o {p}/r.html", 2),
    "report: a result cut short by hand": (result('{"schema": "mpmmu-bench/2"}'), "report {p}/r.json -o {p}/r.html", 2),
    "report: into a folder": (result("{}"), "report {p}/r.json -o {p}", 1),
    "argument: a baseline that is not there": (nothing, "bench {b} --baseline {p}/no.json", 2),
    "argument: a bench result as baseline": (baseline("mpmmu-bench/1"), "bench {b} --baseline {p}/x.json", 2),
    "argument: a baseline without sessions": (baseline("mpmmu-baseline/1"), "bench {b} --baseline {p}/x.json", 2),
    "argument: a baseline to keep and to judge by": (nothing, "bench {b} --save x --baseline y", 2),
    "argument: a limit and no baseline": (nothing, "bench {b} --max-slowdown 5%", 2),
    "argument: differences allowed and no baseline": (nothing, "bench {b} --allow-different", 2),
    "argument: a budget and no baseline": (nothing, "bench {b} --budget 60s", 2),
    "argument: seconds of a baseline": (nothing, "bench {b} --save {p}/x.json --seconds 9", 2),
    "argument: a result beside a baseline to keep": (nothing, "bench {b} --save {p}/x.json --json -", 2),
    "argument: a report of a baseline": (nothing, "bench {b} --save {p}/x.json --html {p}/r.html", 2),
    "argument: a budget that is no time": (nothing, "bench {b} --save {p}/x.json --budget soon", 2),
    "argument: a count without a name": (nothing, "compare {b} {c} --allow-counts =5%", 2),
    "argument: a bundle compared with itself": (nothing, "compare {b}", 2),
    "argument: export over a foreign folder": (foreign_output, EXPORT + " --overwrite", 1),
    "argument: export over a bundle": (lambda p: p.bundle.rename(p.path / "new.bundle"), EXPORT, 1),
    "argument: --parity without a checkpoint": (nothing, "export --parity {m}", 2),
    "argument: calibrated on images and on phantoms": (nothing, EXPORT + " --calibrate {m} --calibrate-phantoms 9", 2),
    "argument: calibrated on the test part": (
        lambda p: p.manifest("case_id,mammography,ultrasound,split\nok,mg.png,us.png,test\n"),
        EXPORT + " --target openvino:int8 --calibrate {m}",
        2,
    ),
    "argument: rounding allowed beside a target": (nothing, RUN + " --target openvino:fp32 --allow-rounding", 2),
    "argument: a baseline of a target that is chosen": (nothing, "bench {b} --save {p}/x.json --target auto", 2),
    "argument: --against without a manifest": (
        nothing,
        "verify {b} --target onnxruntime:fp32 --against openvino:fp32",
        2,
    ),
    "argument: --against the target itself": (
        nothing,
        "verify {b} {m} --target onnxruntime:fp32 --against onnxruntime:fp32",
        2,
    ),
    "argument: --against a target that was not proven": (
        nothing,
        "verify {b} {m} --target onnxruntime:fp32 --against openvino:bf16",
        2,
    ),
    "argument: verify on cases that can't be read": (
        lambda p: p.manifest(HEADER + "bad,no.png,us.png,1\n"),
        "verify {b} {m}",
        1,
    ),
    "argument: train on nothing": (nothing, "train -o {p}/new", 2),
}


@dataclass(frozen=True)
class Seen:
    command: str
    exit_code: int
    stderr: str
    stdout: str

    @property
    def said(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith(("error:", "hint:"))]

    def row(self, name: str) -> str:
        cells = [name, f"`mpmmu-rt {self.command}`", str(self.exit_code), "<br>".join(self.said).replace("|", "\\|")]
        return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module")
def seen(bundle_folder: Path, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    return {
        name: observe(make, command, bundle_folder, checkpoint_folder, tmp_path_factory.mktemp("bad"))
        for name, (make, command, _) in CASES.items()
    }


def observe(make: Maker, command: str, bundle: Path, checkpoint: Path, folder: Path) -> Seen:
    place = Place(folder)
    shutil.copytree(bundle, place.bundle)
    shutil.copytree(checkpoint, place.checkpoint)
    picture().save(folder / "mg.png")
    picture().transpose(Image.Transpose.ROTATE_90).save(folder / "us.png")
    place.manifest(HEADER + "ok,mg.png,us.png,1\n")
    make(place)
    filled = command.format(p=folder, b=place.bundle, c=place.checkpoint, m=folder / "m.csv")
    result = CliRunner().invoke(app, filled.split())

    def shown(text: str) -> str:
        # Sizes of exported files change with the versions of the exporter, and are not what is looked at.
        text = re.sub(r"line \d+ column \d+ \(char \d+\)", "line N", text.replace(str(folder), "…"))
        return re.sub(r"\d{3,} bytes", "N bytes", text)

    return Seen(shown(filled), result.exit_code, shown(result.stderr), shown(result.stdout))


def rows_of_table() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.is_file() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, seen: dict[str, Seen]) -> dict[str, str]:
    if request.config.pluginmanager.has_plugin(REGENERATE):
        lines = [
            "# What a user sees of broken input",
            "",
            "Written by `python tests/test_bad_input.py`, compared by `tests/test_bad_input.py`: change a message and",
            "this table together. `…` is the folder of the case; `b` a bundle, `c` a checkpoint, `m.csv` a manifest.",
            "",
            "| what is broken | command | exit | what the user sees |",
            "|---|---|---|---|",
            *(found.row(name) for name, found in seen.items()),
        ]
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows_of_table()


@pytest.mark.parametrize("name", CASES)
def test_what_a_user_sees(name: str, seen: dict[str, Seen], table: dict[str, str]) -> None:
    found = seen[name]
    assert found.exit_code == CASES[name][2], found.stderr
    assert [line.partition(":")[0] for line in found.said] == ["error", "hint"]
    for word in ("Traceback", "internal error", "None", "Error("):
        assert word not in "\n".join(found.said)
    assert found.row(name) == table.get(name), "if the new message is better: python tests/test_bad_input.py"


def test_the_table_holds_these_cases_and_no_other(table: dict[str, str]) -> None:
    assert list(table) == ["what is broken", *CASES]
    assert len(CASES) >= 30


def test_no_refused_bundle_left_a_prediction(seen: dict[str, Seen]) -> None:
    for name, found in seen.items():
        if name.startswith("bundle:") and " verify" not in f" {found.command}":
            assert found.stdout == "", name


class Regenerate:
    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(object(), REGENERATE)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"], plugins=[Regenerate()]))
