"""JPEG by cosine transform and Huffman codes, 8 bits: baseline, extended, progressive (ITU-T T.81).

Decoded by libjpeg-turbo through simplejpeg, whose strict mode turns into an error what libjpeg only warns of: a scan
that ends before its last MCU, a code that doesn't exist, bytes left over. (Pillow, pylibjpeg and imagecodecs drop
these warnings and return grey where nothing was coded.)
"""

from __future__ import annotations

from mpmmu_rt.errors import ImageError
from mpmmu_rt.spec import Array

from .jpeg_header import CONVERT, Jpeg, Scan, check_8_bits
from .stream import AGAIN, Colour, damaged, unsupported

_OUTPUT: dict[Colour, str] = {"grey": "GRAY", "RGB": "RGB", "YCbCr": "RGB", "CMYK": "CMYK"}


def decode(data: bytes, jpeg: Jpeg, colour: Colour) -> Array:
    """Samples of the image that `parse` found in `data`: uint8 [H, W] of grey, [H, W, 3] RGB, [H, W, 4] CMYK.

    `colour` is what the components are, and counts: markers that say otherwise are not looked at. The CMYK values are
    as coded. Raises `ImageError` unless every MCU of every scan is coded and nothing is left over.
    """
    check_8_bits(jpeg)
    import simplejpeg

    plain = without_applications(data, jpeg, colour)
    try:
        samples: Array = simplejpeg.decode_jpeg(plain, _OUTPUT[colour], strict=True)
    except ValueError as error:
        if "subsampling" in str(error):  # libjpeg-turbo's own word for factors that its API has no name for
            factors = ", ".join(f"{c.horizontal} x {c.vertical}" for c in jpeg.components)
            unsupported(
                f"has a JPEG stream with the sampling factors {factors}", "4:4:4, 4:2:2, 4:2:0 or 4:1:1", CONVERT
            )
        raise ImageError(
            f"has a JPEG stream that is not whole ({error}), expected every part of its {jpeg.width} x {jpeg.height} "
            "pixels",
            hint=AGAIN,
        ) from error
    for scan in jpeg.scans:
        _check_end(data, jpeg, colour, scan)
    return samples[..., 0] if colour == "grey" else samples


def without_applications(data: bytes, jpeg: Jpeg, colour: Colour = "unknown", shortened: Scan | None = None) -> bytes:
    """The image alone: no segment that makes a decoder guess at colours, but one that names them if `colour` does.

    `shortened` is a scan that loses its last byte.
    """
    parts = [b"\xff\xd8"]
    if colour in ("RGB", "YCbCr"):
        parts.append(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + (b"\1" if colour == "YCbCr" else b"\0"))
    for marker, start, end in jpeg.segments:
        if (marker == 0xEE and colour == "CMYK") or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            if shortened is not None and end == shortened.end:
                end -= 2 if data[end - 2 : end] == b"\xff\0" else 1
            parts.append(data[start:end])
    return b"".join([*parts, b"\xff\xd9"])


def _check_end(data: bytes, jpeg: Jpeg, colour: Colour, scan: Scan) -> None:
    """Refuse a scan that is longer than its picture: without its last byte, it must not decode.

    A hole in a stream shifts what follows by a few MCUs and leaves a few bytes over; libjpeg doesn't count those that
    it has fetched ahead, up to 8. At an eighth of the size all codes are read, and one pixel made of each block.
    """
    shorter = without_applications(data, jpeg, colour, scan)
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(shorter, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError:
        return
    damaged("has a JPEG scan with bytes left over after its last MCU", "no more than its picture needs")
