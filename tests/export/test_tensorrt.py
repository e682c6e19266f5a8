"""Engines, built without a GPU: every graph, in every precision, for every GPU that TensorRT-RTX knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpmmu_rt.bundle import Bundle, Graph
from mpmmu_rt.engines.tensorrt import RTX
from mpmmu_rt.engines.tensorrt_build import Gpu, gpu, library
from mpmmu_rt.engines.tensorrt_sidecar import Built, Profile, Sidecar
from mpmmu_rt.errors import BundleError, EngineError, ExportError, MissingPackage, UsageError
from mpmmu_rt.export import tensorrt
from mpmmu_rt.export.head import lower
from mpmmu_rt.export.precision import Half, shares, to_half
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.spec import MODALITIES, Array

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

GRAPHS: tuple[Graph, ...] = ("mammography", "ultrasound", "attention_pool", "head", "model")
SINCE_AMPERE = (80, 86, 89, 120)
PROFILE = Profile(1, 4, 16)


def rtx(graph: Path | bytes, precision: str, *capabilities: int, fp32: bool = False) -> Built:
    return tensorrt.build(
        graph, flavour="tensorrt_rtx", precision=precision, capabilities=capabilities, profile=PROFILE, fp32=fp32
    )


@pytest.fixture(scope="module")
def typed(bundle_folder: Path) -> Callable[[Graph, str], bytes]:
    """A graph of the small bundle in a precision, with its weights."""
    bundle = Bundle.open(bundle_folder)

    def get(graph: Graph, precision: str) -> bytes:
        model = onnx.load(bundle.graph(graph))
        half = to_half(model, cast("Half", precision)) if precision in get_args(Half) else model
        return bytes(half.SerializeToString())

    return get


def check(built: Built, precision: str, capabilities: tuple[int, ...]) -> None:
    sidecar = built.sidecar
    assert (sidecar.flavour, sidecar.version) == ("tensorrt_rtx", library("tensorrt_rtx").__version__)
    assert (sidecar.capabilities, sidecar.device) == (capabilities, None)
    assert (sidecar.precision, sidecar.profile) == (precision, PROFILE)
    assert sidecar.engine_bytes == len(built.engine) > 10_000
    assert sidecar.engine_sha256 == hashlib.sha256(built.engine).hexdigest()


# ---------------------------------------------------------------- what builds


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_since_ampere(typed: Callable[[Graph, str], bytes], graph: Graph, precision: str) -> None:
    source = typed(graph, precision)
    for capability in SINCE_AMPERE:
        built = rtx(source, precision, capability, fp32=graph == "head")
        check(built, precision, (capability,))
        asked = "fp32" if graph == "head" else precision
        assert built.sidecar.achieved[asked] >= tensorrt.MIN_SHARE
        assert built.sidecar.graph_sha256 == hashlib.sha256(source).hexdigest()


@pytest.mark.parametrize("graph", ["mammography", "ultrasound", "attention_pool"])
def test_turing_in_fp16(typed: Callable[[Graph, str], bytes], graph: Graph) -> None:
    check(rtx(typed(graph, "fp16"), "fp16", 75), "fp16", (75,))


def test_turing_has_no_float32_products(typed: Callable[[Graph, str], bytes], small_model: Checkpoint) -> None:
    with pytest.raises(EngineError, match=r"can't build the graph in fp32 for 75: .*FP32 GEMM"):
        rtx(typed("head", "fp32"), "fp32", 75)
    head = lower(small_model.head, small_model.head.n_features_in_, products="convolution")
    check(rtx(head.SerializeToString(), "fp16", 75, fp32=True), "fp16", (75,))


def test_turing_has_no_bf16(typed: Callable[[Graph, str], bytes]) -> None:
    with pytest.raises(EngineError, match=r"can't build the graph in bf16 for 75, 86: .*b16"):
        rtx(typed("mammography", "bf16"), "bf16", 75, 86)


def test_one_engine_for_many_gpus(bundle_folder: Path, tmp_path: Path) -> None:
    """From a file whose weights lie beside it, and back from disk."""
    graph = Bundle.open(bundle_folder).graph("ultrasound")
    built = rtx(graph, "fp32", 86, 89, 120)
    check(built, "fp32", (86, 89, 120))
    alone = hashlib.sha256(graph.read_bytes()).hexdigest()
    assert built.sidecar.graph_sha256 != alone, "the weights beside it count"
    path = tmp_path / "ultrasound.engine"
    built.write(path)
    assert path.read_bytes() == built.engine
    assert Sidecar.read(tmp_path / "ultrasound.engine.json") == built.sidecar


STAGES: tuple[Graph, ...] = ("mammography", "ultrasound", "attention_pool")


def parts(bundle: Bundle) -> tuple[dict[str, onnx.ModelProto], dict[str, dict[str, Array]]]:
    golden = bundle.golden()
    feeds: dict[str, dict[str, Array]] = {name: {"pixels": golden[f"{name}.pixels"]} for name in MODALITIES}
    maps = {f"{modality}_feature_map": golden[f"{modality}.feature_map"] for modality in MODALITIES}
    return {name: onnx.load(bundle.graph(name)) for name in STAGES}, {**feeds, "attention_pool": maps}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_folder_that_the_runtime_reads(bundle_folder: Path, tmp_path: Path, precision: str) -> None:
    """All but loading: every engine fits what lies beside it, on the GPU that it was built for."""
    bundle = Bundle.open(bundle_folder)
    folder = tmp_path / RTX.folder(precision)
    models, feeds = parts(bundle)
    sidecars = tensorrt.write(
        folder, models, feeds, flavour="tensorrt_rtx", precision=precision, capabilities=(86, 89), profile=PROFILE
    )
    assert set(sidecars) == set(STAGES)
    for name, sidecar in sidecars.items():
        assert RTX._read(folder / f"{name}.onnx", precision, Gpu("any", 86), (1, 16)) == (
            (folder / f"{name}.engine").read_bytes(),
            PROFILE,
            None,
        )
        assert sidecar == Sidecar.read(folder / f"{name}.engine.json")
        assert sidecar.achieved == {precision: 1.0}
    weights = folder / "weights.bin"
    weights.write_bytes(weights.read_bytes() + b" ")
    reason = RTX._read(folder / "ultrasound.onnx", precision, Gpu("any", 86), (1, 16))[2]
    assert reason is not None
    assert "built from another graph" in reason


def test_a_part_that_is_fp32_in_its_target_is_named(bundle_folder: Path, tmp_path: Path) -> None:
    models, feeds = parts(Bundle.open(bundle_folder))
    pool = {"attention_pool": models["attention_pool"]}
    with pytest.raises(ExportError, match="expected at least 90% int8"):
        tensorrt.write(tmp_path / "a", pool, feeds, flavour="tensorrt_rtx", precision="int8", capabilities=(86,))
    for precision in ("int8", "fp16"):
        sidecars = tensorrt.write(
            tmp_path / precision,
            pool,
            feeds,
            flavour="tensorrt_rtx",
            precision=precision,
            capabilities=(86,),
            fp32=["attention_pool"],
        )
        found = sidecars["attention_pool"]
        assert (found.precision, found.achieved) == (precision, {"fp32": 1.0})


def test_tensorrt_gets_the_graphs_alone_where_there_is_no_gpu(bundle_folder: Path, tmp_path: Path) -> None:
    if gpu() is not None:
        pytest.skip("there is a GPU")
    models, feeds = parts(Bundle.open(bundle_folder))
    assert tensorrt.write(tmp_path / "new", models, feeds, flavour="tensorrt", precision="fp16") == {}
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"weights.bin", *(f"{name}.onnx" for name in STAGES)}
    assert shares(onnx.load(tmp_path / "new" / "ultrasound.onnx")) == {"fp16": 1.0}


def test_a_bundle_without_these_graphs_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no engines/tensorrt-rtx-fp16/mammography\.onnx, expected graphs for"):
        RTX.pipeline(Bundle.open(bundle_folder), "fp16", 1)


def made(*nodes: onnx.NodeProto, weights: dict[str, Any], shape: list[Any] | None = None) -> bytes:
    """A graph from x float32 [N, 4, 8, 8] to y."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
