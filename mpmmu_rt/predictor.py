"""The whole way on one target: pixels to probability, stage by stage."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .bundle import CLASSES, Bundle, Graph
from .checks import decide, shown
from .engines import Counted, ShowsTensors, engine
from .errors import AnswerError, EngineError, MpmmuError, PixelsError, UsageError
from .held import Held
from .machine import usable_threads
from .pairs import read_pairs
from .single import SingleHeads, require_single
from .spec import MODALITIES, Array, Modality, StrPath, Target

DEFAULT_TARGET = "onnxruntime:fp32"
Paths = StrPath | Sequence[StrPath]


class HeaderWarning(UserWarning):
    """What the header of an image says against it, or its pixels, and is no reason to refuse it."""


@dataclass(frozen=True, repr=False)
class Prediction:
    """What the model says about N cases. All arrays belong to the caller.

    probability: float32 [N], that the lesion is malignant. base_probability: float32 [N, learners], what each base
    learner of the stacking head says; None if the head has none. embedding: float32 [N, D]. stages_ms: wall time of
    each stage for the whole batch, `checks` of pixels and answers the last. threshold: the bundle's, or that of a head
    for one modality.
    """

    probability: Array
    base_probability: Array | None
    embedding: Array
    stages_ms: Mapping[str, float]
    threshold: float

    @property
    def malignant(self) -> Array:
        """bool [N]."""
        return decide(self.probability, self.threshold)

    @property
    def decision(self) -> tuple[str, ...]:
        """`benign` or `malignant` for each case."""
        return tuple(CLASSES[int(one)] for one in self.malignant)

    def __repr__(self) -> str:
        first = ", ".join(shown(one, self.threshold, "g") for one in self.probability[:3])
        more = ", …" if len(self.probability) > 3 else ""
        count = f"{len(self.probability)} case{'s' * (len(self.probability) != 1)}"
        return (
            f"Prediction({count}, {int(self.malignant.sum())} malignant at ≥ {self.threshold:g}; "
            f"probability [{first}{more}])"
        )


class Predictor:
    """Runs a bundle on a target. Any number of threads may share it.

    It belongs to the process that made it: after a fork it refuses to work, for the threads of its engine are not
    there, and a call would wait for them without end. `head_target` says where the stacking head runs: in FP32, and on
    ONNX Runtime where that is faster and installed.
    Use it as a context manager, or call `close`.
    """

    def __init__(self, bundle: Bundle, target: Target, *, threads: int | None = None, unproven: bool = False) -> None:
        """Load every stage; nothing falls back to another engine or precision.

        unproven: also on a target that the export did not prove, or left out as it changes decisions: to measure it,
        and decide nothing by it. Raises `UsageError` for such a target otherwise, `BundleError` where the bundle has no
        graphs for it, `DigestMismatch` for one that was changed since it was opened, `EngineError`, `MissingPackage`.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1", hint="leave it out to use all that may be")
        self.bundle = bundle
        self.target = target
        self.threads = threads or usable_threads()
        self._process = os.getpid()
        self._engine = engine(target)
        if not unproven:
            bundle.require_proven(target)
        self._held = Held(bundle, target)  # before an engine reads them
        self._pipeline = self._engine.pipeline(bundle, target.precision, self.threads)
        self.head_target = self._pipeline.head_target
        self._single = SingleHeads(bundle, self.head_target, self.threads)
        try:
            bundle.require_unchanged()
        except MpmmuError:
            self._pipeline.close()
            raise

    def predict(self, pixels: Mapping[Modality, Array], *, embedding: Array | None = None) -> Prediction:
        """Pixels uint8 [N, 1, S, S] per modality (`{"mammography": …, "ultrasound": …}`) to a `Prediction`.

        The two are named and not positional, so that they can't be swapped unseen. That images are blank, one and the
        same, of two patients, look swapped or unlike the training's is seen by `predict_files`, and not here: who
        decodes files otherwise looks for it (`mpmmu_rt.pairs`, `mpmmu_rt.subject`).
        embedding: float32 [N, D] to write the embedding to, and to return, in memory of its own; a new array if None.
        Raises `PixelsError` for pixels that the model was not made for, `UsageError` for another `embedding`,
        `EngineError` if the engine fails, `AnswerError`, with the rows, if any probability is not a number in 0..1, or
        any of a base learner or any embedding is not finite, and `DigestMismatch` if the weights were written over
        while they were in use.
        """
        start = time.perf_counter()
        checked = self._check(pixels)
        embedding = _room(embedding, (len(checked["mammography"]), self._width), checked)
        checks_ms = (time.perf_counter() - start) * 1e3
        self._held.require_untouched()
        said, stages_ms = self._pipeline.run(checked, embedding)
        return self._answer(said, embedding, stages_ms | {"checks": checks_ms}, self.bundle.threshold)

    def predict_single(self, modality: Modality, pixels: Array) -> Prediction:
        """The prediction of one image of each case, uint8 [N, 1, S, S], by the head for that modality alone, which
        decides at a threshold of its own.

        `base_probability` is of that head, and `embedding` float32 [N, C] of that encoder. The other encoder sees blank
        images, and nobody what it says: a case takes as long as a pair. Raises like `predict`, and `UsageError` for a
        bundle without such heads, or a target that rounds.
        """
        require_single(self.bundle, self.target)
        if modality not in MODALITIES:
            raise UsageError(f"modality is `{modality}`, expected one of {', '.join(MODALITIES)}")
        start = time.perf_counter()
        blank = np.zeros_like(pixels) if isinstance(pixels, np.ndarray) else pixels
        checked = self._check({name: pixels if name == modality else blank for name in MODALITIES})
        embedding = np.empty((len(checked[modality]), self._width), np.float32)
        checks_ms = (time.perf_counter() - start) * 1e3
        self._held.require_untouched()
        _, stages_ms = self._pipeline.run(checked, embedding)
        start = time.perf_counter()
        head = self.bundle.single_heads[modality]
        part = head.of(embedding)
        said = self._single.run(modality, part)
        stages_ms["head"] = stages_ms.get("head", 0.0) + (time.perf_counter() - start) * 1e3
        return self._answer(said, part, stages_ms | {"checks": checks_ms}, head.threshold)

    def _answer(
        self, said: Mapping[str, Array], embedding: Array, stages_ms: Mapping[str, float], threshold: float
    ) -> Prediction:
        """What heads say of embeddings float32 [N, D], if it is an answer. Raises `AnswerError`, `DigestMismatch`."""
        start = time.perf_counter()
        self._held.require_untouched()
        probability, base = said["probability"], said.get("base_probability")
        # Trees send NaN left or right and give a number that looks right: what they see is checked on its own.
        count = len(embedding)
        if (bad := np.isfinite(embedding).min(axis=1) == 0).any():
            raise self._unanswered(bad, f"embeddings that are not finite for {int(bad.sum())} of {count} cases")
        if (bad := ~np.asarray((probability >= 0) & (probability <= 1))).any():
            raise self._unanswered(bad, f"{int(bad.sum())} of {count} probabilities that are not numbers in 0..1")
        if base is not None and not np.isfinite(base).all():
            bad = np.isfinite(base).min(axis=1) == 0
            raise self._unanswered(bad, f"base probabilities that are not finite for {int(bad.sum())} of {count} cases")
        spent = {**stages_ms, "checks": stages_ms["checks"] + (time.perf_counter() - start) * 1e3}
        return Prediction(probability, base, embedding, spent, threshold)

    def predict_files(self, mammography: Paths, ultrasound: Paths, *, frame: int | None = None) -> Prediction:
        """The prediction of image files: one of each, or as many of each, row by row of the same patient.

        frame: which to take of files that hold several. What a header says against an image that is read is a
        `HeaderWarning`, and so is a pair that looks swapped, or unlike what the model has learnt from. Raises like
        `predict`, `ImageError` for a file that can't be read or must not be trusted, and `UsageError` for other numbers
        of files.
        """
        given = {name: listed(one) for name, one in zip(MODALITIES, (mammography, ultrasound), strict=True)}
        counts = [len(paths) for paths in given.values()]
        if len(set(counts)) != 1 or not counts[0]:
            raise UsageError(
                f"there are {counts[0]} mammograms and {counts[1]} ultrasound images, expected one pair for each case",
                hint="name one file of each, or as many of each",
            )
        pixels, said = read_pairs(given, self.bundle.preprocessing, self.bundle.modality_check, frame)
        for one in said:
            warnings.warn(one, HeaderWarning, stacklevel=2)
        return self.predict(pixels)

    def _unanswered(self, bad: Array, what: str) -> AnswerError:
        """bad: bool [N]."""
        return AnswerError(
            f"{self.target} gave {what}",
            hint="`mpmmu-rt verify BUNDLE` tells whether this target computes the model correctly here",
            rows=tuple(np.flatnonzero(bad).tolist()),
        )

    def feature_maps(self, pixels: Mapping[Modality, Array]) -> dict[Modality, Array]:
        """The last feature map of each encoder, float32, for looking inside. Loads the encoders for this one call."""
        checked = self._check(pixels)
        maps: dict[Modality, Array] = {}
        for modality in MODALITIES:
            found = self._run_once(self.encoder_graph(modality), {"pixels": checked[modality]})["feature_map"]
            maps[modality] = found.astype(np.float32, copy=False)
        return maps

    @property
    def shows_tensors(self) -> bool:
        """Whether `tensors` can be asked of this engine."""
        return isinstance(self._engine, ShowsTensors)

    def tensors(
        self, pixels: Mapping[Modality, Array], names: Mapping[Modality, Sequence[str]]
    ) -> dict[Modality, dict[str, Array]]:
        """`feature_map` of each encoder in `names` and, of what its graph computes on the way, the tensors of these
        names, float32. Loads the encoders for this one call.

        Raises `EngineError` for an engine that can't show them.
        """
        if not isinstance(self._engine, ShowsTensors):  # as `shows_tensors` says
            raise EngineError(
                f"{self.target} can't show what its graphs compute on the way, expected an engine that can",
                hint="use onnxruntime:fp32",
            )
        checked = self._check(pixels)
        found: dict[Modality, dict[str, Array]] = {}
        for modality, wanted in names.items():
            session = self._engine.load_showing(
                self.encoder_graph(modality), wanted, self.target.precision, self.threads
            )
            try:
                self.bundle.require_unchanged()
                said = session.run({"pixels": checked[modality]})
            finally:
                session.close()
            found[modality] = {name: array.astype(np.float32, copy=False) for name, array in said.items()}
        return found

    def encoder_graph(self, modality: Modality) -> Path:
        """The graph of an encoder that this target runs."""
        return self._engine.graph(self.bundle, modality, self.target.precision)

    def run_whole_graph(self, pixels: Mapping[Modality, Array]) -> dict[str, Array]:
        """`probability` and `embedding` from the joined graph, which engines that take one graph are built from."""
        return self.run_graph("model", {f"{modality}_pixels": array for modality, array in self._check(pixels).items()})

    def run_graph(self, graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of any graph of the bundle, loaded for this one call.

        The export uses it to prove the graphs that this target itself does not run.
        """
        return self._run_once(self.bundle.graph(graph), feeds)

    def _run_once(self, graph: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._engine.load(graph, self.target.precision, self.threads)
        try:
            self.bundle.require_unchanged()
            return session.run(feeds)
        finally:
            session.close()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What stands in here for what was asked for, and why, such as an engine that was built anew; first of all
        that the model is untrained."""
        said = self.bundle.warning
        return (*([said] if said else []), *self._pipeline.remarks)

    def counts(self, cases: int) -> dict[str, int | str]:
        """What the engine tells of a call of so many cases, which has run before: see `mpmmu_rt.counts`."""
        return self._pipeline.counts(cases) if isinstance(self._pipeline, Counted) else {}

    @property
    def _width(self) -> int:
        return int(self.bundle.tensors["embedding"].shape[1])

    def _check(self, pixels: Mapping[Modality, Array]) -> dict[Modality, Array]:
        if self._process != os.getpid():
            raise EngineError(
                f"the Predictor was loaded in process {self._process} and is used in {os.getpid()}, a fork of it, "
                "expected the process that loaded it",
                hint="load the bundle in each process once it runs, or start processes by `spawn`",
            )
        return self.check(pixels)

    def check(self, pixels: Mapping[Modality, Array]) -> dict[Modality, Array]:
        """The pixels that `predict` takes, ready for the engine. Raises `PixelsError` for others."""
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
        self._single.close()
        self._pipeline.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _room(embedding: object, shape: tuple[int, int], pixels: Mapping[Modality, Array]) -> Array:
    """`embedding`, to be written to while `pixels` are read, or a new array. Raises `UsageError` for what can't hold
    `shape`, or lies where they do."""
    if embedding is None:
        return np.empty(shape, np.float32)
    if not isinstance(embedding, np.ndarray) or hasattr(embedding, "mask"):  # a mask keeps values from being written
        got = f"a {type(embedding).__name__}"
    else:
        got = f"{'' if embedding.flags.writeable else 'read-only '}{embedding.dtype}{list(embedding.shape)}"
        shares = [f"with the pixels of {name}" for name, one in pixels.items() if _share(embedding, one)]
        shares += ["among its rows"] if _overlaps(embedding) else []
        if got == f"float32{list(shape)}" and not shares:
            return embedding
        got += f" that shares memory {' and '.join(shares)}" if shares else ""
    raise UsageError(
        f"`embedding` is {got}, expected float32{list(shape)} to write to", hint="leave it out to get a new array"
    )


def _share(one: Array, other: Array) -> bool:
    """Whether a byte is of both, or that is too hard to tell. Bounds alone don't say: a record's fields lie in each
    other's."""
    try:
        most: Any = 100_000  # the stubs know 0 and -1 alone
        return np.may_share_memory(one, other) and np.shares_memory(one, other, max_work=most)
    except np.exceptions.TooHardError:
        return True


def _overlaps(array: Array) -> bool:
    """Whether elements may lie at one address: what is written for one case would be read for another."""
    room = array.itemsize
    for stride, length in sorted((abs(one), many) for one, many in zip(array.strides, array.shape, strict=True)):
        if length > 1 and stride < room:
            return True
        room += stride * (length - 1)
    return False


def listed(paths: Paths) -> list[Path]:
    """One path, or several."""
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(one) for one in paths]


def load(
    path: StrPath, target: str = DEFAULT_TARGET, *, threads: int | None = None, unproven: bool = False
) -> Predictor:
    """Open the bundle at `path`, check its digests, and load it on `target`. Raises as these two do."""
    return Predictor(Bundle.open(Path(path)), Target.parse(target), threads=threads, unproven=unproven)
