"""`onnxruntime:fp32`: the first target of every bundle, held to torch and scikit-learn. It writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mpmmu_rt.checks import Check, probability_difference, relative_difference
from mpmmu_rt.engines import engine
from mpmmu_rt.errors import ParityError
from mpmmu_rt.export import parity
from mpmmu_rt.export.draft import Draft
from mpmmu_rt.facts import PROBABILITY_TOLERANCE, RELATIVE_TOLERANCE
from mpmmu_rt.spec import Target

ONLY_WHEN_ASKED = False
_JOINED_CASES = 4


def check(target: Target) -> None:
    engine(target)


def make(draft: Draft, target: Target) -> dict[str, Any]:
    return {}


def prove(draft: Draft, target: Target) -> dict[str, Any]:
    """Parity of the stages as the predictor runs them, then of the whole graph: its embedding, and its head on that."""
    with draft.open(target) as predictor:
        report = parity.measure(
            predictor, draft.original, draft.head, draft.cases.pixels, draft.cases.labels, draft.progress, draft.flat
        )
        single = parity.single_checks(predictor, draft.single_heads, draft.cases.pixels)
        report = replace(report, checks=(*report.checks, *single))
        report.require(target)
        whole = predictor.run_whole_graph(draft.cases.first(_JOINED_CASES))
    joined = Check(
        "the joined graph's embedding, relative",
        relative_difference(whole["embedding"], draft.original.stages["embedding"][:_JOINED_CASES]),
        RELATIVE_TOLERANCE,
    )
    its_head = Check(
        "the joined graph's head on that, max |Δp|",
        probability_difference(whole["probability"], parity.probability_of(draft.head, whole["embedding"])),
        PROBABILITY_TOLERANCE,
    )
    for check_ in (joined, its_head):
        if not check_.passed:
            raise ParityError(
                f"the exported model differs from the original: {check_.name} is {check_.value:.3g}, expected at most "
                f"{check_.limit:.3g}",
                hint="this is a defect of the export: report it with `mpmmu-rt doctor`",
            )
    return report.to_json(str(target)) | {"source": draft.cases.source}


def forget(draft: Draft, target: Target) -> None:
    """It writes nothing."""
