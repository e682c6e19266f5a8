"""What a device can prove about a bundle without the original model.

Two kinds of check: the golden vectors that travel in the bundle (does this target compute the model?) and
self-consistency (does a case get the same answer whatever shares its batch?). The second catches engines that
mix up rows at batch sizes above 1, which a single comparison does not see.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .checks import Check, probability_difference, relative_difference
from .facts import AS_PROVEN_PROBABILITY, AS_PROVEN_RELATIVE, PROBABILITY_TOLERANCE, TOLERANCES
from .predictor import Prediction, Predictor
from .spec import MODALITIES, Array, Modality

# The same graph on the same rows may be blocked differently by batch size: the same kind of difference.
# 35: more than engines take at once (32 unless exported otherwise), so that it runs in parts.
BATCHES = (1, 2, 7, 32, 35)


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
