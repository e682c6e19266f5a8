"""What a device can prove about a bundle without the original model.

Two kinds of check: the golden vectors that travel in the bundle (does this target compute the model?) and
self-consistency (does a case get the same answer whatever shares its batch?). The second catches engines that
mix up rows at batch sizes above 1, which a single comparison does not see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .predictor import Prediction, Predictor
from .spec import MODALITIES, Array, Modality

# FP32 sums of some 10⁴ terms in another order differ by about 10⁻⁵ of the largest value; 10 times that.
RELATIVE_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """How far a target may be from the FP32 original on single cases.

    relative: of feature maps and embedding, max |Δ| / max |want|. probability: max |Δp|. margin: a decision may flip
    if the original's probability is at most so far from the threshold. What a precision costs in decisions is judged
    at export, on many cases; this here catches a device that computes something else.
    """

    relative: float
    probability: float
    margin: float


# BF16 has 8 bits, and its error grows through some 50 layers; INT8 likewise. A forest turns that into steps of its own.
TOLERANCES = {
    "fp32": Tolerance(RELATIVE_TOLERANCE, PROBABILITY_TOLERANCE, 0.0),
    "bf16": Tolerance(0.1, 0.35, 0.35),
    "fp16": Tolerance(0.02, 0.2, 0.2),
    "int8": Tolerance(0.4, 0.5, 0.5),
}
# How far INT8 may be from what the same graphs said at export. They decide every code but those that lie next to a
# step: OpenVINO against ONNX Runtime, 4 cases at a time, is at most 0.07 of the embedding off and 0.25 in probability
# (tiny and reference model, signed and unsigned). Products that saturate were off by up to 0.47 and 0.74.
AS_PROVEN_RELATIVE = 0.1
AS_PROVEN_PROBABILITY = 0.3
# The same graph on the same rows may be blocked differently by batch size: the same kind of difference.
# 35: more than engines take at once (32 unless exported otherwise), so that it runs in parts.
BATCHES = (1, 2, 7, 32, 35)


@dataclass(frozen=True)
class Check:
    """A measured difference and the limit that it must not pass."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return bool(self.value <= self.limit)  # NaN fails

    def to_json(self) -> dict[str, str | float | bool | None]:
        """`value` is None where there is no finite difference, which JSON can't say."""
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "limit": self.limit, "passed": self.passed}


def relative_difference(got: Array, want: Array) -> float:
    """max |got - want| / max |want|: the error in units of the tensor's own scale; infinite for other shapes or NaN."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(want).max())
    return float(np.abs(got.astype(np.float64) - want).max() / (scale or 1.0))


def probability_difference(got: Array, want: Array) -> float:
    """max |Δp|; infinite for other shapes or NaN."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - want).max())


def verify(predictor: Predictor) -> list[Check]:
    """Run every check on `predictor`; a list of `Check` in a fixed order. Raises only if the engine itself fails."""
    golden = predictor.bundle.golden()
    pixels: dict[Modality, Array] = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    prediction = predictor.predict(pixels)
    return [
        *_golden_checks(predictor, prediction, golden, pixels),
        *_as_proven(predictor, prediction, golden),
        *self_consistency(predictor, pixels),
    ]


def _as_proven(predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array]) -> list[Check]:
    if predictor.target.precision != "int8":
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


def _golden_checks(
    predictor: Predictor, prediction: Prediction, golden: Mapping[str, Array], pixels: Mapping[Modality, Array]
) -> list[Check]:
    tolerance = TOLERANCES[predictor.target.precision]
    threshold = predictor.bundle.threshold
    feature_maps = predictor.feature_maps(pixels)
    checks = [
        Check(
            f"golden {modality} feature map, relative",
            relative_difference(feature_maps[modality], golden[f"{modality}.feature_map"]),
            tolerance.relative,
        )
        for modality in MODALITIES
    ]
    embedding = relative_difference(prediction.embedding, golden["embedding"])
    probability = probability_difference(prediction.probability, golden["probability"])
    flipped = (prediction.probability >= threshold) != (golden["probability"] >= threshold)
    clear = np.abs(golden["probability"] - threshold) >= tolerance.margin
    return [
        *checks,
        Check("golden embedding, relative", embedding, tolerance.relative),
        Check("golden probability, max |Δp|", probability, tolerance.probability),
        Check("golden decisions flipped", float(np.sum(flipped & clear)), 0.0),
    ]


def self_consistency(predictor: Predictor, pixels: Mapping[Modality, Array]) -> list[Check]:
    """Does a case's probability depend on the batch it comes in? Checked at every size of `BATCHES`."""
    count = len(next(iter(pixels.values())))
    alone = np.concatenate([predictor.predict(_rows(pixels, [row])).probability for row in range(count)])
    checks = []
    for size in BATCHES:
        rows = (np.arange(size) + np.arange(size) // 32) % count  # a second part that is not the first again
        together = predictor.predict(_rows(pixels, rows)).probability
        reversed_rows = predictor.predict(_rows(pixels, rows[::-1])).probability[::-1]
        checks += [
            Check(
                f"batch {size} against batch 1",
                probability_difference(together, alone[rows]),
                PROBABILITY_TOLERANCE,
            ),
            Check(
                f"batch {size} in reverse order",
                probability_difference(reversed_rows, together),
                PROBABILITY_TOLERANCE,
            ),
        ]
    return checks


def _rows(pixels: Mapping[Modality, Array], rows: Array | list[int]) -> dict[Modality, Array]:
    return {modality: np.ascontiguousarray(array[rows]) for modality, array in pixels.items()}
