"""Which cases of a manifest may be judged, and which a threshold may be chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mpmmu_rt.cases import Case, Manifest
from mpmmu_rt.errors import ManifestError, UsageError
from mpmmu_rt.people import plain
from mpmmu_rt.split_record import PARTS, part_of, parts_of

Part = Literal["auto", "train", "validation", "test", "all"]
CHOICES: tuple[Part, ...] = get_args(Part)
COLUMN = "split"
_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev")},
    **{name: "test" for name in ("test", "testing")},
}


@dataclass(frozen=True)
class Parts:
    """of_row: `train`, `validation`, `test` or "" for each case. source: who says so, in words; "" if nobody does.
    learnt: by what the model's card says, which part of its training each case's patient was in; "" for none."""

    of_row: tuple[str, ...]
    source: str
    learnt: tuple[str, ...]

    @property
    def choosing(self) -> list[int]:
        return [row for row, part in enumerate(self.of_row) if part == "validation"]


def read_parts(manifest: Manifest, card: Mapping[str, Any]) -> Parts:
    """By the column `split` of the manifest, else by what the model's card knows of its training's patients.

    Raises `ManifestError` for another name in that column, for a patient in two parts, and for a column of another
    name that tells parts.
    """
    known = parts_of(card)
    learnt = tuple(part_of(known, case.group) for case in manifest.cases)
    cells = manifest.others.get(COLUMN, ())
    if not any(cells):
        _refuse_other_column(manifest)
        source = "what the model's card records of its training" if known else ""
        return Parts(learnt, source, learnt)
    of_row = []
    seen: dict[str, str] = {}
    for case, cell in zip(manifest.cases, cells, strict=True):
        part = _NAMES.get(cell.casefold())
        if part is None:
            raise ManifestError(
                f"{manifest.path}: case `{case.case_id}` has the {COLUMN} `{cell}`, expected {', '.join(PARTS)}",
                hint=f"name a part for every case, or leave the column `{COLUMN}` out",
            )
        if seen.setdefault(case.group, part) != part:
            raise ManifestError(
                f"{manifest.path}: patient `{case.group}` is in the parts {seen[case.group]} and {part}, expected one",
                hint="keep all rows of a patient in one part",
            )
        of_row.append(part)
    return Parts(tuple(of_row), f"the column `{COLUMN}` of the manifest", learnt)


def _refuse_other_column(manifest: Manifest) -> None:
    """A column that holds names of parts alone, two of them at least, is the one that was meant."""
    for name, cells in manifest.others.items():
        named = {_NAMES.get(cell.casefold(), "") for cell in cells}
        if len(named) > 1 and "" not in named:
            raise ManifestError(
                f"{manifest.path} has the column `{name}`, whose cells name parts, and none named `{COLUMN}`, expected "
                "to know which cases are for testing",
                hint=f"rename `{name}` to `{COLUMN}`; if it means something else, write other words into it",
            )


def judged(manifest: Manifest, parts: Parts, wanted: Part) -> list[int]:
    """The rows to judge. `auto`: the test part where parts are known, with patients of whom the card knows nothing;
    all where none are. Raises `UsageError` for none."""
    rows = range(len(parts.of_row))
    if wanted == "all" or (wanted == "auto" and not any(parts.of_row)):
        return list(rows)
    parts_wanted = (wanted,) if wanted != "auto" else ("test", "")
    found = [row for row in rows if parts.of_row[row] in parts_wanted]
    if not found:
        there = {part or "in no part": parts.of_row.count(part) for part in dict.fromkeys(parts.of_row)}
        counts = ", ".join(f"{count} {part}" for part, count in there.items())
        raise UsageError(
            f"{manifest.path} has no case of the part {'test' if wanted == 'auto' else wanted} ({counts}; by "
            f"{parts.source or 'nothing'}), expected some to judge",
            hint="name a manifest of other patients, or judge what was learnt from with --part all",
        )
    return found


def is_learnt(part: str) -> bool:
    """Whether a training learns from this part of its patients: the head is fitted on the validation part as well."""
    return part in ("train", "validation")


def require_apart(judged: Sequence[Case], others: Sequence[Case], where: str) -> None:
    """Raise `UsageError` if a patient or an image of `others` is among the cases that are judged. where: `others` are,
    in words."""
    patients = {plain(case.group): case.group for case in judged}
    images = {path.resolve() for case in judged for path in (case.mammography, case.ultrasound) if path}
    for case in others:
        same = patients.get(plain(case.group))
        shared = "" if same is None else f"the patient `{case.group}`{'' if same == case.group else f' (`{same}`)'}"
        for path in (case.mammography, case.ultrasound):
            if path and path.resolve() in images:
                shared = f"the image {path.name}"
        if shared:
            raise UsageError(
                f"{where} holds {shared}, which is judged, too, expected other patients and images to choose a "
                "threshold on",
                hint="choose on patients that are not judged: a threshold that has seen its judges looks too good",
            )
