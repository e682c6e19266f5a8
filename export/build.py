"""The whole export: original in, verified bundle out, or no bundle at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mpmmu_rt import bundle as bundles
from mpmmu_rt import card as cards
from mpmmu_rt import single_record
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Manifest
from mpmmu_rt.engines import known_engine
from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.errors import ExportError, ParityError, UsageError
from mpmmu_rt.files import rounded
from mpmmu_rt.folders import atomic_folder, check_replaceable
from mpmmu_rt.image_warnings import summary
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.known_images import KnownImages
from mpmmu_rt.machine import package_versions
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.places import check_writable, require_room
from mpmmu_rt.predictor import DEFAULT_TARGET
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.single_record import SingleHead
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath, Target, TensorSpec

from . import calibration, graphs, head, npz, parity, reference, steadiness, targets
from . import cases as all_cases
from .cases import Data
from .draft import Draft, Wanted
from .encoders import Encoders
from .flat import Flat, blanks, flattened
from .modules import resting
from .openvino_graph import for_openvino
from .parity import Original
from .pool_weights import pool_weights, require_pools
from .sigmoid import exact_sigmoids

GOLDEN_CASES = 4
PARITY_CASES = 32
_TIE = 1e-6
GATE_CASES = 200  # one of 10⁴ pairs that changes its order is 1e-4 of AUC
PARITY_SEED = 20_260_101  # of phantoms that no preset trains on
_VERSIONED = ("mpmmu-rt", "torch", "scikit-learn", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Model:
    """What is exported, whoever trained it."""

    modules: Mapping[Modality, nn.Module]
    head: Any
    preprocessing: Preprocessing
    threshold: float
    name: str
    trained: bool
    model: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    known_images: Mapping[str, str] = field(default_factory=dict)
    embedding_mean: Array | None = None
    modality_check: ModalityCheck | None = None
    single_heads: Mapping[Modality, Any] = field(default_factory=dict)
    as_head: bool = False  # decisions are to be those of the head's own `predict`, as nobody named a threshold


def export_bundle(
    output: StrPath,
    *,
    mammography: nn.Module,
    ultrasound: nn.Module,
    head: Any,
    preprocessing: Preprocessing | int,
    threshold: float | None = None,
    name: str = "custom",
    card: Mapping[str, Any] | None = None,
    parity_cases: Data | None = None,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Export any two torch modules and a fitted scikit-learn classifier as a bundle at `output`.

    mammography, ultrasound: modules that map pixels uint8 [N, 1, S, S] to an embedding float32 [N, D]; S is
    `preprocessing.size`, or `preprocessing` itself. head: a binary classifier (classes 0 and 1) fitted on the two
    embeddings, concatenated in that order. threshold: a probability at or above it is called malignant; None: the
    head's own, if it is a FixedThresholdClassifier or TunedThresholdClassifierCV, else 0.5. card: what people shall
    read of the model, JSON values. parity_cases: images to prove parity on; phantoms if None. wanted: the targets
    beyond onnxruntime:fp32; all that work here without calibration if None.

    Raises `ExportError` or `UnsupportedEstimator` for what can't be converted, `ParityError` if the result differs
    from the original, `OutputError` if `output` can't be written. In every case nothing is left behind.
    """
    modules: dict[Modality, nn.Module] = {"mammography": mammography, "ultrasound": ultrasound}
    described: dict[str, Any] = {modality: type(module).__name__ for modality, module in modules.items()}
    decided = _threshold(head, threshold, "pass no threshold")
    made_from = _preprocessing(preprocessing)
    own = threshold is None
    model = Model(modules, head, made_from, decided, name, True, described, _plain(card or {}), as_head=own)
    return _export(model, Path(output), parity_cases, wanted or Wanted(), overwrite, progress)


