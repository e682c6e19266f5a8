"""The bundle in the making: what every target is made from, written to, and proven against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mpmmu_rt import bundle as bundles
from mpmmu_rt import card
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.tensorrt.sidecar import Profile
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .cases import Data, Pixels
from .flat import Flat
from .parity import Original
from .quantization import Limits, Ranges, calibrate, require_disjoint
from .quantization.search import KeptLayer

BATCH = 32
FIRST = Target.parse(DEFAULT_TARGET)
Answers = Mapping[str, Array]  # `probability` float32 [N] and `embedding` float32 [N, D]


@dataclass(frozen=True)
class Wanted:
    """What the user asked of the targets.

    targets: None asks for all CPU targets that work here; INT8 only where there is `calibration`. profile: the batches
    that engines of TensorRT and TensorRT-RTX take; more cases run as several batches, fewer are filled up.
    """

    targets: tuple[Target, ...] | None = None
    calibration: Data | None = None
    gate: Data | None = None  # to judge BF16 and INT8 on; the parity cases if None
    limits: Limits = field(default_factory=Limits)
    profile: Profile = field(default_factory=Profile)
    calibrated_on: Mapping[str, Any] = field(default_factory=dict)  # `calibration`, as `bundle.json` tells of it


@dataclass(frozen=True)
class Draft:
    """A folder that becomes a bundle, and what it is held to.

    entry: what `bundle.json` will say; grows with every step, and is written by `seal`. head: the scikit-learn
    classifier; single_heads: those for one modality, or none. original: what it and the modules say of `cases`.
    flat: what is asked beside `cases`. rankings: the layers that INT8 hurts, by whether its codes are unsigned: found
    once, for every INT8 target.
    """

    folder: Path
    entry: dict[str, Any]
    head: Any
    original: Original
    cases: Data
    wanted: Wanted
    progress: Progress = silent
    single_heads: Mapping[Modality, Any] = field(default_factory=dict)
    flat: Flat | None = None
    rankings: dict[bool, list[KeptLayer]] = field(default_factory=dict, repr=False)
    exact: set[Target] = field(default_factory=set, repr=False)  # held to torch and scikit-learn, beside the first
    _floats: dict[Target, Answers] = field(default_factory=dict, repr=False)

    def seal(self) -> None:
        """Write the card, and `bundle.json` for what lies in the folder: only then can it be opened."""
        card.write(self.folder, self.entry)
        bundles.seal(self.folder, self.entry)

    def open(self, target: Target) -> Predictor:
        """Load the sealed folder on `target`, as a device would."""
        return Predictor(Bundle.open(self.folder), target, unproven=True)

    def graph(self, name: str) -> onnx.ModelProto:
        """A graph of the bundle, with its weights."""
        return onnx.load(str(self.folder / self.entry["graphs"][name]))

    def encoders(self) -> dict[Modality, onnx.ModelProto]:
        return {modality: self.graph(modality) for modality in MODALITIES}

    @property
    def threshold(self) -> float:
        return float(self.entry["threshold"])

    @property
    def judged(self) -> Data:
        """What BF16, FP16 and INT8 are judged on."""
        return self.wanted.gate or self.cases

    @property
    def calibration(self) -> Data:
        assert self.wanted.calibration is not None  # `targets.resolve` has seen to it
        return self.wanted.calibration

    @cached_property
    def ranges(self) -> Mapping[Modality, Ranges]:
        """Of all activations on the calibration images: measured once, for every INT8 target."""
        pixels = self.calibration.pixels
        require_disjoint(pixels, self.judged.pixels)
        return {modality: calibrate(self.graph(modality), pixels[modality], self.progress) for modality in MODALITIES}

    def floats(self, target: Target = FIRST) -> Answers:
        """What FP32 on the engine of `target` says of the `judged` cases: run once per engine."""
        exact = replace(target, precision="fp32", capabilities=())
        if exact not in self._floats:
            with self.open(exact) as predictor:
                self._floats[exact] = in_batches(
                    lambda few: answers_of(predictor, few), self.judged.pixels, self.progress, "running the FP32 model"
                )
        return self._floats[exact]


def answers_of(predictor: Predictor, pixels: Pixels) -> Answers:
    prediction = predictor.predict(pixels)
    return {"probability": prediction.probability, "embedding": prediction.embedding}


def in_batches(
    run: Callable[[Pixels], Answers], pixels: Pixels, progress: Progress, stage: str, batch: int = BATCH
) -> Answers:
    """What `run` says of all pixels, batch by batch."""
    count = len(pixels["mammography"])
    parts: list[Answers] = []
    for start in range(0, count, batch):
        progress(stage, start, count, "cases")
        parts.append(run({modality: pixels[modality][start : start + batch] for modality in MODALITIES}))
    progress(stage, count, count, "cases")
    return {name: np.concatenate([part[name] for part in parts]) for name in ("probability", "embedding")}
