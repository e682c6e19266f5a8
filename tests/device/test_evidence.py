"""The script of the GPU evidence, on the simulated GPU: its figures are no times, but every line of it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.gpu import device_answers, device_path, device_report, device_variants
from benchmarks.gpu.device_answers import COUNT, CROSSING_TOLERANCE, Cases, Judge, Pixels
from benchmarks.gpu.stage import Deadline, run_child
from mpmmu_rt import facts
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine as known
from mpmmu_rt.engines import onnxruntime as cpu
from mpmmu_rt.errors import EngineError, MissingPackage, UsageError
from mpmmu_rt.spec import Array, Target

RTX = Target("tensorrt-rtx", "fp32")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_path, "BATCHES", (1, 40))  # 40: more than the engines take at once
    monkeypatch.setattr(device_path, "ROUNDS", 2)
    monkeypatch.setattr(device_path, "WARM_UP", 1)


@pytest.fixture(scope="module")
def answers(bundle_folder: Path) -> Cases:
    """Of the small model, whose bundles with engines say the same on the processor."""
    return Cases.drawn(Bundle.open(bundle_folder))


def report_of(bundle: Bundle, found: Mapping[str, Any], expected: str = "here") -> dict[str, Any]:
    report = {
        "gpu": "simulated",
        "command": "",
        "date": "",
        "commit": "",
        "rounds": 2,
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "expected": expected,
        "versions": {"cupy": "14"},
        "targets": found,
    }
    return dict(json.loads(json.dumps(report)))


@pytest.mark.slow
def test_every_variant_is_compared_and_measured(plug: Callable[..., Any], answers: Cases) -> None:
    bundle = plug().target.bundle
    kept: list[int] = []
    found = device_path.of_target(bundle, RTX, answers, note=lambda report: kept.append(len(report["batches"])))
    assert "failed" not in found
    assert kept == [0, 1, 2]
    assert list(found["batches"]) == ["1", "40"]
    for batch, rows in found["batches"].items():
        assert list(rows) == list(device_variants.VARIANTS)
        for name, row in rows.items():
            assert "failed" not in row
            assert 0 <= row["max_difference"] < 1e-4
            assert 0 < row["max_embedding"] < 1e-4
            assert 0 <= row["max_head"] < 1e-4
            assert row["strangers"] == row["clear_flips"] == 0
            assert (row["cases"], row["again"]) == (4 * int(batch), 0.0)
            assert 0 < row["wall_p50_ms"] <= row["wall_p99_ms"]
            assert row["graph"] == ("no graph" not in name)
            assert row["runs_per_call"] == (2 if batch == "40" else 1)  # the profile ends at 33
        ledger = rows["device path, no graph"]["stages_ms"]
        assert {"mammography", "ultrasound", "attention_pool", "head", "transfers"} <= set(ledger)
        assert "device" in rows["device path, CUDA graph"]["stages_ms"]
    facts = found["variants"]["device path, CUDA graph"]
    assert (facts["ran"], facts["captured"], facts["captured_count"]) == ("device path", [1, 7, 33], 3)
    assert (facts["not_captured"], facts["problem"], facts["largest_batch"]) == (None, None, 33)
    assert found["variants"]["device path, no graph"]["not_captured"] == "it was asked to run without graphs"
    report = report_of(bundle, {str(RTX): found})
    assert device_report.problems(report) == []
    report["targets"]["tensorrt:fp16"] = {"not_run": "no TensorRT"}
    text = device_report.markdown(report)
    assert text.count("tensorrt-rtx:fp32") == 12
    assert text.count("| same |") == 8
    assert "*not measured*: no TensorRT" in text
    assert "3: 1, 7, 33" in text
    assert "- cupy: 14" in text
    assert device_report.problems(report) == ["tensorrt:fp16: not_run: no TensorRT"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["pixels of the first call", "every part is the first", "other embeddings"])
def test_what_is_fast_but_wrong_is_found(
    plug: Callable[..., Any], answers: Cases, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    bundle = plug().target.bundle
    first: list[Pixels] = []
    original = device_variants.variants

    def variants(*given: Any) -> Any:
        loaded, failed = original(*given)
        one = loaded[0]
        call = one.call

        def wrong(pixels: Pixels, embedding: Array) -> Any:
            first.append(pixels)
            if fault == "pixels of the first call":
                same = [one for one in first if len(one["ultrasound"]) == len(pixels["ultrasound"])]
                return call(same[0], embedding)
            got, spent = call(pixels, embedding)
            if fault == "other embeddings":
                return got | {"embedding": np.roll(got["embedding"], 1, 1)}, spent
            return {key: np.resize(array[:32], array.shape) for key, array in got.items()}, spent

        return [replace(one, call=wrong), *loaded[1:]], failed

    monkeypatch.setattr(device_path, "variants", variants)
    found = device_path.of_target(bundle, RTX, answers)
    report = report_of(bundle, {str(RTX): found})
    bad = device_report.problems(report)
    assert bad
    assert all(one.startswith("tensorrt-rtx:fp32, device path, CUDA graph, batch ") for one in bad)
    assert all("ParityError: batch " in one for one in bad)
    assert "**failed**" in device_report.markdown(report)
    assert "failed" not in found["batches"]["40"]["whole graph, CUDA graph"]  # one that is wrong costs no other


def few(cases: Cases, count: int) -> Cases:
    assert cases.want is not None
    return Cases(
        {modality: array[:count] for modality, array in cases.pixels.items()},
        {name: array[:count] for name, array in cases.want.items()},
        cases.source,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "the case before", "one row is another's"])
def test_a_coarse_precision_is_told_by_its_own_cases(
    plug: Callable[..., Any],
    target: Callable[..., Any],
    answers: Cases,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    bundle = plug(target(precision="bf16")).target.bundle
    monkeypatch.setattr(device_path, "BATCHES", (1, 24))
    original = device_variants.variants
    before: list[Pixels] = []

    def variants(*given: Any) -> Any:
        loaded, failed = original(*given)
        one = loaded[0]
        call = one.call

        def wrong(pixels: Pixels, embedding: Array) -> Any:
            before.append(pixels)
            if fault == "the case before":
                same = [one for one in before if len(one["ultrasound"]) == len(pixels["ultrasound"])]
                return call(same[-2:][0], embedding)
            got, spent = call(pixels, embedding)
            if fault and len(pixels["ultrasound"]) > 1:
                got["embedding"][3] = got["embedding"][11]
            return got, spent

        return [replace(one, call=wrong), *loaded[1:]], failed

    monkeypatch.setattr(device_path, "variants", variants)
    found = device_path.of_target(bundle, Target("tensorrt-rtx", "bf16"), few(answers, 40))
    bad = device_report.problems(report_of(bundle, {"tensorrt-rtx:bf16": found}))
    assert bool(bad) == bool(fault)
    assert all("device path, CUDA graph" in one for one in bad)
    if fault == "the case before":
        assert "of the cases are told from the others, expected at least 90%" in bad[0]
    elif fault:
        assert found["batches"]["24"]["device path, CUDA graph"]["strangers"] == 4  # of as many calls
    for rows in found["batches"].values():
        assert rows["device path, no graph"]["strangers"] == 0


def test_without_the_kernel_the_report_says_so(plug: Callable[..., Any], answers: Cases) -> None:
    bundle = plug(cupy=False).target.bundle
    with pytest.warns(RuntimeWarning, match="without the fused attention pool"):
        found = device_path.of_target(bundle, RTX, answers)
    facts = found["variants"]["device path, CUDA graph"]
    assert facts["ran"] == "whole graph"
    bad = device_report.problems(report_of(bundle, {str(RTX): found}))
    assert len(bad) == 3
    assert "device path, CUDA graph: `whole graph` ran instead of the device path: " in bad[0]
    assert "**`whole graph` ran instead" in device_report.markdown(report_of(bundle, {str(RTX): found}))


@pytest.mark.slow
def test_a_graph_that_was_not_captured_is_no_success(plug: Callable[..., Any], answers: Cases) -> None:
    machine = plug()
    machine.trt.capturable = False
    with pytest.warns(RuntimeWarning, match="runs without CUDA graphs"):
        found = device_path.of_target(machine.target.bundle, RTX, answers)
    bad = device_report.problems(report_of(machine.target.bundle, {str(RTX): found}))
    assert sum("no batch was captured into a CUDA graph: TensorRT-RTX says" in one for one in bad) == 3
    assert sum("ran without a CUDA graph" in one for one in bad) == 6
    assert found["variants"]["device path, no graph"]["problem"] is None


def test_an_error_of_any_kind_costs_one_variant(
    plug: Callable[..., Any], answers: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = plug().target.bundle
    original = device_variants.variants

    def variants(*given: Any) -> Any:
        loaded, failed = original(*given)

        def broken(pixels: Pixels, embedding: Array) -> Any:
            raise RuntimeError("cudaErrorIllegalAddress")

        return [*loaded[:-1], replace(loaded[-1], call=broken)], failed

    monkeypatch.setattr(device_path, "variants", variants)
    found = device_path.of_target(bundle, RTX, answers)
    for rows in found["batches"].values():
        assert "RuntimeError: cudaErrorIllegalAddress" in rows["whole graph, CUDA graph"]["failed"]
        assert "wall_p50_ms" in rows["device path, no graph"]
    assert device_report.problems(report_of(bundle, {str(RTX): found}))


def test_a_variant_that_can_t_be_loaded_costs_no_other(
    plug: Callable[..., Any], answers: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plug()
    real = known(RTX).pipeline

    def pipeline(*given: Any, **asked: Any) -> Any:
        if asked.get("whole_graph"):
            raise TypeError("deserialize_cuda_engine(): incompatible")
        return real(*given, **asked)

    monkeypatch.setattr(known(RTX), "pipeline", pipeline, raising=True)
    found = device_path.of_target(machine.target.bundle, RTX, answers)
    assert found["variants"]["whole graph, CUDA graph"] == {
        "failed": "TypeError: deserialize_cuda_engine(): incompatible"
    }
    assert list(found["batches"]["1"]) == [name for name in device_variants.VARIANTS if not name.startswith("whole")]
    assert "TypeError" in device_report.markdown(report_of(machine.target.bundle, {str(RTX): found}))


def test_what_no_longer_fits_is_left_out(plug: Callable[..., Any], answers: Cases) -> None:
    bundle = plug().target.bundle
    found = device_path.of_target(bundle, RTX, answers, Deadline.after(0))
    bad = device_report.problems(report_of(bundle, {str(RTX): found}))
    assert len(bad) == 8
    assert all(one.endswith(": out of time") for one in bad)

    def run(target: Target, deadline: Deadline, note: device_path.Note) -> dict[str, Any]:
        raise AssertionError("there is no time for it")

    report = device_path.on_gpu(
        bundle, [RTX], run, lambda _: None, source="", name="", commit="", deadline=Deadline.after(0)
    )
    assert report["targets"] == {str(RTX): {"not_run": "out of time"}}


def test_without_answers_times_are_taken_and_called_uncompared(
    plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = plug().target.bundle
    missing = MissingPackage("the target onnxruntime:fp32 needs the package `onnxruntime`")
    monkeypatch.setattr(cpu.OnnxRuntime, "problem", lambda self, precision="fp32": missing)
    cases = Cases.drawn(bundle)
    assert cases.want is None
    found = device_path.of_target(bundle, RTX, cases)
    row = found["batches"]["1"]["device path, CUDA graph"]
    assert row["wall_p50_ms"] > 0
    assert row["compared"] is False
    assert found["head_check"] == str(missing)
    report = report_of(bundle, {str(RTX): found}, cases.source)
    bad = device_report.problems(report)
    assert len(bad) == 8
    assert all("compared with nothing" in one and "MissingPackage" in one for one in bad)
    assert "**compared with nothing**" in device_report.markdown(report)


# ---------------------------------------------------------------- the judge


@pytest.fixture
def judge(bundle_folder: Path, answers: Cases) -> Any:
    with ExitStack() as closing:
        yield lambda precision="fp32": Judge(
            Bundle.open(bundle_folder), Target("tensorrt-rtx", precision), answers, closing
        )


ROWS = slice(3, 35)


def said(answers: Cases) -> dict[str, Array]:
    assert answers.want is not None
    return {name: array[ROWS].copy() for name, array in answers.want.items()}


def test_fp32_is_judged_as_parity_does(judge: Callable[..., Judge], answers: Cases) -> None:
    """Embeddings with the noise of another order of sums cross splits; the head is exact on what it got."""
    assert CROSSING_TOLERANCE == facts.CROSSING_TOLERANCE
    one = judge()
    assert one.head is not None
    got = said(answers)
    scale = np.abs(got["embedding"]).max()
    noise = np.random.default_rng(0).uniform(-1, 1, got["embedding"].shape)
    got["embedding"] = (got["embedding"] + 5e-6 * scale * noise).astype(np.float32)
    got["probability"] = one.head(got["embedding"])
    figures, wrong = one.call(got, ROWS)
    assert not wrong
    assert figures["max_embedding"] < 1e-4
    raised = got["probability"] + np.float32(3e-4)
    figures, wrong = one.call(got | {"probability": raised}, ROWS)
    assert len(wrong) == 1
    assert wrong[0].startswith("on the same embedding the processor's head differs by 0.0003")
    assert 30 <= figures["crossings"] == sum(abs(raised - said(answers)["probability"]) > 1e-4)
    one.head = None
    figures, wrong = one.call(said(answers) | {"probability": said(answers)["probability"] + np.float32(0.03)}, ROWS)
    assert wrong[0].startswith("probabilities differ by 0.03, expected at most 0.02")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("fault", ["swapped", "stale"])
def test_rows_of_other_cases_are_found_in_every_precision(
    judge: Callable[..., Judge], answers: Cases, precision: str, fault: str
) -> None:
    got = said(answers)
    figures, wrong = judge(precision).call(got, ROWS)
    assert figures["strangers"] == 0
    assert not wrong
    assert answers.want is not None
    if fault == "swapped":
        got["embedding"][[4, 9]] = got["embedding"][[9, 4]]
    else:
        got["embedding"][:2] = answers.want["embedding"][100:102]
    figures, wrong = judge(precision).call(got, ROWS)
    assert figures["strangers"] == 2
    assert any("embeddings nearer to another case's: 2" in one for one in wrong)


def test_what_is_no_number_is_wrong(judge: Callable[..., Judge], answers: Cases) -> None:
    got = said(answers)
    got["embedding"][0, 0] = np.nan
    _, wrong = judge("int8").call(got, ROWS)
    assert len(wrong) == 2
    _, wrong = judge("int8").call({name: array[:5] for name, array in said(answers).items()}, ROWS)
    assert len(wrong) >= 3


# ---------------------------------------------------------------- answers in a file, processes of their own


def test_answers_travel_in_a_file(bundle_folder: Path, answers: Cases, tmp_path: Path) -> None:
    bundle, file = Bundle.open(bundle_folder), tmp_path / "expected.npz"
    assert answers.want is not None
    device_answers.write_expected(file, bundle, answers.pixels, answers.want)
    found = Cases.drawn(bundle, file)
    assert found.want is not None
    for name, array in answers.want.items():
        np.testing.assert_array_equal(found.want[name], array)
    assert len(found.want["probability"]) == COUNT
    with pytest.raises(UsageError, match="is for the bundle"):
        device_answers.read_expected(file, replace(bundle, digest="0" * 64), answers.pixels)
    with pytest.raises(UsageError, match="is for the pixels"):
        device_answers.read_expected(file, bundle, {m: x[::-1] for m, x in answers.pixels.items()})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match="can't be read"):
        device_answers.read_expected(file, bundle, answers.pixels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "seconds", "words"),
    [
        ("import sys; sys.exit('libcuda died')", 5, "its process ended with status 1: libcuda died"),
        ("import os; os.kill(os.getpid(), 11)", 5, "its process ended with status -11"),
        ("import time; time.sleep(60)", 3, "out of time: ended after "),
    ],
)
def test_a_crash_or_a_hang_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, words: str
) -> None:
    """What it had written before is kept."""
    written = 'import json, pathlib; pathlib.Path(sys.argv[1]).write_text(json.dumps({"batches": {"1": {}}})); '
    code = f"import sys; {written if 'sleep' in program else ''}{program}"
    fake = [sys.executable, "-c", code, str(tmp_path / "part.json")]
    original, noted = run_child, list[Mapping[str, Any]]()
    monkeypatch.setattr(device_path, "run_child", lambda command, *rest, **more: original(fake, *rest, **more))
    run = device_path.in_process(["bundle"], tmp_path)
    found = run(RTX, Deadline.after(seconds), noted.append)
    assert found["failed"].startswith(words)
    if "sleep" in program:
        assert found["batches"] == {"1": {}}
        assert noted[-1] == {"batches": {"1": {}}}


def test_all_of_it_as_the_command_runs_it(
    plug: Callable[..., Any],
    answers: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both halves of the command: the one that asks for a process, and the one that runs in it."""
    bundle, out, file = plug().target.bundle, tmp_path / "out", tmp_path / "expected.npz"
    assert answers.want is not None
    device_answers.write_expected(file, bundle, answers.pixels, answers.want)
    monkeypatch.setattr(device_path, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(device_path, "BATCHES", (1,))
    asked: list[list[str]] = []

    def child(command: list[str], limit: float, log: Path, watch: Callable[[], object]) -> tuple[int, float]:
        asked.append(command[3:])
        monkeypatch.setattr(sys, "argv", command[2:])
        watch()
        status = device_path.main()
        watch()
        assert json.loads((out / "device_path.json").read_text())["targets"][str(RTX)]["batches"]["1"]
        log.write_text("")
        return status, 1.0

    monkeypatch.setattr(device_path, "run_child", child)
    command = ["device_path", str(bundle.path), "--out", str(out), "--expected", str(file), "--commit", "abc"]
    monkeypatch.setattr(sys, "argv", [*command, "--targets", str(RTX)])
    assert device_path.main() == 0
    assert len(asked) == 1
    report = json.loads((out / "device_path.json").read_text())
    assert (report["commit"], report["gpu"]) == ("abc", "GeForce RTX 4090")
    assert report["expected"] == "expected.npz, onnxruntime:fp32"
    text = (out / "device_path.md").read_text()
    assert "- nothing" in text
    assert f"Made by `{report['command']}`." in text
    assert "# The whole way on GeForce RTX 4090" in capsys.readouterr().out


def test_without_a_gpu_two_lines_and_no_file(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_path, "gpu", lambda: None)
    monkeypatch.setattr(device_path, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["device_path", str(bundle_folder), "--out", str(tmp_path / "out")])
    assert device_path.main() == EngineError.exit_code
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 2)
    assert not (tmp_path / "out").exists()


