"""The engines that a lowered head is held to scikit-learn on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest

from mpmmu_rt.export.head import HeadEngine
from mpmmu_rt.spec import Array


class Said(NamedTuple):
    """probability: float32 [N]. base: float32 [N, learners]."""

    probability: Array
    base: Array


Run = Callable[[onnx.ModelProto, Array], Said]


def on_onnxruntime(model: onnx.ModelProto, x: Array) -> Said:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return Said(*session.run(["probability", "base_probability"], {"embedding": x}))


def on_openvino(model: onnx.ModelProto, x: Array) -> Said:
    """It turns a division by a constant into a product with its reciprocal."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    found = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)
    return Said(np.array(found["probability"]), np.array(found["base_probability"]))


# The form of a head and what runs it.
ENGINES: list[tuple[HeadEngine, Run]] = [
    ("portable", on_onnxruntime),
    ("portable", on_openvino),
    ("onnxruntime", on_onnxruntime),
]
