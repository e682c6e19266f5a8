"""Pixels to measure with: the golden ones, whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .checks import probability_difference
from .errors import EngineError
from .facts import TOLERANCES
from .spec import MODALITIES, Array, Modality, Target


def tile(golden: dict[str, Array], batch: int) -> dict[Modality, Array]:
    """The golden pixels repeated to `batch` pairs: real images, whose answer is known."""
    count = len(golden["probability"])
    rows = np.arange(batch) % count
    return {modality: np.ascontiguousarray(golden[f"{modality}.pixels"][rows]) for modality in MODALITIES}


def hold_to_golden(target: Target, answers: Sequence[Array], golden: dict[str, Array]) -> None:
    """Raise `EngineError` unless these probabilities float32 [N], all of `tile`'s pixels, are the golden ones."""
    want = golden["probability"]
    difference = max(probability_difference(one, np.resize(want, len(one))) for one in answers)
    limit = TOLERANCES[target.precision].probability
    if not difference <= limit:
        raise EngineError(
            f"{target} was fast but wrong: golden probabilities differ by {difference:.3g}, expected at most "
            f"{limit:.3g}",
            hint="`mpmmu-rt verify BUNDLE` says in which stage",
        )
