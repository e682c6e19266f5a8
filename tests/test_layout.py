"""What the packaging promises: one list of packages, two links, extras that can be installed together."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mpmmu_rt import __version__, _optional

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKS = {"mpmmu_rt/export": "../export", "mpmmu_rt/kernels": "../kernels"}
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[A-Za-z0-9._-]+", requirement)[0] for requirement in requirements]  # type: ignore[index]


def packages_in_tree() -> set[str]:
    """Folders with an `__init__.py` below the package, links followed."""
    found, todo = set(), [ROOT / "mpmmu_rt"]
    while todo:
        folder = todo.pop()
        if (folder / "__init__.py").is_file():
            found.add(".".join(folder.relative_to(ROOT).parts))
            todo += [child for child in folder.iterdir() if child.is_dir() and child.name != "__pycache__"]
    return found


def test_pyproject_lists_exactly_the_packages_of_the_tree() -> None:
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages_in_tree()


def test_the_folders_that_are_mapped_are_the_ones_the_links_point_to() -> None:
    mapped = dict(PYPROJECT["tool"]["setuptools"]["package-dir"])
    assert mapped.pop("mpmmu_rt") == "mpmmu_rt"
    for link, target in LINKS.items():
        path = ROOT / link
        assert path.is_symlink()
        assert path.readlink() == Path(target)
        assert path.resolve() == ROOT / mapped.pop(link.replace("/", "."))
    assert mapped == {}


def test_git_tracks_the_links_as_links() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: .git is missing")
    listed = subprocess.run(["git", "ls-files", "-s", *LINKS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split("\t")[1]: line.split()[0] for line in listed.stdout.splitlines()} == dict.fromkeys(
        LINKS, "120000"
    )


def test_every_extra_that_an_error_recommends_exists_and_brings_the_package() -> None:
    distributions = {
        "sklearn": "scikit-learn",
        "tensorrt_rtx": "tensorrt-rtx",
        "onnx_ir": "onnx-ir",
        "cuda": "cuda-bindings",
        "cupy": "cupy-cuda13x",
        "cupyx": "cupy-cuda13x",
    }
    for module, extra in _optional._EXTRAS.items():
        assert distributions.get(module, module) in names(EXTRAS[extra]), module


def test_no_extra_installs_both_onnxruntimes() -> None:
    runtimes = {extra: {"onnxruntime", "onnxruntime-gpu"} & set(names(wanted)) for extra, wanted in EXTRAS.items()}
    assert runtimes["cpu"] == {"onnxruntime"}
    assert runtimes["cuda"] == runtimes["cuda-ort"] == {"onnxruntime-gpu"}
    assert max(len(found) for found in runtimes.values()) == 1


def test_onnxruntime_on_a_gpu_brings_no_tensorrt() -> None:
    """Its licence, and its gigabytes, are for those who ask for it."""
    brought = names(EXTRAS["cuda-ort"])
    assert not [name for name in brought if name.startswith("tensorrt")]
    assert set(brought) < set(names(EXTRAS["cuda"]))


def test_the_base_installation_is_light() -> None:
    """simplejpeg, 1 MB: Pillow drops libjpeg's warnings, and with them what tells a picture from half of one."""
    assert set(names(PYPROJECT["project"]["dependencies"])) == {"numpy", "pillow", "simplejpeg", "typer"}


def test_evaluating_a_bundle_takes_scipy_alone() -> None:
    assert names(EXTRAS["evaluate"]) == ["scipy"]


def test_the_version_is_written_twice_and_the_same() -> None:
    assert PYPROJECT["project"]["version"] == __version__


@pytest.mark.slow
def test_the_wheel_holds_every_package_once(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy of the tracked tree: a build leaves build/ and egg-info where it runs
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("mpmmu_rt", "export", "kernels"):
        subprocess.run(["cp", "-a", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = [name for name in wheel.namelist() if ".dist-info/" not in name]
    want = {f"mpmmu_rt/{path.relative_to(ROOT / 'mpmmu_rt')}" for path in (ROOT / "mpmmu_rt").rglob("*.py")}
    for link in LINKS:
        want |= {f"{link}/{path.relative_to(ROOT / link)}" for path in (ROOT / link).rglob("*.py")}
    want |= {f"mpmmu_rt/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.cu*")}
    native = [path for path in (ROOT / "mpmmu_rt/native").rglob("*") if path.is_file()]
    want |= {f"mpmmu_rt/{path.relative_to(ROOT / 'mpmmu_rt')}" for path in native}
    assert sorted(held) == sorted(want | {"mpmmu_rt/py.typed"})
    assert {"mpmmu_rt/export/build.py", "mpmmu_rt/kernels/reference.py", "mpmmu_rt/native/include/mpmmu.h"} <= set(held)


def test_type_checkers_find_the_installed_package(tmp_path: Path) -> None:
    """They don't run import hooks, so that the package must be found on a path, with its marker beside it."""
    script = (
        "import importlib.machinery, pathlib, sys\n"
        "spec = importlib.machinery.PathFinder.find_spec('mpmmu_rt')\n"
        "sys.exit(not (spec and spec.origin and pathlib.Path(spec.origin).with_name('py.typed').exists()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == 0, "make clean, and again: this environment was installed with an import hook"
