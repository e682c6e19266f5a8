"""The Predictor: its border, and that every case gets its own answer whatever shares its batch."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from mpmmu_rt import load
from mpmmu_rt.bundle import GRAPHS, Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.errors import AnswerError, BundleError, DigestMismatch, EngineError, PixelsError, UsageError
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.run import run
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verified import place_of

# FP32 of the same graph, blocked differently by batch size: some 10 times what was measured (4e-7).
ROW_TOLERANCE = 5e-6
Pixels = dict[Modality, Array]
FOR_PEOPLE = ("model", "card", "provenance", "parity", "precision", "head")


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return phantom_pixels(33, seed=21, preprocessing=Preprocessing(size=48))[0]


def rows(pixels: Pixels, which: Any) -> Pixels:
    return {modality: np.ascontiguousarray(array[which]) for modality, array in pixels.items()}


def test_a_prediction_of_the_golden_cases_is_the_golden_one(bundle_folder: Path) -> None:
    golden = Bundle.open(bundle_folder).golden()
    with load(bundle_folder) as predictor:
        prediction = predictor.predict({modality: golden[f"{modality}.pixels"] for modality in MODALITIES})
    assert prediction.probability.dtype == np.float32
    assert prediction.probability.shape == (4,)
    assert np.ptp(prediction.probability) > 0.05  # the cases differ, so a mix-up would show
    np.testing.assert_allclose(prediction.probability, golden["probability"], atol=1e-5)
    np.testing.assert_allclose(prediction.embedding, golden["embedding"], rtol=1e-4, atol=1e-5)
    assert prediction.base_probability is not None
    assert prediction.base_probability.shape == (4, 4)
    assert prediction.base_probability.min() >= 0
    assert prediction.base_probability.max() <= 1
    assert tuple(prediction.stages_ms) == ("mammography", "ultrasound", "attention_pool", "head", "checks")
    assert min(prediction.stages_ms.values()) > 0


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 33])
def test_every_row_of_a_batch_is_what_it_is_alone(bundle_folder: Path, pixels: Pixels, batch: int) -> None:
    with load(bundle_folder) as predictor:
        alone = np.concatenate([predictor.predict(rows(pixels, [row])).probability for row in range(batch)])
        together = predictor.predict(rows(pixels, slice(batch)))
    assert together.probability.shape == (batch,)
    assert together.embedding.shape[0] == batch
    np.testing.assert_allclose(together.probability, alone, rtol=0, atol=ROW_TOLERANCE)


def test_the_modalities_are_not_interchangeable(bundle_folder: Path, pixels: Pixels) -> None:
    few = rows(pixels, slice(8))
    with load(bundle_folder) as predictor:
        right = predictor.predict(few).probability
        swapped = predictor.predict({"mammography": few["ultrasound"], "ultrasound": few["mammography"]}).probability
        other_order = predictor.predict(dict(reversed(few.items()))).probability
    assert np.abs(right - swapped).max() > 0.01
    np.testing.assert_array_equal(other_order, right)  # named, so the order of the keys means nothing


def test_each_modality_matters(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
        right = predictor.predict(rows(pixels, slice(8))).probability
        for modality in MODALITIES:
            changed = rows(pixels, slice(8)) | {modality: 255 - pixels[modality][:8]}
            assert np.abs(predictor.predict(changed).probability - right).max() > 1e-3


def test_the_memory_layout_of_pixels_means_nothing(bundle_folder: Path, pixels: Pixels) -> None:
    few = rows(pixels, slice(5))
    layouts = {
        "every other row": {m: np.repeat(a, 2, axis=0)[::2] for m, a in few.items()},
        "backwards": {m: a[::-1].copy()[::-1] for m, a in few.items()},
        "columns first": {m: np.asfortranarray(a) for m, a in few.items()},
        "cut out": {m: np.pad(a, ((0, 0), (0, 0), (3, 2), (1, 5)))[:, :, 3:-2, 1:-5] for m, a in few.items()},
    }
    with load(bundle_folder) as predictor:
        want = predictor.predict(few).probability
        for name, layout in layouts.items():
            for array in layout.values():
                array.flags.writeable = False
                assert not array.flags.c_contiguous, name
            np.testing.assert_array_equal(predictor.predict(MappingProxyType(layout)).probability, want, name)


def test_results_belong_to_the_caller(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
        first = predictor.predict(rows(pixels, slice(4)))
        kept = first.probability.copy(), first.embedding.copy()
        predictor.predict(rows(pixels, slice(4, 8)))
    np.testing.assert_array_equal(first.probability, kept[0])
    np.testing.assert_array_equal(first.embedding, kept[1])


def good(count: int = 2) -> dict[str, Any]:
    return {modality: np.zeros((count, 1, 48, 48), np.uint8) for modality in MODALITIES}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "pixels hold nothing, expected both mammography and ultrasound"),
        ({"mammography": good()["mammography"]}, "pixels hold mammography, expected both"),
        (good() | {"mri": good()["mammography"]}, "pixels hold mammography, ultrasound, mri, expected both"),
        ({"Mammography": 1, "ultrasound": 2}, "pixels hold Mammography, ultrasound, expected both"),
        ([good()["mammography"]] * 2, "pixels hold list, expected both"),
        (None, "pixels hold NoneType, expected both"),
        (good() | {"mammography": good(3)["mammography"]}, "hold 3 mammograms and 2 ultrasound images"),
        (good() | {"ultrasound": good(1)["ultrasound"]}, "hold 2 mammograms and 1 ultrasound images"),
        (good(0), "`mammography_pixels` holds no case"),
        (good() | {"ultrasound": np.zeros((2, 1, 48, 47), np.uint8)}, r"`ultrasound_pixels` is uint8\[2, 1, 48, 47\]"),
        (good() | {"ultrasound": np.zeros((2, 48, 48), np.uint8)}, r"`ultrasound_pixels` is uint8\[2, 48, 48\]"),
        (good() | {"ultrasound": np.zeros((2, 3, 48, 48), np.uint8)}, r"uint8\[2, 3, 48, 48\]"),
        (good() | {"mammography": np.zeros((2, 1, 48, 48), np.float32)}, "`mammography_pixels` is float32"),
        (good() | {"mammography": np.zeros((2, 1, 48, 48), np.uint16)}, "`mammography_pixels` is uint16"),
        (good() | {"mammography": [[0]]}, "`mammography_pixels` is a list"),
        (good() | {"ultrasound": np.ma.masked_less(good()["ultrasound"], 9)}, "`ultrasound_pixels` is a MaskedArray"),
    ],
)
def test_pixels_that_the_model_was_not_made_for(bundle_folder: Path, wrong: Any, problem: str) -> None:
    with load(bundle_folder) as predictor:
        for call in (predictor.predict, predictor.run_whole_graph):
            with pytest.raises(PixelsError, match=problem) as caught:
                call(wrong)
            assert caught.value.hint


def test_the_joined_graph_says_the_same(bundle_folder: Path, pixels: Pixels) -> None:
    with load(bundle_folder) as predictor:
        staged, whole = predictor.predict(pixels), predictor.run_whole_graph(pixels)
    np.testing.assert_allclose(whole["probability"], staged.probability, atol=ROW_TOLERANCE)
    np.testing.assert_allclose(whole["embedding"], staged.embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(bundle_folder: Path, pixels: Pixels, threads: int) -> None:
    with load(bundle_folder) as reference, load(bundle_folder, threads=threads) as predictor:
        assert predictor.threads == threads
        np.testing.assert_allclose(
            predictor.predict(pixels).probability, reference.predict(pixels).probability, atol=ROW_TOLERANCE
        )


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(bundle_folder: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}, expected at least 1"):
        load(bundle_folder, threads=threads)


def test_a_closed_predictor_does_not_answer(bundle_folder: Path, pixels: Pixels) -> None:
    predictor = load(bundle_folder)
    predictor.close()
    with pytest.raises(EngineError):
        predictor.predict(pixels)


@pytest.mark.parametrize(
    ("target", "kind", "problem"),
    [
        ("onnxruntime", UsageError, "expected ENGINE:PRECISION"),
        ("abacus:fp32", EngineError, "names the engine `abacus`"),
        ("onnxruntime:int8", EngineError, "asks for int8"),
        ("openvino:fp16", EngineError, "asks for fp16, expected one of fp32, bf16, int8"),
        ("openvino:int8", UsageError, "openvino:int8 was not proven when"),
    ],
)
def test_a_target_is_taken_as_asked_or_not_at_all(
    bundle_folder: Path, target: str, kind: type[Exception], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        load(bundle_folder, target)


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_a_process_may_go_to_another_folder(
    bundle_folder: Path, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """As daemons do; a graph that is opened later was not there, or another bundle's of that name."""
    few = rows(pixels, slice(3))
    monkeypatch.chdir(bundle_folder.parent)
    with load(bundle_folder.name, target) as predictor:
        want, maps = predictor.predict(few).probability, predictor.feature_maps(few)
    with load(bundle_folder.name, target) as predictor:
        monkeypatch.chdir(tmp_path)
        np.testing.assert_array_equal(predictor.predict(few).probability, want)
        for modality, found in predictor.feature_maps(few).items():
            np.testing.assert_array_equal(found, maps[modality])
        np.testing.assert_array_equal(
            predictor.bundle.golden()["embedding"], Bundle.open(bundle_folder).golden()["embedding"]
        )
        assert predictor.bundle.path == Path(bundle_folder.name), "messages call it as the caller does"


