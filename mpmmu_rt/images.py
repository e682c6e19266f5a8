"""From an image file to the pixels that the model sees: one implementation for training and inference.

    file ─ read_grey ─▶ grey uint8 [H, W] ─ preprocess ─▶ pixels uint8 [1, S, S]

PNG, JPEG, TIFF, BMP and DICOM are told apart by their content, never by their name, except that a
DICOM file without its preamble needs the suffix .dcm or .dicom. What grey means:

- 8-bit grey stays as it is; colour becomes its ITU-R 601 luma (of 16-bit colour, the upper 8 bits' luma);
  what is transparent is black.
- More than 8 bits without a window are mapped linearly from the image's own minimum..maximum to 0..255:
  detectors store 10 to 14 bits in 16, and by the range of the container such an image would be black.
- DICOM goes the standard's way: modality LUT or rescale, then VOI LUT or the first window, whose output
  range becomes 0..255, then MONOCHROME1 is inverted. Padding is black and never takes part in a range.

Anything that can't be shown to be right is refused with `ImageError`; nothing is repaired or guessed.
Deterministic, and safe to call from several threads: no state of Pillow, pydicom or Python is changed.
"""

from __future__ import annotations

import io
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np

from .dicom import read_dicom
from .errors import ImageError, PixelsError, UsageError
from .grey import check_content, check_sides, choose_frame, stretch
from .spec import Array
from .streams import jpeg, jpeg_header, png

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_FILE_BYTES = 512 * 2**20
MAX_SIZE = 4096

Fit = Literal["pad", "stretch"]


