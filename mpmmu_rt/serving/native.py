"""Writes a model repository for a host without this package: the bundle's graphs as an ensemble of models of Triton's
own onnxruntime backend.

    mpmmu_mammography, mpmmu_ultrasound    pixels → feature_map
    mpmmu_attention_pool                   both feature maps → embedding
    mpmmu_head                             embedding → probability, base_probability
    mpmmu                                  both pixels → probability, base_probability

Names, types and shapes are read from the graphs as ONNX Runtime loads them. There, nobody checks digests, replays
golden vectors, holds probabilities to 0..1 or compares them with the threshold: that is in the parameters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import WEIGHTS, Bundle, Graph
from mpmmu_rt.engines import known_engine
from mpmmu_rt.engines.onnxruntime import EXACT_GRAPHS
from mpmmu_rt.errors import EngineError, UsageError
from mpmmu_rt.folders import atomic_folder
from mpmmu_rt.spec import MODALITIES, StrPath

from . import config
from .repository import KIND, Served, batching, mark

STEPS: tuple[Graph, ...] = (*MODALITIES, "attention_pool", "head")
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
_ENGINES = ("onnxruntime", "onnxruntime-cuda")


def write_native(bundle: Bundle, output: StrPath, asked: Served, *, overwrite: bool = False) -> None:
    """Write the repository to the folder `output`, whole or not at all.

    Raises `UsageError` for a target of another engine or a batch that is not taken, `EngineError` for a graph that
    ONNX Runtime can't load, `MissingPackage` without it, `DigestMismatch` for a bundle that changes meanwhile,
    `OutputError` for an `output` that is in the way.
    """
    if asked.target.engine not in _ENGINES:
        raise UsageError(
            f"--native is asked for on {asked.target}, expected a target of {' or '.join(_ENGINES)}, whose graphs "
            "Triton's own backend loads",
            hint=f"--target onnxruntime:fp32, or leave --native out to serve {asked.target}",
        )
    bundle.require_proven(asked.target)
    graphs = {step: graph_of(bundle, asked, step) for step in STEPS}
    tensors = {step: signature(path) for step, path in graphs.items()}
    with atomic_folder(Path(output), KIND, overwrite=overwrite) as folder:
        for name, text in configurations(bundle, asked, tensors).items():
            (folder / name / str(asked.version)).mkdir(parents=True)
            (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        placed: dict[Path, Path] = {}
        for step, graph in graphs.items():
            version = folder / f"{asked.name}_{step}" / str(asked.version)
            shutil.copyfile(graph, version / "model.onnx")
            _place(graph.with_name(WEIGHTS), version / WEIGHTS, placed)
        bundle.require_unchanged()  # what was copied is what was checked
        mark(folder, bundle)


def _place(weights: Path, place: Path, placed: dict[Path, Path]) -> None:
    """Each graph looks for its weights beside itself. The same ones take their room once, where the disk has links."""
    if not weights.is_file():
        return
    if weights in placed:
        try:
            os.link(placed[weights], place)
            return
        except OSError:
            pass
    shutil.copyfile(weights, place)
    placed.setdefault(weights, place)


def graph_of(bundle: Bundle, asked: Served, step: Graph) -> Path:
    """The graph that the target was proven with."""
    found = known_engine(asked.target)
    if step == "head":
        return bundle.graph(found.head)
    if step == "attention_pool":
        return bundle.graph(EXACT_GRAPHS[step])
    return found.graph(bundle, step, asked.target.precision)  # type: ignore[arg-type]


Signature = tuple[tuple[config.Tensor, ...], tuple[config.Tensor, ...]]


def signature(graph: Path) -> Signature:
    """Inputs and outputs of a graph, by ONNX Runtime's own word. Raises `EngineError` or `MissingPackage`."""
    runtime = require("onnxruntime", "`repository --native`")
    try:
        session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise EngineError(
            f"ONNX Runtime can't load {graph.name}: {str(error).splitlines()[0]}",
            hint="export the bundle again, or update onnxruntime",
        ) from error
    return tuple(map(_tensor, session.get_inputs())), tuple(map(_tensor, session.get_outputs()))


def _tensor(value: Any) -> config.Tensor:
    rest = tuple(int(one) for one in value.shape[1:])
    return config.Tensor(value.name, _TYPES[value.type], rest or (1,), scalar=not rest)


def configurations(bundle: Bundle, asked: Served, tensors: Mapping[Graph, Signature]) -> dict[str, str]:
    """The text of `config.pbtxt` of the ensemble and of its steps, by their names. tensors: `signature` of each."""
    batch = batching(bundle, asked)
    gpu = known_engine(asked.target).traits.gpu
    texts = {
        f"{asked.name}_{step}": config.model(
            f"{asked.name}_{step}", "onnxruntime", tensors[step], batch, config.Instances(asked.instances, gpu), {}
        )
        for step in STEPS
    }
    given = [config.Tensor(f"{one}_pixels", "uint8", tensors[one][0][0].dims) for one in MODALITIES]
    said = [config.Tensor(one.name, one.dtype, one.dims) for one in tensors["head"][1]]
    steps = [
        *(
            (f"{asked.name}_{one}", {"pixels": f"{one}_pixels"}, {"feature_map": f"{one}_feature_map"})
            for one in MODALITIES
        ),
        (
            f"{asked.name}_attention_pool",
            {f"{one}_feature_map": f"{one}_feature_map" for one in MODALITIES},
            {"embedding": "embedding"},
        ),
        (f"{asked.name}_head", {"embedding": "embedding"}, {one.name: one.name for one in said}),
    ]
    facts = {"bundle_digest": bundle.digest, "threshold": repr(bundle.threshold), "warning": bundle.warning or ""}
    return {asked.name: config.ensemble(asked.name, (given, said), batch.most, steps, facts), **texts}
