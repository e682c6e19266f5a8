"""Engines, built without a GPU: every graph, in every precision, for every GPU that TensorRT-RTX knows. None runs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpmmu_rt.bundle import WEIGHTS, Bundle
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import RTX
from mpmmu_rt.engines.tensorrt.build import library
from mpmmu_rt.engines.tensorrt.sidecar import Built, Here, Profile, Sidecar, explain, graph_digest
from mpmmu_rt.errors import BundleError, EngineError, ExportError, MissingPackage, UsageError
from mpmmu_rt.export import tensorrt
from mpmmu_rt.export.head import lower
from mpmmu_rt.export.precision import Half, shares, to_half
from mpmmu_rt.export.quantization import calibrate, quantize
from mpmmu_rt.export.tensorrt import Parts
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

NAMES = (*MODALITIES, "head", "model")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SINCE_AMPERE = (80, 86, 89, 120)
GPUS = dict.fromkeys(PRECISIONS, (75, *SINCE_AMPERE)) | {"bf16": SINCE_AMPERE}
PROFILE = Profile(1, 4, 16)
TYPES = {
    "fp32": TensorProto.FLOAT,
    "int8": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}


def rtx(graph: Path | bytes, precision: str, *capabilities: int) -> Built:
    return tensorrt.build(
        graph, flavour="tensorrt_rtx", precision=precision, capabilities=capabilities, profile=PROFILE
    )


Graphs = Mapping[str, onnx.ModelProto]


@pytest.fixture(scope="module")
def pixels() -> dict[Modality, Array]:
    return phantom_pixels(8, seed=6, preprocessing=Preprocessing(size=48))[0]


@pytest.fixture(scope="module")
def parts(bundle_folder: Path, small_model: Checkpoint) -> Parts:
    bundle = Bundle.open(bundle_folder)
    head = lower(small_model.head, small_model.head.n_features_in_, products="convolution")
    return Parts({m: onnx.load(bundle.graph(m)) for m in MODALITIES}, onnx.load(bundle.graph("attention_pool")), head)


@pytest.fixture(scope="module")
def typed(parts: Parts, pixels: dict[Modality, Array]) -> dict[str, Graphs]:
    """What the export writes for each precision, of the small model, with its weights."""
    quantized = {m: quantize(parts.encoders[m], calibrate(parts.encoders[m], pixels[m])) for m in MODALITIES}
    sources = dict.fromkeys(PRECISIONS, parts) | {"int8": Parts(quantized, parts.pool, parts.head)}
    return {precision: tensorrt.typed(sources[precision], precision, pixels) for precision in PRECISIONS}


def check(built: Built, precision: str, capabilities: tuple[int, ...]) -> None:
    sidecar = built.sidecar
    assert (sidecar.flavour, sidecar.version) == ("tensorrt_rtx", library("tensorrt_rtx").__version__)
    assert (sidecar.capabilities, sidecar.device) == (capabilities, None)
    assert (sidecar.precision, sidecar.profile) == (precision, PROFILE)
    assert sidecar.engine_bytes == len(built.engine) > 10_000
    assert sidecar.engine_sha256 == hashlib.sha256(built.engine).hexdigest()


# ---------------------------------------------------------------- what builds


@pytest.fixture(scope="module")
def written(
    typed: dict[str, Graphs], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Sidecar]]]:
    """The folder of a target, with one engine of each graph for every GPU that has the precision, written once."""

    @cache
    def get(precision: str) -> tuple[Path, dict[str, Sidecar]]:
        folder = tmp_path_factory.mktemp("engines") / RTX.folder(precision)
        sidecars = tensorrt.write(
            folder,
            copies(typed[precision]),
            flavour="tensorrt_rtx",
            precision=precision,
            capabilities=GPUS[precision],
            profile=PROFILE,
        )
        return folder, sidecars

    return get


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_builds_for_every_gpu(
    typed: dict[str, Graphs], written: Callable[[str], tuple[Path, dict[str, Sidecar]]], precision: str
) -> None:
    """An engine is for all the GPUs named, or for none (`test_turing_has_no_bf16`)."""
    folder, sidecars = written(precision)
    assert tuple(sidecars) == NAMES
    for name, sidecar in sidecars.items():
        engine = (folder / f"{name}.engine").read_bytes()
        check(Built(engine, sidecar), precision, GPUS[precision])
        asked = "fp32" if name == "head" else precision
        assert sidecar.achieved == shares(typed[precision][name])
        assert sidecar.achieved[asked] >= tensorrt.MIN_SHARES[asked]
        assert sum(sidecar.achieved.values()) == pytest.approx(1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_pool_alone_builds(parts: Parts, precision: str) -> None:
    """No bundle holds its engine, as the CUDA kernel takes its place; the whole graph holds it."""
    half = precision in get_args(Half)
    pool = to_half(parts.pool, cast("Half", precision)) if half else parts.pool
    check(rtx(pool.SerializeToString(), precision, *GPUS[precision]), precision, GPUS[precision])


def test_turing_has_no_float32_matrix_products(bundle_folder: Path) -> None:
    """Which is why these targets have a head of convolutions."""
    head = onnx.load(Bundle.open(bundle_folder).graph("head")).SerializeToString()
    with pytest.raises(EngineError, match=r"can't build the graph in fp32 for 75: .*FP32 GEMM"):
        rtx(head, "fp32", 75)


def test_turing_has_no_bf16(typed: dict[str, Graphs]) -> None:
    with pytest.raises(EngineError, match=r"can't build the graph in bf16 for 75, 86: .*b16"):
        rtx(typed["bf16"]["mammography"].SerializeToString(), "bf16", 75, 86)


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


# ---------------------------------------------------------------- what is written


def border(model: onnx.ModelProto) -> dict[str, int]:
    return {item.name: item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_crosses_the_borders_of_the_graphs(typed: dict[str, Graphs], precision: str) -> None:
    graphs = typed[precision]
    assert tuple(graphs) == NAMES
    for modality in MODALITIES:
        assert border(graphs[modality]) == {"pixels": TensorProto.UINT8, "feature_map": TYPES[precision]}
    answers = {"probability": TensorProto.FLOAT, "base_probability": TensorProto.FLOAT}
    assert border(graphs["head"]) == {"embedding": TensorProto.FLOAT} | answers
    inputs = {f"{modality}_pixels": TensorProto.UINT8 for modality in MODALITIES}
    assert border(graphs["model"]) == inputs | answers | {"embedding": TensorProto.FLOAT}
    assert [item.name for item in graphs["model"].graph.output] == ["probability", "base_probability", "embedding"]


def test_int8_is_signed_symmetric_and_per_channel(typed: dict[str, Graphs]) -> None:
    """Or else TensorRT refuses it, or takes it for something else."""
    for name in (*MODALITIES, "model"):
        graph = typed["int8"][name].graph
        weights = {item.name: item for item in graph.initializer}
        linear = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(linear) > 20
        for node in linear:
            zero = weights[node.input[2]]
            assert zero.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero).any()
            if node.input[0] in weights:
                assert weights[node.input[0]].data_type == TensorProto.INT8
                assert numpy_helper.to_array(weights[node.input[1]]).shape == (weights[node.input[0]].dims[0],)


def test_an_island_at_the_end_of_one_encoder_makes_both_leave_in_float32(
    parts: Parts, pixels: dict[Modality, Array]
) -> None:
    """The kernel reads both feature maps in one type."""
    encoder = onnx.ModelProto.FromString(parts.encoders["ultrasound"].SerializeToString())
    last = encoder.graph.node[-1]
    assert list(last.output) == ["feature_map"]
    last.output[0] = "before"
    encoder.graph.node.append(helper.make_node("Mul", ["before", "large"], ["feature_map"]))
    encoder.graph.initializer.append(numpy_helper.from_array(np.array(1e6, np.float32), "large"))
    mountain = Parts({**parts.encoders, "ultrasound": encoder}, parts.pool, parts.head)
    graphs = tensorrt.typed(mountain, "fp16", pixels)
    assert {border(graphs[modality])["feature_map"] for modality in MODALITIES} == {TensorProto.FLOAT}
    assert {next(iter(shares(graphs[modality]))) for modality in MODALITIES} == {"fp16"}
    graphs = tensorrt.typed(mountain, "bf16", pixels)
    assert {border(graphs[modality])["feature_map"] for modality in MODALITIES} == {TensorProto.BFLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_folder_that_the_runtime_reads(
    typed: dict[str, Graphs],
    written: Callable[[str], tuple[Path, dict[str, Sidecar]]],
    tmp_path: Path,
    precision: str,
) -> None:
    """All but loading: every engine fits what lies beside it, on a GPU that it was built for."""
    folder, sidecars = written(precision)
    large = {
        (item.data_type, bytes(numpy_helper.to_array(item).tobytes()))
        for name in NAMES[:-1]
        for item in typed[precision][name].graph.initializer
    }
    alone = sum(-(-len(data) // 4096) * 4096 for _, data in large if len(data) >= 1024)
    pool = sum(-(-item.ByteSize() // 4096) * 4096 for item in pool_weights(typed[precision]["model"]))
    assert (folder / WEIGHTS).stat().st_size <= alone + pool, "the whole graph adds the pool's weights, and no copy"
    for name, sidecar in sidecars.items():
        assert sidecar == Sidecar.read(folder / f"{name}.engine.json")
        assert reason(folder, name, precision) is None
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / WEIGHTS
    weights.write_bytes(weights.read_bytes() + b" ")
    said = reason(copy, "ultrasound", precision)
    assert said is not None
    assert "built from another graph" in said


def pool_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [item for item in model.graph.initializer if item.name.startswith("pool/")]


def copies(graphs: Graphs) -> dict[str, onnx.ModelProto]:
    """`write` leaves its graphs without their weights."""
    return {name: onnx.ModelProto.FromString(graph.SerializeToString()) for name, graph in graphs.items()}


def reason(folder: Path, name: str, precision: str) -> str | None:
    """Why the engine of that graph can't be loaded on a GPU of compute capability 8.6, or None."""
    engine = (folder / f"{name}.engine").read_bytes()
    here = Here(
        flavour="tensorrt_rtx",
        version=RTX.version(),
        device="any",
        capability=86,
        precision=precision,
        graph_sha256=graph_digest(folder / f"{name}.onnx"),
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        engine_bytes=len(engine),
        batches=(1, 16),
    )
    return explain(Sidecar.read(folder / f"{name}.engine.json"), here)


