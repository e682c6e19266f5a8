"""Engines: what can't run here says why, and nothing runs anywhere else than asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mpmmu_rt import engines as registry
from mpmmu_rt.engines import engine, engines
from mpmmu_rt.engines.onnxruntime import KNOWN_BAD, OnnxRuntime
from mpmmu_rt.errors import EngineError, MissingPackage, MpmmuError
from mpmmu_rt.spec import Array, Target

FP32 = Target("onnxruntime", "fp32")


def fake_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def double(path: Path) -> Path:
    """A graph that doubles x, float32 [N, 2]."""
    shape = ["N", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    return path


def test_every_engine_keeps_the_protocol() -> None:
    for name, found in engines().items():
        assert found.name == name
        assert Target.parse(f"{name}:{found.precisions[0]}").engine == name
        problem = found.problem()
        assert problem is None or isinstance(problem, MpmmuError)


def test_onnxruntime_runs_here_in_the_version_that_is_imported() -> None:
    import onnxruntime

    assert engine(FP32).problem() is None
    assert engine(FP32).version() == onnxruntime.__version__


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(EngineError, match="names the engine `abacus`, expected one of onnxruntime, openvino"):
        engine(Target("abacus", "fp32"))


def test_an_unknown_precision_is_not_replaced_by_another() -> None:
    with pytest.raises(EngineError, match="asks for fp16, expected one of fp32") as caught:
        engine(Target("onnxruntime", "fp16"))
    assert caught.value.hint == "use `onnxruntime:fp32`"


def test_both_distributions_of_onnxruntime_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_distribution(tmp_path, "onnxruntime-gpu", "1.99.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"onnxruntime-gpu 1\.99\.0 are both installed and overwrite") as caught:
        engine(FP32)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    problem = OnnxRuntime().problem()
    assert isinstance(problem, MissingPackage)
    assert problem.hint == "pip install 'mpmmu-rt[cpu]'"
    with pytest.raises(MissingPackage):
        engine(FP32)


@pytest.mark.parametrize("version", sorted(KNOWN_BAD))
def test_a_release_known_to_be_wrong_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("onnxruntime")
    installed.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", installed)
    with pytest.raises(EngineError, match="is known to be wrong: "):
        engine(FP32)


def test_a_build_under_another_distribution_name_is_no_crash(tmp_path: Path) -> None:
    """onnxruntime-openvino, onnxruntime-directml …: the module is there, the metadata is not."""
    (tmp_path / "onnxruntime.py").write_text("__version__ = '1.26.0'\n")
    code = "from mpmmu_rt.engines.onnxruntime import ENGINE; print(ENGINE.problem()); print(ENGINE.version())"
    root = Path(registry.__file__).parents[2]
    numpy_only = tmp_path / "site"
    numpy_only.mkdir()
    (numpy_only / "numpy").symlink_to(Path(np.__file__).parent)
    libraries = Path(np.__file__).parents[1] / "numpy.libs"
    if libraries.exists():
        (numpy_only / "numpy.libs").symlink_to(libraries)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, numpy_only, root)))}
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "onnxruntime 1.26.0 is known to be wrong" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1] == "1.26.0"


def test_a_graph_is_run(tmp_path: Path) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    for count in (1, 3):
        x = np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)
        got = session.run({"x": x})["y"]
        np.testing.assert_array_equal(got, 2 * x)
        assert got.flags.owndata or got.base is None or got.base is not x
    session.close()


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x0a" * 50])
def test_a_graph_that_can_not_be_loaded(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "head.onnx"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"ONNX Runtime can't load head\.onnx: ") as caught:
        engine(FP32).load(path, "fp32", 1)
    assert "\n" not in str(caught.value)


def test_weights_that_are_gone_are_an_error_of_loading(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ultrasound.onnx"
    path.write_bytes((bundle_folder / "onnx/ultrasound.onnx").read_bytes())
    with pytest.raises(EngineError, match=r"can't load ultrasound\.onnx"):
        engine(FP32).load(path, "fp32", 1)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 2), np.float64)},
    ],
)
def test_a_run_that_fails_is_an_engine_error_with_its_cause(tmp_path: Path, feeds: dict[str, Array]) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    with pytest.raises(EngineError, match=r"ONNX Runtime failed in double\.onnx: ") as caught:
        session.run(feeds)
    assert caught.value.__cause__ is not None


def test_a_closed_session_does_not_answer(tmp_path: Path) -> None:
    session = engine(FP32).load(double(tmp_path / "double.onnx"), "fp32", 1)
    session.close()
    with pytest.raises(EngineError):
        session.run({"x": np.zeros((1, 2), np.float32)})
