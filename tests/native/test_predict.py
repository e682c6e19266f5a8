"""The native library says what the Predictor says, to the bit: the same library of the engine, settings and graphs."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.engines import known_engine
from mpmmu_rt.export import npz
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from tests.changed import crossed, drawn

from .native import STATUSES, Info, Library, Model, NativeError, Options, Outputs, Said, SelfTest, checked

STORED = Path(__file__).parents[1] / "data" / "bundle_613dfc9"
FIRST = "onnxruntime:fp32"


def pixels(side: int, cases: int, seed: int = 0) -> dict[Modality, Array]:
    """Noise: no two cases, and no two images of a case, are alike."""
    drawn = np.random.default_rng(seed)
    return {modality: drawn.integers(0, 256, (cases, 1, side, side), dtype=np.uint8) for modality in MODALITIES}


def needs_openvino(precision: str = "fp32") -> None:
    if problem := known_engine(Target("openvino", precision)).problem(precision):
        pytest.skip(str(problem))


def same(model: Model, predictor: Predictor, given: dict[Modality, Array]) -> None:
    got, want = model.predict(given), predictor.predict(given)
    np.testing.assert_array_equal(got.embedding, want.embedding)
    np.testing.assert_array_equal(got.probability, want.probability)
    np.testing.assert_array_equal(got.malignant.astype(bool), want.malignant)
    assert (got.base_probability is None) == (want.base_probability is None)
    if want.base_probability is not None:
        np.testing.assert_array_equal(got.base_probability, want.base_probability)


@pytest.fixture(scope="module")
def stored(library: Library) -> Iterator[Model]:
    with library.open(STORED, threads=1) as model:
        yield model


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bundle_of_before_on_onnxruntime(library: Library, threads: int) -> None:
    with load(STORED, FIRST, threads=threads) as predictor, library.open(STORED, FIRST, threads) as model:
        for cases in (1, 2, 7, 32, 35):
            same(model, predictor, pixels(32, cases, cases))


@pytest.mark.slow
def test_a_bundle_of_now_on_onnxruntime(library: Library, bundle_folder: Path) -> None:
    with load(bundle_folder, FIRST, threads=1) as predictor, library.open(bundle_folder, FIRST, 1) as model:
        for cases in (1, 3, 8):
            same(model, predictor, pixels(48, cases, cases))


@pytest.fixture
def with_bf16(tmp_path: Path) -> Path:
    """The stored bundle as if openvino:bf16 and openvino:int8-bf16 had been proven: they run graphs that it has."""
    folder = Path(shutil.copytree(STORED, tmp_path / "bf16.bundle"))
    entry = json.loads((folder / "bundle.json").read_text())
    golden = Bundle.open(folder).golden()
    said = {name: golden[f"openvino:int8.{name}"] for name in ("embedding", "probability")}
    arrays = golden | {f"openvino:int8-bf16.{name}": array for name, array in said.items()}
    npz.write(folder / entry["golden"], arrays, compressed=True)
    seal(folder, entry | {"targets": [*entry["targets"], "openvino:bf16", "openvino:int8-bf16"]})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-bf16"])
def test_on_openvino(library: Library, with_bf16: Path, precision: str, threads: int) -> None:
    """More cases than there are lanes, so that streams are compiled anew and lanes wait for each other."""
    needs_openvino(precision)
    target = f"openvino:{precision}"
    with load(with_bf16, target, threads=threads) as predictor, library.open(with_bf16, target, threads) as model:
        for cases in (1, 2, 9, 35, 1):
            same(model, predictor, pixels(32, cases, cases))
        info = model.info
        assert (info.target.decode(), info.head_target.decode()) == (target, FIRST)
        assert model.self_test().batch == 0.0
        golden = predictor.bundle.golden()
        same(model, predictor, {modality: golden[f"{modality}.pixels"] for modality in MODALITIES})


@pytest.mark.slow
def test_a_pool_that_looks_at_both_modalities_at_once(library: Library, tmp_path: Path) -> None:
    needs_openvino()
    folder, target = crossed(tmp_path / "b.bundle"), "openvino:fp32"
    with load(folder, target, threads=2) as predictor, library.open(folder, target, 2) as model:
        for cases in (1, 2):
            same(model, predictor, pixels(32, cases, cases))


@pytest.mark.slow
def test_a_bundle_that_is_replaced_meanwhile_is_not_mixed_with_the_old_one(library: Library, tmp_path: Path) -> None:
    """What a larger batch runs is read when the first one comes."""
    needs_openvino()
    folder, old = tmp_path / "served.bundle", tmp_path / "old.bundle"
    shutil.copytree(STORED, folder)
    one, two = pixels(32, 1, 1), pixels(32, 2, 2)
    with library.open(folder, "openvino:fp32", 2) as model:
        want = model.predict(one).probability
        folder.rename(old)
        drawn(folder)
        for _ in range(2):
            with pytest.raises(NativeError, match=r"another SHA-256 than bundle\.json says") as caught:
                model.predict(two)
            assert caught.value.status == "DIGEST_MISMATCH"
            np.testing.assert_array_equal(model.predict(one).probability, want)
        shutil.rmtree(folder)
        old.rename(folder)
        with load(folder, "openvino:fp32", threads=2) as predictor:
            same(model, predictor, two)


def test_a_process_may_change_its_folder_once_a_bundle_is_open(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As daemons do. The golden vectors, and what larger batches run, are read later."""
    target = "openvino:fp32" if "openvino" in library.engines else FIRST
    with library.open(STORED, target, 2) as model:
        want = model.predict(pixels(32, 2))
    monkeypatch.chdir(STORED.parent)
    with library.open(STORED.name, target, 2) as model:
        monkeypatch.chdir(tmp_path)
        assert model.self_test().flipped == 0
        np.testing.assert_array_equal(model.predict(pixels(32, 2)).embedding, want.embedding)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_encoders_that_say_something_else_beside_each_other(library: Library, tmp_path: Path, first: int) -> None:
    """Nothing tells that they take turns from then on (Python's remarks do); it goes on answering."""
    needs_openvino()
    with library.open(drawn(tmp_path / "b.bundle"), "openvino:fp32", 2) as model:
        for cases in (first, 3 - first, first):
            assert np.isfinite(model.predict(pixels(32, cases)).embedding).all()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4, 5])
