"""docs/promises.md: the tests that it names exist, no promise of README is missing; and what no other test holds."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.engines import known_engine
from mpmmu_rt.engines.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from mpmmu_rt.errors import ParityError
from mpmmu_rt.export import Wanted, export_bundle
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import Array, Target

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`\s]+\.py::\w+)`", PAGE)))
NUMBERS = {9: "Nine", 10: "Ten", 11: "Eleven", 12: "Twelve"}
SECTIONS = dict(re.findall(r"^## (.+)\n([\s\S]*?)(?=^## |\Z)", PAGE, re.MULTILINE))


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert function.startswith("test_")
    assert function in functions_of(ROOT / path)


def test_nothing_that_looks_like_a_test_escapes() -> None:
    assert len(NAMED) > 60
    assert {match[1:-1] for match in re.findall(r"`[^`\s]*::[^`]*`", PAGE)} == set(NAMED)


def test_every_promise_has_its_tests() -> None:
    promises = re.findall(r"^- \*\*(.+?)\.?\*\*", PAGE.partition("\n## ")[0], re.M)
    assert f"[{NUMBERS[len(promises)]} promises](docs/promises.md)" in README
    *explained, others = SECTIONS
    assert promises == explained
    assert others == "What else is claimed"
    for title in promises:
        assert re.findall(r"^- `tests/.+::\w+`", SECTIONS[title], re.MULTILINE), title


def test_every_other_claim_names_what_holds_it() -> None:
    claims = re.split(r"^- ", SECTIONS["What else is claimed"], flags=re.MULTILINE)[1:]
    assert len(claims) > 20
    untested = [claim for claim in claims if not re.search(r"^  - `tests/.+::\w+`$", claim, re.MULTILINE)]
    assert [claim.partition(":")[0] for claim in untested] == ["`make` and nothing else on a fresh machine"]


# ---------------------------------------------------------------- what no other test holds


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed and sealed again."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


def entry_of(folder: Path) -> dict[str, object]:
    entry: dict[str, object] = json.loads((folder / "bundle.json").read_text())
    return entry


@pytest.mark.slow
def test_run_takes_listed_targets_only(folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert call("run", folder, phantom_manifest, "-o", out, "--target", "openvino:fp32").exit_code == 0
    seal(folder, entry_of(folder) | {"targets": ["onnxruntime:fp32"]})
    result = call("run", folder, phantom_manifest, "-o", tmp_path / "no.csv", "--target", "openvino:fp32")
    assert result.exit_code == 2
    assert "error: openvino:fp32 was not proven when " in result.stderr
    assert "expected one of onnxruntime:fp32" in result.stderr
    assert not (tmp_path / "no.csv").exists()


def test_run_warns_of_what_was_built_and_never_run(folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """As an export without a GPU marks an engine; here of a target that runs on this machine."""
    out, said = tmp_path / "out.csv", "warning: openvino:fp32 was built and never run when "
    command = ("run", folder, phantom_manifest, "-o", out, "--overwrite", "--target", "openvino:fp32")
    assert said not in call(*command).stderr
    seal(folder, entry_of(folder) | {"precision": {"openvino:fp32": {"passed": None, "reason": "", "engines": {}}}})
    result = call(*command)
    assert result.exit_code == 0
    assert said in result.stderr


@pytest.mark.slow
def test_run_and_bench_say_where_the_head_runs(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    target = ("--target", "openvino:fp32", "--json", "-")
    ran = call("run", bundle_folder, phantom_manifest, "-o", tmp_path / "out.csv", *target)
    assert json.loads(ran.stdout)["head_target"] == "onnxruntime:fp32"
    assert "on openvino:fp32 (head on onnxruntime:fp32)" in ran.stderr
    measured = json.loads(call("bench", bundle_folder, "--batch", 2, "--seconds", 0.1, *target).stdout)
    assert measured["head_target"] == "onnxruntime:fp32"
    assert "head (on onnxruntime:fp32)" in measured["contract"]


@pytest.mark.slow
def test_bench_announces_an_untrained_model(folder: Path) -> None:
    command = ("bench", folder, "--batch", 2, "--seconds", 0.1)
    assert "UNTRAINED" not in call(*command).stderr
    seal(folder, entry_of(folder) | {"trained": False})
    assert "UNTRAINED" in call(*command).stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_openvinos_answers_are_the_same_in_every_batch(bundle_folder: Path, int8_folder: Path, precision: str) -> None:
    """Embeddings to the bit. The head runs on ONNX Runtime, on the whole batch, and rounds by it."""
    if problem := known_engine(Target("openvino", precision)).problem(precision):
        pytest.skip(str(problem))
    pixels, _ = phantom_pixels(35, seed=31, preprocessing=Preprocessing(size=48))
    folder, target = int8_folder if precision == "int8" else bundle_folder, f"openvino:{precision}"
    with load(folder, target, threads=2, unproven=True) as predictor:
        alone = [predictor.predict({name: array[[row]] for name, array in pixels.items()}) for row in range(35)]
        for count in (2, 7, 32, 35):
            together = predictor.predict({name: array[:count] for name, array in pixels.items()})
            for row, one in zip(range(count), alone, strict=False):
                np.testing.assert_array_equal(together.embedding[row], one.embedding[0])
                assert abs(together.probability[row] - one.probability[0]) <= 1e-6
    assert len({float(one.probability[0]) for one in alone}) > 10, "cases that are mixed up would pass"


class Reversing:
    """Computes well, and gives a batch of 7 back in reverse order."""

    def __init__(self, session: OnnxRuntimeSession) -> None:
        self._session, self.inputs, self.outputs = session, session.inputs, session.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = self._session.run(feeds)
        return {name: array[::-1].copy() if len(array) == 7 else array for name, array in found.items()}

    def close(self) -> None:
        self._session.close()


class Mixing(OnnxRuntime):
    def load(self, graph: Path, precision: str, threads: int) -> Any:
        session = super().load(graph, precision, threads)
        return Reversing(session) if graph.stem == "head_onnxruntime" else session


class Corner(nn.Module):
    """Pixels uint8 [N, 1, 32, 32] to an embedding of four."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255).flatten(1)[:, 100::256]


