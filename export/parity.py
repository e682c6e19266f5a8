"""Parity: the exported model against torch and scikit-learn, stage by stage and in decisions.

The reference of a stage is the original in the precision in which it was trained: torch FP32 for the encoders,
scikit-learn on the FP32 embedding for the head.

A forest is a step function: an embedding that differs from torch's in its last bits may fall on the other side
of a split, in any implementation, torch on another machine included. Such a case is recognised by the head being
exact on the embedding that it really got; it may then differ by up to `CROSSING_TOLERANCE`, but never in its decision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from mpmmu_rt.checks import Check, crossing_limit, probability_difference, relative_difference
from mpmmu_rt.decisions import UNKNOWN
from mpmmu_rt.errors import AnswerError, ParityError
from mpmmu_rt.facts import CROSSING_TOLERANCE, PROBABILITY_TOLERANCE, RELATIVE_TOLERANCE
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import self_consistency

from .encoders import Encoders
from .flat import Flat

BATCH = 32
FLAT = "embedding of images with a part of one grey, relative"
BLANK = "cases with a blank image answered where the original has no number"
FLAT_HINT = (
    "clamp what the modules divide by, or take the logarithm or root of, to more than rounding makes of a flat image, "
    "and ask for no order or place of values that may be equal"
)
_OF_DECISIONS = ("probability, ", "split crossings, ", "decisions ")  # how the names of these checks begin
_ROUNDING_HINT = (
    "the embeddings agree to float32's rounding, and the head makes other probabilities of it: fit it on values that "
    f"vary by more than {RELATIVE_TOLERANCE:g} of the largest, or regularize it more"
)


@dataclass(frozen=True)
class Original:
    """What the original says of the parity cases: `<modality>.feature_map`, `embedding` and `probability`."""

    stages: Mapping[str, Array]

    @property
    def probability(self) -> Array:
        return self.stages["probability"]


def run_original(encoders: Encoders, head: Any, pixels: Mapping[Modality, Array]) -> Original:
    """Every stage of the original on pixels uint8 [N, 1, S, S]."""
    return with_head(encoders.run(pixels, BATCH), head)


def with_head(stages: Mapping[str, Array], head: Any) -> Original:
    """What the encoders say, with what scikit-learn says of it."""
    return Original({**stages, "probability": probability_of(head, stages["embedding"])})


def probability_of(head: Any, embedding: Array) -> Array:
    """scikit-learn's probability of class 1, float64 [N], of embeddings float32 [N, D]."""
    probability: Array = head.predict_proba(embedding)[:, 1]
    return probability


