"""The file of a baseline: what it holds, and what is refused in one that another version, or a hand, has changed.

A file that is read is judged by, in a job that nobody watches: so each value is of its kind, or the file is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .conditions import plain
from .counts import Counts
from .errors import UsageError
from .files import MAX_JSON_BYTES, parse_json_object, read_bounded, result_file
from .gate import STATISTICS, statistics

SCHEMA = "mpmmu-baseline/1"
FEWEST_TURNS, MOST_TURNS = 16, 40  # of a session: `slower` takes 14 that all say so
MOST_SESSIONS = 7  # the newest; with the most calls that turns can have, they are read back still
HINT = "take one with `mpmmu-rt bench BUNDLE --save FILE`, FILE being a free path"
_BLOCKS = 4
_SHORTEST_MS, _LONGEST_MS = 1e-6, 1e9  # of a time that is stored: a nanosecond, and eleven days
_MOST_COUNT = 2**63


@dataclass(frozen=True)
class Session:
    """taken: in UTC, ISO 8601. turns: the ms of each call of each turn. control_ms: of each turn."""

    taken: str
    turns: list[list[float]]
    control_ms: list[float]


@dataclass(frozen=True)
class Baseline:
    """conditions: what a comparison needs to be the same. digest: of the bundle, which may differ. version: of this
    package, empty where it was not written down."""

    conditions: Mapping[str, Any]
    bundle: str
    digest: str
    counts: Counts
    sessions: list[Session]
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        sessions = [
            {"taken": one.taken, "samples_ms": one.turns, "control_ms": one.control_ms} for one in self.sessions
        ]
        return {
            "schema": SCHEMA,
            "mpmmu_rt": self.version,
            "conditions": dict(self.conditions),
            "bundle": self.bundle,
            "bundle_digest": self.digest,
            "counts": self.counts,
            "sessions": sessions,
        }

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Raises `UsageError` for a file that is no baseline."""
        data = read_bounded(path, MAX_JSON_BYTES, UsageError, HINT)
        entry: Any = parse_json_object(path, data, UsageError, HINT)
        if entry.get("schema") != SCHEMA:
            raise UsageError(f"{path} has the schema {plain(entry.get('schema'))!r}, expected `{SCHEMA}`", hint=HINT)
        try:
            sessions = _sessions(entry["sessions"])
            return cls(
                _conditions(entry["conditions"]),
                _text(entry["bundle"]),
                _text(entry["bundle_digest"]),
                _counts(entry["counts"]),
                sessions,
                _text(entry.get("mpmmu_rt", "")),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UsageError(
                f"{path} is a malformed baseline: {reason}, expected all of `{SCHEMA}`", hint=HINT
            ) from error

    def write(self, path: Path) -> None:
        with result_file(path) as file:
            file.write(json.dumps(self.to_json(), allow_nan=False) + "\n")

    def floor(self, control_ms: list[float]) -> dict[str, float]:
        """Of each statistic, how far the machine is known to move on its own, in log; control_ms: of today's turns."""
        told = [[statistics(turn) for turn in one.turns] for one in self.sessions]
        control = _spread([np.median(control_ms), np.median([ms for one in self.sessions for ms in one.control_ms])])
        found = {}
        for name in STATISTICS:
            medians = [np.median([one[name] for one in turns]) for turns in told]
            parts = [
                _spread([np.median(part) for part in np.array_split([one[name] for one in turns], _BLOCKS)])
                for turns in told
            ]
            found[name] = max(control, _spread(medians), *parts)
        return found


def _spread(medians: list[Any]) -> float:
    logs = np.log(np.asarray(medians, dtype=np.float64))
    return float(logs.max() - logs.min())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{_shown(value)} is no text")
    return plain(value)


def _shown(value: object) -> str:
    return f"`{plain(value)[:60]}`"


def _conditions(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise TypeError(f"the conditions are {_shown(entry)}")
    return entry


def _counts(entry: object) -> Counts:
    """At least one: of none nothing would be judged, and all be well."""
    if not isinstance(entry, dict) or not entry:
        raise TypeError(f"the counts are {_shown(entry)}")
    for name, value in entry.items():
        number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_COUNT
        if not (value is None or number or isinstance(value, str)):
            raise TypeError(f"the count {_shown(name)} is {_shown(value)}")
    return {plain(name): plain(value) if isinstance(value, str) else value for name, value in entry.items()}


def _sessions(entry: object) -> list[Session]:
    if not isinstance(entry, list) or not 1 <= len(entry) <= MOST_SESSIONS:
        held = len(entry) if isinstance(entry, list) else _shown(entry)
        raise ValueError(f"it holds {held} sessions instead of 1 to {MOST_SESSIONS}")
    return [_session(one) for one in entry]


def _session(entry: Mapping[str, Any]) -> Session:
    turns, control = entry["samples_ms"], _times(entry["control_ms"])
    if not isinstance(turns, list) or not FEWEST_TURNS <= len(turns) <= MOST_TURNS or len(control) != len(turns):
        held = len(turns) if isinstance(turns, list) else _shown(turns)
        raise ValueError(
            f"a session has {held} turns and {len(control)} controls instead of {FEWEST_TURNS} to {MOST_TURNS} of both"
        )
    return Session(_text(entry["taken"]), [_times(turn) for turn in turns], control)


def _times(entry: object) -> list[float]:
    """Times in ms, at least one. A text of digits is no list of numbers, though each of its letters may be one."""
    if not isinstance(entry, list) or not entry:
        raise TypeError(f"the times are {_shown(entry)}")
    for ms in entry:
        if isinstance(ms, bool) or not isinstance(ms, int | float) or not _SHORTEST_MS <= ms <= _LONGEST_MS:
            raise ValueError(f"a time is {_shown(ms)} instead of {_SHORTEST_MS:g} to {_LONGEST_MS:g} ms")
    return [float(ms) for ms in entry]
