from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.checks import ENOUGH_TO_CROSS
from mpmmu_rt.errors import ParityError, UsageError

from ._report import JsonTo, bars, check_json, count, fitted, going_on, next_command, note, put_json, say, wrapped
from ._target import required

if TYPE_CHECKING:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.spec import Target

FEW_MALIGNANT = 20
REFERENCE_BUNDLE = Path("reference.bundle")


def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Folder of a trained model; without it, the untrained reference model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Bundle to write [default: CHECKPOINT's name + .bundle].")
    ] = None,
    parity: Annotated[
        Path | None, typer.Option("--parity", help="Manifest of cases to prove parity on [default: phantoms].")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Target to prove and list; repeatable [default: all that work here but INT8]."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="MIN/OPT/MAX",
            help="Cases that a TensorRT engine takes at once, and is tuned for; one number N for N alone. More run in "
            "parts, fewer are filled up [default: 1/8/32].",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate", help="Manifest of cases to calibrate INT8 on; those of its test part are left out."
        ),
    ] = None,
    calibrate_phantoms: Annotated[
        int | None,
        typer.Option(
            "--calibrate-phantoms",
            min=2,
            max=2000,
            metavar="N",
            help="Instead, to try INT8: calibrate on N generated phantoms; the bundle says so wherever it is used.",
        ),
    ] = None,
    auc_loss: Annotated[
        float, typer.Option("--auc-loss", min=0, max=1, help="AUC that BF16 or INT8 may lose.")
    ] = 0.005,
    sensitivity_loss: Annotated[
        float, typer.Option("--sensitivity-loss", min=0, max=1, help="Share of malignant cases that they may miss.")
    ] = 0.01,
    flips: Annotated[
        float, typer.Option("--flips", min=0, max=1, help="Share of decisions that they may change.")
    ] = 0.05,
    mean_difference: Annotated[
        float, typer.Option("--mean-difference", min=0, max=1, help="Mean |Δp| that they may cause.")
    ] = 0.03,
    trust_pickle: Annotated[
        Path | None, typer.Option("--trust-pickle", help="A pickled head that you vouch for, by its path.")
    ] = None,
    require_target: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="TARGET", help="Exit code 3 unless the bundle lists it; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    json_to: JsonTo = None,
) -> None:
    """Turn a checkpoint into a verified bundle; exit code 3 and no bundle if it differs from the original."""
    from mpmmu_rt._optional import require
    from mpmmu_rt.engines import known_engine
    from mpmmu_rt.engines.tensorrt.sidecar import Profile
    from mpmmu_rt.spec import Target

    if output is None:
        output = Path(f"{checkpoint.resolve().name}.bundle") if checkpoint else REFERENCE_BUNDLE
    check_json(json_to, checkpoint, output, parity, calibrate)
    targets = tuple(map(Target.parse, target)) if target else None
    must_have = required(require_target)
    batches = Profile() if profile is None else Profile.parse(profile)
    if profile is not None and not any(known_engine(one).traits.profiled for one in targets or ()):
        raise UsageError(
            f"--profile {profile} is given without a target of TensorRT, expected both",
            hint=f"mpmmu-rt export --target tensorrt:fp16 --profile {profile}",
        )
    require("torch", "export")
    from mpmmu_rt import image_warnings
    from mpmmu_rt.export import Limits, Wanted, export_checkpoint, export_reference

    if calibrate and calibrate_phantoms:
        raise UsageError(
            "--calibrate and --calibrate-phantoms are both given, expected one of them",
            hint="leave --calibrate-phantoms out: it is for trying INT8 without images",
        )
    if checkpoint is None and (trust_pickle or parity):
        raise UsageError(
            "--trust-pickle or --parity is given without a CHECKPOINT, expected both",
            hint="mpmmu-rt export CHECKPOINT --parity MANIFEST",
        )
    limits = Limits(auc_loss=auc_loss, sensitivity_loss=sensitivity_loss, flips=flips, mean_difference=mean_difference)
    wanted = Wanted(targets, limits=limits, profile=batches)
    with going_on(output, lambda: "nothing was kept"), bars() as progress:
        if checkpoint is None:
            bundle = export_reference(
                output,
                calibration_manifest=calibrate,
                calibration_phantoms=calibrate_phantoms,
                wanted=wanted,
                overwrite=overwrite,
                progress=progress,
            )
        else:
            bundle = export_checkpoint(
                checkpoint,
                output,
                parity_manifest=parity,
                calibration_manifest=calibrate,
                calibration_phantoms=calibrate_phantoms,
                wanted=wanted,
                trust_pickle=trust_pickle,
                overwrite=overwrite,
                progress=progress,
            )
    report = bundle.entry["parity"]
    entry = report | {
        "warning": bundle.warning,
        "targets": list(bundle.targets),
        "precision": bundle.entry["precision"],
        "calibration": bundle.entry["calibration"],
    }
    if not put_json(json_to, entry):
        from .verify import checks_table

        say(checks_table(report["checks"]))
        said = (
            f"{count(report['cases'], 'case')} ({report['source']}): {report['decisions_flipped']} decisions flipped, "
            f"{report['split_crossings']} differ by more than rounding may"
        )
        say("\n" + wrapped(said))
        say("\n" + targets_table(bundle.entry))
    for licence in dict.fromkeys(known_engine(Target.parse(name)).traits.licence for name in bundle.targets):
        if licence:
            note(f"note: {licence}")
    for text in image_warnings.lines(report["image_warnings"]):
        note(text)
    for text in bundle.entry["head"]["head"]["notes"]:
        note(f"warning: {text}")
    for text in thin_proofs(bundle.entry):
        note(f"warning: {text}")
    note(f"wrote {output} ({bundle.name}, {sum(f['bytes'] for f in bundle.entry['files'].values()) / 1e6:.1f} MB)")
    warn_untrained(bundle.trained)
    warn_phantoms(bundle.entry)
    asked = "--calibrate" if calibrate else "--calibrate-phantoms" if calibrate_phantoms else ""
    _require_listed(bundle, must_have, calibrated=asked)
    next_command("verify", output)


