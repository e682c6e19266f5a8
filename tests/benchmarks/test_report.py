"""What every result says of itself: its command, its conditions, tables; and what is stored says it too."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks import report
from benchmarks.report import RESULTS, ROOT
from mpmmu_rt import machine
from mpmmu_rt.cli import app

# `python -m module arguments`, and what is said of it.
MADE_BY = re.compile(r"^Made by `(?:python -m )?(benchmarks[\w.]*|mpmmu-rt \w+)(?: [^`]*)?`(.*?\.)$", re.M | re.DOTALL)
STORED = sorted(RESULTS.rglob("*.md"))
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").rglob("*.py") if '__name__ == "__main__"' in path.read_text())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def wrong_with(text: str) -> str | None:
    """Whatever keeps a result from being made again by what it says; None if nothing does."""
    found = MADE_BY.search(text)
    if found is None:
        return "it names no command"
    group: Any = get_command(app)
    known = {module_of(path) for path in SCRIPTS} | {f"mpmmu-rt {name}" for name in group.commands}
    if found[1] in known:
        return None
    if re.search(r"\bgone\b", found[2]) and re.search(r"commit [0-9a-f]{7,40}\b", found[2]):
        return None
    return f"{found[1]} is no script, and no commit is named in which it stood"


def test_there_are_results_and_scripts() -> None:
    assert len(STORED) >= 10
    assert {"benchmarks.cpu.targets", "benchmarks.head.speed"} <= {module_of(path) for path in SCRIPTS}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_a_stored_result_names_the_command_that_makes_it_again(path: Path) -> None:
    assert wrong_with(path.read_text(encoding="utf-8")) is None


def test_a_result_without_a_command_or_of_an_unknown_script_is_found() -> None:
    assert wrong_with("# Title\n") == "it names no command"
    assert wrong_with("Made by `python -m benchmarks.cpu.targets tax`.\n") is None
    assert wrong_with("Made by `python -m benchmarks.cpu_targets tax`.\n") is not None
    assert wrong_with("Made by `python -m benchmarks.old A B`, which is\ngone: it stands in commit 613dfc9.\n") is None
    assert wrong_with("Made by `python -m benchmarks.old A B`, which is gone.\n") is not None
    assert wrong_with("Made by `python -m benchmarks.report`.\n") is not None
    assert wrong_with("Made by `mpmmu-rt evaluate b.bundle m.csv`, alone.\n") is None
    assert wrong_with("Made by `mpmmu-rt judge b.bundle`.\n") is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=module_of)
def test_a_script_names_its_own_command(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc is not None
    assert f"python -m {module_of(path)} " in doc.replace("\n", " ")


def run_here(folder: Path, *arguments: str) -> str:
    """What `command` is in a process that was started so, in `folder`."""
    script = folder / "benchmarks_of_a_test.py"
    script.write_text("from benchmarks.report import command\nprint(command())\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks_of_a_test", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_can_be_repeated_and_names_no_folder_outside_of_the_tree(tmp_path: Path) -> None:
    found = run_here(
        tmp_path,
        str(tmp_path / "some.bundle"),
        str(ROOT / "demo/reference.bundle"),
        "demo/other.bundle",
        f"--out={tmp_path / 'results'}",
        "openvino:int8",
        "--batch",
        "32",
    )
    want = "some.bundle demo/reference.bundle demo/other.bundle --out=results openvino:int8 --batch 32"
    assert found == f"python -m benchmarks_of_a_test {want}"


def test_a_heading_has_command_and_conditions() -> None:
    lines = report.heading("A title", ("pytest",)).splitlines()
    assert lines[0] == "# A title"
    assert lines[2] == f"Made by `{report.command()}`."
    text, facts = "\n".join(lines), machine.describe()
    assert text.count("\n\n") == 2
    for one in (facts["cpu"], *facts["cpu_features"], f"{facts['threads']} threads", f"Python {facts['python']}"):
        assert one in text
    assert f"commit {report.commit_of_tree()}." in text
    assert f"numpy {facts['packages']['numpy']}" in text
    assert f"pytest {pytest.__version__}" in text
    assert re.fullmatch(r"Load average \d+\.\d\d at the start\.", lines[-1])


def test_results_are_whole_or_the_earlier_ones(tmp_path: Path) -> None:
    report.save(tmp_path / "new", "x", {"a": 1}, "one")
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="reference"):
        report.save(tmp_path / "new", "x", loop, "two")
    assert json.loads((tmp_path / "new/x.json").read_text()) == {"a": 1}
    assert (tmp_path / "new/x.md").read_text() == "one"
    assert len(os.listdir(tmp_path / "new")) == 2


def test_a_commit_without_git_or_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.commit_of_tree() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.commit_of_tree() == "unknown"


def test_a_cell_is_one_line() -> None:
    assert report.table("a | b", [("x|y\nz", 1)]) == "| a | b |\n|---|---|\n| x\\|y z | 1 |\n"


def test_a_table_that_is_written_row_by_row_is_the_same() -> None:
    lines = [report.columns(" | b | c"), report.row(["x|y", 1, ""]), report.row([2, 3, 4])]
    assert "\n".join(lines) + "\n" == report.table(" | b | c", [("x|y", 1, ""), (2, 3, 4)])
    assert lines[0].splitlines()[1] == "|---|---|---|"
    assert lines[1] == "| x\\|y | 1 |  |"


def test_a_gpu_has_a_folder_of_its_own() -> None:
    assert report.folder_of("NVIDIA H100 80GB HBM3") == RESULTS / "nvidia-h100-80gb-hbm3"