def test_a_bundle_of_now_on_openvino(library: Library, bundle_folder: Path, threads: int) -> None:
    needs_openvino()
    target = "openvino:fp32"
    with (
        load(bundle_folder, target, threads=threads) as predictor,
        library.open(bundle_folder, target, threads) as model,
    ):
        for cases in (1, 2, 3, 4):
            same(model, predictor, pixels(48, cases))


@pytest.mark.slow
def test_a_bundle_of_now_in_8_bits(library: Library, int8_folder: Path) -> None:
    needs_openvino("int8")
    target = "openvino:int8"
    with load(int8_folder, target, threads=1) as predictor, library.open(int8_folder, target, 1) as model:
        same(model, predictor, pixels(48, 3))
        assert model.self_test().proven_embedding < 0.1


@pytest.mark.slow
def test_a_head_that_tells_no_learners(library: Library, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))
    for name in ("head", "head_onnxruntime"):
        model = onnx.load(folder / f"onnx/{name}.onnx", load_external_data=False)
        del model.graph.output[1]
        onnx.save(model, folder / f"onnx/{name}.onnx")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with load(folder, FIRST, threads=1) as predictor, library.open(folder, FIRST, 1) as silent:
        assert silent.info.learners == 0
        same(silent, predictor, pixels(32, 2))
        said = replace(silent.predict(pixels(32, 2)), base_probability=np.zeros((2, 4), np.float32))
        with pytest.raises(NativeError, match="`base_probability` is wanted, and the stacking head"):
            silent.predict_into(pixels(32, 2), said)


ALONE = """
import sys
from pathlib import Path
import numpy as np
from tests.native.native import Library
from tests.native.test_predict import STORED, pixels
with Library(Path(sys.argv[1]), {"openvino": Path(sys.argv[2])}).open(STORED, "openvino:fp32", 1) as model:
    assert (model.info.head_target, model.info.learners) == (b"openvino:fp32", 4)
    model.self_test()
    said = model.predict(pixels(32, 5))
np.savez(sys.argv[3], embedding=said.embedding, probability=said.probability, base=said.base_probability)
"""


