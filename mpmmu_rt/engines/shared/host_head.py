"""A pipeline of two halves: an engine embeds, and the stacking head runs on the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import Counted, Session, engine, head_target
from mpmmu_rt.spec import Array, Modality, Target


class Embedder(Protocol):
    """Both encoders and the attention pool of a bundle. Threads may share it; `close` frees it."""

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        """Fill `embedding` float32 [N, D] from checked pixels uint8 [N, 1, S, S] per modality.

        Returns the wall time of each stage in ms, by name. Raises `EngineError`.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Remarking(Protocol):
    """An embedder that tells what stands in for what was asked for, and why: a sentence each; more while it runs."""

    @property
    def remarks(self) -> tuple[str, ...]: ...


class InSizes:
    """An `Embedder` that hands another one batches of given sizes alone: parts of a larger batch, and the last part
    filled up with blank cases."""

    def __init__(self, embedder: Embedder, sizes: Sequence[int]) -> None:
        """sizes: ascending."""
        self._embedder, self._sizes = embedder, tuple(sizes)

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        spent: dict[str, float] = {}
        for rows, size in in_parts(len(embedding), self._sizes):
            cases = rows.stop - rows.start
            part = {modality: array[rows] for modality, array in pixels.items()}
            into = embedding[rows]
            if size > cases:
                part = {modality: filled(array, size) for modality, array in part.items()}
                into = np.empty((size, embedding.shape[1]), embedding.dtype)
            for stage, ms in self._embedder.embed(part, into).items():
                spent[stage] = spent.get(stage, 0.0) + ms
            if size > cases:
                np.copyto(embedding[rows], into[:cases])
        return spent

    def counts(self, cases: int) -> dict[str, int | str]:
        return self._embedder.counts(cases) if isinstance(self._embedder, Counted) else {}

    def close(self) -> None:
        self._embedder.close()


def in_parts(cases: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Rows of each part of so many cases, and which of `sizes` (ascending) it is filled up to."""
    for first in range(0, cases, sizes[-1]):
        rows = slice(first, min(first + sizes[-1], cases))
        yield rows, next(size for size in sizes if size >= rows.stop - rows.start)


def filled(array: Array, size: int) -> Array:
    """`array` with zeros behind it, [size, …]; itself where it has that length."""
    if len(array) == size:
        return array
    found = np.zeros((size, *array.shape[1:]), array.dtype)
    found[: len(array)] = array
    return found


class HostHead:
    """The pipeline of an `Embedder` and a head, which runs in FP32 on the engine that is fastest at it here."""

    name = "head on the host"

    def __init__(self, embedder: Embedder, head: Session, head_target: Target, remarks: tuple[str, ...] = ()) -> None:
        self._remarks = remarks
        self.embedder = embedder
        self.head_target = head_target
        self._head = head

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        target: Target,
        threads: int,
        embedder: Callable[[], Embedder],
        remarks: tuple[str, ...] = (),
    ) -> Self:
        """embedder: loads the other half, after the head, which is the smaller one to fail."""
        chosen = head_target(target)
        heads = engine(chosen)
        head = heads.load(bundle.graph(heads.head), chosen.precision, threads)
        return cls(embedder(), head, chosen, remarks)

    @property
    def remarks(self) -> tuple[str, ...]:
        own = self.embedder.remarks if isinstance(self.embedder, Remarking) else ()
        return (*self._remarks, *own)

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> tuple[dict[str, Array], dict[str, float]]:
        stages_ms = self.embedder.embed(pixels, embedding)
        start = time.perf_counter()
        said = self._head.run({"embedding": embedding})
        return said, stages_ms | {"head": (time.perf_counter() - start) * 1e3}

    def counts(self, cases: int) -> dict[str, int | str]:
        return self.embedder.counts(cases) if isinstance(self.embedder, Counted) else {}

    def close(self) -> None:
        self.embedder.close()
        self._head.close()
