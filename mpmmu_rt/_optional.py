"""The one door to optional packages."""

from __future__ import annotations

import importlib
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
    "skops": "export",
    "safetensors": "export",
    "pydicom": "dicom",
    "matplotlib": "plot",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import `module` (a dotted name), or raise `MissingPackage` that names the extra to install.

    A package that is present but broken raises too, with its own error as the cause: the reason
    why something can't run is never lost.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = _EXTRAS[top]
        missing = isinstance(error, ModuleNotFoundError) and error.name in (top, module)
        state = "is not installed" if missing else f"is installed but can't be imported ({error})"
        raise MissingPackage(
            f"{purpose} needs the package `{top}`, which {state}",
            hint=f"pip install 'mpmmu-rt[{extra}]'",
        ) from error
