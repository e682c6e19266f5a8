"""What fails in the native library fails by a status, whatever sealed graphs, engines and processes are at fault."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mpmmu_rt import load
from mpmmu_rt.bundle import seal
from mpmmu_rt.errors import AnswerError, EngineError
from mpmmu_rt.facts import KNOWN_BAD

from .native import Library, Model, NativeError, Outputs, Said, SelfTest, checked, tool
from .test_build import decide, images
from .test_predict import STORED, pixels

__all__ = ["images"]  # a fixture
ROOT = Path(__file__).parents[2]
Change = Callable[[onnx.GraphProto], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))


def sealed_with(folder: Path, graph: str, change: Change) -> None:
    """Changes a graph, and seals the bundle again."""
    model = onnx.load(folder / f"onnx/{graph}.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / f"onnx/{graph}.onnx")
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def renamed(graph: onnx.GraphProto, name: str) -> None:
    """What gave the output `name` gives `raw`, for a node that is put behind it."""
    for node in graph.node:
        node.output[:] = ["raw" if one == name else one for one in node.output]


def constant(graph: onnx.GraphProto, name: str, value: object) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def plus(graph: onnx.GraphProto, output: str, value: float) -> None:
    renamed(graph, output)
    graph.node.append(helper.make_node("Add", ["raw", constant(graph, "more", np.float32(value))], [output]))


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize("graph", ["mammography_onnxruntime", "ultrasound_onnxruntime"])
def test_a_feature_map_without_a_batch(library: Library, folder: Path, graph: str) -> None:
    def scalar(given: onnx.GraphProto) -> None:
        renamed(given, "feature_map")
        given.node.append(helper.make_node("ReduceSum", ["raw"], ["feature_map"], keepdims=0))
        given.output[0].CopyFrom(helper.make_tensor_value_info("feature_map", onnx.TensorProto.FLOAT, []))

    sealed_with(folder, graph, scalar)
    said = f"ONNX Runtime failed in {graph}.onnx: it has no output `feature_map` whose batch alone is dynamic"
    with pytest.raises(NativeError, match=re.escape(said)) as caught:
        library.open(folder, threads=1)
    assert caught.value.status == "ENGINE_ERROR"
    with pytest.raises(EngineError), load(folder, threads=1) as predictor:
        predictor.predict(pixels(32, 1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("graphs", [("mammography",), ("ultrasound",), ("mammography", "ultrasound")])
def test_an_encoder_that_cannot_be_loaded_is_named(
    library: Library, folder: Path, graphs: tuple[str, ...], threads: int
) -> None:
    """By two threads, which load both beside each other, as by one: the first, where it is both. In Python as well."""
    for graph in graphs:
        (folder / f"onnx/{graph}_onnxruntime.onnx").write_bytes(b"no graph")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    said = rf"ONNX Runtime can't load {graphs[0]}_onnxruntime.onnx: "
    with pytest.raises(NativeError, match=said) as caught:
        library.open(folder, threads=threads)
    assert caught.value.status == "ENGINE_ERROR"
    with pytest.raises(EngineError, match=said):
        load(folder, threads=threads)


def test_a_machine_that_computes_no_numbers_holds_no_golden_vectors(
    library: Library, build_folder: Path, images: list[Path], folder: Path
) -> None:
    sealed_with(folder, "attention_pool_onnxruntime", lambda graph: plus(graph, "embedding", np.nan))
    result = SelfTest(ctypes.sizeof(SelfTest))
    with library.open(folder, threads=1) as model:
        with pytest.raises(NativeError, match="gave embeddings that are not finite") as caught:
            model.self_test(result)
        with pytest.raises(NativeError) as asked:
            model.predict(pixels(32, 2))
    assert (caught.value.status, asked.value.status) == ("PARITY_ERROR", "ANSWER_ERROR")
    assert caught.value.hint.startswith("do not use this target on this machine")
    assert (result.embedding, result.probability, result.batch) == (np.inf, np.inf, np.inf)
    assert (result.cases, result.embedding_limit) == (4, 1e-4)
    ran = decide(build_folder / "decide", folder, *images)
    assert (ran.returncode, ran.stdout) == (3, "")


def test_a_base_learner_that_says_no_number_is_no_answer(library: Library, folder: Path) -> None:
    """Beside a probability that looks right; who does not ask for the learners is not told of them."""

    def beside(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["raw" if one == "base_probability" else one for one in node.input]
        plus(graph, "base_probability", np.nan)

    sealed_with(folder, "head_onnxruntime", beside)
    with library.open(folder, threads=1) as model:
        probability, base, embedding = (np.full(shape, 7, np.float32) for shape in (3, (3, 4), (3, 64)))
        said = Said(probability, np.full(3, 7, np.uint8), base, embedding)
        with pytest.raises(
            NativeError, match=r"gave base probabilities that are not finite \(3 of 3 cases\)"
        ) as caught:
            model.predict_into(pixels(32, 3), said)
        assert caught.value.status == "ANSWER_ERROR"
        assert np.isnan(said.probability).all()
        assert (said.malignant == 255).all()
        model.predict_into(pixels(32, 3), replace(said, base_probability=None))
        assert ((said.probability >= 0) & (said.probability <= 1)).all()
    with load(folder, threads=1) as predictor, pytest.raises(AnswerError, match="base probabilities that are not fin"):
        predictor.predict(pixels(32, 3))


def test_an_embedding_that_is_another_where_a_case_is_alone(library: Library, folder: Path) -> None:
    """And a head that says the same whatever it is given, so that the probability does not tell."""

    def other_alone(graph: onnx.GraphProto) -> None:
        renamed(graph, "embedding")
        first, one = constant(graph, "first", [0]), constant(graph, "one", [1])
        graph.node.append(helper.make_node("Shape", ["raw"], ["shape"]))
        graph.node.append(helper.make_node("Gather", ["shape", first], ["cases"]))
        graph.node.append(helper.make_node("Equal", ["cases", one], ["alone"]))
        graph.node.append(helper.make_node("Cast", ["alone"], ["more"], to=onnx.TensorProto.FLOAT))
        graph.node.append(helper.make_node("Add", ["raw", "more"], ["embedding"]))

    def deaf(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["nothing" if one == "embedding" else one for one in node.input]
        graph.node.insert(
            0, helper.make_node("Mul", ["embedding", constant(graph, "zero", np.float32(0))], ["nothing"])
        )

    sealed_with(folder, "attention_pool_onnxruntime", other_alone)
    sealed_with(folder, "head_onnxruntime", deaf)
    with np.load(folder / "golden/golden.npz") as stored:
        arrays = dict(stored)
    with library.open(folder, threads=1) as model:
        arrays["probability"] = np.full_like(arrays["probability"], model.predict(pixels(32, 2)).probability[0])
    np.savez(folder / "golden/golden.npz", **arrays)
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    result = SelfTest(ctypes.sizeof(SelfTest))
    with library.open(folder, threads=1) as model, pytest.raises(NativeError, match="of the embedding") as caught:
        model.self_test(result)
    assert caught.value.status == "PARITY_ERROR"
    assert (result.probability, result.batch, result.flipped) == (0, 0, 0)
    assert result.embedding > 0.01


# ---------------------------------------------------------------- graphs whose weights make no sense, to OpenVINO

WEIGHING = """
import re, sys
from pathlib import Path
from tests.native.native import Library, NativeError, engines
try:
    Library(Path(sys.argv[1]), engines()).open(sys.argv[2], "openvino:fp32", 1)
