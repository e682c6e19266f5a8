"""From an image file to the pixels that the model sees: one implementation for training and inference.

    file ─ read_grey ─▶ grey uint8 [H, W] ─ preprocess ─▶ pixels uint8 [1, S, S]

PNG, JPEG, TIFF, BMP and DICOM are told apart by their content, never by their name, except that a
DICOM file without its preamble needs the suffix .dcm or .dicom. What grey means:

- 8-bit grey stays as it is, in DICOM too where no window, table or rescale maps it; colour becomes its ITU-R 601
  luma (of 16-bit colour, that of its values rounded to 8 bits); what is transparent is black.
- More than 8 bits without a window are mapped linearly from the image's own minimum..maximum to 0..255:
  detectors store 10 to 14 bits in 16, and by the range of the container such an image would be black.
- DICOM goes the standard's way: modality LUT or rescale, then VOI LUT or the first window, whose output
  range becomes 0..255, then MONOCHROME1 is inverted. Padding is black and never takes part in a range.

Pixels that are not square, by whichever header says so, become so where the aspect ratio is kept. A DICOM header that
says that its image is not what was asked for is a refusal; what it says against an image that can be read is a warning
of `GreyImage`. No other format tells a mammogram from an ultrasound image.

Anything that can't be shown to be right is refused with `ImageError`; nothing is repaired or guessed. So is what has
one grey value only, as it is read or as the model sees it.
Deterministic, and safe to call from several threads: no state of Pillow, pydicom or Python is changed.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np

from .dicom import read_dicom
from .errors import ImageError, ManifestError, PixelsError, UsageError
from .files import stamp
from .grey import GreyImage, check_content, printable
from .raster import read_raster
from .spec import Array, Modality, StrPath
from .streams.stream import AGAIN
from .subject import Subject, require_one
from .tiff import read_tiff

MAX_FILE_BYTES = 512 * 2**20
MAX_SIZE = 4096

Fit = Literal["pad", "stretch"]
Aspect = Literal["physical", "stored"]


@dataclass(frozen=True)
class Preprocessing:
    """How grey becomes pixels. Part of the model: a bundle stores what its encoders were trained with.

    `size` is S, the side of the square that the model sees; `fit` keeps the aspect ratio and pads with
    black, centred ("pad"), or fills the square ("stretch"). `aspect` is the ratio that "pad" keeps: that of what is
    shown, where the header says that pixels are not square ("physical"), or that of rows and columns ("stored"), as
    for every bundle that was made before there was a choice. Raises `UsageError`.
    """

    size: int = 224
    fit: Fit = "pad"
    aspect: Aspect = "physical"

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise UsageError(
                f"preprocessing has the size {self.size!r}, expected an integer from 1 to {MAX_SIZE}",
                hint="224 is what the reference model sees",
            )
        if self.fit not in get_args(Fit):
            raise UsageError(
                f"preprocessing has the fit {self.fit!r}, expected one of {', '.join(get_args(Fit))}",
                hint="`pad` keeps the aspect ratio",
            )
        if self.aspect not in get_args(Aspect):
            raise UsageError(
                f"preprocessing has the aspect {self.aspect!r}, expected one of {', '.join(get_args(Aspect))}",
                hint="`physical` is right for every new model",
            )

    def to_json(self) -> dict[str, Any]:
        entry = asdict(self)
        if self.aspect == "stored":
            del entry["aspect"]  # what an earlier version wrote is written again, to the byte
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`. Raises `UsageError`: a key more or less may mean other pixels."""
        if not isinstance(entry, Mapping) or set(entry) - {"aspect"} != {"size", "fit"}:
            raise UsageError(
                f"preprocessing is {entry!r}, expected exactly the keys size and fit, and aspect if new",
                hint="take it from the bundle or checkpoint as it was written",
            )
        return cls(entry["size"], entry["fit"], entry.get("aspect", "stored"))


class Read(NamedTuple):
    """pixels: uint8 [1, S, S], C-contiguous, owned by the caller. warnings, subject: of the header, see `GreyImage`."""

    pixels: Array
    warnings: tuple[str, ...]
    subject: Subject


def read_pixels(
    path: StrPath, preprocessing: Preprocessing, *, modality: Modality | None = None, frame: int | None = None
) -> Array:
    """File to pixels: uint8 [1, S, S], C-contiguous, owned by the caller. Raises like `read_image`."""
    return read_with_warnings(path, preprocessing, modality=modality, frame=frame).pixels


def read_with_warnings(
    path: StrPath,
    preprocessing: Preprocessing,
    *,
    modality: Modality | None = None,
    frame: int | None = None,
    digest: Callable[[str], object] | None = None,
) -> Read:
    """`read_pixels`, and what the file's header says of it that is no reason to refuse it.

    digest: is given the SHA-256 of the bytes that were decoded, also where they are refused; "" where they changed
    meanwhile, which is an `ImageError`.
    """
    image = _read(Path(path), modality, frame, digest)
    with named(Path(path)):
        return pixels_of(image, preprocessing)


