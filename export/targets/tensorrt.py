"""`tensorrt-rtx` and `tensorrt`: typed graphs, held to the FP32 model on the CPU, and engines built from them.

TensorRT-RTX builds for GPUs that are elsewhere; TensorRT only for the one that is here, and else gets graphs alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, TensorRt
from mpmmu_rt.errors import UsageError
from mpmmu_rt.export import head as heads
from mpmmu_rt.export import tensorrt
from mpmmu_rt.export.draft import BATCH, Draft, in_batches
from mpmmu_rt.export.quantization.search import Graphs
from mpmmu_rt.export.tensorrt import Parts
from mpmmu_rt.spec import Array, Modality, Target

from .int8 import searched
from .proofs import keep_golden, on_this_machine, runner, same_graph

ONLY_WHEN_ASKED = True
_TURING = 75


def check(target: Target) -> None:
    found = _engine(target)
    if found.flavour == "tensorrt_rtx" or gpu() is not None:  # else it gets the graphs alone
        found.version()
    if found.flavour == "tensorrt_rtx" and not target.capabilities:
        raise UsageError(
            f"target `{target}` names no compute capabilities, expected those of the devices that will run it",
            hint=f"{target}@86,89,120 is for the RTX 30, 40 and 50 series",
        )
    if target.precision == "bf16" and _TURING in target.capabilities:
        raise UsageError(
            f"target `{target}` asks for BF16 on compute capability 7.5, expected 8.0 or later",
            hint=f"{target.engine}:fp16@75 is for Turing",
        )


def make(draft: Draft, target: Target) -> dict[str, Any]:
    """Write graphs, then engines: nothing is built from graphs that are not the same model."""
    found, progress = _engine(target), draft.progress
    width = int(draft.entry["tensors"]["embedding"]["shape"][1])
    parts = Parts(
        draft.encoders(),
        draft.graph("attention_pool"),
        heads.lower(draft.head, width, products="convolution"),
    )
    report: dict[str, Any] = {"head": heads.report(parts.head), "profile": asdict(draft.wanted.profile)}
    if target.precision == "int8":
        parts, report["quantization"] = _signed(draft, parts)
    progress(f"typing the graphs of {target}", 0, 1)
    typed = tensorrt.typed(parts, target.precision, draft.cases.first(BATCH))
    progress(f"typing the graphs of {target}", 1, 1)
    report["graph"] = same_graph(draft, target, typed["model"])
    progress(f"building {target}", 0, 1)
    sidecars = tensorrt.write(
        draft.folder / found.folder(target.precision),
        typed,
        flavour=found.flavour,
        precision=target.precision,
        capabilities=target.capabilities,
        profile=draft.wanted.profile,
    )
    progress(f"building {target}", 1, 1)
    return report | {"engines": {name: sidecar.to_json() for name, sidecar in sidecars.items()}}


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    plain = replace(target, capabilities=())
    report = on_this_machine(draft, plain)
    if target.precision == "int8":
        keep_golden(draft, plain, graph="model")
    return report


def forget(draft: Draft, target: Target) -> None:
    shutil.rmtree(draft.folder / _engine(target).folder(target.precision), ignore_errors=True)


def _engine(target: Target) -> TensorRt:
    return {RTX.name: RTX, TENSORRT.name: TENSORRT}[target.engine]


def _signed(draft: Draft, parts: Parts) -> tuple[Parts, dict[str, Any]]:
    """Quantize the encoders as TensorRT takes them, judged on ONNX Runtime; pool and head stay FP32."""

    def predict(graphs: Graphs, pixels: Mapping[Modality, Array]) -> Array:
        run = runner(replace(parts, encoders=graphs).whole(), rounded=False)
        return in_batches(run, pixels, draft.progress, "judging INT8")["probability"]

    # TensorRT reads unsigned codes as signed.
    found, report = searched(draft, parts.encoders, predict, unsigned=False)
    facts = report.to_json() | {
        "source": draft.judged.source,
        "calibrated_on": draft.calibration.source,
        "judged_by": "ONNX Runtime on the CPU",
        "not_quantized": "fp32",
    }
    return replace(parts, encoders=found), facts
