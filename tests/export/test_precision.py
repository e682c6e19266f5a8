"""FP16 and BF16 graphs: their numbers, what stays FP32, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mpmmu_rt.bundle import Bundle, Graph
from mpmmu_rt.errors import ExportError
from mpmmu_rt.export.precision import FP16_MAX, RANGE_MARGIN, Half, islands, shares, to_half
from mpmmu_rt.spec import MODALITIES, Array

HALVES = get_args(Half)
# Of the largest value: half a unit in the last place (2^-11, 2^-8) through some tens of layers, which it grows with as
# their square root. Measured on the small model: 1.3e-3 and 1.1e-2.
CLOSE: dict[Half, float] = {"fp16": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}
HEAD = 1e-5  # float32 on ONNX Runtime and on NumPy
LIMIT = FP16_MAX / RANGE_MARGIN


def feeds_of(bundle: Bundle, graph: Graph) -> dict[str, Array]:
    golden = bundle.golden()
    if graph == "model":
        return {f"{modality}_pixels": golden[f"{modality}.pixels"] for modality in MODALITIES}
    if graph == "attention_pool":
        return {f"{modality}_feature_map": golden[f"{modality}.feature_map"] for modality in MODALITIES}
    return {"embedding": golden["embedding"]} if graph == "head" else {"pixels": golden[f"{graph}.pixels"]}


def on_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def rounded(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every value in the type that the graph says, by NumPy.

    ONNX Runtime on the CPU computes an FP16 graph in float32 and drops the casts between, and knows no BF16 Conv: it
    would find neither rounding nor overflow.
    """
    names = [item.name for item in model.graph.output]
    with np.errstate(over="ignore", invalid="ignore"):
        return dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))


def borders(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(item.name, item.type.tensor_type.elem_type) for item in (*model.graph.input, *model.graph.output)]


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value of the graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.output)}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("graph", ["mammography", "ultrasound", "attention_pool"])
def test_the_numbers(bundle_folder: Path, graph: Graph, precision: Half) -> None:
    bundle = Bundle.open(bundle_folder)
    model, feeds = onnx.load(bundle.graph(graph)), feeds_of(bundle, graph)
    before = model.SerializeToString()
    half = to_half(model, precision, islands(model, feeds))
    assert model.SerializeToString() == before
    assert borders(half) == borders(model)
    assert shares(half) == {precision: 1.0}
    got = rounded(half, feeds)
    for name, want in on_onnxruntime(model, feeds).items():
        assert got[name].dtype == want.dtype == np.float32
        difference = np.abs(got[name] - want).max() / np.abs(want).max()
        assert 0 < difference <= CLOSE[precision], "nothing was rounded" if difference == 0 else "too far away"


@pytest.mark.parametrize("precision", HALVES)
def test_outputs_may_leave_in_half(bundle_folder: Path, precision: Half) -> None:
    bundle = Bundle.open(bundle_folder)
    model, feeds = onnx.load(bundle.graph("ultrasound")), feeds_of(bundle, "ultrasound")
    half = to_half(model, precision, half_outputs=True)
    wanted = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert borders(half) == [("pixels", TensorProto.UINT8), ("feature_map", wanted)]
    assert shares(half) == {precision: 1.0}
    got, cast = rounded(half, feeds)["feature_map"], rounded(to_half(model, precision), feeds)["feature_map"]
    assert got.dtype == helper.tensor_dtype_to_np_dtype(wanted)
    np.testing.assert_array_equal(got.astype(np.float32), cast)
    float_end = to_half(model, precision, {"feature_map"}, half_outputs=True)
    assert borders(float_end) == borders(model), "it is computed in float32"


@pytest.mark.parametrize("precision", HALVES)
def test_the_whole_graph_has_half_encoders_and_a_float_head(bundle_folder: Path, precision: Half) -> None:
    bundle = Bundle.open(bundle_folder)
    model, feeds = onnx.load(bundle.graph("model")), feeds_of(bundle, "model")
    half = to_half(model, precision)
    assert borders(half) == borders(model)
    got = shares(half)
    assert set(got) == {precision, "fp32"}
    assert got[precision] > 0.9
    assert shares(half, "encoders") == {precision: 1.0}
    assert shares(half, "head") == {"fp32": 1.0}
    behind = {"embedding"}
    for node in half.graph.node:
        if behind.intersection(node.input):
            behind.update(node.output)
    types = kinds(half)
    assert TensorProto.FLOAT in {types[name] for name in behind}
    assert {TensorProto.FLOAT16, TensorProto.BFLOAT16}.isdisjoint(types[name] for name in behind)
    # The head decides by thresholds: the same embedding gives the same probability, another one need not a close one.
    result = rounded(half, feeds)
    want = on_onnxruntime(model, feeds)["embedding"]
    assert np.abs(result["embedding"] - want).max() <= CLOSE[precision] * np.abs(want).max()
    head = on_onnxruntime(onnx.load(bundle.graph("head")), {"embedding": result["embedding"]})
    np.testing.assert_allclose(result["probability"], head["probability"], rtol=0, atol=HEAD)


