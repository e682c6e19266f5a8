"""A typed graph on the CPU: each value is rounded to its type once, held to onnx.reference where that does the same."""

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


OPERATORS = {
    "Add": {},
    "Sub": {},
    "Mul": {},
    "Div": {},
    "Max": {},
    "Sigmoid": {},
    "Exp": {},
    "Tanh": {},
    "Relu": {},
    "Clip": {},
    "Transpose": {"perm": [1, 0]},
}


@pytest.mark.parametrize("precision", get_args(Half))
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_gives_the_float64_value_rounded_once(operator: str, precision: Half) -> None:
    """Of values of all sizes, some of which overflow. Where float32 has lost which of two values is nearer, a unit is
    allowed; ONNX Runtime's functions have no value between 0 and 1e-8 or so."""
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    sizes = 10.0 ** RNG.uniform(-4, 4, (2, 60, 50)) * RNG.choice([-1, 1], (2, 60, 50))
    x, other = sizes.astype(np.float32).astype(dtype)
    two, bounds = operator in ("Add", "Sub", "Mul", "Div", "Max"), operator == "Clip"
    weights = {"b": other} if two else {"low": np.array(-3, dtype), "high": np.array(7, dtype)} if bounds else {}
    node = helper.make_node(operator, ["x", *weights], ["y"], **OPERATORS[operator])
    model = made(node, kind, [60, 50], weights)
    wide = made(node, TensorProto.DOUBLE, [60, 50], {name: one.astype(np.float64) for name, one in weights.items()})
    with np.errstate(all="ignore"):
        exact = ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float64)})[0]
        want = exact.astype(np.float32).astype(dtype)
        got = Rounded(model).run({"x": x})["y"]
    assert got.dtype == dtype
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    assert same.mean() > (0.9 if operator in ("Sigmoid", "Exp", "Tanh") else 0.9999)
    step = {"fp16": 2.0**-10, "bf16": 2.0**-7}[precision]
    finite = np.isfinite(exact) & np.isfinite(got.astype(np.float64)) & ~same
    distance = np.abs(got[finite].astype(np.float64) - exact[finite])
    assert np.all(distance <= step * np.abs(exact[finite]) + 1e-7)
    if operator == "Mul" and precision == "fp16":
        assert np.isinf(got.astype(np.float64)).any()


@pytest.mark.parametrize("precision", get_args(Half))
def test_a_mean_is_rounded_once(precision: Half) -> None:
    """onnx.reference adds up in the half type; accelerators, and we, in float32."""
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    x = RNG.uniform(0, 2, (5, 700)).astype(np.float32).astype(dtype)
    got = Rounded(made(node, kind, [5, 700], {"axes": np.array([1])})).run({"x": x})["y"]
    np.testing.assert_array_equal(got, x.astype(np.float64).mean(1).astype(np.float32).astype(dtype))


@pytest.mark.parametrize("precision", get_args(Half))
def test_what_lies_at_the_ends_of_the_type(precision: Half) -> None:
    """Ties to even, numbers below the normal ones, the largest, and what is no number: as NumPy has them."""
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    bits = RNG.integers(0, 2**32, 200_000, dtype=np.uint32)
    ends = np.array([0, -0.0, 65504, 65519.9, 65520, 3.4e38, np.inf, np.nan], np.float32)
    values = np.concatenate([bits.view(np.float32), ends])
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=kind)],
        "cast",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", kind, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    with np.errstate(all="ignore"):
        want = values.astype(dtype)
    got = Rounded(model).run({"x": values})["y"]
    np.testing.assert_array_equal(got.view(np.uint16)[~np.isnan(values)], want.view(np.uint16)[~np.isnan(values)])
    assert np.isnan(got.astype(np.float32)[np.isnan(values)]).all()


def test_a_graph_within_the_graph_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "branch", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch, name="choice")
    with pytest.raises(ExportError, match="If `choice` holds a graph of its own"):
        Rounded(made(node, TensorProto.FLOAT, [1], {"c": np.array(True)}))


def test_a_foreign_operator_is_refused() -> None:
    node = helper.make_node("Foreign", ["x"], ["y"], domain="somewhere")
    model = made(node, TensorProto.FLOAT16, [1], {})
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    model.graph.output[0].type.tensor_type.ClearField("elem_type")
    with pytest.raises(ExportError, match="a type that can't be told"):
        Rounded(model)


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
        want = ReferenceEvaluator(newer).run(None, {"pixels": pixels})[0]
        got = session(quantized).run(None, {"pixels": pixels})[0]
        exact = session(graph).run(None, {"pixels": pixels})[0]
        error, noise = (float(np.sum((array - want) ** 2)) for array in (got, exact))
        # A sum that falls on the other side of a code's border, here and there, and nothing systematic.
        assert error < 0.1 * noise
