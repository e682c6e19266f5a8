"""The bundle: the deployable folder, and the only thing that crosses from export to runtime.

    bundle.json          everything there is to know, and the SHA-256 and size of every other file
    onnx/*.onnx          `mammography`, `ultrasound` (pixels → feature_map), `attention_pool` (both feature maps →
                         embedding), `head` (embedding → probability) and `model` (both pixels → probability,
                         embedding); dynamic batch; they share
    onnx/weights.bin     the weights, each stored once
    golden/golden.npz    a few inputs and the original's output of every stage

`bundle.json` is a JSON object with the keys

    schema         "mpmmu-bundle/1"
    name           what the model is called
    trained        false for the reference model: its probabilities mean nothing
    preprocessing  size and fit (`mpmmu_rt.images.Preprocessing`)
    threshold      a probability at or above it is called malignant
    classes        ["benign", "malignant"]
    tensors        name → {dtype, shape}; shape counts cases as "N"
    graphs         graph → path
    golden         path
    targets        the targets that the export has verified
    model, card, provenance, parity: for people; `inspect` prints them
    files          path → {sha256, bytes}, every file of the bundle but bundle.json

A bundle is written to a temporary folder and renamed. Opening it checks the schema, and the size and digest of
every listed file, before anything is deserialised; unlisted files are never read. It never contains a pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np

from .errors import BundleError, DigestMismatch
from .files import MAX_JSON_BYTES, parse_json_object, read_bounded, sha256_file
from .images import Preprocessing
from .spec import Array, TensorSpec

SCHEMA = "mpmmu-bundle/1"
MANIFEST = "bundle.json"
MAX_FILE_BYTES = 8 * 2**30
MAX_GOLDEN_BYTES = 2**28
CLASSES = ("benign", "malignant")

Graph = Literal["mammography", "ultrasound", "attention_pool", "head", "model"]
GRAPHS: tuple[Graph, ...] = get_args(Graph)
_HINT = "export the bundle again with `mpmmu-rt export`"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: checked facts and paths. Holds no engine and no file handle."""

    path: Path
    entry: Mapping[str, Any]
    digest: str  # SHA-256 of bundle.json, which holds the digests of all the rest
    tensors: Mapping[str, TensorSpec]
    preprocessing: Preprocessing
    threshold: float

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open and check a bundle. Raises `BundleError`, or `DigestMismatch` for an altered file."""
        if not path.is_dir():
            raise BundleError(f"{path} is not a folder, expected a bundle", hint=_HINT)
        manifest = path / MANIFEST
        data = read_bounded(manifest, MAX_JSON_BYTES, BundleError, _HINT)
        entry = parse_json_object(manifest, data, BundleError, _HINT)
        if entry.get("schema") != SCHEMA:
            raise BundleError(
                f"{manifest} has the schema {entry.get('schema')!r}, this version reads `{SCHEMA}`",
                hint="export the bundle again with this version of mpmmu-rt",
            )
        try:
            bundle = cls(
                path=path,
                entry=entry,
                digest=hashlib.sha256(data).hexdigest(),
                tensors=_tensors(entry),
                preprocessing=Preprocessing.from_json(_mapping(entry, "preprocessing")),
                threshold=_threshold(entry),
            )
            bundle._check_files()
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{manifest} is incomplete or malformed: {error!r}", hint=_HINT) from error
        return bundle

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def trained(self) -> bool:
        return self.entry["trained"] is True

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.entry["targets"])

    def graph(self, graph: Graph) -> Path:
        return self.path / str(self.entry["graphs"][graph])

    def golden(self) -> dict[str, Array]:
        """The golden vectors: `<modality>.pixels`, `<modality>.feature_map`, `embedding`, `probability`."""
        path = self.path / self.entry["golden"]
        data = read_bounded(path, MAX_GOLDEN_BYTES, BundleError, _HINT)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as vectors:
                return {name: vectors[name] for name in vectors.files}
        except (ValueError, OSError, BadZipFile) as error:
            raise BundleError(f"{path} is not a readable .npz file: {error}", hint=_HINT) from error

    def _check_files(self) -> None:
        files = _mapping(self.entry, "files")
        used = [*_mapping(self.entry, "graphs").values(), self.entry["golden"]]
        absent = [name for name in used if name not in files]
        absent += [graph for graph in GRAPHS if graph not in self.entry["graphs"]]
        if absent:
            raise BundleError(f"{self.path / MANIFEST} does not list {absent[0]}, expected its digest", hint=_HINT)
        for name, facts in files.items():
            _check_file(self.path, name, int(facts["bytes"]), str(facts["sha256"]))


def _check_file(folder: Path, name: str, size: int, digest: str) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise BundleError(f"{folder / MANIFEST} lists the path `{name}`, expected one inside the bundle", hint=_HINT)
    path = folder / relative
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing or a link, expected a file of {size} bytes", hint="copy the whole bundle")
    got = path.stat().st_size
    if got != size or size > MAX_FILE_BYTES or sha256_file(path) != digest:
        raise DigestMismatch(
            f"{path} has {got} bytes and another SHA-256 than bundle.json says, expected {size} bytes",
            hint="the bundle was altered or damaged: do not use it; copy or export it again",
        )


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry[key]
    if not isinstance(value, dict):
        raise TypeError(f"`{key}` is a {type(value).__name__}, expected an object")
    return value


def _tensors(entry: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec.from_json({"name": name} | spec) for name, spec in _mapping(entry, "tensors").items()}


def _threshold(entry: Mapping[str, Any]) -> float:
    threshold = entry["threshold"]
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        raise ValueError(f"`threshold` is {threshold!r}, expected a number in 0..1")
    if tuple(entry["classes"]) != CLASSES:
        raise ValueError(f"`classes` is {entry['classes']!r}, expected {list(CLASSES)}")
    return threshold


def seal(folder: Path, entry: Mapping[str, Any]) -> None:
    """Write `bundle.json` for the files that lie in `folder`: the last step of an export. May be called again."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"schema": SCHEMA, **entry, "files": files}, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
