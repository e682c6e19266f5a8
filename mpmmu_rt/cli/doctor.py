from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ._report import JsonTo, check_json, count, fitted, note, put_json, say, wrapped
from ._target import required

if TYPE_CHECKING:
    from mpmmu_rt.doctor import Finding


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
    from mpmmu_rt.engines import engine

    check_json(json_to)
    asked = required(require)

    targets, abilities = examine()
    if not put_json(json_to, to_json(targets, abilities)):
        facts = machine.describe()
        units = ", ".join(facts["cpu_features"]) or "no vector units"
        say(wrapped(f"{facts['cpu']}, {count(facts['threads'], 'thread')} ({units})"))
        say(wrapped(f"{facts['system']}, Python {facts['python']}") + "\n")
        for header, findings in (("target", targets), ("ability", abilities)):
            say(fitted([header, "", ""], _rows(findings)) + "\n")
        say("known:")
        about: dict[str, list[str]] = {}
        for known in advise(targets):
            about.setdefault(f"{known.says} ({known.found}, {known.source})", []).append(known.about)
        for says, names in about.items():
            say(wrapped(f"  {', '.join(names)}: {says}"))
        hints: dict[str, list[str]] = {}  # the same for many targets, and then said once
        for item in (*targets, *abilities):
            if item.hint:
                hints.setdefault(item.hint, []).append(item.name)
        for hint, names in hints.items():
            note(f"hint: {', '.join(names)}: {hint}")
    for target in asked:
        engine(target)
    if not any(item.usable for item in targets):
        raise typer.Exit(1)


def _rows(findings: Sequence[Finding]) -> list[list[str]]:
    """A row for each; one for all precisions of an engine that can't run for one reason."""
    rows: dict[tuple[str, str], list[str]] = {}
    for item in findings:
        engine, _, precision = item.name.partition(":")
        together = (item.name if item.usable else engine, item.detail)
        if together in rows:
            rows[together][0] += f", {precision}"
        else:
            rows[together] = [item.name, "ok" if item.usable else "no", item.detail]
    return list(rows.values())