@dataclass(frozen=True)
class Preprocessing:
    """How grey becomes pixels. Part of the model: a bundle stores what its encoders were trained with.

    `size` is S, the side of the square that the model sees; `fit` keeps the aspect ratio and pads with
    black, centred ("pad"), or fills the square ("stretch"). Raises `UsageError`.
    """

    size: int = 224
    fit: Fit = "pad"

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`. Raises `UsageError`: a key more or less may mean other pixels."""
        if not isinstance(entry, Mapping) or set(entry) != {"size", "fit"}:
            raise UsageError(
                f"preprocessing is {entry!r}, expected exactly the keys size and fit",
                hint="take it from the bundle or checkpoint as it was written",
            )
        return cls(entry["size"], entry["fit"])


def read_pixels(path: Path, preprocessing: Preprocessing, *, frame: int | None = None) -> Array:
    """File to pixels: uint8 [1, S, S], C-contiguous, owned by the caller. Raises like `read_grey`."""
    return preprocess(read_grey(path, frame=frame), preprocessing)


def preprocess(grey: Array, preprocessing: Preprocessing) -> Array:
    """Fit grey, uint8 [H, W], into the model's square: pixels, uint8 [1, S, S], C-contiguous.

    Bilinear; where it shrinks, Pillow widens the filter so that nothing aliases. Raises `PixelsError`.
    """
    from PIL import Image

    if grey.dtype != np.uint8 or grey.ndim != 2 or 0 in grey.shape:
        raise PixelsError(
            f"`grey` is {grey.dtype}{list(grey.shape)}, expected uint8[H, W] with H, W ≥ 1",
            hint="read images with `mpmmu_rt.images.read_grey`",
        )
    size, (height, width) = preprocessing.size, grey.shape
    if preprocessing.fit == "pad":
        longest = max(height, width)
        fitted = [max(1, round(side * size / longest)) for side in (height, width)]
    else:
        fitted = [size, size]
    top, left = ((size - side) // 2 for side in fitted)
    resized = Image.fromarray(grey).resize((fitted[1], fitted[0]), Image.Resampling.BILINEAR)
    pixels = np.zeros((1, size, size), np.uint8)
    pixels[0, top : top + fitted[0], left : left + fitted[1]] = np.asarray(resized)
    return pixels


def read_grey(path: Path, *, frame: int | None = None) -> Array:
    """Decode one image file to grey: uint8 [H, W] in display range (0 black), owned by the caller.

    A file with several frames or pages needs `frame`, counted from 0. Raises `ImageError`, for DICOM
    without pydicom `MissingPackage`. This is the one border at which errors get their path, and at
    which those of Pillow and pydicom become ours; inside, a message begins with its verb.
    """
    try:
        _check_file(path)
        with path.open("rb") as stream:
            grey = _reader(stream, path.suffix)(stream, frame)
        check_content(grey)
        return grey
    except ImageError as error:
        raise ImageError(f"{path} {error}", hint=error.hint) from error
    except _foreign_errors() as error:
        if isinstance(error, OSError) and error.strerror:
            reason, hint = error.strerror, "check the path and its permissions"
        else:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            hint = "the file is damaged, truncated or not conformant: export it again from its source"
        raise ImageError(f"{path} can't be read ({reason}), expected a whole image file", hint=hint) from error


def _foreign_errors() -> tuple[type[Exception], ...]:
    """What Pillow and pydicom are seen to raise on damaged files. `Warning` is for `python -W error`."""
    from PIL.Image import DecompressionBombError

    dicom_errors = sys.modules.get("pydicom.errors")  # not imported where no DICOM file was ever read
    # fmt: off
    return (
        OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError,
        RuntimeError, struct.error, zlib.error, Warning, DecompressionBombError,
        *((dicom_errors.InvalidDicomError, dicom_errors.BytesLengthException) if dicom_errors else ()),
    )
    # fmt: on


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ImageError(f"is {kind}, expected an image file", hint="name the image file itself")
    if status.st_size == 0:
        raise ImageError("is empty, expected an image file", hint="copy or export it again")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(f"has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}", hint="export a single image")


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "Png",
    b"\xff\xd8\xff": "Jpeg",
    b"II*\0": "Tiff",
    b"MM\0*": "Tiff",
    b"II+\0": "Tiff",  # BigTIFF
    b"MM\0+": "Tiff",
    b"BM": "Bmp",
}

_Reader = Callable[[BinaryIO, int | None], Array]


def _reader(stream: BinaryIO, suffix: str) -> _Reader:
    """What reads this content. DICOM comes first: its preamble may itself look like a TIFF."""
    head = stream.read(132)
    stream.seek(0)
    if head[128:] == b"DICM":
        return read_dicom
    for signature, plugin in _SIGNATURES.items():
        if head.startswith(signature):
            return lambda stream, frame: _read_raster(plugin, stream, frame)
    if suffix.lower() in (".dcm", ".dicom"):
        return read_dicom
    raise ImageError(
        f"begins with {head[:8]!r}, expected a PNG, JPEG, TIFF, BMP or DICOM file",
        hint="convert it without loss to PNG, or export DICOM",
    )


def _read_raster(plugin: str, stream: BinaryIO, frame: int | None) -> Array:
    from PIL import BmpImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
    from PIL import Image as images

    data = stream.read() if plugin in ("Png", "Jpeg") else b""
    coded = jpeg_header.parse_file(data) if plugin == "Jpeg" else None
    if data:
        stream = io.BytesIO(png.prove(data) if plugin == "Png" else data)
    # The plugin's class and not Image.open: no other decoder can ever run, and Image.open warns above
    # 89 million pixels, which only global state could silence; `check_sides` is the bound here.
    plugins: dict[str, Callable[[BinaryIO], ImageFile]] = {
        "Png": PngImagePlugin.PngImageFile,
        "Jpeg": JpegImagePlugin.JpegImageFile,
        "Tiff": TiffImagePlugin.TiffImageFile,
        "Bmp": BmpImagePlugin.BmpImageFile,
    }
    with plugins[plugin](stream) as image:
        image.seek(choose_frame(getattr(image, "n_frames", 1), frame))
        check_sides(*image.size)
        deep_colour = _is_deep_colour(image)
        white_is_zero = False
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tags = image.tag_v2
            white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            # Given its memory (unrotated), the plugin skips the same warning as in Image.open.
            extent = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
            image.im = images.new(image.mode, extent).im
        if coded is None:
            image.load()
            decoded: Image = image
        else:
            decoded = _jpeg_image(data, coded)
            decoded.info = image.info  # its orientation
        grey = _raster_grey(ImageOps.exif_transpose(decoded), white_is_zero)
    if deep_colour:
        _check_range(grey)
    return grey


def _jpeg_image(data: bytes, coded: jpeg_header.Jpeg) -> Image:
    """What Pillow would give of a JPEG file that is whole: L, RGB or CMYK, of Adobe's inverted values."""
    from PIL import Image as images

    samples = jpeg.decode(data, coded, coded.stream.colour)
    if samples.ndim == 3 and samples.shape[-1] == 4:
        return images.fromarray(255 - samples, "CMYK")
    return images.fromarray(samples)


def _is_deep_colour(image: ImageFile) -> bool:
    """16 bits per colour or alpha channel, of which Pillow keeps the upper 8."""
    layout = str(image.tile)  # in BMP, ";16" is 16 bits for all three channels
    return ";16" in layout and not image.mode.startswith("I") and image.format != "BMP"


def _check_range(grey: Array) -> None:
    """Refuse deep colour that uses the lower half of its range only: of 12-bit data next to nothing is left."""
    if grey.max() < 128:
        raise ImageError(
            f"has 16 bits per colour channel and a largest grey value of {grey.max()} in the upper 8, expected 128 "
            "or more: fine detail would be lost",
            hint="save it as 16-bit grey, which is read in full, or as 8-bit colour",
        )


def _raster_grey(image: Image, white_is_zero: bool) -> Array:
    """A decoded image of any supported mode to uint8 [H, W]."""
    from PIL import Image as images

    if image.mode.startswith("I") or image.mode == "F":
        # Pillow inverts WhiteIsZero up to 8 bits but not beyond, where the breast would be a negative.
        values = np.asarray(image).astype(np.float64)
        transparent = image.info.get("transparency")  # of a 16-bit PNG: the one value that is see-through
        valid = None if transparent is None else values != transparent
        return stretch(-values if white_is_zero else values, valid)
    if image.has_transparency_data:
        black = images.new("RGBA", image.size, (0, 0, 0, 255))
        image = images.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ImageError(
            f"has the colour mode {image.mode}, expected grey, RGB, palette or CMYK",
            hint="save it as 8-bit grey or RGB",
        )
    if image.mode in ("P", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))
