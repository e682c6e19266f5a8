"""Every target of a bundle beyond the first, proven before it is listed.

FP32 is held to the parity of `mpmmu_rt.export.parity`. BF16 and INT8 round, and a forest is a step function: they are
judged by their decisions against FP32 (`mpmmu_rt.export.quantization.Limits`), on the same engine, or for targets of
GPUs on ONNX Runtime. Targets of GPUs can
be made where they can't run: then their graphs are judged in the same way, by running them on the CPU with the
rounding that their types ask for, and the target is listed as built and not run: the device has to `verify` it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Case
from mpmmu_rt.engines import engine, engines, known_engine
from mpmmu_rt.engines.onnxruntime_cuda import ENGINE as CUDA
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, TensorRt
from mpmmu_rt.engines.tensorrt.sidecar import Profile
from mpmmu_rt.errors import ParityError, UsageError
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import (
    PROBABILITY_TOLERANCE,
    TOLERANCES,
    Check,
    probability_difference,
    relative_difference,
)

from . import cuda_graphs, parity, tensorrt
from . import head as heads
from .graphs import join
from .parity import Original
from .precision import Half
from .quantization import Gate, Limits, Ranges, calibrate, compare, require_disjoint, search
from .quantization.ranges import session
from .rounding import Rounded
from .tensorrt import Parts

_BATCH = 32
_ROUNDED_BATCH = 4  # onnx.reference keeps every value of a run
_TURING = 75
_BUILT_AHEAD: Mapping[str, TensorRt] = {RTX.name: RTX, TENSORRT.name: TENSORRT}
_GPU = (*_BUILT_AHEAD, CUDA.name)  # their bundles may be made where there is none
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

    targets: None asks for all CPU targets that work here; INT8 only where there is `calibration`. profile: the batches
    that engines of TensorRT and TensorRT-RTX take; more cases run as several batches, fewer are filled up.
    """

    targets: tuple[Target, ...] | None = None
    calibration: Data | None = None
    gate: Data | None = None  # to judge BF16 and INT8 on; the parity cases if None
    limits: Limits = field(default_factory=Limits)
    profile: Profile = field(default_factory=Profile)

    def resolve(self) -> tuple[Target, ...]:
        """The targets in order, checked to run here. Raises `EngineError`, `MissingPackage` or `UsageError`."""
        first = Target.parse(DEFAULT_TARGET)
        if self.targets is None:
            wanted = [
                Target(name, precision)
                for name, found in engines().items()
                if name not in _GPU  # a bundle is the same on a machine with a GPU
                for precision in found.precisions
                if found.problem(precision) is None and (precision != "int8" or self.calibration)
            ]
        else:
            wanted = list(self.targets)
        for target in wanted:
            known_engine(target)
            twins = [other for other in wanted if other != target and str(other).partition("@")[0] == _plain(target)]
            if twins:
                raise UsageError(
                    f"the targets `{target}` and `{twins[0]}` are asked for, expected one with all capabilities",
                    hint="one engine serves several GPUs: " + _plain(target) + "@86,89",
                )
            if target.engine in _BUILT_AHEAD:
                _check_buildable(_BUILT_AHEAD[target.engine], target)
            elif target.engine not in _GPU:
                engine(target)
            if target.precision == "int8" and self.calibration is None:
                raise UsageError(
                    f"target `{target}` is asked for without images to calibrate on, expected both",
                    hint="add --calibrate MANIFEST: some hundred cases like those that it will see",
                )
        return tuple(dict.fromkeys(target for target in wanted if target != first))


def _plain(target: Target) -> str:
    return str(replace(target, capabilities=()))


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
    # Once for all INT8 targets, and for all TensorRT targets.
    ranges = cache(lambda: _calibrated(folder, entry, wanted, cases, progress))
    exact = cache(lambda: _float_answers(folder, wanted, cases, progress))
    for target in wanted.resolve():
        try:
            if target.engine in _BUILT_AHEAD:
                plain = replace(target, capabilities=())
                reports[str(plain)] = _built(
                    folder, entry, target, wanted, head, original, cases, ranges, exact, progress
                )
                target = plain
            elif target.engine == CUDA.name:
                reports[str(target)] = _on_cuda(folder, entry, target, wanted, head, original, cases, exact, progress)
            elif target.precision == "fp32":
                reports[str(target)] = _equal(folder, target, head, original, cases, progress)
            elif target.precision == "int8":
                entry, reports[str(target)] = _int8(folder, entry, target, wanted, cases, ranges(), progress)
            else:
                reports[str(target)] = _rounded(folder, target, wanted, cases)
            if target.precision == "int8":
                _keep_golden(folder, entry, target)
            listed.append(str(target))
        except ParityError as error:
            if wanted.targets is not None:
                raise
            _forget(folder, target)
            reports[str(target)] = {"passed": False, "reason": str(error)}
    return entry | {"targets": listed, "precision": reports}


