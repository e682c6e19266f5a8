"""What a device can prove about a bundle without the original model.

Three kinds of check: the golden vectors that travel in the bundle (does this target compute the model, and which stage
does not?), self-consistency (does a case get the same answer whatever shares its batch?), and the precision (does it
compute in what it claims?). The second catches engines that mix up rows at batch sizes above 1, which a single
comparison does not see. `mpmmu_rt.decisions` holds a target to another one on the user's own cases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from .checks import Check, decide, figure, probability_difference, relative_difference
from .decisions import recorded
from .engines import Session, TellsPrecision, engines, known_engine
from .errors import AnswerError, EngineError, ParityError
from .facts import (
    AS_PROVEN_PROBABILITY,
    AS_PROVEN_RELATIVE,
    PROBABILITY_TOLERANCE,
    RELATIVE_TOLERANCE,
    TOLERANCES,
)
from .predictor import DEFAULT_TARGET, Prediction, Predictor
from .single_record import golden_of
from .spec import MODALITIES, Array, Modality, Target

# The same graph on the same rows may be blocked differently by batch size: the same kind of difference.
# 35: more than engines take at once (32 unless exported otherwise), so that it runs in parts.
BATCHES = (1, 2, 7, 32, 35)
_EXACT_HEAD = "golden head on the same embedding, max |Δp|"
# The first of these that fails names the stage: each is judged on what the one before it gave.
_STAGES = (
    *((f"golden {modality} feature map, relative", f"the {modality} encoder") for modality in MODALITIES),
    ("golden embedding, relative", "the attention pool"),
    (_EXACT_HEAD, "the stacking head"),
)
_STALE = "golden probability of the golden embedding, max |Δp|"
_MOVED = "embedding in any batch against batch 1, relative"
_MIXED = "rows in any batch that are nearer to another case"
_BESIDE = "head in any batch on its embedding, max |Δp|"


def verify(predictor: Predictor) -> list[Check]:
    """Run every check on `predictor`; a list of `Check` in a fixed order. Raises only if the engine itself fails."""
    golden = predictor.bundle.golden()
    pixels: dict[Modality, Array] = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    try:
        prediction = predictor.predict(pixels)
    except AnswerError as error:
        return [Check("golden cases without an answer", float(len(error.rows)), 0.0)]
    with portable_head(predictor) as head:
        return [
            *_golden_checks(predictor, prediction, golden, pixels),
            *_head_checks(head, prediction, golden),
            *_as_proven(predictor, prediction, golden),
            *_single_checks(predictor, golden),
            *_precision_checks(predictor),
            *self_consistency(predictor, pixels, _steadiness(predictor, prediction, golden), head),
        ]


def replay(predictor: Predictor) -> list[Check]:
    """The golden vectors alone, together and one by one: what a server proves before it takes requests, in a fraction
    of the time of `verify`. Raises only if the engine itself fails."""
    golden = predictor.bundle.golden()
    pixels: dict[Modality, Array] = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    try:
        together = predictor.predict(pixels)
        alone = [predictor.predict(_rows(pixels, [row])) for row in range(len(together.probability))]
    except AnswerError as error:
        return [Check("golden cases without an answer", float(len(error.rows)), 0.0)]
    one_by_one = np.concatenate([one.probability for one in alone])
    return [
        *_answer_checks(predictor, together, golden),
        *_as_proven(predictor, together, golden),
        *_single_checks(predictor, golden),
        Check(
            "golden cases one by one against together",
            probability_difference(one_by_one, together.probability),
            _steadiness(predictor, together, golden).probability,
        ),
    ]


def require_replayed(predictor: Predictor) -> None:
    """Raise `ParityError` unless the golden vectors come out as they were sealed."""
    failed = [check for check in replay(predictor) if not check.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{predictor.target} does not compute the bundle here: {first.name} is {figure(first.value)}, expected at "
            f"most {figure(first.limit)}",
            hint="`mpmmu-rt verify BUNDLE --target TARGET` names the stage; use another target or version of the "
            "engine",
        )


def stage_at_fault(checks: Iterable[Check]) -> str:
    """Which stage of the way leaves its tolerance first, of the checks of `verify`; "" where none does by itself.

    Where every encoder is off, it may as well be the golden vectors that are another model's.
    """
    failed = {check.name for check in checks if not check.passed}
    if _STALE in failed and _EXACT_HEAD not in failed:
        return "the golden vectors, which contradict themselves"
    encoders = [stage for name, stage in _STAGES[: len(MODALITIES)] if name in failed]
    if len(encoders) == len(MODALITIES):
        return f"{' and '.join(encoders)}, or the golden vectors are another model's"
    later = [stage for name, stage in _STAGES[len(MODALITIES) :] if name in failed]
    if _BESIDE in failed:
        later.append("the stacking head, in some batches")
    if failed & {_MOVED, _MIXED}:
        later.append("the encoders or the attention pool, in some batches")
    return next(iter([*encoders, *later]), "")


class PortableHead:
    """The head's portable graph in FP32: what must be said of an embedding, by another graph than ONNX Runtime's own.

    From a graph that can't be loaded or run every difference is infinite.
    """

    def __init__(self, load: Callable[[], Session]) -> None:
        """load: called when the head is first asked."""
        self._load = load
        self._session: Session | None = None

    def probability(self, embedding: Array) -> Array:
        """float32 [N], of embeddings float32 [N, D]. Raises `EngineError`."""
        if self._session is None:
            self._session = self._load()
        return self._session.run({"embedding": np.ascontiguousarray(embedding, np.float32)})["probability"]

    def difference(self, embedding: Array, probability: Array) -> float:
        """max |Δp| of `probability` [N] from what the head says of `embedding` [N, D]."""
        if not np.isfinite(embedding).all():
            return float("inf")
        try:
            return probability_difference(probability, self.probability(embedding))
        except EngineError:
            return float("inf")

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


@contextlib.contextmanager
def portable_head(predictor: Predictor) -> Iterator[PortableHead | None]:
    """On ONNX Runtime, else on the engine on which the head of `predictor` runs; None where neither loads graphs as
    they are, which TensorRT doesn't. Closed at the end of the block."""
    for name in (Target.parse(DEFAULT_TARGET).engine, predictor.head_target.engine):
        engine = engines()[name]
        if engine.problem() is None and not engine.traits.profiled:
            graph, threads = predictor.bundle.graph("head"), predictor.threads
            head = PortableHead(partial(engine.load, graph, "fp32", threads))
            try:
                yield head
            finally:
                head.close()
            return
    yield None


