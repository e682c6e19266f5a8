"""PNG, JPEG and BMP to grey, decoded by Pillow. See `images` for what grey means."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .errors import ImageError
from .geometry import Stated, pixel_aspect
from .grey import GreyImage, check_depth, check_sides, check_spread, choose_frame, stretch
from .spec import Array
from .streams import bmp, jpeg, jpeg_header, png
from .streams.stream import AGAIN, damaged, unsupported

if TYPE_CHECKING:
    from PIL.Image import Exif, Image
    from PIL.ImageFile import ImageFile

_BIT_DEPTH = 24  # where a PNG file has it
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION = 0x0112, 0x011A, 0x011B  # of Exif


def read_raster(plugin: str, stream: BinaryIO, frame: int | None) -> GreyImage:
    """One frame of a PNG, JPEG or BMP ("Png", "Jpeg", "Bmp"). Raises `ImageError` and what Pillow raises."""
    from PIL import BmpImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin

    data = stream.read() if plugin in ("Png", "Jpeg") else b""
    coded = jpeg_header.parse_file(data) if plugin == "Jpeg" else None
    if data:
        stream = io.BytesIO(png.prove(data) if plugin == "Png" else data)
    # The plugin's class and not Image.open: no other decoder can ever run, and Image.open warns above
    # 89 million pixels, which only global state could silence; `check_sides` is the bound here.
    plugins: dict[str, Callable[[BinaryIO], ImageFile]] = {
        "Png": PngImagePlugin.PngImageFile,
        "Jpeg": JpegImagePlugin.JpegImageFile,
        "Bmp": BmpImagePlugin.BmpImageFile,
    }
    with plugins[plugin](stream) as image:
        image.seek(choose_frame(getattr(image, "n_frames", 1), frame))
        check_sides(*image.size)
        layout = str(image.tile)  # in BMP, ";16" is 16 bits for all three channels
        deep_colour = ";16" in layout and not image.mode.startswith("I") and plugin != "Bmp"
        entries = 0
        if plugin == "Bmp":
            entries = bmp.prove(stream, image.height)
        if plugin == "Png":
            _scale_transparency(image, data, deep_colour)
            entries = len(_chunks(data, b"PLTE")[0]) // 3 if image.mode == "P" else 0
            if len(_chunks(data, b"eXIf")) > 1:  # the last counts for Pillow, the first for others
                damaged("is a PNG file with a chunk 'eXIf' twice", "it once: it says how the picture is turned")
        aspect = _aspect(image)
        decoded: Image = image
        if coded is None:
            image.load()
            if entries:
                _require_entries(image, entries)
            if deep_colour:
                stream.seek(0)
                decoded = _rounded(image, PngImagePlugin.PngImageFile(stream))
        else:
            decoded = _jpeg_image(data, coded)
            decoded.info = image.info  # its orientation
        ImageOps.exif_transpose(decoded, in_place=True)  # without the copy of what is upright already
        grey = _raster_grey(decoded)
    if deep_colour:
        check_depth(grey)
    return GreyImage(grey, aspect)


def _require_entries(image: Image, entries: int) -> None:
    """Refuse pixels beyond a palette of so many colours: Pillow makes them black, or grey."""
    top = int(image.getextrema()[1]) >> (7 if image.mode == "1" else 0)  # type: ignore[arg-type]
    if top >= entries:
        raise ImageError(f"has pixels of the colour {top}, expected less than {entries}, by its palette", hint=AGAIN)


def _rounded(image: ImageFile, again: ImageFile) -> Image:
    """16-bit colours rounded to 8 bits, as those of TIFF and DICOM are: Pillow leaves their lower bytes out, and reads
    these alone where it takes them for the upper ones.

    image: the picture as Pillow reads it, loaded. again: the same file, not loaded yet.
    """
    from PIL import Image as images

    if getattr(image, "n_frames", 1) > 1:
        unsupported(
            "has 16 bits per colour channel and several frames",
            "one",
            "save the one that is meant as a file of its own",
        )
    codec, box, at, layout = again.tile[0]
    swapped = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}[str(layout)]
    again.tile = [(codec, box, at, swapped)]  # type: ignore[list-item]
    low = np.asarray(again)
    if swapped == "RGBA":  # both bytes of both channels
        low = low[..., [1, 1, 1, 3]]
    wide = np.asarray(image).astype(np.uint32)
    wide <<= 8
    wide += low
    wide += 128
    wide //= 257  # rint(wide / 257), of which nothing is half
    found = images.fromarray(wide.astype(np.uint8))
    found.info = image.info  # its orientation
    return found


def _jpeg_image(data: bytes, coded: jpeg_header.Jpeg) -> Image:
    """What Pillow would give of a JPEG file that is whole: L, RGB or CMYK, of Adobe's inverted values."""
    from PIL import Image as images

    if coded.stream.colour == "CMYK" and coded.adobe is None:  # some readers invert it all the same, others don't
        unsupported(
            "is a JPEG file of CMYK that doesn't say whether its values are inverted",
            "Adobe's marker",
            "save it as PNG",
        )
    samples = jpeg.decode(data, coded, coded.stream.colour)
    if samples.ndim == 3 and samples.shape[-1] == 4:
        return images.fromarray(255 - samples, "CMYK")
    return images.fromarray(samples)


