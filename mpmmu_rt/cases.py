"""Cases and their manifest.

A manifest is a UTF-8 CSV with a header and the columns `case_id,mammography,ultrasound`, and optionally
`label` (0 benign, 1 malignant) and `patient` (groups the rows of one person, for splitting). Paths are
relative to the CSV. Other columns are kept as text (`Manifest.others`) for `evaluate`, ignored by all else, and those
named that may have been meant (`columns`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .columns import near_misses
from .errors import ManifestError
from .people import alike
from .spec import MODALITIES, Modality, StrPath

REQUIRED_COLUMNS = ("case_id", "mammography", "ultrasound")
COLUMNS = (*REQUIRED_COLUMNS, "label", "patient")
MAX_MANIFEST_BYTES = 64 * 2**20
CASE_ID_LENGTH = 200
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Case:
    """One patient's lesion. `None` for an image means that the manifest's cell is empty."""

    case_id: str
    mammography: Path | None
    ultrasound: Path | None
    label: int | None = None
    patient: str | None = None

    def image(self, modality: Modality) -> Path | None:
        return self.mammography if modality == "mammography" else self.ultrasound

    @property
    def group(self) -> str:
        """What must not be split between training and test: the patient, else the case itself."""
        return self.patient or self.case_id


@dataclass(frozen=True)
class Manifest:
    """The cases of one CSV, in its order, and the SHA-256 of the file they were read from."""

    path: Path
    cases: tuple[Case, ...]
    sha256: str
    near: Mapping[str, str] = field(default_factory=dict)  # see `columns.near_misses`
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by further column its cells, case by case
    folder: str | None = None  # of the images; None where all their paths are absolute

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was probably meant otherwise, and is no error."""
        return remarks_of(self.path, self.near)


def read_manifest(path: StrPath) -> Manifest:
    """Read and check a manifest. Raises `ManifestError` for anything that makes the whole file doubtful.

    An image that is missing or broken is not looked at here: that is a matter of one case.
    """
    path = Path(path)
    data = _read_bounded(path)
    reader = csv.DictReader(io.StringIO(decoded(path, data), newline=""), strict=True)
    with valid_csv(path, reader):
        header = take_header(path, reader)
        rows = [cells_of(path, reader.line_num, row) for row in reader]
        cases = tuple(case_of(path, line, cells) for line, cells in rows)
    if not cases:
        raise no_case(path)
    _check_unique(path, cases)
    others = {name: tuple(cells[name] for _, cells in rows) for name in header if name not in COLUMNS}
    folder = folder_of(path) if any(is_relative(cells) for _, cells in rows) else None
    return Manifest(path, cases, hashlib.sha256(data).hexdigest(), near_misses(header), others, folder)


def remarks_of(path: Path, near: Mapping[str, str]) -> tuple[str, ...]:
    """What `columns.near_misses` found in the manifest `path`, a sentence each."""
    return tuple(f"{path}: the column `{given}` is not read; did you mean `{meant}`?" for meant, given in near.items())


def decoded(path: Path, data: bytes, begin: int = 0) -> str:
    """The text of `data`, which begins at the byte `begin` of the manifest `path`. Raises `ManifestError`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 text (byte {begin + error.start}), expected a CSV file", hint="save it as CSV UTF-8"
        ) from error
    if "\0" in text:
        raise ManifestError(f"{path} holds NUL bytes, expected a CSV file", hint="save it as CSV UTF-8")
    return text if begin else text.removeprefix("\ufeff")


@contextmanager
def valid_csv(path: Path, reader: csv.DictReader[str]) -> Iterator[None]:
    """Raise `ManifestError` for what `reader` can't read inside."""
    try:
        yield
    except csv.Error as error:
        raise ManifestError(
            f"{path}:{reader.line_num} is not valid CSV: {error}, expected cells in closed quotes or none",
            hint="check the quotes in that line and before it",
        ) from error


def take_header(path: Path, reader: csv.DictReader[str]) -> list[str]:
    """The names of the columns, by which rows are read from here on. Raises `ManifestError` where they are no
    manifest's."""
    header = [name.strip() for name in reader.fieldnames or ()]
    _check_header(path, header)
    reader.fieldnames = header
    return header


def no_case(path: Path) -> ManifestError:
    return ManifestError(
        f"{path} has a header and no case, expected at least one row",
        hint="add one row per case: " + ",".join(REQUIRED_COLUMNS),
    )


def unreadable(path: Path, error: OSError) -> ManifestError:
    return ManifestError(f"manifest {path} can't be read: {error.strerror}, expected a CSV file", hint="check the path")


def require_people(manifest: Manifest) -> None:
    """Raise `ManifestError` where it must be known which rows are one person's, and it isn't: a column that may tell
    persons is not read, some rows name their patient and others don't, or one patient may be written in two ways."""
    if given := manifest.near.get("patient"):
        raise ManifestError(
            f"{manifest.path} has the column `{given}` and none named `patient`, expected to know which rows are one "
            "person's: they must not be split",
            hint=f"rename `{given}` to `patient`, or to something else if every row is another person's",
        )
    unnamed = [case for case in manifest.cases if case.patient is None]
    if 0 < len(unnamed) < len(manifest.cases):
        raise ManifestError(
            f"{manifest.path}: {len(unnamed)} of {len(manifest.cases)} cases name no patient, the first is "
            f"`{unnamed[0].case_id}`, expected all or none: a row without one may be another row's person",
            hint="fill the column `patient`; an id of its own for each row that is known to be another person's",
        )
    if both := alike(case.group for case in manifest.cases if case.patient):
        raise ManifestError(
            f"{manifest.path} has the patients `{both[0]}` and `{both[1]}`, expected ids that differ by more than "
            "blanks, case and leading zeros: they may be one person's, who must not be split",
            hint="write a person's id in one way; if these are two persons, add a letter to one of them",
        )


