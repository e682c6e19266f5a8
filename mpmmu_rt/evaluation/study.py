"""The whole evaluation of a system on a manifest: from cases to the entry that every output is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpmmu_rt.cases import Manifest, require_people
from mpmmu_rt.checks import decide
from mpmmu_rt.errors import ImageError, UsageError
from mpmmu_rt.files import rounded
from mpmmu_rt.machine import describe, now
from mpmmu_rt.metrics import counts
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import Array

from . import parts as of_parts
from . import words
from .auc import compare_auc, estimate_auc
from .choosing import Chooser, Wanted, apart, choose
from .curves import curves
from .figures import WITHOUT_THRESHOLD, Answers, at_threshold, bootstrap, calibration_figure, share
from .paired import mcnemar
from .parts import Parts
from .systems import Answer, System, ask, digest_of, labelled, named_twice, of_several, require_same_images
from .thresholds import at_sensitivity, youden

SCHEMA = "mpmmu-evaluate/1"
MOST_GROUPS = 20


@dataclass(frozen=True)
class Evaluation:
    """entry: JSON values only, `rounded`: every output is made from it. rows: of every case that was asked, its part,
    answer and decision, for a CSV."""

    entry: dict[str, Any]
    rows: list[dict[str, str]]


def evaluate(
    system: System, manifest: Manifest, wanted: Wanted, *, against: System | None = None, progress: Progress = silent
) -> Evaluation:
    """Raises `UsageError` for what can't be judged or chosen, `ManifestError` for parts that make no sense and for
    patients that can't be told apart, `ImageError` where no case can be read, and what the engines raise."""
    for one in (manifest, wanted.choose_on):
        if one is not None:
            require_people(one)
    _check_columns(manifest, wanted.by)
    parts = of_parts.read_parts(manifest, system.card)
    rows = of_parts.judged(manifest, parts, wanted.part)
    chooser, lost = choose(system, manifest, parts, rows, wanted, progress)
    cases = [manifest.cases[row] for row in rows]
    asked = ask(system, cases, frame=wanted.frame, files=against is not None, progress=progress, name="judged cases")
    kept, answers = labelled(asked)
    if not kept:
        first = next((one.error for one in asked if one.error), "none has a label")
        raise ImageError(
            f"none of the {len(asked)} cases of {manifest.path} could be read and has a label, expected some; {first}",
            hint="the columns `mammography` and `ultrasound` name images, `label` is 0 or 1",
        )
    chooser = apart(chooser, asked, wanted)
    entry = _facts(system, manifest, parts, rows, asked)
    entry |= _figures(answers, progress)
    entry["thresholds"] = _thresholds(system, answers, chooser, wanted, progress)
    entry["choosing_failed"] = lost
    entry["prevalence"] = wanted.prevalence
    entry["subgroups"] = _subgroups(manifest, [rows[at] for at in kept], answers, wanted.by, system.threshold)
    both = answers.label.min() != answers.label.max()
    entry["curves"] = curves(answers) if both else None
    entry["against"] = None
    if against is not None:
        said = ask(
            against,
            [asked[at].case for at in kept],
            frame=wanted.frame,
            files=True,
            progress=progress,
            name="the other system",
        )
        require_same_images([asked[at] for at in kept], said)
        entry["against"] = _against(system, against, manifest, [rows[at] for at in kept], answers, said)
    entry["remarks"] = words.remarks(entry)
    return Evaluation(rounded(entry), [_row(one, parts, row, system) for one, row in zip(asked, rows, strict=True)])


def _check_columns(manifest: Manifest, by: Sequence[str]) -> None:
    for column in by:
        cells = manifest.others.get(column)
        if cells is None:
            there = ", ".join(manifest.others) or "none but those of every manifest"
            raise UsageError(
                f"{manifest.path} has no column `{column}` to split by, expected one of its further columns ({there})",
                hint="name one of them with --by",
            )
        if (count := len(set(cells))) > MOST_GROUPS:
            raise UsageError(
                f"{manifest.path} has {count} values in the column `{column}`, expected at most {MOST_GROUPS} groups",
                hint="put numbers into a few ranges first, as 40-49, 50-59",
            )


