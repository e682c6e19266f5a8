"""`openvino`: FP32 and BF16 run the bundle's own graphs; both targets of INT8 (`int8`) have encoders of their own."""

from __future__ import annotations

from typing import Any

from mpmmu_rt.engines import engine
from mpmmu_rt.errors import UnfitTarget
from mpmmu_rt.export.draft import Draft
from mpmmu_rt.spec import MODALITIES, Target

from . import int8
from .proofs import equal, keep_golden, same_decisions

ONLY_WHEN_ASKED = False


def check(target: Target) -> None:
    engine(target)


def make(draft: Draft, target: Target) -> dict[str, Any]:
    if target.in_8_bits:
        return int8.make(draft, target)
    if target.precision == "bf16":
        _require_float(draft, target)
    return {}


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    if target.in_8_bits:  # judged while it was made
        keep_golden(draft, target)
        return {}
    return equal(draft, target) if target.precision == "fp32" else same_decisions(draft, target, target)


def _require_float(draft: Draft, target: Target) -> None:
    """OpenVINO 2026.4.1 fails in, or miscomputes, convolutions in 8 bits in a model that it otherwise runs in BF16."""
    for modality in MODALITIES:
        operators = [node.op_type for node in draft.graph(modality).graph.node]
        if codes := [kind for kind in operators if kind in ("QuantizeLinear", "DequantizeLinear")]:
            raise UnfitTarget(
                f"the {modality} encoder is quantized already ({len(codes)} of QuantizeLinear and DequantizeLinear), "
                f"expected float for {target}: OpenVINO does not compute 8 bits among BF16 reliably",
                hint="use openvino:fp32, which runs its quantized layers in 8 bits",
            )


def forget(draft: Draft, target: Target) -> None:
    if target.in_8_bits:
        int8.forget(draft, target)