def export_checkpoint(
    folder: StrPath,
    output: StrPath,
    *,
    parity_manifest: StrPath | None = None,
    calibration_manifest: StrPath | None = None,
    calibration_phantoms: int | None = None,
    wanted: Wanted | None = None,
    trust_pickle: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Export the checkpoint in `folder`, proving parity on the cases of `parity_manifest`, else on phantoms.

    INT8 is calibrated on `calibration_manifest`, never on its test part, and judged on the parity manifest, or else on
    every other patient of the calibration manifest. calibration_phantoms: on so many generated phantoms instead, for
    trying it; the bundle says so wherever it is used.

    Raises as `export_bundle` does, `CheckpointError`, and what reading the manifest and its images raises.
    """
    folder, output = Path(folder), Path(output)
    check_replaceable(output, bundles.KIND, overwrite=overwrite)
    check_writable(output)
    progress("reading the checkpoint", 0, 1)
    checkpoint = checkpoints.load(folder, trust_pickle=trust_pickle)
    progress("reading the checkpoint", 1, 1)
    preprocessing = checkpoint.config.preprocessing
    wanted = wanted or Wanted()
    # Once: what is held to be of other patients is what calibrates and judges.
    proving = all_cases.manifest_of(parity_manifest) if parity_manifest else None
    calibrating = all_cases.manifest_of(calibration_manifest) if calibration_manifest else None
    if proving and calibrating:  # before their images are read
        calibration.require_other_patients(calibrating, proving, checkpoint.card)
    cases = all_cases.of_manifest(proving, preprocessing, progress) if proving else None
    wanted = _calibrated(wanted, checkpoint, cases, calibrating, calibration_phantoms, progress)
    return _export(
        model_of(checkpoint, folder.resolve().name, trained=True), output, cases, wanted, overwrite, progress
    )


def export_reference(
    output: StrPath,
    *,
    calibration_manifest: StrPath | None = None,
    calibration_phantoms: int | None = None,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Export the full-size untrained reference model: real in cost, meaningless in its probabilities. INT8 as by
    `export_checkpoint`."""
    output = Path(output)
    check_replaceable(output, bundles.KIND, overwrite=overwrite)
    check_writable(output)
    checkpoint = reference.build(progress)
    wanted = wanted or Wanted()
    wanted = _calibrated(wanted, checkpoint, None, calibration_manifest, calibration_phantoms, progress)
    return _export(model_of(checkpoint, reference.NAME, trained=False), output, None, wanted, overwrite, progress)


def _calibrated(
    wanted: Wanted,
    checkpoint: Checkpoint,
    cases: Data | None,
    manifest: StrPath | Manifest | None,
    count: int | None,
    progress: Progress,
) -> Wanted:
    """With what INT8 is calibrated and judged on: a manifest, or so many phantoms, or as it was given. cases: of the
    parity manifest."""
    if manifest is not None and count is not None:
        raise UsageError(
            "INT8 is to be calibrated on a manifest and on phantoms, expected one of them",
            hint="leave --calibrate-phantoms out: it is for trying INT8 without images",
        )
    preprocessing = checkpoint.config.preprocessing
    if manifest is not None:
        found = calibration.of_manifest(manifest, preprocessing, checkpoint.card, progress, halved=cases is None)
    elif count is not None:
        found = calibration.of_phantoms(count, preprocessing, progress)
    else:
        return wanted
    return replace(wanted, calibration=found.data, gate=cases or found.gate, calibrated_on=found.facts)


def _preprocessing(given: Preprocessing | int) -> Preprocessing:
    if isinstance(given, Preprocessing):
        return given
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise UsageError(
            f"preprocessing is a {type(given).__name__}, expected a Preprocessing or the size of the images",
            hint="preprocessing=Preprocessing(size=224)",
        )
    return Preprocessing(size=int(given))


def _plain(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card as JSON holds it, NumPy's numbers as Python's. Raises `UsageError` for what it can't."""

    def number(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__}")

    found = {}
    for key, value in card.items():
        try:
            found[str(key)] = json.loads(json.dumps(value, default=number, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the card's `{key}` can't be written as JSON ({error}), expected texts, numbers, lists and mappings",
                hint="leave it out, or pass str(value)",
            ) from error
    return found


def model_of(checkpoint: Checkpoint, name: str, *, trained: bool) -> Model:
    config = checkpoint.config
    return Model(
        dict(checkpoint.encoders),
        checkpoint.head,
        config.preprocessing,
        _threshold(checkpoint.head, checkpoint.threshold, "write the checkpoint with the head's threshold"),
        name,
        trained,
        config.to_json(),
        checkpoint.card,
        checkpoint.known_images,
        checkpoint.embedding_mean,
        checkpoint.modality_check,
        checkpoint.single_heads,
    )


def _threshold(classifier: Any, given: float | None, way_out: str) -> float:
    """The operating threshold: what was given, the head's own, or 0.5. Two that differ are refused: a case between
    them would be benign to one and malignant to the other."""
    own = head.operating_threshold(classifier)
    if own is None:
        return 0.5 if given is None else given
    if given is not None and np.float32(given) != np.float32(own):
        raise ExportError(
            f"the operating threshold is {given}, and the head decides at {own:.9g}, expected one",
            hint=f"{way_out}, or export the estimator that the head holds",
        )
    return own


def _export(
    model: Model, output: Path, cases: Data | None, wanted: Wanted, overwrite: bool, progress: Progress
) -> Bundle:
    _check(model, cases, wanted)  # before minutes of work for what can't be had
    require_room(output, _disk_bytes(model, wanted), "this bundle")
    with (
        atomic_folder(output, bundles.KIND, overwrite=overwrite) as folder,
        resting(model.modules.values()),
    ):
        try:
            finish(begin(folder, model, cases, wanted, progress))
        except ParityError as error:
            raise ParityError(f"{error}; no bundle was written", hint=error.hint) from error
    return Bundle.open(output)


def _disk_bytes(model: Model, wanted: Wanted) -> float:
    """About what a bundle takes while it is made: its weights, and for each target that has files of its own, these."""
    weights = sum(4 * one.numel() for module in model.modules.values() for one in module.state_dict().values())
    of_gpus = [target for target in targets.resolve(wanted) if known_engine(target).traits.profiled]
    return float(weights) * (1.1 + 0.3 * bool(wanted.calibration) + 3 * len(of_gpus))


def begin(folder: Path, model: Model, cases: Data | None, wanted: Wanted, progress: Progress) -> Draft:
    """Write to `folder` what all targets are made from, and seal it: graphs, weights of the pools, golden vectors."""
    encoders = Encoders(model.modules, model.preprocessing.size)
    heads = _lower(model, encoders)  # first: it may be refused, and soon
    lowered = {name: head.report(graph) for name, graph in heads.items()}
    cases, wanted = _cases_to_prove(cases, wanted, model.preprocessing, progress)
    targets.require_enough(wanted, wanted.gate or cases)
    original = _run_original(encoders, model, cases, progress)
    flat = run_flat(encoders, cases)
    said = _said_in_graphs(model, encoders)
    tensors = _write_graphs(folder / "onnx", heads, encoders, said, progress)
    single = _single_heads(model, encoders)
    _write_golden(folder / "golden", cases, original, model, single)
    pools = _write_pools(folder, encoders, original)
    entry = _entry(model, tensors) | {"head": lowered, "attention_pool": pools}
    entry["graphs"] |= {name: f"onnx/{name}.onnx" for name in map(single_record.graph_of, single)}
    own = [bundles.own_graph(name, "openvino") for name in (*MODALITIES, "attention_pool")]
    entry["graphs"] |= {name: f"onnx/{name}.onnx" for name in own}
    entry[single_record.KEY] = {modality: one.to_json() for modality, one in single.items()} or None
    draft = Draft(folder, entry, model.head, original, cases, wanted, progress, model.single_heads, flat)
    draft.seal()
    return draft


def finish(draft: Draft) -> None:
    """Make and prove every target; the draft is then a bundle. Raises what `targets.prove` does."""
    with blob_cache.suspended():  # what is tried here is in no bundle, or not yet
        targets.prove(draft)
    used = [data for data in (draft.cases, draft.wanted.calibration, draft.wanted.gate) if data is not None]
    found = summary(one for data in used for of_case in data.warnings for one in of_case)
    draft.entry["parity"]["image_warnings"] = found
    known = KnownImages.from_json(draft.entry["known_images"])
    for key, data in (("learnt", draft.cases), ("judged_learnt", draft.judged)):
        draft.entry["parity"][key] = int(known.learnt(data.pixels).sum()) if known.known else None
    draft.entry["parity"]["judged"] = len(draft.judged.pixels["mammography"])
    draft.entry["calibration"] = _calibration(draft)
    draft.entry.update({key: rounded(draft.entry[key]) for key in ("parity", "precision")})
    draft.seal()


def _calibration(draft: Draft) -> dict[str, Any] | None:
    """What INT8 was calibrated on; None where no target has it."""
    given = draft.wanted.calibration
    if given is None or not any(Target.parse(name).in_8_bits for name in draft.entry["targets"]):
        return None
    count = len(given.pixels["mammography"])
    return dict(draft.wanted.calibrated_on) or {"kind": "cases", "source": given.source, "cases": count}


def _check(model: Model, cases: Data | None, wanted: Wanted) -> None:
    targets.resolve(wanted)
    given = {"prove parity on": cases, "calibrate INT8 on": wanted.calibration, "judge what rounds on": wanted.gate}
    for use, data in given.items():
        if data is None:
            continue
        if not isinstance(data, Data):
            raise UsageError(
                f"the cases to {use} are a {type(data).__name__}, expected a mpmmu_rt.export.Data",
                hint="Data(pixels, labels, source)",
            )
        data.require_usable(model.preprocessing.size, f"the cases to {use}")
    # As decisions compare it: in float32, of which 1e-60 is 0 and 1 - 1e-12 is 1.
    number = isinstance(model.threshold, float | int | np.number) and not isinstance(model.threshold, bool)
    if not number or not 0 < np.float32(model.threshold) < 1:
        raise ExportError(
            f"the operating threshold is {model.threshold!r}, expected a probability between 0 and 1",
            hint="0.5, if unsure",
        )


def _cases_to_prove(
    cases: Data | None, wanted: Wanted, preprocessing: Preprocessing, progress: Progress
) -> tuple[Data, Wanted]:
    """The cases that were given, else phantoms: some for parity, more for targets that round."""
    if cases is not None:
        return cases, wanted
    cases = all_cases.phantoms(PARITY_CASES, PARITY_SEED, preprocessing, progress)
    if wanted.gate is None and any(target.precision != "fp32" for target in targets.resolve(wanted)):
        gate = all_cases.phantoms(GATE_CASES, PARITY_SEED + 1, preprocessing, progress)
        wanted = replace(wanted, gate=gate)
    return cases, wanted


def _run_original(encoders: Encoders, model: Model, cases: Data, progress: Progress) -> Original:
    """What the original says of `cases`. Raises `ExportError` for modules that don't say one thing of each, and for a
    head that decides otherwise than by its probability."""
    stages = encoders.run(cases.pixels, parity.BATCH, progress)
    progress("asking it again, in other ways", 0, 1)
    steadiness.require_finite(encoders, stages["embedding"], cases)
    original = parity.with_head(stages, model.head)
    if model.as_head:
        _require_decisions(model, original)
    steadiness.require_steady(encoders, model.head, original, cases)
    progress("asking it again, in other ways", 1, 1)
    return original


def _require_decisions(model: Model, original: Original) -> None:
    """Raise `ExportError` for a head whose `predict` says otherwise than its probability at the model's threshold: an
    SVC goes by the side of its plane. What float32 can't tell from the threshold is a tie."""
    said = np.asarray(model.head.predict(original.stages["embedding"])) == 1
    tie = np.abs(original.probability - model.threshold) < _TIE
    other = int(np.sum((said != (original.probability >= model.threshold)) & ~tie))
    if other:
        raise ExportError(
            f"the head's own `predict` decides {other} of {len(said)} cases otherwise than its probability at "
            f"{model.threshold:g}, expected the same: a bundle decides by probability",
            hint=f"threshold={model.threshold:g}, if that is meant",
        )


def run_flat(encoders: Encoders, cases: Data) -> Flat:
    """What the original says of `cases` with a part of one grey, and which of those with a blank image it does not
    answer. Raises `ExportError` where it has no number for one of the first."""
    flat, blank = flattened(cases), blanks(cases)
    embedding = encoders.run(flat.pixels, parity.BATCH)["embedding"]
    steadiness.require_finite(encoders, embedding, flat)
    count = len(blank.pixels["mammography"])
    unanswered = frozenset(row for row in range(count) if not _answers(encoders, blank.rows([row], "")))
    return Flat(flat.pixels, embedding, blank.pixels, unanswered)


def _answers(encoders: Encoders, cases: Data) -> bool:
    """Whether the original has numbers for all of `cases`: one that refuses some by an exception has none."""
    try:
        return bool(np.isfinite(encoders.run(cases.pixels)["embedding"]).all())
    except ExportError:
        return False


def _lower(model: Model, encoders: Encoders) -> dict[str, onnx.ModelProto]:
    """The head, twice, and heads for one modality."""
    width = sum(encoders.width(modality) for modality in MODALITIES)
    both = {"head": head.lower(model.head, width), "head_onnxruntime": head.lower(model.head, width, "onnxruntime")}
    single = model.single_heads.items()
    return both | {single_record.graph_of(name): head.lower(one, encoders.width(name)) for name, one in single}


def _single_heads(model: Model, encoders: Encoders) -> dict[Modality, SingleHead]:
    """What the bundle says of heads for one modality: the embedding is both parts, side by side."""
    ends = np.cumsum([encoders.width(modality) for modality in MODALITIES]).tolist()
    columns = dict(zip(MODALITIES, zip([0, *ends[:-1]], ends, strict=True), strict=True))
    return {
        modality: SingleHead(columns[modality], _threshold(one, None, ""))
        for modality, one in model.single_heads.items()
    }


def _write_graphs(
    folder: Path,
    heads: Mapping[str, onnx.ModelProto],
    encoders: Encoders,
    said: Mapping[str, str],
    progress: Progress,
) -> dict[str, TensorSpec]:
    """Write all graphs, with what is `said` of the model in each; returns the tensors that cross their borders."""
    folder.mkdir()
    shapes = encoders.shapes()
    parts: dict[str, onnx.ModelProto] = {}
    for step, modality in enumerate(MODALITIES):
        progress("exporting graphs", step, 5, "graphs")
        parts[modality] = encoders.features_graph(modality)
    progress("exporting graphs", 2, 5, "graphs")
    pool = encoders.pool_graph()
    progress("exporting graphs", 3, 5, "graphs")
    whole = graphs.join(parts["mammography"], parts["ultrasound"], pool, heads["head"])
    progress("exporting graphs", 4, 5, "graphs")
    first: dict[str, onnx.ModelProto] = {**parts, "attention_pool": pool}
    exact = {bundles.own_graph(name, "onnxruntime"): exact_sigmoids(graph) for name, graph in first.items()}
    tuned = {bundles.own_graph(name, "openvino"): for_openvino(graph) for name, graph in first.items()}
    every = {**first, **exact, **tuned, **heads, "model": whole}
    for graph in every.values():
        graphs.say(graph, said)
    graphs.save_sharing_weights(every, folder)
    progress("exporting graphs", 5, 5, "graphs")
    size = encoders.size
    pixels = {f"{m}_pixels": TensorSpec(f"{m}_pixels", "uint8", ("N", 1, size, size)) for m in MODALITIES}
    floats = {name: TensorSpec(name, "float32", shape) for name, shape in (shapes | {"probability": ("N",)}).items()}
    return pixels | floats


def _said_in_graphs(model: Model, encoders: Encoders) -> dict[str, str]:
    """What a graph says of its model when it is looked at on its own; `source_sha256` is of the modules' weights."""
    digest = hashlib.sha256()
    for modality in MODALITIES:
        for name, tensor in encoders.features[modality].module.state_dict().items():
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized:
                digest.update(f"{modality}.{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    said = {
        "mpmmu_rt.model": model.name,
        "mpmmu_rt.intended_use": cards.INTENDED_USE,
        "mpmmu_rt.source_sha256": digest.hexdigest(),
        "mpmmu_rt.licence": str(cards.complete(model.card)["license"]),
    }
    return said if model.trained else said | {"mpmmu_rt.warning": bundles.UNTRAINED}


def _write_golden(
    folder: Path, cases: Data, original: Original, model: Model, single: Mapping[Modality, SingleHead]
) -> None:
    folder.mkdir()
    vectors = {f"{modality}.pixels": pixels for modality, pixels in cases.first(GOLDEN_CASES).items()}
    vectors |= {name: array[:GOLDEN_CASES] for name, array in original.stages.items()}
    arrays: dict[str, Array] = dict(vectors)
    if model.embedding_mean is not None:
        arrays[bundles.EMBEDDING_MEAN] = model.embedding_mean
    for modality, one in single.items():
        said = parity.probability_of(model.single_heads[modality], one.of(arrays["embedding"]))
        arrays[single_record.golden_of(modality)] = said
    npz.write(folder / "golden.npz", arrays, compressed=True)


def _write_pools(folder: Path, encoders: Encoders, original: Original) -> dict[str, Any] | None:
    """Write the weights of the attention pools, where both modules have one; returns the bundle's entry."""
    found = pool_weights(encoders)
    if found is None:
        return None
    kinds, weights = found
    require_pools(kinds, weights, {name: array[:GOLDEN_CASES] for name, array in original.stages.items()})
    npz.write(folder / bundles.POOL_WEIGHTS, weights, compressed=False)
    return {"weights": bundles.POOL_WEIGHTS, "kinds": dict(kinds)}


def _entry(model: Model, tensors: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {
        "name": model.name,
        "trained": model.trained,
        "preprocessing": model.preprocessing.to_json(),
        "threshold": float(model.threshold),
        "classes": list(bundles.CLASSES),
        "tensors": {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in tensors.items()},
        "graphs": {graph: f"onnx/{graph}.onnx" for graph in bundles.GRAPHS},
        "golden": "golden/golden.npz",
        "targets": [DEFAULT_TARGET],
        "model": dict(model.model),
        "card": cards.complete(model.card),
        "provenance": {
            "versions": package_versions(_VERSIONED),
            "opset": graphs.OPSET,
            "ir": graphs.IR_VERSION,
        },
        "known_images": dict(model.known_images),
        "modality_check": model.modality_check and model.modality_check.to_json(),
        "parity": {},
        "precision": {},
    }