def _require_listed(bundle: Bundle, required: Sequence[Target], *, calibrated: str) -> None:
    """Warn of an INT8 that was calibrated for in vain, by the option `calibrated`. Raises `ParityError` for what had to
    be listed, and is not."""
    from mpmmu_rt.spec import Target

    left_out = {name: report["reason"] for name, report in bundle.entry["precision"].items() if not _listed(report)}
    missing = [target.plain for target in required if str(target) not in bundle.targets]
    if missing:
        why = left_out.get(missing[0], "it was not asked for")
        raise ParityError(
            f"{missing[0]} is not among the targets of {bundle.path} ({', '.join(bundle.targets)}), and was required: "
            f"{why}",
            hint="the bundle was written without it; settle what the reason says, and export again with --overwrite",
        )
    if calibrated and not any(Target.parse(name).in_8_bits for name in bundle.targets):
        why = next((left_out[name] for name in left_out if Target.parse(name).in_8_bits), "no engine here runs it")
        note(f"warning: {calibrated} was given, and there is NO INT8 in {bundle.path}: {why}")


def _listed(report: Mapping[str, Any]) -> bool:
    return report["passed"] is not False


def thin_proofs(entry: Mapping[str, Any]) -> list[str]:
    """What is weak about the cases that a bundle was proven on."""
    parity, found = entry["parity"], []
    judged = [name for name, report in entry["precision"].items() if _listed(report) and not name.endswith(":fp32")]
    if parity["cases"] < ENOUGH_TO_CROSS:
        found.append(
            f"parity was shown on {parity['cases']} cases alone; --parity with some {ENOUGH_TO_CROSS} shows more"
        )
    if judged and parity.get("judged_learnt"):
        found.append(
            f"{', '.join(judged)} were judged on {parity['judged']} cases, of which {parity['judged_learnt']} show "
            "images that the model was trained on, and finds easy: name other patients' with --parity"
        )
    elif parity.get("learnt"):
        found.append(
            f"{parity['learnt']} of the {parity['cases']} cases of the parity check were trained on; other patients' "
            "would be a harder test"
        )
    return found + [text for name in judged for text in _weak_gate(name, entry["precision"][name])]


