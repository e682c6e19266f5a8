"""The stacking heads that a training has fitted already, on disk, so that a run can be continued in stage 2 too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from mpmmu_rt import __version__
from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.files import MAX_JSON_BYTES, atomic_file, parse_json_object, read_bounded, sha256_file, write_json
from mpmmu_rt.spec import Array

from . import skops_file, training_state
from .checkpoint import load_skops
from .config import HeadConfig

SCHEMA = "mpmmu-head-state/2"


def digest(
    features: Array, label: Array, groups: Sequence[str], rows: Sequence[Array], config: HeadConfig, seed: int
) -> str:
    """Names everything that a head and its metrics depend on, but for the machine. rows: of each part."""
    whole = hashlib.sha256(np.ascontiguousarray(features).data)
    parts = [one.tolist() for one in rows]
    versions = [__version__, sklearn.__version__]
    facts = [features.shape, label.tolist(), list(groups), parts, asdict(config), seed, *versions]
    whole.update(json.dumps(facts).encode())
    return whole.hexdigest()


def fitted(path: Path, key: str, fit: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """A head and what is told of it: what lies at `path` under this key, else what `fit` makes, which is kept there.

    A state of another key, or a damaged one, is made again: it costs seconds, and a wrong head is worth nothing.
    """
    facts, held = path.with_suffix(".head.json"), path.with_suffix(".head.skops")
    try:
        data = read_bounded(facts, MAX_JSON_BYTES, CheckpointError, "")
        entry: Any = parse_json_object(facts, data, CheckpointError, "")
        ours = entry.get("schema") == SCHEMA and entry.get("key") == key and training_state.intact(entry)
        if ours and entry["sha256"] == sha256_file(held):
            return load_skops(held), entry["told"]
    except (CheckpointError, OSError, KeyError):
        pass
    head, told = fit()
    with atomic_file(held) as partial:
        skops_file.dump(head, partial)
    state = {"schema": SCHEMA, "key": key, "sha256": sha256_file(held), "told": told}
    write_json(facts, training_state.sealed(state))
    return head, told
