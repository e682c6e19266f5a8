"""What INT8 is calibrated on: cases of a manifest, never of its test part, or, for trying it, generated phantoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpmmu_rt.bundle import FROM_PHANTOMS
from mpmmu_rt.cases import Manifest, require_people
from mpmmu_rt.errors import UsageError
from mpmmu_rt.evaluation.parts import read_parts
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.people import plain
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import StrPath

from .cases import Data, halves, manifest_of, of_cases, phantoms

MOST_CASES = 2000  # pixels are held in memory, 0.1 MB a case of 224 x 224, and some hundred are what ranges need
PHANTOM_SEED = 20_260_103  # of phantoms that neither a preset trains on nor a proof is made with


@dataclass(frozen=True)
class Calibration:
    """data: to calibrate on. gate: to judge on, if it is from the same manifest. facts: `calibration` of `bundle.json`,
    JSON values."""

    data: Data
    gate: Data | None
    facts: Mapping[str, Any]


def of_manifest(
    given: StrPath | Manifest,
    preprocessing: Preprocessing,
    card: Mapping[str, Any],
    progress: Progress,
    *,
    halved: bool,
) -> Calibration:
    """Cases of a manifest but those of the test part, by its column `split`, else by what `card` records of
    the training's patients; of more than `MOST_CASES` so many, of patients at even distances. halved: every other
    patient is kept to judge on.

    Raises `UsageError` where there is none, and what reading the manifest and its images raises.
    """
    manifest = manifest_of(given)
    if halved:
        require_people(manifest)
    parts = read_parts(manifest, card)
    usable = [row for row, part in enumerate(parts.of_row) if part != "test"]
    if not usable:
        raise UsageError(
            f"{manifest.path} holds the test part alone, by {parts.source}, expected cases to calibrate on that judge "
            "nothing",
            hint="name a manifest with the training's or the validation's cases",
        )
    rows = spread(manifest, usable, MOST_CASES)
    read, listed = of_cases(manifest, rows, preprocessing, progress)
    data, gate = halves(read, listed) if halved else (read, None)
    facts = {
        "kind": "manifest",
        "manifest": manifest.path.name,
        "sha256": manifest.sha256,
        "listed": len(manifest.cases),
        "of_the_test_part": len(manifest.cases) - len(usable),
        "parts_by": parts.source or None,
        "cases": len(data.pixels["mammography"]),
    }
    return Calibration(data, gate, facts)


def require_other_patients(given: StrPath | Manifest, judged: StrPath | Manifest, card: Mapping[str, Any]) -> None:
    """Raise `UsageError` where a patient whom the manifest `given` calibrates on judges in the manifest `judged`, as
    far as these name their patients."""
    manifest, other = manifest_of(given), manifest_of(judged)
    parts = read_parts(manifest, card).of_row
    judging = {plain(case.patient) for case in other.cases if case.patient}
    shared = [case.patient for case, part in zip(manifest.cases, parts, strict=True) if part != "test"]
    if both := [patient for patient in dict.fromkeys(shared) if patient and plain(patient) in judging]:
        raise UsageError(
            f"{len(both)} patients are in {manifest.path} and in {other.path}, the first is `{both[0]}`, expected "
            "others to judge INT8 than those that it is calibrated on",
            hint="leave them out of one of the two, or name one manifest with --calibrate alone",
        )


def of_phantoms(count: int, preprocessing: Preprocessing, progress: Progress) -> Calibration:
    """For trying it: the bundle says so wherever it is used."""
    if not 2 <= count <= MOST_CASES:
        raise UsageError(
            f"INT8 is to be calibrated on {count} phantoms, expected 2 to {MOST_CASES}", hint="100 are enough to try it"
        )
    data = replace(
        phantoms(count, PHANTOM_SEED, preprocessing, progress),
        source=f"{count} generated phantoms of the seed {PHANTOM_SEED}",
    )
    return Calibration(data, None, {"kind": FROM_PHANTOMS, "seed": PHANTOM_SEED, "cases": count})


def spread(manifest: Manifest, rows: Sequence[int], most: int) -> list[int]:
    """At most `most` of `rows`: those of patients at even distances, the same every time."""
    if len(rows) <= most:
        return list(rows)
    people = list(dict.fromkeys(manifest.cases[row].group for row in rows))
    count = max(2, len(people) * most // len(rows))
    taken = {people[at * len(people) // count] for at in range(count)}
    return [row for row in rows if manifest.cases[row].group in taken][:most]