@pytest.mark.slow
def test_where_onnxruntime_is_not_here_the_head_runs_on_openvino_and_it_says_so(
    library: Library, tmp_path: Path
) -> None:
    """In a process of its own: in this one the loader knows ONNX Runtime by its name."""
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    arguments = [str(library.path), str(library.engines["openvino"]), str(tmp_path / "said.npz")]
    checked([sys.executable, "-c", ALONE, *arguments], PYTHONPATH=str(Path(__file__).parents[2]))
    with library.open(STORED, "openvino:fp32", 1) as model:
        want = model.predict(pixels(32, 5))
    got = np.load(tmp_path / "said.npz")
    np.testing.assert_array_equal(got["embedding"], want.embedding)
    np.testing.assert_allclose(got["probability"], want.probability, atol=1e-6)
    assert want.base_probability is not None
    np.testing.assert_allclose(got["base"], want.base_probability, atol=1e-6)


SILENT = """
import ctypes, sys
from pathlib import Path
from tests.native.native import Library
from tests.native.test_predict import STORED
library = Library(Path(sys.argv[1]), {"onnxruntime": Path(sys.argv[2])})
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
before = getenv(b"ORT_DISABLE_TELEMETRY")
with library.open(STORED, threads=1):
    print(before, getenv(b"ORT_DISABLE_TELEMETRY"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(None, "b'1'"), ("0", "b'0'")])
def test_telemetry_is_off_unless_it_is_turned_on(library: Library, before: str | None, after: str) -> None:
    """`mpmmu_rt` sets it itself, and must not do so here."""
    code = "import os\nimport mpmmu_rt\nos.environ.pop('ORT_DISABLE_TELEMETRY')\n"
    code += f"os.environ['ORT_DISABLE_TELEMETRY'] = {before!r}\n" if before else ""
    arguments = [str(library.path), str(library.engines["onnxruntime"])]
    said = checked([sys.executable, "-c", code + SILENT, *arguments], PYTHONPATH=str(Path(__file__).parents[2]))
    assert said == f"{before and before.encode()!r} {after}\n"


def test_an_onnxruntime_that_was_named_and_is_not_there_is_an_error_for_the_head_too(
    library: Library, tmp_path: Path
) -> None:
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    engines = library.engines | {"onnxruntime": tmp_path / "libonnxruntime.so"}
    with pytest.raises(NativeError, match="can't be loaded") as caught:
        Library(library.path, engines).open(STORED, "openvino:fp32", 1)
    assert caught.value.status == "MISSING_LIBRARY"


@pytest.mark.slow
def test_int8_that_is_computed_in_float_is_refused(library: Library, tmp_path: Path) -> None:
    """Float graphs in the place of those with 8 bits: no number tells, OpenVINO's own word does."""
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    folder = Path(shutil.copytree(STORED, tmp_path / "float.bundle"))
    entry = json.loads((folder / "bundle.json").read_text())
    for modality in MODALITIES:
        entry["graphs"][f"{modality}.int8"] = entry["graphs"][modality]
    seal(folder, entry)
    with pytest.raises(NativeError, match="OpenVINO computes no layer of checkpoint in 8 bits on this processor"):
        library.open(folder, "openvino:int8", 1)


