"""A target against a second one of the same bundle on a user's own cases: decisions, the stage at fault, a forecast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cases import Manifest
from .checks import Check, relative_difference
from .decisions import UNKNOWN, Decisions, checks_of, compare, limits_of, recorded
from .errors import AnswerError, ImageError, MissingPackage, quoted
from .facts import PROBABILITY_TOLERANCE, TOLERANCES
from .forecast import Forecast, forecast
from .forests import Forests, read_forests
from .learnt_ranges import UNLIKE
from .metrics import share_interval
from .modality_check import SAYS
from .predictor import Prediction, Predictor
from .progress import Progress, silent
from .run import Decoded, Decoder
from .spec import MODALITIES, Array, Modality
from .verify import PortableHead, portable_head

BATCH = 32
_WORST = 8  # cases whose stages are compared: those that differ most
_KEPT = 2000  # embeddings to forecast from


@dataclass(frozen=True)
class OwnCases:
    """What was found. reference: what the new target was held to, in words. patients: whose the cases are that are
    counted, each its own where the manifest does not say. unread: cases whose images can't be read, with the reason.
    unanswered: cases for which an engine had no number. warned: cases with something against them, of
    which look_swapped, and unlike_training: with an image unlike those of the training; first_warning: with its case,
    "" if there is none. stages: of the cases that differ most.
    at_export: (flips, cases) that the export recorded; None where it recorded none. notes: what was left out, and why.
    """

    reference: str
    decisions: Decisions
    patients: int
    checks: tuple[Check, ...]
    stage: str
    forecast: Forecast | None
    unread: tuple[str, ...]
    unanswered: int
    warned: int
    look_swapped: int
    unlike_training: int
    first_warning: str
    at_export: tuple[int, int] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        flips, cases = self.at_export or (0, 0)
        stored = {"decisions_flipped": flips, "cases": cases, "interval": list(share_interval(flips, cases))}
        return {
            "reference": self.reference,
            "sign": "delta is new - reference",
            "decisions": self.decisions.to_json(),
            "patients": self.patients,
            "stage_at_fault": self.stage or None,
            "forecast": self.forecast.to_json() if self.forecast else None,
            "unread": list(self.unread),
            "unanswered": self.unanswered,
            "warned": self.warned,
            "look_swapped": self.look_swapped,
            "unlike_training": self.unlike_training,
            "first_warning": self.first_warning or None,
            "at_export": stored if self.at_export else None,
            "notes": list(self.notes),
        }


@dataclass
class _Seen:
    """What both said so far. Of embeddings the first `_KEPT`, of pixels those of the `_WORST` cases."""

    labels: list[int] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    new: list[Array] = field(default_factory=list)
    reference: list[Array] = field(default_factory=list)
    embeddings: list[tuple[Array, Array]] = field(default_factory=list)  # (reference, new)
    worst: list[tuple[float, Decoded]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unanswered: int = 0
    warnings: list[str] = field(default_factory=list)  # of each case that has some, with its id
    learnt: int = 0  # cases that show an image that the model was trained on


def judge(
    new: Predictor,
    reference: Predictor | None,
    manifest: Manifest,
    *,
    frame: int | None = None,
    progress: Progress = silent,
) -> OwnCases:
    """Predict every case of `manifest` on both, and hold `new` to `reference` as the export held it to FP32.

    reference: another target of the same bundle; None for the first target, which everything else is held to: then it
    is the portable head on the embeddings of `new`. Raises `ImageError` if no case can be read, `EngineError` if an
    engine fails, and `MissingPackage` if a format needs a package.
    """
    with portable_head(new) as head:
        if reference is None and head is None:  # TensorRT alone: it is never the first target
            raise ImageError("there is nothing to hold the cases to", hint="name a second target with --against")
        seen = _ask(new, reference, head, manifest, frame, progress)
        if not seen.new:
            raise ImageError(
                f"none of the {len(manifest.cases)} cases of {manifest.path} could be read and answered, expected some"
                + (f"; the first: {seen.unread[0]}" if seen.unread else ""),
                hint=f"`mpmmu-rt run {quoted(new.bundle.path)} {quoted(manifest.path)}` says why for each",
            )
        bundle = new.bundle
        wanted, got = np.concatenate(seen.reference), np.concatenate(seen.new)
        found = compare(wanted, got, np.array(seen.labels), bundle.threshold)
        targets = (new.target,) if reference is None else (new.target, reference.target)
        limits = limits_of(bundle, targets)
        notes = []
        if seen.learnt:
            notes.append(
                f"{seen.learnt} of the {len(manifest.cases)} cases show images that the model was trained on, and "
                "finds easy: other patients' would be a harder test"
            )
        if limits is None:
            notes.append("the export judged no decisions of these targets: there are no limits to hold them to")
        people = len(set(seen.patients))
        if people < found.cases:
            notes.append(
                f"decisions are counted by case: the {found.cases} cases are of {people} patients, and intervals that "
                "take each case for a patient's only one are too narrow"
            )
        checks = checks_of(found, wanted, got, limits)
        if seen.unanswered:
            checks.append(Check("own cases without an answer", float(seen.unanswered), 0.0))
        stages = _stages(new, reference, head, seen.worst) if reference else []
        stage = next((name for name, check in stages if not check.passed), "")
        expected = None
        if reference and head:
            before, after = (np.concatenate(parts)[:_KEPT] for parts in zip(*seen.embeddings, strict=True))
            with contextlib.ExitStack() as stack:
                forests, why = _forests(new)
                if forests:
                    stack.enter_context(forests)
                notes += [why] if why else []
                patients = seen.patients[: len(before)]
                expected = forecast(head.probability, forests, before, after, bundle.threshold, patients)
            if expected is None:
                notes.append(f"{len(before)} cases are too few to forecast flips from, or of too few patients")
    stored = recorded(bundle, new.target)
    at_export = (int(stored["decisions_flipped"]), int(stored["cases"])) if stored and reference else None
    if at_export and share_interval(found.flips, found.cases)[0] > share_interval(*at_export)[1]:
        notes.append("more decisions flip here than did at export: your cases are not like those it was judged on")
    return OwnCases(
        reference=str(reference.target) if reference else "the portable head on the same embeddings",
        decisions=found,
        patients=people,
        checks=(*checks, *(check for _, check in stages)),
        stage=stage,
        forecast=expected,
        unread=tuple(seen.unread),
        unanswered=seen.unanswered,
        warned=len(seen.warnings),
        look_swapped=sum(SAYS in one for one in seen.warnings),
        unlike_training=sum(UNLIKE in one for one in seen.warnings),
        first_warning=seen.warnings[0] if seen.warnings else "",
        at_export=at_export,
        notes=tuple(notes),
    )


def _forests(new: Predictor) -> tuple[Forests | None, str]:
    try:
        return read_forests(new.bundle, new.threads), ""
    except MissingPackage as error:
        return None, f"{error}: {error.hint}"


def _ask(
    new: Predictor,
    reference: Predictor | None,
    head: PortableHead | None,
    manifest: Manifest,
    frame: int | None,
    progress: Progress,
) -> _Seen:
    seen, total, done = _Seen(), len(manifest.cases), 0
    progress("own cases", 0, total, "cases")
    bundle = new.bundle
    decoder = Decoder(manifest.cases, bundle.preprocessing, frame=frame, ahead=2 * BATCH, check=bundle.modality_check)
    with decoder as decoded:
        for items in _batches(decoded, seen):
            seen.learnt += sum(bundle.known_images.shows(item.pixels.values()) for item in items)
            answers = _answers(new, reference, items)
            seen.unanswered += len(items) - len(answers)
            if answers:
                _note(seen, head, answers)
            done += len(items)
            progress("own cases", done + len(seen.unread), total, "cases")
    return seen


def _batches(decoded: Iterator[Decoded], seen: _Seen) -> Iterator[list[Decoded]]:
    pending: list[Decoded] = []
    for item in decoded:
        if item.warnings:
            seen.warnings.append(f"`{item.case.case_id}`: {item.warnings}")
        if item.error:
            seen.unread.append(f"`{item.case.case_id}`: {item.error}")
            continue
        pending.append(item)
        if len(pending) == BATCH:
            yield pending
            pending = []
    if pending:
        yield pending


_Answer = tuple[Decoded, Prediction, Prediction | None, int]  # the case, what both say, its row


def _answers(new: Predictor, reference: Predictor | None, items: list[Decoded]) -> list[_Answer]:
    """Without those for which either engine has no number; the others are asked again."""
    pixels = {modality: np.stack([item.pixels[modality] for item in items]) for modality in MODALITIES}
    try:
        said = new.predict(pixels)
        wanted = reference.predict(pixels) if reference else None
    except AnswerError as error:
        others = [item for row, item in enumerate(items) if row not in error.rows]
        return _answers(new, reference, others) if others else []
    return [(item, said, wanted, row) for row, item in enumerate(items)]


def _note(seen: _Seen, head: PortableHead | None, answers: list[_Answer]) -> None:
    _, said, wanted, _ = answers[0]
    if wanted is not None:
        probability = wanted.probability
        if sum(len(part) for part, _ in seen.embeddings) < _KEPT:
            seen.embeddings.append((wanted.embedding, said.embedding))
    else:
        assert head is not None  # `judge` has seen to it
        probability = head.probability(said.embedding)
    seen.reference.append(probability)
    seen.new.append(said.probability)
    difference = np.abs(said.probability.astype(np.float64) - probability)
    for item, _, _, row in answers:
        seen.labels.append(UNKNOWN if item.case.label is None else item.case.label)
        seen.patients.append(item.case.group)
        seen.worst.append((float(difference[row]), item))
    seen.worst = sorted(seen.worst, key=lambda pair: -pair[0])[:_WORST]


def _stages(
    new: Predictor, reference: Predictor, head: PortableHead | None, worst: list[tuple[float, Decoded]]
) -> list[tuple[str, Check]]:
    """What each stage of both says of the cases that differ most, held to the wider of their tolerances."""
    pixels: dict[Modality, Array] = {
        modality: np.stack([item.pixels[modality] for _, item in worst]) for modality in MODALITIES
    }
    limit = max(TOLERANCES[each.target.precision].relative for each in (new, reference))
    before, after = reference.feature_maps(pixels), new.feature_maps(pixels)
    wanted, said = reference.predict(pixels), new.predict(pixels)
    found = [
        (
            f"the {modality} encoder",
            f"{modality} feature map, relative",
            relative_difference(after[modality], before[modality]),
            limit,
        )
        for modality in MODALITIES
    ]
    found.append(
        ("the attention pool", "embedding, relative", relative_difference(said.embedding, wanted.embedding), limit)
    )
    if head is not None:
        beside = head.difference(said.embedding, said.probability)
        found.append(("the stacking head", "head on the same embedding, max |Δp|", beside, PROBABILITY_TOLERANCE))
    return [(stage, Check(f"own cases, {name}", value, most)) for stage, name, value, most in found]