except NativeError as error:
    print(error.status, error)
# Its own peak: that of getrusage begins with what the process that started it had.
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def external(name: str, length: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.UINT8, dims=[length])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "length", "said"),
    [
        (1, 2**30, "weights are not where a graph says"),
        (1, 2**62, "the weights of the graphs have more than 2147483648 bytes"),
        (1, -1, "the weights of the graphs have more than 2147483648 bytes"),
        (70_000, 2**15, "the weights of the graphs have more than 2147483648 bytes"),
    ],
)
def test_weights_that_are_not_there_are_given_no_room(
    library: Library, folder: Path, count: int, length: int, said: str
) -> None:
    """Python has OpenVINO read them, which says it in words of its own."""
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    assert (folder / "onnx/weights.bin").stat().st_size > 2**15
    sealed_with(
        folder, "mammography", lambda graph: graph.initializer.extend(external(f"w{i}", length) for i in range(count))
    )
    ran = checked([sys.executable, "-c", WEIGHING, str(library.path), str(folder)], PYTHONPATH=str(ROOT)).splitlines()
    assert ran[0] == f"ENGINE_ERROR OpenVINO can't load the graphs of checkpoint: {said}"
    assert int(ran[1]) < 800, "MB resident"


# ---------------------------------------------------------------- calls


