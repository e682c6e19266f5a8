"""A checkpoint as what `evaluate` judges: torch and scikit-learn, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt.errors import AnswerError, CheckpointError
from mpmmu_rt.evaluation.systems import System
from mpmmu_rt.known_images import KnownImages
from mpmmu_rt.spec import Array, Modality, StrPath

from . import checkpoint as checkpoints
from .stage_one import embed
from .training import fuse


def checkpoint_system(folder: StrPath, *, trust_pickle: StrPath | None = None) -> System:
    """Raises `CheckpointError`, also for a head of other classes than 0 and 1."""
    folder = Path(folder)
    loaded = checkpoints.load(folder, trust_pickle=trust_pickle)
    _require_binary(folder, loaded.head)

    def predict(pixels: Mapping[Modality, Array]) -> Array:
        embedding = fuse({modality: embed(loaded.encoders[modality], array) for modality, array in pixels.items()})
        bad = np.isfinite(embedding).min(axis=1) == 0
        if bad.any():  # trees send NaN left or right and give a number that looks right
            raise AnswerError(
                f"torch gave embeddings that are not finite for {int(bad.sum())} of {len(embedding)} cases",
                hint="the checkpoint's weights are damaged, or its training diverged",
                rows=tuple(np.flatnonzero(bad).tolist()),
            )
        found: Array = loaded.head.predict_proba(embedding)[:, 1].astype(np.float32)
        return found

    return System(
        path=str(folder),
        kind="checkpoint",
        name=folder.resolve().name,
        target="torch",
        digest=loaded.digest,
        trained=True,
        threshold=loaded.threshold,
        card=loaded.card,
        preprocessing=loaded.config.preprocessing,
        predict=predict,
        known_images=KnownImages.from_json(loaded.known_images),
        modality_check=loaded.modality_check,
    )


def _require_binary(folder: Path, head: Any) -> None:
    """`predict_proba` has a column for each class, sorted: of `malignant` and `normal` the second is that of normal."""
    classes = np.asarray(getattr(head, "classes_", ())).tolist()
    if classes != [0, 1]:
        raise CheckpointError(
            f"the head of {folder} tells the classes {classes}, expected 0 (benign) and 1 (malignant)",
            hint="fit it on labels 0 and 1, both present, and write the checkpoint again",
        )
