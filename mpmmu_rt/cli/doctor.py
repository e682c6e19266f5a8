from __future__ import annotations

from typing import Annotated

import typer

from ._report import JsonTo, check_json, note, put_json, table


def doctor(
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="TARGET", help="Fail unless this target works here; may be repeated."),
    ] = None,
    json_to: JsonTo = None,
) -> None:
    """Say which targets work here, which do not and why; exit code 1 if none does, or one that is required does not."""
    from mpmmu_rt import machine
    from mpmmu_rt.doctor import advise, examine, to_json
    from mpmmu_rt.engines import engine, known_engine
    from mpmmu_rt.spec import Target

    check_json(json_to)
    required = [Target.parse(text) for text in require or ()]
    for target in required:
        known_engine(target)

    targets, abilities = examine()
    if not put_json(json_to, to_json(targets, abilities)):
        facts = machine.describe()
        typer.echo(
            f"{facts['cpu']}, {facts['threads']} threads ({', '.join(facts['cpu_features']) or 'no vector units'})"
        )
        typer.echo(f"{facts['system']}, Python {facts['python']}\n")
        for header, findings in (("target", targets), ("ability", abilities)):
            rows = [[item.name, "ok" if item.usable else "no", item.detail] for item in findings]
            typer.echo(table([header, "", ""], rows) + "\n")
        typer.echo("known:")
        for known in advise(targets):
            typer.echo(f"  {known.about}: {known.says} ({known.found}, {known.source})")
        hints: dict[str, list[str]] = {}  # the same for many targets, and then said once
        for item in (*targets, *abilities):
            if item.hint:
                hints.setdefault(item.hint, []).append(item.name)
        for hint, names in hints.items():
            note(f"hint: {', '.join(names)}: {hint}")
    for target in required:
        engine(target)
    if not any(item.usable for item in targets):
        raise typer.Exit(1)