def _facts(
    system: System, manifest: Manifest, parts: Parts, rows: Sequence[int], asked: Sequence[Answer]
) -> dict[str, Any]:
    kept, answers = labelled(asked)
    judged = set(rows)
    others = [part or "in no part" for row, part in enumerate(parts.of_row) if row not in judged]
    learnt = [parts.learnt[row] for row in rows]
    return {
        "schema": SCHEMA,
        "measured_at": now(),
        "system": system.to_json(),
        "manifest": {"path": str(manifest.path), "sha256": manifest.sha256, "cases": len(manifest.cases)},
        "parts": {
            "source": parts.source,
            "judged": dict(_counted(parts.of_row[row] or "in no part" for row in rows)),
            "left_out": dict(_counted(others)),
        },
        "learnt_from": dict(_counted(part for part in learnt if of_parts.is_learnt(part))),
        "learnt_images": sum(system.known_images.among(one.images) for one in asked),
        "cases": {
            "asked": len(asked),
            "judged": len(answers.label),
            "malignant": int((answers.label == 1).sum()),
            "unlabelled": sum(one.case.label is None for one in asked),
            "warned": sum(bool(one.warnings) for one in asked),
            "look_swapped": sum(one.swapped for one in asked),
            "unlike_training": sum(one.unlike for one in asked),
            "against_headers": sum(one.against_header for one in asked),
            "images_of_several": of_several([asked[at] for at in kept]),
            "named_twice": named_twice([asked[at] for at in kept]),
            "images_sha256": digest_of([asked[at] for at in kept]),
            "patients": dict(answers.patients),
            "several_rows_per_patient": answers.clustered,
        },
        "failed": [{"case_id": one.case.case_id, "error": one.error} for one in asked if one.error],
        "machine": describe(),
    }


