from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.bundle import seal
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.spec import MODALITIES
from tests.conftest import once
from tests.test_predictor import ROOT, SAME, levels, tiny_bundle

from .serving import BUNDLE


@pytest.fixture(scope="session")
def predictor() -> Iterator[Predictor]:
    """What every answer of a server is held to: of as many threads as that one has."""
    with load(BUNDLE) as found:
        yield found


@pytest.fixture(scope="session")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 4 × 4 that says the root of (grey - 0.5): no number for what is darker than the middle. Read only."""

    def make(path: Path) -> None:
        folder = tiny_bundle(path, pool=SAME, head=ROOT)
        pixels = levels(140, 200, 255)
        entry = json.loads((folder / "bundle.json").read_text())
        golden = {f"{name}.pixels": pixels[name] for name in MODALITIES}
        with load(folder) as predictor:
            golden |= {f"{name}.feature_map": array for name, array in predictor.feature_maps(pixels).items()}
            said = predictor.predict(pixels)
        golden |= {"embedding": said.embedding, "probability": said.probability}
        np.savez(folder / "golden.npz", allow_pickle=False, **golden)
        seal(folder, {key: value for key, value in entry.items() if key != "sha256"})

    return once(tmp_path_factory, "rooted.bundle", make)
