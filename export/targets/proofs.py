"""What a target is held to: parity in FP32, decisions in other precisions; its graph alone where it can't run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import Check, probability_difference, relative_difference
from mpmmu_rt.engines import known_engine
from mpmmu_rt.errors import ParityError
from mpmmu_rt.export import npz, parity
from mpmmu_rt.export.cases import Pixels
from mpmmu_rt.export.draft import FIRST, Answers, Draft, answers_of, in_batches
from mpmmu_rt.export.flat import Flat
from mpmmu_rt.export.precision import Half
from mpmmu_rt.export.quantization import Gate, compare
from mpmmu_rt.export.quantization.ranges import session
from mpmmu_rt.export.rounding import Rounded
from mpmmu_rt.facts import PROBABILITY_TOLERANCE, TOLERANCES
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target


def equal(draft: Draft, target: Target, asked: Target | None = None) -> dict[str, Any]:
    """Hold an FP32 target to torch and scikit-learn. asked: the target that needs it, if it is another. Raises
    `ParityError`."""
    with draft.open(target) as predictor:
        measured = parity.measure(
            predictor, draft.original, draft.head, draft.cases.pixels, draft.cases.labels, draft.progress, draft.flat
        )
    measured.require(target, asked)
    draft.exact.add(target)
    return measured.to_json(str(target)) | {"source": draft.cases.source}


def proven_floats(draft: Draft, target: Target) -> Answers:
    """What FP32 on the engine of `target` says of the judged cases, which is held to torch and scikit-learn first: what
    rounds would else be held to something wrong, and agree with it. Raises `ParityError`."""
    exact = replace(target, precision="fp32", capabilities=())
    if exact != FIRST and exact not in draft.exact:
        try:
            equal(draft, exact, target)
        except ParityError as error:
            raise ParityError(
                f"{exact}, which {target} is held to, is not the model: {error}", hint=error.hint
            ) from error
    return draft.floats(exact)


def same_decisions(draft: Draft, target: Target, exact: Target) -> dict[str, Any]:
    """Hold the decisions of a target that rounds to those of `exact` in FP32. Raises `ParityError`."""
    want = proven_floats(draft, exact)["probability"]
    with draft.open(target) as predictor:
        got = in_batches(lambda few: answers_of(predictor, few), draft.judged.pixels, silent, "")["probability"]
        require_flat(draft, target, predictor)
    gate = compare(want, got, draft.judged.labels, draft.threshold, draft.wanted.limits)
    _require(gate, target)
    return gate.to_json() | {"source": draft.judged.source}


def on_this_machine(draft: Draft, target: Target) -> dict[str, Any]:
    """The proof of a target of a GPU: run where it can, and said why not where it can't. Raises `ParityError`."""
    if problem := known_engine(target).problem(target.precision):
        return {"passed": None, "reason": str(problem)}
    return equal(draft, target) if target.precision == "fp32" else same_decisions(draft, target, FIRST)


def same_graph(draft: Draft, target: Target, model: onnx.ModelProto) -> dict[str, Any]:
    """Hold the whole graph of a target, run on the CPU, to the FP32 model: what its types cost, not an engine's doing.

    Decisions are held to the same limits as those of an engine. Raises `ParityError`.
    """
    want, judged = draft.floats(), draft.judged
    is_half = target.precision in get_args(Half)
    run = runner(model, rounded=is_half)
    if flat := draft.flat:
        _require_flat(flat, run(flat.pixels)["embedding"], target)
        if flat.blank:
            _require_blank(flat, np.flatnonzero(~np.isfinite(run(flat.blank)["embedding"]).all(1)), target)
    got = in_batches(run, judged.pixels, draft.progress, f"running the graph of {target}")
    checks = (
        Check(
            "embedding, relative",
            relative_difference(got["embedding"], want["embedding"]),
            TOLERANCES[target.precision].relative,
        ),
        Check(
            "head on the same embedding, max |Δp|",
            probability_difference(got["probability"], parity.probability_of(draft.head, got["embedding"])),
            PROBABILITY_TOLERANCE,
        ),
    )
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ParityError(
            f"the graph of {target} differs from the FP32 model: {failed[0].name} is {failed[0].value:.3g}, expected "
            f"at most {failed[0].limit:.3g}",
            hint="export for another precision: this model does not bear that one",
        )
    gate = compare(want["probability"], got["probability"], judged.labels, draft.threshold, draft.wanted.limits)
    _require(gate, target)
    return {
        "proves": "the graph, in decisions and numbers, on the CPU; not the engine that is built from it",
        "run_by": "ONNX Runtime in float32, each value rounded to its type" if is_half else "ONNX Runtime",
        "source": judged.source,
        **gate.to_json(),
        "checks": [check.to_json() for check in (*checks, *gate.checks)],
    }


