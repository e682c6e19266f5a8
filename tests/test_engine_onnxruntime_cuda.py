"""ONNX Runtime on CUDA: nothing runs on the processor unseen, and what can't run says why.

Real here: ONNX Runtime, of whichever distribution is installed, its refusal to fall back, its account of where nodes
run, and the graphs; the same lanes run on the CPU provider. Simulated where a test says so: a GPU that is found, and an
`onnxruntime` of another build. The tests at the end need a GPU, and skip without one.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.checks import relative_difference
from mpmmu_rt.doctor import examine
from mpmmu_rt.engines import engine, engines, head_target, known_engine, onnxruntime_cuda
from mpmmu_rt.engines.onnxruntime import ENGINE as CPU
from mpmmu_rt.engines.onnxruntime import session_options
from mpmmu_rt.engines.onnxruntime_cuda import ENGINE, PROVIDER, allocate, require_provider
from mpmmu_rt.engines.shared.device_code import lacks
from mpmmu_rt.engines.shared.gpu import Gpu, gpu
from mpmmu_rt.engines.shared.onnxruntime_lanes import BoundEmbedder, Memory
from mpmmu_rt.errors import BundleError, EngineError, MissingPackage
from mpmmu_rt.export.targets import onnxruntime_cuda as cuda_graphs
from mpmmu_rt.facts import TOLERANCES
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import verify

FP16 = Target("onnxruntime-cuda", "fp16")
HAS_CUDA_BUILD = PROVIDER in onnxruntime.get_available_providers()
# What the CUDA provider is expected to have kernels for, in float32, float16 and (Cast) uint8. In ONNX Runtime's
# docs/OperatorKernels.md ReduceMax, ReduceMean, Relu, Sub, Transpose and Unsqueeze were looked up, the others not. An
# operator beyond these needs a look there, before a GPU refuses the graph.
ON_CUDA = {
    *("Add", "Cast", "Concat", "Conv", "Div", "MaxPool", "Mul", "ReduceMax", "ReduceMean", "Relu", "Sub"),
    *("Transpose", "Unsqueeze", "Neg", "Exp", "Reciprocal"),
}
# And of the head, beside these, in float32 and int32.
HEAD_ON_CUDA = {
    *("Abs", "Clip", "Gather", "GatherElements", "Gemm", "Greater", "LessOrEqual", "ReduceSum", "Reshape", "Sigmoid"),
    *("Slice", "Tanh", "Where", "MatMul", "Equal"),
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was found out about one simulated machine must not be believed of the next."""
    kept = (onnxruntime_cuda._load_libraries, onnxruntime_cuda._lacks, onnxruntime_cuda._cannot_compute)
    for cached in kept:
        cached.cache_clear()
    yield
    for cached in kept:
        cached.cache_clear()


