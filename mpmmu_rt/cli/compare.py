from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.counts import Moved
from mpmmu_rt.errors import UsageError
from mpmmu_rt.files import rounded
from mpmmu_rt.options import allowances, duration, share
from mpmmu_rt.report_parts import warnings_of_sides

from ._report import JsonTo, bars, check_html, check_json, count, fitted, note, put_json, say, wrapped, write_html

if TYPE_CHECKING:
    from mpmmu_rt.compare import Comparison

EXIT_CODES = {"not slower": 0, "slower": 4, "cannot tell": 5}


def compare(
    a: Annotated[Path, typer.Argument(help="What is known to be fast enough.")],
    b: Annotated[Path | None, typer.Argument(help="What is judged [default: A, with --target-b].")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Pairs per call.")] = 32,
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    target_b: Annotated[str | None, typer.Option("--target-b", help="Of B [default: as A].")] = None,
    max_slowdown: Annotated[str, typer.Option("--max-slowdown", help="What is allowed.")] = "5%",
    allow_counts: Annotated[
        list[str] | None,
        typer.Option("--allow-counts", help="NAME or NAME=5%: a count that may grow; all others must not."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="How long to measure at the most.")] = "120s",
    json_to: JsonTo = None,
    html_to: Annotated[Path | None, typer.Option("--html", help="Write a report with plots: one HTML page.")] = None,
) -> None:
    """Is B slower than A? Exit code 0: no; 4: yes, or a count grew that must not; 5: can't tell within the budget."""
    from mpmmu_rt.compare import Side
    from mpmmu_rt.compare import compare as race
    from mpmmu_rt.engines import engine
    from mpmmu_rt.gate import Rule
    from mpmmu_rt.spec import Target

    first, second = Target.parse(target), Target.parse(target_b or target)
    sides = Side(a, first), Side(b or a, second)
    if (a, first) == (b or a, second):
        raise UsageError(
            f"{sides[0]} is compared with itself, expected another bundle or another target",
            hint="name a second bundle, or --target-b",
        )
    rule = Rule(share(max_slowdown))
    seconds, may_grow = duration(budget), allowances(allow_counts or [])
    for one in {first, second}:
        engine(one)
    check_json(json_to, a, b, html_to)
    check_html(html_to, a, b)
    with bars() as progress:
        found = race(*sides, batch, rule=rule, allow_counts=may_grow, budget_s=seconds, progress=progress)
    entry = rounded(found.to_json())
    if not put_json(json_to, entry):
        say(_describe(entry))
    if html_to:
        write_html(html_to, entry)
    for warning in warnings_of_sides(entry):
        note(f"warning: {warning}")
    if first == found.b.target and found.bundles[0].digest == found.bundles[1].digest:
        note("note: A and B are the same bundle, byte by byte: only the machine was compared")
    if found.verdict.answer == "cannot tell":
        more = f"; --budget {_more(found, seconds)}s gives it more rounds" if found.cut_short else ""
        note(f"note: cannot tell: {found.verdict.reason}{more}")
    note_counts(found.more)
    raise typer.Exit(EXIT_CODES["slower" if found.more else found.verdict.answer])


def _more(found: Comparison, seconds: float) -> int:
    """Of the budget: twice as much, and no less than eight rounds take, of which six can tell."""
    rounds = found.verdict.rounds
    return math.ceil(max(2 * seconds, 8 * found.seconds / rounds if rounds else 0))


def note_counts(more: Sequence[Moved]) -> None:
    """How to allow counts that must not have moved, if there are any."""
    if more:
        names = " ".join(f"--allow-counts {one.name}" for one in more)
        note(f"note: {count(len(more), 'count')} grew or changed; what is meant to is allowed by {names}")


def verdict(entry: dict[str, Any]) -> str:
    """What the exit code says: counts that must not have moved come before the time."""
    said = f"{entry['answer']}: {entry['reason']}"
    worse = sum(one["worse"] for one in entry["moved"])
    return f"refused: {count(worse, 'count')} grew or changed; as for time, {said}" if worse else said


def describe_counts(entry: dict[str, Any]) -> list[str]:
    """Lines of the counts that moved, of a document with `counts` and `moved`; one line where none did."""
    if not entry["moved"]:
        return [f"counts: all {len(entry['counts']['a'])} are the same", ""]
    targets = {side["target"] for side in (entry.get("a"), entry.get("b")) if side}
    if len(targets) > 1:
        found = count(len(entry["moved"]), "count")
        return [wrapped(f"two targets: {found} differ by nature, and are not judged; --json lists them"), ""]
    rows = []
    for one in entry["moved"]:
        moved = Moved(**one)
        cells = ["-" if value is None else str(value) for value in (moved.a, moved.b)]
        rows.append([moved.name, *cells, moved.change, "not allowed" if moved.worse else ""])
    return [fitted(["count", "A", "B", "change", ""], rows), ""]


def estimate_row(name: str, one: dict[str, Any], turns: dict[str, list[list[float]]], floor: float | None) -> list[str]:
    """Cells: statistic, ms of A and of B, B against A, its interval, and what the machine moves by."""
    import numpy as np

    from mpmmu_rt.gate import statistics

    ms = [float(np.median([statistics(calls)[name] for calls in turns[side]])) for side in ("a", "b")]
    interval = "-" if one["low"] is None else f"{_percent(one['low'])} to {_percent(one['high'])}"
    return [
        name,
        *(f"{value:.3f}" for value in ms),
        _percent(one["slowdown"]),
        interval,
        "-" if floor is None else f"{floor:.1%}",
    ]


def _describe(entry: dict[str, Any]) -> str:
    rows = [
        estimate_row(name, one, entry["samples_ms"], entry["noise_floor"].get(name))
        for name, one in entry["estimates"].items()
    ]
    sides = [f"{name.upper()}: {entry[name]['bundle']} on {entry[name]['target']}" for name in ("a", "b")]
    return "\n".join(
        [
            *map(wrapped, sides),
            "",
            *describe_counts(entry),
            fitted(["call", "A ms", "B ms", "B against A", "interval", "A against A"], rows),
            "",
            wrapped(
                f"{verdict(entry)} (allowed: {entry['rule']['max_slowdown']:.1%}; "
                f"{count(entry['rounds'], 'round')} of fresh processes in {entry['seconds']:.0f} s, batch "
                f"{entry['batch']})"
            ),
        ]
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:+.1%}"
