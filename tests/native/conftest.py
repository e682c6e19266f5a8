"""The native library, built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpmmu_rt.cli import app
from tests.conftest import once

from .native import Library, build, engines


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mpmmu-rt native` writes. Read only."""

    def write(path: Path) -> None:
        said = CliRunner().invoke(app, ["native", "-o", str(path)])
        assert said.exit_code == 0, said.stderr

    return once(tmp_path_factory, "native.sources", write)


@pytest.fixture(scope="session")
def build_folder(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake built that: the library and its example. Read only."""
    return once(tmp_path_factory, "native.build", lambda path: build(path, written))


@pytest.fixture(scope="session")
def library(build_folder: Path) -> Library:
    found = engines()
    if "onnxruntime" not in found:
        pytest.skip("onnxruntime is not installed: pip install 'mpmmu-rt[cpu]'")
    return Library(build_folder / "libmpmmu.so", found)
