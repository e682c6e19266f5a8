"""What commands that ask a bundle say of a target's proof: at export, and on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpmmu_rt.errors import quoted

from ._report import note

if TYPE_CHECKING:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.spec import Target
    from mpmmu_rt.verified import Verdict


def looked_up(bundle: Bundle, target: Target, *, require: bool) -> Verdict:
    """Whether `target` was verified on this machine. Raises `ParityError` where that is required, and it was not."""
    from mpmmu_rt import verified

    verdict = verified.look_up(bundle, target)
    if require and str(target) in bundle.targets:  # of any other, `Bundle.require_proven` gives another reason
        verified.require(verdict, bundle, target)
    return verdict


def warn_never_run(bundle: Bundle, target: Target, path: Path) -> None:
    """TensorRT engines that were built where there was no GPU are listed, and nobody has seen them run."""
    proof = bundle.proof(target)
    if proof and proof["passed"] is None:
        note(
            f"warning: {target} was built and never run when {path} was exported; `mpmmu-rt verify` it on this device "
            "first"
        )


def note_verdict(verdict: Verdict, target: Target, path: Path) -> None:
    if verdict.passed:
        note(f"{target} was verified on this machine on {verdict.date} ({verdict.checks} checks)")
    elif verdict.passed is False:
        note(f"warning: {target} failed its verification on this machine on {verdict.date}: {verdict.why}")
    else:
        hint = f"`mpmmu-rt verify {quoted(path)} --target {target}`"
        note(f"note: {target} is not verified on this machine: {verdict.why}; {hint}")
