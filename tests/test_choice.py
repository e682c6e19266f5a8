"""`--target auto`: what was proven, can run here and is fastest by what was measured; said, recorded, kept to."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import mpmmu_rt
from mpmmu_rt import choice
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.choice import by_preference, choose_target, measured_on
from mpmmu_rt.cli import app
from mpmmu_rt.engines import engines
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import EngineError
from mpmmu_rt.facts import AMX, FASTER_ENCODERS, FASTER_ON_GPU, FASTER_WITH_AMX, X86
from mpmmu_rt.journal import place_of
from mpmmu_rt.machine import describe, package_versions
from mpmmu_rt.spec import Target

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
ORT, OV, BF16, INT8 = "onnxruntime:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8"
MIXED = "openvino:int8-bf16"
CUDA, HALF, RTX = "onnxruntime-cuda:fp32", "onnxruntime-cuda:fp16", "tensorrt-rtx:fp16"
AVX2 = ["avx2"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed and sealed again."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of which the order is known, whatever this one is."""
    monkeypatch.setattr(choice, "describe", lambda: {"cpu_features": AVX2})


Holding = Callable[[Mapping[str, bool | None]], Bundle]


@pytest.fixture
def holding(folder: Path) -> Holding:
    """A bundle whose export said so of its targets: proven, failed, or never run."""

    def make(passed: Mapping[str, bool | None]) -> Bundle:
        entry = json.loads((folder / "bundle.json").read_text())
        entry["targets"] = list(passed)
        entry["precision"] = {name: {"passed": one} for name, one in passed.items() if name != ORT}
        seal(folder, entry)
        return Bundle.open(folder)

    return make


def test_the_order_is_that_of_the_stored_results() -> None:
    for path in sorted(RESULTS.glob("cpu_targets_*.md")):
        table = path.read_text().partition("### Whole model, batch 32")[2].partition("\n###")[0]
        rows = re.findall(r"^\| (\S+:\w+) \| ([\d.]+) \|", table, re.MULTILINE)
        measured = [name for name, _ in sorted(rows, key=lambda row: float(row[1]))]
        assert measured == [str(one) for one in FASTER_ENCODERS if str(one) in measured]
        assert len(measured) >= 3
    text = (RESULTS / "nvidia-h100/device_path_onnxruntime.md").read_text()
    took = [
        float(re.findall(rf"\| {one} \| 32 \| device path \|.*?\| +\| ([\d.]+) \|", text)[0]) for one in FASTER_ON_GPU
    ]
    assert took == sorted(took)
    for ms, fact in zip(took, FASTER_ON_GPU.values(), strict=True):
        assert fact.says.startswith(f"{ms / 32:.2g} ms a pair at batch 32")
        assert (ROOT / fact.source).is_file()


def test_the_order_with_amx_is_that_of_the_stored_results() -> None:
    """And each says how many times as fast as the slowest it was, in the rounds' median."""
    (path,) = RESULTS.glob("cpu_fresh_*amx*.md")
    assert AMX in path.read_text()
    table = path.read_text().partition("### Whole model, batch 32")[2]
    rows = re.findall(r"^\| (\S+:\S+) \| ([\d.]+) .*\| ([\d.]+) \([\d. to]+\) \|$", table, re.MULTILINE)
    assert [name for name, _, _ in sorted(rows, key=lambda row: float(row[1]))] == [str(one) for one in FASTER_WITH_AMX]
    for name, _, times in rows[1:]:
        assert FASTER_WITH_AMX[Target.parse(name)].says.startswith(f"{float(times):.1f} times onnxruntime:fp32")


@pytest.mark.parametrize(
    ("passed", "features", "expected"),
    [
        ({ORT: True}, AVX2, [ORT]),
        ({ORT: True, OV: True}, AVX2, [OV, ORT]),
        ({OV: True, BF16: True, INT8: True, ORT: True}, AVX2, [INT8, BF16, OV, ORT]),
        ({ORT: True, OV: False, BF16: None, INT8: True}, AVX2, [INT8, ORT]),
        ({ORT: True, OV: True, INT8: True}, [], [ORT, OV]),
        ({OV: True, ORT: True}, ["amx_tile"], [OV, ORT]),
        ({ORT: True, OV: True, INT8: True, BF16: True, MIXED: True}, AVX2, [MIXED, INT8, BF16, OV, ORT]),
        ({ORT: True, OV: True, INT8: True, BF16: True, MIXED: True}, [*AVX2, AMX], [MIXED, BF16, INT8, OV, ORT]),
        ({ORT: True, OV: True, CUDA: True, HALF: True}, AVX2, [HALF, CUDA, OV, ORT]),
        ({ORT: True, HALF: None, RTX: None}, AVX2, [ORT]),
        ({ORT: True, "tensorrt:fp32": True, "tensorrt:fp16": True}, AVX2, [ORT, "tensorrt:fp32"]),
    ],
)
def test_what_may_be_taken_in_which_order(
    holding: Holding, passed: dict[str, bool | None], features: list[str], expected: list[str]
) -> None:
    """Nothing that failed or never ran; nothing that rounds without a gain that was measured on such a processor."""
    bundle = holding(passed)
    assert [str(one) for one in by_preference(bundle, measured_on(features))] == expected


