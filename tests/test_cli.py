"""The command line: exit codes, which stream gets what, and how it speaks of errors."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mpmmu_rt import __version__
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import _report, app, general_first
from mpmmu_rt.errors import Interrupted

COMMANDS = (
    "train",
    "ablate",
    "evaluate",
    "explain",
    "export",
    "verify",
    "run",
    "predict",
    "bench",
    "report",
    "inspect",
    "doctor",
    "phantom",
    "native",
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def two_lines(result: Result) -> tuple[str, str]:
    """The whole of stderr, which is an error and a hint."""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


def document(result: Result) -> Any:
    """stdout as strict JSON: NaN and Infinity are no JSON."""
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.csv"


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_goes_to_stdout_and_names_every_argument(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: mpmmu-rt {command}")
    assert result.stderr == ""


def test_without_a_command_the_help_is_no_data() -> None:
    result = call()
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(command in result.stderr for command in COMMANDS)
    assert "error:" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["run"], "mpmmu-rt run"),
        (["bogus"], "mpmmu-rt"),
        (["--bogus"], "mpmmu-rt"),
        (["verify", "x", "--bogus"], "mpmmu-rt verify"),
        (["bench", "x", "--batch", "0"], "mpmmu-rt bench"),
        (["bench", "x", "--batch", "many"], "mpmmu-rt bench"),
        (["bench", "x", "--seconds", "0"], "mpmmu-rt bench"),
        (["run", "x", "y", "--frame", "-1"], "mpmmu-rt run"),
        (["train", "x", "--preset", "huge"], "mpmmu-rt train"),
        (["train", "--phantom", "3"], "mpmmu-rt train"),
        (["inspect", "a", "b"], "mpmmu-rt inspect"),
        (["phantom", "0"], "mpmmu-rt phantom"),
    ],
)
def test_a_wrong_argument_takes_two_lines_too(arguments: list[str], command: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert two_lines(result)[1] == f"hint: {command} --help"


def test_our_own_usage_errors_have_the_same_exit_code(bundle_folder: Path) -> None:
    result = call("verify", bundle_folder, "--target", "onnxruntime")
    assert (result.exit_code, result.stdout) == (2, "")
    two_lines(result)


@pytest.mark.parametrize(
    ("profile", "target", "said"),
    [
        ("1/8", "tensorrt:fp16", "the profile is `1/8`, expected MIN/OPT/MAX or one number of cases"),
        ("many", "tensorrt-rtx:fp16@89", "the profile is `many`, expected MIN/OPT/MAX or one number of cases"),
        ("0", "tensorrt:fp16", "the profile is 0/0/0, expected 1 ≤ min ≤ opt ≤ max ≤ 65536"),
        ("8/4/2", "tensorrt:fp16", "the profile is 8/4/2, expected 1 ≤ min ≤ opt ≤ max ≤ 65536"),
        ("1/8/128", "onnxruntime:fp32", "--profile 1/8/128 is given without a target of TensorRT, expected both"),
        ("1/8/128", None, "--profile 1/8/128 is given without a target of TensorRT, expected both"),
    ],
)
def test_a_profile_that_makes_no_sense(
    checkpoint_folder: Path, tmp_path: Path, profile: str, target: str | None, said: str
) -> None:
    targets = ["--target", target] if target else []
    result = call("export", checkpoint_folder, "-o", tmp_path / "b", *targets, "--profile", profile)
    assert (result.exit_code, result.stdout) == (2, "")
    assert two_lines(result)[0] == f"error: {said}"
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_profile_reaches_the_engines(checkpoint_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    arguments = ("--target", "tensorrt-rtx:fp32@89", "--profile", "4", "--json", "-")
    result = call("export", checkpoint_folder, "-o", tmp_path / "b", *arguments)
    assert result.exit_code == 0, result.stderr
    (report,) = document(result)["precision"].values()
    assert report["profile"] == {"min": 4, "opt": 4, "max": 4}
    assert [engine["profile"] for engine in report["engines"].values()] == [report["profile"]] * 4


def test_no_traceback_without_debug_and_one_with_it(tmp_path: Path) -> None:
    plain = call("inspect", tmp_path / "no.bundle")
    assert (plain.exit_code, plain.stdout) == (1, "")
    lines = two_lines(plain)
    debug = call("--debug", "inspect", tmp_path / "no.bundle")
    assert (debug.exit_code, debug.stdout) == (1, "")
    assert debug.stderr.startswith("Traceback (most recent call last)")
    assert "BundleError" in debug.stderr
    assert tuple(debug.stderr.splitlines()[-2:]) == lines
    assert call("inspect", tmp_path / "no.bundle").stderr == plain.stderr  # --debug does not stick


def test_a_defect_is_called_one_and_shows_its_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    @_report.reported
    def broken() -> None:
        raise KeyError("probability")

    _report.show_tracebacks(False)
    with pytest.raises(typer.Exit) as caught:
        broken()
    assert caught.value.exit_code == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "error: internal error: KeyError: 'probability'",
        "hint: run it again with --debug and report the traceback",
    ]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted; what was written by then is whole"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y: Permission denied"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: no space left on the disk of /x/y, expected room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "error: no space left on the disk of"),
    ],
)
def test_what_comes_from_outside(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    @_report.reported
    def unlucky() -> None:
        raise raised

    with pytest.raises(typer.Exit) as caught:
        unlucky()
    assert caught.value.exit_code == code
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(said)
    assert hint.startswith("hint: ")


def test_a_message_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    _report._fail(ValueError(), "a\nb\r\n\tc", "d\ne", 1)
    assert capsys.readouterr().err == "error: a b c\nhint: d e\n"


def test_run(bundle_folder: Path, phantom_manifest: Path, out: Path) -> None:
    result = call("run", bundle_folder, phantom_manifest, "-o", out, "--batch", 5)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"wrote {out}: 12 predictions, 0 errors" in result.stderr
    assert "error:" not in result.stderr
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_run_json_is_one_document_on_stdout(bundle_folder: Path, phantom_manifest: Path, out: Path) -> None:
    result = call("run", bundle_folder, phantom_manifest, "-o", out, "--json", "-", "--target", "onnxruntime:fp32")
    entry = document(result)
    assert (entry["cases"], entry["predicted"], entry["failed"], entry["output"]) == (12, 12, 0, str(out))
    assert entry["target"] == "onnxruntime:fp32"
    assert result.exit_code == 0


def test_what_predictions_were_made_with_lies_beside_them(
    bundle_folder: Path, phantom_manifest: Path, out: Path
) -> None:
    printed = document(call("run", bundle_folder, phantom_manifest, "-o", out, "--json", "-"))
    beside = out.with_name("out.csv.json")
    entry = json.loads(beside.read_text())
    assert entry == printed
    assert (entry["schema"], entry["warning"]) == ("mpmmu-run/4", None)
    assert entry["output_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert entry["manifest"]["sha256"] == hashlib.sha256(phantom_manifest.read_bytes()).hexdigest()
    bundle = Bundle.open(bundle_folder)
    assert entry["bundle"] == {"name": bundle.name, "digest": bundle.digest, "trained": True}
    assert (entry["threshold"], entry["preprocessing"]) == (bundle.threshold, bundle.preprocessing.to_json())
    assert entry["started"] <= entry["ended"]
    assert entry["machine"]["packages"]["onnxruntime"]
    out.unlink()
    assert call("run", bundle_folder, phantom_manifest, "-o", out).exit_code == 0, "an earlier run's gives way"
    beside.write_text("a letter")
    refused = call("run", bundle_folder, phantom_manifest, "-o", out, "--overwrite", "--target", "onnxruntime:fp32")
    assert (refused.exit_code, beside.read_text()) == (1, "a letter")
    assert two_lines(refused)[0].startswith(f"error: {beside} exists and is no document of a run")


def test_an_untrained_model_is_told_beside_its_predictions(folder: Path, phantom_manifest: Path, out: Path) -> None:
    entry = json.loads((folder / "bundle.json").read_text())
    seal(folder, {key: value for key, value in entry.items() if key not in ("files", "sha256")} | {"trained": False})
    assert call("run", folder, phantom_manifest, "-o", out).exit_code == 0
    beside = json.loads(out.with_name("out.csv.json").read_text())
    assert beside["warning"].startswith("UNTRAINED")
    assert beside["bundle"]["trained"] is False


def test_run_with_a_case_that_fails(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, out: Path) -> None:
    lines = phantom_manifest.read_text().splitlines()
    cases = [line.replace("mammography/", f"{phantom_manifest.parent}/mammography/", 1) for line in lines[1:4]]
    cases = [line.replace("ultrasound/", f"{phantom_manifest.parent}/ultrasound/", 1) for line in cases]
    (tmp_path / "m.csv").write_text("\n".join([lines[0], *cases, "bad,no.png,no.png,0,"]) + "\n")
    result = call("run", bundle_folder, tmp_path / "m.csv", "-o", out, "--json", "-")
    assert result.exit_code == 1
    entry = document(result)
    assert (entry["cases"], entry["predicted"], entry["failed"]) == (4, 3, 1)
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: 1 of 4 cases have no probability, expected one for each; the first is `bad`: ")
    wanted = "says why for each; once the files are repaired, --retry-failed makes these again"
    assert hint == f"hint: the column `error` of {out} {wanted}"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]


def test_verify(bundle_folder: Path) -> None:
    result = call("verify", bundle_folder, "--no-record", "--target", "onnxruntime:fp32")
    assert result.exit_code == 0
    assert "golden embedding, relative" in result.stdout
    assert "FAILED" not in result.stdout
    assert "checks passed on onnxruntime:fp32" in result.stderr


def reseal(folder: Path) -> None:
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def test_verify_that_fails_has_its_exit_code_and_still_prints_its_data(folder: Path) -> None:
    weights = np.fromfile(folder / "onnx/weights.bin", "<f4") * np.float32(1.05)
    weights.tofile(folder / "onnx/weights.bin")
    reseal(folder)
    result = call("verify", folder, "--target", "onnxruntime:fp32")
    assert result.exit_code == 3
    assert "FAILED" in result.stdout
    assert "checks failed on onnxruntime:fp32, expected none; the first stage at fault: " in two_lines(result)[0]
    asjson = call("verify", folder, "--json", "-")
    assert asjson.exit_code == 3
    assert document(asjson)["passed"] is False


def test_a_check_without_a_finite_value_is_still_json(folder: Path) -> None:
    path = folder / "golden/golden.npz"
    with np.load(path) as vectors:
        golden: dict[str, Any] = {name: vectors[name] for name in vectors.files}
    golden["embedding"] = np.full_like(golden["embedding"], np.nan)
    with path.open("wb") as file:
        np.savez(file, **golden)
    reseal(folder)
    result = call("verify", folder, "--json", "-")
    assert result.exit_code == 3
    failed = [check for check in document(result)["checks"] if not check["passed"]]
    assert [(check["name"], check["value"]) for check in failed] == [
        ("golden embedding, relative", None),
        ("golden probability of the golden embedding, max |Δp|", None),
    ]
    assert "not finite" in call("verify", folder).stdout


def test_an_altered_bundle_fails_verification(folder: Path) -> None:
    with (folder / "onnx/weights.bin").open("r+b") as file:
        file.write(b"\x01\x02\x03")
    for command in (["verify", folder], ["inspect", folder]):
        result = call(*command)
        assert (result.exit_code, result.stdout) == (3, "")
        two_lines(result)


@pytest.mark.parametrize("damage", ["cut", "missing", "extra", "bundle.json"])
def test_verify_of_a_damaged_bundle_is_a_document_too(folder: Path, damage: str) -> None:
    graph = folder / "onnx/head.onnx"
    if damage == "cut":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif damage == "missing":
        graph.unlink()
    elif damage == "extra":
        (folder / "notes.txt").write_text("mine")
    else:
        (folder / "bundle.json").write_bytes((folder / "bundle.json").read_bytes()[:-9])
    result = call("verify", folder, "--json", "-")
    error, hint = two_lines(result)
    said = document(result)
    assert result.exit_code == 3
    assert (said["schema"], said["passed"], said["checks"]) == ("mpmmu-verify/1", False, [])
    assert (f"error: {said['error']}", f"hint: {said['hint']}") == (error, hint)


def test_verify_names_the_stage_at_fault(folder: Path) -> None:
    graphs = [folder / f"onnx/{modality}_onnxruntime.onnx" for modality in ("mammography", "ultrasound")]
    shutil.copy(graphs[1], graphs[0])
    reseal(folder)
    result = call("verify", folder, "--target", "onnxruntime:fp32", "--json", "-")
    assert document(result)["stage_at_fault"] == "the mammography encoder"
    assert two_lines(result)[0].endswith("expected none; the first stage at fault: the mammography encoder")


def test_inspect(bundle_folder: Path) -> None:
    result = call("inspect", bundle_folder)
    assert (result.exit_code, result.stderr) == (0, "")
    for said in ("onnxruntime:fp32  runs here", "operating threshold: 0.4", "not a medical device", "weights.bin"):
        assert said.lower() in result.stdout.lower()
    entry = document(call("inspect", bundle_folder, "--json", "-"))
    assert entry == json.loads((bundle_folder / "bundle.json").read_text())


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        *((("provenance", "versions"), []), (("provenance",), {}), (("head", "head"), {"forests": 3})),
        *((("calibration",), {"kind": "manifest"}), (("parity", "checks"), [])),
        *((("parity", "checks"), [{"name": 3}]), (("precision", "openvino:fp32"), {"passed": True})),
    ],
)
def test_inspect_of_a_bundle_that_says_less_of_itself_is_two_lines(
    folder: Path, keys: tuple[str, ...], value: object
) -> None:
    """What is only for people, opening a bundle does not ask for."""
    entry = json.loads((folder / "bundle.json").read_text())
    part: dict[str, Any] = entry
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    seal(folder, entry)
    result = call("inspect", folder)
    error, hint = two_lines(result)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not as an export has it (" in error
    assert "--json" in hint
    assert document(call("inspect", folder, "--json", "-"))["name"] == entry["name"]


def test_what_a_bundle_says_does_not_steer_the_terminal(folder: Path) -> None:
    entry = json.loads((folder / "bundle.json").read_text())
    steers = "\x1b[2J\x1b]0;mine\x07 \x9b31m\rproven"
    seal(folder, entry | {"name": f"a{steers}", "card": entry["card"] | {"trained_on": steers}})
    told = call("inspect", folder)
    (folder / f"onnx/{steers.replace('/', '')}").write_bytes(b"x")
    refused = call("inspect", folder)
    assert (told.exit_code, refused.exit_code) == (0, 3)
    for text in (told.stdout, told.stderr, refused.stderr):
        assert not [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]
    assert "a?[2J?]0;mine?" in told.stdout
    two_lines(refused)


def test_inspect_loads_no_engine(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = call("inspect", bundle_folder)
    assert result.exit_code == 0
    assert "needs the package `onnxruntime`" in result.stdout


def test_an_untrained_model_is_announced_wherever_it_is_used(folder: Path, phantom_manifest: Path, out: Path) -> None:
    entry = json.loads((folder / "bundle.json").read_text())
    seal(folder, entry | {"trained": False})
    for command in (["inspect", folder], ["run", folder, phantom_manifest, "-o", out]):
        assert "UNTRAINED" in call(*command).stderr


def test_doctor() -> None:
    result = call("doctor")
    assert result.exit_code == 0
    assert re.search(r"^onnxruntime:fp32 +ok", result.stdout, re.MULTILINE)
    assert document(call("doctor", "--json", "-"))["schema"] == "mpmmu-doctor/1"


def test_doctor_fails_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    result = call("doctor")
    assert result.exit_code == 1
    assert "hint: onnxruntime:fp32: pip install 'mpmmu-rt[cpu]'" in result.stderr
    assert document(call("doctor", "--json", "-"))["targets"][0]["usable"] is False


@pytest.mark.slow
def test_bench_writes_json_to_stdout_or_to_a_file(bundle_folder: Path, tmp_path: Path) -> None:
    options = ("--batch", 2, "--seconds", 0.1, "--idle", "0,0.1", "--sweep", "auto")
    printed = call("bench", bundle_folder, *options, "--json", "-", "--html", tmp_path / "bench.html")
    assert f"wrote {tmp_path / 'bench.html'}" in printed.stderr
    assert printed.exit_code == 0
    options = (*options[:-2], "--sweep", "1")
    stored = call("bench", bundle_folder, *options, "--json", tmp_path / "bench.json")
    assert stored.exit_code == 0
    assert f"wrote {tmp_path / 'bench.json'}" in stored.stderr
    assert "pairs/s" in stored.stdout
    assert "includes input checks" in stored.stdout
    assert set(document(printed)) == set(json.loads((tmp_path / "bench.json").read_text()))
    (tmp_path / "again.json").write_text(printed.stdout)
    assert call("report", tmp_path / "again.json", "-o", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "bench.html").read_text()
    assert "Throughput by batch" in (tmp_path / "again.html").read_text()


def test_phantoms(tmp_path: Path) -> None:
    result = call("phantom", 2, "-o", tmp_path / "p")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "drawings, not patients" in result.stderr
    assert len(list((tmp_path / "p").rglob("*.png"))) == 4
    again = call("phantom", 2, "-o", tmp_path / "p")
    assert again.exit_code == 1
    two_lines(again)


def test_no_bars_and_no_colour_where_there_is_no_terminal(
    bundle_folder: Path, phantom_manifest: Path, out: Path
) -> None:
    command = [sys.executable, "-W", "error", "-m", "mpmmu_rt", "run", bundle_folder, phantom_manifest, "-o", out]
    result = subprocess.run(list(map(str, command)), capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == b""
    for mark in (b"\x1b", b"\r", "━".encode(), b"%"):
        assert mark not in result.stderr
    assert (
        len(result.stderr.splitlines()) == 6
    )  # the target, what was written, two of times, whether it was verified here, what next


@pytest.mark.slow
def test_exit_codes_reach_the_shell(tmp_path: Path, folder: Path) -> None:
    (folder / "golden/golden.npz").write_bytes(b"x")
    for arguments, code in ((["inspect", tmp_path / "no"], 1), (["bogus"], 2), (["inspect", folder], 3)):
        command = [sys.executable, "-m", "mpmmu_rt", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def test_a_reader_that_goes_away_is_no_error(bundle_folder: Path) -> None:
    command = f"'{sys.executable}' -m mpmmu_rt inspect '{bundle_folder}' --json - | head -c 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("{0\n", "")


def test_debug_is_taken_behind_the_command_too(tmp_path: Path) -> None:
    before, behind = call("--debug", "inspect", tmp_path / "no"), call("inspect", tmp_path / "no", "--debug")
    assert "BundleError" in behind.stderr
    assert (behind.exit_code, behind.stderr.splitlines()[-2:]) == (1, before.stderr.splitlines()[-2:])
    assert general_first(["run", "--", "--debug"]) == ["run", "--", "--debug"]
    assert general_first(["--debug", "run", "--debug", "--", "x"]) == ["--debug", "run", "--", "x"]


def test_help_is_short_too_and_shells_complete() -> None:
    for arguments in (["-h"], ["bench", "-h"]):
        short, long = call(*arguments), call(*arguments[:-1], "--help")
        assert (short.exit_code, short.stdout) == (0, long.stdout)
    environment = os.environ | {"_MPMMU_RT_COMPLETE": "complete_bash", "COMP_WORDS": "mpmmu-rt be", "COMP_CWORD": "1"}
    command = [str(Path(sys.executable).with_name("mpmmu-rt"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["bench"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("openvivo:int8", "did you mean `openvino:int8`?"),
        ("onnx-runtime:fp16", "did you mean `onnxruntime:fp32`?"),
        ("OpenVINO:bf16", "did you mean `openvino:bf16`?"),
        ("openvino:fp23", "use `openvino:fp32`"),
        ("openvino:INT8", "did you mean `openvino:int8`?"),
    ],
)
def test_a_target_that_there_is_not_is_a_wrong_argument(bundle_folder: Path, asked: str, meant: str) -> None:
    result = call("verify", bundle_folder, "--target", asked)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"hint: {meant}")


def test_two_images_swapped_in_the_manifest_give_another_probability(
    bundle_folder: Path, tmp_path: Path, out: Path
) -> None:
    y, x = np.mgrid[:40, :50]
    Image.fromarray(((x * 5 + y * 3) % 256).astype(np.uint8)).save(tmp_path / "1.png")
    Image.fromarray((np.hypot(x - 20, y - 20) * 5 % 256).astype(np.uint8)).save(tmp_path / "2.png")
    (tmp_path / "m.csv").write_text("case_id,mammography,ultrasound\na,1.png,2.png\nb,2.png,1.png\n")
    assert call("run", bundle_folder, tmp_path / "m.csv", "-o", out).exit_code == 0
    with out.open(newline="") as file:
        first, second = (float(row["probability"]) for row in csv.DictReader(file))
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("how", ["2>/dev/null", "2>&1"])
def test_a_reader_that_goes_away_changes_no_exit_code(bundle_folder: Path, tmp_path: Path, how: str) -> None:
    """`mpmmu-rt verify … | head -1` under `set -o pipefail` must say that it failed."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    with np.load(folder / "golden/golden.npz") as stored:
        golden = dict(stored)
    golden["probability"] = golden["probability"][::-1]
    with (folder / "golden/golden.npz").open("wb") as file:
        np.savez(file, **golden)
    reseal(folder)
    for words, code in ((["inspect", bundle_folder], 0), (["verify", folder, "--no-record"], 3)):
        command = shlex.join([sys.executable, "-m", "mpmmu_rt", *map(str, words)])
        shell = f"{command} {how} | true; echo ${{PIPESTATUS[0]}}"
        said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        assert said.stdout == f"{code}\n", said.stderr


