"""The command line as a shell has it: streams that are closed or full, narrow terminals, commands to be copied, and
results that are to be written where something else lies."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import _report, app
from mpmmu_rt.errors import UsageError, quoted
from mpmmu_rt.options import delay_ms
from mpmmu_rt.spec import Target
from mpmmu_rt.verified import look_up

ROOT = Path(__file__).resolve().parents[1]
CLOSED = "error: stdout is closed, expected a place for the result"
FULL = "error: no space left on the disk of what this was written to, expected room for it"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shell(how: str, *arguments: object, **given: str) -> subprocess.CompletedProcess[str]:
    """A command of ours in a process of its own, behind it what a shell does with its streams."""
    command = shlex.join([sys.executable, "-m", "mpmmu_rt", *map(str, arguments)])
    return subprocess.run(
        ["bash", "-c", f"{command} {how}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | given,
    )


@pytest.fixture
def cases(phantom_manifest: Path, tmp_path: Path) -> Path:
    """A manifest of copies that may be lost."""
    return Path(shutil.copytree(phantom_manifest.parent, tmp_path / "cases")) / "manifest.csv"


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize(("how", "said"), [(">&-", CLOSED), (">/dev/full", FULL)])
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_stream_that_takes_nothing_is_two_lines_outside_of_commands_too(how: str, said: str, option: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = shell(how, option)
    if option == "--help" and how == ">&-":
        assert (done.returncode, done.stderr) == (0, "")  # Typer's, which says it to nobody
        return
    error, hint = done.stderr.splitlines()
    assert (done.returncode, error) == (1, said)
    assert hint.startswith("hint: ")


@pytest.mark.slow
def test_closed_streams_cost_what_is_written_to_them_and_nothing_else(
    bundle_folder: Path, cases: Path, tmp_path: Path
) -> None:
    """A daemon may close all three: files that are opened then must not take their numbers, nor what is said there."""
    run = ("run", bundle_folder, cases, "--target", "onnxruntime:fp32", "-o")
    assert shell("", *run, tmp_path / "want.csv").returncode == 0
    want = (tmp_path / "want.csv").read_bytes()
    for at, how in enumerate(("2>&-", "<&- >&- 2>&-")):
        done = shell(how, *run, tmp_path / f"{at}.csv")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / f"{at}.csv").read_bytes() == want
    done = shell("2>&-", *run, "-")
    assert (done.returncode, done.stdout.encode()) == (0, want)
    done = shell(">&-", *run, "-")  # rows that are lost
    assert done.returncode == 1
    assert CLOSED in done.stderr.splitlines()


def test_what_is_opened_takes_the_place_of_no_stream() -> None:
    code = (
        "import os, sys; from mpmmu_rt.cli import _fill_streams; _fill_streams(); sys.exit(os.open('/', os.O_RDONLY))"
    )
    for how in ("<&- >&- 2>&-", ">&-", "<&-", "2>&-", ""):
        command = f"{shlex.join([sys.executable, '-c', code])} {how}"
        assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode > 2, how


# ---------------------------------------------------------------- signals

AT = """
import os, typer.core, typer.main
import mpmmu_rt.cli as cli
real = {place}
def killed(*given):
    os.kill(os.getpid(), {number})
    return real(*given)
{place} = killed
cli.main()
"""


@pytest.mark.parametrize("place", ["typer.main.get_command", "typer.core.TyperGroup.parse_args"])
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_outside_of_commands_has_its_code_and_two_lines(
    place: str, number: signal.Signals, code: int, said: str
) -> None:
    """Typer looks at all commands before it runs one, a tenth of a second that many a signal falls into."""
    command = [sys.executable, "-c", AT.format(place=place, number=int(number)), "doctor"]
    given = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=given)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines() == [
        f"error: {said}; what was written by then is whole",
        "hint: the same command starts again",
    ]


IMPORTING = """
import os, runpy, signal, sys
class Interrupts:
    def find_spec(name, path=None, target=None):
        if name == "mpmmu_rt.cli.bench":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts)
runpy.run_module("mpmmu_rt", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_while_the_commands_are_imported_has_its_code_and_two_lines() -> None:
    given = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IMPORTING, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=given)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == [
        "error: interrupted; nothing was begun",
        "hint: the same command starts again",
    ]


# ---------------------------------------------------------------- terminals