@dataclass(frozen=True)
class Parity:
    """The report: checks with limits, and what was found besides. `entry` is what the bundle stores."""

    checks: tuple[Check, ...]
    cases: int
    crossings: int
    flips: int
    auc: tuple[float, float] | None  # original, exported; None without labels of both classes

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self, target: str) -> dict[str, Any]:
        return {
            "target": target,
            "passed": self.passed,
            "cases": self.cases,
            "decisions_flipped": self.flips,
            "split_crossings": self.crossings,
            "auc_original": self.auc[0] if self.auc else None,
            "auc_exported": self.auc[1] if self.auc else None,
            "checks": [check.to_json() for check in self.checks],
        }

    def require(self, target: Target, asked: Target | None = None) -> None:
        """Raise `ParityError` unless every check passed. target: on which they were made; asked: what was to be had, if
        it is another."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            worst = failed[0]
            hint = (
                "no module may ask whether it is being exported; if none does, this is a defect of the conversion "
                "or of an installed version: report it with `mpmmu-rt doctor`"
            )
            if worst.name in (FLAT, BLANK):
                hint = FLAT_HINT
            elif all(check.name.startswith(_OF_DECISIONS) for check in failed):
                hint = _ROUNDING_HINT
            if str(target) != DEFAULT_TARGET:
                hint += f"; or leave {asked or target} out"
            raise ParityError(
                f"the exported model differs from the original on {target}: {worst.name} is {worst.value:.3g}, "
                f"expected at most {worst.limit:.3g} ({len(failed)} of {len(self.checks)} checks failed)",
                hint=hint,
            )


def measure(
    predictor: Predictor,
    original: Original,
    head: Any,
    pixels: Mapping[Modality, Array],
    labels: Array | None = None,
    progress: Progress = silent,
    flat: Flat | None = None,
) -> Parity:
    """Compare `predictor` with the original on pixels uint8 [N, 1, S, S] and on `flat`, then with itself across batch
    sizes."""
    count = len(original.probability)
    parts = []
    for start in range(0, count, BATCH):
        progress("checking parity", start, count, "cases")
        parts.append(predictor.predict({modality: pixels[modality][start : start + BATCH] for modality in MODALITIES}))
    progress("checking parity", count, count, "cases")
    embedding = np.concatenate([part.embedding for part in parts])
    probability = np.concatenate([part.probability for part in parts])
    few = {modality: pixels[modality][:BATCH] for modality in MODALITIES}
    feature_maps = predictor.feature_maps(few)
    checks = [
        Check(
            f"{modality} feature map, relative",
            relative_difference(feature_maps[modality], original.stages[f"{modality}.feature_map"][:BATCH]),
            RELATIVE_TOLERANCE,
        )
        for modality in MODALITIES
    ]
    checks.append(
        Check(
            "embedding, relative",
            relative_difference(embedding, original.stages["embedding"]),
            RELATIVE_TOLERANCE,
        )
    )
    if flat is not None:
        checks.append(flat_check(predictor.predict(flat.pixels).embedding, flat, RELATIVE_TOLERANCE))
        checks.append(blank_check(unanswered(predictor, flat.blank), flat))
    on_same_embedding = probability_difference(probability, probability_of(head, embedding))
    checks.append(Check("head on the same embedding, max |Δp|", on_same_embedding, PROBABILITY_TOLERANCE))
    portable = predictor.run_graph("head", {"embedding": embedding})["probability"]
    checks.append(
        Check(
            "portable head on it, max |Δp|",
            probability_difference(portable, probability_of(head, embedding)),
            PROBABILITY_TOLERANCE,
        )
    )
    decisions, crossings, flips = _decisions(probability, original.probability, predictor.bundle.threshold)
    few = {modality: pixels[modality][:4] for modality in MODALITIES}
    return Parity(
        checks=(*checks, *decisions, *self_consistency(predictor, few)),
        cases=count,
        crossings=crossings,
        flips=flips,
        auc=_auc(labels, original.probability, probability),
    )


def flat_check(embedding: Array, flat: Flat, limit: float) -> Check:
    """What was said of `flat`, float32 [N, D], against the original; NaN is over every limit."""
    return Check(FLAT, relative_difference(embedding, flat.embedding), limit)


def blank_check(not_answered: Collection[int], flat: Flat) -> Check:
    """Of `flat.blank`, those that were answered where the original has no number; `not_answered`: rows that were
    not."""
    return Check(BLANK, float(len(flat.unanswered.difference(not_answered))), 0.0)


def unanswered(predictor: Predictor, pixels: Mapping[Modality, Array]) -> tuple[int, ...]:
    """The rows of pixels uint8 [N, 1, S, S] that have no answer."""
    try:
        if pixels:
            predictor.predict(pixels)
    except AnswerError as error:
        return error.rows
    return ()


def single_checks(predictor: Predictor, heads: Mapping[Modality, Any], pixels: Mapping[Modality, Array]) -> list[Check]:
    """Heads for one modality (scikit-learn's) against what a bundle says of pixels uint8 [N, 1, S, S]: on the embedding
    that it got."""
    checks = []
    for modality, head in heads.items():
        worst = 0.0
        for start in range(0, len(pixels[modality]), BATCH):
            said = predictor.predict_single(modality, pixels[modality][start : start + BATCH])
            worst = max(worst, probability_difference(said.probability, probability_of(head, said.embedding)))
        checks.append(Check(f"head for {modality} alone, max |Δp|", worst, PROBABILITY_TOLERANCE))
    return checks


def _decisions(got: Array, want: Array, threshold: float) -> tuple[list[Check], int, int]:
    difference = np.abs(got.astype(np.float64) - want)
    crossed = difference > PROBABILITY_TOLERANCE
    flips = int(np.sum((got >= threshold) != (want >= threshold)))
    smooth = float(difference[~crossed].max(initial=0.0))
    return (
        [
            Check("probability, max |Δp|", smooth, PROBABILITY_TOLERANCE),
            Check("split crossings, share of cases", float(crossed.mean()), crossing_limit(len(got))),
            Check("split crossings, max |Δp|", float(difference.max()), CROSSING_TOLERANCE),
            Check("decisions flipped", float(flips), 0.0),
        ],
        int(crossed.sum()),
        flips,
    )


def _auc(labels: Array | None, original: Array, exported: Array) -> tuple[float, float] | None:
    if labels is None:
        return None
    known = labels != UNKNOWN
    if len(np.unique(labels[known])) < 2:
        return None
    before, after = (float(roc_auc_score(labels[known], said[known])) for said in (original, exported))
    return before, after
