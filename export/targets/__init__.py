"""Every target of a bundle, proven before it is listed. An engine's export side is the module here that has the name
of its module in `mpmmu_rt.engines`: to add an engine, write both, and list the first in `mpmmu_rt.engines._MODULES`.

onnxruntime       the first target, held to torch and scikit-learn; all others are listed only beside it
openvino          FP32, BF16
int8              INT8 for OpenVINO
onnxruntime_cuda  FP32, FP16
tensorrt          both TensorRTs, every precision
proofs            what they are held to

FP32 is held to the parity of `mpmmu_rt.export.parity`. BF16, FP16 and INT8 round, and a forest is a step function: they
are judged by their decisions against FP32 (`mpmmu_rt.export.quantization.Limits`), on the same engine, or for targets
of GPUs on ONNX Runtime. Targets of GPUs can be made where they can't run: then their graphs are judged in the same way,
by running them on the CPU with the rounding that their types ask for, and the target is listed as built and not run:
the device has to `verify` it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, cast

from mpmmu_rt.engines import engine_module, engines, known_engine
from mpmmu_rt.errors import AnswerError, EngineError, ParityError, UnfitTarget, UsageError
from mpmmu_rt.export.cases import Data
from mpmmu_rt.export.draft import FIRST, Draft, Wanted
from mpmmu_rt.export.graphs import other_floats
from mpmmu_rt.predictor import DEFAULT_TARGET
from mpmmu_rt.spec import Target, in_8_bits

_NO_NUMBER = (
    "the original has numbers there, by its own rounding: clamp what the modules divide by, or take the logarithm or "
    "root of, to more than 0"
)
MOST_NEEDED = 200  # cases, however small a limit: that of flips is never below one case of them


class Family(Protocol):
    """The export side of one engine, or of some of one make: a module with these names."""

    ONLY_WHEN_ASKED: bool
    """Not made unless the user names it: a bundle is the same on a machine with a GPU."""

    def check(self, target: Target) -> None:
        """Raise what the user gets who asks for `target` here, where it can't be had: before any work."""
        ...

    def make(self, draft: Draft, target: Target) -> dict[str, Any]:
        """Write what `target` needs into the draft, and list it there; returns what is to be said of it.

        Raises `ParityError` for graphs that are not the same model, `UnfitTarget` for a model that it can't have.
        """
        ...

    def prove(self, draft: Draft, target: Target) -> dict[str, Any]:
        """Run the sealed draft on `target`; returns the report, whose `passed` is None where nothing can run here.

        Raises `ParityError` unless it holds.
        """
        ...

    def forget(self, draft: Draft, target: Target) -> None:
        """Take away again what `make` wrote and listed; it may have ended half-way."""
        ...


def family(engine: str) -> Family:
    """The export side of the engine of that name."""
    name = engine_module(engine).removeprefix("mpmmu_rt.engines.")
    return cast("Family", importlib.import_module(f"{__name__}.{name}"))


def resolve(wanted: Wanted) -> tuple[Target, ...]:
    """The targets beyond the first, in order, checked. Raises `EngineError`, `MissingPackage` or `UsageError`."""
    if wanted.targets is None:
        asked = [
            Target(name, precision)
            for name, engine in engines().items()
            if not family(name).ONLY_WHEN_ASKED
            for precision in engine.precisions
            if engine.problem(precision) is None and (wanted.calibration or not in_8_bits(precision))
        ]
    else:
        asked = list(wanted.targets)
    for target in asked:
        if not isinstance(target, Target):
            raise UsageError(
                f"`{target}` is asked for as a {type(target).__name__}, expected a Target",
                hint=f"Wanted(targets=(mpmmu_rt.spec.Target.parse({DEFAULT_TARGET!r}),))",
            )
        known_engine(target)
        if twins := [other for other in asked if other != target and _plain(other) == _plain(target)]:
            raise UsageError(
                f"the targets `{target}` and `{twins[0]}` are asked for, expected one with all capabilities",
                hint=f"one engine serves several GPUs: {_plain(target)}@86,89",
            )
        family(target.engine).check(target)
        if target.in_8_bits and wanted.calibration is None:
            raise UsageError(
                f"target `{target}` is asked for without images to calibrate on, expected both",
                hint="add --calibrate MANIFEST: some hundred cases like those that it will see; or, to try it, "
                "--calibrate-phantoms 100",
            )
    return tuple(dict.fromkeys(target for target in asked if target != FIRST))


