"""What the tests of heads share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """OpenMP's waiting threads take longer than the tiny models of these tests."""
    with threadpool_limits(1):
        yield
