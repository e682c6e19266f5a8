from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from mpmmu_rt.errors import UsageError

from ._report import bars, check_output, note, print_json, table, write_json

EXIT_CODES = {"not slower": 0, "slower": 4, "cannot tell": 5}


def compare(
    a: Annotated[Path, typer.Argument(help="What is known to be fast enough.")],
    b: Annotated[Path | None, typer.Argument(help="What is judged [default: A, with --target-b].")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Pairs per call.")] = 32,
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    target_b: Annotated[str | None, typer.Option("--target-b", help="Of B [default: as A].")] = None,
    max_slowdown: Annotated[str, typer.Option("--max-slowdown", help="What is allowed.")] = "5%",
    budget: Annotated[str, typer.Option("--budget", help="How long to measure at the most.")] = "120s",
    json_to: Annotated[str | None, typer.Option("--json", help="Write the result as JSON to a file, or to - .")] = None,
) -> None:
    """Is B slower than A? Exit code 0: no; 4: yes; 5: this machine can't tell within the budget."""
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
    seconds = duration(budget)
    for one in {first, second}:
        engine(one)
    if json_to and json_to != "-":
        check_output(Path(json_to))
    with bars() as progress:
        found = race(*sides, batch, rule=rule, budget_s=seconds, progress=progress)
    entry = found.to_json()
    if json_to == "-":
        print_json(entry)
    else:
        typer.echo(_describe(entry))
        if json_to:
            write_json(Path(json_to), entry)
    if found.verdict.answer == "cannot tell":
        note(f"note: cannot tell: {found.verdict.reason}; --budget {2 * seconds:.0f}s gives it more rounds")
    raise typer.Exit(EXIT_CODES[found.verdict.answer])


def share(text: str) -> float:
    """`5%` and `0.05` are 0.05. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if not match:
        raise UsageError(f"`{text}` is no share, expected a number such as 5% or 0.05", hint="--max-slowdown 5%")
    return float(match[1]) / (100 if match[2] else 1)


def duration(text: str) -> float:
    """Seconds: `90`, `90s` and `1.5m` are 90. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([sm]?)\s*", text)
    if not match or not float(match[1]):
        raise UsageError(
            f"`{text}` is no duration, expected seconds or minutes, such as 120s or 2m", hint="--budget 120s"
        )
    return float(match[1]) * (60 if match[2] == "m" else 1)


def _describe(entry: dict[str, Any]) -> str:
    import numpy as np

    from mpmmu_rt.gate import statistics

    samples = entry["samples_ms"]
    rows = []
    for name, one in entry["estimates"].items():
        ms = [float(np.median([statistics(calls)[name] for calls in samples[side]])) for side in ("a", "b")]
        floor = entry["noise_floor"].get(name, math.nan)
        interval = f"{_percent(one['low'])} to {_percent(one['high'])}"
        rows.append([name, *(f"{value:.3f}" for value in ms), _percent(one["slowdown"]), interval, f"{floor:.1%}"])
    sides = [f"{name.upper()}: {entry[name]['bundle']} on {entry[name]['target']}" for name in ("a", "b")]
    return "\n".join(
        [
            *sides,
            "",
            table(["call", "A ms", "B ms", "B against A", "interval", "A against A"], rows),
            "",
            f"{entry['answer']}: {entry['reason']} (allowed: {entry['rule']['max_slowdown']:.1%}; {entry['rounds']} "
            f"rounds of fresh processes in {entry['seconds']:.0f} s, batch {entry['batch']})",
        ]
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:+.1%}"
