"""One frame of a compressed DICOM image: its stream against its header, then its samples.

For each transfer syntax there is one decoder, named in the module of its form: grey values don't depend on what else is
installed. pydicom is not asked: it takes the first decoder that it finds, believes the header about the colours that a
decoder has already turned into RGB, and cuts or repeats a picture that is not of the header's size.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.errors import ImageError
from mpmmu_rt.spec import Array

from . import jpeg, jpeg2000, jpeg_header, jpeg_lossless, jpeg_ls, rle
from .stream import DECOMPRESS, Colour, Stream, damaged, unsupported

_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE = "1.2.840.10008.1.2.5"
_YBR = ("YBR_FULL", "YBR_FULL_422")
_OTHER = "the header or the pixel data are those of another image, or were changed alone: export it again"


def decode_frame(data: bytes, header: Any) -> Array:
    """Samples of one frame: integers of BitsAllocated bits [H, W], or unsigned RGB [H, W, 3].

    `data` is the frame's stream, `header` has the image pixel module and the transfer syntax in its file meta. Raises
    `ImageError` unless the stream is whole and says the same as the header, `MissingPackage` without its decoder.
    """
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _JPEG:
        samples, stream = _decode_jpeg(data, header)
    elif syntax in _JPEG_LS:
        image = jpeg_ls.parse(data)
        stream = image.stream
        _check_rest(data, image.end, stream)
        _check_header(stream, header)
        _check_lossless_palette(header, image.near == 0)
        samples = _to_rgb(jpeg_ls.decode(data[: image.end]), _agreed_colour(stream, header))
    elif syntax in _JPEG_2000:
        samples, stream = _decode_jpeg2000(data, header)
    elif syntax == _RLE:
        bytes_per_sample = header.BitsAllocated // 8
        if header.BitsAllocated not in (8, 16, 32) or not 1 <= header.BitsStored <= header.BitsAllocated:
            damaged(
                f"has BitsAllocated {header.BitsAllocated} and BitsStored {header.BitsStored} in RLE",
                "8, 16 or 32 and at most as many",
            )
        stream = Stream(
            "RLE", header.Columns, header.Rows, header.SamplesPerPixel, header.BitsAllocated, None, "unknown"
        )
        samples = rle.decode(data, header.Rows, header.Columns, header.SamplesPerPixel, bytes_per_sample)
        samples = _to_rgb(samples, _agreed_colour(stream, header))
    else:
        unsupported(
            f"has the transfer syntax {syntax.name}",
            "an uncompressed one, RLE, JPEG, JPEG-LS or JPEG 2000",
            "export it uncompressed, in the transfer syntax Explicit VR Little Endian",
        )
    if header.SamplesPerPixel == 1:
        return _stored(samples, stream, header)
    if header.BitsStored < stream.bits and samples.max() >> header.BitsStored:
        _too_many_bits(stream, header)
    return samples


def _decode_jpeg(data: bytes, header: Any) -> tuple[Array, Stream]:
    image = jpeg_header.parse(data)
    stream = image.stream
    _check_rest(data, image.end, stream)
    _check_header(stream, header)
    colour = _agreed_colour(stream, header)
    if image.process == 0xC3:
        return _to_rgb(jpeg_lossless.decode(data, image), colour), stream
    if header.PixelRepresentation:
        damaged("has signed pixels in lossy JPEG", "unsigned ones (PS3.5 table 8.2.1-1)")
    _check_lossless_palette(header, False)
    return jpeg.decode(data, image, colour), stream


def _decode_jpeg2000(data: bytes, header: Any) -> tuple[Array, Stream]:
    code = jpeg2000.parse(data)
    stream = code.stream
    _check_rest(data, code.end, stream)
    _check_header(stream, header)
    _check_lossless_palette(header, code.reversible)
    photometric = header.PhotometricInterpretation
    if stream.components == 3 and not _transform_fits(photometric, code.transformed):
        transform = "a" if code.transformed else "no"
        raise ImageError(
            f"has the photometric interpretation {photometric} and {transform} component transform in its JPEG 2000 "
            "stream, expected YBR_RCT or YBR_ICT with one, YBR_FULL without",
            hint=_OTHER,
        )
    samples = jpeg2000.decode(data, code)
    return _to_rgb(samples, "YCbCr" if photometric in _YBR else "RGB"), stream


def _transform_fits(photometric: str, transformed: bool) -> bool:
    """RGB goes with both: decoders undo the transform, and many writers name what comes of it."""
    return photometric == "RGB" or transformed == (photometric in ("YBR_RCT", "YBR_ICT"))


def _check_rest(data: bytes, end: int, stream: Stream) -> None:
    """After its end a stream may be padded; what else is there is another picture, or its end is not where it seems."""
    if data[end:].strip(b"\0"):
        damaged(
            f"holds {len(data) - end} bytes after the end of its {stream.form} stream",
            "nothing: several frames need NumberOfFrames and a fragment each",
        )


def _check_header(stream: Stream, header: Any) -> None:
    bits, stored = stream.bits, header.BitsStored
    differences = {
        "Rows and Columns": (f"{header.Rows} and {header.Columns}", f"{stream.height} and {stream.width}"),
        "SamplesPerPixel": (header.SamplesPerPixel, stream.components),
    }
    for keyword, (says, is_) in differences.items():
        if says != is_:
            raise ImageError(
                f"has {keyword} {says} in its header and {is_} in its {stream.form} stream, expected the same",
                hint=_OTHER,
            )
    # Writers that keep all of BitsAllocated state more bits in the stream than are stored; the values say which.
    if not stored <= bits <= header.BitsAllocated or (stream.components == 3 and bits != stored):
        raise ImageError(
            f"has BitsStored {stored} of BitsAllocated {header.BitsAllocated} in its header and {bits} bits in its "
            f"{stream.form} stream, expected the same",
            hint=_OTHER,
        )
    if stream.signed is not None and stream.signed != bool(header.PixelRepresentation):
        raise ImageError(
            f"has PixelRepresentation {header.PixelRepresentation} in its header and "
            f"{'signed' if stream.signed else 'unsigned'} samples in its {stream.form} stream, expected the same",
            hint=_OTHER,
        )


def _agreed_colour(stream: Stream, header: Any) -> Colour:
    """What the components are, by the stream and by the header, which must not contradict each other."""
    if header.SamplesPerPixel == 1:
        return "grey"
    photometric = header.PhotometricInterpretation
    says: Colour = "RGB" if photometric == "RGB" else "YCbCr" if photometric in _YBR else "unknown"
    if says == "unknown" or stream.colour not in (says, "unknown"):
        hint = "the colours can't be told: export it again, or as MONOCHROME2, uncompressed"
        if stream.colour != "unknown":  # decoders go by the stream; some writers name what they were given
            right = "RGB" if stream.colour == "RGB" else "YBR_FULL_422" if stream.subsampled else "YBR_FULL"
            hint = f"on a copy, `dcmodify -m PhotometricInterpretation={right}` (DCMTK), and look at its colours"
        raise ImageError(
            f"has the photometric interpretation {photometric} in its header and "
            f"{'components' if stream.colour == 'unknown' else stream.colour} in its {stream.form} stream, expected "
            "the same",
            hint=hint,
        )
    return says


def _check_lossless_palette(header: Any, lossless: bool) -> None:
    if header.PhotometricInterpretation == "PALETTE COLOR" and not lossless:
        damaged(
            "has indices into a palette in lossy compression", "lossless compression: a near index is no near colour"
        )


def _to_rgb(samples: Array, colour: Colour) -> Array:
    """YBR_FULL as coded to RGB (PS3.3 C.7.6.3.1.2), uint8 [H, W, 3]; all else stays."""
    if colour != "YCbCr":
        return samples
    if samples.dtype != np.uint8:
        unsupported("has YBR colours of more than 8 bits", "8 bits, or RGB", "export it as RGB")
    processing = require("pydicom.pixels.processing", "reading a DICOM image")
    rgb: Array = processing.convert_color_space(samples, "YBR_FULL", "RGB")
    return rgb


def _stored(samples: Array, stream: Stream, header: Any) -> Array:
    """Grey samples or indices as BitsAllocated and PixelRepresentation say, from BitsStored bits."""
    allocated, bits = header.BitsAllocated, header.BitsStored
    if allocated not in (8, 16, 32):
        unsupported(f"has BitsAllocated {allocated} in {stream.form}", "8, 16 or 32", DECOMPRESS)
    if header.PixelRepresentation:
        whole = (1 << stream.bits) - 1
        raw = samples.astype(np.int64) & whole
        values = raw & ((1 << bits) - 1)
        values -= (values >> (bits - 1)) << bits
        # A sign may fill the bits above, or not.
        beyond = bool(((raw != values & whole) & (raw >> bits != 0)).any())
    else:
        values = samples
        beyond = bits < stream.bits and bool(samples.max() >> bits)
    if beyond:
        _too_many_bits(stream, header)
    stored: Array = values.astype(f"{'i' if header.PixelRepresentation else 'u'}{allocated // 8}", copy=False)
    return stored


def _too_many_bits(stream: Stream, header: Any) -> NoReturn:
    stored = header.BitsStored
    damaged(
        f"has values of more than {stored} bits in its {stream.form} stream", f"at most BitsStored, which is {stored}"
    )
