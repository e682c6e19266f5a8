from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpmmu_rt import _optional
from mpmmu_rt._optional import require
from mpmmu_rt.errors import MissingPackage


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of sys.path, whose tensorrt_rtx is imported anew by each test."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_rtx"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "tensorrt_rtx"
    package.mkdir()
    return package


def test_what_is_there_is_imported() -> None:
    assert require("onnx.numpy_helper", "a test").__name__ == "onnx.numpy_helper"


def test_what_is_missing_names_purpose_package_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage, match=r"^seeing needs the package `openvino`, which is ") as caught:
        require("openvino", "seeing")
    assert caught.value.hint == "pip install 'mpmmu-rt[openvino]'"
    assert isinstance(caught.value.__cause__, ImportError)


def test_what_is_really_missing_is_called_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_optional._EXTRAS, "mpmmu_no_such_package", "cpu")
    for module in ("mpmmu_no_such_package", "mpmmu_no_such_package.sub"):
        with pytest.raises(MissingPackage, match="`mpmmu_no_such_package`, which is not installed"):
            require(module, "a test")


def test_a_package_without_one_of_its_own_dependencies_is_not_called_missing(packages: Path) -> None:
    (packages / "__init__.py").write_text("import mpmmu_no_such_package\n")
    with pytest.raises(MissingPackage, match=r"is installed but can't be imported \(No module named 'mpmmu_no_such"):
        require("tensorrt_rtx", "a test")


def test_a_broken_library_keeps_its_reason(packages: Path) -> None:
    (packages / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    with pytest.raises(MissingPackage, match=r"installed but can't be imported \(libcudart") as caught:
        require("tensorrt_rtx", "a test")
    assert caught.value.hint == "pip install --force-reinstall 'mpmmu-rt[rtx]'"  # else pip leaves it as it is


def test_an_error_that_is_no_import_error_is_not_hidden(packages: Path) -> None:
    (packages / "__init__.py").write_text("raise ZeroDivisionError\n")
    with pytest.raises(ZeroDivisionError):
        require("tensorrt_rtx", "a test")


def test_an_interruption_is_no_missing_package(packages: Path) -> None:
    """Ctrl-C while an extension module loads, which says only that it failed: the hint was to install it."""
    (packages / "__init__.py").write_text("raise ImportError('initialization failed') from KeyboardInterrupt()\n")
    with pytest.raises(KeyboardInterrupt):
        require("tensorrt_rtx", "a test")
