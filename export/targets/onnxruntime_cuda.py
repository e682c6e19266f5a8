"""`onnxruntime-cuda`: FP32 runs the bundle's own graphs; FP16 has graphs whose types are the precision."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from mpmmu_rt.engines.onnxruntime_cuda import ENGINE
from mpmmu_rt.export.draft import BATCH, Draft
from mpmmu_rt.export.graphs import join, save_sharing_weights
from mpmmu_rt.export.precision import islands, shares, to_half
from mpmmu_rt.export.sigmoid import exact_sigmoids, gate_steps
from mpmmu_rt.export.tensorrt import require_precision
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .proofs import on_this_machine, same_graph

ONLY_WHEN_ASKED = True


def check(target: Target) -> None:
    """Graphs can be written anywhere."""


def make(draft: Draft, target: Target) -> dict[str, Any]:
    report: dict[str, Any] = {"engines": {}}
    if target.precision == "fp16":
        encoders = typed(draft.encoders(), draft.cases.first(BATCH))
        whole = join(
            encoders["mammography"],
            encoders["ultrasound"],
            draft.graph("attention_pool_onnxruntime"),
            draft.graph("head"),
        )
        report["graph"] = same_graph(draft, target, whole)
        report["achieved"] = write(draft.folder / ENGINE.folder("fp16"), encoders)
    return report


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    return on_this_machine(draft, target)


def forget(draft: Draft, target: Target) -> None:
    shutil.rmtree(draft.folder / ENGINE.folder(target.precision), ignore_errors=True)


def typed(
    encoders: Mapping[Modality, onnx.ModelProto], pixels: Mapping[Modality, Array]
) -> dict[Modality, onnx.ModelProto]:
    """The FP32 `encoders` in FP16, but for what `islands` finds with `pixels` (uint8 [N, 1, S, S], real images).

    All hold their weights. Gates are computed in float32 (`sigmoid.py`). Feature maps leave as float32, which the
    attention pool, FP32 here too, takes as it is.
    Raises what `precision.to_half` and `precision.islands` do, and `ExportError` for a graph that is not FP16 in the
    main.
    """
    found = {}
    for modality in MODALITIES:
        encoder = encoders[modality]
        kept = islands(encoder, {"pixels": pixels[modality]}) | gate_steps(encoder)
        found[modality] = to_half(exact_sigmoids(encoder), "fp16", kept)
    for model in found.values():
        require_precision(model, "fp16")
    return found


def write(folder: Path, graphs: Mapping[Modality, onnx.ModelProto]) -> dict[str, dict[str, float]]:
    """Write what `typed` returned to the new `folder`; the graphs are left without their weights.

    Returns the share of multiply-accumulates in each precision, by modality and by the graph's types.
    """
    achieved = {str(modality): shares(graphs[modality]) for modality in MODALITIES}
    folder.mkdir(parents=True)
    save_sharing_weights({str(modality): graphs[modality] for modality in MODALITIES}, folder)
    return achieved
