"""Quantized encoders: searched for in decisions on the engine that will run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from mpmmu_rt.export.draft import Draft, answers_of, in_batches
from mpmmu_rt.export.quantization import search
from mpmmu_rt.export.quantization.search import Graphs, Predict, Report
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

_FILES: Mapping[str, str] = {f"{modality}.int8": f"onnx/{modality}.int8.onnx" for modality in MODALITIES}


def make(draft: Draft, target: Target) -> dict[str, Any]:
    """Write encoders whose codes are unsigned behind a ReLU, judged on `target` itself."""
    floats = draft.encoders()

    def predict(graphs: Graphs, pixels: Mapping[Modality, Array]) -> Array:
        if graphs is floats:
            return draft.floats(target)["probability"]
        _write(draft, graphs)
        with draft.open(target) as predictor:
            return in_batches(lambda few: answers_of(predictor, few), pixels, silent, "")["probability"]

    found, report = searched(draft, floats, predict, unsigned=True)
    _write(draft, found)
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
    )


def forget(draft: Draft) -> None:
    for name, path in _FILES.items():
        (draft.folder / path).unlink(missing_ok=True)
        draft.entry["graphs"].pop(name, None)


def _write(draft: Draft, graphs: Graphs) -> None:
    for modality in MODALITIES:
        (draft.folder / _FILES[f"{modality}.int8"]).write_bytes(graphs[modality].SerializeToString())
    draft.entry["graphs"] |= _FILES
    draft.seal()
