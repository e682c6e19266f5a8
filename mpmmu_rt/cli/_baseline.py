"""`bench --save` and `bench --baseline`: turns for later, and turns against those of earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mpmmu_rt.baseline import EXIT_CODES, judge_against, save
from mpmmu_rt.baseline_file import Baseline
from mpmmu_rt.compare import Side
from mpmmu_rt.files import rounded
from mpmmu_rt.gate import Rule
from mpmmu_rt.options import allowances, duration, share
from mpmmu_rt.spec import Target

from ._report import bars, check_output, fitted, next_command, note, put_json, say, wrapped
from .compare import describe_counts, estimate_row, note_counts, verdict


def save_baseline(path: Path, bundle: Path, target: Target, batch: int, *, budget: str) -> None:
    """Write the baseline, and say what it holds."""
    seconds = duration(budget)
    check_output(path, bundle, stdout=False)
    with bars() as progress:
        found = save(path, Side(bundle, target), batch, budget_s=seconds, progress=progress)
    held = found.sessions
    say(f"{path}: {sum(len(one.turns) for one in held)} turns of {found.bundle} on {target}, batch {batch}")
    named = ("--target", target, "--batch", batch)
    next_command("bench", bundle, *named, "--baseline", path)
    if len(held) == 1:
        note(
            "note: one session can't show what differs from day to day: the same command on another day adds one, or "
            "`mpmmu-rt compare` takes turns with both bundles"
        )


def judge_baseline(
    path: Path,
    bundle: Path,
    target: Target,
    batch: int,
    *,
    max_slowdown: str,
    allow_counts: list[str],
    allow_different: bool,
    budget: str,
    json_to: str | None,
) -> None:
    """Print the judgement and end with its exit code."""
    rule, may_grow, seconds = Rule(share(max_slowdown)), allowances(allow_counts), duration(budget)
    with bars() as progress:
        found = judge_against(
            path,
            Side(bundle, target),
            batch,
            rule=rule,
            allow_counts=may_grow,
            allow_different=allow_different,
            budget_s=seconds,
            progress=progress,
        )
    entry = rounded(found.to_json())
    if not put_json(json_to, entry):
        say(_describe(path, found.stored, entry, target, batch))
    if found.different:
        note(
            f"note: under other conditions ({'; '.join(found.different)}) only a slowdown of "
            f"{found.rule.max_slowdown:.0%} or more would be seen"
        )
    note_counts(found.more)
    if found.answer == "cannot tell":
        note(f"note: cannot tell: {found.verdict.reason}; `mpmmu-rt compare` judges two bundles on one machine")
    raise typer.Exit(EXIT_CODES["slower" if found.more else found.answer])


def _describe(path: Path, stored: Baseline, entry: dict[str, Any], target: Target, batch: int) -> str:
    earlier = [turn for one in stored.sessions for turn in one.turns]
    sides = {"a": earlier, "b": entry["samples_ms"]}
    rows = [estimate_row(name, one, sides, entry["floor"].get(name)) for name, one in entry["estimates"].items()]
    days = ", ".join(one.taken[:10] for one in stored.sessions)
    return "\n".join(
        [
            wrapped(f"A: {stored.bundle} ({stored.digest[:12]}) on {target}, {len(earlier)} turns of {days} in {path}"),
            wrapped(f"B: {entry['bundle']} ({entry['bundle_digest'][:12]}) on {target}, now"),
            "",
            *describe_counts(entry | {"counts": {"a": stored.counts, "b": entry["counts"]}}),
            fitted(["call", "A ms", "B ms", "B against A", "interval", "machine"], rows),
            "",
            wrapped(
                f"{verdict(entry)} (allowed: {entry['rule']['max_slowdown']:.1%}; "
                f"{entry['rounds']} turns of fresh processes, batch {batch})"
            ),
        ]
    )
