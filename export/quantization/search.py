"""The search: quantize everything, measure decisions, and keep in float what hurts, until the gate passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from mpmmu_rt.errors import ExportError, ParityError, UsageError
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .gate import Gate, Limits, compare, require_disjoint
from .placement import layers
from .ranges import Ranges, hash_of, hash_of_cases
from .rewrite import quantize
from .sensitivity import sensitivity

Graphs = Mapping[Modality, onnx.ModelProto]
Pixels = Mapping[Modality, Array]
Predict = Callable[[Graphs, Pixels], Array]

# More rank better, and cost as much more: one run per layer and image.
_RANKING_IMAGES = 64


@dataclass(frozen=True)
class KeptLayer:
    """A layer that stays in float. noise: what INT8 in it alone adds to the encoder's output, Σ error² / Σ output²."""

    modality: Modality
    layer: str
    noise: float


@dataclass(frozen=True)
class Report:
    """How the INT8 graphs came about; `gate` is the last measurement, `attempts` the layers in float and all gates."""

    gate: Gate
    limits: Limits
    layers: int
    kept_float: tuple[KeptLayer, ...]
    attempts: tuple[tuple[int, Gate], ...]
    calibration_cases: int
    calibration_sha256: str
    unsigned: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "gate": self.gate.to_json(),
            "limits": asdict(self.limits),
            "layers": self.layers,
            "kept_float": [
                asdict(layer) | {"reason": f"INT8 here alone adds {layer.noise:.2g} of the output's power as noise"}
                for layer in self.kept_float
            ],
            "attempts": [{"kept_float": kept} | gate.to_json() for kept, gate in self.attempts],
            "calibration": {"cases": self.calibration_cases, "sha256": self.calibration_sha256},
            "unsigned_activations": self.unsigned,
        }


def search(
    graphs: Graphs,
    ranges: Mapping[Modality, Ranges],
    calibration: Pixels,
    gate: Pixels,
    labels: Array | None,
    predict: Predict,
    *,
    threshold: float,
    limits: Limits | None = None,
    unsigned: bool = False,
    progress: Progress = silent,
    ranking: list[KeptLayer] | None = None,
) -> tuple[dict[Modality, onnx.ModelProto], Report]:
    """Quantize both encoders so that decisions stay within `limits`; returns the graphs and how they were found.

    graphs: the float encoders. ranges: of `calibrate` on `calibration`. gate: other pixels, uint8 [N, 1, S, S], with
    labels int [N] or None. predict: probabilities [N] of the whole model with the given encoders, on the engine that
    will run them; called once with `graphs`, then with every attempt. unsigned: see `quantize`. ranking: what a search
    of the same graphs, ranges and kind of codes has found before; an empty list is filled.

    If INT8 everywhere fails, the 1, 2, 4, 8 … layers that hurt most (`sensitivity`) stay in float. Raises `UsageError`
    if the two sets share an image, `ParityError` if the limits can't be kept, and what `predict` raises.
    """
    limits = limits or Limits()
    _check(graphs, ranges, calibration, gate, labels)
    names: dict[Modality, set[str]] = {m: {layer.name for layer in layers(graphs[m])} for m in MODALITIES}
    total = sum(map(len, names.values()))
    want = np.asarray(predict(graphs, gate))
    ranking = [] if ranking is None else ranking
    attempts: list[tuple[int, Gate]] = []
    count = 0
    while True:
        kept = tuple(ranking[:count])
        found = {
            modality: quantize(
                graphs[modality],
                ranges[modality],
                [layer.layer for layer in kept if layer.modality == modality],
                unsigned=unsigned,
            )
            for modality in MODALITIES
        }
        measured = compare(want, np.asarray(predict(found, gate)), labels, threshold, limits)
        attempts.append((count, measured))
        if measured.passed:
            cases, digest = len(calibration["mammography"]), hash_of_cases(calibration)
            return found, Report(measured, limits, total, kept, tuple(attempts), cases, digest, unsigned)
        count = max(1, 2 * count)
        if count > limits.float_share * total:
            raise _refusal(attempts, total)
        ranking[:] = ranking or _ranking(graphs, ranges, calibration, unsigned, progress)


def _check(
    graphs: Graphs, ranges: Mapping[Modality, Ranges], calibration: Pixels, gate: Pixels, labels: Array | None
) -> None:
    for modality in MODALITIES:
        if ranges[modality].sha256 != hash_of([calibration[modality]]):
            raise ExportError(
                f"the {modality} ranges were measured on other images than the calibration images given, "
                "expected the same",
                hint="calibrate again",
            )
    count = len(gate["mammography"])
    if not count or len(gate["ultrasound"]) != count or (labels is not None and len(labels) != count):
        raise UsageError(
            f"the cases that shall prove INT8 are {count} mammograms, {len(gate['ultrasound'])} ultrasound images and "
            f"{'no' if labels is None else len(labels)} labels, expected as many of each, and at least one",
            hint="row i of all must be the same patient",
        )
    require_disjoint(calibration, gate)


def _ranking(
    graphs: Graphs, ranges: Mapping[Modality, Ranges], calibration: Pixels, unsigned: bool, progress: Progress
) -> list[KeptLayer]:
    """The layers of both encoders, most harmful first: both outputs weigh the same in the embedding."""
    found = [
        KeptLayer(modality, name, noise)
        for modality in MODALITIES
        for name, noise in sensitivity(
            graphs[modality],
            ranges[modality],
            calibration[modality][:_RANKING_IMAGES],
            unsigned=unsigned,
            progress=progress,
        ).items()
    ]
    return sorted(found, key=lambda layer: (-layer.noise, layer.modality, layer.layer))


def _refusal(attempts: list[tuple[int, Gate]], total: int) -> ParityError:
    kept, gate = attempts[-1]
    failed = "; ".join(
        f"{check.name} is {check.value:.3g}, expected at most {check.limit:.3g}"
        for check in gate.checks
        if not check.passed
    )
    return ParityError(
        f"INT8 changes decisions more than allowed, even with the {kept} most harmful of {total} layers in float: "
        f"{failed} ({gate.basis}); no INT8 graphs were made",
        hint="calibrate on more images, of the kind that will be seen; or run BF16; or set wider limits",
    )
