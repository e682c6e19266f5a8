"""Where the time of a call goes, and what to speed up first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engines import engines, head_target
from .facts import faster_encoders
from .machine import describe
from .spec import MODALITIES, Target

ENCODERS = (*MODALITIES, "encoders")


@dataclass(frozen=True)
class Ledger:
    """Means over all calls, in ms: means of parts add up, medians do not. advice: one sentence."""

    total_ms: float
    stages_ms: dict[str, float]
    advice: str

    @property
    def remainder_ms(self) -> float:
        """What no stage explains; negative where stages run at the same time."""
        return self.total_ms - sum(self.stages_ms.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "total_ms": self.total_ms,
            "stages_ms": self.stages_ms,
            "remainder_ms": self.remainder_ms,
            "advice": self.advice,
        }


def ledger(
    samples_ms: Sequence[float], stages: Mapping[str, Sequence[float]], target: Target, held: Sequence[str]
) -> Ledger:
    """samples_ms: of each call. stages: of the same calls, each stage's ms by name. held: targets of the bundle."""
    means = {name: float(np.mean(spent)) for name, spent in stages.items()}
    total = float(np.mean(samples_ms))
    return Ledger(total, means, advice(means, total, target, held))


def advice(stages_ms: Mapping[str, float], total_ms: float, target: Target, held: Sequence[str]) -> str:
    """What to speed up first: the largest part, what twice its speed would bring (Amdahl's law), and what is known."""
    parts = {name: spent for name, spent in stages_ms.items() if name not in ENCODERS}
    # What runs at the same time is the encoders, on a stream each.
    at_once = max(sum(stages_ms.values()) - total_ms, 0.0)
    parts["encoders"] = sum(stages_ms.get(name, 0.0) for name in ENCODERS) - at_once
    largest = max(parts, key=lambda name: parts[name])
    share = parts[largest] / total_ms
    verb = "are" if largest.endswith("s") else "is"
    gain = 1 / (1 - min(share, 1.0) / 2)
    said = f"{largest.replace('_', ' ')} {verb} {share:.0%} of a call: twice as fast there is {gain:.2f} times in all"
    known = {"encoders": _faster_encoders, "head": _faster_head}.get(largest)
    return "; ".join(part for part in (said, known(target, held) if known else "") if part)


def _faster_encoders(target: Target, held: Sequence[str]) -> str:
    """The fastest target that is known to be faster than this one and can run here."""
    known = faster_encoders(describe()["cpu_features"])
    order = list(known)
    # None of them is known to beat a GPU, nor what it is not listed with.
    plain = Target(target.engine, target.precision)
    faster = order[: order.index(plain)] if plain in order else []
    usable = [one for one in faster if engines()[one.engine].problem(one.precision) is None]
    for one in usable:
        if str(one) in held:
            return f"try --target {one}, which this bundle has ({known[one].says})"
    if usable:
        way = "--calibrate MANIFEST" if usable[0].in_8_bits else f"--target {usable[0]}"
        return f"export it again with {way} and try {usable[0]} ({known[usable[0]].says})"
    return "no target that runs here is known to be faster" if plain in order else ""


def _faster_head(target: Target, held: Sequence[str]) -> str:
    if head_target(target) == Target("onnxruntime", "fp32"):
        return "it is where it is known to be fastest: fewer or shallower trees make it faster"
    return "pip install 'mpmmu-rt[cpu]' has it run on ONNX Runtime, which is faster"