def test_fp32_unless_rounding_is_allowed(holding: Holding) -> None:
    bundle = holding({ORT: True, INT8: True, OV: True})
    exact, rounding = choose_target(bundle), choose_target(bundle.path, allow_rounding=True)
    assert (exact.target, exact.rounding) == (Target.parse(OV), Target.parse(INT8))
    assert exact.says.startswith(f"target {OV}: the fastest that is proven in FP32 and runs here")
    assert "; --allow-rounding takes openvino:int8 (2.4 times onnxruntime:fp32, with AVX2 alone)" in exact.says
    assert (rounding.target, rounding.rounding) == (Target.parse(INT8), None)
    assert "--allow-rounding" not in rounding.says
    assert "in FP32" not in rounding.says
    assert "\n" not in exact.says + rounding.says
    assert exact.to_json() == {"why": exact.why, "faster_with_rounding": INT8}
    assert mpmmu_rt.choose_target(bundle) == exact


def test_what_the_processor_can_not_do_is_passed_over(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert engines()["openvino"].problem("bf16")
    found = choose_target(holding({ORT: True, OV: True, BF16: True}), allow_rounding=True)
    assert (str(found.target), "bf16" in found.says) == (OV, False), "there is nothing to install"
    found = choose_target(holding({ORT: True, OV: True, HALF: True, CUDA: True}), allow_rounding=True)
    assert str(found.target) == OV if engines()["onnxruntime-cuda"].problem() else HALF


def test_what_is_not_installed_is_named_with_what_brings_it(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = choose_target(bundle_folder)
    assert str(found.target) == ORT
    assert "openvino:fp32 would be faster (1.3 times onnxruntime:fp32" in found.says
    assert found.says.endswith("pip install 'mpmmu-rt[openvino]'")


def test_what_a_gpu_would_bring_is_said_where_one_is_expected(
    holding: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a device without one, which must not be told to install what runs on none; but a GPU that is gone, or
    that the installed package can't use, is no reason to compute on the processor in silence."""
    if gpu() is not None:
        pytest.skip("there is a GPU here")
    bundle = holding({ORT: True, OV: True, CUDA: True})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert "cuda" not in choose_target(bundle).says
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(EngineError) as caught:
            choose_target(bundle)
        assert caught.value.hint == "pip install 'mpmmu-rt[openvino]'"
    if "onnxruntime" in package_versions(("onnxruntime",)):
        assert "cuda" not in choose_target(bundle).says
    info = tmp_path / "site/onnxruntime_gpu-1.32.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.32.0\n")
    monkeypatch.setattr(sys, "path", [str(info.parent), *sys.path])
    found = choose_target(holding({OV: True, CUDA: True}))
    assert str(found.target) == OV
    assert f"; {CUDA} would be faster (1.4 ms a pair at batch 32, on an H100), but " in found.says


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libtbb.so.12 is gone')", "is installed but can't be imported (libtbb.so.12 is gone)"),
        ("", "the package `openvino` is there in part and holds nothing that runs"),  # as an uninstallation leaves it
    ],
)
def test_a_package_that_is_broken_is_called_so(bundle_folder: Path, tmp_path: Path, code: str, said: str) -> None:
    """The hint alone, to install it, does nothing where it is installed."""
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino/__init__.py").write_text(f"{code}\n")
    ask = "import sys, mpmmu_rt; print(mpmmu_rt.choose_target(sys.argv[1]).says)"
    given = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", ask, str(bundle_folder)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith(f"target {ORT}: ")
    if X86 in describe()["cpu_features"]:
        assert said in done.stdout


