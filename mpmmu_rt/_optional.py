"""The one door to optional packages."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import MissingPackage

# import name -> extra of this distribution that brings it
_EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "platformdirs": "openvino",
    "tensorrt_rtx": "rtx",
    "tensorrt": "cuda",
    "cuda": "cuda",
    "cupy": "cuda",
    "cupyx": "cuda",
    "torch": "export",
    "sklearn": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "skops": "export",
    "safetensors": "export",
    "pydicom": "dicom",
    "imagecodecs": "codecs",
    "matplotlib": "plot",
    "scipy": "evaluate",
    "ray": "ray",
    "pyarrow": "ray",
    "fsspec": "fsspec",
}


# Libraries that report what is done with them, unless they are told not to before they are loaded. ONNX Runtime 1.32
# asks for mobile.events.data.microsoft.com after some 9 s of work and keeps a device's identity in ~/.cache/Microsoft.
_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
# OpenVINO's, which writes to ~/intel: a package of its own, which OpenVINO does without where it is not installed.
_REPORTER = "openvino_telemetry"


def silence() -> None:
    """Switch off the telemetry of libraries that this process loads from here on, unless the user turns it on."""
    for name, value in _TELEMETRY.items():
        os.environ.setdefault(name, value)


def quote_no_files() -> None:
    """Drop what pydicom warns of in this process: it quotes a damaged file, the patient's name too.

    For processes of our own, whose stderr may be kept as a log; what stands against an image is said by its row.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\.|mpmmu_rt\.dicom")


@contextmanager
def _without_reporter(top: str) -> Iterator[None]:
    if top != "openvino" or _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_REPORTER]


def require(module: str, purpose: str, extra: str | None = None) -> ModuleType:
    """Import `module` (a dotted name), or raise `MissingPackage` that names the extra to install: `extra`, where it is
    another one than brings the package to most.

    A package that is present but broken raises too, with its own error as the cause: the reason
    why something can't run is never lost.
    """
    top = module.partition(".")[0]
    try:
        with _without_reporter(top):
            return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as an extension module calls whatever ends its loading
            raise error.__cause__ from None
        missing = isinstance(error, ModuleNotFoundError) and error.name in (top, module)
        state = "is not installed" if missing else f"is installed but can't be imported ({error})"
        raise MissingPackage(
            f"{purpose} needs the package `{top}`, which {state}",
            hint=f"pip install {'' if missing else '--force-reinstall '}'mpmmu-rt[{extra or _EXTRAS[top]}]'",
        ) from error
