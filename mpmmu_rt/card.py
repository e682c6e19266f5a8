"""The model card: `card` in `bundle.json`, and `MODEL_CARD.md` beside it, which is written from it.

Names are MONAI's (`metadata.json` of a MONAI bundle: task, intended_use, references, eval_metrics) and Hugging Face's
(license, library_name, pipeline_tag, tags) where they have one. Keys beside those of `COMMON`:

    trained_on       where the training's data are from
    metrics          of the training's own test part, in FP32 torch (`mpmmu_rt.model.training`)
    patients         digests of the patients of each part (`mpmmu_rt.split_record`)
    eval_metrics     what `evaluate --update-card` found: one for each manifest, part and target
    limitations      sentences
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import FROM_PHANTOMS, KIND, TRIED_INT8, Bundle, seal, warnings_of
from .errors import BundleError
from .evaluation.text import grid
from .folders import atomic_folder
from .spec import StrPath

NAME = "MODEL_CARD.md"
INTENDED_USE = "Research and engineering. Not a medical device; not for diagnosis."
COMMON: Mapping[str, Any] = {
    "task": "Benign or malignant: the probability that a breast lesion is malignant, from a mammogram and an "
    "ultrasound image of the same patient",
    "intended_use": INTENDED_USE,
    "license": "not stated: ask who trained the model and who owns its data",
    "library_name": "mpmmu-rt",
    "pipeline_tag": "image-classification",
    "tags": ["breast", "mammography", "ultrasound", "onnx"],
    "references": ["Yan et al. 2026, doi 10.1002/acm2.70464: the method. Its data and figures are not this model's"],
    "limitations": [
        "It knows lesions that were found, in patients with both images: not screening, not other devices or sites "
        "than its data's, until somebody has measured that.",
        "A probability is as calibrated as the evaluations say, at the share of malignant lesions of their cases.",
        "The training's own test part is from the same source as what was learnt: other patients are harder.",
    ],
}
FOREIGN = (LookupError, TypeError, ValueError, AttributeError)
"""What reading a card raises where it is a user's own: it may hold any JSON under these names."""
_KEPT = ("measured_at", "parts", "cases", "learnt_from", "auc", "figures", "thresholds", "subgroups", "remarks")


def complete(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card of a training, or a user's, with the fields that all have; what it says itself stands."""
    own = {"license": card["licence"]} if "licence" in card else {}
    return {**COMMON, **own, **card}


def texts(value: object) -> list[str]:
    """Of a list in the card, each on one line; a text alone is a list of one, and null an empty one."""
    found: Iterable[object] = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [_one_line(one) for one in found]


def evaluations(card: Mapping[str, Any]) -> list[Any]:
    """`eval_metrics`: what `update` has written, and what a user has, which may have any form."""
    found = card.get("eval_metrics") or []
    return list(found) if isinstance(found, list | tuple) else [found]


def write(folder: Path, entry: Mapping[str, Any]) -> None:
    """`MODEL_CARD.md` for what `bundle.json` will say: before it is sealed."""
    (folder / NAME).unlink(missing_ok=True)  # it may be a hard link to an earlier one
    (folder / NAME).write_text(markdown(entry), encoding="utf-8")


def update(path: StrPath, evaluation: Mapping[str, Any]) -> Bundle:
    """Write the figures of an evaluation (`mpmmu_rt.evaluation.study`) into the card of the bundle that was evaluated,
    in place of earlier ones of the same cases, part and target, and seal it anew: whole or not at all.

    Raises what opening it raises, and `BundleError` if it is another bundle than was evaluated.
    """
    path = Path(path)
    bundle = Bundle.open(path)
    if evaluation["system"]["digest"] != bundle.digest:
        raise BundleError(
            f"{path} is not what was evaluated ({evaluation['system']['digest'][:12]}), expected it unchanged",
            hint="evaluate it again with --update-card",
        )
    found = {
        "dataset": Path(evaluation["manifest"]["path"]).name,
        "dataset_sha256": evaluation["manifest"]["sha256"],
        "target": evaluation["system"]["target"],
        **{key: evaluation[key] for key in _KEPT},
        "prevalence": evaluation.get("prevalence"),
    }
    card = dict(bundle.entry["card"])
    card["eval_metrics"] = [*(one for one in evaluations(card) if not _same(one, found)), found]
    entry = {key: value for key, value in bundle.entry.items() if key not in ("sha256", "files", "schema")}
    entry["card"] = card
    with atomic_folder(path, KIND, overwrite=True) as partial:
        for name in bundle.entry["files"]:
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path / name, place)
        bundle.require_unchanged()  # or what was written over meanwhile would be sealed
        write(partial, entry)
        seal(partial, entry)
    return Bundle.open(path)