def test_what_is_watched_and_kept_is_of_the_bundle_that_was_opened(
    bundle_folder: Path, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of another of the same name, in the folder that the process went to meanwhile."""
    few, target = rows(pixels, slice(2)), Target("onnxruntime", "fp32")
    for name in ("one", "two"):
        shutil.copytree(bundle_folder, tmp_path / name / "b")
    for to in ("two", "nothing"):
        (tmp_path / to).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "one")
        bundle = Bundle.open("b")
        monkeypatch.chdir(tmp_path / to)
        assert place_of(bundle) == (tmp_path / "one/b.verified.json").resolve()
        with Predictor(bundle, target) as predictor:
            predictor.predict(few)
            weights = tmp_path / "one/b/onnx/weights.bin"
            before = weights.read_bytes()
            with weights.open("r+b") as file:
                file.write(bytes(byte ^ 1 for byte in before[:64]))
            with pytest.raises(DigestMismatch, match="was written to while it was in use"):
                predictor.predict(few)
            with weights.open("r+b") as file:
                file.write(before[:64])


def test_load_takes_a_string(bundle_folder: Path) -> None:
    with load(str(bundle_folder)) as predictor:
        assert isinstance(predictor, Predictor)
    with pytest.raises(BundleError):
        load(str(bundle_folder) + "x")


def graph(path: Path, inputs: dict[str, list[Any]], output: tuple[str, list[Any]], nodes: list[Any]) -> None:
    """An ONNX graph by hand; inputs named `pixels` are uint8, the rest float32."""
    types = {name: TensorProto.UINT8 if name == "pixels" else TensorProto.FLOAT for name in inputs}
    made = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, types[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255]),
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
            helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        ],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def tiny_bundle(folder: Path, *, pool: list[Any], head: list[Any]) -> Path:
    """A bundle of 4 × 4 pixels: feature maps are grey in 0..1; `pool` maps `means` [N, 2] to `embedding`, `head`
    maps `embedding` to `probability`."""
    node = helper.make_node
    onnx_folder = folder / "onnx"
    onnx_folder.mkdir(parents=True)
    for modality in MODALITIES:
        nodes = [node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT), node("Mul", ["x", "scale"], ["feature_map"])]
        grey = ["N", 1, 4, 4]
        graph(onnx_folder / f"{modality}.onnx", {"pixels": grey}, ("feature_map", grey), nodes)
    maps = [f"{modality}_feature_map" for modality in MODALITIES]
    means = [node("ReduceMean", [name, "axes"], [f"{name}_mean"], keepdims=1) for name in maps]
    joined = node("Concat", [f"{name}_mean" for name in maps], ["wide"], axis=1)
    flat = node("Flatten", ["wide"], ["means"], axis=1)
    inputs: dict[str, list[Any]] = {name: ["N", 1, 4, 4] for name in maps}
    graph(onnx_folder / "attention_pool.onnx", inputs, ("embedding", ["N", 2]), [*means, joined, flat, *pool])
    graph(onnx_folder / "head.onnx", {"embedding": ["N", 2]}, ("probability", ["N"]), head)
    (onnx_folder / "model.onnx").write_bytes((onnx_folder / "head.onnx").read_bytes())
    for name in (*MODALITIES, "attention_pool", "head"):
        (onnx_folder / f"{name}_onnxruntime.onnx").write_bytes((onnx_folder / f"{name}.onnx").read_bytes())
    (folder / "golden.npz").write_bytes(b"unused")
    tensors = {f"{m}_pixels": {"dtype": "uint8", "shape": ["N", 1, 4, 4]} for m in MODALITIES}
    tensors["embedding"] = {"dtype": "float32", "shape": ["N", 2]}
    entry: dict[str, Any] = {
        "name": "tiny",
        "trained": False,
        "preprocessing": {"size": 4, "fit": "pad"},
        "threshold": 0.5,
        "classes": ["benign", "malignant"],
        "tensors": tensors,
        "graphs": {name: f"onnx/{name}.onnx" for name in GRAPHS},
        "golden": "golden.npz",
        "targets": ["onnxruntime:fp32"],
    }
    seal(folder, json.loads(json.dumps(entry)) | {key: {} for key in FOR_PEOPLE})
    return folder


def one(op: str, source: str, target: str, **attributes: Any) -> Any:
    return helper.make_node(op, source.split(), [target], **attributes)


SAME = [one("Identity", "means", "embedding")]
AVERAGE = [one("ReduceMean", "embedding last", "probability", keepdims=0)]
# sqrt(mean of x - 0.5): not a number below the middle
ROOT = [
    one("ReduceMean", "embedding last", "m", keepdims=0),
    one("Sub", "m half", "d"),
    one("Sqrt", "d", "probability"),
]
LOUD = [one("ReduceSum", "embedding last", "probability", keepdims=0)]
NEGATIVE = [one("ReduceSum", "embedding last", "s", keepdims=0), one("Neg", "s", "probability")]
# log(mean): -inf for a black image
LOG = [one("Log", "means", "embedding")]
# What trees do: a number whatever they get.
BLIND = [
    one("Less", "embedding half", "b"),
    one("Cast", "b", "f", to=TensorProto.FLOAT),
    one("ReduceMean", "f last", "probability", keepdims=0),
]


def levels(*mammography: int) -> Pixels:
    """One case per level: a mammogram of that grey, an ultrasound image of the same."""
    cases = np.array(mammography, np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 1, 4, 4), np.uint8)
    return {modality: cases.copy() for modality in MODALITIES}


def test_a_bundle_made_by_hand_computes_what_it_says(tmp_path: Path) -> None:
    with load(tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)) as predictor:
        np.testing.assert_allclose(predictor.predict(levels(0, 51, 255)).probability, [0, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "head", "greys", "problem"),
    [
        (SAME, ROOT, (255, 10, 20), "gave 2 of 3 probabilities that are not numbers in 0..1"),
        (SAME, LOUD, (255, 10, 20), "gave 1 of 3 probabilities"),
        (SAME, NEGATIVE, (10, 0), "gave 1 of 2 probabilities"),
        (LOG, AVERAGE, (255, 0, 0, 255), "gave embeddings that are not finite for 2 of 4 cases"),
        (LOG, BLIND, (200, 0), "gave embeddings that are not finite for 1 of 2 cases"),
    ],
)
def test_what_is_no_probability_is_never_returned(
    tmp_path: Path, pool: list[Any], head: list[Any], greys: tuple[int, ...], problem: str
) -> None:
    with load(tiny_bundle(tmp_path / "b", pool=pool, head=head)) as predictor:
        with pytest.raises(EngineError, match=problem) as caught:
            predictor.predict(levels(*greys))
        assert "mpmmu-rt verify" in caught.value.hint


def test_a_base_learner_that_says_no_number_is_no_answer(tmp_path: Path) -> None:
    """Whatever comes of it: the trees of a final estimator give a number that looks right."""
    folder = tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)
    path = folder / "onnx/head_onnxruntime.onnx"
    model = onnx.load(str(path))
    model.graph.node.extend([one("Sub", "embedding half", "d"), one("Sqrt", "d", "base_probability")])
    model.graph.output.append(helper.make_tensor_value_info("base_probability", TensorProto.FLOAT, ["N", 2]))
    onnx.save(model, str(path))
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with load(folder) as predictor:
        assert predictor.predict(levels(255, 200)).base_probability is not None
        with pytest.raises(AnswerError, match="gave base probabilities that are not finite for 2 of 4 cases") as caught:
            predictor.predict(levels(255, 10, 200, 0))
    assert caught.value.rows == (1, 3)


def test_a_model_that_takes_other_names_is_an_engine_error(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)
    (folder / "onnx/ultrasound_onnxruntime.onnx").write_bytes((folder / "onnx/head.onnx").read_bytes())
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with load(folder) as predictor, pytest.raises(EngineError, match=r"failed in ultrasound_onnxruntime\.onnx"):
        predictor.predict(levels(1, 2))


@pytest.mark.parametrize(
    "embedding",
    [
        np.empty((2, 2), np.float32),
        np.empty((6, 2), np.float32),
        np.empty((4, 2)),
        np.broadcast_to(np.float32(0), (4, 2)),
        [[0.0, 0.0]] * 4,
        np.lib.stride_tricks.as_strided(np.empty(2, np.float32), (4, 2), (0, 4)),
        np.lib.stride_tricks.as_strided(np.empty(8, np.float32), (4, 2), (4, 4)),
        np.ma.masked_array(np.empty((4, 2), np.float32)),
        np.ma.masked_array(np.empty((4, 2), np.float32), mask=True, hard_mask=True),  # what is written has no effect
    ],
)
def test_an_embedding_that_can_not_hold_all_cases_is_refused(tmp_path: Path, embedding: Array) -> None:
    with (
        load(tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)) as predictor,
        pytest.raises(UsageError, match=r"expected float32\[4, 2\] to write to"),
    ):
        predictor.predict(levels(1, 2, 3, 4), embedding=embedding)


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_embedding_does_not_lie_where_pixels_are_read(tmp_path: Path, modality: Modality) -> None:
    """That of the first cases would be written over the pixels of the last, before they are looked at."""
    given = levels(1, 2, 3, 4)
    with load(tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)) as predictor:
        room = given[modality].reshape(-1)[-4 * 2 * 4 :].view(np.float32).reshape(4, 2)
        with pytest.raises(UsageError, match=rf"shares memory with the pixels of {modality}, expected") as caught:
            predictor.predict(given, embedding=room)
        assert caught.value.hint == "leave it out to get a new array"
        np.testing.assert_array_equal(given[modality], levels(1, 2, 3, 4)[modality])
        beside = np.zeros(64 + 32, np.uint8)  # one block of memory, and not one byte of it twice
        beside[:64] = given[modality].ravel()
        given[modality] = beside[:64].reshape(4, 1, 4, 4)
        found = predictor.predict(given, embedding=beside[64:].view(np.float32).reshape(4, 2))
        np.testing.assert_allclose(found.probability, np.arange(1, 5) / 255, atol=1e-6)
        record = np.zeros(4, [("pixels", np.uint8, (1, 4, 4)), ("embedding", np.float32, (2,))])
        record["pixels"] = given[modality]
        given[modality] = record["pixels"]
        found = predictor.predict(given, embedding=record["embedding"])
        np.testing.assert_allclose(found.probability, np.arange(1, 5) / 255, atol=1e-6)


@pytest.mark.parametrize("layout", [np.s_[:, ::2], np.s_[::-1, :2], np.s_[:4, 1:3]])
def test_an_embedding_may_lie_in_memory_in_any_way(tmp_path: Path, layout: Any) -> None:
    """A case each, however far apart: and not one written over another, of which all would be decided."""
    room = np.zeros((4, 4), np.float32)
    embedding = room[layout]
    with load(tiny_bundle(tmp_path / "b", pool=SAME, head=AVERAGE)) as predictor:
        found = predictor.predict(levels(0, 51, 102, 255), embedding=embedding)
    np.testing.assert_allclose(found.probability, [0, 0.2, 0.4, 1], atol=1e-6)
    np.testing.assert_allclose(embedding, np.repeat(found.probability[:, None], 2, 1), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_case_without_an_answer_is_a_row_and_not_the_end_of_the_run(tmp_path: Path, batch: int) -> None:
    """Of the root of (grey - 0.5), which is no number below the middle; the rest of their batches is predicted."""
    folder = tiny_bundle(tmp_path / "b", pool=SAME, head=ROOT)
    greys = (250, 100, 200, 180, 90, 240, 60)
    rows = ["case_id,mammography,ultrasound"]
    for number, grey in enumerate(greys):
        for offset, modality in enumerate(MODALITIES):
            image = np.full((16, 16), grey + offset, np.uint8)
            image[:8] += 4  # not blank, at 4 x 4 either
            Image.fromarray(image).save(tmp_path / f"{number}.{modality}.png")
        rows.append(f"c{number},{number}.mammography.png,{number}.ultrasound.png")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    with load(folder) as predictor:
        summary = run(predictor, read_manifest(tmp_path / "m.csv"), tmp_path / "out.csv", batch=batch)
    assert (summary.cases, summary.predicted, summary.failed) == (7, 4, 3), summary.first_error
    with (tmp_path / "out.csv").open(newline="") as file:
        found = {row["case_id"]: row for row in csv.DictReader(file)}
    for number, grey in enumerate(greys):
        row = found[f"c{number}"]
        if grey < 128:
            assert (row["probability"], row["decision"]) == ("", "")
            assert row["error"].startswith("onnxruntime:fp32 gave no number for this case; `mpmmu-rt verify")
        else:
            assert float(row["probability"]) == pytest.approx(((grey + 2.5) / 255 - 0.5) ** 0.5, abs=0.01)
            assert not row["error"]


FORKED = """
import os, sys
import numpy as np
import mpmmu_rt
from mpmmu_rt.errors import EngineError
predictor = mpmmu_rt.load(sys.argv[1], sys.argv[2])
size = predictor.bundle.preprocessing.size
pixels = {name: np.zeros((2, 1, size, size), np.uint8) for name in ("mammography", "ultrasound")}
predictor.predict(pixels)
child = os.fork()
if not child:
    try:
        predictor.predict(pixels)
    except EngineError as error:
        print(error, "|", error.hint)
        os._exit(7 if str(os.getppid()) in str(error) else 1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
predictor.predict(pixels)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_a_fork_is_told_instead_of_hanging(bundle_folder: Path, target: str) -> None:
    """OpenVINO's threads are not there in a child: a call would wait for them without end."""
    pytest.importorskip(target.partition(":")[0], reason="the engine is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle_folder), target],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a fork of it, expected the process that loaded it | load the bundle in each process" in done.stdout
