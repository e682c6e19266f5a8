"""What crosses the borders: modalities, tensors and targets, as frozen facts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .errors import PixelsError, UsageError

Modality = Literal["mammography", "ultrasound"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

Array = np.ndarray[Any, np.dtype[Any]]
StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; a dimension is a number or the symbol "N" (the batch)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"

    def check(self, array: object) -> Array:
        """Return `array` if it fits this spec, else raise `PixelsError`. Nothing is converted."""
        if not isinstance(array, np.ndarray) or hasattr(array, "mask"):  # which no engine would know of
            raise PixelsError(
                f"`{self.name}` is a {type(array).__name__}, expected a NumPy array {self}",
                hint="convert it with its method `filled`"
                if hasattr(array, "mask")
                else "convert it with numpy.asarray",
            )
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != self.dtype:
            raise PixelsError(
                f"`{self.name}` is {array.dtype}{list(array.shape)}, expected {self}",
                hint="make pixels with `mpmmu_rt.images.read_pixels`, which gives the size the model wants",
            )
        if array.shape[0] == 0:
            raise PixelsError(f"`{self.name}` holds no case, expected N ≥ 1", hint="skip empty batches")
        return array

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TensorSpec:
        return cls(str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"]))


_TARGET = re.compile(
    r"(?P<engine>[a-z][a-z0-9-]*):(?P<precision>[a-z]+[0-9]+(-[a-z]+[0-9]+)?)(@(?P<capabilities>\d{2,3}(,\d{2,3})*))?"
)


IN_8_BITS = ("int8", "int8-bf16")


def in_8_bits(precision: str) -> bool:
    """Whether `precision` is INT8, whatever what is not quantized is computed in."""
    return precision in IN_8_BITS


@dataclass(frozen=True)
class Target:
    """An engine at a precision, written `engine:precision`, for example `onnxruntime:fp32`.

    A precision of two names first what layers are quantized to, then what the rest is computed in: `int8-bf16`.

    An export may name the compute capabilities to build for: `tensorrt-rtx:fp16@86,89,120`.
    """

    engine: str
    precision: str
    capabilities: tuple[int, ...] = ()

    def __str__(self) -> str:
        at = f"@{','.join(map(str, self.capabilities))}" if self.capabilities else ""
        return f"{self.plain}{at}"

    @property
    def plain(self) -> str:
        """Without compute capabilities: what a bundle's reports are kept by."""
        return f"{self.engine}:{self.precision}"

    @property
    def in_8_bits(self) -> bool:
        """Whether its encoders are quantized graphs, calibrated on images."""
        return in_8_bits(self.precision)

    @classmethod
    def parse(cls, text: str) -> Target:
        match = _TARGET.fullmatch(text)
        if match is None:
            near = text.strip().lower().replace("_", "-")
            meant = f"did you mean `{near}`? " if _TARGET.fullmatch(near) else ""
            raise UsageError(
                f"target is `{text}`, expected ENGINE:PRECISION such as `onnxruntime:fp32`",
                hint=f"{meant}`mpmmu-rt doctor` lists the targets that work here",
            )
        capabilities = tuple(map(int, match["capabilities"].split(","))) if match["capabilities"] else ()
        return cls(match["engine"], match["precision"], capabilities)