def _same(one: Any, other: Mapping[str, Any]) -> bool:
    def of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        # The same bytes elsewhere name other images.
        return entry["dataset_sha256"], entry["cases"].get("images_sha256"), entry["target"], entry["parts"]["judged"]

    try:
        return of(one) == of(other)
    except FOREIGN:
        return False


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        shutil.copy2(source, place)


# ---------------------------------------------------------------- for people


def markdown(entry: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: of `bundle.json` alone."""
    card, parity = complete(entry["card"]), entry["parity"]
    lines = [
        "---",
        f"library_name: {_one_line(card['library_name'])}",
        f"pipeline_tag: {_one_line(card['pipeline_tag'])}",
        f"tags: [{', '.join(texts(card['tags']))}]",
        "---",
        "",
        f"# {_one_line(entry['name'])}",
        "",
    ]
    if not entry["trained"]:
        lines += ["**UNTRAINED: random weights. Its cost is real, its probabilities mean nothing.**", ""]
    if TRIED_INT8 in warnings_of(entry):
        lines += [f"**{TRIED_INT8}.**", ""]
    lines += [f"{_one_line(card['task'])}.", "", "## Intended use", "", _one_line(card["intended_use"]), ""]
    lines += ["## Data", "", f"Trained on: {_one_line(card.get('trained_on', 'not stated'))}.", ""]
    lines += [*_told(_parts, card), "## Metrics", "", *_told(_training, card)]
    lines += [
        *([f"**{other}**", ""] if (other := other_threshold(card, entry["threshold"])) else []),
        *_evaluations(card),
    ]
    lines += ["## Limits", "", *(f"- {one}" for one in texts(card["limitations"])), ""]
    lines += ["## Proven at export", "", *_proven(entry, parity)]
    lines += ["## Licence", "", _one_line(card["license"]), ""]
    lines += ["## References", "", *(f"- {one}" for one in texts(card["references"]))]
    return "\n".join(lines) + "\n"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _told(make: Callable[[Any], list[str]], found: Any) -> list[str]:
    try:
        return make(found)
    except FOREIGN:
        return ["In another form than mpmmu-rt writes: see `bundle.json`.", ""]


def _parts(card: Mapping[str, Any]) -> list[str]:
    parts = (card.get("metrics") or {}).get("parts") or {}
    keys = ("patients", "malignant_patients", "rows")
    rows = [[str(name), *(str(one[key]) for key in keys)] for name, one in parts.items()]
    return [*grid((["part", "patients", "malignant", "rows"], rows)), ""] if rows else []


def _training(card: Mapping[str, Any]) -> list[str]:
    """The training's own test part."""
    if not card.get("metrics"):
        return ["The training has left no metrics.", ""]
    rows = [
        [str(name), _with_interval(one["auc"]), *(_share(one[key]) for key in ("sensitivity", "specificity", "brier"))]
        for name, one in card["metrics"]["test"].items()
    ]
    header = ["", "AUC", "sensitivity", "specificity", "Brier score"]
    return ["The training's own test part, in torch:", "", *grid((header, rows)), ""]


def other_threshold(card: Mapping[str, Any], threshold: float) -> str:
    """A sentence where the training's sensitivity and specificity are of another threshold than `threshold`, a model's;
    "" where they are not, or the card doesn't say."""
    try:
        at = {float(one["threshold"]) for one in card["metrics"]["test"].values()}
    except FOREIGN:
        return ""
    others = ", ".join(f"{one:.9g}" for one in sorted(at) if np.float32(one) != np.float32(threshold))
    if not others:
        return ""
    return (
        f"The training's sensitivity and specificity are at the threshold {others}. This model decides at "
        f"{threshold:.9g}, where they are others: `mpmmu-rt evaluate` says which."
    )


def _evaluations(card: Mapping[str, Any]) -> list[str]:
    lines = [line for one in evaluations(card) for line in _told(_evaluation, one)]
    return lines or ["`mpmmu-rt evaluate BUNDLE MANIFEST --update-card` writes figures of other cases here.", ""]


def _evaluation(one: Mapping[str, Any]) -> list[str]:
    cases = one["cases"]
    figures = {"AUC": one["auc"], **one["thresholds"][0]["figures"], **one["figures"]}
    rows = [[name.replace("_", " "), _with_interval(value)] for name, value in figures.items()]
    images = f", images {_one_line(cases['images_sha256'])[:12]}" if cases.get("images_sha256") else ""
    lines = [
        f"{_one_line(one['dataset'])} ({one['dataset_sha256'][:12]}{images}) on {one['target']}, "
        f"{one['measured_at'][:10]}: "
        f"{cases['judged']} cases of {cases['patients']['all']} patients, {cases['patients']['malignant']} malignant.",
        "",
        *(f"- {_one_line(text)}" for text in one["remarks"]),
        "",
        *_conditions(one),
        *grid((["figure", "95 % interval"], rows)),
        "",
    ]
    for column, groups in one["subgroups"].items():
        of_groups = [
            [
                _one_line(group["value"]),
                *(str(group["patients"][key]) for key in ("all", "malignant")),
                *(_with_interval(group[key]) for key in ("auc", "sensitivity", "specificity")),
            ]
            for group in groups
        ]
        header = [_one_line(column), "patients", "malignant", "AUC", "sensitivity", "specificity"]
        lines += [*grid((header, of_groups)), ""]
    return lines


def _conditions(one: Mapping[str, Any]) -> list[str]:
    """What the figures hold at; what an evaluation doesn't say is left out."""
    threshold, prevalence = one["thresholds"][0].get("threshold"), one.get("prevalence")
    said = [f"the threshold {threshold:.9g}"] if threshold is not None else []
    said += [f"a stated prevalence of {prevalence:g}"] if prevalence is not None else []
    return [f"At {' and '.join(said)}:", ""] if said else []


def _with_interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "not estimable"
    ends = "no interval" if one["low"] is None else f"{one['low']:.3f} to {one['high']:.3f}"
    return f"{one['value']:.3f} ({ends})"


def _share(value: float | None) -> str:
    return "not estimable" if value is None else f"{value:.3f}"


def calibrated_on(found: Mapping[str, Any]) -> str:
    """`calibration` of `bundle.json`, in words."""
    if found.get("kind") == "manifest":
        return f"{found['cases']} cases of {_one_line(found['manifest'])} (sha256 {found['sha256'][:12]})"
    return f"{found['cases']} {'generated phantoms' if found.get('kind') == FROM_PHANTOMS else 'cases'}"


def _proven(entry: Mapping[str, Any], parity: Mapping[str, Any]) -> list[str]:
    if not parity:
        return ["Nothing yet.", ""]
    lines = [
        f"- {parity['target']}: on {parity['cases']} cases ({_one_line(parity['source'])}) "
        f"{parity['decisions_flipped']} decisions differ from torch and scikit-learn."
    ]
    for target, report in entry["precision"].items():
        word = {True: "proven", False: "left out", None: "built, never run"}[report["passed"]]
        lines.append(f"- {target}: {word}" + (f": {_one_line(report['reason'])}" if report.get("reason") else "") + ".")
    if found := entry.get("calibration"):
        lines.append(f"- INT8 was calibrated on {calibrated_on(found)}.")
    return [*lines, "", f"Operating threshold: {entry['threshold']:.9g}.", ""]
