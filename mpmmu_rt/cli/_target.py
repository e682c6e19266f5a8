"""`--target auto`: the target that is taken where none is named, and the line that says which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mpmmu_rt.errors import UsageError

from ._report import note

if TYPE_CHECKING:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.choice import Choice
    from mpmmu_rt.spec import Target

AUTO = "auto"
TargetOption = Annotated[
    str,
    typer.Option("--target", help="Engine and precision, or auto: the fastest proven one in FP32 that runs here."),
]
RoundingOption = Annotated[
    bool, typer.Option("--allow-rounding", help="With --target auto: lower precisions too, if they are faster.")
]


def required(texts: Sequence[str] | None) -> list[Target]:
    """What --require names. Raises `UsageError` for a target that there is not, and for compute capabilities: bundles
    list targets without, and a machine has the one it has."""
    from mpmmu_rt.engines import known_engine
    from mpmmu_rt.spec import Target

    found = [Target.parse(text) for text in texts or ()]
    for target in found:
        known_engine(target)
        if target.capabilities:
            raise UsageError(
                f"--require {target} names compute capabilities, expected a target without them",
                hint=f"--require {target.plain}",
            )
    return found


def taken(bundle: Bundle, target: str, *, allow_rounding: bool) -> tuple[Target, Choice | None]:
    """The target, and how it was chosen, which is said; None for one that was named. Raises as `choose_target` does,
    and `UsageError`."""
    from mpmmu_rt.choice import choose_target
    from mpmmu_rt.spec import Target

    check_rounding(target, allow_rounding=allow_rounding)
    if target != AUTO:
        return Target.parse(target), None
    choice = choose_target(bundle, allow_rounding=allow_rounding)
    note(choice.says)
    return choice.target, choice


def check_rounding(target: str, *, allow_rounding: bool) -> None:
    """Raise `UsageError` where --allow-rounding would do nothing."""
    if allow_rounding and target != AUTO:
        raise UsageError(
            f"--allow-rounding is given with --target {target}, expected it with --target auto alone: what is named is "
            "taken as it is",
            hint="leave one of them out",
        )