@pytest.fixture(scope="module")
def fp16_bundle(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small bundle with the graphs of `onnxruntime-cuda:fp16`."""
    folder = tmp_path_factory.mktemp("cuda") / "fp16.bundle"
    shutil.copytree(bundle_folder, folder)
    bundle = Bundle.open(folder)
    cases = pixels(bundle)
    encoders = {modality: onnx.load(str(bundle.graph(modality))) for modality in MODALITIES}
    achieved = cuda_graphs.write(folder / ENGINE.folder("fp16"), cuda_graphs.typed(encoders, cases))
    assert {modality: round(shares["fp16"], 2) for modality, shares in achieved.items()} == {
        "mammography": 1.0,
        "ultrasound": 1.0,
    }
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    return folder


def pixels(bundle: Bundle) -> dict[Modality, Array]:
    golden = bundle.golden()
    return {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}


# ---------------------------------------------------------------- what can't run says why


def test_it_is_known_and_has_its_head_on_the_host() -> None:
    assert engines()["onnxruntime-cuda"] is ENGINE
    assert known_engine(FP16) is ENGINE
    assert head_target(FP16) == Target("onnxruntime", "fp32")


def test_doctor_lists_it() -> None:
    found = {finding.name: finding for finding in examine()[0]}
    for precision in ("fp32", "fp16"):
        finding = found[f"onnxruntime-cuda:{precision}"]
        problem = ENGINE.problem(precision)
        assert finding.usable == (problem is None)
        assert problem is None or (finding.detail, finding.hint) == (str(problem), problem.hint)


def test_the_cpu_build_is_not_enough() -> None:
    if HAS_CUDA_BUILD:
        pytest.skip("onnxruntime-gpu is installed: this is about the other distribution")
    with pytest.raises(EngineError, match=r"was built with .*CPUExecutionProvider, expected CUDAExecut") as caught:
        engine(FP16)
    assert caught.value.hint == "pip uninstall -y onnxruntime, then pip install 'mpmmu-rt[cuda-ort]'"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    problem = ENGINE.problem()
    assert isinstance(problem, MissingPackage)
    assert "mpmmu-rt[cuda-ort]" in problem.hint


def test_both_distributions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.99.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match="are both installed and overwrite"):
        engine(FP16)


class _Session:
    """Of the CPU provider, which says that it is CUDA's; or raises what the test says."""

    failure: Exception | None = RuntimeError("CUDA failure 35: driver version is insufficient\nat some line")
    factor = 1

    def __init__(self, graph: bytes, options: Any, *, providers: Any, enable_fallback: int) -> None:
        self.real = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [PROVIDER]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name=PROVIDER, get_nodes=lambda: [SimpleNamespace(op_type="Conv", name="")])]

    def run(self, outputs: None, feeds: dict[str, Array]) -> list[Array]:
        if self.failure:
            raise self.failure
        return [self.factor * value for value in self.real.run(outputs, feeds)]


