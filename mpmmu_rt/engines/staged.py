"""Both encoders and the attention pool as three sessions, one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from mpmmu_rt.spec import MODALITIES, Array, Modality


class _Session(Protocol):
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...
    def close(self) -> None: ...


class StagedEmbedder:
    """An `Embedder` for engines whose sessions use the whole device each; feature maps go through the host's memory.

    sessions: `mammography`, `ultrasound` (pixels → feature_map) and `attention_pool`.
    """

    def __init__(self, sessions: Mapping[str, _Session]) -> None:
        self._sessions = sessions

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        stages_ms: dict[str, float] = {}
        maps: dict[str, Array] = {}
        for modality in MODALITIES:
            start = time.perf_counter()
            found = self._sessions[modality].run({"pixels": pixels[modality]})
            maps[f"{modality}_feature_map"] = found["feature_map"]
            stages_ms[modality] = (time.perf_counter() - start) * 1e3
        start = time.perf_counter()
        np.copyto(embedding, self._sessions["attention_pool"].run(maps)["embedding"])
        return stages_ms | {"attention_pool": (time.perf_counter() - start) * 1e3}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
