"""What every coded form states about its picture, whatever the form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from mpmmu_rt.errors import ImageError

Colour = Literal["grey", "RGB", "YCbCr", "CMYK", "unknown"]

AGAIN = "the file is damaged, truncated or not conformant: export it again from its source"
DECOMPRESS = "decompress it with `dcmdjpeg` or `dcmdjpls` (DCMTK) or `gdcmconv --raw`, or export it uncompressed"
CODECS_PURPOSE = "reading JPEG Lossless or JPEG-LS in DICOM"


@dataclass(frozen=True)
class Stream:
    """The head of a coded picture.

    `bits` is the precision of a sample, `signed` None where the form has no sign. `colour` is what the components
    are before any inverse transform ("unknown": the stream doesn't say); `subsampled` that some components have
    fewer samples than there are pixels.
    """

    form: str
    width: int
    height: int
    components: int
    bits: int
    signed: bool | None
    colour: Colour
    subsampled: bool = False

    @property
    def size(self) -> str:
        return f"{self.width} x {self.height}"


def damaged(seen: str, expected: str = "a whole picture") -> NoReturn:
    """Refuse a stream that isn't whole or isn't conformant. `seen` begins with its verb."""
    raise ImageError(f"{seen}, expected {expected}", hint=AGAIN)


def unsupported(seen: str, expected: str, hint: str) -> NoReturn:
    """Refuse a stream that may be whole, of a kind that isn't read here."""
    raise ImageError(f"{seen}, expected {expected}", hint=hint)
