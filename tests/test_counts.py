"""Counts: the same to the unit in every process, moved by what they count, and judged as they are documented."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli.compare import describe_counts
from mpmmu_rt.counts import Counts, Moved, achieved, count, graphs, moved
from mpmmu_rt.errors import EngineError, UsageError
from mpmmu_rt.options import allowances
from mpmmu_rt.spec import Target

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
FP32 = Target.parse("onnxruntime:fp32")
# Each call keeps memory: of Python, with NumPy's; and, in libraries that Python knows nothing of, by malloc.
LEAKS = """
import ctypes
from mpmmu_rt.predictor import Predictor
original, kept, malloc = Predictor.predict, [], ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
def predict(self, pixels):
    kept.append(bytearray({python} * 1024))
    malloc({native} * 1024)
    return original(self, pixels)
Predictor.predict = predict
"""


@pytest.fixture(scope="module")
def counted() -> Counts:
    return count(STORED, FP32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32", "openvino:int8"])
def test_fresh_processes_count_the_same_to_the_unit(target: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    first, second = (count(STORED, Target.parse(target), 5) for _ in range(2))
    assert first == second
    assert moved(first, second, None) == []
    assert (first["kept.python_kib"], first["kept.native_kib"]) == (0, 0)
    assert int(first["threads"] or 0) >= 1


@pytest.mark.slow
def test_what_openvino_made_of_the_graphs_is_counted() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    fp32, int8 = (count(STORED, Target("openvino", precision), 2) for precision in ("fp32", "int8"))
    assert str(fp32["precision.convolutions"]).startswith("f32 ")
    assert "8 " in str(int8["precision.convolutions"])
    assert int8["operators.mammography.QuantizeLinear"]
    assert "operators.mammography.QuantizeLinear" not in fp32
    assert fp32["precision.achieved"] == int8["precision.achieved"] == "f32"
    assert fp32["layers"] != int8["layers"]


@pytest.mark.slow
def test_what_the_bundle_holds_is_counted(counted: Counts) -> None:
    files = Bundle.open(STORED).entry["files"]
    weights = [name for name in files if name.startswith("onnx/") and not name.endswith(".onnx")]
    assert counted["bytes.weights"] == sum(files[name]["bytes"] for name in weights)
    model = onnx.load(str(STORED / "onnx/mammography_onnxruntime.onnx"), load_external_data=False)
    assert counted["operators.mammography"] == len(model.graph.node)
    assert counted["operators.mammography.Conv"] == sum(node.op_type == "Conv" for node in model.graph.node)
    assert counted["bytes.engines"] == 0  # there are some, of another target
    assert not [name for name in counted if name.startswith("device.")]


@pytest.mark.slow
def test_images_of_another_size_are_told_and_larger_ones_refused(counted: Counts, bundle_folder: Path) -> None:
    """Operators, parameters and bytes need not show what half of the edge, a quarter of the time, comes from."""
    other = count(bundle_folder, FP32, 3)
    for name in ("pixels.mammography", "pixels.ultrasound"):
        assert (counted[name], other[name]) == (32 * 32, 48 * 48)
        for a, b, worse in ((counted, other, True), (other, counted, False)):
            (found,) = (one for one in moved(a, b, None) if one.name == name)
            assert found.worse == worse


@pytest.mark.slow
@pytest.mark.parametrize(("python", "native"), [(3, 0), (0, 5)])
def test_what_a_call_keeps_is_seen(python: int, native: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAKS.format(python=python, native=native))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    found = count(STORED, FP32, 2)
    assert (found["kept.python_kib"], found["kept.native_kib"]) == (python, python + native)


@pytest.mark.slow
def test_an_operator_more_is_told(counted: Counts, tmp_path: Path) -> None:
    other = Path(shutil.copytree(STORED, tmp_path / "b"))
    path = other / "onnx/mammography_onnxruntime.onnx"
    model = onnx.load(str(path), load_external_data=False)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["before" if name == output.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Identity", ["before"], [output.name]))
    path.write_bytes(model.SerializeToString())
    seal(other, Bundle.open(STORED).entry)
    differ = moved(counted, count(other, FP32, 3), None)
    assert [one.name for one in differ if one.worse] == ["operators.mammography", "bytes.graphs"]
    assert [one.name for one in differ if not one.worse] == ["operators.mammography.Identity"]


def test_a_target_with_graphs_of_its_own_is_counted_by_them() -> None:
    """TensorRT's head is lowered to convolutions, and its encoders are FP16; ONNX Runtime's pool is in its own form."""
    bundle = Bundle.open(STORED)
    own = graphs(bundle, Target("tensorrt", "fp16"), Target("tensorrt", "fp32"))
    portable = graphs(bundle, Target("openvino", "fp32"), Target("openvino", "fp32"))
    exact = graphs(bundle, FP32, FP32)
    for name in ("head", "mammography"):
        model = onnx.load(str(STORED / f"engines/tensorrt-fp16/{name}.onnx"), load_external_data=False)
        assert own[f"operators.{name}"] == len(model.graph.node) != portable[f"operators.{name}"]
    assert own["operators.attention_pool"] == portable["operators.attention_pool"] != exact["operators.attention_pool"]
    model = onnx.load(str(STORED / "onnx/head_onnxruntime.onnx"), load_external_data=False)
    assert exact["operators.head"] == len(model.graph.node)


def test_what_the_export_found_of_the_precision_is_told(tmp_path: Path) -> None:
    stored = Bundle.open(STORED)
    assert achieved(stored, Target("onnxruntime-cuda", "fp16")) == {
        "precision.mammography": "fp16 100.00%",
        "precision.ultrasound": "fp16 100.00%",
    }
    assert achieved(stored, Target("tensorrt", "fp16")) == achieved(stored, FP32) == {}
    other = Path(shutil.copytree(STORED, tmp_path / "b"))
    sidecar = {"achieved": {"fp32": 0.069, "fp16": 0.931}}
    (other / "engines/tensorrt-fp16/ultrasound.engine.json").write_text(json.dumps(sidecar))
    seal(other, stored.entry)
    found = achieved(Bundle.open(other), Target("tensorrt", "fp16"))
    assert found == {"precision.ultrasound": "fp16 93.10%, fp32 6.90%"}


@pytest.mark.slow
def test_what_can_not_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"on tensorrt-rtx:fp16: the target tensorrt-rtx needs an NVIDIA GPU"):
        count(STORED, Target.parse("tensorrt-rtx:fp16"), 1)


# ---------------------------------------------------------------- what is judged

A: Counts = {
    "operators.head": 10, "operators.head.Add": 4, "parameters.head": 100, "parameters.mammography": 200,
    "kept.native_kib": 0, "precision.achieved": "f32", "device.bytes_in": None,
}  # fmt: skip


def worse(changes: dict[str, Any], allowed: dict[str, float] | None = None, *, judged: bool = True) -> list[str]:
    return [one.name for one in moved(A, A | changes, allowed, judged=judged) if one.worse]


def test_what_is_worse() -> None:
    assert worse({}) == []
    assert worse({"parameters.head": 101}) == ["parameters.head"]
    assert worse({"parameters.head": 99}) == []
    assert worse({"kept.native_kib": 1}) == ["kept.native_kib"]
    assert worse({"precision.achieved": "bf16"}) == ["precision.achieved"]
    assert worse({"operators.head.Add": 5}) == []  # explains, and is not judged
    assert worse({"device.bytes_in": 7}) == []  # only one of the two has it
    assert worse({"parameters.head": 101, "precision.achieved": "bf16"}, judged=False) == []


def test_what_is_allowed() -> None:
    assert worse({"parameters.head": 105}, {"parameters.head": 0.05}) == []
    assert worse({"parameters.head": 106}, {"parameters.head": 0.05}) == ["parameters.head"]
    for percent in range(1, 100):
        assert worse({"parameters.head": 100 + percent}, allowances([f"parameters={percent}%"])) == []
        assert worse({"parameters.head": 101 + percent}, allowances([f"parameters={percent}%"])) != []
    both = {"parameters.head": 106, "parameters.mammography": 201}
    assert worse(both, {"parameters.head": 0.1}) == ["parameters.mammography"]
    assert worse(both, {"parameters": 0.1}) == []
    assert worse({"precision.achieved": "bf16"}, allowances(["precision"])) == []
    assert worse({"precision.achieved": "bf16"}, allowances(["precision=5%"])) == ["precision.achieved"]
    assert worse({"kept.native_kib": 9}, allowances(["kept"])) == []
    with pytest.raises(
        UsageError, match="`param` is no count, expected device, kept, operators, parameters, precision"
    ):
        worse({}, {"param": 0.1})


def test_those_that_are_worse_come_first() -> None:
    found = moved(A, A | {"operators.head": 9, "parameters.mammography": 210, "device.bytes_in": 3}, None)
    assert [str(one) for one in found] == [
        "parameters.mammography 200 → 210 (+5.0%)",
        "operators.head 10 → 9 (-10.0%)",
        "device.bytes_in - → 3",
    ]
    entry = {"counts": {"a": A, "b": A}, "moved": [one.to_json() for one in found]}
    first = describe_counts(entry)[0].splitlines()[2]
    assert first.split() == ["parameters.mammography", "200", "210", "+5.0%", "not", "allowed"]
    sides = [{"target": "openvino:fp32"}, {"target": "openvino:int8"}]
    assert "not judged" not in describe_counts({**entry, "a": sides[0], "b": sides[0]})[-2]
    of_two = describe_counts({**entry, "a": sides[0], "b": sides[1]})
    assert any(line.startswith("two targets: 3 counts differ by nature, and are not judged") for line in of_two)
    assert describe_counts({**entry, "moved": []})[0] == "counts: all 7 are the same"
    assert str(Moved("kept.native_kib", 0, 2, True)) == "kept.native_kib 0 → 2"


def test_allowances() -> None:
    assert allowances(["a=5%", "b.c=0.5", "d"]) == {"a": 0.05, "b.c": 0.5, "d": float("inf")}
    for text in ("=5%", "", "a=", "a=x"):
        with pytest.raises(UsageError, match="expected"):
            allowances([text])
