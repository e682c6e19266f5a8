"""The torch engine of the GPU benchmarks: its numbers on the processor, and the device path around it, simulated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from benchmarks.gpu import device_path, device_report, torch_blocks, torch_engine, torch_graph
from benchmarks.gpu.device_answers import Cases
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import relative_difference
from mpmmu_rt.engines.tensorrt.cuda import Stream
from mpmmu_rt.errors import EngineError
from mpmmu_rt.spec import MODALITIES, Array, Target


def simulated(machine: Any) -> dict[str, Any]:
    """Options of an engine that puts its work on the simulated device."""

    def enqueue(stream: Stream, context: torch_engine.TorchContext) -> None:
        engine = context.engine
        ranges = {name: (one.data_ptr(), engine.tensors[name].bytes(len(one))) for name, one in context.views.items()}
        reads, writes = ([ranges[name] for name in names] for names in (engine.inputs, engine.outputs))
        machine.cuda.enqueue(stream.address, "engine", context.compute, reads, writes)

    return {"device": "cpu", "enqueue": enqueue, "profile": machine.target.profile}


def open_on(machine: Any, kind: str, precision: str, **options: Any) -> Any:
    make: dict[str, Callable[..., Any]] = {"device path": torch_engine.device_path, "whole": torch_engine.whole}
    pipeline = make[kind](machine.target.bundle, precision, **simulated(machine), **options)
    machine.opened.append(pipeline)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["device path", "whole"])
@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp32", torch_engine.PLAIN),
        ("fp16", torch_engine.PLAIN),
        ("fp16", torch_engine.LAST),
        ("fp32", torch_engine.FUSED),
        ("fp16", torch_engine.BLOCKS),
    ],
)
def test_every_way_says_what_the_processor_says(
    plug: Callable[..., Any],
    target: Callable[..., Any],
    cases: Callable[..., Any],
    kind: str,
    precision: str,
    options: torch_graph.Options,
) -> None:
    """Captured, in several batch sizes, on a device that runs what it was given late and in any order."""
    machine = plug(target("tensorrt", precision), seed=3)
    want = cases(12)
    pipeline = open_on(machine, kind, precision, options=options)
    limit = 1e-5 if precision == "fp32" else 1e-2
    for rows in (slice(0, 1), slice(2, 9), slice(11, 12)):
        embedding = np.full_like(want.embedding[rows], np.nan)
        said, spent = pipeline.run({name: want.pixels[name][rows] for name in MODALITIES}, embedding)
        assert relative_difference(embedding, want.embedding[rows]) < limit
        assert np.abs(said["probability"] - want.probability[rows]).max() < (1e-5 if precision == "fp32" else 0.3)
        assert "device" in spent
    assert pipeline.batches.captured == (1, 7)


@pytest.mark.slow
def test_every_block_is_fused_once(plug: Callable[..., Any], target: Callable[..., Any]) -> None:
    """And what is left of the encoder is convolutions, the first pool, and what makes of pixels its input."""
    bundle = plug(target("tensorrt", "fp32")).target.bundle
    for modality in MODALITIES:
        path = torch_engine.graph_of(bundle, modality, "fp32")
        module = torch_graph.load(path, "cpu", torch_engine.FUSED)
        code: Any = module.graph
        blocks = [one for one in module.modules() if isinstance(one, torch_blocks.Attended)]
        assert len(blocks) == 8
        named = {getattr(node.target, "__name__", "") for node in code.nodes if node.op == "call_function"}
        assert not named & {"mean", "amax", "sigmoid", "relu", "add"}


def test_what_others_use_as_well_is_not_fused(tmp_path: Path) -> None:
    weight = np.ones((4, 4, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "c"], ["y"]),
    ]
    source = graph(nodes, [2, 4, 3, 3], {"w": weight, "b": np.ones(4, np.float32)}).graph
    constants = {one.name: numpy_helper.to_array(one) for one in source.initializer}
    assert torch_blocks.find_relus(source, constants, frozenset()) == []
    nodes[2] = helper.make_node("Add", ["r", "x"], ["y"])
    source = graph(nodes, [2, 4, 3, 3], {"w": weight, "b": np.ones(4, np.float32)}).graph
    (found,) = torch_blocks.find_relus(source, constants, frozenset())
    assert (found.inputs, found.output, set(found.nodes)) == (("x", "w", "b"), "r", {0, 1})


def test_a_failure_of_torch_has_its_words(plug: Callable[..., Any], target: Callable[..., Any], cases: Any) -> None:
    machine = plug(target("tensorrt", "fp32"))

    def broken(stream: Stream, context: torch_engine.TorchContext) -> None:
        raise RuntimeError("CUDA error: misaligned address")

    options = simulated(machine) | {"enqueue": broken}
    pipeline = torch_engine.whole(machine.target.bundle, "fp32", **options)
    machine.opened.append(pipeline)
    one = cases(1)
    with pytest.raises(EngineError, match="torch failed: CUDA error: misaligned address"):
        pipeline.run(one.pixels, np.empty_like(one.embedding))


# ------------------------------------------------------------ operators


def graph(nodes: list[Any], shape: list[int], constants: dict[str, Array], kind: int = onnx.TensorProto.FLOAT) -> Any:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


OPERATORS: dict[str, tuple[list[Any], list[int], dict[str, Array]]] = {
    "slices beyond the ends": (
        [helper.make_node("Slice", ["x", "s", "e", "a"], ["y"])],
        [3, 7],
        {"s": ints(-99, 2), "e": ints(2, 2**62), "a": ints(0, -1)},
    ),
    "slices without axes": ([helper.make_node("Slice", ["x", "s", "e"], ["y"])], [3, 7], {"s": ints(1), "e": ints(-1)}),
    "gathers from the end": (
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=-1)],
        [2, 5],
        {"i": np.array([[-1, 0], [3, -5]], np.int64)},
    ),
    "gathers elements": (
        [helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)],
        [2, 5],
        {"i": np.array([[-1, 0], [3, -5]], np.int32)},
    ),
    "shapes with 0 and -1": ([helper.make_node("Reshape", ["x", "s"], ["y"])], [2, 6, 2], {"s": ints(0, -1)}),
    "axes from the end": ([helper.make_node("Unsqueeze", ["x", "a"], ["y"])], [2, 6], {"a": ints(-1, 1)}),
    "a product of matrices with factors": (
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=-2.0)],
        [2, 3],
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.ones(4, np.float32)},
    ),
    "a turned product": (
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
        [3, 2],
        {"w": np.arange(12, dtype=np.float32).reshape(3, 4)},
    ),
    "a convolution in groups": (
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[2, 3], group=2, pads=[0, 1, 0, 1], strides=[2, 1])],
        [1, 4, 5, 6],
        {"w": np.linspace(-1, 1, 6 * 2 * 6, dtype=np.float32).reshape(6, 2, 2, 3)},
    ),
    "a convolution that says nothing": (
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        [2, 3, 1, 1],
        {"w": np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1), "b": np.ones(2, np.float32)},
    ),
    "a convolution along one axis": (
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1])],
        [2, 1, 5],
        {"w": np.arange(3, dtype=np.float32).reshape(1, 1, 3)},
    ),
    "a pool that rounds up": (
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)],
        [1, 2, 6, 6],
        {},
    ),
    "a reduction to nothing kept": (
        [helper.make_node("ReduceMax", ["x", "a"], ["y"], keepdims=0)],
        [2, 3, 4],
        {"a": ints(-1, 1)},
    ),
    "constants in nodes": (
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(3).reshape(()))),
            helper.make_node("Greater", ["x", "c"], ["g"]),
            helper.make_node("Neg", ["x"], ["n"]),
            helper.make_node("Where", ["g", "n", "x"], ["y"]),
        ],
        [2, 3],
        {},
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_as_onnxruntime_has_them(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = graph(*OPERATORS[name])
    path = tmp_path / "g.onnx"
    onnx.save(model, str(path))
    x = np.random.default_rng(1).normal(2, 3, OPERATORS[name][1]).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    (got,) = torch_graph.load(path, "cpu")(torch.from_numpy(x))
    assert got.shape == want.shape
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Erf", ["x"], ["y"])], "has the operator onnx.Erf with 1 outputs"),
        ([helper.make_node("Relu", ["x"], ["y"], domain="own")], "has the operator own.Relu"),
        ([helper.make_node("Reshape", ["x", "x"], ["y"], name="r")], "`r` computes its parameter `x`"),
        ([helper.make_node("ReduceMean", ["x"], ["y"])], "a reduction names no axes"),
        ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])], "is padded by"),
        ([helper.make_node("Slice", ["x", "o", "t", "o", "t"], ["y"])], "has the steps"),
    ],
)
def test_what_is_not_known_is_refused(nodes: list[Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    onnx.save(graph(nodes, [1, 1, 4, 4], {"o": ints(1), "t": ints(2)}), str(path))
    with pytest.raises(EngineError, match=words):
        torch_graph.load(path, "cpu")


# ------------------------------------------------------------ measured, as on a GPU


@pytest.fixture
def measured(
    plug: Callable[..., Any], target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, bundle_folder: Path
) -> Callable[[str], Any]:
    """What the script of the GPU says of a target of torch, on the simulated device."""

    def measure(name: str) -> Any:
        wanted = Target.parse(name)
        machine = plug(target("tensorrt", wanted.precision))
        for option, value in {"ROUNDS": 2, "WARM_UP": 1, "ENOUGH_ROUNDS": 1}.items():
            monkeypatch.setattr(device_path, option, value)
        monkeypatch.setattr(torch_engine, "problem", lambda target: None)
        monkeypatch.setattr(torch_engine, "variants", functools.partial(torch_engine.variants, **simulated(machine)))
        return device_path.of_target(
            machine.target.bundle, wanted, Cases.drawn(Bundle.open(bundle_folder)), batches=(2, 1)
        )

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch:fp32", "torch:fp16"])
def test_every_variant_of_torch_is_judged_and_measured(measured: Callable[[str], Any], name: str) -> None:
    found = measured(name)
    assert "failed" not in found
    assert list(found["batches"]) == ["2", "1"]
    names = ["device path, CUDA graph", "device path, no graph", "torch eager, CUDA graph"]
    if name == "torch:fp16":
        names += [f"{names[0]}, channels last", f"{names[2]}, channels last", f"{names[0]}, ReLU fused too"]
        names.append(f"{names[-1]}{device_report.AHEAD}")
    names.append(f"{names[0]}, blocks fused")
    for rows in found["batches"].values():
        assert list(rows) == names
        for variant, row in rows.items():
            assert "failed" not in row, row["failed"]
            assert row["graph"] == ("no graph" not in variant)
            assert row["strangers"] == 0
        assert set(rows["device path, no graph"]["stages_ms"]) >= {
            "mammography",
            "ultrasound",
            "attention_pool",
            "head",
        }
    for variant, facts in found["variants"].items():
        assert facts["problem"] is None
        assert facts["ran"] == ("device path" if variant.startswith("device") else "whole graph")


@pytest.mark.slow
def test_the_whole_model_is_one_graph_for_torchs_compiler(
    measured: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler's own back end, which takes minutes."""
    compiler = torch.compile
    compiler(torch.nn.Identity(), backend="eager")  # loaded before there is a simulated TensorRT, which it would ask
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiler(module, backend="eager", **options))
    found = measured("torch-compile:fp32")
    assert "failed" not in found["variants"]["torch.compile, CUDA graph"], found["variants"]
    for rows in found["batches"].values():
        assert list(rows) == ["torch.compile, CUDA graph"]
        assert "failed" not in rows["torch.compile, CUDA graph"], rows["torch.compile, CUDA graph"]["failed"]


