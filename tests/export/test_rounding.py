"""A typed graph on the CPU: as onnx.reference does it, where that can, and fast enough for graphs of real size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import ExportError
from mpmmu_rt.export.precision import Half, to_half
from mpmmu_rt.export.quantization import calibrate, quantize
from mpmmu_rt.export.quantization.ranges import session
from mpmmu_rt.export.rounding import Rounded
from mpmmu_rt.spec import MODALITIES, Array

# Of the largest value: products are summed in another order and, by onnx.reference, in the half type itself. Ours
# rounds once, as tensor cores do. Units in the last place: 2^-11 and 2^-8.
CLOSE: dict[Half, float] = {"fp16": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}
# The least that rounding every value of an encoder moves its feature map by: half a step of the largest.
ROUNDING: dict[Half, float] = {"fp16": 2.0**-12, "bf16": 2.0**-9}


def made(node: onnx.NodeProto, kind: int, shape: list[Any], weights: dict[str, Array]) -> onnx.ModelProto:
    """A graph of one node from x to y, both of that type."""
    graph = helper.make_graph(
        [node],
        "made",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def conv(**options: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", "w", "b"], ["y"], **options)


RNG = np.random.default_rng(0)
CONVOLUTIONS = {
    "plain": (conv(), (2, 4, 7, 5), (6, 4, 1, 1)),
    "padded, strided": (conv(pads=[1, 2, 1, 2], strides=[2, 1]), (2, 4, 7, 5), (6, 4, 3, 5)),
    "grouped, dilated": (conv(group=2, dilations=[2, 1], kernel_shape=[3, 3]), (1, 4, 9, 8), (6, 2, 3, 3)),
    "along one axis": (conv(pads=[2, 2]), (2, 1, 11), (1, 1, 5)),
}


@pytest.mark.parametrize("precision", ["fp32", *get_args(Half)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_those_of_onnx_reference(name: str, precision: Any) -> None:
    node, shape, weight = CONVOLUTIONS[name]
    kinds = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    dtype = helper.tensor_dtype_to_np_dtype(kinds[precision])
    x = RNG.normal(0, 1, shape).astype(dtype)
    weights = {"w": RNG.normal(0, 1, weight).astype(dtype), "b": RNG.normal(0, 1, weight[:1]).astype(dtype)}
    wide = made(node, TensorProto.FLOAT, list(shape), {key: v.astype(np.float32) for key, v in weights.items()})
    want = ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float32)})[0]
    got = Rounded(made(node, kinds[precision], list(shape), weights)).run({"x": x})["y"]
    assert got.dtype == dtype
    # One rounding of the float32 sum, so at most half a unit, of the value itself, plus float32's own.
    half_unit = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    assert np.all(np.abs(got.astype(np.float64) - want) <= half_unit * np.abs(want) + 1e-5)


def test_a_maximum_is_that_of_onnx_reference() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = RNG.normal(-5, 1, (2, 3, 9, 8)).astype(np.float16)
    model = made(node, TensorProto.FLOAT16, [2, 3, 9, 8], {})
    np.testing.assert_array_equal(Rounded(model).run({"x": x})["y"], ReferenceEvaluator(model).run(None, {"x": x})[0])


def test_a_long_axis_is_gathered_from() -> None:
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)
    x = RNG.normal(0, 1, (2, 100)).astype(np.float32)
    index = np.array([[99, 0, 70], [1, 1, 65]])
    got = Rounded(made(node, TensorProto.FLOAT, [2, 100], {"i": index})).run({"x": x})["y"]
    np.testing.assert_array_equal(got, [[x[0, 99], x[0, 0], x[0, 70]], [x[1, 1], x[1, 1], x[1, 65]]])


def test_overflow_is_infinite() -> None:
    """ONNX Runtime on the CPU would say 7e4."""
    weights = {"w": np.full((1, 1, 1, 1), 7e2, np.float16), "b": np.zeros(1, np.float16)}
    model = made(conv(), TensorProto.FLOAT16, [1, 1, 1, 1], weights)
    assert Rounded(model).run({"x": np.full((1, 1, 1, 1), 1e2, np.float16)})["y"].item() == np.inf


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (conv(pads=[1, 1, 0, 0]), r"pads by \[1, 1, 0, 0\]"),
        (conv(auto_pad="SAME_UPPER"), "SAME_UPPER"),
    ],
)
def test_what_torch_can_not_pad_is_refused(node: onnx.NodeProto, problem: str) -> None:
    weights = {"w": np.ones((1, 1, 2, 2), np.float32), "b": np.zeros(1, np.float32)}
    with pytest.raises(ExportError, match=problem):
        Rounded(made(node, TensorProto.FLOAT, [1, 1, 4, 4], weights)).run({"x": np.ones((1, 1, 4, 4), np.float32)})


@pytest.mark.parametrize("precision", get_args(Half))
def test_an_encoder_is_as_onnx_reference_has_it(bundle_folder: Path, precision: Half) -> None:
    bundle = Bundle.open(bundle_folder)
    feeds = {"pixels": bundle.golden()["mammography.pixels"]}
    graph = onnx.load(bundle.graph("mammography"))
    model = to_half(graph, precision)
    want = ReferenceEvaluator(model).run(None, feeds)[0]
    got = Rounded(model).run(feeds)["feature_map"]
    scale = np.abs(want).max()
    # Sums in another order, which by chance may round to the same; and each value was rounded, which no order undoes.
    assert np.abs(got - want).max() / scale <= CLOSE[precision]
    assert np.abs(got - session(graph).run(None, feeds)[0]).max() / scale > ROUNDING[precision]


def test_int8_is_on_onnxruntime_what_its_operators_say(bundle_folder: Path) -> None:
    """The gate of INT8 for TensorRT runs there; here every Q/DQ is computed as it is defined, in float32."""
    bundle = Bundle.open(bundle_folder)
    for modality in MODALITIES:
        pixels = bundle.golden()[f"{modality}.pixels"]
        graph = onnx.load(bundle.graph(modality))
        quantized = quantize(graph, calibrate(graph, pixels))
        newer = onnx.ModelProto.FromString(quantized.SerializeToString())
        newer.opset_import[0].version = 19  # Q/DQ say the same, and onnx.reference has them from here on
        want = Rounded(newer).run({"pixels": pixels})["feature_map"]
        got = session(quantized).run(None, {"pixels": pixels})[0]
        exact = session(graph).run(None, {"pixels": pixels})[0]
        error, noise = (float(np.sum((array - want) ** 2)) for array in (got, exact))
        # A sum that falls on the other side of a code's border, here and there, and nothing systematic.
        assert error < 0.1 * noise