def require_complete(manifest: Manifest, *, labels: bool) -> None:
    """Raise `ManifestError` unless every case names both images (and, if asked, a label), as training needs."""
    for case in manifest.cases:
        for column in MODALITIES:
            if case.image(column) is None:
                raise ManifestError(
                    f"{manifest.path}: case `{case.case_id}` has no {column} image, expected both",
                    hint="MPM-MU needs both images of a lesion; remove the case or add the image",
                )
        if labels and case.label is None:
            raise ManifestError(
                f"{manifest.path}: case `{case.case_id}` has no label, expected 0 (benign) or 1 (malignant)",
                hint=f"rename `{near}` to `label`" if (near := manifest.near.get("label")) else "add a `label` column",
            )


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, expected less", hint="split it")
    return data


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not header:
        raise ManifestError(f"{path} is empty, expected a CSV header", hint=",".join(REQUIRED_COLUMNS))
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    other = next((name for mark, name in DELIMITERS.items() if len(header) == 1 and mark in header[0]), None)
    if missing and other:
        raise ManifestError(
            f"{path} has its cells separated by {other}, expected commas",
            hint="save it as CSV with commas between cells and points in decimals",
        )
    if missing:
        near = near_misses(header)
        meant = "; ".join(f"rename `{near[name]}` to `{name}`" for name in missing if name in near)
        names = f"the header must name {','.join(REQUIRED_COLUMNS)}, separated by commas, and may name label,patient"
        raise ManifestError(
            f"{path} has the columns {', '.join(header)}; missing: {', '.join(missing)}",
            hint=f"{meant}: {names}" if meant else names,
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ManifestError(f"{path} names the column `{twice[0]}` twice, expected once", hint="remove one of them")


def cells_of(path: Path, line: int, row: Mapping[str | None, str | None]) -> tuple[int, dict[str, str]]:
    """A row of `csv.DictReader`, checked, behind the number of its line. Raises `ManifestError`."""
    # DictReader files surplus cells under None and fills absent ones with None.
    if None in row or None in row.values():
        raise ManifestError(
            f"{path}:{line} has more or fewer cells than the header, expected {len(row.keys() - {None})}",
            hint="quote cells that contain a comma",
        )
    return line, {str(name): (value or "").strip() for name, value in row.items()}


def is_relative(cells: Mapping[str, str]) -> bool:
    """Whether an image of a row lies where the manifest lies: the same bytes elsewhere name another one."""
    return any(cells[modality] and not Path(cells[modality]).is_absolute() for modality in MODALITIES)


def folder_of(path: Path) -> str:
    """What images of the manifest `path` are relative to, under its one name."""
    return str(path.parent.resolve())


def case_of(path: Path, line: int, cells: Mapping[str, str]) -> Case:
    """The case that a row says, its images beside the manifest `path`. Raises `ManifestError`."""
    case_id = cells["case_id"]
    if not case_id or len(case_id) > CASE_ID_LENGTH or not case_id.isprintable():
        raise ManifestError(
            f"{path}:{line} has the case_id {case_id[:40]!r}, expected 1 to {CASE_ID_LENGTH} printable characters",
            hint="give every case an id of its own",
        )
    label = cells.get("label", "")
    if label not in ("", "0", "1"):
        raise ManifestError(
            f"{path}:{line} has the label `{label}`, expected 0 (benign), 1 (malignant) or nothing",
            hint="map BI-RADS or pathology to 0 and 1 first",
        )

    def image(name: str) -> Path | None:
        return path.parent / cells[name] if cells[name] else None

    return Case(
        case_id=case_id,
        mammography=image("mammography"),
        ultrasound=image("ultrasound"),
        label=int(label) if label else None,
        patient=cells.get("patient") or None,
    )


def _check_unique(path: Path, cases: Sequence[Case]) -> None:
    counts = Counter(case.case_id for case in cases)
    twice = [case_id for case_id, count in counts.items() if count > 1]
    if twice:
        raise ManifestError(
            f"{path} uses the case_id `{twice[0]}` {counts[twice[0]]} times ({len(twice)} ids in all are repeated), "
            "expected every id once",
            hint="a case is one lesion: give each row an id of its own and group people by `patient`",
        )
    seen: dict[str, str] = {}
    for case_id in counts:
        if (other := seen.setdefault(composed(case_id), case_id)) != case_id:
            raise same_letters(path, other, case_id)


def composed(case_id: str) -> str:
    """As it is read: an id whose accents are letters of their own looks the same."""
    return unicodedata.normalize("NFC", case_id)


def same_letters(path: Path, one: str, other: str) -> ManifestError:
    return ManifestError(
        f"{path} has the case_ids {one!a} and {other!a}, the same letters otherwise encoded, expected ids that can be "
        "told apart",
        hint="write letters with accents in one way (Unicode's NFC), and give every case an id of its own",
    )