def test_where_nothing_was_measured_nothing_is_claimed(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "describe", lambda: {"cpu_features": []})
    found = choose_target(holding({ORT: True, OV: True, INT8: True}), allow_rounding=True)
    assert str(found.target) == ORT
    assert "nothing was measured of it on a machine like this one" in found.says
    assert "faster" not in found.says
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert str(choose_target(holding({ORT: True, OV: True})).target) == OV


def test_an_engine_that_never_ran_is_named_and_not_taken(holding: Holding) -> None:
    found = choose_target(holding({ORT: True, OV: None, RTX: None}))
    assert str(found.target) == ORT
    assert "never run at export and so to be asked for by name: openvino:fp32" in found.says
    assert (RTX in found.says) == (engines()["tensorrt-rtx"].problem("fp16") is None)


def test_where_none_can_run_each_says_why(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = holding({ORT: True, INT8: True, "abacus:fp32": True})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"proven in FP32 can run here \(onnxruntime:fp32: .*abacus:fp32") as caught:
        choose_target(bundle)
    assert caught.value.hint == "--allow-rounding takes openvino:int8"
    assert str(choose_target(bundle, allow_rounding=True).target) == INT8
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"openvino:int8: .*needs the package `openvino`") as caught:
        choose_target(bundle, allow_rounding=True)
    assert caught.value.hint == "pip install 'mpmmu-rt[openvino]'"
    with pytest.raises(EngineError, match=r"can run here \(it holds none\), expected one"):
        choose_target(holding({RTX: None}))


def test_the_same_is_chosen_every_time_whatever_the_order_of_the_bundle(holding: Holding) -> None:
    passed: list[tuple[str, bool | None]] = [(ORT, True), (OV, True), (INT8, True), (RTX, None)]
    found = set()
    for seed in range(6):
        random.Random(seed).shuffle(passed)
        found.add(choose_target(holding(dict(passed))))
    assert len(found) == 1


def one_line(result: Result) -> str:
    said = [line for line in result.stderr.splitlines() if line.startswith("target ")]
    assert len(said) == 1, result.stderr
    return said[0]


