"""The native library, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import once

from .native import Library, Toolchain, engines


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake built the library and its example. Read only."""
    return once(tmp_path_factory, "native.build", Toolchain().build)


@pytest.fixture(scope="session")
def library(build_folder: Path) -> Library:
    found = engines()
    if "onnxruntime" not in found:
        pytest.skip("onnxruntime is not installed: pip install 'mpmmu-rt[cpu]'")
    return Library(build_folder / "libmpmmu.so", found)