def test_where_torch_has_no_gpu_the_reason_is_told(target: Callable[..., Any], bundle_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    cases = Cases({}, None, "")
    found = device_path.of_target(target().bundle, Target("torch", "fp32"), cases)
    assert found == {"not_run": "torch can't use a GPU here, expected one"}
    found = device_path.of_target(target().bundle, Target("torch", "bf16"), cases)
    assert found == {"not_run": "torch was asked for bf16, expected one of fp32, fp16"}


def test_on_cuda_what_is_raced_for_stays_out_of_the_pool(
    target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of calls alone: what torch does with them is seen on a GPU."""
    said: list[str] = []

    @contextlib.contextmanager
    def within(name: str) -> Iterator[None]:
        said.append(f"{name} begins")
        yield
        said.append(f"{name} ends")

    stream = SimpleNamespace(synchronize=lambda: said.append("synchronized"))
    monkeypatch.setattr(torch_engine, "_foreign", lambda address: f"stream {address}")
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("emptied"))
    monkeypatch.setattr(torch.cuda, "use_mem_pool", within)
    graph = torch_engine.graph_of(target().bundle, "head", "fp32")
    engine = torch_engine.TorchEngine(graph, device="cpu")
    engine.pool = "pool"
    memory = {name: np.full((2, *one.shape), 0.5, one.dtype) for name, one in engine.tensors.items()}
    context = engine.context(2, {name: array.ctypes.data for name, array in memory.items()})
    run = engine.run

    def noted(*feeds: torch.Tensor) -> Any:
        said.append("run")
        return run(*feeds)

    engine.run = noted
    for _ in range(2):
        context.execute(Stream(7))
    once = ["pool begins", "run", "pool ends", "stream 7 ends"]
    assert said == ["stream 7 begins", "run", "synchronized", "emptied", *once, "stream 7 begins", *once]
    assert 0 < memory["probability"][0] < 1
    assert memory["probability"][0] != 0.5
