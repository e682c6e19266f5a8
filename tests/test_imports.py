"""The runtime imports with NumPy alone, under one name, and does not know the exporter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mpmmu_rt"
HEAVY = (
    *("torch", "sklearn", "skl2onnx", "skops", "safetensors", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *(
        "tensorrt",
        "tensorrt_rtx",
        "cupy",
        "PIL",
        "pydicom",
        "matplotlib",
        "scipy",
        "rich",
        "joblib",
        "simplejpeg",
        "imagecodecs",
    ),
)
BLOCK = f"import sys\nfor name in {HEAVY!r}:\n    sys.modules[name] = None\n"
COMMANDS = (
    *(
        "train",
        "ablate",
        "evaluate",
        "explain",
        "export",
        "verify",
        "run",
        "predict",
        "bench",
        "compare",
        "report",
        "inspect",
    ),
    *("doctor", "phantom", "repository", "serve", "native"),
)


def runtime_files() -> list[Path]:
    """Every source file that a device has: all but the model and the exporter."""
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("model", "export")]
    return sorted({*files, *(PACKAGE / "kernels").glob("*.py")})  # rglob does not follow links


def module_name(path: Path) -> str:
    parts = ("mpmmu_rt", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python(code: str, *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_every_runtime_module_imports_without_any_heavy_package(tmp_path: Path) -> None:
    names = [module_name(path) for path in runtime_files() if path.name != "__main__.py"]
    assert {"mpmmu_rt.bundle", "mpmmu_rt.kernels", "mpmmu_rt.engines.onnxruntime", "mpmmu_rt.cli.train"} <= set(names)
    result = python(f"{BLOCK}import importlib\nfor n in {names!r}:\n    importlib.import_module(n)", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_runtime_does_without_what_windows_lacks(bundle_folder: Path, tmp_path: Path) -> None:
    """Every module of it imports, every command helps, and a bundle runs, without the modules of POSIX."""
    names = [module_name(path) for path in runtime_files() if path.name != "__main__.py"]
    code = f"""import sys
for name in {("resource", "fcntl", "pwd", "grp", "termios")!r}:
    sys.modules[name] = None
import importlib, os
for n in {names!r}:
    importlib.import_module(n)
del os.sysconf, os.sched_getaffinity
import contextlib, io
from mpmmu_rt.cli import app
for command in {COMMANDS!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            app([command, "--help"], prog_name="mpmmu-rt")
        except SystemExit as end:
            assert not end.code, command
    assert out.getvalue().startswith("Usage: mpmmu-rt " + command)
from mpmmu_rt import load, stability
before = stability.take()
with load({str(bundle_folder)!r}) as predictor:
    golden = predictor.bundle.golden()
    pixels = {{name: golden[name + ".pixels"] for name in ("mammography", "ultrasound")}}
    assert abs(predictor.predict(pixels).probability - golden["probability"]).max() < 1e-4
seen = stability.observe(before, stability.take())
assert seen.switches_per_s is None and seen.seconds > 0
assert "context switches" in stability.judge(seen, 1).not_known
"""
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_help_of_every_command_works_without_any_heavy_package(tmp_path: Path) -> None:
    code = f"""{BLOCK}
from mpmmu_rt.cli import app
import contextlib, io
for arguments in [[], *([command] for command in {COMMANDS!r})]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            app([*arguments, "--help"], prog_name="mpmmu-rt")
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
    assert out.getvalue().startswith(" ".join(["Usage: mpmmu-rt", *arguments])), out.getvalue()
    if not arguments:
        shown = {{line.split()[0] for line in out.getvalue().partition("Commands:")[2].splitlines() if line.strip()}}
        assert shown == set({COMMANDS!r}), shown
"""
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("what", "brings"),
    [
        ("import mpmmu_rt", ["mpmmu_rt"]),
        ("from mpmmu_rt import load", ["mpmmu_rt", "numpy"]),
        ("import pytest; before = set(sys.modules); import mpmmu_rt.pytest_plugin", ["mpmmu_rt"]),
    ],
)
def test_the_package_pulls_in_numpy_and_nothing_else(what: str, brings: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nbefore = set(sys.modules)\n{what}\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(name for name in tops - set(sys.stdlib_module_names) if not name.startswith('__editable__')))"
    )
    result = python(code, cwd=tmp_path)
    assert result.stdout.split() == brings, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["export", "kernels"])
def test_the_folder_in_the_root_is_no_second_identity(package: str) -> None:
    # The exporter's own imports come before its guard: only the heavy packages may be needed to get there.
    result = python(f"import {package}")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == f"ImportError: import it as mpmmu_rt.{package}"


def imported(tree: ast.AST, package: str) -> set[str]:
    """The absolute names of everything that is imported, at any depth; `package` resolves the relative ones."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def forbidden(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("mpmmu_rt.model", "mpmmu_rt.export"))}


def test_no_runtime_module_imports_the_model_or_the_exporter() -> None:
    offenders = {}
    for path in runtime_files():
        package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
        if package != "mpmmu_rt.cli" and (found := forbidden(imported(ast.parse(path.read_text()), package))):
            offenders[path.name] = found
    assert offenders == {}


def test_the_command_line_imports_the_model_and_the_exporter_only_inside_functions() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        outside = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
        assert forbidden(imported(outside, "mpmmu_rt.cli")) == set(), path.name
    assert forbidden(imported(ast.parse((PACKAGE / "cli" / "export.py").read_text()), "mpmmu_rt.cli"))


@pytest.mark.parametrize(
    "source",
    [
        "from mpmmu_rt.model import checkpoint",
        "def f():\n    import mpmmu_rt.export.build",
        "from .model.encoder import Encoder",
        "from . import export",
        "from mpmmu_rt import model",
    ],
)
def test_the_check_sees_every_form_of_import(source: str) -> None:
    assert forbidden(imported(ast.parse(source), "mpmmu_rt"))
