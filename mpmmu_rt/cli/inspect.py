from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mpmmu_rt.errors import BundleError

from ._report import print_json, table, wrapped
from .export import describe_precision, warn_untrained


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle to look at.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json.")] = False,
) -> None:
    """Say what a bundle is, what it runs on and what was proven of it. Loads no engine; checks every digest."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.engines import engines
    from mpmmu_rt.spec import Target

    opened = Bundle.open(bundle)
    entry = opened.entry
    if as_json:
        print_json(entry)
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
        if isinstance(value, str) and key not in ("library_name", "pipeline_tag"):
            typer.echo(wrapped(f"{key.replace('_', ' ')}: {value}"))
    for text in card.get("limitations", ()):
        typer.echo(wrapped(f"limit: {text}"))
    for line in _evaluations(card):
        typer.echo(line)
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


def _evaluations(card: Mapping[str, Any]) -> Iterator[str]:
    """A line for each evaluation of the card, after that of the training's own test part."""
    from mpmmu_rt.evaluation.text import with_interval

    own = ((card.get("metrics") or {}).get("test") or {}).get("fused")
    if own:
        yield f"the training's own test part: AUC {with_interval(own['auc'], 3)}"
    for one in card.get("eval_metrics") or ():
        patients = one["cases"]["patients"]
        yield wrapped(
            f"evaluated on {one['dataset']} ({one['target']}, {one['measured_at'][:10]}): AUC "
            f"{with_interval(one['auc'], 3)}; {patients['malignant']} malignant, {patients['benign']} benign patients"
        )
        for text in one["remarks"]:
            if text.startswith("WARNING"):
                yield wrapped(text)