def _head_checks(head: PortableHead | None, prediction: Prediction, golden: Mapping[str, Array]) -> list[Check]:
    """The head runs in FP32, whatever the encoders do: what it says of an embedding is known to the last digits."""
    if head is None:
        return []
    return [
        Check(name, head.difference(embedding, probability), PROBABILITY_TOLERANCE)
        for name, embedding, probability in (
            (_EXACT_HEAD, prediction.embedding, prediction.probability),
            (_STALE, golden["embedding"], golden["probability"]),
        )
    ]


def _as_proven(predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array]) -> list[Check]:
    if not predictor.target.in_8_bits:
        return []
    want = predictor.bundle.golden_of(predictor.target, golden)
    return [
        Check(
            "golden embedding, relative to that at export",
            relative_difference(prediction.embedding, want["embedding"]),
            AS_PROVEN_RELATIVE,
        ),
        Check(
            "golden probability, max |Δp| to that at export",
            probability_difference(prediction.probability, want["probability"]),
            AS_PROVEN_PROBABILITY,
        ),
    ]


def _single_checks(predictor: Predictor, golden: Mapping[str, Array]) -> list[Check]:
    """Heads for one modality, where there are such and this target may run them."""
    if predictor.target.precision != "fp32":
        return []
    tolerance, checks = TOLERANCES["fp32"], []
    for modality, head in predictor.bundle.single_heads.items():
        want = golden[golden_of(modality)]
        try:
            said = predictor.predict_single(modality, golden[f"{modality}.pixels"])
        except AnswerError as error:
            checks.append(Check(f"golden {modality} alone, cases without an answer", float(len(error.rows)), 0.0))
            continue
        moved = probability_difference(said.probability, want)
        clear = np.abs(want - head.threshold) >= tolerance.margin
        flipped = float(np.sum((said.malignant != decide(want, head.threshold)) & clear))
        checks += [
            Check(f"golden probability of the {modality} alone, max |Δp|", moved, tolerance.probability),
            Check(f"golden decisions of the {modality} alone flipped", flipped, 0.0),
        ]
    return checks


def _golden_checks(
    predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array], pixels: Mapping[Modality, Array]
) -> list[Check]:
    tolerance = TOLERANCES[predictor.target.precision]
    feature_maps = predictor.feature_maps(pixels)
    return [
        *(
            Check(
                f"golden {modality} feature map, relative",
                relative_difference(feature_maps[modality], golden[f"{modality}.feature_map"]),
                tolerance.relative,
            )
            for modality in MODALITIES
        ),
        *_answer_checks(predictor, prediction, golden),
    ]


def _answer_checks(predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array]) -> list[Check]:
    tolerance = TOLERANCES[predictor.target.precision]
    threshold = predictor.bundle.threshold
    embedding = relative_difference(prediction.embedding, golden["embedding"])
    probability = probability_difference(prediction.probability, golden["probability"])
    flipped = decide(prediction.probability, threshold) != decide(golden["probability"], threshold)
    clear = np.abs(golden["probability"] - threshold) >= tolerance.margin
    return [
        Check("golden embedding, relative", embedding, tolerance.relative),
        Check("golden probability, max |Δp|", probability, tolerance.probability),
        Check("golden decisions flipped", float(np.sum(flipped & clear)), 0.0),
    ]