def runner(model: onnx.ModelProto, *, rounded: bool) -> Callable[[Pixels], Answers]:
    """Runs a whole graph, with its weights, on pixels; rounded: each value to the type that it has in the graph."""
    names = [item.name for item in model.graph.output]
    if rounded:
        evaluator = Rounded(model)
        return lambda pixels: evaluator.run(_feeds(pixels))
    on_cpu = session(model)
    return lambda pixels: dict(zip(names, on_cpu.run(names, _feeds(pixels)), strict=True))


def keep_golden(draft: Draft, target: Target, graph: str | None = None) -> None:
    """Add what an INT8 target says of the golden pixels to the golden vectors: `verify` holds it to that.

    graph: its whole graph, which is asked on the CPU where the target can't run.
    """
    bundle = Bundle.open(draft.folder)
    golden = bundle.golden()
    pixels: dict[Modality, Any] = {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}
    if graph is None or known_engine(target).problem(target.precision) is None:
        with draft.open(target) as predictor:
            said = answers_of(predictor, pixels)
    else:
        said = runner(onnx.load(str(bundle.target_graph(target, graph))), rounded=False)(pixels)
    arrays = golden | {f"{target}.{name}": said[name] for name in ("embedding", "probability")}
    npz.write(draft.folder / draft.entry["golden"], arrays, compressed=True)
    draft.seal()


def require_flat(draft: Draft, target: Target, predictor: Predictor) -> None:
    """Hold a target that rounds to the original on `draft.flat`. Raises `ParityError`."""
    if flat := draft.flat:
        _require_flat(flat, answers_of(predictor, flat.pixels)["embedding"], target)
        _require_blank(flat, parity.unanswered(predictor, flat.blank), target)


def require_blank(draft: Draft, target: Target, predictor: Predictor) -> None:
    """Of images with a part of one grey a target has numbers, and of blank ones only where the original has. All that
    INT8 is held to there: it was calibrated on other images, whose ranges flat ones may leave. Raises `ParityError`,
    `AnswerError`."""
    if flat := draft.flat:
        predictor.predict(flat.pixels)
        _require_blank(flat, parity.unanswered(predictor, flat.blank), target)


def _require_flat(flat: Flat, embedding: Array, target: Target) -> None:
    _require_on_flat(parity.flat_check(embedding, flat, TOLERANCES[target.precision].relative), target)


def _require_blank(flat: Flat, not_answered: Iterable[int], target: Target) -> None:
    _require_on_flat(parity.blank_check(frozenset(not_answered), flat), target)


def _require_on_flat(check: Check, target: Target) -> None:
    if not check.passed:
        raise ParityError(
            f"{target} differs from the original: {check.name} is {check.value:.3g}, expected at most "
            f"{check.limit:.3g}",
            hint=f"{parity.FLAT_HINT}, in {target.precision} too, or leave the target out",
        )


def _feeds(pixels: Pixels) -> dict[str, Any]:
    return {f"{modality}_pixels": pixels[modality] for modality in MODALITIES}


def _require(gate: Gate, target: Target) -> None:
    failed = [check for check in gate.checks if not check.passed]
    if failed:
        raise ParityError(
            f"{target} changes decisions: {failed[0].name} is {failed[0].value:.3g}, expected at most "
            f"{failed[0].limit:.3g} ({gate.basis})",
            hint="leave the target out, or set another limit if you can answer for it",
        )