def test_tensorrt_gets_the_graphs_alone_where_there_is_no_gpu(typed: dict[str, Graphs], tmp_path: Path) -> None:
    if gpu() is not None:
        pytest.skip("there is a GPU")
    assert tensorrt.write(tmp_path / "new", copies(typed["fp16"]), flavour="tensorrt", precision="fp16") == {}
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {WEIGHTS, "profile.json", *(f"{name}.onnx" for name in NAMES)}
    assert shares(onnx.load(tmp_path / "new" / "ultrasound.onnx")) == {"fp16": 1.0}
    with pytest.raises(ExportError, match=r"computes its encoders in 100\.0% fp32, expected at least 90% bf16"):
        tensorrt.write(tmp_path / "wrong", copies(typed["fp32"]), flavour="tensorrt", precision="bf16")


def test_a_bundle_without_these_graphs_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no engines/tensorrt-rtx-fp16/mammography\.onnx, expected graphs for"):
        RTX.graph(Bundle.open(bundle_folder), "mammography", "fp16")


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


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_graph_that_falls_short_of_its_name(bundle_folder: Path, precision: str) -> None:
    graph = Bundle.open(bundle_folder).graph("mammography")
    with pytest.raises(
        ExportError, match=f"computes its encoders in 100.0% fp32, expected at least [79][05]% {precision}"
    ):
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
            with pytest.raises(ExportError, match=r"computes its encoders in .*, expected at least 90% fp16"):
                rtx(half.SerializeToString(), "fp16", 86)


