"""A toy engine, for `test_adding_an_engine.py`: one file of the runtime. It drops bits of the embedding in FP16."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from mpmmu_rt.bundle import Bundle, HeadGraph, target_folder
from mpmmu_rt.engines import Session, Traits
from mpmmu_rt.engines.onnxruntime import EXACT_GRAPHS, OnnxRuntimeSession
from mpmmu_rt.engines.shared.host_head import HostHead
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target


class Embedder:
    def __init__(self, sessions: Mapping[str, Session], bits: int) -> None:
        self._sessions = sessions
        self._bits = bits

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        start = time.perf_counter()
        maps = {f"{m}_feature_map": self._sessions[m].run({"pixels": pixels[m]})["feature_map"] for m in MODALITIES}
        pooled = self._sessions["attention_pool"].run(maps)["embedding"]
        mantissa, exponent = np.frexp(pooled)
        embedding[:] = np.ldexp(np.round(mantissa * 2**self._bits) / 2**self._bits, exponent)
        return {"encoders": (time.perf_counter() - start) * 1e3}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class Toy:
    name = "toy"
    precisions = ("fp16", "fp32")
    head: HeadGraph = "head"
    traits = Traits(licence="A toy.")

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        return None

    def version(self) -> str:
        return "1"

    def load(self, graph: Path, precision: str, threads: int) -> OnnxRuntimeSession:
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        return OnnxRuntimeSession(session, graph)

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> HostHead:
        bits = 24
        if precision == "fp16":
            bits = json.loads((bundle.path / target_folder(self.name, precision) / "bits.json").read_text())
        target = Target(self.name, precision)
        graphs = {name: bundle.graph(graph) for name, graph in EXACT_GRAPHS.items()}
        return HostHead.load(
            bundle,
            target,
            threads,
            lambda: Embedder({name: self.load(graph, precision, threads) for name, graph in graphs.items()}, bits),
        )

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        return bundle.graph(EXACT_GRAPHS[modality])


ENGINE = Toy()
