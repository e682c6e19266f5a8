"""On a borrowed GPU: what `benchmarks.gpu.pack` made becomes a bundle again, and an environment with onnxruntime-gpu.

Needs NumPy and the standard library. Nothing that is installed is touched: the environment is a folder of links to it,
without the onnxruntime that is there, of which only one may be installed.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import venv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.gpu.drawn import drawn
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import UsageError

ARCHIVE, RECIPES, SCALES = "files.tar.xz", "recipes.json", "scales.npz"
BUNDLE, EXPECTED = "reference.bundle", "expected.npz"
_HINT = "make it with `make gpu-pack`, and carry all of it"


def unpack_bundle(pack: Path, into: Path) -> tuple[Path, Path]:
    """Write the bundle and its expected answers to the folder `into`; returns both paths.

    Raises `UsageError` for a pack that is none, and `BundleError` where any file is not the one that was exported.
    """
    extract(pack / ARCHIVE, into)
    scales = dict(np.load(io.BytesIO((into / SCALES).read_bytes()), allow_pickle=False))
    for recipe in json.loads((into / RECIPES).read_text(encoding="utf-8")):
        values = drawn(recipe["name"], tuple(recipe["shape"]))
        values = values.reshape(len(values), -1) * scales[recipe["name"]][:, None]
        path = into / BUNDLE / recipe["file"]
        with path.open("r+b") as file:
            file.seek(recipe["offset"])
            file.write(values.astype(recipe["element"]).tobytes())
    Bundle.open(into / BUNDLE)
    return into / BUNDLE, into / EXPECTED


def extract(archive: Path, into: Path) -> None:
    try:
        with tarfile.open(archive) as opened:
            into.mkdir(parents=True, exist_ok=True)
            opened.extractall(into, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{archive} can't be read: {reason}; expected a pack", hint=_HINT) from error


def environment(pack: Path, into: Path) -> Path:
    """An environment with what is installed here, but the onnxruntime of the pack; returns its interpreter."""
    venv.EnvBuilder(symlinks=True, clear=True).create(into)
    (packages,) = into.glob("lib/python*/site-packages")
    for path in installed(sys.path):
        link(path, packages)
    for own in packages.glob("onnxruntime*"):
        own.unlink()
    extract(pack / ARCHIVE, packages)
    return into / "bin/python"


def installed(path: Iterable[str]) -> list[Path]:
    """The folders on the path that packages are installed to, in order."""
    return [Path(one) for one in path if Path(one).name in ("site-packages", "dist-packages") and Path(one).is_dir()]


def link(source: Path, target: Path) -> None:
    """Every entry of `source` into `target`, where it stands first; folders that both have are joined."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.name == "__pycache__":
            continue
        if not place.is_symlink() and not place.exists():
            place.symlink_to(entry.absolute(), target_is_directory=entry.is_dir())
        elif place.is_dir() and entry.is_dir() and not (place / "__init__.py").exists():
            if place.is_symlink():  # of a namespace that lies in several places
                first = place.resolve()
                place.unlink()
                place.mkdir()
                link(first, place)
            link(entry, place)