W = {"w": np.ones((4, 4, 1, 1), np.float32)}


def test_int8() -> None:
    """Symmetric, per tensor, no bias: what the quantizer writes for TensorRT."""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "q": np.ones((4, 4, 1, 1), np.int8)}
    source = made(
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("Conv", ["xd", "w"], ["y"]),
        weights={name: np.asarray(value) for name, value in constants.items()},
    )
    built = rtx(source, "int8", *SINCE_AMPERE)
    check(built, "int8", SINCE_AMPERE)
    assert built.sidecar.achieved == {"int8": 1.0}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_graph_that_falls_short_of_its_name(bundle_folder: Path, precision: str) -> None:
    graph = Bundle.open(bundle_folder).graph("mammography")
    with pytest.raises(ExportError, match=f"computes in 100.0% fp32, expected at least 90% {precision}"):
        rtx(graph, precision, 86)


def test_the_share_is_of_the_products(bundle_folder: Path) -> None:
    """Some convolutions on islands are allowed, most of them are not."""
    model = onnx.load(Bundle.open(bundle_folder).graph("ultrasound"))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    last = {convolutions[-1].input[1]}
    most = {node.input[1] for node in convolutions[::2]}
    for kept, allowed in ((last, True), (most, False)):
        half = to_half(model, "fp16", kept)
        assert 0 < shares(half)["fp16"] < 1
        if allowed:
            assert rtx(half.SerializeToString(), "fp16", 86).sidecar.achieved == shares(half)
        else:
            with pytest.raises(ExportError, match="expected at least 90% fp16"):
                rtx(half.SerializeToString(), "fp16", 86)


