"""What thresholds are chosen on: never cases that are judged, nor what the model says of those that it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpmmu_rt.card import FOREIGN
from mpmmu_rt.cases import Case, Manifest
from mpmmu_rt.errors import UsageError
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import Array
from mpmmu_rt.split_record import part_of, parts_of
from mpmmu_rt.subject import Subject, named_otherwise

from .parts import Part, Parts, is_learnt, require_apart
from .systems import Answer, System, ask, images_of, labelled


@dataclass(frozen=True)
class Wanted:
    """part: what is judged. choose_on: cases to choose thresholds on, else the manifest's validation part.
    sensitivity: wished, 0..1. prevalence: of malignant lesions where the system would be used, 0..1. by: columns of the
    manifest to split the figures by. frame: to take of files that hold several."""

    part: Part = "auto"
    choose_on: Manifest | None = None
    sensitivity: float | None = None
    prevalence: float | None = None
    by: tuple[str, ...] = ()
    frame: int | None = None


@dataclass(frozen=True)
class Chooser:
    """Cases with both classes to choose thresholds on. source: which, in words. learnt: how many of their patients the
    model has learnt from, by their ids or by their images. images: digests of theirs; subjects: whom they show by their
    headers. swapped, unlike: how many of the cases look swapped, or have an image unlike those of the training."""

    label: Array
    probability: Array
    source: str
    learnt: int
    images: frozenset[str]
    swapped: int = 0
    unlike: int = 0
    subjects: tuple[Subject, ...] = ()


def apart(chooser: Chooser | None, judged: Sequence[Answer], wanted: Wanted) -> Chooser | None:
    """`chooser`, if no image and no person of it is judged under another name; None where nobody asked for a threshold.
    Raises `UsageError` otherwise."""
    if chooser is None:
        return None
    images = len(chooser.images & images_of(judged))
    shown = [(subject, "judged") for one in judged for subject in one.subjects]
    of_judged = sum(named_otherwise([*shown, *((subject, "chosen on") for subject in chooser.subjects)]))
    if not images and not of_judged:
        return chooser
    if wanted.sensitivity is None and wanted.choose_on is None:
        return None
    said = (
        f"{images} images of {chooser.source} are judged, too, under this name or another, expected other images"
        if images
        else f"{of_judged} images of {chooser.source} are by their headers (PatientID) of patients that are judged, "
        "too, under another name, expected other patients'"
    )
    unless = "" if images else "; where one id stands for many patients, take it out of the files"
    raise UsageError(
        f"{said} to choose a threshold on",
        hint=f"choose on patients that are not judged: a threshold that has seen its judges looks too good{unless}",
    )


def choose(
    system: System, manifest: Manifest, parts: Parts, rows: Sequence[int], wanted: Wanted, progress: Progress
) -> tuple[Chooser | None, list[dict[str, str]]]:
    """What to choose on, and the cases of it that have no answer.

    The cases of `choose_on`; else the manifest's validation part, of which the model has not learnt; else what the
    training has kept of its own validation part. Raises `UsageError` where a sensitivity is wished and there are none,
    and where a patient or an image of them is judged, too.
    """
    if wanted.choose_on is not None:
        cases = list(wanted.choose_on.cases)
        where = source = str(wanted.choose_on.path)
    else:
        judged = set(rows)
        free = [row for row in parts.choosing if row not in judged and not is_learnt(parts.learnt[row])]
        cases = [manifest.cases[row] for row in free]
        where, source = f"the validation part of {manifest.path}", f"the validation part, by {parts.source}"
    require_apart([manifest.cases[row] for row in rows], cases, where)
    found, lost = _asked(system, cases, source, wanted, progress)
    if found is None and wanted.choose_on is None and "validation" not in {parts.learnt[row] for row in rows}:
        found = _kept_by_training(system)
    if found is None and (wanted.sensitivity is not None or wanted.choose_on is not None):
        asked = f"--at-sensitivity {wanted.sensitivity:g}" if wanted.choose_on is None else "--choose-on"
        raise UsageError(
            f"{asked} asks for a threshold and {wanted.choose_on.path if wanted.choose_on else manifest.path} has no "
            "cases of both classes to choose it on beside those that are judged, expected some: no threshold is chosen "
            "on what judges it",
            hint="--choose-on MANIFEST of other patients, or a column `split` with validation and test",
        )
    return found, lost


def _asked(
    system: System, cases: Sequence[Case], source: str, wanted: Wanted, progress: Progress
) -> tuple[Chooser | None, list[dict[str, str]]]:
    if not cases:
        return None, []
    said = ask(system, cases, frame=wanted.frame, progress=progress, name="cases to choose thresholds on")
    _, found = labelled(said)
    lost = [{"case_id": one.case.case_id, "error": one.error} for one in said if one.error]
    if len(set(found.label.tolist())) < 2:
        return None, lost
    known, seen = parts_of(system.card), system.known_images
    groups = {one.case.group for one in said if seen.among(one.images)} & set(found.groups)
    learnt = groups | {group for group in found.groups if is_learnt(part_of(known, group))}
    chooser = Chooser(
        found.label,
        found.probability,
        source,
        len(learnt),
        images_of(said),
        swapped=sum(one.swapped for one in said),
        unlike=sum(one.unlike for one in said),
        subjects=tuple(subject for one in said for subject in one.subjects),
    )
    return chooser, lost


def _kept_by_training(system: System) -> Chooser | None:
    try:
        kept = system.card["metrics"]["validation"]
        label, probability = (np.array(kept[key], np.float64) for key in ("label", "probability"))
        if label.shape != probability.shape or set(label.tolist()) != {0, 1}:
            return None
    except FOREIGN:
        return None
    if not ((probability >= 0) & (probability <= 1)).all():
        return None
    source = "the training's validation part, by heads that had not seen it"
    images = system.known_images.parts["validation"]
    return Chooser(label.astype(np.int64), probability.astype(np.float32), source, 0, images)