@pytest.mark.slow
def test_bf16_where_onednn_is_held_to_less(library: Library, with_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if problem := known_engine(Target("openvino", "bf16")).problem("bf16"):
        pytest.skip(str(problem))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    with pytest.raises(NativeError, match="holds this processor to AVX2, expected AVX512_CORE or later for BF16"):
        library.open(with_bf16, "openvino:bf16", 1)


def test_it_says_what_it_is(stored: Model) -> None:
    info, bundle = stored.info, Bundle.open(STORED)
    assert info.name.decode() == bundle.name
    assert info.digest.decode() == bundle.digest
    assert (info.target, info.head_target) == (FIRST.encode(), FIRST.encode())
    assert (info.threads, info.trained, info.threshold) == (1, 1, 0.4)
    assert (info.preprocessing.side, info.preprocessing.pad, info.preprocessing.physical) == (32, 1, 0)
    assert (info.embedding_width, info.learners) == (64, 4)


def test_the_golden_vectors_hold(stored: Model) -> None:
    result = stored.self_test()
    assert result.cases == len(Bundle.open(STORED).golden()["probability"])
    assert 0 < result.embedding < 1e-5
    assert 0 <= result.probability < 1e-5
    assert result.batch < 1e-5
    assert result.flipped == 0
    assert (result.embedding_limit, result.probability_limit, result.batch_limit) == (1e-4, 1e-4, 1e-4)


def test_a_case_does_not_depend_on_its_batch(stored: Model) -> None:
    given = pixels(32, 9)
    together = stored.predict(given)
    for row in range(9):
        alone = stored.predict({modality: array[row : row + 1] for modality, array in given.items()})
        np.testing.assert_allclose(alone.probability[0], together.probability[row], atol=1e-5)
        np.testing.assert_allclose(alone.embedding[0], together.embedding[row], rtol=1e-4, atol=1e-5)


def test_the_modalities_are_not_exchanged(stored: Model) -> None:
    given = pixels(32, 4)
    exchanged: dict[Modality, Array] = {"mammography": given["ultrasound"], "ultrasound": given["mammography"]}
    assert not np.array_equal(stored.predict(given).embedding, stored.predict(exchanged).embedding)


def test_only_what_is_wanted_is_written(stored: Model) -> None:
    given, probability = pixels(32, 3), np.full(4, 7, np.float32)
    outputs = Outputs(ctypes.sizeof(Outputs), probability.ctypes.data, None, None, None)
    places = [ctypes.c_void_p(given[modality].ctypes.data) for modality in MODALITIES]
    stored.library.do("mpmmu_predict", stored.handle, *places, ctypes.c_size_t(3), ctypes.byref(outputs))
    np.testing.assert_array_equal(probability[:3], stored.predict(given).probability)
    assert probability[3] == 7


def test_threads_share_a_model(stored: Model) -> None:
    given = [pixels(32, 1 + seed % 3, seed) for seed in range(6)]
    want = [stored.predict(one).probability for one in given]
    wrong: list[int] = []

    def work(start: int) -> None:
        for turn in range(60):
            index = (start + turn) % len(given)
            if not np.array_equal(stored.predict(given[index]).probability, want[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------- the border


def test_the_structs_are_those_of_the_header(library: Library) -> None:
    """The sizes that an ABI of 64 bits has: a field that is added raises the test's number, and one that is moved
    breaks every other test."""
    assert library.c.mpmmu_abi_version() == 1
    sizes = {one.__name__: ctypes.sizeof(one) for one in (Options, Info, Outputs, SelfTest)}
    assert sizes == {"Options": 40, "Info": 104, "Outputs": 40, "SelfTest": 88}


def test_a_struct_of_an_earlier_header_is_taken(stored: Model) -> None:
    info = Info(Info.threshold.offset)
    info.threshold = 7.0
    stored.library.do("mpmmu_get_info", stored.handle, ctypes.byref(info))
    assert (info.size, info.threads, info.threshold) == (Info.threshold.offset, 1, 7.0)


@pytest.mark.parametrize("size", [0, 1, 9, 12, 36, ctypes.sizeof(Outputs) + 8])
def test_a_struct_of_a_later_header_is_refused(stored: Model, size: int) -> None:
    """And one of no header, which would cut an address in two."""
    outputs, given = Outputs(size), pixels(32, 1)
    places = [ctypes.c_void_p(given[modality].ctypes.data) for modality in MODALITIES]
    with pytest.raises(NativeError, match=f"`outputs` has the size {size}, expected 40 or that of") as caught:
        stored.library.do("mpmmu_predict", stored.handle, *places, ctypes.c_size_t(1), ctypes.byref(outputs))
    assert caught.value.status == "USAGE_ERROR"


def test_null_is_refused_everywhere(stored: Model) -> None:
    library, outputs = stored.library, Outputs(ctypes.sizeof(Outputs))
    one, image = ctypes.c_size_t(1), ctypes.c_void_p(pixels(32, 1)["mammography"].ctypes.data)
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("mpmmu_check", (None,)),
        ("mpmmu_open", (None, None, ctypes.byref(ctypes.c_void_p()))),
        ("mpmmu_open", (str(STORED).encode(), None, None)),
        ("mpmmu_get_info", (None, None)),
        ("mpmmu_get_info", (stored.handle, None)),
        ("mpmmu_predict", (None, image, image, one, ctypes.byref(outputs))),
        ("mpmmu_predict", (stored.handle, image, image, one, None)),
        ("mpmmu_predict", (stored.handle, None, image, one, ctypes.byref(outputs))),
        ("mpmmu_predict", (stored.handle, image, None, one, ctypes.byref(outputs))),
        ("mpmmu_self_test", (None, None)),
        ("mpmmu_preprocess", (None, None, one, one, ctypes.c_double(1), None)),
    ]
    for name, arguments in calls:
        with pytest.raises(NativeError) as caught:
            library.do(name, *arguments)
        assert caught.value.status in ("USAGE_ERROR", "PIXELS_ERROR"), name
        assert "NULL" in str(caught.value), name
        assert caught.value.hint, name
    library.c.mpmmu_close(None)


@pytest.mark.parametrize("cases", [0, 2**20 + 1, 2**63])
def test_a_number_of_cases_that_makes_no_sense(stored: Model, cases: int) -> None:
    outputs, image = Outputs(ctypes.sizeof(Outputs)), ctypes.c_void_p(pixels(32, 1)["mammography"].ctypes.data)
    with pytest.raises(NativeError, match=f"of {cases} cases, expected both of 1 to 1048576"):
        stored.library.do("mpmmu_predict", stored.handle, image, image, ctypes.c_size_t(cases), ctypes.byref(outputs))


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        (
            "tensorrt:fp16",
            "USAGE_ERROR",
            "expected one of onnxruntime:fp32, openvino:fp32, openvino:bf16",
        ),
        ("onnxruntime", "USAGE_ERROR", "target is `onnxruntime`"),
        (
            "openvino:bf16",
            "USAGE_ERROR",
            "openvino:bf16 was not proven when .* was exported, expected one",
        ),
    ],
)
def test_other_targets_are_refused(library: Library, target: str, status: str, said: str) -> None:
    with pytest.raises(NativeError, match=said) as caught:
        library.open(STORED, target)
    assert caught.value.status == status