def simulated(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    """An `onnxruntime` built for CUDA whose libraries can't be loaded, changed by `parts`; and a GPU."""
    module = ModuleType("onnxruntime")
    whole = {
        "__version__": "1.31.1",
        "get_available_providers": lambda: [PROVIDER, "CPUExecutionProvider"],
        "__file__": "nowhere/onnxruntime/__init__.py",
        "InferenceSession": _Session,
        "SessionOptions": onnxruntime.SessionOptions,
        "preload_dlls": lambda: print("Failed to load libcublasLt.so.13: no such file\nPlease follow the manual"),
    }
    for name, part in (whole | parts).items():
        setattr(module, name, part)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(onnxruntime_cuda, "gpu", lambda: Gpu("H200", 90))


def test_cuda_libraries_that_can_not_be_loaded_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated: the GPU and ONNX Runtime."""
    simulated(monkeypatch)
    problem = ENGINE.problem()
    assert str(problem) == (
        "onnxruntime-gpu 1.31.1 can't use the GPU that is here: Failed to load libcublasLt.so.13: no such file"
    )
    assert problem is not None
    assert "onnxruntime-gpu[cuda,cudnn]" in problem.hint
    assert capsys.readouterr().out == ""  # what ONNX Runtime prints is in the message, not in somebody's CSV


def test_a_driver_that_does_not_suit_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: the GPU and ONNX Runtime."""
    simulated(monkeypatch, preload_dlls=lambda: None)
    problem = str(ENGINE.problem())
    assert problem.endswith("can't use the GPU that is here: CUDA failure 35: driver version is insufficient")


def test_a_convolution_that_can_not_run_is_found_before_a_bundle_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ONNX Runtime 1.31, which loads without cuDNN and gives memory without it. Simulated: GPU and provider."""

    class Working(_Session):
        failure = None

    simulated(monkeypatch, preload_dlls=lambda: None, InferenceSession=Working)
    assert ENGINE.problem() is None

    class WithoutCudnn(_Session):
        failure = RuntimeError("cuDNN is not available: Conv")

    onnxruntime_cuda._cannot_compute.cache_clear()
    simulated(monkeypatch, preload_dlls=lambda: None, InferenceSession=WithoutCudnn)
    assert str(ENGINE.problem()).endswith("can't use the GPU that is here: cuDNN is not available: Conv")

    class Wrong(Working):
        factor = 2

    onnxruntime_cuda._cannot_compute.cache_clear()
    simulated(monkeypatch, preload_dlls=lambda: None, InferenceSession=Wrong)
    assert str(ENGINE.problem()).endswith("3 times [0, 1, 2, 3] came out as [0.0, 6.0, 12.0, 18.0]")


def test_the_probe_is_a_cast_and_a_convolution() -> None:
    """Not one that an optimiser would take away: its input is an input."""
    model = onnx.load_from_string(onnxruntime_cuda._PROBE)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv"]
    assert model.ir_version == 10


def test_a_gpu_that_the_wheel_has_no_code_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Simulated: the GPU, and a library with code for 90, for 120 as zeros (which a pruned one has), and no PTX."""
    capi = tmp_path / "onnxruntime/capi"
    capi.mkdir(parents=True)
    (capi / "libonnxruntime_providers_cuda.so").write_bytes(fat_library([(90, b"code" * 16), (120, bytes(64))]))
    found = {}
    for capability in (90, 100, 121):
        onnxruntime_cuda._lacks.cache_clear()
        working = type("Working", (_Session,), {"failure": None})
        simulated(monkeypatch, preload_dlls=lambda: None, InferenceSession=working)
        monkeypatch.setattr(sys.modules["onnxruntime"], "__file__", str(tmp_path / "onnxruntime/__init__.py"))
        monkeypatch.setattr(onnxruntime_cuda, "gpu", lambda is_now=capability: Gpu("B200", is_now))
        found[capability] = ENGINE.problem()
    assert found[90] is None
    assert found[121] is not None
    assert str(found[100]) == (
        "onnxruntime-gpu 1.31.1 has nothing that runs on the B200: libonnxruntime_providers_cuda.so has code for "
        "compute capability 90, and this GPU has 100"
    )


@pytest.mark.parametrize(
    ("held", "capability", "runs"),
    [
        ([(2, 80)], 80, True),
        ([(2, 80)], 89, True),
        ([(2, 86)], 80, False),
        ([(2, 90)], 100, False),
        ([(2, 120)], 121, True),
        ([(1, 80)], 100, True),
        ([(1, 90)], 89, False),
        ([], 90, False),
    ],
)
def test_code_runs_on_its_own_major_version_and_ptx_on_later_ones(
    tmp_path: Path, held: list[tuple[int, int]], capability: int, runs: bool
) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(fat_library([(one, b"code" * 16) for _, one in held], kinds=[kind for kind, _ in held]))
    assert (lacks(library, capability) is None) == runs


def test_a_library_that_can_not_be_read_proves_nothing(tmp_path: Path) -> None:
    assert lacks(tmp_path / "missing.so", 90) is None
    for data in (b"", b"MZ of another system", fat_library([(90, b"code" * 16)])[:150]):
        (tmp_path / "lib.so").write_bytes(data)
        assert lacks(tmp_path / "lib.so", 90) is None


def fat_library(code: list[tuple[int, bytes]], kinds: list[int] | None = None) -> bytes:
    """An ELF file whose device code is one fat binary of (compute capability, code). kinds: 1 PTX, 2 machine code."""
    entries = b""
    for kind, (capability, payload) in zip(kinds or [2] * len(code), code, strict=True):
        entries += struct.pack("<HHIQ", kind, 0, 64, len(payload)) + bytes(12) + struct.pack("<I", capability)
        entries += bytes(32) + payload
    fat = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
    names = b"\0.nv_fatbin\0.shstrtab\0"
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
        for name, offset, size in ((0, 0, 0), (1, 64, len(fat)), (12, 64 + len(fat), len(names)))
    )
    head = b"\x7fELF\x02\x01\x01".ljust(40, b"\0") + struct.pack("<Q", 64 + len(fat) + len(names))
    return head.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2) + fat + names + table