def _precision_checks(predictor: Predictor) -> list[Check]:
    """INT8: as many layers as were quantized at export are computed in 8 bits, by the engine's own word.

    The numbers can't tell: a layer that stayed in float is nearer to the original than what was claimed.
    """
    target, found = predictor.target, known_engine(predictor.target)
    if not target.in_8_bits or not isinstance(found, TellsPrecision):
        return []
    report = predictor.bundle.proof(target)
    if not isinstance(report.get("layers"), int):
        return []
    claimed = report["layers"] - len(report["kept_float"])
    computed = found.layers_in_8_bits(predictor.bundle, target.precision, predictor.threads)
    return [Check("layers that were to be 8 bits wide and are not", float(max(0, claimed - computed)), 0.0)]


@dataclass(frozen=True)
class Steadiness:
    """How far what shares its batch may move a case: relative, of its embedding; probability, |Δp|."""

    relative: float = RELATIVE_TOLERANCE
    probability: float = PROBABILITY_TOLERANCE


def _steadiness(predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array]) -> Steadiness:
    """FP32's tolerances where a case is computed alone in any batch, and in FP32.

    Else an engine may round otherwise in a batch. Both answers are then within the precision's error of the FP32 one,
    so that they are within twice that error of each other, by the triangle inequality. The error is the one that the
    export has stored: of the embedding, for TensorRT and onnxruntime-cuda in its report, and for INT8 as golden
    vectors; else it is what the golden vectors show here. Of the probability, the largest |Δp| on the cases that the
    target was judged on. A few cases show less than the largest error there is: twice that, up to what is borne at all.
    """
    precision = predictor.target.precision
    if precision == "fp32" or known_engine(predictor.target).traits.case_by_case:
        return Steadiness()
    tolerance = TOLERANCES[precision]
    own = predictor.bundle.golden_of(predictor.target, golden)["embedding"] if predictor.target.in_8_bits else None
    here = relative_difference(prediction.embedding if own is None else own, golden["embedding"])
    stored = recorded(predictor.bundle, predictor.target)
    checks = {check["name"]: check["value"] for check in stored.get("checks", ())}
    relative = 2 * min(2 * (checks.get("embedding, relative") or here), tolerance.relative)
    probability = 2 * min(2 * (stored.get("max_difference") or tolerance.probability), tolerance.probability)
    return Steadiness(max(relative, RELATIVE_TOLERANCE), max(probability, PROBABILITY_TOLERANCE))


def self_consistency(
    predictor: Predictor,
    pixels: Mapping[Modality, Array],
    steadiness: Steadiness | None = None,
    head: PortableHead | None = None,
) -> list[Check]:
    """Does a case's answer depend on the batch that it comes in? Checked at every size of `BATCHES`.

    head: the portable head, to hold what is said of each embedding to; None to leave that out.
    """
    steadiness = steadiness or Steadiness()
    count = len(next(iter(pixels.values())))
    try:
        first = [predictor.predict(_rows(pixels, [row])) for row in range(count)]
    except AnswerError:
        return [Check("cases without an answer in a batch of 1", 1.0, 0.0)]
    alone = np.concatenate([one.probability for one in first])
    embeddings = np.concatenate([one.embedding for one in first])
    checks: list[Check] = []
    moved = mixed = beside = 0.0
    for size in BATCHES:
        rows = (np.arange(size) + np.arange(size) // 32) % count  # a second part that is not the first again
        try:
            together = predictor.predict(_rows(pixels, rows))
            backwards = predictor.predict(_rows(pixels, rows[::-1]))
        except AnswerError as error:
            checks.append(Check(f"batch {size}, cases without an answer", float(len(error.rows)), 0.0))
            continue
        reversed_rows = backwards.probability[::-1]
        for said, order in ((together, rows), (backwards, rows[::-1])):
            moved = max(moved, relative_difference(said.embedding, embeddings[order]))
            mixed += _strays(said.embedding, embeddings, order)
            if head is not None:
                beside = max(beside, head.difference(said.embedding, said.probability))
        checks += [
            Check(
                f"batch {size} against batch 1",
                probability_difference(together.probability, alone[rows]),
                steadiness.probability,
            ),
            Check(
                f"batch {size} in reverse order",
                probability_difference(reversed_rows, together.probability),
                steadiness.probability,
            ),
        ]
    return [
        *checks,
        Check(_MOVED, moved, steadiness.relative),
        Check(_MIXED, mixed, 0.0),
        *([] if head is None else [Check(_BESIDE, beside, PROBABILITY_TOLERANCE)]),
    ]


def _strays(got: Array, alone: Array, rows: Array) -> float:
    """How many of the embeddings `got` [n, D] are nearer to another case's (`alone` [N, D]) than to that of their own.

    Whatever the precision costs: rounding makes no case another one.
    """
    if got.shape[1:] != alone.shape[1:] or not np.isfinite(got).all():
        return float(len(rows))
    distances = np.stack([np.square(got.astype(np.float64) - one).sum(1) for one in alone], 1)
    own = distances[np.arange(len(rows)), rows]
    return float((distances.min(1) < own).sum())


def _rows(pixels: Mapping[Modality, Array], rows: Array | list[int]) -> dict[Modality, Array]:
    return {modality: np.ascontiguousarray(array[rows]) for modality, array in pixels.items()}