def test_an_engine_that_is_not_here(library: Library, tmp_path: Path) -> None:
    elsewhere = Library(library.path, {"onnxruntime": tmp_path / "libonnxruntime.so"})
    with pytest.raises(NativeError, match=r"needs the library .*libonnxruntime.so, which can't be loaded") as caught:
        elsewhere.open(STORED)
    assert caught.value.status == "MISSING_LIBRARY"
    assert "MPMMU_ONNXRUNTIME" in caught.value.hint
    altered = tmp_path / "altered"
    shutil.copytree(STORED, altered)
    (altered / "onnx/weights.bin").write_bytes(b"others")
    with pytest.raises(NativeError, match="another SHA-256") as first:  # though the library is looked for meanwhile
        elsewhere.open(altered, threads=2)
    assert first.value.status == "DIGEST_MISMATCH"


def test_a_library_that_is_no_engine(library: Library) -> None:
    with pytest.raises(NativeError, match="has no symbol OrtGetApiBase, expected ONNX Runtime"):
        Library(library.path, {"onnxruntime": library.path}).open(STORED)


def test_every_status_has_its_number() -> None:
    header = (Path(__file__).parents[2] / "mpmmu_rt/native/include/mpmmu.h").read_text(encoding="utf-8")
    for number, name in enumerate(STATUSES):
        assert f"MPMMU_{name} = {number}" in header


def test_nothing_that_looks_right_is_left_where_it_fails(library: Library, tmp_path: Path) -> None:
    """A head that says 2 where it said 1 has no answer."""
    folder = Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))
    model = onnx.load(folder / "onnx/head_onnxruntime.onnx", load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "probability" else name for name in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3), "three"))
    model.graph.node.append(onnx.helper.make_node("Add", ["raw", "three"], ["probability"]))
    onnx.save(model, folder / "onnx/head_onnxruntime.onnx")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    given = pixels(32, 3)
    with library.open(folder, threads=1) as model_of_three:
        said = Said(*(np.zeros(shape, np.float32) for shape in (3, 3, (3, 4), (3, 64))))
        said = replace(said, malignant=np.zeros(3, np.uint8))
        with pytest.raises(NativeError, match=r"not numbers in 0\.\.1 \(3 of 3 cases\)") as caught:
            model_of_three.predict_into(given, said)
        assert caught.value.status == "ANSWER_ERROR"
        assert np.isnan(said.probability).all()
        assert np.isnan(said.embedding).all()
        assert said.base_probability is not None
        assert np.isnan(said.base_probability).all()
        assert (said.malignant == 255).all()
        with pytest.raises(NativeError, match="gave probabilities"):
            model_of_three.self_test()
