"""A DICOM file around coded streams, and what is asked of a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import ImageError
from mpmmu_rt.images import read_grey
from mpmmu_rt.spec import Array

Wrap = Callable[..., Path]
Refused = Callable[..., ImageError]


@pytest.fixture
def wrap(tmp_path: Path) -> Wrap:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")
    from pydicom.encaps import encapsulate

    def wrap(streams: bytes | list[bytes], like: Array, syntax: str, raw: bytes | None = None, **elements: Any) -> Path:
        """`like` gives size, bits and samples; `raw` is the pixel data itself, items and all."""
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.{syntax}"
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        ds.Modality = "MG"
        ds.Rows, ds.Columns = like.shape[:2]
        ds.SamplesPerPixel = 3 if like.ndim == 3 else 1
        ds.PhotometricInterpretation = "RGB" if like.ndim == 3 else "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = like.itemsize * 8
        ds.PixelRepresentation = int(like.dtype.kind == "i")
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        ds.HighBit = ds.BitsStored - 1
        ds.PixelData = encapsulate([streams] if isinstance(streams, bytes) else streams) if raw is None else raw
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
        ds.save_as(path, enforce_file_format=True)
        return path

    return wrap


@pytest.fixture
def refused() -> Refused:
    def refused(path: Path, message: str, hint: str = ".", **options: Any) -> ImageError:
        with pytest.raises(ImageError, match=message) as caught:
            read_grey(path, **options)
        assert str(caught.value).startswith(f"{path} ")
        assert "\n" not in str(caught.value) + caught.value.hint
        assert re.search(hint, caught.value.hint)
        return caught.value

    return refused


@pytest.fixture
def picture() -> Array:
    """uint8 [48, 70]: a disc on a slope, with noise, so that every block is coded."""
    y, x = np.mgrid[:48, :70]
    noise = np.random.default_rng(3).integers(-12, 13, x.shape)
    return np.asarray((40 + x + noise + 80 * ((x - 25) ** 2 + (y - 20) ** 2 < 150)).clip(0, 255), np.uint8)


@pytest.fixture
def colours(picture: Array) -> Array:
    """uint8 [48, 70, 3]."""
    return np.stack([picture, picture[::-1], picture[:, ::-1]], axis=-1)
