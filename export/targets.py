"""Every target of a bundle beyond the first, proven before it is listed.

FP32 is held to the parity of `mpmmu_rt.export.parity`. BF16 and INT8 round, and a forest is a step function: they are
judged by their decisions against FP32 on the same engine (`mpmmu_rt.export.quantization.Limits`). TensorRT engines can
be built where they can't run: such a target is listed as built and not proven, and the device has to `verify` it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Case
from mpmmu_rt.engines import engine, engines, known_engine
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, TensorRt
from mpmmu_rt.errors import ParityError, UsageError
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from . import parity, tensorrt
from .parity import Original
from .quantization import Gate, Limits, calibrate, compare, require_disjoint, search

_BATCH = 32
_BUILT_AHEAD: Mapping[str, TensorRt] = {RTX.name: RTX, TENSORRT.name: TENSORRT}
Pixels = Mapping[Modality, Array]


@dataclass(frozen=True)
class Data:
    """Pixels uint8 [N, 1, S, S] per modality; labels int [N] where known; source says in words what they are."""

    pixels: Pixels
    labels: Array | None
    source: str

    def rows(self, chosen: Sequence[int], source: str) -> Data:
        pixels: dict[Modality, Array] = {modality: self.pixels[modality][chosen] for modality in MODALITIES}
        return Data(pixels, None if self.labels is None else self.labels[chosen], source)


@dataclass(frozen=True)
class Wanted:
    """What the user asked of the targets.

    targets: None asks for all CPU targets that work here; INT8 only where there is `calibration`.
    """

    targets: tuple[Target, ...] | None = None
    calibration: Data | None = None
    gate: Data | None = None  # to judge BF16 and INT8 on; the parity cases if None
    limits: Limits = field(default_factory=Limits)

    def resolve(self) -> tuple[Target, ...]:
        """The targets in order, checked to run here. Raises `EngineError`, `MissingPackage` or `UsageError`."""
        first = Target.parse(DEFAULT_TARGET)
        if self.targets is None:
            wanted = [
                Target(name, precision)
                for name, found in engines().items()
                if name not in _BUILT_AHEAD  # they need to be told what to build for
                for precision in found.precisions
                if found.problem(precision) is None and (precision != "int8" or self.calibration)
            ]
        else:
            wanted = list(self.targets)
        for target in wanted:
            known_engine(target)
            if target.engine in _BUILT_AHEAD:
                _check_buildable(_BUILT_AHEAD[target.engine], target)
            else:
                engine(target)
            if target.precision == "int8" and self.calibration is None:
                raise UsageError(
                    f"target `{target}` is asked for without images to calibrate on, expected both",
                    hint="add --calibrate MANIFEST: some hundred cases like those that it will see",
                )
        return tuple(dict.fromkeys(target for target in wanted if target != first))


def halves(data: Data, cases: Sequence[Case]) -> tuple[Data, Data]:
    """(to calibrate on, to judge on): every other patient of a manifest. Raises `UsageError` for fewer than two."""
    patients = list(dict.fromkeys(case.group for case in cases))
    if len(patients) < 2:
        raise UsageError(
            f"the calibration manifest holds {len(patients)} patient, expected at least two: one to calibrate on and "
            "one to judge INT8 on",
            hint="use some hundred cases, or give --parity another manifest",
        )
    first = set(patients[::2])
    rows = [row for row, case in enumerate(cases) if (case.group) in first]
    rest = sorted(set(range(len(cases))) - set(rows))
    return data.rows(rows, f"{len(rows)} cases of {data.source}"), data.rows(
        rest, f"{len(rest)} others of {data.source}"
    )


def prove(
    folder: Path, entry: dict[str, Any], wanted: Wanted, head: Any, original: Original, cases: Data, progress: Progress
) -> dict[str, Any]:
    """Prove every wanted target on the sealed bundle in `folder`; returns the entry with what was found.

    A target that was asked for by name and fails raises `ParityError`; one that was not is left out, and
    `entry["precision"]` says why.
    """
    reports: dict[str, Any] = {}
    listed = [DEFAULT_TARGET]
    for target in wanted.resolve():
        try:
            if target.engine in _BUILT_AHEAD:
                target, reports[str(target)] = _built(folder, entry, target, wanted, cases)
            elif target.precision == "fp32":
                with _open(folder, target) as predictor:
                    measured = parity.measure(predictor, original, head, cases.pixels, cases.labels, progress)
                measured.require()
                reports[str(target)] = measured.to_json(str(target)) | {"source": cases.source}
            elif target.precision == "int8":
                entry, reports[str(target)] = _int8(folder, entry, target, wanted, cases, progress)
            else:
                reports[str(target)] = _rounded(folder, target, wanted, cases)
            listed.append(str(target))
        except ParityError as error:
            if wanted.targets is not None:
                raise
            _forget(folder, target)
            reports[str(target)] = {"passed": False, "reason": str(error)}
    return entry | {"targets": listed, "precision": reports}


def _forget(folder: Path, target: Target) -> None:
    """Remove what was written for a target that is left out."""
    if target.engine in _BUILT_AHEAD:
        shutil.rmtree(folder / _BUILT_AHEAD[target.engine].folder(target.precision), ignore_errors=True)
    if target.precision == "int8":
        for modality in MODALITIES:
            (folder / f"onnx/{modality}.int8.onnx").unlink(missing_ok=True)


def _rounded(folder: Path, target: Target, wanted: Wanted, cases: Data) -> dict[str, Any]:
    exact = Target.parse(DEFAULT_TARGET) if target.engine.startswith("tensorrt") else replace(target, precision="fp32")
    judged = wanted.gate or cases
    with _open(folder, exact) as predictor:
        want = _probability(predictor, judged.pixels)
        threshold = predictor.bundle.threshold
    with _open(folder, target) as predictor:
        gate = compare(want, _probability(predictor, judged.pixels), judged.labels, threshold, wanted.limits)
    _require(gate, target)
    return gate.to_json() | {"source": judged.source}


def _check_buildable(found: TensorRt, target: Target) -> None:
    """Raises `MissingPackage`, or `UsageError` for what TensorRT targets can't be asked for."""
    found.version()
    if found.flavour == "tensorrt_rtx" and not target.capabilities:
        raise UsageError(
            f"target `{target}` names no compute capabilities, expected those of the devices that will run it",
            hint=f"{target}@86,89,120 is for the RTX 30, 40 and 50 series",
        )
    if target.precision == "int8":
        raise UsageError(
            f"target `{target}` is asked for, expected fp32, fp16 or bf16: INT8 is built for OpenVINO only so far",
            hint="openvino:int8 with --calibrate, or fp16 here",
        )


