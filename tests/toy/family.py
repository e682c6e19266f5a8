"""The toy engine's side of the export: one file."""

from __future__ import annotations

import shutil
from typing import Any

from mpmmu_rt.bundle import target_folder
from mpmmu_rt.engines import engine
from mpmmu_rt.export.draft import Draft
from mpmmu_rt.export.targets.proofs import equal, same_decisions
from mpmmu_rt.spec import Target

ONLY_WHEN_ASKED = False


def check(target: Target) -> None:
    engine(target)


def make(draft: Draft, target: Target) -> dict[str, Any]:
    if target.precision == "fp32":
        return {}
    folder = draft.folder / target_folder(target.engine, target.precision)
    folder.mkdir(parents=True)
    (folder / "bits.json").write_text("11")
    return {"bits": 11}


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    return equal(draft, target) if target.precision == "fp32" else same_decisions(draft, target, target)


def forget(draft: Draft, target: Target) -> None:
    shutil.rmtree(draft.folder / target_folder(target.engine, target.precision), ignore_errors=True)
