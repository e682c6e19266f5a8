"""What is judged, a bundle on a target or a checkpoint, and what it says of cases in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Case
from mpmmu_rt.errors import AnswerError, ImageError
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.known_images import KnownImages, digest
from mpmmu_rt.learnt_ranges import UNLIKE
from mpmmu_rt.modality_check import SAYS, ModalityCheck
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.run import Decoded, Decoder
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath, Target
from mpmmu_rt.subject import Subject, named_otherwise

from .figures import Answers

BATCH = 32
Predict = Callable[[Mapping[Modality, Array]], Array]


@dataclass(frozen=True)
class System:
    """predict: pixels uint8 [N, 1, S, S] per modality to probability float32 [N]; raises `AnswerError` for rows without
    one. kind: bundle or checkpoint. target: of a checkpoint `torch`. digest: of its description file, which names those
    of the rest. warning: `Bundle.warning`. modality_check: None where it has none. bundle: None of a checkpoint."""

    path: str
    kind: str
    name: str
    target: str
    digest: str
    trained: bool
    threshold: float
    card: Mapping[str, Any]
    preprocessing: Preprocessing
    predict: Predict
    remarks: tuple[str, ...] = ()
    warning: str | None = None
    known_images: KnownImages = field(default_factory=lambda: KnownImages.from_json(None))
    modality_check: ModalityCheck | None = None
    bundle: Bundle | None = None

    def to_json(self) -> dict[str, Any]:
        names = ("path", "kind", "name", "target", "digest", "trained", "threshold", "warning")
        return {name: getattr(self, name) for name in names} | {"remarks": list(self.remarks)}


@contextmanager
def bundle_system(given: Bundle | StrPath, target: str) -> Iterator[System]:
    """given: opened, or a path. Raises what opening and loading a bundle raises, and `UsageError` for a target that was
    not proven."""
    bundle, wanted = given if isinstance(given, Bundle) else Bundle.open(given), Target.parse(target)
    bundle.require_proven(wanted)
    with Predictor(bundle, wanted) as predictor:
        yield System(
            path=str(bundle.path),
            kind="bundle",
            name=bundle.name,
            target=str(wanted),
            digest=bundle.digest,
            trained=bundle.trained,
            threshold=bundle.threshold,
            card=bundle.entry["card"],
            preprocessing=bundle.preprocessing,
            predict=lambda pixels: predictor.predict(pixels).probability,
            remarks=predictor.remarks,
            warning=bundle.warning,
            known_images=bundle.known_images,
            modality_check=bundle.modality_check,
            bundle=bundle,
        )


@dataclass(frozen=True)
class Answer:
    """probability: None where there is none, and then `error` says why. warnings: as `mpmmu-rt run` says them. images:
    `known_images.digest` of each, as the system sees it. files: SHA-256 of each file, where that was asked for.
    subjects: whom they show by their headers."""

    case: Case
    probability: float | None
    error: str
    warnings: str
    images: frozenset[str] = frozenset()
    files: Mapping[Modality, str] = field(default_factory=dict)
    subjects: tuple[Subject, ...] = ()

    @property
    def swapped(self) -> bool:
        return SAYS in self.warnings

    @property
    def unlike(self) -> bool:
        return UNLIKE in self.warnings

    @property
    def against_header(self) -> bool:
        """Whether headers say something, whatever the pixels look like."""
        return any(SAYS not in one and UNLIKE not in one for one in self.warnings.split("; ") if one)


def ask(
    system: System,
    cases: Sequence[Case],
    *,
    frame: int | None = None,
    files: bool = False,
    progress: Progress = silent,
    name: str = "cases",
) -> list[Answer]:
    """An answer for every case, in their order: one that can't be read or answered has an error, and none is lost.
    files: take their digests, too."""
    found: dict[str, Answer] = {}
    pending: list[Decoded] = []
    progress(name, 0, len(cases))
    check = system.modality_check
    decoder = Decoder(cases, system.preprocessing, frame=frame, ahead=2 * BATCH, digests=files, check=check)
    with decoder as decoded:
        for item in decoded:
            if item.error:
                found[item.case.case_id] = Answer(item.case, None, item.error, item.warnings)
            else:
                pending.append(item)
            if len(pending) == BATCH:
                found |= _answers(system, pending)
                pending = []
                progress(name, len(found), len(cases))
    if pending:
        found |= _answers(system, pending)
    progress(name, len(cases), len(cases))
    return [found[case.case_id] for case in cases]


def _answers(system: System, items: Sequence[Decoded]) -> dict[str, Answer]:
    pixels = {modality: np.stack([item.pixels[modality] for item in items]) for modality in MODALITIES}
    try:
        said = system.predict(pixels)
    except AnswerError as error:
        if not error.rows:
            raise
        text = f"{system.target} gave no number for this case; {error.hint}"
        bad = {items[row].case.case_id: Answer(items[row].case, None, text, items[row].warnings) for row in error.rows}
        others = [item for row, item in enumerate(items) if row not in error.rows]
        return bad | (_answers(system, others) if others else {})
    shown = [frozenset(map(digest, item.pixels.values())) for item in items]
    return {
        item.case.case_id: Answer(item.case, float(value), "", item.warnings, images, item.digests, item.subjects)
        for item, value, images in zip(items, said, shown, strict=True)
    }


def images_of(asked: Sequence[Answer]) -> frozenset[str]:
    """Digests of the images of all cases that have an answer."""
    return frozenset[str]().union(*(one.images for one in asked))


def digest_of(asked: Sequence[Answer]) -> str:
    """Which images the answers are of, case by case: SHA-256, the same wherever they lie."""
    seen = [(one.case.case_id, sorted(one.images)) for one in asked if one.images]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def require_same_images(one: Sequence[Answer], other: Sequence[Answer]) -> None:
    """Raise `ImageError` where two systems answered the same cases, and an image was exchanged between them."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.files and b.files and not b.error]
    if changed := [a for a, b in pairs if a.files != b.files]:
        raise ImageError(
            f"images of {len(changed)} of {len(pairs)} cases were exchanged before the second system was asked, the "
            f"first of `{changed[0].case.case_id}`, expected both to judge the same",
            hint="evaluate again once nothing writes there",
        )


def of_several(asked: Sequence[Answer]) -> int:
    """How many of the cases show an image that a case of another patient shows, too."""
    owners: dict[str, set[str]] = {}
    for one in asked:
        for image in one.images:
            owners.setdefault(image, set()).add(one.case.group)
    return sum(any(len(owners[image]) > 1 for image in one.images) for one in asked)


def named_twice(asked: Sequence[Answer]) -> int:
    """How many of the cases are by their headers of somebody whom an earlier one names as another patient."""
    images = [(subject, at) for at, one in enumerate(asked) for subject in one.subjects]
    otherwise = named_otherwise((subject, asked[at].case.group) for subject, at in images)
    return len({at for (_, at), found in zip(images, otherwise, strict=True) if found})


def labelled(asked: Sequence[Answer]) -> tuple[list[int], Answers]:
    """Which have a probability and a label, and these."""
    kept = [at for at, one in enumerate(asked) if one.probability is not None and one.case.label is not None]
    label = np.array([asked[at].case.label for at in kept], np.int64)
    probability = np.array([asked[at].probability for at in kept], np.float32)
    return kept, Answers(label, probability, tuple(asked[at].case.group for at in kept))
