"""`openvino`: FP32 and BF16 run the bundle's own graphs; INT8 (`int8`) has its own encoders."""

from __future__ import annotations

from typing import Any

from mpmmu_rt.engines import engine
from mpmmu_rt.export.draft import Draft
from mpmmu_rt.spec import Target

from . import int8
from .proofs import equal, keep_golden, same_decisions

ONLY_WHEN_ASKED = False


def check(target: Target) -> None:
    engine(target)


def make(draft: Draft, target: Target) -> dict[str, Any]:
    return int8.make(draft, target) if target.precision == "int8" else {}


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    if target.precision == "int8":  # judged while it was made
        keep_golden(draft, target)
        return {}
    return equal(draft, target) if target.precision == "fp32" else same_decisions(draft, target, target)


def forget(draft: Draft, target: Target) -> None:
    if target.precision == "int8":
        int8.forget(draft)