def test_run_says_which_and_records_it(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = call("run", bundle_folder, phantom_manifest, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == one_line(result) == choose_target(bundle_folder).says
    entry = json.loads(out.with_name("out.csv.json").read_text())
    assert (entry["target"], entry["run"]["target"]) == (OV, OV)
    assert entry["chosen"] == choose_target(bundle_folder).to_json()
    named = call("run", bundle_folder, phantom_manifest, "-o", "-", "--target", ORT, "--json", tmp_path / "n.json")
    assert "target " not in [line[:7] for line in named.stderr.splitlines()]
    entry = json.loads((tmp_path / "n.json").read_text())
    assert (entry["target"], entry["chosen"]) == (ORT, None)


def test_predict_and_verify_take_the_same(folder: Path, phantom_manifest: Path) -> None:
    case = read_manifest(phantom_manifest).cases[0]
    images = ("--mammography", case.mammography, "--ultrasound", case.ultrasound)
    verified = call("verify", folder, "--json", "-")
    entry = json.loads(verified.stdout)
    assert (entry["target"], entry["chosen"]["why"]) == (OV, choose_target(folder).why)
    assert f"mpmmu-rt run {folder} MANIFEST --require-verified" in verified.stderr
    predicted = call("predict", folder, *images, "--require-verified", "--json", "-")
    assert predicted.exit_code == 0, predicted.stderr
    entry = json.loads(predicted.stdout)
    assert (entry["target"], entry["chosen"]) == (OV, choose_target(folder).to_json())
    assert one_line(predicted) == one_line(verified)


@pytest.mark.slow
def test_bench_measures_what_it_chose(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--batch", 2, "--seconds", 0.1, "--idle", "none", "--json", "-")
    result = call("bench", bundle_folder, *options, "--target", "auto")
    entry = json.loads(result.stdout)
    assert (entry["target"], entry["chosen"]) == (OV, choose_target(bundle_folder).to_json())
    assert one_line(result).startswith(f"target {OV}: ")
    assert {row["target"] for row in entry["targets"]["rows"]} == {ORT, OV}


@pytest.mark.slow
def test_rounding_is_taken_where_it_is_allowed(int8_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    if problem := engines()["openvino"].problem("int8"):
        pytest.skip(str(problem))
    verified = call("verify", int8_folder, "--allow-rounding", "--no-record")
    assert f"checks passed on {INT8}" in verified.stderr
    assert "MANIFEST --allow-rounding" in verified.stderr
    out = tmp_path / "out.csv"
    assert call("run", int8_folder, phantom_manifest, "-o", out, "--allow-rounding").exit_code == 0
    assert json.loads(out.with_name("out.csv.json").read_text())["target"] == INT8


def test_what_is_chosen_and_fails_is_an_error(folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """The graph of OpenVINO's alone is broken: the other target of the bundle would still run."""
    (folder / "onnx/mammography_openvino.onnx").write_bytes(b"no graph")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    out = tmp_path / "out.csv"
    result = call("run", folder, phantom_manifest, "-o", out)
    assert result.exit_code == 1
    assert "error: OpenVINO can't load " in result.stderr
    assert not out.exists()
    assert call("run", folder, phantom_manifest, "-o", out, "--target", ORT).exit_code == 0


def test_a_run_goes_on_on_the_target_that_it_was_begun_on(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where OpenVINO was not installed; by the time it goes on, it is."""
    command = ("run", bundle_folder, phantom_manifest, "-o", tmp_path / "out.csv", "--batch", 3)
    begun = journal_of_half(command, tmp_path / "out.csv", monkeypatch)
    refused = call(*command, "--resume")
    assert refused.exit_code == 1
    error, hint = refused.stderr.splitlines()[-2:]
    assert error.endswith("out.csv.partial belongs to another run (other target), expected this run's")
    assert hint.startswith(f"hint: --target {ORT} goes on with it; ")
    assert place_of(tmp_path / "out.csv").read_text() == begun
    done = call(*command, "--resume", "--target", ORT)
    assert done.exit_code == 0, done.stderr
    assert "(6 rows there already)" in done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    again = call(*command, "--retry-failed")
    assert again.stderr.splitlines()[-1].startswith(f"hint: --target {ORT} goes on with it")


def cut_off(command: tuple[object, ...], missing: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a run without the package `missing` says that is interrupted after two batches."""
    import mpmmu_rt.run

    rows_of: Any = mpmmu_rt.run.rows_of
    batches = iter(range(2))

    def twice(*given: Any) -> Any:
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return rows_of(*given)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, missing, None)
        patch.setattr(mpmmu_rt.run, "rows_of", twice)
        return call(*command)


def journal_of_half(command: tuple[object, ...], out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The rows of a run without OpenVINO that was cut off after two batches of three."""
    result = cut_off(command, "openvino", monkeypatch)
    assert one_line(result).startswith(f"target {ORT}: ")
    return place_of(out).read_text()


@pytest.mark.parametrize(
    ("command", "error", "hint"),
    [
        ("run {b} {m} --target openvino:fp32 --allow-rounding", "with --target auto alone", "leave one of them out"),
        ("bench {b} --target openvino:fp32 --allow-rounding", "with --target auto alone", "leave one of them out"),
        ("bench {b} --save {o} --target auto", "--target auto is given with --save", f"--target {ORT}"),
        ("bench {b} --baseline {o} --allow-rounding", "--allow-rounding is given with --save", f"--target {ORT}"),
        ("compare {b} --target auto --target-b openvino:fp32", "target is `auto`, expected ENGINE:PRECISION", "doctor"),
    ],
)
def test_what_does_not_go_together(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, command: str, error: str, hint: str
) -> None:
    result = call(*command.format(b=bundle_folder, m=phantom_manifest, o=tmp_path / "o").split())
    assert (result.exit_code, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert error in first
    assert hint in second


def test_a_run_goes_on_with_the_head_where_it_was_begun(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where ONNX Runtime, which runs the head where it is installed, was not: their last digits differ."""
    out = tmp_path / "out.csv"
    command = ("run", bundle_folder, phantom_manifest, "-o", out, "--batch", 3, "--target", "openvino:fp32")
    assert cut_off(command, "onnxruntime", monkeypatch).exit_code == 130
    begun = place_of(out).read_text()
    refused = call(*command, "--resume")
    assert refused.exit_code == 1
    error, hint = refused.stderr.splitlines()[-2:]
    assert error.endswith("out.csv.partial belongs to another run (other head_target), expected this run's")
    assert hint.startswith("hint: its head ran on openvino:fp32: make that as it was (`mpmmu-rt doctor` says ")
    assert place_of(out).read_text() == begun
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        done = call(*command, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "(6 rows there already)" in done.stderr
