"""A pipeline of two halves: an engine embeds, and the stacking head runs on the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import Session, engine, head_target
from mpmmu_rt.spec import Array, Modality, Target


class Embedder(Protocol):
    """Both encoders and the attention pool of a bundle. Threads may share it; `close` frees it."""

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        """Fill `embedding` float32 [N, D] from checked pixels uint8 [N, 1, S, S] per modality.

        Returns the wall time of each stage in ms, by name. Raises `EngineError`.
        """
        ...

    def close(self) -> None: ...


class HostHead:
    """The pipeline of an `Embedder` and a head, which runs in FP32 on the engine that is fastest at it here."""

    remarks: tuple[str, ...] = ()

    def __init__(self, embedder: Embedder, head: Session, head_target: Target) -> None:
        self.embedder = embedder
        self.head_target = head_target
        self._head = head

    @classmethod
    def load(cls, bundle: Bundle, target: Target, threads: int, embedder: Callable[[], Embedder]) -> Self:
        """embedder: loads the other half, after the head, which is the smaller one to fail."""
        chosen = head_target(target)
        heads = engine(chosen)
        head = heads.load(bundle.graph(heads.head), chosen.precision, threads)
        return cls(embedder(), head, chosen)

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> tuple[dict[str, Array], dict[str, float]]:
        stages_ms = self.embedder.embed(pixels, embedding)
        start = time.perf_counter()
        said = self._head.run({"embedding": embedding})
        return said, stages_ms | {"head": (time.perf_counter() - start) * 1e3}

    def close(self) -> None:
        self.embedder.close()
        self._head.close()