def test_a_release_that_can_not_tell_where_nodes_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: the GPU and ONNX Runtime."""
    simulated(monkeypatch, InferenceSession=object)
    problem = ENGINE.problem()
    assert "onnxruntime-gpu 1.31.1 can't tell where the nodes of a graph run" in str(problem)


def test_without_a_gpu_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: ONNX Runtime's build, where it is the CPU's."""
    if gpu() is not None:
        pytest.skip("there is a GPU")
    if not HAS_CUDA_BUILD:
        simulated(monkeypatch)
        monkeypatch.setattr(onnxruntime_cuda, "gpu", gpu)
    problem = ENGINE.problem()
    assert "needs an NVIDIA GPU and its driver, and there is none here" in str(problem)


# ---------------------------------------------------------------- nothing on the processor unseen


def double(path: Path) -> Path:
    """A graph that doubles x, float32 [N, 2]."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    add = helper.make_node("Add", ["x", "x"], ["y"], name="twice")
    graph = helper.make_graph([add], "double", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_without_a_gpu_no_session_is_made(tmp_path: Path) -> None:
    """The guard itself, with whichever distribution is installed: not even a log line may stand for an error."""
    if gpu() is not None:
        pytest.skip("there is a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CPU build warns of a provider that it does not know, and would go on
        with pytest.raises(EngineError, match=r"double\.onnx so that all of it runs on the GPU: .*disabled") as caught:
            ENGINE.load(double(tmp_path / "double.onnx"), "fp32", 1)
    assert "nothing falls back" in caught.value.hint


def recorded(graph: Path) -> Any:
    """A session of the CPU provider that notes where nodes run."""
    options = session_options(onnxruntime, 1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def test_a_node_elsewhere_is_named(tmp_path: Path) -> None:
    graph = double(tmp_path / "double.onnx")
    session = recorded(graph)
    require_provider(session, graph, "CPUExecutionProvider")
    with pytest.raises(EngineError, match="got 1 nodes elsewhere, Add `twice` on CPUExecutionProvider first"):
        require_provider(session, graph, PROVIDER)


def test_no_account_is_no_proof(tmp_path: Path) -> None:
    graph = double(tmp_path / "double.onnx")
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="must be set"):
        require_provider(session, graph, "CPUExecutionProvider")


def test_the_options_are_ones_that_the_provider_knows() -> None:
    """Read from the provider's own library: one that it does not know would fail only where there is a GPU."""
    if not HAS_CUDA_BUILD:
        pytest.skip("the CPU build of onnxruntime is installed, and the CUDA provider's library is not here")
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.is_file():
        pytest.skip(f"no {library.name} on this system")
    data = library.read_bytes()
    names = (*onnxruntime_cuda.PROVIDER_OPTIONS, "cudnn_conv_algo_search", *onnxruntime_cuda.SEARCHES.values())
    assert [name for name in names if name.encode() + b"\0" not in data] == []


def test_the_cpu_engine_runs_with_whichever_distribution(bundle_folder: Path) -> None:
    assert CPU.problem() is None
    bundle = Bundle.open(bundle_folder)
    with load(bundle_folder) as predictor:
        got = predictor.predict(pixels(bundle)).probability
    np.testing.assert_allclose(got, bundle.golden()["probability"], atol=1e-4)


# ---------------------------------------------------------------- graphs and lanes


