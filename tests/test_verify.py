"""verify: what it must catch on a device, with real bundles and a real, if wicked, engine."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mpmmu_rt import engines, load, verify
from mpmmu_rt.bundle import seal
from mpmmu_rt.checks import Check, probability_difference, relative_difference
from mpmmu_rt.errors import BundleError
from mpmmu_rt.spec import Array, Target
from mpmmu_rt.verify import BATCHES


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


def failed(folder: Path, target: str = "onnxruntime:fp32") -> set[str]:
    with load(folder, target) as predictor:
        return {check.name for check in verify.verify(predictor) if not check.passed}


def reseal(folder: Path) -> None:
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def test_a_good_bundle_passes_every_check(bundle_folder: Path) -> None:
    with load(bundle_folder) as predictor:
        checks = verify.verify(predictor)
    assert len(checks) == 5 + 2 * len(BATCHES)
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.passed for check in checks)
    assert any(check.value > 0 for check in checks)  # something was measured


def test_altered_weights_are_caught_when_the_digests_hold(folder: Path) -> None:
    path = folder / "onnx/weights.bin"
    weights = np.fromfile(path, "<f4")
    weights[: len(weights) // 8] *= 1.01
    weights.tofile(path)
    reseal(folder)
    assert {"golden mammography feature map, relative", "golden embedding, relative"} <= failed(folder)


@pytest.mark.slow
def test_int8_is_held_to_what_it_said_at_export(int8_folder: Path, tmp_path: Path) -> None:
    """Three layers at 0.85 of themselves stay within what INT8 may differ from float, and are another INT8 model."""
    if problem := engines.engines()["openvino"].problem("int8"):
        pytest.skip(str(problem))
    folder = Path(shutil.copytree(int8_folder, tmp_path / "copy.bundle"))
    path = folder / "onnx/ultrasound.int8.onnx"
    model = onnx.load(path)
    scales = [item for item in model.graph.initializer if item.name.endswith("/scale") and len(item.dims) == 1]
    for scale in scales[-3:]:
        scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.85) * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(model, path)
    reseal(folder)
    assert failed(int8_folder, "openvino:int8") == set()
    found = failed(folder, "openvino:int8")
    assert found
    assert {name.rpartition(" to that ")[2] for name in found} == {"at export"}


@pytest.mark.slow
def test_an_int8_target_without_its_answers_is_refused(int8_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(int8_folder, tmp_path / "copy.bundle"))
    with np.load(folder / "golden/golden.npz") as vectors:
        kept: dict[str, Any] = {name: vectors[name] for name in vectors.files if name != "openvino:int8.embedding"}
    np.savez(folder / "golden/golden.npz", **kept)
    reseal(folder)
    with pytest.raises(BundleError, match=r"lacks `openvino:int8.embedding`, expected what openvino:int8 said"):
        failed(folder, "openvino:int8")


def test_exchanged_encoders_are_caught(folder: Path) -> None:
    """Same shapes, same names: nothing but the golden vectors can tell."""
    first, second = (folder / f"onnx/{modality}_onnxruntime.onnx" for modality in ("mammography", "ultrasound"))
    swapped = second.read_bytes(), first.read_bytes()
    first.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    reseal(folder)
    assert {"golden mammography feature map, relative", "golden ultrasound feature map, relative"} <= failed(folder)


def test_golden_vectors_of_another_model_are_caught(folder: Path) -> None:
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Array] = {name: vectors[name] for name in vectors.files}
    golden["probability"] = golden["probability"][::-1]
    with path.open("wb") as file:
        np.savez(file, **golden)  # type: ignore[arg-type]
    reseal(folder)
    names = failed(folder)
    assert "golden probability, max |Δp|" in names
    assert "golden embedding, relative" not in names


def test_a_decision_that_flips_is_counted(folder: Path) -> None:
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Array] = {name: vectors[name] for name in vectors.files}
    row = int(np.argmin(np.abs(golden["probability"] - 0.4)))
    golden["probability"][row] = 0.8 - golden["probability"][row]
    with path.open("wb") as file:
        np.savez(file, **golden)  # type: ignore[arg-type]
    reseal(folder)
    with load(folder) as predictor:
        checks = {check.name: check for check in verify.verify(predictor)}
    assert checks["golden decisions flipped"].value == 1.0
    assert not checks["golden decisions flipped"].passed


ENGINE = '''
from mpmmu_rt.engines.onnxruntime import OnnxRuntime

class Session:
    """Computes well, and hands the rows of a batch out in a wrong way."""

    def __init__(self, session, wrong):
        self._session, self._wrong = session, wrong
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds):
        return {name: self._wrong(array) for name, array in self._session.run(feeds).items()}

    def close(self):
        self._session.close()

class Wicked(OnnxRuntime):
    name = "wicked"

    def load(self, graph, precision, threads):
        session = super().load(graph, precision, threads)
        return Session(session, WRONG) if graph.stem.startswith("head") else session

def WRONG(array):
    return WRONG_EXPRESSION

ENGINE = Wicked()
'''


def wicked(folder: Path, expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register an engine of a user's that returns `expression` of the true probabilities `array`."""
    name = f"mpmmu_test_engine_{folder.parent.name}"
    (folder.parent / f"{name}.py").write_text(ENGINE.replace("WRONG_EXPRESSION", expression))
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setitem(engines._MODULES, "wicked", (name, "ENGINE"))


