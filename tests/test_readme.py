"""The README's examples: Python blocks run, commands parse, what it names exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\s*mpmmu-rt (.+?)(?:\s*#.*)?$", README, re.MULTILINE)


class Corner(nn.Module):
    """Pixels to an embedding of four: every 56th pixel."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255).flatten(1)[:, ::12544]


def test_predict_example(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_folder, "model.bundle")
    golden = Bundle.open(bundle_folder).golden()
    names: dict[str, Any] = {"mg": golden["mammography.pixels"], "us": golden["ultrasound.pixels"]}
    exec(PYTHON[0], names)
    np.testing.assert_allclose(names["prediction"].probability, golden["probability"], atol=1e-4)


def test_bring_your_own_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    head = LogisticRegression().fit(rng.random((40, 8)).astype(np.float32), np.arange(40) % 2)
    exec(PYTHON[1], {"Path": Path, "module1": Corner(), "module2": Corner(), "classifier": head})
    assert Bundle.open(tmp_path / "own.bundle").entry["parity"]["passed"]


def test_there_are_examples() -> None:
    assert len(PYTHON) == 2
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    name, *arguments = shlex.split(command)
    group: Any = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments)  # raises a usage error for an unknown option


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:mpmmu_rt|export|kernels|benchmarks|tests)/[\w/.]+)`", README):
        assert (ROOT / name).exists(), name