def predicted(model: Model, given: tuple[bool, bool], cases: int, *, base: bool) -> tuple[NativeError, list[float]]:
    """What a call that fails leaves in outputs of three cases: every value that is there, -1 for malignant's 255."""
    image = ctypes.c_void_p(pixels(32, 3)["mammography"].ctypes.data)
    arrays = [np.full(shape, 0.25, np.float32) for shape in (3, (3, 4), (3, 64))]
    malignant = np.zeros(3, np.uint8)
    places = [arrays[0].ctypes.data, malignant.ctypes.data, arrays[1].ctypes.data if base else None]
    outputs = Outputs(ctypes.sizeof(Outputs), *places, arrays[2].ctypes.data)
    with pytest.raises(NativeError) as caught:
        model.library.do(
            "mpmmu_predict",
            model.handle,
            *(image if one else None for one in given),
            ctypes.c_size_t(cases),
            ctypes.byref(outputs),
        )
    floats = np.concatenate([one.ravel() for one in (arrays if base else arrays[::2])])
    return caught.value, sorted({*np.where(np.isnan(floats), 9, floats).tolist(), *(-malignant.astype(float)).tolist()})


@pytest.mark.parametrize("given", [(False, True), (True, False)])
def test_nothing_is_left_of_a_call_without_pixels(library: Library, given: tuple[bool, bool]) -> None:
    with library.open(STORED, threads=1) as model:
        error, left = predicted(model, given, 3, base=True)
    assert (error.status, left) == ("PIXELS_ERROR", [-255, 9])


def test_nothing_is_left_where_learners_are_asked_for_that_are_not_there(library: Library, folder: Path) -> None:
    sealed_with(folder, "head_onnxruntime", lambda graph: graph.output.pop())
    with library.open(folder, threads=1) as model:
        error, left = predicted(model, (True, True), 3, base=True)
    assert error.status == "USAGE_ERROR"
    assert left == [-255, 0.25, 9], "base_probability has no length, and is let be"


def test_nothing_is_left_of_a_call_without_a_model(library: Library) -> None:
    """A program that did not look at the status of `mpmmu_open`."""
    probability, malignant = np.full(3, 0.25, np.float32), np.zeros(3, np.uint8)
    outputs = Outputs(ctypes.sizeof(Outputs), probability.ctypes.data, malignant.ctypes.data, None, None)
    image = ctypes.c_void_p(pixels(32, 3)["mammography"].ctypes.data)
    with pytest.raises(NativeError, match="`model` is NULL"):
        library.do("mpmmu_predict", None, image, image, ctypes.c_size_t(3), ctypes.byref(outputs))
    assert np.isnan(probability).all()
    assert (malignant == 255).all()


@pytest.mark.parametrize("cases", [0, 2**20 + 1, 2**63])
def test_nothing_is_written_for_a_number_of_cases_that_makes_no_sense(library: Library, cases: int) -> None:
    with library.open(STORED, threads=1) as model:
        error, left = predicted(model, (True, True), cases, base=True)
    assert (error.status, left) == ("PIXELS_ERROR", [0, 0.25])