@pytest.mark.parametrize("precision", HALVES)
def test_the_head_alone_is_untouched(bundle_folder: Path, precision: Half) -> None:
    model = onnx.load(Bundle.open(bundle_folder).graph("head"))
    half = to_half(model, precision)
    assert shares(half) == {"fp32": 1.0}
    assert [node.op_type for node in half.graph.node] == [node.op_type for node in model.graph.node]


def test_fp16_agrees_with_the_converter_of_onnxruntime(bundle_folder: Path) -> None:
    """An independent pass over the same graph: ours keeps the normalisation in FP32 and is no less exact."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    bundle = Bundle.open(bundle_folder)
    model, feeds = onnx.load(bundle.graph("mammography")), feeds_of(bundle, "mammography")
    want = on_onnxruntime(model, feeds)["feature_map"]
    ours = rounded(to_half(model, "fp16"), feeds)["feature_map"]
    theirs = rounded(convert_float_to_float16(model, keep_io_types=True), feeds)["feature_map"]
    assert np.abs(ours - theirs).max() <= 2 * CLOSE["fp16"] * np.abs(want).max()
    assert np.abs(ours - want).max() <= 2 * np.abs(theirs - want).max()


# ---------------------------------------------------------------- islands


def made(*nodes: onnx.NodeProto, weights: dict[str, Array] | None = None, output: str = "y") -> onnx.ModelProto:
    """A graph from x float32 [N, 1, 4, 4] to `output`."""
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "made",
        [tensor("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [tensor(output, TensorProto.FLOAT, ["N", 1, 4, 4])],
        [numpy_helper.from_array(values, name) for name, values in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def convolution(source: str, weight: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], name=f"conv/{target}", kernel_shape=[1, 1])


def scale(value: float) -> Array:
    return np.full((1, 1, 1, 1), value, np.float32)


X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 1, 4, 4)


def mountain(height: float) -> onnx.ModelProto:
    """Convolutions up to `height` and down again."""
    weights = {"one": scale(1), "up": scale(height**0.5), "down": scale(1 / height)}
    steps = [("x", "one", "a"), ("a", "up", "b"), ("b", "up", "c"), ("c", "down", "d"), ("d", "one", "y")]
    return made(*(convolution(*step) for step in steps), weights=weights)


def test_islands_are_what_the_images_drive_out_of_range() -> None:
    model = mountain(1e6)
    found = islands(model, {"x": X})
    assert found == {"c"}
    half = to_half(model, "fp16", found)
    np.testing.assert_allclose(rounded(half, {"x": X})["y"], X, rtol=0, atol=4e-3)
    types = kinds(half)
    assert [types[name] == TensorProto.FLOAT16 for name in ("a", "c", "d/fp16")] == [True, False, True]
    assert shares(half) == {"fp16": 0.6, "fp32": 0.4}
    flat = rounded(to_half(model, "fp16"), {"x": X})["y"]
    assert not np.isfinite(flat).all(), "without islands it overflows: else this test shows nothing"


def test_the_head_has_no_islands() -> None:
    """Its trees use infinity, and it is FP32 without being asked."""
    large = helper.make_node("Mul", ["embedding", "infinite"], ["y"])
    weights = {"one": scale(1), "infinite": scale(float("inf"))}
    model = made(convolution("x", "one", "embedding"), large, weights=weights)
    assert islands(model, {"x": X}) == frozenset()


def test_the_limit_of_islands_has_the_named_margin() -> None:
    assert islands(mountain(0.99 * LIMIT), {"x": X}) == frozenset()
    assert islands(mountain(1.01 * LIMIT), {"x": X}) == {"c"}
    half_as_bright = islands(mountain(1.01 * LIMIT), {"x": X / 2})
    assert half_as_bright == frozenset(), "it looks at the images"


def test_a_large_weight_is_an_island() -> None:
    weights = {"one": scale(1), "up": scale(1e6), "down": scale(1e-6)}
    steps = [("x", "one", "a"), ("a", "down", "b"), ("b", "up", "y")]
    model = made(*(convolution(*step) for step in steps), weights=weights)
    with pytest.raises(ExportError, match="the weight `up` holds 1e\\+06, expected at most 65504 for fp16"):
        to_half(model, "fp16")
    found = islands(model, {"x": X})
    assert found == {"up"}
    assert shares(to_half(model, "fp16", found)) == pytest.approx({"fp16": 2 / 3, "fp32": 1 / 3})
    assert shares(to_half(model, "bf16")) == {"bf16": 1.0}


def test_every_case_counts_and_none_may_fail() -> None:
    model = made(convolution("x", "w", "a"), helper.make_node("Exp", ["a"], ["y"]), weights={"w": scale(1)})
    bright = X.copy()
    bright[-1] = 10
    assert islands(model, {"x": bright}) == {"y"}
    bright[-1] = 100
    with pytest.raises(ExportError, match="the value `y` is not finite for case 3 in float32"):
        islands(model, {"x": bright})


# ---------------------------------------------------------------- what is counted, and what is refused


def test_shares_count_multiply_accumulates() -> None:
    tensor = helper.make_tensor_value_info
    weights: dict[str, Array] = {
        "w": np.ones((6, 2, 3, 3), np.float32),  # 4 channels in 2 groups: 6 · 8 · 8 outputs of 2 · 9
        "v": np.ones((384, 5), np.float16),
        "shape": np.array([0, -1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["y"]),  # 5 outputs of 384
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [tensor("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [tensor("y", TensorProto.FLOAT16, ["N", 5])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    total = 6 * 64 * 18 + 5 * 384
    assert shares(model) == pytest.approx({"fp16": 5 * 384 / total, "fp32": 6 * 64 * 18 / total})


def dequantize(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [source, "s", "z"], [target])


def quantized(both: bool) -> onnx.ModelProto:
    """A convolution of dequantized weights, and of dequantized pixels too or not."""
    weights = {"q": np.ones((1, 1, 1, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    before = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]), dequantize("xq", "xd")] if both else []
    nodes = [*before, dequantize("q", "w"), convolution("xd" if both else "x", "w", "y")]
    return made(*nodes, weights={name: np.asarray(value) for name, value in weights.items()})


def test_int8_is_where_both_operands_are_dequantized() -> None:
    assert shares(quantized(both=True)) == {"int8": 1.0}
    assert shares(quantized(both=False)) == {"fp32": 1.0}


def test_no_products_no_shares() -> None:
    assert shares(made(helper.make_node("Relu", ["x"], ["y"]))) == {}


def branching() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    choose = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    return made(convolution("x", "w", "a"), choose, weights={"w": scale(1), "flag": np.array(True)})


@pytest.mark.parametrize(
    ("model", "precision", "keep", "message"),
    [
        (mountain(1), "fp8", (), "the precision is `fp8`, expected fp16 or bf16"),
        (mountain(1), "fp16", ("nowhere",), "`nowhere` was to stay float32 and is no value of the graph"),
        (quantized(both=True), "fp16", (), "the operator QuantizeLinear `` is of a quantized model"),
        (branching(), "fp16", (), "the operator If `choose` has a graph of its own"),
    ],
)
def test_refusals(model: onnx.ModelProto, precision: Any, keep: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=re.escape(message)) as caught:
        to_half(model, precision, keep)
    assert caught.value.hint


def test_an_operator_that_has_no_half_form_is_refused_and_may_be_kept() -> None:
    # Resize takes its scales in float32 and nothing else.
    resize = helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode="nearest")
    scales = np.ones(4, np.float32)
    model = made(
        convolution("x", "w", "a"), resize, convolution("b", "w", "y"), weights={"w": scale(1), "scales": scales}
    )
    with pytest.raises(ExportError, match=r"the graph is not valid in fp16: .*scales"):
        to_half(model, "fp16")
    half = to_half(model, "fp16", {"scales"})
    np.testing.assert_allclose(rounded(half, {"x": X})["y"], X, rtol=0, atol=1e-3)


def test_shapes_that_are_unknown_are_refused() -> None:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="product")],
        "unknown",
        [tensor("a", TensorProto.FLOAT, None), tensor("b", TensorProto.FLOAT, [3, 2])],
        [tensor("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ExportError, match="the shape of `a` at the MatMul `product` is unknown"):
        shares(model)