def _weak_gate(target: str, report: Mapping[str, Any]) -> list[str]:
    """What a target that rounds was not held to, or on too few malignant cases to show it."""
    gate: Mapping[str, Any] = next((one for one in (report.get("gate"), report.get("graph")) if one), report)
    malignant = gate.get("malignant")
    if malignant is None:  # nothing was judged: no engine runs it here
        return []
    if gate["auc_delta"] is None:
        return [
            f"{target} was held to no AUC, and may rank cases otherwise: {gate['basis']}. Label the cases that judge it"
        ]
    if malignant < FEW_MALIGNANT:
        share = f"{1 / malignant:.0%}"
        return [
            f"the sensitivity of {target} was held to FP32's on {count(malignant, 'malignant case')} alone: one of "
            f"them, {share}, is the least loss that could be seen; name more with --parity"
        ]
    return []


def targets_table(entry: Mapping[str, Any]) -> str:
    """Which targets are in, which were left out, and why."""
    rows = [[entry["parity"]["target"], "in", "held to torch and scikit-learn"]]
    for name, report in entry["precision"].items():
        line = next(iter(describe_precision({"precision": {name: report}})), "")
        why = line.removeprefix(f"{name}: ").removeprefix("left out: ")
        rows.append([name, "in" if report["passed"] else "NOT RUN" if _listed(report) else "left out", why])
    return fitted(["target", "", "why"], rows)


def describe_precision(entry: Mapping[str, Any]) -> list[str]:
    """A line for each target beyond the first: what was measured, or why it was left out."""
    lines = []
    for target, report in entry["precision"].items():
        if report["passed"] is None:
            sizes = ", ".join(
                f"{name} {engine['engine_bytes'] / 1e6:.1f} MB" for name, engine in report["engines"].items()
            )
            lines.append(f"{target}: built ({sizes or 'graphs only'}), NOT RUN: {report['reason']}")
            if "graph" in report:
                lines.append(f"{target}: its graph, not the engine: {_decisions(report['graph'])}")
            if "quantization" in report:
                lines.append(f"{target}: {_kept(report['quantization'])}")
        elif not report["passed"]:
            lines.append(f"{target}: left out: {report['reason']}")
        else:
            gate = report.get("gate", report)
            kept = f"; {_kept(report)}" if "layers" in report else ""
            lines.append(f"{target}: {_decisions({**gate, 'source': report['source']})}{kept}")
    return lines


def _decisions(gate: Mapping[str, Any]) -> str:
    delta = gate["auc_delta"] if "auc_delta" in gate else _negative(gate.get("auc_loss"))
    auc = "" if delta is None else f", ΔAUC {f'{delta:+.4f}' if round(delta, 4) else '0'}"
    mean = f", mean |Δp| {gate['mean_difference']:.4f}" if "mean_difference" in gate else ""
    return f"{gate['decisions_flipped']} of {gate['cases']} decisions flipped{mean}{auc} ({gate['source']})"


def _negative(loss: float | None) -> float | None:
    """A bundle of before holds what was lost, not the difference."""
    return None if loss is None else -loss


def _kept(report: Mapping[str, Any]) -> str:
    return f"{len(report['kept_float'])} of {report['layers']} layers kept in float"


def warn_phantoms(entry: Mapping[str, Any]) -> None:
    from mpmmu_rt.bundle import TRIED_INT8, warnings_of

    if TRIED_INT8 in warnings_of(entry):
        note(f"warning: {TRIED_INT8}")


def warn_untrained(trained: bool) -> None:
    if not trained:
        note("note: this is the UNTRAINED reference model; its probabilities mean nothing")
