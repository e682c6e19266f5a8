from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import BundleError

from ._report import JsonTo, check_json, put_json, table
from .export import describe_precision, warn_untrained


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle to look at.")],
    json_to: JsonTo = None,
) -> None:
    """Say what a bundle is, what it runs on and what was proven of it. Loads no engine; checks every digest."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.engines import engines
    from mpmmu_rt.spec import Target

    check_json(json_to)
    opened = Bundle.open(bundle)
    entry = opened.entry
    if put_json(json_to, entry, exact=True):
        return
    runs = []
    for name in opened.targets:
        target = Target.parse(name)
        known = target.engine in engines()
        problem = engines()[target.engine].problem(target.precision) if known else None
        verdict = "runs here" if known and problem is None else str(problem or "unknown to this version")
        runs.append([name, verdict])
    card, parity = entry["card"], entry["parity"]
    typer.echo(f"{opened.name}  (bundle {opened.digest[:12]}, {entry['schema']})")
    for key, value in card.items():
        if isinstance(value, str):
            typer.echo(f"{key.replace('_', ' ')}: {value}")
    typer.echo(f"operating threshold: {opened.threshold:g}; preprocessing: {entry['preprocessing']}")
    if not parity:
        raise BundleError(f"{bundle} holds no parity report, expected a verified bundle", hint="export it again")
    worst = max(parity["checks"], key=lambda check: check["value"] / (check["limit"] or 1e-30))
    typer.echo(
        f"parity on {parity['cases']} cases ({parity['source']}): {parity['decisions_flipped']} decisions flipped; "
        f"closest to its limit: {worst['name']} {worst['value']:.1e} of {worst['limit']:.0e}"
    )
    for line in describe_precision(entry):
        typer.echo(line)
    for name, head in entry["head"].items():
        forests = [f"{'+'.join(map(str, one['trees']))} trees by {one['strategy']}" for one in head["forests"]]
        typer.echo(f"{name}: {', '.join(forests) or 'no trees'}")
    for text in entry["head"]["head"]["notes"]:
        typer.echo(f"warning: {text}")
    typer.echo("\n" + table(["target", ""], runs))
    typer.echo(
        "\n"
        + table(["tensor", "dtype", "shape"], [[s.name, s.dtype, str(list(s.shape))] for s in opened.tensors.values()])
    )
    files = [[name, f"{facts['bytes']}", facts["sha256"][:12]] for name, facts in entry["files"].items()]
    typer.echo("\n" + table(["file", "bytes", "sha256"], files))
    versions = ", ".join(f"{name} {version}" for name, version in entry["provenance"]["versions"].items())
    typer.echo(f"\nmade with {versions}")
    warn_untrained(opened.trained)