def test_a_call_that_says_something_else_when_it_is_asked_again_is_seen() -> None:
    def call(turn: int, embedding: float, probability: float) -> tuple[int, slice, dict[str, Any]]:
        found = {"embedding": np.array([[4.0, embedding]], np.float32), "probability": np.array([probability])}
        return turn, ROWS, found

    first = call(0, 1.0, 0.5)
    assert device_path.repeated([first]) == device_path.repeated([first, call(1, 1.0, 0.5)]) == {}
    assert device_path.repeated([first, call(1, 2.0, 0.1), call(0, 1.0, 0.5)]) == {"again": 0.0}
    assert device_path.repeated([first, call(0, 1.5, 0.5)]) == {"again": 0.125}
    other = device_path.repeated([first, call(0, 1.0, 0.25)])
    assert other["again"] > 0
    assert device_report.row_cells("", {"again": 0.125}, {})[-1] == "1.2e-01"
    assert device_report.row_cells("", {"again": 0.0}, {})[-1] == "same"
    assert device_report.row_cells("", {}, {})[-1] == ""


def test_overhead_is_over_the_device_s_time_or_what_can_t_overlap() -> None:
    stages = {"mammography": 2.0, "ultrasound": 3.0, "attention_pool": 0.5, "head": 0.25, "transfers": 0.25}
    assert device_report.overhead(stages, 4.2) == pytest.approx(0.05)
    assert device_report.overhead({"device": 4.0, "host_copies": 0.1}, 4.2) == pytest.approx(0.05)
    assert device_report.overhead({"mammography": 1.0, "ultrasound": 1.0}, 4.2) is None
    row = {"wall_p50_ms": 4.2, "wall_p99_ms": 5.0}
    beside: dict[str, dict[str, Any]] = {"device path, no graph": row | {"stages_ms": stages}}
    graph = "device path, CUDA graph"
    beside[graph] = row | {"wall_p50_ms": 1.4, "stages_ms": {"device": 1.0}}
    ahead = f"{graph}{device_report.AHEAD}"
    beside[ahead] = row | {"wall_p50_ms": 1.3, "stages_ms": {"device": 1.25}}
    report = report_of(
        cast("Bundle", SimpleNamespace(name="", digest="")), {"tensorrt:fp16": {"batches": {"32": beside}}}
    )
    lines = device_report.markdown(report).splitlines()
    cells = {line.split(" | ")[2]: line.split(" | ")[8] for line in lines if line.startswith("| tensorrt:fp16 | 32")}
    assert cells == {"device path, no graph": "+5.0%", graph: "+40.0%", ahead: "+30.0%"}