def at_a_terminal(columns: int, *arguments: object) -> tuple[int, str]:
    """The exit code of a command of ours, and all that its terminal got."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mpmmu_rt", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": str(columns)}
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += (more := os.read(ours, 4096))
            except OSError:  # Linux's end
                break
            if not more:
                break
    os.close(ours)
    return process.returncode, said.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 8, 40])
def test_no_terminal_is_too_narrow_to_work(bundle_folder: Path, cases: Path, tmp_path: Path, columns: int) -> None:
    code, said = at_a_terminal(columns, "run", bundle_folder, cases, "-o", tmp_path / "out.csv")
    assert code == 0, said
    with (tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


# ---------------------------------------------------------------- commands to be copied


def test_a_hint_can_be_copied_whatever_a_path_is_called(bundle_folder: Path, cases: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_folder, tmp_path / "my model's $(bundle)")
    case = read_manifest(cases).cases[0]
    images = ("--mammography", case.mammography, "--ultrasound", case.ultrasound)
    done = call("predict", folder, *images, "--target", "onnxruntime:fp32")
    (hint,) = re.findall(r"; `(mpmmu-rt verify .*)`$", done.stderr, re.MULTILINE)
    assert shlex.split(hint) == ["mpmmu-rt", "verify", str(folder), "--target", "onnxruntime:fp32"]
    done = call("verify", folder, "--target", "openvino:fp32", "--against", "onnxruntime:fp32")
    words = shlex.split(done.stderr.splitlines()[-1])
    assert words[:5] == ["hint:", "mpmmu-rt", "verify", str(folder), "MANIFEST"]
    rows = cases.read_text().replace("phantom-0000,", "her lesion,")
    cases.write_text(rows)
    done = call("explain", folder, cases, "--case", "none", "-o", tmp_path / "e")
    assert shlex.split(done.stderr.splitlines()[-1]) == ["hint:", "--case", "her lesion"]


def test_every_path_in_a_command_to_copy_is_quoted() -> None:
    found = [
        f"{path}: {said}"
        for path in (Path(__file__).parents[1] / "mpmmu_rt").rglob("*.py")
        for said in re.findall(r"mpmmu-rt [a-z]+ [^`\"]*", path.read_text(encoding="utf-8"))
        if re.search(r"\{(?!quoted\()[a-z_.]*(path|bundle|folder|system|output)\}", said)
    ]
    assert not found


def test_what_begins_as_an_option_does_is_told_from_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quoted(Path("-x.bundle")) == "./-x.bundle"
    assert [quoted(one) for one in ("--batch", 32, Path("a b"))] == ["--batch", "32", "'a b'"]
    _report.be_quiet(False)
    _report.next_command("run", Path("-x.bundle"), "--target", "onnxruntime:fp32")
    assert capsys.readouterr().err == "next: mpmmu-rt run ./-x.bundle --target onnxruntime:fp32\n"
    monkeypatch.setattr(sys, "argv", ["mpmmu-rt", "run", "-o", "o.csv", "--", "-x.bundle", "m.csv"])
    assert _report.command("--resume") == "mpmmu-rt run -o o.csv --resume -- -x.bundle m.csv"


# ---------------------------------------------------------------- what lies there already


def test_json_never_goes_over_an_image_or_another_file(bundle_folder: Path, cases: Path, tmp_path: Path) -> None:
    image = read_manifest(cases).cases[3].ultrasound
    assert image
    before = image.read_bytes()
    (tmp_path / "link.json").symlink_to(image)
    (tmp_path / "same.json").hardlink_to(image)
    for to in (image, tmp_path / "link.json", tmp_path / "same.json"):
        done = call("run", bundle_folder, cases, "-o", tmp_path / "out.csv", "--json", to)
        error, _ = done.stderr.splitlines()
        assert (done.exit_code, image.read_bytes()) == (1, before)
        assert error == f"error: {to} exists and is no JSON document, expected a free place or an earlier result"
    (tmp_path / "r.json").write_text('{"schema": "mpmmu-bench/2"}')
    error, _ = call("report", tmp_path / "r.json", "-o", image).stderr.splitlines()
    assert error == f"error: {image} exists and is no HTML page, expected a free place or an earlier result"
    assert image.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


def test_an_earlier_json_is_replaced_and_an_empty_file_is_free(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    for _ in range(2):
        assert call("inspect", bundle_folder, "--json", tmp_path / "x.json").exit_code == 0
    assert json.loads((tmp_path / "x.json").read_text())["schema"]


def test_json_never_goes_into_a_bundle_that_is_not_asked_of(bundle_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_folder, tmp_path / "other.bundle"))
    for name in ("bundle.json", "new.json"):
        done = call("inspect", bundle_folder, "--json", other / name)
        assert done.exit_code == 1
        assert "is a bundle and holds no other file, expected another place" in done.stderr
    Bundle.open(other)


def test_json_never_goes_over_what_other_commands_go_by(bundle_folder: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "base.json"
    baseline.write_text('{\n  "schema": "mpmmu-baseline/1"\n}\n')
    for path in (tmp_path / "b.verified.json", baseline):
        done = call("inspect", bundle_folder, "--json", path)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "is a record that other commands go by, expected a place for a result" in done.stderr
    assert baseline.read_text().startswith("{\n  ")
    for _ in range(2):
        assert call("inspect", bundle_folder, "--json", tmp_path / "found.json").exit_code == 0


def test_a_bundle_that_is_a_loop_of_links_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = call("verify", tmp_path / "a")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert "internal error" not in done.stderr


def test_json_of_verify_does_not_take_the_place_of_the_verdict(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    wanted = ("verify", folder, "--target", "onnxruntime:fp32")
    done = call(*wanted, "--json", tmp_path / "b.verified.json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "belongs to this command already, expected a file of its own" in done.stderr
    assert call(*wanted).exit_code == 0
    opened = Bundle.open(folder)
    assert look_up(opened, Target("onnxruntime", "fp32")).passed


def test_phantoms_replace_nothing_and_name_no_option_that_they_have_not(cases: Path) -> None:
    error, hint = call("phantom", 2, "-o", cases.parent).stderr.splitlines()
    assert (error, hint) == (
        f"error: {cases.parent} exists already, expected a free path",
        "hint: choose another -o",
    )


# ---------------------------------------------------------------- options that would do nothing


def test_a_frame_of_no_file_is_refused(bundle_folder: Path) -> None:
    done = call("verify", bundle_folder, "--frame", 1)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --frame 1 is given without a manifest, expected both")


def test_a_delay_is_no_longer_than_an_hour() -> None:
    """No server takes a number without end."""
    assert (delay_ms("1ms"), delay_ms("3600s")) == (1.0, 3.6e6)
    for text in ("3601s", "9" * 400, f"{'9' * 400}us"):
        with pytest.raises(UsageError, match=r"is no delay, expected milliseconds such as 2ms, or 0, and an hour at"):
            delay_ms(text)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--json", "{to}/x.json"], 2, "--json is given with --preview, which trains nothing and has no result"),
        (["--preview", "{image}"], 1, "phantom-0003.png is read here, expected another file"),
        (["--preview", "{manifest}"], 1, "manifest.csv belongs to this command already, expected a file of its own"),
    ],
)
def test_a_preview_has_a_place_of_its_own_and_no_result(
    cases: Path, tmp_path: Path, more: list[str], code: int, said: str
) -> None:
    """Images of patients lie where pictures do."""
    image = read_manifest(cases).cases[3].mammography
    assert image
    before = image.read_bytes(), cases.read_bytes()
    names: dict[str, Any] = {"to": tmp_path, "image": image, "manifest": cases}
    done = call("train", cases, "--preview", tmp_path / "p.png", *(one.format(**names) for one in more))
    assert done.exit_code == code
    assert said in done.stderr
    assert (image.read_bytes(), cases.read_bytes()) == before
    assert not (tmp_path / "x.json").exists()


def test_what_an_export_must_have_names_no_gpus_and_its_json_is_not_the_bundle(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle lists targets without: it would hold what was required, and be called without it."""
    done = call("export", checkpoint_folder, "-o", tmp_path / "b", "--require", "tensorrt-rtx:fp32@89")
    error, hint = done.stderr.splitlines()
    assert (done.exit_code, hint) == (2, "hint: --require tensorrt-rtx:fp32")
    assert error.startswith("error: --require tensorrt-rtx:fp32@89 names compute capabilities, expected")
    monkeypatch.chdir(tmp_path)
    done = call("export", checkpoint_folder, "--json", f"{checkpoint_folder.resolve().name}.bundle")
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "belongs to this command already, expected a file of its own" in done.stderr
