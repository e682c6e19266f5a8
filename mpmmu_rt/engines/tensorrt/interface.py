"""What runs a graph on a device, as the device path and `Batches` see it: TensorRT's engine is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpmmu_rt.spec import Array

from .cuda import Stream
from .sidecar import Profile

# TensorRT's name of a type: ours, and what holds it in NumPy, which has no bfloat16.
ELEMENTS = {
    "FLOAT": ("float32", np.float32),
    "HALF": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "UINT8": ("uint8", np.uint8),
    "INT8": ("int8", np.int8),
    "INT32": ("int32", np.int32),
    "INT64": ("int64", np.int64),
    "BOOL": ("bool", np.bool_),
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine. shape: without the batch, which comes first."""

    name: str
    element: str
    shape: tuple[int, ...]
    is_input: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """What holds it in host memory: uint16 for bfloat16."""
        return next(np.dtype(held) for element, held in ELEMENTS.values() if element == self.element)

    def bytes(self, batch: int) -> int:
        return batch * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.element}[{', '.join(('N', *map(str, self.shape)))}]"


def as_host(tensor: Tensor, array: Array) -> Array:
    """`array` itself; of bfloat16, which it holds as uint16, a new one in float32: exact."""
    return (array.astype(np.uint32) << 16).view(np.float32) if tensor.element == "bfloat16" else array


class DeviceContext(Protocol):
    """One batch size of an engine, bound to memory of the device for good."""

    def execute(self, stream: Stream) -> None:
        """Enqueue; nothing is waited for. Raises `EngineError`."""
        ...

    def capturable(self, stream: Stream) -> bool: ...

    def settled(self) -> None:
        """Told once, when its first run is over: what was compiled for it can be kept now."""
        ...

    def close(self) -> None: ...


class DeviceEngine(Protocol):
    """A loaded graph. inputs, outputs: names of `tensors`, in the graph's order. profile: the batches that it takes."""

    @property
    def profile(self) -> Profile: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...

    def context(self, batch: int, addresses: Mapping[str, int]) -> DeviceContext:
        """Set to `batch` and bound to the device memory of every tensor. Raises `EngineError`."""
        ...

    def close(self) -> None:
        """After its contexts."""
        ...
