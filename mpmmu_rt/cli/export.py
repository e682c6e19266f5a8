from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mpmmu_rt.errors import UsageError

from ._report import bars, count, next_command, note, print_json, wrapped

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
        Path | None, typer.Option("--calibrate", help="Manifest of cases to calibrate INT8 on.")
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON.")] = False,
) -> None:
    """Turn a checkpoint into a verified bundle; exit code 3 and no bundle if it differs from the original."""
    from mpmmu_rt._optional import require
    from mpmmu_rt.engines import known_engine
    from mpmmu_rt.engines.tensorrt.sidecar import Profile
    from mpmmu_rt.spec import Target

    targets = tuple(map(Target.parse, target)) if target else None
    batches = Profile() if profile is None else Profile.parse(profile)
    if profile is not None and not any(known_engine(one).traits.profiled for one in targets or ()):
        raise UsageError(
            f"--profile {profile} is given without a target of TensorRT, expected both",
            hint=f"mpmmu-rt export --target tensorrt:fp16 --profile {profile}",
        )
    require("torch", "export")
    from mpmmu_rt import image_warnings
    from mpmmu_rt.export import Limits, Wanted, export_checkpoint, export_reference

    if checkpoint is None and (trust_pickle or parity or calibrate):
        raise UsageError(
            "--trust-pickle, --parity or --calibrate is given without a CHECKPOINT, expected both",
            hint="mpmmu-rt export CHECKPOINT --parity MANIFEST",
        )
    if output is None:
        output = Path(f"{checkpoint.resolve().name}.bundle") if checkpoint else REFERENCE_BUNDLE
    limits = Limits(auc_loss=auc_loss, sensitivity_loss=sensitivity_loss, flips=flips, mean_difference=mean_difference)
    wanted = Wanted(targets, limits=limits, profile=batches)
    with bars() as progress:
        if checkpoint is None:
            bundle = export_reference(output, wanted=wanted, overwrite=overwrite, progress=progress)
        else:
            bundle = export_checkpoint(
                checkpoint,
                output,
                parity_manifest=parity,
                calibration_manifest=calibrate,
                wanted=wanted,
                trust_pickle=trust_pickle,
                overwrite=overwrite,
                progress=progress,
            )
    report = bundle.entry["parity"]
    if as_json:
        print_json(report | {"targets": list(bundle.targets), "precision": bundle.entry["precision"]})
    else:
        from .verify import checks_table

        typer.echo(checks_table(report["checks"]))
        said = (
            f"{count(report['cases'], 'case')} ({report['source']}): {report['decisions_flipped']} decisions flipped, "
            f"{report['split_crossings']} differ by more than rounding may"
        )
        typer.echo("\n" + wrapped("\n".join([said, *describe_precision(bundle.entry)])))
    for licence in dict.fromkeys(known_engine(Target.parse(name)).traits.licence for name in bundle.targets):
        if licence:
            note(f"note: {licence}")
    for text in image_warnings.lines(report["image_warnings"]):
        note(text)
    for text in bundle.entry["head"]["head"]["notes"]:
        note(f"warning: {text}")
    note(f"wrote {output} ({bundle.name}, {sum(f['bytes'] for f in bundle.entry['files'].values()) / 1e6:.1f} MB)")
    warn_untrained(bundle.trained)
    next_command("verify", output)


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


def warn_untrained(trained: bool) -> None:
    if not trained:
        note("note: this is the UNTRAINED reference model; its probabilities mean nothing")
