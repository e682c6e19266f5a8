"""The state of an encoder's training between two epochs, on disk, so that a run can be continued.

One safetensors file, whose metadata hold the rest as JSON: there is no moment at which weights and history on
disk belong to different epochs, and no pickle. Every state, of folds, heads and ablations too, holds a digest of its
content: one that was altered or damaged on disk would give another model, or other figures, without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpmmu_rt import __version__
from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.files import atomic_file

from .encoder import Encoder

SCHEMA = "mpmmu-training-state/2"
SEAL = "seal"
_HINT = "continue with the arguments and the data of the first run, or choose another folder to start anew"


def key(facts: Mapping[str, Any]) -> str:
    """Names what a result depends on, JSON values: another key is another training."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A state of JSON values, with a digest of them."""
    return {**entry, SEAL: key(entry)}


def intact(entry: Mapping[str, Any]) -> bool:
    """Whether a state is what `sealed` made."""
    return entry.get(SEAL) == key({name: value for name, value in entry.items() if name != SEAL})


def made_with(device: str) -> dict[str, Any]:
    """What else decides on what is learnt: the releases, whose defaults and augmentation may be others, and the kind of
    device, as a GPU trains in bfloat16."""
    return {"versions": [__version__, torch.__version__], "device": torch.device(device).type}


@dataclass
class EncoderState:
    """Where training is. `best` are the encoder's weights, on the CPU, after the epoch of the best AUC."""

    encoder: Encoder
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    best_epoch: int = 0
    best_auc: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def record(self, entry: dict[str, float], auc: float) -> None:
        """One more epoch is done; a tie keeps the earlier weights."""
        self.epoch += 1
        self.history.append(entry)
        if auc > self.best_auc:
            self.best_epoch, self.best_auc = self.epoch, auc
            self.best = {key: value.detach().cpu().clone() for key, value in self.encoder.state_dict().items()}


def save_state(state: EncoderState, path: Path, digest: str) -> None:
    """Write atomically. `digest` names the configuration and the data that the state belongs to."""
    tensors = {f"encoder/{key}": value for key, value in state.encoder.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in state.best.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    facts = {
        "schema": SCHEMA,
        "digest": digest,
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "best_auc": state.best_auc,
        "history": state.history,
    }
    # safetensors refuses tensors that share memory, and a copy on the CPU shares none
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    with atomic_file(path) as partial:
        save_file(tensors, partial, {"state": json.dumps(sealed(facts | {"sha256": _content(tensors)}))})


def load_state(state: EncoderState, path: Path, digest: str) -> None:
    """Continue a fresh `state` from what `save_state` wrote.

    Raises `CheckpointError` if the file is damaged or belongs to another configuration or other data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        _check(path, facts, digest)
        if not intact(facts) or facts["sha256"] != _content(tensors):
            raise ValueError("it was altered or damaged since it was written: its SHA-256 differs")
        parts = {name: _part(tensors, name) for name in ("encoder", "best", "optimizer")}
        state.encoder.load_state_dict(parts["encoder"])
        moments: dict[int, dict[str, Tensor]] = {}
        for place, value in parts["optimizer"].items():
            index, _, name = place.partition("/")
            moments.setdefault(int(index), {})[name] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        state.best = parts["best"]
        state.epoch, state.best_epoch = int(facts["epoch"]), int(facts["best_epoch"])
        state.best_auc, state.history = float(facts["best_auc"]), list(facts["history"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} can't be continued from ({reason}), expected a training state",
            hint=f"remove {path.name}: that encoder is trained anew",
        ) from error


def _check(path: Path, facts: Any, digest: str) -> None:
    if facts["schema"] != SCHEMA or facts["digest"] != digest:
        raise CheckpointError(
            f"{path} is the state of a training with another configuration, other data, another kind of device or "
            f"another release of mpmmu-rt or torch ({facts['digest'][:12]}), expected {digest[:12]}",
            hint=_HINT,
        )


def _content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU, with their names, types and shapes."""
    whole = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        whole.update(np.ascontiguousarray(value.numpy()).data)
    return whole.hexdigest()


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