@pytest.mark.parametrize("name", ["out.csv", "m.csv", "link.csv", "b/x.json", "out.csv.json"])
def test_json_never_goes_over_what_the_command_reads_or_writes(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "b")
    shutil.copytree(phantom_manifest.parent, tmp_path / "cases")
    manifest, out = tmp_path / "cases/manifest.csv", tmp_path / "out.csv"
    (tmp_path / "m.csv").symlink_to(manifest)
    (tmp_path / "link.csv").symlink_to(out)
    before = manifest.read_bytes()
    error, _ = two_lines(call("run", tmp_path / "b", manifest, "-o", out, "--json", tmp_path / name))
    assert re.search(
        r"(belongs to this command|lies in .*b, which this command has) already, expected a file of its own",
        error,
    )
    assert manifest.read_bytes() == before
    assert not out.exists()
    Bundle.open(tmp_path / "b")


@pytest.mark.slow
def test_rows_on_stdout_are_those_of_a_file_in_any_encoding(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    case = read_manifest(phantom_manifest).cases[0]
    rows = f"case_id,mammography,ultrasound\nKo\u015bciuszko,{case.mammography},{case.ultrasound}\n"
    (tmp_path / "m.csv").write_text(rows, encoding="utf-8")
    command = [sys.executable, "-m", "mpmmu_rt", "run", str(bundle_folder), str(tmp_path / "m.csv"), "-o"]
    given = os.environ | {"PYTHONIOENCODING": "latin-1"}
    subprocess.run([*command, str(tmp_path / "out.csv")], env=given, check=True, capture_output=True)
    done = subprocess.run([*command, "-"], env=given, capture_output=True, check=True)
    assert done.stdout == (tmp_path / "out.csv").read_bytes()
    assert "Ko\u015bciuszko".encode() in done.stdout


def test_what_was_not_begun_is_begun_again_and_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["mpmmu-rt", "run", "b", "m.csv", "-o", "o.csv", "--overwrite"])
    hints = []
    for begun in (False, True):
        with (
            pytest.raises(Interrupted) as caught,
            _report.going_on(tmp_path / "o.csv", str, "--resume", begun=lambda begun=begun: begun),  # type: ignore[misc]
        ):
            raise KeyboardInterrupt
        hints.append(caught.value.hint.removeprefix("to go on: "))
    assert hints == ["mpmmu-rt run b m.csv -o o.csv --overwrite", "mpmmu-rt run b m.csv -o o.csv --resume"]


def test_json_never_goes_into_a_checkpoint_or_an_output_folder(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "ck"))
    before = (folder / "config.json").read_bytes()
    for to in (folder / "config.json", folder / "new.json"):
        error, _ = two_lines(call("export", folder, "-o", tmp_path / "b", "--json", to))
        assert "expected a file of its own" in error
    assert (folder / "config.json").read_bytes() == before
    assert not (folder / "new.json").exists()
    error, _ = two_lines(call("evaluate", folder, tmp_path / "m.csv", "-o", tmp_path / "e", "--json", tmp_path / "e/x"))
    assert "lies in" in error
    (tmp_path / "link").symlink_to(tmp_path / "no/where.json")
    error, hint = two_lines(call("inspect", folder, "--json", tmp_path / "link"))
    assert "does not exist" in error
    assert hint == f"hint: mkdir -p {shlex.quote(str(tmp_path / 'no'))}"


@pytest.mark.parametrize("out", [".", "/", ""])
def test_an_output_without_a_name_is_a_folder(bundle_folder: Path, phantom_manifest: Path, out: str) -> None:
    error, _ = two_lines(call("run", bundle_folder, phantom_manifest, "-o", out))
    assert "is a folder, expected a file to write" in error