@pytest.mark.parametrize("name", ["head", "model"])
def test_the_head_is_fp32_in_every_target(typed: dict[str, Graphs], name: str) -> None:
    """One product in FP16 is refused, be it a small share of the whole graph."""
    model = onnx.ModelProto.FromString(typed["fp16"][name].SerializeToString())
    behind = {"embedding"}
    for node in model.graph.node:
        if behind.intersection(node.input):
            behind.update(node.output)
            if node.op_type == "Conv":
                break
    index = list(model.graph.node).index(node)
    weights = {item.name: item for item in model.graph.initializer}
    for name in node.input[1:]:
        weights[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[name]).astype(np.float16), name))
    source, target = node.input[0], node.output[0]
    node.input[0], node.output[0] = f"{source}/half", f"{target}/half"
    casts = [
        helper.make_node("Cast", [source], [f"{source}/half"], to=TensorProto.FLOAT16),
        node,
        helper.make_node("Cast", [f"{target}/half"], [target], to=TensorProto.FLOAT),
    ]
    nodes = [*model.graph.node[:index], *casts, *model.graph.node[index + 1 :]]
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.ClearField("value_info")
    with pytest.raises(ExportError, match=r"computes its head in .*fp16.*, expected at least 100% fp32"):
        rtx(model.SerializeToString(), "fp16", 86)


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
