"""README and the pages of docs/: code blocks run or parse, and all that they name exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cli import app
from mpmmu_rt.model.phantom import write_phantoms
from tests.conftest import COMMAND_WITH_FEW_TREES

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
GROUP: Any = typer.main.get_command(app)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def outside_blocks(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


LINES = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line]
# Code in a sentence, which may be broken over two lines.
INLINE = [
    (page, " ".join(code.split())) for page in PAGES for code in re.findall(r"`([^`]+)`", outside_blocks(PAGES[page]))
]


# ---------------------------------------------------------------- Python


def head_of_eight() -> LogisticRegression:
    rng = np.random.default_rng(0)
    return LogisticRegression().fit(rng.random((40, 8)).astype(np.float32), np.arange(40) % 2)


def test_predict_example(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_folder, "model.bundle")
    write_phantoms(12, "cases", seed=0)
    names: dict[str, Any] = {}
    exec(blocks("README.md", "python")[0], names)
    assert len(names["prediction"].probability) == 1
    assert names["prediction"].decision[0] in ("benign", "malignant")


@pytest.mark.slow
def test_bring_your_own_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(blocks("README.md", "python")[1], {})
    assert Bundle.open(tmp_path / "own.bundle").entry["parity"]["passed"]


def test_head_example() -> None:
    names: dict[str, Any] = {"classifier": head_of_eight(), "n_features": 8}
    exec(blocks("docs/head.md", "python")[0], names)
    onnx.checker.check_model(names["graph"])
    assert [value.name for value in names["graph"].graph.output] == ["probability", "base_probability"]


def test_there_are_no_other_examples() -> None:
    """Every block is in a language that is looked at, and every Python block is run above."""
    assert {page: len(found) for page in PAGES if (found := blocks(page, "python"))} == {
        "README.md": 2,
        "docs/head.md": 1,
        "docs/ci.md": 1,  # run by test_ci_page.py
        "docs/serving.md": 2,  # run by serving/test_server.py
    }
    for page, text in PAGES.items():
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "python", "text", "yaml"}, page
        assert set(fences[1::2]) <= {""}, page
        assert len(fences) == 2 * sum(len(blocks(page, language)) for language in ("sh", "python", "text", "yaml")), (
            page
        )


# ---------------------------------------------------------------- commands


def parse(arguments: list[str]) -> None:
    """A command line of mpmmu-rt, through the parser that will read it; its name alone stands for the command."""
    name, *rest = arguments
    if name == "--help":
        return
    assert name in GROUP.commands, f"no such command {name}"
    if rest not in ([], ["--help"]):
        GROUP.commands[name].make_context(name, rest)  # raises a usage error for an unknown option


def made(arguments: list[str]) -> None:
    """`make TARGET … NAME=…`: the rules are there, and so are the variables that they read."""
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        known = rf"\$\({name}\)" if is_variable else rf"^{name}:"
        assert re.search(known, MAKEFILE, re.MULTILINE), argument


def installed(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= {*EXTRAS, "ctk", "cuda", "cudnn"}, extras


PROGRAMS = {"mpmmu-rt": parse, "make": made, "pip": installed}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_parse(page: str, line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    PROGRAMS[program](arguments)


@pytest.mark.parametrize(("page", "code"), [one for one in INLINE if one[1].startswith("mpmmu-rt ")])
def test_commands_in_sentences_parse(page: str, code: str) -> None:
    parse(shlex.split(code)[1:])


def test_there_are_commands() -> None:
    assert len([line for _, line in LINES if line.startswith("mpmmu-rt ")]) >= 11
    assert len([code for _, code in INLINE if code.startswith("mpmmu-rt ")]) >= 8


@pytest.mark.parametrize("wrong", ["verify --json", "bench b --batches 3", "prove b", "export --target", "run a b c"])
def test_a_wrong_command_is_seen(wrong: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Typer has its errors in a module of its own
        parse(wrong.split())
    said = caught.value.format_message() if hasattr(caught.value, "format_message") else str(caught.value)
    seen = "no such command|missing argument|no such option|requires an argument|unexpected extra argument"
    assert re.search(seen, said.lower()), said


def test_options_in_sentences_exist() -> None:
    commands = [GROUP, *GROUP.commands.values()]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    for page, code in INLINE:
        if code.startswith(("--", *(f"{name} --" for name in GROUP.commands))):
            for option in re.findall(r"(?<!\S)--[a-z-]+", code):
                assert option in known | {"--help"} | {one for given in GROUP.params for one in given.opts}, (
                    page,
                    code,
                )


# ---------------------------------------------------------------- what is named


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        assert not target.startswith("/"), target
        assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_exist(page: str) -> None:
    named = r"(?:mpmmu_rt|export|kernels|benchmarks|tests|docs|\.ci)/[\w/.*-]*"
    found = re.findall(rf"`({named})(?:::\w+)?`", PAGES[page])
    for name in found:
        assert list(ROOT.glob(name.rstrip("/"))), name
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)", PAGES[page]):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


def test_every_page_is_in_the_index() -> None:
    index = README.partition("## Pages\n")[2].partition("\n## ")[0]
    assert {page for page in PAGES if page != "README.md"} <= set(re.findall(r"\]\(([^)]+)\)", index))


def test_the_tree_is_the_tree() -> None:
    block = README.partition("## The tree\n\n")[2].partition("\n\n")[0]
    root, named = ROOT, []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = re.findall(r"(?:^ +|  )([\w.]+/)(?= )", line)
        assert folders, line
        root = ROOT if indent == 4 else root
        for folder in folders:
            named.append(folder)
            assert (root / folder).is_dir(), folder
        root = root / folders[0] if indent == 4 else root
    assert len(named) >= 9


# ---------------------------------------------------------------- the deployment, as README tells it

COMMANDS = [shlex.split(line, comments=True)[1:] for line in blocks("README.md", "sh")[2].splitlines()]
CASES = "mpmmu-rt phantom 12 -o cases"


def shorter(arguments: list[str]) -> list[str]:
    """The same command on fewer phantoms, for one epoch, for less than a second; training has fewer trees, too."""
    more = {"train": ["--epochs", "1"], "bench": ["--seconds", "0.2"]}.get(arguments[0], [])
    return [*("120" if argument == "600" else argument for argument in arguments), *more]


def masked(line: str) -> str:
    """Measured values as #, also those that the samples do not tell (-), and a count of samples behind them; other
    counts, names and single spaces stay, but for the target that `auto` comes to on this processor."""
    line = line.removesuffix("too few to tell")  # of the fewer phantoms of `shorter`
    line = re.sub(r"passed on \S+:fp32", "passed on #", line)
    values = r"-?\d+\.\d+(e[+-]\d+)?|\d{3,}|(?<!\S)-(?!\S)"
    return re.sub(r"# \d+ (?=#|\d+ of)", "# # ", re.sub(values, "#", " ".join(line.split())))


def start_training(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *COMMAND_WITH_FEW_TREES, *shorter(COMMANDS[0])]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the first command ran to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("deployment")
    return folder, finish(start_training(folder))[0]


@pytest.mark.slow
def test_the_deployment(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All five commands, in the order of README; and what it shows of their output is what they print."""
    folder, said = trained
    monkeypatch.chdir(folder)
    assert [arguments[0] for arguments in COMMANDS] == ["train", "export", "verify", "run", "bench"]
    assert f"`{CASES}`" in README
    for arguments in (shlex.split(CASES)[1:], *COMMANDS[1:]):
        result = CliRunner().invoke(app, shorter(arguments))
        assert result.exit_code == 0, (arguments, result.stderr)
        said += result.stdout + result.stderr
    printed = {masked(line) for line in said.splitlines()}
    (shown,) = blocks("README.md", "text")
    assert [line for line in shown.splitlines() if masked(line) not in printed] == []
    assert len((folder / "predictions.csv").read_text().splitlines()) == 13


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on(trained: tuple[Path, str], tmp_path: Path) -> None:
    """Killed between the two encoders, the same command ends with the same encoders and the same metrics."""
    whole, said = trained
    process = start_training(tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.training/mammography.state.safetensors").exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (tmp_path / "checkpoint").exists()
    again, remarks = finish(start_training(tmp_path))
    assert remarks.startswith("going on with the training in checkpoint.training")
    assert again == said
    for name in ("mammography.safetensors", "ultrasound.safetensors"):
        assert (tmp_path / "checkpoint" / name).read_bytes() == (whole / "checkpoint" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
