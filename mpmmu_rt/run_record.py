"""What predictions were made with: the document that stands beside them, and that `run --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import origin, single_record
from .bundle import Bundle
from .choice import Choice
from .errors import OutputError
from .files import parse_json_object, read_bounded, rounded, sha256_of, write_json
from .journal import SCHEMA
from .machine import now
from .run import Asked, Summary
from .spec import Target

MAX_BYTES = 2**22


def place_of(output: Path) -> Path:
    """`predictions.csv.json` beside `predictions.csv`."""
    return output.with_name(f"{output.name}.json")


def check_place(output: Path) -> None:
    """Before the work: raise `OutputError` where something else than an earlier run's document takes its place."""
    place = place_of(output)
    if place.exists() and not _is_ours(place):
        raise OutputError(
            f"{place} exists and is no document of a run, expected a free place for what predictions are made with",
            hint="choose another -o, or move it away",
        )


def _is_ours(place: Path) -> bool:
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return b'"schema": "mpmmu-run/' in file.read(200)


class Listing(Protocol):
    """What names the cases: a `Manifest`, or the plan of one that is not held."""

    @property
    def path(self) -> Path | str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def remarks(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Made:
    """What predictions were made of, by and with. remarks: of the Predictor; processors: of a cluster's workers."""

    asked: Asked
    head_target: Target
    remarks: tuple[str, ...]
    listing: Listing
    summary: Summary
    processors: tuple[str, ...] = ()


def record(made: Made, output: Path, by: origin.Entry, choice: Choice | None = None) -> dict[str, Any]:
    """JSON values; `output` is written already, and told by its digest (`files.sha256_of`). by: of `origin.made_by`.
    choice: of the target, where none was named."""
    bundle, summary = made.asked.bundle, made.summary
    entry = {
        "schema": SCHEMA,
        "run": summary.header,
        "output": str(output),
        "output_sha256": sha256_of(output) if output != Path("-") else None,
        "bundle": {"name": bundle.name, "digest": bundle.digest, "trained": bundle.trained},
        "warning": bundle.warning,
        "manifest": {"path": str(made.listing.path), "sha256": made.listing.sha256},
        "target": str(made.asked.target),
        "chosen": choice.to_json() if choice else None,
        "head_target": str(made.head_target),
        "threshold": bundle.threshold,
        "preprocessing": bundle.preprocessing.to_json(),
        "started": by["started"],
        "ended": now(),
        **summary.to_json(),
        "remarks": [*made.remarks, *made.listing.remarks],
        "verified": by["verified"],
        "machine": by["machine"],
        **({"processors": list(made.processors)} if made.processors else {}),
        **({single_record.KEY: _single(bundle)} if made.asked.alone else {}),
    }
    found: dict[str, Any] = rounded(entry)
    return found


def _single(bundle: Bundle) -> dict[str, Any]:
    """What rows that rest on one image were decided with."""
    return {str(modality): head.to_json() for modality, head in bundle.single_heads.items()}


def read_record(output: Path) -> dict[str, Any]:
    """What `keep` wrote beside `output`. Raises `OutputError`."""
    hint = "pass --overwrite instead of --retry-failed to start again"
    place = place_of(output)
    return dict(parse_json_object(place, read_bounded(place, MAX_BYTES, OutputError, hint), OutputError, hint))


def drop(output: Path) -> None:
    """Before another `output` is written: what stands beside it would be said of that, if nothing more was written."""
    place = place_of(output)
    if _is_ours(place):
        place.unlink()


def keep(output: Path, entry: dict[str, Any]) -> Path:
    """Write `entry` beside `output`, whole or not at all; returns its path."""
    place = place_of(output)
    write_json(place, entry)
    return place
