"""Quantized encoders: searched for in decisions on the engine that will run them.

What is not 8 bits wide differs between `int8` and `int8-bf16`. The second of them takes the graphs of the first, if it
decides alike with them; else they are searched for again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from mpmmu_rt.bundle import quantized_graph
from mpmmu_rt.errors import EngineError, ParityError
from mpmmu_rt.export.draft import Draft, answers_of, in_batches
from mpmmu_rt.export.openvino_graph import for_openvino
from mpmmu_rt.export.quantization import search
from mpmmu_rt.export.quantization.search import Graphs, Predict, Report
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .proofs import proven_floats, require_blank, same_decisions

# What a report says of how the graphs came about; all else is of the target that runs them.
_OF_THE_GRAPHS = ("limits", "layers", "kept_float", "calibration", "unsigned_activations", "calibrated_on")


def make(draft: Draft, target: Target) -> dict[str, Any]:
    """Write encoders whose codes are unsigned behind a ReLU, judged on `target` itself, or judge those that are there.

    Raises what `quantization.search` and `proofs.require_blank` do.
    """
    return _shared(draft, target) or _searched_for(draft, target)


def _shared(draft: Draft, target: Target) -> dict[str, Any]:
    """The report of `target` on the graphs of another that the draft lists; {} where there is none, or it can't have
    them."""
    listed = map(Target.parse, draft.entry["targets"])
    other = next((one for one in listed if one.in_8_bits and one.engine == target.engine), None)
    if other is None:
        return {}
    try:
        gate = same_decisions(draft, target, target)
    except (ParityError, EngineError):
        return {}
    said = {name: draft.entry["precision"][str(other)][name] for name in _OF_THE_GRAPHS}
    return said | {"passed": True, "gate": gate, "source": gate["source"], "graphs_of": str(other)}


def _searched_for(draft: Draft, target: Target) -> dict[str, Any]:
    floats = draft.encoders()

    def predict(graphs: Graphs, pixels: Mapping[Modality, Array]) -> Array:
        if graphs is floats:
            return proven_floats(draft, target)["probability"]
        _write(draft, target, graphs)
        with draft.open(target) as predictor:
            return in_batches(lambda few: answers_of(predictor, few), pixels, silent, "")["probability"]

    found, report = searched(draft, floats, predict, unsigned=True)
    _write(draft, target, found)
    with draft.open(target) as predictor:
        require_blank(draft, target, predictor)
    return report.to_json() | {
        "passed": True,
        "source": draft.judged.source,
        "calibrated_on": draft.calibration.source,
    }


def searched(
    draft: Draft, floats: Graphs, predict: Predict, *, unsigned: bool
) -> tuple[dict[Modality, onnx.ModelProto], Report]:
    """`quantization.search` with what the draft was calibrated and is judged on. Raises what that does."""
    return search(
        floats,
        draft.ranges,
        draft.calibration.pixels,
        draft.judged.pixels,
        draft.judged.labels,
        predict,
        threshold=draft.threshold,
        limits=draft.wanted.limits,
        unsigned=unsigned,
        progress=draft.progress,
        ranking=draft.rankings.setdefault(unsigned, []),
    )


def forget(draft: Draft, target: Target) -> None:
    for name, path in _files(target).items():
        (draft.folder / path).unlink(missing_ok=True)
        draft.entry["graphs"].pop(name, None)


def _files(target: Target) -> dict[str, str]:
    names = {modality: quantized_graph(modality, target.precision) for modality in MODALITIES}
    return {name: f"onnx/{name}.onnx" for name in names.values()}


def _write(draft: Draft, target: Target, graphs: Graphs) -> None:
    files = _files(target)
    for modality, path in zip(MODALITIES, files.values(), strict=True):
        (draft.folder / path).write_bytes(for_openvino(graphs[modality]).SerializeToString())
    draft.entry["graphs"] |= files
    draft.seal()
