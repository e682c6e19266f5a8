"""The whole way on one target: pixels to probability, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .bundle import Bundle, Graph
from .engines import Session, engine
from .errors import EngineError, PixelsError, UsageError
from .machine import usable_threads
from .spec import MODALITIES, Array, Modality, Target

DEFAULT_TARGET = "onnxruntime:fp32"
STAGES = ("mammography", "ultrasound", "attention_pool", "head")


@dataclass(frozen=True)
class Prediction:
    """What the model says about N cases.

    probability: float32 [N], that the lesion is malignant. embedding: float32 [N, D]. feature_map: one float32
    array per modality. stages_ms: wall time of each stage for the whole batch. All arrays belong to the caller.
    """

    probability: Array
    embedding: Array
    feature_map: Mapping[Modality, Array]
    stages_ms: Mapping[str, float]


class Predictor:
    """Runs a bundle on a target. Not shared between threads: each thread loads its own.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, bundle: Bundle, target: Target, *, threads: int | None = None) -> None:
        """Load every stage. Raises `EngineError` or `MissingPackage`; nothing falls back to another engine."""
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1", hint="leave it out to use all that may be")
        self.bundle = bundle
        self.target = target
        self.threads = threads or usable_threads()
        chosen = engine(target)
        self._encoders: dict[Modality, Session] = {
            modality: chosen.load(bundle.graph(modality), target.precision, self.threads) for modality in MODALITIES
        }
        self._pool = chosen.load(bundle.graph("attention_pool"), target.precision, self.threads)
        self._head = chosen.load(bundle.graph(chosen.head), target.precision, self.threads)

    def predict(self, pixels: Mapping[Modality, Array]) -> Prediction:
        """Pixels uint8 [N, 1, S, S] per modality (`{"mammography": …, "ultrasound": …}`) to a `Prediction`.

        The two are named and not positional, so that they can't be swapped unseen. Raises `PixelsError` for
        pixels that the model was not made for, and `EngineError` if any probability is not a number in 0..1.
        """
        checked = self._check(pixels)
        stages_ms: dict[str, float] = {}
        feature_map: dict[Modality, Array] = {}
        for modality in MODALITIES:
            feeds = {"pixels": checked[modality]}
            feature_map[modality] = self._stage(modality, self._encoders[modality], feeds, stages_ms)["feature_map"]
        maps = {f"{modality}_feature_map": feature_map[modality] for modality in MODALITIES}
        embedding = self._stage("attention_pool", self._pool, maps, stages_ms)["embedding"]
        probability = self._stage("head", self._head, {"embedding": embedding}, stages_ms)["probability"]
        # Trees send NaN left or right and give a number that looks right: the embedding is checked on its own.
        if not np.isfinite(embedding).all():
            raise EngineError(
                f"{self.target} gave embeddings that are not finite for "
                f"{int(np.sum(~np.isfinite(embedding).all(1)))} of {len(embedding)} cases",
                hint="`mpmmu-rt verify BUNDLE` tells whether this target computes the model correctly here",
            )
        if not np.all((probability >= 0) & (probability <= 1)):
            raise EngineError(
                f"{self.target} gave {int(np.sum(~((probability >= 0) & (probability <= 1))))} of {probability.size} "
                "probabilities that are not numbers in 0..1",
                hint="`mpmmu-rt verify BUNDLE` tells whether this target computes the model correctly here",
            )
        return Prediction(probability, embedding, feature_map, stages_ms)

    def run_whole_graph(self, pixels: Mapping[Modality, Array]) -> dict[str, Array]:
        """`probability` and `embedding` from the joined graph, which engines that take one graph are built from."""
        return self.run_graph("model", {f"{modality}_pixels": array for modality, array in self._check(pixels).items()})

    def run_graph(self, graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of any graph of the bundle, loaded for this one call.

        The export uses it to prove the graphs that this target itself does not run.
        """
        session = engine(self.target).load(self.bundle.graph(graph), self.target.precision, self.threads)
        try:
            return session.run(feeds)
        finally:
            session.close()

    def _stage(
        self, stage: str, session: Session, feeds: Mapping[str, Array], stages_ms: dict[str, float]
    ) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = session.run(feeds)
        stages_ms[stage] = (time.perf_counter() - start) * 1e3
        return outputs

    def _check(self, pixels: Mapping[Modality, Array]) -> dict[Modality, Array]:
        if not isinstance(pixels, Mapping) or set(pixels) != set(MODALITIES):
            got = ", ".join(map(str, pixels)) if isinstance(pixels, Mapping) else type(pixels).__name__
            raise PixelsError(
                f"pixels hold {got or 'nothing'}, expected both {' and '.join(MODALITIES)}",
                hint='pass {"mammography": array, "ultrasound": array}',
            )
        checked = {name: self.bundle.tensors[f"{name}_pixels"].check(pixels[name]) for name in MODALITIES}
        counts = {name: len(array) for name, array in checked.items()}
        if len(set(counts.values())) != 1:
            raise PixelsError(
                f"pixels hold {counts['mammography']} mammograms and {counts['ultrasound']} ultrasound images, "
                "expected one pair per case",
                hint="row i of both arrays must be the same patient",
            )
        return checked

    def close(self) -> None:
        for session in (*self._encoders.values(), self._pool, self._head):
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | Path, target: str = DEFAULT_TARGET, *, threads: int | None = None) -> Predictor:
    """Open the bundle at `path`, check its digests, and load it on `target`."""
    return Predictor(Bundle.open(Path(path)), Target.parse(target), threads=threads)