def _keep_golden(folder: Path, entry: Mapping[str, Any], target: Target) -> None:
    """Add what `target`, or its graph where it can't run here, says of the golden pixels to the golden vectors."""
    bundle = Bundle.open(folder)
    golden = bundle.golden()
    pixels: dict[Modality, Array] = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    if known_engine(target).problem(target.precision) is None:
        with Predictor(bundle, target) as predictor:
            said = _of(predictor, pixels)
    else:
        said = _runner(onnx.load(str(bundle.target_graph(target, "model"))), rounded=False)(pixels)
    arrays: dict[str, Any] = golden | {f"{target}.{name}": said[name] for name in ("embedding", "probability")}
    np.savez_compressed(folder / bundle.entry["golden"], **arrays)
    bundles.seal(folder, entry)


def _forget(folder: Path, target: Target) -> None:
    """Remove what was written for a target that is left out."""
    if target.engine in _BUILT_AHEAD:
        shutil.rmtree(folder / _BUILT_AHEAD[target.engine].folder(target.precision), ignore_errors=True)
    elif target.engine == CUDA.name:
        shutil.rmtree(folder / CUDA.folder(target.precision), ignore_errors=True)
    elif target.precision == "int8":
        for modality in MODALITIES:
            (folder / f"onnx/{modality}.int8.onnx").unlink(missing_ok=True)


def _equal(
    folder: Path, target: Target, head: Any, original: Original, cases: Data, progress: Progress
) -> dict[str, Any]:
    """Hold an FP32 target to parity."""
    with _open(folder, target) as predictor:
        measured = parity.measure(predictor, original, head, cases.pixels, cases.labels, progress)
    measured.require()
    return measured.to_json(str(target)) | {"source": cases.source}


def _rounded(folder: Path, target: Target, wanted: Wanted, cases: Data) -> dict[str, Any]:
    exact = Target.parse(DEFAULT_TARGET) if target.engine in _GPU else replace(target, precision="fp32")
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
    if found.flavour == "tensorrt_rtx" or gpu() is not None:  # else it gets the graphs alone
        found.version()
    if found.flavour == "tensorrt_rtx" and not target.capabilities:
        raise UsageError(
            f"target `{target}` names no compute capabilities, expected those of the devices that will run it",
            hint=f"{target}@86,89,120 is for the RTX 30, 40 and 50 series",
        )
    if target.precision == "bf16" and _TURING in target.capabilities:
        raise UsageError(
            f"target `{target}` asks for BF16 on compute capability 7.5, expected 8.0 or later",
            hint=f"{target.engine}:fp16@75 is for Turing",
        )


def _calibrated(
    folder: Path, entry: Mapping[str, Any], wanted: Wanted, cases: Data, progress: Progress
) -> dict[Modality, Ranges]:
    assert wanted.calibration is not None  # `resolve` has seen to it
    pixels = wanted.calibration.pixels
    require_disjoint(pixels, (wanted.gate or cases).pixels)
    return {m: calibrate(_graph(folder, entry, m), pixels[m], progress) for m in MODALITIES}


def _graph(folder: Path, entry: Mapping[str, Any], name: str) -> onnx.ModelProto:
    return onnx.load(str(folder / entry["graphs"][name]))


