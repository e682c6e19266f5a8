"""Who made the rows that a run goes on from: in a journal's first line while it works, in the record beside its output.

`made_by` is the process that makes rows there, and `earlier` those whose rows were taken over: how many, and how many
of these have errors. What is not known is None: earlier versions wrote neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ParityError
from .machine import describe, now

if TYPE_CHECKING:
    from .verified import Verdict

KEYS = frozenset({"made_by", "earlier"})
_FACTS = ("started", "machine", "verified", "processors")
_DIGITS = {"cpu": "processor", "threads": "number of threads", "packages": "set of packages"}
_UNKNOWN = {"started": None, "machine": None, "verified": None}
Entry = dict[str, Any]


def made_by(started: str | None = None, verdict: Verdict | None = None) -> Entry:
    """What is known of this process. verdict: None where nobody has looked it up."""
    return {"started": started or now(), "machine": describe(), "verified": verdict.to_json() if verdict else None}


def of_record(entry: Mapping[str, Any]) -> Entry:
    """What a record says, as a journal has it; nothing where some rows are an earlier run's and it does not say
    whose."""
    if "earlier" not in entry and entry.get("resumed") != 0:
        return {}
    return {"made_by": {key: entry[key] for key in _FACTS if key in entry}, "earlier": entry.get("earlier", [])}


def started(found: Mapping[str, Any]) -> str | None:
    """When the process began that made the last of the rows that lie where `found` stands; None where that is not
    known."""
    by = found.get("made_by")
    said = by.get("started") if isinstance(by, dict) else None
    try:
        datetime.fromisoformat(said)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return str(said)


def taken_over(found: Mapping[str, Any], rows: int, failed: int, *, dropped: bool) -> list[Entry]:
    """Who made `rows` rows, of which `failed` have errors, that lie where `found` stands. dropped: those with errors
    are not taken over."""
    before, by = found.get("earlier"), found.get("made_by")
    entries: list[Entry] = [{"rows": rows, "failed": failed, **_UNKNOWN}]
    if isinstance(by, dict) and isinstance(before, list) and all(map(_is_entry, before)):
        own = {key: count - sum(one[key] for one in before) for key, count in (("rows", rows), ("failed", failed))}
        if 0 <= own["failed"] <= own["rows"]:
            entries = [*before, {**own, **by}]
    if dropped:
        entries = [{**one, "rows": one["rows"] - one["failed"], "failed": 0} for one in entries]
    return [one for one in entries if one["rows"]]


def without(entries: Sequence[Entry], rows: int, failed: int) -> list[Entry]:
    """`entries` once some of their rows were dropped, so that these many are left: whose they were is not known."""
    facts = dict(entries[0]) if len(entries) == 1 else _UNKNOWN
    return [{**facts, "rows": rows, "failed": failed}] if rows else []


def _is_entry(one: object) -> bool:
    if not isinstance(one, dict):
        return False
    rows, failed = one.get("rows"), one.get("failed")
    return isinstance(rows, int) and isinstance(failed, int) and 0 <= failed <= rows


def elsewhere(earlier: Sequence[Entry], by: Entry) -> dict[str, int]:
    """By what of a machine decides on the last digits of an answer, how many rows were made with another than `by`, as
    far as that is known."""
    here, found = by["machine"], dict[str, int]()
    for one in earlier:
        if not isinstance(there := one.get("machine"), dict):
            continue
        for key, name in _DIGITS.items():
            if there.get(key) != here.get(key):
                found[name] = found.get(name, 0) + int(one["rows"])
    return found


def unverified(earlier: Sequence[Entry]) -> list[Entry]:
    """Those that are not known to have been verified where they ran."""
    return [one for one in earlier if not (isinstance(it := one.get("verified"), dict) and it.get("passed") is True)]


def require_verified(earlier: Sequence[Entry], output: Path) -> None:
    """Raise `ParityError` unless all rows that `output` goes on from were made where the bundle was verified."""
    if not (others := unverified(earlier)):
        return
    verdict = others[0].get("verified")
    why = verdict.get("why") if isinstance(verdict, dict) else None
    count = sum(one["rows"] for one in others)
    raise ParityError(
        f"{count} {'row' if count == 1 else 'rows'} of {output} would be taken over from a run that is not known to "
        f"have been verified ({why or 'it did not say'}), expected rows of verified runs alone",
        hint="make all rows anew with --overwrite, or leave --require-verified out",
    )