def test_fp32_runs_the_graphs_of_the_bundle(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert ENGINE.graph(bundle, "ultrasound", "fp32") == bundle.graph("ultrasound_onnxruntime")  # with exact gates


def test_a_bundle_without_fp16_graphs_says_how_to_get_them(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no engines/onnxruntime-cuda-fp16/mammography\.onnx") as caught:
        ENGINE.graph(Bundle.open(bundle_folder), "mammography", "fp16")
    assert caught.value.hint == "export it again with --target onnxruntime-cuda:fp16"


def test_graphs_that_lie_there_unlisted_are_not_read(fp16_bundle: Path, bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy.bundle"
    shutil.copytree(fp16_bundle, folder)
    shutil.copy(bundle_folder / "bundle.json", folder)
    with pytest.raises(BundleError, match=r"holds engines/onnxruntime-cuda-fp16/.*, which bundle\.json does not list"):
        Bundle.open(folder)


def test_fp16_graphs_are_found_and_say_what_fp32_says(fp16_bundle: Path) -> None:
    """Run by the CPU provider, which computes FP16 in float32 and rounds between: the graphs' proof, not a GPU's."""
    bundle = Bundle.open(fp16_bundle)
    golden = bundle.golden()
    graphs: dict[str, Path] = {modality: ENGINE.graph(bundle, modality, "fp16") for modality in MODALITIES}
    graphs["attention_pool"] = bundle.graph("attention_pool_onnxruntime")
    embedder = BoundEmbedder({name: CPU._open(graph, 1) for name, graph in graphs.items()}, graphs)
    got = np.full_like(golden["embedding"], np.nan)
    embedder.embed(pixels(bundle), got)
    difference = relative_difference(got, golden["embedding"])
    assert 0 < difference <= TOLERANCES["fp16"].relative


def test_every_operator_has_a_kernel_on_cuda(fp16_bundle: Path) -> None:
    bundle = Bundle.open(fp16_bundle)
    paths = [ENGINE.graph(bundle, modality, precision) for modality in MODALITIES for precision in ENGINE.precisions]
    for path in (*paths, bundle.graph("attention_pool_onnxruntime")):
        model = onnx.load(str(path), load_external_data=False)
        operators = {node.op_type for node in model.graph.node}
        assert operators <= ON_CUDA, path
        assert "Sigmoid" not in operators, path
        assert {node.domain for node in model.graph.node} == {""}, path
    head = onnx.load(str(bundle.graph("head")), load_external_data=False)
    assert {node.op_type for node in head.graph.node} <= ON_CUDA | HEAD_ON_CUDA


def test_lanes_take_memory_that_onnxruntime_owns(bundle_folder: Path) -> None:
    """As on a GPU, but that the device is `cpu`."""
    bundle = Bundle.open(bundle_folder)
    graphs: dict[str, Path] = {modality: bundle.graph(modality) for modality in MODALITIES}
    graphs["attention_pool"] = bundle.graph("attention_pool")
    sessions = {name: CPU._open(graph, 1) for name, graph in graphs.items()}
    memory = Memory("cpu", partial(allocate, onnxruntime, "cpu"))
    cases, shape = pixels(bundle), bundle.golden()["embedding"].shape
    want, got = np.empty(shape, np.float32), np.empty(shape, np.float32)
    BoundEmbedder(sessions, graphs).embed(cases, want)
    embedder = BoundEmbedder(sessions, graphs, memory)
    for count in (1, len(want), 2, len(want)):
        few = {modality: array[:count] for modality, array in cases.items()}
        embedder.embed(few, got[:count])
    np.testing.assert_array_equal(got, want)


def test_no_memory_is_an_engine_error(bundle_folder: Path) -> None:
    """The GPU's memory, where there is none of it."""
    if gpu() is not None:
        pytest.skip("there is a GPU")
    bundle = Bundle.open(bundle_folder)
    graphs: dict[str, Path] = {modality: bundle.graph(modality) for modality in MODALITIES}
    graphs["attention_pool"] = bundle.graph("attention_pool")
    sessions = {name: CPU._open(graph, 1) for name, graph in graphs.items()}
    embedder = BoundEmbedder(sessions, graphs, Memory("cuda", partial(allocate, onnxruntime, "cuda")))
    with pytest.raises(EngineError, match="there is no memory on `cuda` for the feature maps of 4 cases: ") as caught:
        embedder.embed(pixels(bundle), np.empty(bundle.golden()["embedding"].shape, np.float32))
    assert caught.value.hint == "use smaller batches"


# ---------------------------------------------------------------- on a GPU: not run on any yet


@pytest.mark.parametrize("precision", ENGINE.precisions)
def test_on_a_gpu(fp16_bundle: Path, precision: str) -> None:
    if problem := ENGINE.problem(precision):
        pytest.skip(str(problem))
    with load(fp16_bundle, f"onnxruntime-cuda:{precision}") as predictor:
        assert str(predictor.head_target) == ("onnxruntime:fp32" if predictor.remarks else "onnxruntime-cuda:fp32")
        failed = [check for check in verify(predictor) if not check.passed]
        assert failed == []