def _built(
    folder: Path,
    entry: Mapping[str, Any],
    target: Target,
    wanted: Wanted,
    head: Any,
    original: Original,
    cases: Data,
    ranges: Callable[[], Mapping[Modality, Ranges]],
    exact: Callable[[], Mapping[str, Array]],
    progress: Progress,
) -> dict[str, Any]:
    """Prove the graphs of a TensorRT target and build their engines; where they can run, prove those as well."""
    found = _BUILT_AHEAD[target.engine]
    parts = Parts(
        {modality: _graph(folder, entry, modality) for modality in MODALITIES},
        _graph(folder, entry, "attention_pool"),
        heads.lower(head, int(entry["tensors"]["embedding"]["shape"][1]), products="convolution"),
    )
    report: dict[str, Any] = {"head": heads.report(parts.head), "profile": asdict(wanted.profile)}
    if target.precision == "int8":
        parts, report["quantization"] = _signed(parts, entry, wanted, cases, ranges(), progress)
    few: dict[Modality, Array] = {modality: cases.pixels[modality][:_BATCH] for modality in MODALITIES}
    progress(f"typing the graphs of {target}", 0, 1)
    typed = tensorrt.typed(parts, target.precision, few)
    progress(f"typing the graphs of {target}", 1, 1)
    report["graph"] = _graph_proof(
        typed["model"], target, exact(), float(entry["threshold"]), wanted, head, cases, progress
    )
    progress(f"building {target}", 0, 1)
    sidecars = tensorrt.write(
        folder / found.folder(target.precision),
        typed,
        flavour=found.flavour,
        precision=target.precision,
        capabilities=target.capabilities,
        profile=wanted.profile,
    )
    progress(f"building {target}", 1, 1)
    bundles.seal(folder, entry)
    report["engines"] = {name: sidecar.to_json() for name, sidecar in sidecars.items()}
    if problem := found.problem(target.precision):
        return report | {"passed": None, "reason": str(problem)}
    plain = replace(target, capabilities=())
    if target.precision == "fp32":
        return report | _equal(folder, plain, head, original, cases, progress)
    return report | _rounded(folder, plain, wanted, cases)


def _on_cuda(
    folder: Path,
    entry: Mapping[str, Any],
    target: Target,
    wanted: Wanted,
    head: Any,
    original: Original,
    cases: Data,
    exact: Callable[[], Mapping[str, Array]],
    progress: Progress,
) -> dict[str, Any]:
    """Write and prove the graphs of onnxruntime-cuda; FP32 runs the bundle's own. Where it can run, prove that too."""
    report: dict[str, Any] = {"engines": {}}
    if target.precision == "fp16":
        few: dict[Modality, Array] = {modality: cases.pixels[modality][:_BATCH] for modality in MODALITIES}
        encoders = cuda_graphs.typed({modality: _graph(folder, entry, modality) for modality in MODALITIES}, few)
        whole = join(
            encoders["mammography"],
            encoders["ultrasound"],
            _graph(folder, entry, "attention_pool_onnxruntime"),
            _graph(folder, entry, "head"),
        )
        report["graph"] = _graph_proof(whole, target, exact(), float(entry["threshold"]), wanted, head, cases, progress)
        report["achieved"] = cuda_graphs.write(folder / CUDA.folder("fp16"), encoders)
        bundles.seal(folder, entry)
    if problem := CUDA.problem(target.precision):
        return report | {"passed": None, "reason": str(problem)}
    if target.precision == "fp32":
        return report | _equal(folder, target, head, original, cases, progress)
    return report | _rounded(folder, target, wanted, cases)


def _float_answers(folder: Path, wanted: Wanted, cases: Data, progress: Progress) -> dict[str, Array]:
    """What the FP32 model says of the cases that targets are judged on."""
    with _open(folder, Target.parse(DEFAULT_TARGET)) as predictor:
        pixels = (wanted.gate or cases).pixels
        return _answers(lambda few: _of(predictor, few), pixels, progress, "running the FP32 model")


def _graph_proof(
    model: onnx.ModelProto,
    target: Target,
    want: Mapping[str, Array],
    threshold: float,
    wanted: Wanted,
    head: Any,
    cases: Data,
    progress: Progress,
) -> dict[str, Any]:
    """Hold the whole graph of a target, run on the CPU, to the FP32 model: what its types cost, not an engine's doing.

    want: of `_float_answers`. Decisions are held to the same limits as those of an engine. Raises `ParityError`.
    """
    judged = wanted.gate or cases
    is_half = target.precision in get_args(Half)
    run = _runner(model, rounded=is_half)
    batch = _ROUNDED_BATCH if is_half else _BATCH
    got = _answers(run, judged.pixels, progress, f"running the graph of {target}", batch)
    checks = (
        Check(
            "embedding, relative",
            relative_difference(got["embedding"], want["embedding"]),
            TOLERANCES[target.precision].relative,
        ),
        Check(
            "head on the same embedding, max |Δp|",
            probability_difference(got["probability"], parity.probability_of(head, got["embedding"])),
            PROBABILITY_TOLERANCE,
        ),
    )
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ParityError(
            f"the graph of {target} differs from the FP32 model: {failed[0].name} is {failed[0].value:.3g}, expected "
            f"at most {failed[0].limit:.3g}; no bundle was written",
            hint="export for another precision: this model does not bear that one",
        )
    gate = compare(want["probability"], got["probability"], judged.labels, threshold, wanted.limits)
    _require(gate, target)
    return {
        "proves": "the graph, in decisions and numbers, on the CPU; not the engine that is built from it",
        "run_by": "onnx.reference, each value rounded to its type" if is_half else "ONNX Runtime",
        "source": judged.source,
        **gate.to_json(),
        "checks": [check.to_json() for check in (*checks, *gate.checks)],
    }