def decode_with_warnings(
    data: bytes | memoryview,
    preprocessing: Preprocessing,
    *,
    name: str,
    modality: Modality | None = None,
    frame: int | None = None,
) -> Read:
    """`read_with_warnings` of a file that was sent and lies in memory; `name` is what errors call it. A DICOM file
    without its preamble can't be told by its name here, and is refused."""
    with named(name):
        _check_bytes(len(data))
        return pixels_of(_decoded(io.BytesIO(data), "", frame, modality), preprocessing)


def pixels_of(image: GreyImage, preprocessing: Preprocessing) -> Read:
    """Raises `ImageError` where the model would see one grey value and its padding."""
    warnings = image.warnings
    if image.pixel_aspect != 1.0 and preprocessing.fit == "pad" and preprocessing.aspect == "stored":
        warnings += (
            f"its pixels are not square ({image.pixel_aspect:.3g}:1), and this model takes them as if they were",
        )
    pixels = preprocess(image.grey, preprocessing, pixel_aspect=image.pixel_aspect)
    top, left, height, width = fitted(image.grey.shape, preprocessing, image.pixel_aspect)
    seen = pixels[0, top : top + height, left : left + width]
    if seen.min() == seen.max():
        raise ImageError(
            f"is blank to the model: grey value {seen.min()} everywhere at {width} x {height} pixels, "
            "expected an image with content",
            hint="check the export: what there is in it is too small or too faint to be seen at that size",
        )
    return Read(pixels, warnings, image.subject)


def require_two(pixels: Mapping[Modality, Array]) -> None:
    """Raise `ImageError` where the images of a case are one and the same, whatever their files are called.

    pixels: uint8 of any one shape, by modality.
    """
    if np.array_equal(pixels["mammography"], pixels["ultrasound"]):
        raise same_image()


def require_two_in(
    manifest: Path, row: int, pixels: Mapping[Modality, Array], subjects: Mapping[Modality, Subject]
) -> tuple[str, ...]:
    """`require_two` and `subject.require_one` of a row of a manifest, counted from 0, and what the latter says; raises
    `ManifestError`."""
    try:
        require_two(pixels)
        return require_one(subjects)
    except ImageError as error:
        raise ManifestError(f"{manifest}, row {row + 1}: {error}", hint=error.hint) from error


def same_image() -> ImageError:
    return ImageError(
        "the mammogram and the ultrasound image are the same, pixel by pixel, expected an image of each",
        hint="name the patient's two images",
    )


def preprocess(grey: Array, preprocessing: Preprocessing, *, pixel_aspect: float = 1.0) -> Array:
    """Fit grey, uint8 [H, W], into the model's square: pixels, uint8 [1, S, S], C-contiguous.

    Bilinear; where it shrinks, Pillow widens the filter so that nothing aliases. `pixel_aspect` is the height of a
    pixel over its width. Raises `PixelsError`.
    """
    from PIL import Image

    if grey.dtype != np.uint8 or grey.ndim != 2 or 0 in grey.shape:
        raise PixelsError(
            f"`grey` is {grey.dtype}{list(grey.shape)}, expected uint8[H, W] with H, W ≥ 1",
            hint="read images with `mpmmu_rt.images.read_grey`",
        )
    size = preprocessing.size
    top, left, height, width = fitted(grey.shape, preprocessing, pixel_aspect)
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.zeros((1, size, size), np.uint8)
    pixels[0, top : top + height, left : left + width] = np.asarray(resized)
    return pixels