def _scale_transparency(image: ImageFile, data: bytes, deep_colour: bool) -> None:
    """Make tRNS comparable to the samples that Pillow gives: it scales these to 8 bits, and leaves tRNS as stored.

    Bits of tRNS beyond the depth of the samples are to be ignored (PNG 11.3.2.1).
    """
    if image.mode == "P" or "transparency" not in image.info:
        return
    stated = _transparent(data)
    if len(stated) == 3:
        if deep_colour:
            raise ImageError(
                "has 16 bits per colour channel and one transparent colour, expected an alpha channel or none",
                hint="save it with an alpha channel, or as 8-bit grey with its transparent parts black",
            )
        image.info["transparency"] = tuple(value & 0xFF for value in stated)
    elif not image.mode.startswith("I"):
        top = 2 ** data[_BIT_DEPTH] - 1
        image.info["transparency"] = (stated[0] & top) * 255 // top


def _transparent(data: bytes) -> tuple[int, ...]:
    """The grey value or the colour of the chunk tRNS of a PNG without a palette."""
    body = _chunks(data, b"tRNS")[0]
    return struct.unpack(f">{len(body) // 2}H", body)


def _chunks(data: bytes, kind: bytes) -> list[bytes]:
    """The body of each chunk of its kind in a PNG that is proven to be whole."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == kind:
            found.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    return found


def _aspect(image: ImageFile) -> float:
    """The height of a pixel over its width as it is shown: JFIF density, pHYs, Exif and BMP resolutions."""
    exif = image.getexif()
    aspect = pixel_aspect(_stated(image, exif))
    return 1 / aspect if exif.get(_ORIENTATION, 1) in (5, 6, 7, 8) else aspect


def _stated(image: ImageFile, exif: Exif) -> Iterator[Stated]:
    """Densities: pixels per length, so that the height of a pixel goes with the horizontal one."""
    for key, name in (("jfif_density", "JFIF density"), ("aspect", "pHYs"), ("dpi", "resolution")):
        if key in image.info and not (key == "dpi" and "jfif_density" in image.info):
            yield name, float(image.info[key][0]), float(image.info[key][1])
    if _X_RESOLUTION in exif and _Y_RESOLUTION in exif:
        yield "Exif resolution", float(exif[_X_RESOLUTION]), float(exif[_Y_RESOLUTION])


def _raster_grey(image: Image) -> Array:
    """A decoded image of any supported mode to uint8 [H, W]."""
    from PIL import Image as images

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        transparent = image.info.get("transparency")  # of a 16-bit PNG: the one value that is see-through
        valid = None if transparent is None else values != transparent
        grey = stretch(values, valid)
        check_spread(grey if valid is None else grey[valid])
        return grey
    if image.has_transparency_data:
        black = images.new("RGBA", image.size, (0, 0, 0, 255))
        image = images.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "CMYK"):
        raise ImageError(
            f"has the colour mode {image.mode}, expected grey, RGB, palette or CMYK",
            hint="save it as 8-bit grey or RGB",
        )
    if image.mode in ("P", "CMYK"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))
