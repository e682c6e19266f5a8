from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import UsageError

from ._report import bars, note, print_json

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
    trust_pickle: Annotated[
        Path | None, typer.Option("--trust-pickle", help="A pickled head that you vouch for, by its path.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON.")] = False,
) -> None:
    """Turn a checkpoint into a verified bundle; exit code 3 and no bundle if it differs from the original."""
    from mpmmu_rt._optional import require

    require("torch", "export")
    from mpmmu_rt.export import export_checkpoint, export_reference

    if checkpoint is None and (trust_pickle or parity):
        raise UsageError(
            "--trust-pickle or --parity is given without a CHECKPOINT, expected both",
            hint="mpmmu-rt export CHECKPOINT --parity MANIFEST",
        )
    if output is None:
        output = Path(f"{checkpoint.resolve().name}.bundle") if checkpoint else REFERENCE_BUNDLE
    with bars() as progress:
        if checkpoint is None:
            bundle = export_reference(output, overwrite=overwrite, progress=progress)
        else:
            bundle = export_checkpoint(
                checkpoint,
                output,
                parity_manifest=parity,
                trust_pickle=trust_pickle,
                overwrite=overwrite,
                progress=progress,
            )
    report = bundle.entry["parity"]
    if as_json:
        print_json(report)
    else:
        from .verify import checks_table

        typer.echo(checks_table(report["checks"]))
        typer.echo(
            f"{report['cases']} cases ({report['source']}): {report['decisions_flipped']} decisions flipped, "
            f"{report['split_crossings']} differ by more than rounding may"
        )
    for text in bundle.entry["head"]["head"]["notes"]:
        note(f"warning: {text}")
    note(f"wrote {output} ({bundle.name}, {sum(f['bytes'] for f in bundle.entry['files'].values()) / 1e6:.1f} MB)")
    warn_untrained(bundle.trained)


def warn_untrained(trained: bool) -> None:
    if not trained:
        note("note: this is the UNTRAINED reference model; its probabilities mean nothing")
