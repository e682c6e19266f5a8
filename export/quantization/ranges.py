"""Calibration: the range of every activation that may be quantized, measured on images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from mpmmu_rt.errors import ExportError, UnfitTarget
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .placement import candidates

_BATCH_BYTES = 256 * 2**20  # of activations held at once
_MAX_BATCH = 32


@dataclass(frozen=True)
class Ranges:
    """limit: per tensor, the largest magnitude, which becomes the largest code. cases, sha256: of what images."""

    limit: Mapping[str, float]
    cases: int
    sha256: str


def calibrate(graph: onnx.ModelProto, pixels: Array, progress: Progress = silent) -> Ranges:
    """Activation ranges of one encoder graph on pixels uint8 [N, 1, S, S]: the largest magnitude ever seen.

    Nothing seen is clipped: percentiles and least squares, which clip, were measured to be worse, since the rare
    large activations are what the embedding is made of (`benchmarks/NOTES.md`). Runs on ONNX Runtime in FP32,
    in batches whose activations take at most 256 MiB or one image's; the same pixels give the same ranges. Raises
    `ExportError` if there are no pixels, nothing to quantize, or an activation that is not finite.
    """
    tensors = candidates(graph)
    if not tensors or not len(pixels):
        # A model without such tensors can't have INT8; without images, nothing can be said.
        raise (ExportError if tensors else UnfitTarget)(
            f"calibration got {len(pixels)} images and a graph with {len(tensors)} tensors to quantize, "
            "expected at least one of each",
            hint="INT8 is for encoders with 2-D convolutions of 8 channels or more",
        )
    limit = dict.fromkeys(tensors, 0.0)
    runner = session(with_outputs(graph, tensors))
    name = runner.get_inputs()[0].name
    start, batch = 0, 1
    while start < len(pixels):
        progress("calibrating", start, len(pixels), "images")
        values: list[Array] = runner.run(list(tensors), {name: pixels[start : start + batch]})
        for tensor, value in zip(tensors, values, strict=True):
            largest = max(float(value.max()), -float(value.min()))  # NaN in, NaN out
            if not np.isfinite(largest):
                raise ExportError(
                    f"the activation `{tensor}` is not finite on one of the calibration images {start} to "
                    f"{start + len(value) - 1}, expected finite numbers",
                    hint="look at these images, and at the checkpoint",
                )
            limit[tensor] = max(limit[tensor], largest)
        start += len(values[0])
        if start == 1:
            batch = int(np.clip(_BATCH_BYTES // sum(value.nbytes for value in values), 1, _MAX_BATCH))
    progress("calibrating", len(pixels), len(pixels), "images")
    return Ranges(limit, len(pixels), hash_of([pixels]))


def with_outputs(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that gives `tensors` (float32) instead of its outputs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph)
    del tapped.graph.output[:]
    tapped.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    return tapped


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """`model` in ONNX Runtime on the CPU, Q/DQ as it is written, in float32: the same on every processor."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # its INT8 kernels saturate without VNNI
    options.intra_op_num_threads = usable_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def hash_of(arrays: Sequence[Array]) -> str:
    """sha256 of the arrays' types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_of_cases(pixels: Mapping[Modality, Array]) -> str:
    """sha256 of the pixels of all modalities: the fingerprint of a calibration set."""
    return hash_of([pixels[modality] for modality in MODALITIES])