FORKED = """
import os, signal, sys
from pathlib import Path
from tests.native.native import Library, NativeError, engines
from tests.native.test_predict import STORED, pixels
model = Library(Path(sys.argv[1]), engines()).open(STORED, sys.argv[2], 2)
model.predict(pixels(32, 4))
child = os.fork()
if child == 0:
    signal.alarm(60)
    for call in (lambda: model.predict(pixels(32, 4)), model.self_test):
        try:
            call()
        except NativeError as error:
            print(error.status, error, flush=True)
    with model:  # is closed
        pass
    print("closed", flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], model.predict(pixels(32, 4)).probability.shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_a_model_in_a_fork(library: Library, target: str) -> None:
    """The threads of its engine are not there: a call would wait for them without end."""
    if target.partition(":")[0] not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    ran = checked([sys.executable, "-c", FORKED, str(library.path), target], PYTHONPATH=str(ROOT)).splitlines()
    said = (
        r"ENGINE_ERROR the model was loaded in process \d+ and is used in \d+, a fork of it, expected the process that"
    )
    assert [bool(re.match(said, line)) for line in ran[:2]] == [True, True]
    assert ran[2:] == ["closed", "0 (4,)"]


# ---------------------------------------------------------------- an ONNX Runtime that is not fit

STUB = """
#include <stddef.h>
static const void *table(unsigned version) { return (void)version, NULL; }
static const char *version(void) { return VERSION; }
static const struct { const void *(*table)(unsigned); const char *(*version)(void); } base = {table, version};
const void *OrtGetApiBase(void) { return &base; }
"""


def stub(path: Path, version: str) -> Path:
    """A library that calls itself ONNX Runtime of that version, and has no functions."""
    (path.parent / "stub.c").write_text(STUB)
    define = f'-DVERSION="{version}"'
    checked([tool("gcc"), "-shared", "-fPIC", define, str(path.parent / "stub.c"), "-o", str(path)])
    return path


(BAD,) = KNOWN_BAD["onnxruntime"]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (BAD, f"onnxruntime {BAD} is known to be wrong: {KNOWN_BAD['onnxruntime'][BAD].says}"),
        ("1.19.2", "this is ONNX Runtime 1.19.2, expected 1.20 or later"),
    ],
)
def test_an_onnxruntime_that_is_not_fit_is_refused(library: Library, tmp_path: Path, version: str, said: str) -> None:
    unfit = library.engines | {"onnxruntime": stub(tmp_path / "libonnxruntime.so", version)}
    for target in ("onnxruntime:fp32", *(["openvino:fp32"] if "openvino" in unfit else [])):
        with pytest.raises(NativeError, match=re.escape(said)) as caught:
            Library(library.path, unfit).open(STORED, target, 1)
        assert caught.value.status == "ENGINE_ERROR"
        assert caught.value.hint.startswith(f"install ONNX Runtime 1.20 or later, but not {BAD}, or name its library")


FOUND = """
import sys
from pathlib import Path
from tests.native.native import Library, NativeError
from tests.native.test_predict import STORED
try:
    Library(Path(sys.argv[1]), {}).open(STORED, "onnxruntime:fp32", 1)
except NativeError as error:
    print(error.status)
with Library(Path(sys.argv[1]), {"openvino": Path(sys.argv[2])}).open(STORED, "openvino:fp32", 1) as model:
    model.self_test()
    print(model.info.head_target.decode())
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", [BAD, "1.19.2"])
def test_an_unfit_onnxruntime_that_nobody_named_takes_no_head_from_openvino(
    library: Library, tmp_path: Path, version: str
) -> None:
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    stub(tmp_path / "libonnxruntime.so.1", version)
    arguments = [str(library.path), str(library.engines["openvino"])]
    more = {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
    assert checked([sys.executable, "-c", FOUND, *arguments], **more) == "ENGINE_ERROR\nopenvino:fp32\n"
