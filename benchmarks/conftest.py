from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpmmu_rt import Predictor, load


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", type=Path, help="the bundle to measure, for example demo/reference.bundle")


@pytest.fixture(scope="session")
def predictor(request: pytest.FixtureRequest) -> Iterator[Predictor]:
    path: Path | None = request.config.getoption("--bundle")
    if path is None:
        pytest.skip("no bundle to measure: pass --bundle (`make bench` does)")
    with load(path) as loaded:
        yield loaded
