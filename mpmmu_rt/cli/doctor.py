from __future__ import annotations

from typing import Annotated

import typer

from ._report import note, print_json, table


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say which targets work here, which do not and why; exit code 1 if none does."""
    from mpmmu_rt import machine
    from mpmmu_rt.doctor import examine, to_json

    targets, abilities = examine()
    if as_json:
        print_json(to_json(targets, abilities))
    else:
        facts = machine.describe()
        typer.echo(
            f"{facts['cpu']}, {facts['threads']} threads ({', '.join(facts['cpu_features']) or 'no vector units'})"
        )
        typer.echo(f"{facts['system']}, Python {facts['python']}\n")
        for header, findings in (("target", targets), ("ability", abilities)):
            rows = [[item.name, "ok" if item.usable else "no", item.detail] for item in findings]
            typer.echo(table([header, "", ""], rows) + "\n")
        hints: dict[str, list[str]] = {}  # the same for many targets, and then said once
        for item in (*targets, *abilities):
            if item.hint:
                hints.setdefault(item.hint, []).append(item.name)
        for hint, names in hints.items():
            note(f"hint: {', '.join(names)}: {hint}")
    if not any(item.usable for item in targets):
        raise typer.Exit(1)
