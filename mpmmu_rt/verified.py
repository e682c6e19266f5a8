"""The verdict of `verify`, kept beside the bundle: was this bundle verified, on this machine, on this target?

`<bundle>.verified.json` is a JSON object with the keys `schema` and `records`: one for each target and machine, of one
bundle alone. A record counts for the bundle with its digest, on a machine with its `facts`: processor, extensions,
threads, GPU, and the versions of all that computes. Whatever differs is said.

It is no signature: whoever may write beside the bundle may write that it was verified. It keeps people from forgetting,
and from taking a verdict to another machine, bundle or version; not an attacker out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import machine
from .bundle import Bundle
from .engines import head_target, known_engine
from .engines.shared.gpu import gpu
from .errors import MpmmuError, ParityError, quoted
from .files import MAX_JSON_BYTES, parse_json_object, read_bounded, write_json
from .spec import Target

SCHEMA = "mpmmu-verified/1"
_NUMBERS = ("mpmmu-rt", "numpy")


@dataclass(frozen=True)
class Verdict:
    """passed: None where no record counts here; `why` says what is missing or differs. date: ISO 8601, UTC."""

    passed: bool | None
    why: str
    date: str = ""
    checks: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def place_of(bundle: Bundle) -> Path:
    """Where the verdicts of `bundle` are kept."""
    path = bundle.root.resolve()
    return path.with_name(f"{path.name}.verified.json")


def facts_of(target: Target) -> dict[str, str]:
    """All that an answer of `target` here depends on beside the bundle. Raises `MissingPackage` or `EngineError`."""
    here, found, head = machine.describe(), known_engine(target), head_target(target)
    versions = {name: here["packages"].get(name, "") for name in _NUMBERS}
    chip = gpu() if found.traits.gpu else None
    system, *_, architecture = here["system"].split()
    return {
        "processor": str(here["cpu"]),
        "extensions": " ".join(here["cpu_features"]),
        "threads": str(here["threads"]),
        "system": f"{system} {architecture}",
        "GPU": f"{chip.name}, {chip.capability}, {chip.driver}" if chip else "",
        target.engine: found.version(),
        f"head ({head.engine})": known_engine(head).version(),
        **versions,
        **{name: os.environ.get(name, "") for name in machine.HELD_TO},
    }


def keep(
    bundle: Bundle, target: Target, checks: Sequence[Mapping[str, Any]], own_cases: Mapping[str, Any] | None = None
) -> Path:
    """Enter the verdict into the file beside `bundle`, whole or not at all; returns its path.

    It takes the place of an earlier one of the same target and machine; those of other bundles go. checks: of
    `Check.to_json`. own_cases: what they were, and what was found. Raises `OSError` where nothing can be written, and
    what `facts_of` does. Of two processes that write at once, one loses its record: the bundle is then not verified.
    """
    path, facts = place_of(bundle), facts_of(target)
    others = []
    with contextlib.suppress(ParityError):  # what can't be read is no record, and is replaced
        others = [
            record
            for record in _read(path)
            if record["bundle"] == bundle.digest
            and (record["target"] != str(target) or any(_differences(record, bundle.digest, facts)))
        ]
    record = {
        "bundle": bundle.digest,
        "name": bundle.name,
        "warning": bundle.warning,
        "target": str(target),
        "passed": _passed(checks),
        "date": machine.now(),
        "facts": facts,
        "machine": machine.describe(),
        "checks": list(checks),
        "own_cases": own_cases,
    }
    entry = {
        "schema": SCHEMA,
        "says": "what `mpmmu-rt verify` found; no signature: whoever may write this file may write anything into it",
        "records": [*others, record],
    }
    write_json(path, entry)
    return path


def failed_own_cases(bundle: Bundle, target: Target) -> Mapping[str, Any] | None:
    """What the own cases were with which `bundle` failed here, by the verdict that `keep` would replace; None without
    such a verdict. Raises what `facts_of` does."""
    facts = facts_of(target)
    with contextlib.suppress(ParityError):  # what can't be read is no record
        for record in _read(place_of(bundle)):
            same = record["target"] == str(target) and not any(_differences(record, bundle.digest, facts))
            if same and not _passed(record["checks"]) and isinstance(own := record.get("own_cases"), dict):
                return own
    return None


def look_up(bundle: Bundle, target: Target) -> Verdict:
    """What is known of `bundle` on `target` here. Raises nothing: what can't be read or told does not count."""
    try:
        records = [record for record in _read(place_of(bundle)) if record["target"] == str(target)]
        facts = facts_of(target)
    except MpmmuError as error:
        return Verdict(None, str(error))
    if not records:
        return Verdict(None, f"there is no verdict for {target}")
    differences = [list(_differences(record, bundle.digest, facts)) for record in records]
    best = min(range(len(records)), key=lambda index: len(differences[index]))
    record = records[best]
    if differences[best]:
        return Verdict(None, f"the verdict of {record['date']} is for {', '.join(differences[best])}")
    passed = _passed(record["checks"])
    why = "" if passed else f"{sum(check['passed'] is not True for check in record['checks'])} checks failed"
    return Verdict(passed, why, record["date"], len(record["checks"]))


def require(verdict: Verdict, bundle: Bundle, target: Target) -> None:
    """Raise `ParityError` unless the bundle was verified here."""
    if verdict.passed:
        return
    state = "failed its verification" if verdict.passed is False else "is not verified"
    raise ParityError(
        f"{bundle.path} {state} on {target} on this machine: {verdict.why}, expected a verdict that it passed",
        hint="do not use it on this machine; try another target, or another version of the engine"
        if verdict.passed is False
        else f"mpmmu-rt verify {quoted(bundle.path)} --target {target}",
    )


def _passed(checks: Sequence[Mapping[str, Any]]) -> bool:
    return all(check["passed"] is True for check in checks)


def _differences(record: Mapping[str, Any], digest: str, facts: Mapping[str, str]) -> Iterator[str]:
    if record["bundle"] != digest:
        yield "another bundle"
    for name in sorted(record["facts"].keys() | facts.keys()):
        before, now = record["facts"].get(name, ""), facts.get(name, "")
        if before != now:
            yield f"{name} {before or 'none'}, here {now or 'none'}"


def _read(path: Path) -> list[dict[str, Any]]:
    """The records, each of which has what `look_up` asks for. Raises `ParityError`: it was not verified."""
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long with that behind it
        raise ParityError(f"{path.name} can't be looked at ({error.strerror})") from error
    if not there:
        raise ParityError(f"there is no {path.name}")
    entry = parse_json_object(path, read_bounded(path, MAX_JSON_BYTES, ParityError, ""), ParityError, "")
    records = entry.get("records")
    if entry.get("schema") != SCHEMA or not isinstance(records, list) or not all(map(_is_record, records)):
        raise ParityError(f"{path} is damaged or of another version, expected {SCHEMA}")
    return records


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(name), str) for name in ("bundle", "target", "date"))
        and isinstance(facts := record.get("facts"), dict)
        and all(isinstance(fact, str) for fact in facts.values())
        and isinstance(checks := record.get("checks"), list)
        and len(checks) > 0
        and all(isinstance(check, dict) and "passed" in check for check in checks)
    )