@pytest.mark.slow
def test_an_engine_that_mixes_rows_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine that exchanges cases in batches of one size only: `export` must see it, as `verify` does."""
    torch.manual_seed(0)
    pixels, label = phantom_pixels(40, seed=2, preprocessing=Preprocessing(size=32))
    with torch.inference_mode():
        parts = [Corner()(torch.from_numpy(array)).numpy() for array in pixels.values()]
    head = LogisticRegression().fit(np.concatenate(parts, 1), label)
    arguments = {"head": head, "preprocessing": Preprocessing(size=32), "wanted": Wanted(())}
    assert export_bundle(tmp_path / "good.bundle", mammography=Corner(), ultrasound=Corner(), **arguments)
    monkeypatch.setattr("mpmmu_rt.engines.onnxruntime.ENGINE", Mixing())
    with pytest.raises(ParityError, match=r"batch 7 .*no bundle was written"):
        export_bundle(tmp_path / "bad.bundle", mammography=Corner(), ultrasound=Corner(), **arguments)
    assert not (tmp_path / "bad.bundle").exists()


@pytest.mark.parametrize("count", [1, 2, 7, 32, 35])
def test_export_and_verify_try_the_batches_that_are_named(bundle_folder: Path, count: int) -> None:
    assert str(count) in re.split(r"[ ,]+", SECTIONS["The same decisions"])
    names = {check["name"] for check in Bundle.open(bundle_folder).entry["parity"]["checks"]}
    assert f"batch {count} against batch 1" in names


def test_an_older_python_is_refused_in_two_lines(tmp_path: Path) -> None:
    """The recipe of the Makefile, with an interpreter that says it is older."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    older = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info, sys.version = (3, 10, 4), '3.10.4 (main)'; exec(sys.argv[2])"
    older.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$@"\n')
    older.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", f"PYTHON={older}", f"VENV={venv}", f"{venv}/.installed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("make")] == [
        "error: this is Python 3.10.4, expected 3.11 or newer",
        "hint: make PYTHON=python3.11",
    ]
    assert not venv.exists()


def test_one_lowest_python_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "Python 3.11 or newer" in README