def _built(
    folder: Path, entry: Mapping[str, Any], target: Target, wanted: Wanted, cases: Data
) -> tuple[Target, dict[str, Any]]:
    """Build the engines of encoders and pool; where they can run, prove them as well."""
    found = _BUILT_AHEAD[target.engine]
    plain = replace(target, capabilities=())
    few: dict[Modality, Array] = {modality: cases.pixels[modality][:4] for modality in MODALITIES}
    with _open(folder, Target.parse(DEFAULT_TARGET)) as predictor:
        maps = predictor.feature_maps(few)
    names = (*MODALITIES, "attention_pool")
    sidecars = tensorrt.write(
        folder / found.folder(target.precision),
        {name: onnx.load(str(folder / entry["graphs"][name])) for name in names},
        {modality: {"pixels": few[modality]} for modality in MODALITIES}
        | {"attention_pool": {f"{modality}_feature_map": maps[modality] for modality in MODALITIES}},
        flavour=found.flavour,
        precision=target.precision,
        capabilities=target.capabilities,
    )
    bundles.seal(folder, entry)
    built = {"engines": {name: sidecar.to_json() for name, sidecar in sidecars.items()}}
    if problem := found.problem(target.precision):
        return plain, built | {"passed": None, "reason": str(problem)}
    return plain, built | _rounded(folder, plain, wanted, cases)


def _int8(
    folder: Path, entry: dict[str, Any], target: Target, wanted: Wanted, cases: Data, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibrate, quantize and judge; the graphs stay in `folder`."""
    assert wanted.calibration is not None  # `resolve` has seen to it
    calibration, gate = wanted.calibration, wanted.gate or cases
    require_disjoint(calibration.pixels, gate.pixels)
    floats = {modality: onnx.load(str(folder / entry["graphs"][modality])) for modality in MODALITIES}
    ranges = {modality: calibrate(floats[modality], calibration.pixels[modality], progress) for modality in MODALITIES}
    quantized = entry | {"graphs": entry["graphs"] | {f"{m}.int8": f"onnx/{m}.int8.onnx" for m in MODALITIES}}

    def write(graphs: Mapping[Modality, onnx.ModelProto]) -> None:
        for modality in MODALITIES:
            (folder / quantized["graphs"][f"{modality}.int8"]).write_bytes(graphs[modality].SerializeToString())
        bundles.seal(folder, quantized)

    def predict(graphs: Mapping[Modality, onnx.ModelProto], pixels: Pixels) -> Array:
        if graphs is floats:
            with _open(folder, replace(target, precision="fp32")) as predictor:
                return _probability(predictor, pixels)
        write(graphs)
        with _open(folder, target) as predictor:
            return _probability(predictor, pixels)

    found, report = search(
        floats,
        ranges,
        calibration.pixels,
        gate.pixels,
        gate.labels,
        predict,
        threshold=float(entry["threshold"]),
        limits=wanted.limits,
        unsigned=True,  # behind a ReLU; only OpenVINO gets these graphs
        progress=progress,
    )
    write(found)
    return quantized, report.to_json() | {"passed": True, "source": gate.source, "calibrated_on": calibration.source}


def _open(folder: Path, target: Target) -> Predictor:
    return Predictor(Bundle.open(folder), target)


def _probability(predictor: Predictor, pixels: Pixels) -> Array:
    count = len(pixels["mammography"])
    batches = [{m: pixels[m][start : start + _BATCH] for m in MODALITIES} for start in range(0, count, _BATCH)]
    return np.concatenate([predictor.predict(batch).probability for batch in batches])


def _require(gate: Gate, target: Target) -> None:
    failed = [check for check in gate.checks if not check.passed]
    if failed:
        raise ParityError(
            f"{target} changes decisions: {failed[0].name} is {failed[0].value:.3g}, expected at most "
            f"{failed[0].limit:.3g} ({gate.basis}); no bundle was written",
            hint="leave the target out, or set another limit if you can answer for it",
        )