@pytest.mark.parametrize(
    ("expression", "caught"),
    [
        ("array", set()),
        ("array[::-1] if len(array) == 7 else array", {"batch 7 against batch 1"}),
        # Seen in the wild: the first row's answer for the whole batch, at batch sizes above a limit only.
        ("array[:1].repeat(len(array)) if len(array) > 8 else array", {"batch 32 against batch 1"}),
        (
            "array + 1e-3 * (len(array) == 2)",
            {"batch 2 against batch 1"},
        ),
    ],
)
def test_an_engine_that_mixes_rows_at_some_batch_sizes_is_caught(
    folder: Path, expression: str, caught: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wicked(folder, expression, monkeypatch)
    names = failed(folder, "wicked:fp32")
    assert caught <= names
    assert not any(name.startswith("golden") for name in names)  # the golden batch of 4 alone does not show it
    assert bool(names) == bool(caught)


def test_an_engine_whose_answer_depends_on_the_place_in_the_batch_is_caught(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wicked(folder, "(array.T * (1 - 0.001 * __import__('numpy').arange(len(array), dtype='f4'))).T", monkeypatch)
    names = failed(folder, "wicked:fp32")
    assert {"batch 7 against batch 1", "batch 32 against batch 1", "batch 32 in reverse order"} <= names


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 4.0], 0.25),
        ([0.0, 0.5], [0.0, 0.0], 0.5),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0, math.inf], [1.0, 2.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ([[1.0, 2.0]], [1.0, 2.0], math.inf),
    ],
)
def test_relative_difference(got: list[float], want: list[float], difference: float) -> None:
    assert relative_difference(np.array(got, np.float32), np.array(want)) == difference


def test_probability_difference() -> None:
    def of(got: list[float], want: list[float]) -> float:
        return probability_difference(np.array(got, np.float32), np.array(want))

    assert of([0.5, 0.25], [0.5, 0.5]) == 0.25
    assert of([0.5, math.nan], [0.5, 0.5]) == math.inf
    assert of([0.5], [0.5, 0.5]) == math.inf
    assert not Check("x", of([0.5, 0.5], [0.5, math.nan]), 1e-4).passed


@pytest.mark.parametrize(
    ("value", "passed", "written"),
    [(0.0, True, 0.0), (1e-4, True, 1e-4), (1.1e-4, False, 1.1e-4), (math.inf, False, None), (math.nan, False, None)],
)
def test_a_check_passes_up_to_its_limit_and_can_be_written_as_json(
    value: float, passed: bool, written: float | None
) -> None:
    entry = Check("x", value, 1e-4).to_json()
    assert entry == {"name": "x", "value": written, "limit": 1e-4, "passed": passed}
    json.dumps(entry, allow_nan=False)


def test_a_feature_map_that_is_not_finite_is_a_failed_check_and_no_crash(folder: Path) -> None:
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Array] = {name: vectors[name] for name in vectors.files}
    golden["mammography.feature_map"][0, 0, 0, 0] = np.nan
    with path.open("wb") as file:
        np.savez(file, **golden)  # type: ignore[arg-type]
    reseal(folder)
    assert failed(folder) == {"golden mammography feature map, relative"}


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32", "openvino:int8"])
@pytest.mark.slow
def test_it_holds_on_two_threads(int8_folder: Path, target: str) -> None:
    """The workers of these tests have one each; the threads of an engine must not change what it says."""
    wanted = Target.parse(target)
    if problem := engines.known_engine(wanted).problem(wanted.precision):
        pytest.skip(str(problem))
    with load(int8_folder, target, threads=2) as predictor:
        assert [check.name for check in verify.verify(predictor) if not check.passed] == []
