"""Which target of a bundle to take on this machine, where none is named: `--target auto`.

The order of preference is `mpmmu_rt.facts`': what was measured, at batch 32, fastest first. Nothing is timed here, so
that the same bundle, machine and installation give the same target. What is chosen is then taken as if it had been
named: it runs, or an error says why it can't.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .bundle import Bundle
from .engines import engines
from .engines.shared.gpu import gpu
from .errors import EngineError, MissingPackage, MpmmuError
from .facts import FASTER_ON_GPU, X86, Fact, faster_encoders
from .machine import describe, package_versions
from .spec import StrPath, Target


@dataclass(frozen=True)
class Choice:
    """The target that was taken, and why, in a sentence. rounding: one that is faster, was proven, can run here and was
    passed over because it rounds; None where there is none, or rounding was allowed."""

    target: Target
    why: str
    rounding: Target | None = None

    @property
    def says(self) -> str:
        """For people, in a line."""
        return f"target {self.target}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        return {"why": self.why, "faster_with_rounding": str(self.rounding) if self.rounding else None}


def choose_target(bundle: Bundle | StrPath, *, allow_rounding: bool = False) -> Choice:
    """The fastest target of `bundle`, opened or a path, that the export proved and whose engine can run here.

    Of those in FP32 alone, unless `allow_rounding` lets it take lower precisions, whose decisions the export judged.
    Fastest is by `mpmmu_rt.facts`, not by a clock. Of an FP32 target that is not there, and of all on a processor
    unlike those that were measured, nothing is known: they come behind all others, as the bundle lists them. Nothing
    that rounds is taken for a gain that nobody has measured.

    Raises `EngineError` where none can run, and what `Bundle.open` raises.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    order = measured_on(describe()["cpu_features"])
    problems: dict[Target, MpmmuError] = {}
    rounding: Target | None = None
    for target in by_preference(opened, order):
        allowed = allow_rounding or target.precision == "fp32"
        problem = _problem(target)
        if problem and allowed:
            problems[target] = problem
        elif allowed:
            said = [_reason(target, order, exact=not allow_rounding)]
            if rounding:
                said.append(f"--allow-rounding takes {rounding} ({order[rounding].says})")
            return Choice(target, "; ".join([*said, *_lacking(problems, order), *_never_run(opened)]), rounding)
        elif not problem:
            rounding = rounding or target
    raise _none(opened, problems, rounding)


def measured_on(cpu_features: Collection[str]) -> dict[Target, Fact]:
    """What is known of targets on a machine with such a processor (`mpmmu_rt.machine.describe`), fastest first.

    Of processors only those with AVX2 were measured; where the system does not tell, nothing is known.
    """
    of_processors: Mapping[Target, Fact] = faster_encoders(cpu_features) if X86 in cpu_features else {}
    return {**FASTER_ON_GPU, **of_processors}


def by_preference(bundle: Bundle, order: Mapping[Target, Fact]) -> list[Target]:
    """What may be taken, whether or not it can run here."""
    proven = [target for target in map(Target.parse, bundle.targets) if bundle.proof(target).get("passed") is True]
    known = [target for target in order if target in proven]
    return known + [target for target in proven if target not in order and target.precision == "fp32"]


def _problem(target: Target) -> MpmmuError | None:
    known = engines().get(target.engine)
    if known is None or target.precision not in known.precisions:
        return EngineError(f"{target} is unknown to this version", hint="`mpmmu-rt doctor` lists what it knows")
    return known.problem(target.precision)


def _reason(target: Target, order: Mapping[Target, Fact], *, exact: bool) -> str:
    of = " in FP32" if exact else ""
    if target in order:
        return f"the fastest that is proven{of} and runs here, by what was measured ({order[target].says})"
    return f"the first that is proven{of} and runs here; nothing was measured of it on a machine like this one"


def _lacking(problems: Mapping[Target, MpmmuError], order: Mapping[Target, Fact]) -> list[str]:
    """What would be faster, if something could be had or repaired, and why it can't run; not what lacks a device."""
    for target, problem in problems.items():
        if target in order and _is_expected(target, problem):
            return [f"{target} would be faster ({order[target].says}), but {problem}: {problem.hint}"]
    return []


def _is_expected(target: Target, problem: MpmmuError) -> bool:
    """Whether this machine is one for such a target: it has a GPU, or what computes on one was installed."""
    known = engines().get(target.engine)
    if known is not None and known.traits.gpu:
        return gpu() is not None or "onnxruntime-gpu" in package_versions(("onnxruntime-gpu",))
    # Not where one precision is lacking, which is the processor's.
    return isinstance(problem, MissingPackage) or bool(known and known.problem("fp32"))


def _never_run(bundle: Bundle) -> list[str]:
    """Targets of GPUs, exported where there was none."""
    built = [one for one in map(Target.parse, bundle.targets) if bundle.proof(one).get("passed") is None]
    usable = [str(one) for one in built if not _problem(one)]
    return [f"never run at export and so to be asked for by name: {', '.join(usable)}"] if usable else []


def _none(bundle: Bundle, problems: Mapping[Target, MpmmuError], rounding: Target | None) -> EngineError:
    if rounding:
        hint = f"--allow-rounding takes {rounding}"
    else:
        first = sorted(problems.items(), key=lambda one: not _is_expected(*one))
        hint = next((problem.hint for _, problem in first if problem.hint), "`mpmmu-rt doctor` says what can")
    why = "; ".join(f"{target}: {problem}" for target, problem in problems.items()) or "it holds none"
    return EngineError(
        f"no target that {bundle.path} holds proven{' in FP32' if rounding else ''} can run here ({why}), expected one",
        hint=hint,
    )