def require_enough(wanted: Wanted, judged: Data) -> None:
    """Raise `UsageError` where a target that rounds is asked for by name, and `judged` are too few to show anything."""
    for target in wanted.targets or ():
        if target.precision != "fp32" and (problem := _too_few(target, wanted, judged)):
            raise problem


def _too_few(target: Target, wanted: Wanted, judged: Data) -> UsageError | None:
    """Of n cases of which none flips, at most 3 / n flip in truth, with 95 % confidence (the rule of three: Hanley and
    Lippman-Hand 1983, doi 10.1001/jama.1983.03330370053031)."""
    count, limit = len(judged.pixels["mammography"]), wanted.limits.flips
    fewest = math.ceil(3 / limit) if limit else math.inf
    if count >= min(fewest, MOST_NEEDED):
        return None
    return UsageError(
        f"{target} would be judged on {count} cases, expected at least {min(fewest, MOST_NEEDED)} to show that at most "
        f"{limit:.2g} of all decisions flip",
        hint="name more cases with --parity, or with --calibrate, half of which judge; or allow more --flips",
    )


def prove(draft: Draft) -> None:
    """Make and prove the first target, then every wanted one, and enter what was found into the draft.

    A target that was asked for by name and fails raises `ParityError`, or `UnfitTarget` where its engine can't load or
    run the model; one that was not is left out, and `entry["precision"]` says why.
    """
    draft.entry["parity"] = _first(draft)
    for target in resolve(draft.wanted):
        side, listed = family(target.engine), str(_plain(target))
        if target.precision != "fp32" and (problem := _too_few(target, draft.wanted, draft.judged)):
            if draft.wanted.targets is not None:
                raise problem
            draft.entry["precision"][listed] = {"passed": False, "reason": str(problem)}
            continue
        try:
            with (
                _other_floats(draft, target),
                _engines_word(target, "leave the target out, or replace that operator in the module"),
            ):
                report = side.make(draft, target)
                draft.seal()
                report |= side.prove(draft, target)
        except (UnfitTarget, ParityError) as error:
            if draft.wanted.targets is not None:
                raise
            side.forget(draft, target)
            draft.seal()
            report = {"passed": False, "reason": str(error)}
        else:
            draft.entry["targets"].append(listed)
        draft.entry["precision"][listed] = report


def _first(draft: Draft) -> dict[str, Any]:
    """Prove the target that every bundle has."""
    hint = "every bundle has it: replace that operator in the module, or update onnxruntime"
    with _other_floats(draft, FIRST), _engines_word(FIRST, hint):
        return family(FIRST.engine).prove(draft, FIRST)


@contextlib.contextmanager
def _other_floats(draft: Draft, target: Target) -> Iterator[None]:
    """Of modules that do not compute in float32, the hint says so where an FP32 target is refused."""
    try:
        yield
    except (UnfitTarget, ParityError) as error:
        found = {modality: other_floats(graph) for modality, graph in draft.encoders().items()}
        said = [
            f"the {modality} module computes in {' and '.join(kinds)}" for modality, kinds in found.items() if kinds
        ]
        if not said or target.precision != "fp32":
            raise
        hint = (
            f"{'; '.join(said)}: export it in float32, which is `module.float()` without autocast or casts of its own; "
            f"if that changes nothing: {error.hint}"
        )
        raise type(error)(str(error), hint=hint) from error


@contextlib.contextmanager
def _engines_word(target: Target, hint: str) -> Iterator[None]:
    """What an engine can't do with this model, at export: its own hint is for a bundle that was proven."""
    try:
        yield
    except EngineError as error:
        if isinstance(error, AnswerError):  # the original has been asked the same, and has numbers
            hint = _NO_NUMBER if target == FIRST else f"{_NO_NUMBER}; or leave the target out"
        raise UnfitTarget(f"{target} can't have this model: {error}", hint=hint) from error


def _plain(target: Target) -> Target:
    return replace(target, capabilities=())
