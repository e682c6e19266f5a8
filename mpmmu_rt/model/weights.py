"""Weights to start training from: a file of torch or safetensors, as torchvision and others write them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.files import sha256_file
from mpmmu_rt.spec import StrPath

MAX_BYTES = 2 * 2**30
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."  # of torch.nn.DataParallel
_HINT = "name the weights of a torchvision ResNet: a .safetensors file, or a state dict that torch.save wrote"


@dataclass(frozen=True)
class Weights:
    """A state dict, and the file that it comes from."""

    path: Path
    sha256: str
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, given: StrPath | Weights | None) -> Weights | None:
        """Those that are given, or in the file. Raises `CheckpointError`."""
        return given if given is None or isinstance(given, Weights) else cls.read(given)

    @classmethod
    def read(cls, path: StrPath) -> Weights:
        """Read a state dict, also one inside `{"state_dict": …}`, or of a module in DataParallel.

        No code in the file is run: what is no tensor, number or text is refused. Raises `CheckpointError`.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is no file, expected weights", hint=_HINT)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, expected at most {MAX_BYTES}", hint=_HINT)
        return cls(path, sha256_file(path), _state(path, _read(path)))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a protocol that torch did not write, which it reads
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything of a damaged file: AssertionError, IndexError, struct.error, …
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        message = f"{path} can't be read as weights ({reason}), expected a state dict"
        raise CheckpointError(message, hint=_HINT) from error


def _state(path: Path, found: Any) -> dict[str, Tensor]:
    while isinstance(found, Mapping) and (inner := next((name for name in _NESTED if name in found), None)):
        if not isinstance(found[inner], Mapping):
            break
        found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(one, Tensor) for one in found.values()):
        kinds = sorted({type(one).__name__ for one in found.values()}) if isinstance(found, Mapping) else []
        what = f"holds {', '.join(kinds)}" if kinds else f"is a {type(found).__name__}"
        raise CheckpointError(f"{path} {what}, expected names of tensors", hint=_HINT)
    names = [str(name) for name in found]
    cut = len(_PREFIX) if all(name.startswith(_PREFIX) for name in names) else 0
    return {name[cut:]: value for name, value in zip(names, found.values(), strict=True)}
