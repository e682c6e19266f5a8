"""Predict calls and the image path, by pytest-benchmark; what was timed is checked afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from mpmmu_rt import Predictor
from mpmmu_rt.facts import PROBABILITY_TOLERANCE
from mpmmu_rt.images import Preprocessing, read_pixels
from mpmmu_rt.tiles import tile


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_predict(benchmark: BenchmarkFixture, predictor: Predictor, batch: int) -> None:
    golden = predictor.bundle.golden()
    pixels = tile(golden, batch)
    prediction = benchmark.pedantic(lambda: predictor.predict(pixels), rounds=7, warmup_rounds=2)
    want = np.resize(golden["probability"], batch)
    np.testing.assert_allclose(prediction.probability, want, rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "depth"), [(512, 8), (3328, 16)])
def test_read_pixels(benchmark: BenchmarkFixture, tmp_path: Path, side: int, depth: int) -> None:
    y, x = np.mgrid[:side, :side]
    values = ((x * y) % 2**depth).astype(f"uint{depth}")
    Image.fromarray(values).save(tmp_path / "image.png")
    pixels = benchmark.pedantic(lambda: read_pixels(tmp_path / "image.png", Preprocessing()), rounds=5, warmup_rounds=1)
    assert pixels.shape == (1, 224, 224)
    assert np.ptp(pixels) > 10
