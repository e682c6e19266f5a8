"""What people read: tables that fit the terminal, wide and narrow, by words; figures without needless digits."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import figure
from mpmmu_rt.cli import _report, app

WIDTHS = (80, 40)


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 4, 5), result.stderr
    return result.stdout


def too_long(text: str, columns: int) -> list[str]:
    """Lines that are longer, but for a word (a path, a name) that can't be broken."""
    return [line for line in text.splitlines() if len(line) > columns and " " in line.strip()]


def images(manifest: Path) -> list[object]:
    folder = manifest.parent
    pair = [next((folder / modality).glob("*.png")) for modality in ("mammography", "ultrasound")]
    return ["--mammography", pair[0], "--ultrasound", pair[1]]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", ["inspect", "doctor", "verify", "verify own cases", "predict"])
def test_no_line_is_longer_than_the_terminal(
    command: str, columns: int, bundle_folder: Path, phantom_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments: dict[str, list[object]] = {
        "inspect": ["inspect", bundle_folder],
        "doctor": ["doctor"],
        "verify": ["verify", bundle_folder, "--no-record"],
        "verify own cases": [
            *("verify", bundle_folder, phantom_manifest, "--target", "openvino:fp32", "--no-record"),
        ],
        "predict": ["predict", bundle_folder, *images(phantom_manifest)],
    }
    text = printed(*arguments[command])
    assert text
    assert too_long(text, columns) == []
    for repr_of_python in ("{'", "['", "None", "Preprocessing(", "0.00e+00"):
        assert repr_of_python not in text


@pytest.mark.slow
def test_no_line_of_long_work_is_longer_either(
    bundle_folder: Path, int8_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `train`, `export` and `compare`; `bench` is held to it in test_bench.py."""
    from mpmmu_rt.cli import compare, export, train, verify
    from mpmmu_rt.model.evaluation import evaluate

    rng = np.random.default_rng(0)
    label, groups = np.arange(40) % 2, [str(row // 2) for row in range(40)]
    test = {name: evaluate(label, rng.random(40), groups, 0.5) for name in ("mammography", "ultrasound", "fused")}
    part = {"patients": 464, "malignant_patients": 195, "rows": 1200, "malignant_rows": 500}
    metrics = {"source": "a source that takes more than " * 4, "parts": {"validation": part}, "test": test}
    race = json.loads(printed("compare", bundle_folder, int8_folder, "--batch", 2, "--budget", "3s", "--json", "-"))
    moved = [{"name": "operators.attention_pool.Reciprocal", "a": 226, "b": None, "worse": True}]
    entry = Bundle.open(int8_folder).entry
    for columns in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(columns))
        for text in (
            train._describe(metrics),
            verify.checks_table(entry["parity"]["checks"]),
            _report.wrapped("\n".join(export.describe_precision(entry))),
            compare._describe(race),
            compare._describe(race | {"b": race["b"] | {"target": "openvino:int8"}, "moved": moved}),
            compare._describe(race | {"moved": moved}),
        ):
            assert too_long(text, columns) == []


def test_inspect_says_how_well_it_did_and_what_it_sees(bundle_folder: Path) -> None:
    text = printed("inspect", bundle_folder)
    size = Bundle.open(bundle_folder).preprocessing.size
    assert f"images: {size} x {size}, aspect ratio kept and padded with black" in text
    assert re.search(r"^probability +float32 +N$", text, re.MULTILINE)


# ---------------------------------------------------------------- tables


def test_a_table_is_aligned() -> None:
    assert _report.table(["name", "ms"], [["a", "1.50"], ["longer", "10.25"]]).splitlines() == [
        "name    ms",
        "------  -----",
        "a        1.50",
        "longer  10.25",
    ]


def test_a_table_that_does_not_fit_becomes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    header, rows = ["batch", "mean ms", ""], [["8", "1.50", "knee"], ["16", "-", ""]]
    monkeypatch.setenv("COLUMNS", "22")
    assert _report.fitted(header, rows).splitlines()[2:] == ["    8     1.50  knee", "   16        -"]
    monkeypatch.setenv("COLUMNS", "18")
    assert _report.fitted(header, rows).splitlines() == [
        *("batch 8: knee", "  mean ms: 1.50", "batch 16", "  mean ms: -"),
    ]
    assert _report.fitted(["stage", "ms"], [["a long name", "+1.5"], ["b", "2"]]).splitlines() == [
        *("stage        ms", "-----------  ----", "a long name  +1.5", "b               2")
    ]
    assert _report.fitted(["stage", "ms", "%"], [["a longer name", "+1.5", "9"], ["b", "2", "1"]]).splitlines() == [
        *("stage", "a longer name", "  ms: +1.5, %: 9", "b", "  ms: 2, %: 1")
    ]
    assert _report.fitted(["p50 ms", "p99.9 ms", "n"], [["1.50", "-", "7"]]).splitlines() == [
        *("p50 ms: 1.50", "p99.9 ms: -", "n: 7")
    ]


def test_the_longest_text_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [["openvino", "no", "needs the package `openvino`, which there is not"], ["torch", "ok", "2 GB"]]
    assert _report.fitted(["target", "", ""], rows).splitlines() == [
        "target",
        "--------  --  --------------------------",
        "openvino  no  needs the package",
        "              `openvino`, which there is",
        "              not",
        "torch     ok  2 GB",
    ]


def test_pairs_are_aligned_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [("flipped", "0 of 40, which is none"), ("|Δp|", "mean 0.01")]
    monkeypatch.setenv("COLUMNS", "40")
    assert _report.pairs(facts).splitlines() == ["flipped  0 of 40, which is none", "|Δp|     mean 0.01"]
    monkeypatch.setenv("COLUMNS", "24")
    assert _report.pairs(facts).splitlines() == ["flipped: 0 of 40, which", "  is none", "|Δp|: mean 0.01"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0.0, "0"), (-0.0, "0"), (1e-4, "1e-04"), (2.684e-6, "2.68e-06"), (5e-4, "5e-04"), (1.5e-4, "1.5e-04")),
        *((0.005, "0.005"), (1 / 32, "0.0312"), (0.35, "0.35"), (1.0, "1"), (12.0, "12"), (-3e-7, "-3e-07")),
    ],
)
def test_figures(value: float, said: str) -> None:
    assert figure(value) == said


# ---------------------------------------------------------------- a real terminal


def on_a_terminal(columns: int, *arguments: object) -> str:
    """What the program writes to a terminal so wide: both streams."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    command = [sys.executable, "-m", "mpmmu_rt", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's word for its end
            break
        if not part:
            break
        said += part
    os.close(ours)
    process.wait(timeout=60)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", WIDTHS)
def test_errors_and_notes_are_wrapped_on_a_terminal(columns: int, tmp_path: Path, bundle_folder: Path) -> None:
    text = on_a_terminal(columns, "verify", bundle_folder, "--target", "tensorrt:fp16", "--no-record")
    assert too_long(text, columns) == []
    assert re.match(r"error: (.+\n)(  .+\n)*hint: (.+\n)(  .+\n)*\Z", text), text


def test_a_command_that_is_wrapped_can_be_copied(tmp_path: Path) -> None:
    text = on_a_terminal(40, "phantom", 2, "-o", tmp_path / "a folder")
    command = text.partition("next: ")[2]
    assert " \\\n" in command
    shown = subprocess.run(
        ["bash", "-c", f"echo_() {{ printf '%s\\n' \"$@\"; }}; echo_ {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == ["mpmmu-rt", "run", "BUNDLE", str(tmp_path / "a folder/manifest.csv")]


@pytest.mark.parametrize(("columns", "lines"), [(80, 3), (40, 3)])
def test_what_stands_beside_a_bar_is_whole(columns: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    detail = "epoch 12 of 15, loss 0.598, validation AUC 0.739"
    text = _report._beside("training the mammography encoder", detail, wide=columns >= 60)
    assert text.splitlines()[0] == "training the mammography encoder"
    assert len(text.splitlines()) == lines
    assert " ".join(text.split()) == f"training the mammography encoder {detail}"
    assert max(map(len, text.splitlines())) <= 32


# ---------------------------------------------------------------- what next


def test_what_to_try_next_can_be_tried(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """Each line `next:` is a command that parses, and none is said with --quiet."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "a b.bundle"))
    said = {}
    for arguments in (
        ["phantom", 2, "-o", tmp_path / "few"],
        ["phantom", 60, "-o", tmp_path / "many"],
        ["verify", copy],
        ["run", copy, phantom_manifest, "-o", tmp_path / "out.csv"],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        (line,) = re.findall(r"^next: (.+)$", result.stderr, re.MULTILINE)
        program, name, *rest = shlex.split(line)
        assert program == "mpmmu-rt"
        group.commands[name].make_context(name, list(rest))
        said[tuple(map(str, arguments[:2]))] = line
    assert [line.split()[1] for line in said.values()] == ["run", "train", "run", "bench"]
    assert f"'{copy}' MANIFEST --require-verified" in said["verify", str(copy)]
    quiet = CliRunner().invoke(app, ["verify", str(copy), "--quiet"])
    assert (quiet.exit_code, "next:" in quiet.stderr) == (0, False)