def _counted(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _figures(answers: Answers, progress: Progress) -> dict[str, Any]:
    progress("intervals", 0, 1)
    drawn = {name: figure for name, figure in WITHOUT_THRESHOLD.items() if name != "calibration_error"}
    without = {name: asdict(one) for name, one in bootstrap(answers, drawn).items()}
    without["calibration_error"] = calibration_figure(answers)
    progress("intervals", 1, 1)
    by_draws = without.pop("auc")
    found = asdict(estimate_auc(answers.label, answers.probability, answers.groups))
    return {"auc": found | {"bootstrap": [by_draws["low"], by_draws["high"]]}, "figures": without}


def _thresholds(
    system: System, answers: Answers, chooser: Chooser | None, wanted: Wanted, progress: Progress
) -> list[dict[str, Any]]:
    """The stored threshold, and where there are cases to choose on Youden's and that of the wished sensitivity."""
    found: list[tuple[str, float, Chooser | None]] = [("stored", system.threshold, None)]
    if chooser:
        found.append(("Youden", youden(chooser.label, chooser.probability), chooser))
        if wanted.sensitivity is not None:
            value = at_sensitivity(chooser.label, chooser.probability, wanted.sensitivity)
            found.append((f"sens. ≥ {wanted.sensitivity:g}", value, chooser))
    entries = []
    for done, (name, value, on) in enumerate(found):
        progress("thresholds", done, len(found))
        figures = at_threshold(answers, value, wanted.prevalence)
        entries.append(
            {
                "name": name,
                "threshold": value,
                "chosen_on": on.source if on else None,
                "chosen_on_cases": len(on.label) if on else None,
                "chosen_on_malignant": int(on.label.sum()) if on else None,
                "chosen_on_learnt_patients": on.learnt if on else None,
                "chosen_on_swapped": on.swapped if on else None,
                "chosen_on_unlike": on.unlike if on else None,
                **counts(answers.label, decide(answers.probability, value)),
                "figures": {key: asdict(one) for key, one in figures.items()},
            }
        )
    progress("thresholds", len(found), len(found))
    return entries


def _subgroups(
    manifest: Manifest, rows: Sequence[int], answers: Answers, by: Sequence[str], threshold: float
) -> dict[str, list[dict[str, Any]]]:
    """At the stored threshold. rows: of the manifest, one for each answer."""
    found: dict[str, list[dict[str, Any]]] = {}
    for column in by:
        cells = np.array([manifest.others[column][row] for row in rows])
        found[column] = [
            {"value": str(value) or "(empty)", **_subgroup(answers.rows(cells == value), threshold)}
            for value in np.unique(cells)
        ]
    return found


def _subgroup(answers: Answers, threshold: float) -> dict[str, Any]:
    decided, truth = decide(answers.probability, threshold), answers.label == 1
    groups = np.array(answers.groups, dtype=object)
    return {
        "rows": len(truth),
        "patients": dict(answers.patients),
        "malignant": int(truth.sum()),
        "auc": asdict(estimate_auc(answers.label, answers.probability, answers.groups)),
        "sensitivity": asdict(share(decided[truth], groups[truth].tolist())),
        "specificity": asdict(share(~decided[~truth], groups[~truth].tolist())),
    }


def _against(
    system: System,
    other: System,
    manifest: Manifest,
    rows: Sequence[int],
    answers: Answers,
    said: Sequence[Answer],
) -> dict[str, Any]:
    """The judged system against another, which `said` that, on the cases that both answer; every difference is judged -
    other."""
    both = np.array([one.probability is not None for one in said])
    ours, groups = answers.rows(both), answers.rows(both).groups
    theirs: Array = np.array([one.probability for one in said if one.probability is not None], np.float32)
    if not len(theirs):
        raise ImageError(
            f"{other.path} on {other.target} answered none of the {len(said)} cases, expected some; {said[0].error}",
            hint="evaluate it alone to see why",
        )
    truth = ours.label == 1
    decided = {"other": decide(theirs, other.threshold), "judged": decide(ours.probability, system.threshold)}
    right = {name: one == truth for name, one in decided.items()}
    learnt = of_parts.read_parts(manifest, other.card).learnt
    every = np.ones(len(truth), bool)
    return {
        "system": other.to_json(),
        "cases": len(truth),
        "unanswered": int((~both).sum()),
        "learnt_from": dict(_counted(learnt[row] for row in rows if of_parts.is_learnt(learnt[row]))),
        "learnt_images": sum(other.known_images.among(one.images) for one in said),
        "auc": asdict(estimate_auc(ours.label, theirs, groups)),
        "difference": asdict(compare_auc(ours.label, theirs, ours.probability, groups)),
        "decisions_differ": int((decided["other"] != decided["judged"]).sum()),
        "max_difference": float(np.abs(ours.probability.astype(np.float64) - theirs).max()),
        "decisions": {
            name: asdict(
                mcnemar(right["other"][of], right["judged"][of], [g for g, use in zip(groups, of, strict=True) if use])
            )
            for name, of in (("all", every), ("malignant", truth), ("benign", ~truth))
        },
    }


def _row(one: Answer, parts: Parts, row: int, system: System) -> dict[str, str]:
    value = one.probability
    decision = "" if value is None else ("malignant" if decide(np.array(value), system.threshold) else "benign")
    return {
        "case_id": one.case.case_id,
        "patient": one.case.patient or "",
        "label": "" if one.case.label is None else str(one.case.label),
        "split": parts.of_row[row],
        "probability": "" if value is None else np.format_float_positional(np.float32(value), unique=True, trim="0"),
        "decision": decision,
        "error": one.error,
        "warnings": one.warnings,
    }
