"""What two measurements must have in common to be held against each other, and how fast the machine is by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .bundle import Bundle
from .engines import head_target
from .engines.shared.gpu import gpu
from .machine import HELD_TO, describe, usable_threads
from .spec import MODALITIES, Target

_JUDGED = ("mpmmu-rt", "pillow")  # what is judged, and what is not measured: their versions may differ
WHAT = ("target", "batch", "inputs")  # what is measured, not where: of another there is nothing to learn
_MOST_TEXT = 200


def conditions(bundle: Bundle, target: Target, batch: int, turn_s: float) -> dict[str, Any]:
    """All that must be the same for two measurements to be held against each other; the bundle may differ."""
    machine = describe()
    here = gpu()
    return {
        "target": str(target),
        "head_target": str(head_target(target)),
        "batch": batch,
        "turn_s": turn_s,
        "inputs": [str(bundle.tensors[f"{modality}_pixels"]) for modality in MODALITIES],
        "threads": machine["threads"],
        "processor": machine["cpu"],
        "processor_features": " ".join(machine["cpu_features"]),
        "held_to": _held_to(),
        "gpu": f"{here.name}, {here.driver}" if here else "",
        "system": machine["system"],
        "python": machine["python"],
        **{f"{name} version": said for name, said in machine["packages"].items() if name not in _JUDGED},
    }


def _held_to() -> str:
    """What the environment holds computation to: oneDNN's instruction set, and the others where they are set."""
    said = {name: os.environ.get(name) for name in HELD_TO}
    by_onednn, same = (said.pop(name) for name in HELD_TO[:2])
    return " ".join(filter(None, [by_onednn or same, *(f"{name}={text}" for name, text in said.items() if text)]))


def differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`name then → here` of each condition that is not the same."""
    return [
        plain(f"{name} {stored.get(name, 'none')} → {here.get(name, 'none')}")
        for name in dict.fromkeys((*stored, *here))
        if stored.get(name) != here.get(name)
    ]


def plain(text: object) -> str:
    """What a file says, for a terminal: without what would steer it, and not without end."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:_MOST_TEXT])


def control_ms() -> float:
    """The median of 5 times, in ms, of what is no part of this package: every thread sorts the same 200,000 numbers."""
    numbers = np.random.default_rng(0).random(200_000)
    threads, taken = usable_threads(), []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(lambda _: np.sort(numbers), range(threads)))
            taken.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(taken))
