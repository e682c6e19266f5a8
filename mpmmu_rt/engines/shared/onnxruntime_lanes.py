"""Both encoders and the attention pool as three ONNX Runtime sessions, with every tensor in memory of ours.

`InferenceSession.run` allocates what it returns. Bound to memory of ours, feature maps are written where the pool reads
them, on the device that computes them, and the embedding where the caller wants it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt.errors import EngineError
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .words import closed, words_of

_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_POOL = "attention_pool"


def failed(name: str, error: Exception) -> EngineError:
    """ONNX Runtime's exceptions share no base but Exception; all of them mean that there is no result."""
    return EngineError(
        f"ONNX Runtime failed in {name}: {first_line(error)}",
        hint="`mpmmu-rt verify BUNDLE` tells whether the bundle or the input is at fault",
    )


def first_line(error: Exception) -> str:
    return next(iter(words_of(error).splitlines()), type(error).__name__)[:300]


@dataclass(frozen=True)
class Memory:
    """Memory that a session computes in.

    device: `cpu` or `cuda`, as ONNX Runtime names it. allocate: (shape, dtype) → what owns the memory, its address.
    """

    device: str
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], tuple[object, int]]


def _numpy(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[object, int]:
    array = np.empty(shape, dtype)
    return array, array.ctypes.data


HOST = Memory("cpu", _numpy)


class BoundEmbedder:
    """An `Embedder`. Each thread that runs at the same time gets a lane of its own; lanes are made on demand and kept.

    sessions: `InferenceSession` by name: `mammography`, `ultrasound` (pixels → feature_map) and `attention_pool`.
    graphs: the file of each, for messages. memory: where the sessions compute. Pixels and embedding are the host's:
    where the device is another one, ONNX Runtime copies both.
    """

    def __init__(self, sessions: Mapping[str, Any], graphs: Mapping[str, Path], memory: Memory = HOST) -> None:
        self._sessions = dict(sessions)
        self._names = {name: graph.name for name, graph in graphs.items()}
        self._memory = memory
        self._idle: list[_Lane] = []  # last in, first out: the one whose memory is warm

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        _check_embedding(embedding)
        lane = self._take()
        try:
            return lane.run(pixels, embedding)
        finally:
            if self._sessions:
                self._idle.append(lane)

    def _take(self) -> _Lane:
        sessions = self._sessions
        if not sessions:
            raise closed()
        try:
            return self._idle.pop()
        except IndexError:
            return _Lane(sessions, self._names, self._memory)

    def close(self) -> None:
        self._sessions = {}
        self._idle.clear()


class _Lane:
    """Bindings and feature maps of one caller, for the largest batch that it has met."""

    def __init__(self, sessions: Mapping[str, Any], names: Mapping[str, str], memory: Memory) -> None:
        self._sessions = sessions
        self._names = names
        self._memory = memory
        self._bindings = {name: session.io_binding() for name, session in sessions.items()}
        self._shapes = {m: _shape_of_one(sessions[m], "feature_map", names[m]) for m in MODALITIES}
        self._cases = 0  # that the feature maps have room for
        self._maps: dict[Modality, tuple[object, int]] = {}
        self._copies: dict[str, Array] = {}  # of pixels, or the embedding, that do not lie in one piece

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        start = time.perf_counter()  # of the first stage: each begins where the one before it ended
        cases = len(embedding)
        if cases > self._cases:
            self._grow(cases)
        maps = {m: (dtype, (cases, *shape), self._maps[m][1]) for m, (dtype, shape) in self._shapes.items()}
        stages_ms: dict[str, float] = {}
        for modality in MODALITIES:
            array = pixels[modality]
            if not array.flags.c_contiguous:
                array = self._copy(modality, array)
                np.copyto(array, pixels[modality])
            source = (array.dtype, array.shape, array.ctypes.data)
            target = (self._memory.device, *maps[modality])
            self._run(modality, {"pixels": ("cpu", *source)}, "feature_map", target)
            start, begun = time.perf_counter(), start
            stages_ms[modality] = (start - begun) * 1e3
        straight = embedding.flags.c_contiguous and embedding.flags.aligned
        row = embedding if straight else self._copy("embedding", embedding)
        inputs = {f"{modality}_feature_map": (self._memory.device, *maps[modality]) for modality in MODALITIES}
        self._run(_POOL, inputs, "embedding", ("cpu", row.dtype, row.shape, row.ctypes.data))
        if row is not embedding:
            np.copyto(embedding, row)
        return stages_ms | {_POOL: (time.perf_counter() - start) * 1e3}

    def _run(self, name: str, inputs: Mapping[str, _Place], output: str, place: _Place) -> None:
        binding = self._bindings[name]
        try:
            for key, (device, dtype, shape, address) in inputs.items():
                binding.bind_input(key, device, 0, dtype.type, shape, address)
            device, dtype, shape, address = place
            binding.bind_output(output, device, 0, dtype.type, shape, address)
            binding.synchronize_inputs()
            self._sessions[name].run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise failed(self._names[name], error) from error

    def _grow(self, cases: int) -> None:
        self._cases, self._maps = 0, {}  # freed first: two generations need not fit
        try:
            self._maps = {
                m: self._memory.allocate((cases, *shape), dtype) for m, (dtype, shape) in self._shapes.items()
            }
        except (MemoryError, EngineError) as error:
            raise EngineError(
                f"there is no memory on `{self._memory.device}` for the feature maps of {cases} cases: "
                f"{first_line(error)}",
                hint="use smaller batches",
            ) from error
        self._cases = cases

    def _copy(self, name: str, array: Array) -> Array:
        """Memory in one piece of the shape and type of `array`, kept for the next call."""
        kept = self._copies.get(name)
        if kept is None or len(kept) < len(array) or kept.dtype != array.dtype or kept.shape[1:] != array.shape[1:]:
            kept = self._copies[name] = np.empty(array.shape, array.dtype)
        part: Array = kept[: len(array)]
        return part


_Place = tuple[str, np.dtype[Any], tuple[int, ...], int]  # device, element type, shape, address


def _check_embedding(embedding: Array) -> None:
    """It is written by address: what it is must be known, not assumed. Its shape is checked by ONNX Runtime."""
    if embedding.dtype != np.float32 or embedding.ndim != 2 or not embedding.flags.writeable:
        state = "" if embedding.flags.writeable else ", read-only"
        raise EngineError(
            f"`embedding` is {embedding.dtype}{list(embedding.shape)}{state}, expected float32[N, D] to write to",
            hint="make it with numpy.empty, or leave it out",
        )


def _shape_of_one(session: Any, output: str, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The element type of an output, and its shape but for the batch. Raises `EngineError` where it is dynamic."""
    outputs = {item.name: item for item in session.get_outputs()}
    if output not in outputs:
        raise failed(name, ValueError(f"it makes {', '.join(outputs)}, expected `{output}`"))
    found = outputs[output]
    shape: tuple[Any, ...] = tuple(found.shape[1:])  # a dynamic length is a name
    if found.type not in _DTYPES or not all(isinstance(length, int) for length in shape):
        reason = f"`{output}` is {found.type}{list(found.shape)}, expected floats whose batch alone is dynamic"
        raise failed(name, ValueError(reason))
    return _DTYPES[found.type], shape
