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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bundle import MANIFEST, Bundle, seal
from .errors import BundleError
from .files import atomic_folder
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
_KEPT = ("measured_at", "parts", "cases", "learnt_from", "auc", "figures", "thresholds", "subgroups", "remarks")


def complete(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card of a training, or a user's, with the fields that all have; what it says itself stands."""
    return {**COMMON, **card}


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
    }
    card = dict(bundle.entry["card"])
    others = [one for one in card.get("eval_metrics", ()) if not _same(one, found)]
    card["eval_metrics"] = [*others, found]
    entry = {key: value for key, value in bundle.entry.items() if key not in ("sha256", "files", "schema")}
    entry["card"] = card
    with atomic_folder(path, marker=MANIFEST, overwrite=True) as partial:
        for name in bundle.entry["files"]:
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path / name, place)
        write(partial, entry)
        seal(partial, entry)
    return Bundle.open(path)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        return entry["dataset_sha256"], entry["target"], entry["parts"]["judged"]

    return of(one) == of(other)


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
        f"tags: [{', '.join(map(_one_line, card['tags']))}]",
        "---",
        "",
        f"# {_one_line(entry['name'])}",
        "",
    ]
    if not entry["trained"]:
        lines += ["**UNTRAINED: random weights. Its cost is real, its probabilities mean nothing.**", ""]
    lines += [f"{_one_line(card['task'])}.", "", "## Intended use", "", _one_line(card["intended_use"]), ""]
    lines += ["## Data", "", f"Trained on: {_one_line(card.get('trained_on', 'not stated'))}.", "", *_parts(card)]
    lines += ["## Metrics", "", *_training(card), *_evaluations(card)]
    lines += ["## Limits", "", *(f"- {_one_line(one)}" for one in card["limitations"]), ""]
    lines += ["## Proven at export", "", *_proven(entry, parity)]
    lines += ["## Licence", "", _one_line(card["license"]), ""]
    lines += ["## References", "", *(f"- {_one_line(one)}" for one in card["references"])]
    return "\n".join(lines) + "\n"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _parts(card: Mapping[str, Any]) -> list[str]:
    parts = (card.get("metrics") or {}).get("parts") or {}
    rows = [
        f"| {name} | {one['patients']} | {one['malignant_patients']} | {one['rows']} |" for name, one in parts.items()
    ]
    return ["| part | patients | malignant | rows |", "|---|---|---|---|", *rows, ""] if rows else []


def _training(card: Mapping[str, Any]) -> list[str]:
    """The training's own test part."""
    test = (card.get("metrics") or {}).get("test") or {}
    if not test:
        return ["The training has left no metrics.", ""]
    lines = ["The training's own test part, in torch:", "", "| | AUC | sensitivity | specificity | Brier score |"]
    lines.append("|---|---|---|---|---|")
    for name, one in test.items():
        cells = [
            name,
            _with_interval(one["auc"]),
            *(_share(one[key]) for key in ("sensitivity", "specificity", "brier")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _evaluations(card: Mapping[str, Any]) -> list[str]:
    found = card.get("eval_metrics") or []
    lines = [line for one in found for line in _evaluation(one)]
    return lines or ["`mpmmu-rt evaluate BUNDLE MANIFEST --update-card` writes figures of other cases here.", ""]


def _evaluation(one: Mapping[str, Any]) -> list[str]:
    cases = one["cases"]
    figures = {"AUC": one["auc"], **one["thresholds"][0]["figures"], **one["figures"]}
    lines = [
        f"{_one_line(one['dataset'])} ({one['dataset_sha256'][:12]}) on {one['target']}, {one['measured_at'][:10]}: "
        f"{cases['judged']} cases of {cases['patients']['all']} patients, {cases['patients']['malignant']} malignant.",
        "",
        *(f"- {_one_line(text)}" for text in one["remarks"]),
        "",
        "| figure | 95 % interval |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {_with_interval(value)} |" for name, value in figures.items()),
        "",
    ]
    for column, groups in one["subgroups"].items():
        lines += [f"| {_one_line(column)} | patients | malignant | AUC | sensitivity | specificity |"]
        lines += ["|---|---|---|---|---|---|"]
        for group in groups:
            cells = [_one_line(group["value"]), str(group["patients"]["all"]), str(group["patients"]["malignant"])]
            cells += [_with_interval(group[key]) for key in ("auc", "sensitivity", "specificity")]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def _with_interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "not estimable"
    ends = "no interval" if one["low"] is None else f"{one['low']:.3f} to {one['high']:.3f}"
    return f"{one['value']:.3f} ({ends})"


def _share(value: float | None) -> str:
    return "not estimable" if value is None else f"{value:.3f}"


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
    return [*lines, "", f"Operating threshold: {entry['threshold']:g}.", ""]
