from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.checks import figure
from mpmmu_rt.errors import MpmmuError, UsageError, quoted
from mpmmu_rt.files import rounded

from ._report import JsonTo, bars, check_json, fitted, next_command, note, pairs, put_json, say, wrapped
from ._target import AUTO, RoundingOption, TargetOption, taken

if TYPE_CHECKING:
    from mpmmu_rt.cases import Manifest
    from mpmmu_rt.choice import Choice
    from mpmmu_rt.own_cases import OwnCases
    from mpmmu_rt.predictor import Predictor

SCHEMA = "mpmmu-verify/1"


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle to check.")],
    manifest: Annotated[
        Path | None, typer.Argument(help="Your own cases: hold their decisions to a second target.")
    ] = None,
    target: TargetOption = AUTO,
    allow_rounding: RoundingOption = False,
    against: Annotated[
        str | None, typer.Option("--against", help="Target to hold MANIFEST's decisions to; else onnxruntime:fp32.")
    ] = None,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Keep the verdict beside the bundle, for `run`.")
    ] = True,
    json_to: JsonTo = None,
) -> None:
    """Check digests, replay the golden vectors, prove that no case depends on its batch, and hold your own cases'
    decisions to a second target; exit code 3 if anything fails. The verdict is kept in BUNDLE.verified.json."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.predictor import Predictor

    check_json(json_to, bundle, manifest, f"{os.path.realpath(bundle)}.verified.json")
    if frame is not None and manifest is None:
        raise UsageError(
            f"--frame {frame} is given without a manifest, expected both: it is of your own cases' files",
            hint="leave --frame out, or name a MANIFEST",
        )
    wanted = None if target == AUTO else target
    try:
        opened = Bundle.open(bundle)
        found, choice = taken(opened, target, allow_rounding=allow_rounding)
        wanted = str(found)
        second = _second(bundle, manifest, wanted, against)
        cases = read_manifest(manifest) if manifest else None
        with Predictor(opened, found, unproven=True) as predictor:
            _verify(predictor, choice, cases, second, frame, record=record, json_to=json_to)
    except UsageError:
        raise
    except MpmmuError as error:
        # A program that asked gets an answer.
        facts: dict[str, Any] = {
            "target": wanted,
            "passed": False,
            "error": str(error),
            "hint": error.hint,
            "checks": [],
        }
        put_json(json_to, {"schema": SCHEMA, **facts})
        raise


def _verify(
    predictor: Predictor,
    choice: Choice | None,
    cases: Manifest | None,
    second: str | None,
    frame: int | None,
    *,
    record: bool,
    json_to: str | None,
) -> None:
    from mpmmu_rt.verify import stage_at_fault
    from mpmmu_rt.verify import verify as run_checks

    bundle, path, target = predictor.bundle, predictor.bundle.path, str(predictor.target)
    for remark in cases.remarks if cases else ():
        note(f"warning: {remark}")
    own, facts = None, None
    if second is not None:
        _require_listed(predictor, path, second)
    found = run_checks(predictor)
    if cases:
        own = _own(predictor, path, cases, second, frame)
        found += own.checks
        facts = rounded({"manifest": str(cases.path), "sha256": cases.sha256, **own.to_json()})
    checks = rounded([check.to_json() for check in found])
    passed = all(check["passed"] for check in checks)
    failed_with = _failed_with(predictor, facts) if record and passed else ""
    kept, trouble = _keep(predictor, checks, facts) if record else (None, "")
    remarks = predictor.remarks
    stage = stage_at_fault(found) or (own.stage if own else "")
    entry = {
        "schema": SCHEMA,
        "target": target,
        "chosen": choice.to_json() if choice else None,
        "head_target": str(predictor.head_target),
        "remarks": list(remarks),
        "bundle_digest": bundle.digest,
        "trained": bundle.trained,
        "warning": bundle.warning,
        "passed": passed,
        "stage_at_fault": None if passed else stage or None,
        "checks": checks,
        "own_cases": facts,
        "kept_in": str(kept) if kept else None,
    }
    if not put_json(json_to, entry):
        say(checks_table(checks))
        if own:
            say("\n" + decisions_table(own, target))
    if cases and own and own.warned:
        swapped = f", {own.look_swapped} of them that they look swapped" if own.look_swapped else ""
        unlike = f", {own.unlike_training} that an image is unlike the training's" if own.unlike_training else ""
        note(
            f"warning: {own.warned} of {len(cases.cases)} cases have warnings{swapped}{unlike}; the first is "
            f"{own.first_warning}"
        )
    for remark in (*remarks, *([trouble] if trouble else []), *_words(own)):
        note(f"note: {remark}")
    if not passed:
        failed = sum(not check["passed"] for check in checks)
        at = f"; the first stage at fault: {stage}" if stage else ""
        note(f"error: {failed} of {len(checks)} checks failed on {target}, expected none{at}")
        note("hint: do not use this bundle on this machine; try another target, or another version of the engine")
        raise typer.Exit(3)
    note(f"{path}: digests hold, {len(checks)} checks passed on {target}")
    if kept:
        note(f"kept in {kept}")
    if kept and failed_with:
        note(
            f"warning: the verdict that this replaces had failed, with the own cases of {failed_with}, which were not "
            f"asked now: `mpmmu-rt verify {quoted(path)} {quoted(Path(failed_with))} --target {target}` asks them again"
        )
    allowed = choice and predictor.target.precision != "fp32"  # what `run` then comes to again
    named = ("--target", target) if choice is None else ("--allow-rounding",) if allowed else ()
    next_command("run", path, cases.path if cases else "MANIFEST", *named, *(["--require-verified"] if kept else []))


def _second(path: Path, manifest: Path | None, target: str, against: str | None) -> str | None:
    """The target that own cases are held to; None where the first target is asked for, which all are held to."""
    from mpmmu_rt.predictor import DEFAULT_TARGET

    if against is not None and manifest is None:
        raise UsageError(
            f"--against {against} is given without a manifest, expected both: decisions are compared on your own cases",
            hint=f"mpmmu-rt verify {quoted(path)} MANIFEST --target {target} --against {against}",
        )
    if against == target:
        raise UsageError(
            f"--against names {against}, which is the target itself, expected another",
            hint=f"leave --against out, or name another target of the bundle: mpmmu-rt inspect {quoted(path)}",
        )
    return against or (None if target == DEFAULT_TARGET else DEFAULT_TARGET)


def _require_listed(predictor: Predictor, path: Path, second: str) -> None:
    listed = predictor.bundle.targets
    if second not in listed:
        raise UsageError(
            f"--against names {second}, which was not proven when {path} was exported, expected one of "
            f"{', '.join(listed)}",
            hint=f"--against {next(name for name in listed if name != str(predictor.target))}"
            if set(listed) != {str(predictor.target)}
            else "leave --against out",
        )


def _own(predictor: Predictor, path: Path, cases: Any, second: str | None, frame: int | None) -> OwnCases:
    from mpmmu_rt.own_cases import judge
    from mpmmu_rt.predictor import load

    with bars() as progress:
        if second is None:
            return judge(predictor, None, cases, frame=frame, progress=progress)
        with load(path, second) as reference:
            return judge(predictor, reference, cases, frame=frame, progress=progress)


def _keep(
    predictor: Predictor, checks: Sequence[Mapping[str, Any]], own_cases: Mapping[str, Any] | None
) -> tuple[Path | None, str]:
    """Where the verdict is kept, or why it isn't: a place that can't be written is no reason to fail."""
    from mpmmu_rt.verified import keep, place_of

    try:
        return keep(predictor.bundle, predictor.target, checks, own_cases), ""
    except OSError as error:
        place = place_of(predictor.bundle)
        return None, (
            f"the verdict is not kept, for {place} can't be written ({error.strerror}): copy the bundle to a place "
            "that can be, if `run --require-verified` shall find it, or pass --no-record"
        )


def _failed_with(predictor: Predictor, own_cases: Mapping[str, Any] | None) -> str:
    """The manifest of the own cases with which the verdict of before had failed; "" where they were asked again now."""
    from mpmmu_rt.verified import failed_own_cases

    before = failed_own_cases(predictor.bundle, predictor.target)
    if before is None or (own_cases and own_cases["sha256"] == before.get("sha256")):
        return ""
    return str(before.get("manifest"))


def _words(own: OwnCases | None) -> Iterable[str]:
    if own is None:
        return
    yield from own.notes
    if own.unread:
        yield f"{len(own.unread)} cases could not be read and are not counted; the first is {own.unread[0]}"


def checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            check["name"],
            "not finite" if check["value"] is None else figure(check["value"]),
            figure(check["limit"]),
            "ok" if check["passed"] else "FAILED",
        ]
        for check in checks
    ]
    return fitted(["check", "measured", "limit", ""], rows)


def decisions_table(own: OwnCases, target: str) -> str:
    """One sign for every Δ, which the head of the table says."""
    from mpmmu_rt.metrics import share_interval

    found, cases = own.decisions, own.decisions.cases

    def share(hits: int, count: int) -> str:
        low, high = share_interval(hits, count)
        return f"{hits} of {count}: {hits / count:.1%} ({low:.1%} to {high:.1%})"

    rows = [
        [name, f"{pair[0]:.4f}", f"{pair[1]:.4f}", f"{pair[1] - pair[0]:+.4f}" if pair[1] != pair[0] else "0"]
        for name, pair in found.pairs.items()
        if pair
    ]
    people = f" of {own.patients} patients" if own.patients < cases else ""
    title = f"Decisions on {cases} own cases{people}. Reference: {own.reference}; new: {target}. Δ is new - reference."
    flipped = f"{share(found.flips, cases)}; to malignant {found.to_malignant}, to benign {found.to_benign}"
    facts = [("flipped", flipped)]
    if own.at_export:
        facts.append(("… at export", share(*own.at_export)))
    if found.malignant:
        facts.append(("malignant lost", f"{share(found.lost, found.malignant)}; won {found.won}"))
    facts.append(("|Δp|", f"mean {figure(found.mean_difference)}, max {figure(found.max_difference)}"))
    for name, count in (
        ("flips forecast", own.forecast.flips if own.forecast else None),
        ("leaves crossed", own.forecast.crossings if own.forecast else None),
    ):
        if count is not None:
            as_forecast = "as forecast" if count.as_forecast else "NOT as forecast: more than rounding as measured"
            if count.happened < count.low:
                as_forecast = "fewer than forecast"
            between = f"{count.low:.0f} to {count.high:.0f}"
            said = f"{count.expected:.1f} expected ({between}), {count.happened} happened: {as_forecast}"
            facts.append((name, said))
    text = f"{wrapped(title)}\n{pairs(facts)}"
    return f"{text}\n\n{fitted([f'{found.labelled} labelled cases', 'reference', 'new', 'Δ'], rows)}" if rows else text