def fitted(
    shape: tuple[int, ...], preprocessing: Preprocessing, pixel_aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """Top, left, height and width of an image of `shape`, H and W, in the model's square."""
    size, (height, width) = preprocessing.size, shape
    sides = [size, size]
    if preprocessing.fit == "pad":
        shown = height * (pixel_aspect if preprocessing.aspect == "physical" else 1.0), width
        sides = [max(1, round(side * size / max(shown))) for side in shown]
    top, left = ((size - side) // 2 for side in sides)
    return top, left, sides[0], sides[1]


def read_grey(path: StrPath, *, frame: int | None = None) -> Array:
    """The grey of `read_image`: uint8 [H, W], owned by the caller."""
    return read_image(path, frame=frame).grey


def read_image(path: StrPath, *, modality: Modality | None = None, frame: int | None = None) -> GreyImage:
    """Decode one image file to grey: uint8 [H, W] in display range (0 black), owned by the caller.

    `modality` is what it is expected to show, which a DICOM header tells and no other: None if either will do. A file
    with several frames or pages needs `frame`, counted from 0. Raises `ImageError`, for DICOM without pydicom
    `MissingPackage`.
    """
    return _read(Path(path), modality, frame)


def _read(
    path: Path, modality: Modality | None, frame: int | None, digest: Callable[[str], object] | None = None
) -> GreyImage:
    with named(path):
        _check_file(path)
        with path.open("rb") as stream, _unchanged(stream, digest):
            return _decoded(stream, path.suffix, frame, modality)


@contextmanager
def _unchanged(stream: BinaryIO, digest: Callable[[str], object] | None) -> Iterator[None]:
    """Give the SHA-256 of an open file to `digest`, if it is asked for, once it has been read in the block. Raises
    `ImageError` where it was written or replaced meanwhile: an image without checksums would be half of each."""
    before, found = stamp(os.fstat(stream.fileno())), ""
    if digest is not None:
        found = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        stream.seek(0)
    try:
        yield
    finally:
        same = stamp(os.fstat(stream.fileno())) == before
        if digest is not None:
            digest(found if same else "")
        if not same:
            raise ImageError(
                "changed while it was read, expected a file that stays as it is", hint="run it again once it is whole"
            )


def _decoded(stream: BinaryIO, suffix: str, frame: int | None, modality: Modality | None) -> GreyImage:
    image = _reader(stream, suffix)(stream, frame, modality)
    check_content(image.grey)
    return image


@contextmanager
def named(name: object) -> Iterator[None]:
    """The one border at which errors get their path, and at which those of Pillow and pydicom become ours; inside, a
    message begins with its verb."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} {printable(str(error))}", hint=error.hint) from error
    except MemoryError as error:
        raise ImageError(
            f"{name} does not fit into this machine's memory, expected an image that does",
            hint="export it with fewer pixels, or read it on a machine with more",
        ) from error
    except _foreign_errors() as error:
        reason, hint = _reason(error)
        raise ImageError(f"{name} can't be read ({reason}), expected a whole image file", hint=hint) from error


def _reason(error: Exception) -> tuple[str, str]:
    """In our words, and what to do; the other library's own words are the error's cause (`--debug`)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "check the path and its permissions"
    words = str(error).lower()
    if not isinstance(error, TypeError) and any(word in words for word in _UNSUPPORTED):
        return "a kind of its format that is not supported", "save it as 8-bit or 16-bit grey PNG, without loss"
    if "\0" in words or "null" in words:
        return "no such name is possible", "check the path and its permissions"
    if "decompressed data too large" in words or "too much memory" in words:  # Pillow's limits
        return "more than 1 MB of text or of a colour profile beside its pixels", "save it without these"
    early = isinstance(error, EOFError) or "truncated" in words
    return (
        "it ends before its image does" if early else "its content does not follow its format",
        AGAIN,
    )


_UNSUPPORTED = ("unsupported", "not supported", "cannot handle", "not implemented", "unknown", "unrecognized")


def _foreign_errors() -> tuple[type[Exception], ...]:
    """What Pillow and pydicom are seen to raise on damaged files. `Warning` is for `python -W error`."""
    from PIL.Image import DecompressionBombError

    dicom_errors = sys.modules.get("pydicom.errors")  # not imported where no DICOM file was ever read
    # fmt: off
    return (
        OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError,
        AssertionError, RuntimeError, struct.error, zlib.error, Warning, DecompressionBombError,
        *((dicom_errors.InvalidDicomError, dicom_errors.BytesLengthException) if dicom_errors else ()),
    )
    # fmt: on


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ImageError(f"is {kind}, expected an image file", hint="name the image file itself")
    _check_bytes(status.st_size)


def _check_bytes(count: int) -> None:
    if count == 0:
        raise ImageError("is empty, expected an image file", hint="copy or export it again")
    if count > MAX_FILE_BYTES:
        raise ImageError(f"has {count} bytes, expected at most {MAX_FILE_BYTES}", hint="export a single image")


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "Png",
    b"\xff\xd8\xff": "Jpeg",
    b"II*\0": "Tiff",
    b"MM\0*": "Tiff",
    b"II+\0": "Tiff",  # BigTIFF
    b"MM\0+": "Tiff",
    b"BM": "Bmp",
}

_Reader = Callable[[BinaryIO, int | None, Modality | None], GreyImage]


def _reader(stream: BinaryIO, suffix: str) -> _Reader:
    """What reads this content. DICOM comes first: its preamble may itself look like a TIFF."""
    head = stream.read(132)
    stream.seek(0)
    if head[128:] == b"DICM":
        return read_dicom
    for signature, plugin in _SIGNATURES.items():
        if head.startswith(signature):
            if plugin == "Tiff":
                return lambda stream, frame, _: read_tiff(stream, frame)
            return lambda stream, frame, _: read_raster(plugin, stream, frame)
    if suffix.lower() in (".dcm", ".dicom"):
        return read_dicom
    raise ImageError(
        f"begins with {head[:8]!r}, expected a PNG, JPEG, TIFF, BMP or DICOM file",
        hint="convert it without loss to PNG, or export DICOM",
    )