def test_the_head_is_fp32_in_every_target(typed: Callable[[Graph, str], bytes]) -> None:
    with pytest.raises(ExportError, match=r"computes in 100\.0% fp32"):
        rtx(typed("head", "fp16"), "fp16", 86)


def test_the_error_of_the_parser_is_carried() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"], name="where"), helper.make_node("Cast", ["i"], ["y"], to=1)]
    with pytest.raises(EngineError, match=r"can't parse the graph in fp32 for 86: .*NonZero.*plugin") as caught:
        rtx(made(*nodes, weights={}), "fp32", 86)
    assert caught.value.hint
    with pytest.raises(EngineError, match="Conv `conv`") as caught:
        rtx(made(CONV, weights={"w": np.ones((4, 4, 1, 1), np.float16)}), "fp32", 86)
    assert "NonZero" not in str(caught.value), "the log of the build before"


@pytest.mark.parametrize(
    ("capabilities", "got"), [((), "none"), ((87,), "87"), ((86, 90), "86, 90"), ((100,), "100"), ((86, 86), "86, 86")]
)
def test_capabilities_are_named_and_known(capabilities: tuple[int, ...], got: str) -> None:
    message = f"the compute capabilities {got}, expected some of 75, 80, 86, 89, 120, 121"
    with pytest.raises(UsageError, match=message):
        rtx(made(CONV, weights=W), "fp32", *capabilities)


def test_tensorrt_builds_where_it_is() -> None:
    with pytest.raises(UsageError, match="TensorRT was asked to build for 86, expected no compute capability"):
        tensorrt.build(made(CONV, weights=W), flavour="tensorrt", precision="fp32", capabilities=(86,))
    try:
        library("tensorrt")
    except MissingPackage:
        with pytest.raises(MissingPackage, match="the target tensorrt needs the package `tensorrt`"):
            tensorrt.build(made(CONV, weights=W), flavour="tensorrt", precision="fp32")


def test_unknown_precision() -> None:
    with pytest.raises(ExportError, match="the precision is `fp8`, expected one of fp32, fp16, bf16, int8"):
        rtx(made(CONV, weights=W), "fp8", 89)


@pytest.mark.parametrize("shape", [[2, 4, 8, 8], ["N", 4, "H", 8]])
def test_only_the_batch_is_dynamic(shape: list[Any]) -> None:
    message = "takes only a dynamic batch, and that on axis 0, in the graph in fp32 for 86: the input `x` has the shape"
    with pytest.raises(EngineError, match=message):
        rtx(made(CONV, weights=W, shape=shape), "fp32", 86)
