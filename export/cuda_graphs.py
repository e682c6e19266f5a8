"""Encoders in FP16 for `onnxruntime-cuda:fp16`: graphs whose types are the precision, as TensorRT's are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from mpmmu_rt.spec import MODALITIES, Array, Modality

from .graphs import save_sharing_weights
from .precision import islands, shares, to_half
from .sigmoid import exact_sigmoids, gate_steps
from .tensorrt import require_precision


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