def _runner(model: onnx.ModelProto, *, rounded: bool) -> Callable[[Pixels], dict[str, Array]]:
    """Runs a whole graph, with its weights, on pixels."""
    names = [item.name for item in model.graph.output]
    evaluator = Rounded(model) if rounded else None
    runner = None if rounded else session(model)

    def run(pixels: Pixels) -> dict[str, Array]:
        feeds = {f"{modality}_pixels": pixels[modality] for modality in MODALITIES}
        if evaluator is not None:
            return evaluator.run(feeds)
        assert runner is not None
        return dict(zip(names, runner.run(names, feeds), strict=True))

    return run


def _of(predictor: Predictor, pixels: Pixels) -> dict[str, Array]:
    prediction = predictor.predict(pixels)
    return {"probability": prediction.probability, "embedding": prediction.embedding}


def _signed(
    parts: Parts,
    entry: Mapping[str, Any],
    wanted: Wanted,
    cases: Data,
    ranges: Mapping[Modality, Ranges],
    progress: Progress,
) -> tuple[Parts, dict[str, Any]]:
    """Quantize the encoders as TensorRT takes them, judged on ONNX Runtime; pool and head stay FP32."""
    assert wanted.calibration is not None  # `resolve` has seen to it
    calibration, gate = wanted.calibration, wanted.gate or cases

    def predict(graphs: Mapping[Modality, onnx.ModelProto], pixels: Pixels) -> Array:
        run = _runner(replace(parts, encoders=graphs).whole(), rounded=False)
        return _answers(run, pixels, progress, "judging INT8")["probability"]

    found, report = search(
        parts.encoders,
        ranges,
        calibration.pixels,
        gate.pixels,
        gate.labels,
        predict,
        threshold=float(entry["threshold"]),
        limits=wanted.limits,
        unsigned=False,  # TensorRT reads unsigned codes as signed
        progress=progress,
    )
    facts = report.to_json() | {
        "source": gate.source,
        "calibrated_on": calibration.source,
        "judged_by": "ONNX Runtime on the CPU",
        "not_quantized": "fp32",
    }
    return replace(parts, encoders=found), facts


def _int8(
    folder: Path,
    entry: dict[str, Any],
    target: Target,
    wanted: Wanted,
    cases: Data,
    ranges: Mapping[Modality, Ranges],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantize and judge; the graphs stay in `folder`."""
    assert wanted.calibration is not None  # `resolve` has seen to it
    calibration, gate = wanted.calibration, wanted.gate or cases
    floats = {modality: _graph(folder, entry, modality) for modality in MODALITIES}
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
    return _answers(lambda few: _of(predictor, few), pixels, silent, "")["probability"]


def _answers(
    run: Callable[[Pixels], Mapping[str, Array]], pixels: Pixels, progress: Progress, stage: str, batch: int = _BATCH
) -> dict[str, Array]:
    """`probability` and `embedding` of all pixels, batch by batch."""
    count = len(pixels["mammography"])
    parts: list[Mapping[str, Array]] = []
    for start in range(0, count, batch):
        progress(stage, start, count)
        parts.append(run({m: pixels[m][start : start + batch] for m in MODALITIES}))
    progress(stage, count, count)
    return {name: np.concatenate([part[name] for part in parts]) for name in ("probability", "embedding")}


def _require(gate: Gate, target: Target) -> None:
    failed = [check for check in gate.checks if not check.passed]
    if failed:
        raise ParityError(
            f"{target} changes decisions: {failed[0].name} is {failed[0].value:.3g}, expected at most "
            f"{failed[0].limit:.3g} ({gate.basis}); no bundle was written",
            hint="leave the target out, or set another limit if you can answer for it",
        )
