"""Writes a Triton model repository: two models of Triton's Python backend that run our Predictor on a bundle.

models/mpmmu/config.pbtxt          pixels uint8 [n, 1, S, S] of both modalities, batched across requests
models/mpmmu/1/model.py            a few lines: `mpmmu_rt.serving.models` does the work, and must be installed
models/mpmmu/1/bundle/             the bundle
models/mpmmu_files/config.pbtxt    one case's two encoded files, decoded and predicted
models/mpmmu_files/1/model.py
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mpmmu_rt.bundle import Bundle, target_folder
from mpmmu_rt.engines import known_engine
from mpmmu_rt.errors import UsageError
from mpmmu_rt.folders import Kind, atomic_folder, files_in
from mpmmu_rt.spec import MODALITIES, StrPath, Target

from . import config

MARKER = ".mpmmu-repository"  # Triton passes over files here
KIND = Kind(MARKER, listed=True)  # other models may stand beside ours
MOST = 32  # what `verify` proves, and `bench` measures
_MODEL = '''\
"""Written by `mpmmu-rt repository`. The work is done in the package: mpmmu_rt/serving/models.py."""

import sys

import triton_python_backend_utils

try:
    from mpmmu_rt.serving.models import {base}
except ImportError as cause:
    raise ImportError(
        f"error: mpmmu_rt can't be imported by Triton's Python {{sys.version.split()[0]}} ({{cause}}), "
        "expected it in the environment that the server runs in\\n"
        "hint: pip install 'mpmmu-rt[{extra}]' there, of the version that wrote this repository"
    ) from cause


class TritonPythonModel({base}):
    triton = triton_python_backend_utils
'''


@dataclass(frozen=True)
class Served:
    """What is asked of a repository. name: of the model, and the start of the others'. version: the number of its
    folder, which a client may ask for. most: the largest batch, None for what the target is made for."""

    target: Target
    name: str = "mpmmu"
    version: int = 1
    instances: int = 1
    delay_ms: float = 2.0
    most: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise UsageError(
                f"the model is to be called `{self.name}`, expected letters, digits, `_`, `.` and `-`, at most 64",
                hint="--name mpmmu",
            )
        for name, value in (("instances", self.instances), ("version", self.version)):
            if value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1", hint=f"--{name} 1")

    @property
    def files_name(self) -> str:
        return f"{self.name}_files"


def write_repository(bundle: Bundle, output: StrPath, asked: Served, *, overwrite: bool = False) -> None:
    """Write the repository to the folder `output`, whole or not at all, the bundle in it.

    Raises `UsageError` for a target that the bundle was not proven on or a batch that it does not take, `OutputError`
    for an `output` that is in the way.
    """
    configs = configurations(bundle, asked)
    with atomic_folder(Path(output), KIND, overwrite=overwrite) as folder:
        _write(folder, asked, configs)
        shutil.copytree(bundle.root, folder / asked.name / str(asked.version) / "bundle")
        Bundle.open(folder / asked.name / str(asked.version) / "bundle")  # what was copied is what was checked
        mark(folder, bundle)


def mark(folder: Path, bundle: Bundle) -> None:
    """Name in the marker the bundle and all that was written."""
    lines = [bundle.digest, *files_in(folder)]
    (folder / MARKER).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_beside(bundle: Bundle, folder: Path, asked: Served) -> None:
    """Write the repository into `folder`, which names the bundle where it lies: for a server that starts here.

    Triton's Python knows names of ASCII alone, so that any other gets a link.
    """
    place = bundle.root.resolve()
    plain = str(place).isascii()
    _write(folder, asked, configurations(bundle, asked, place=str(place) if plain else None))
    if not plain:
        (folder / asked.name / str(asked.version) / "bundle").symlink_to(place, target_is_directory=True)


def _write(folder: Path, asked: Served, configs: dict[str, str]) -> None:
    extra = {"openvino": "cpu,openvino", "onnxruntime": "cpu"}.get(asked.target.engine, "cuda")
    for name, base in ((asked.name, "PixelsModel"), (asked.files_name, "FilesModel")):
        version = folder / name / str(asked.version)
        version.mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(configs[name], encoding="utf-8")
        (version / "model.py").write_text(_MODEL.format(base=base, extra=extra), encoding="utf-8")


def configurations(bundle: Bundle, asked: Served, *, place: str | None = None) -> dict[str, str]:
    """The text of `config.pbtxt` of both models, by their names. place: where the bundle lies, else in the version.

    Raises as `write_repository` does."""
    bundle.require_proven(asked.target)
    traits = known_engine(asked.target).traits
    batch = batching(bundle, asked)
    size, outputs = bundle.preprocessing.size, _outputs(bundle)
    instances = config.Instances(asked.instances, traits.gpu, gpus=(0,))  # engines of this package take the first GPU
    facts = {
        "target": str(asked.target),
        "bundle_digest": bundle.digest,
        "threshold": repr(bundle.threshold),
        "learners": ",".join(bundle.learners or ()),
    }
    pixels = config.model(
        asked.name,
        "python",
        ([config.Tensor(f"{one}_pixels", "uint8", (1, size, size)) for one in MODALITIES], outputs),
        batch,
        instances,
        {"bundle": place or "bundle", **facts},
    )
    files = config.model(
        asked.files_name,
        "python",
        (
            [
                *(config.Tensor(one, "uint8", (-1,), ragged=True) for one in MODALITIES),
                config.Tensor("frame", "int32", (1,), optional=True),
            ],
            outputs,
        ),
        batch,
        instances,
        {"bundle": place or f"../../{asked.name}/{asked.version}/bundle", **facts},
    )
    return {asked.name: pixels, asked.files_name: files}


def _outputs(bundle: Bundle) -> list[config.Tensor]:
    learners = bundle.learners
    width = -1 if learners is None else len(learners)  # an old bundle does not name them
    base = [config.Tensor("base_probability", "float32", (width,))] if width else []
    return [
        config.Tensor("probability", "float32", (1,)),
        *base,
        config.Tensor("decision", "uint8", (1,)),
        config.Tensor("bundle_digest", "uint8", (32,)),
        config.Tensor("warnings", "uint8", (-1,)),
    ]


def batching(bundle: Bundle, asked: Served) -> config.Batching:
    """Batches as large as the bundle's engines take, where they are built for a range, else as `verify` proves.

    Raises `UsageError` for a larger one that is asked for."""
    most = MOST
    preferred: tuple[int, ...] = ()
    if known_engine(asked.target).traits.profiled:
        from mpmmu_rt.engines.tensorrt.sidecar import read_profile

        profile = read_profile(bundle.root / target_folder(asked.target.engine, asked.target.precision))
        most, preferred = profile.max, tuple(sorted({profile.opt, profile.max}))
    if asked.most is not None:
        if not 1 <= asked.most <= most:
            raise UsageError(
                f"batches of up to {asked.most} are asked for, expected 1 to {most}, which {asked.target} was made for",
                hint=f"--max-batch {most}",
            )
        most, preferred = asked.most, tuple(size for size in preferred if size <= asked.most)
    return config.Batching(most, preferred, round(asked.delay_ms * 1e3))
