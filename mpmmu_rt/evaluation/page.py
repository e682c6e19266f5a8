"""An evaluation as a page: made from its JSON alone. `mpmmu_rt.report_html` puts it into a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpmmu_rt import report_parts as pieces
from mpmmu_rt.markup import DASH, Markup, el, joined, number, table

from . import plots, text
from .words import ENOUGH, is_loud


def body(entry: Mapping[str, Any]) -> tuple[str, *tuple[Markup, ...]]:
    """Title and sections."""
    auc, cases, system = entry["auc"], entry["cases"], entry["system"]
    shown = DASH if auc["value"] is None else f"{auc['value']:.3f}"
    loud = [one for one in entry["remarks"] if is_loud(one)]
    few = min(cases["patients"]["malignant"], cases["patients"]["benign"]) < ENOUGH
    patients = f"{'few: ' if few else ''}{cases['patients']['all']} patient{'s' * (cases['patients']['all'] > 1)}"
    warnings = f"{len(loud)} warning{'s' * (len(loud) > 1)}"
    badge = pieces.badge(warnings if loud else patients, not loud and not few)
    sections = [
        pieces.header("Evaluation", f"AUC {shown}", text.title(entry), badge, warnings=[system.get("warning")]),
        *(el("p", one, class_="verdict bad" if is_loud(one) else "verdict") for one in entry["remarks"]),
        el("section", *_keys(entry), class_="keys"),
    ]
    if entry["curves"]:
        sections += _plots(entry)
    sections.append(pieces.card("By threshold", _table(text.by_threshold(entry)), _chosen(entry)))
    for column, found in entry["subgroups"].items():
        note = "Patients; figures at the stored threshold. Nothing here tests whether groups differ."
        sections.append(pieces.card(f"By {column}", _table(text.subgroups(found, column)), note))
    if entry["against"]:
        note = f"{pieces.sentence(text.other(entry))} AUC: DeLong's test, by patient; decisions: McNemar's."
        sections.append(pieces.card("Against another system", _table(text.against(entry)), note))
    if lost := text.failures(entry):
        sections.append(pieces.card("Cases without an answer", joined(el("p", one) for one in lost)))
    sections.append(_tail(entry))
    return (f"AUC {shown}, {system['name']} - mpmmu-rt evaluate", *sections)


def _keys(entry: Mapping[str, Any]) -> list[Markup]:
    stored = entry["thresholds"][0]["figures"]
    found = {"AUC": entry["auc"], "sensitivity": stored["sensitivity"], "specificity": stored["specificity"]}
    found |= {name: entry["figures"][key] for key, name in text.WITHOUT.items()}
    return [pieces.key(name, number(one["value"]), "", _interval(one)) for name, one in found.items()]


def _interval(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return str(one.get("reason") or "no interval")
    return f"{number(one['low'])} to {number(one['high'])}"


def _plots(entry: Mapping[str, Any]) -> list[Markup]:
    stored = entry["thresholds"][0]
    return [
        pieces.grid(
            pieces.card("ROC", plots.roc(entry), f"AUC {text.with_interval(entry['auc'], 3)}."),
            pieces.card("Precision and recall", plots.precision_recall(entry)),
        ),
        pieces.grid(
            pieces.card("Calibration", plots.calibration(entry), "Numbers are cases; bars are 95 % intervals."),
            pieces.card("Decision curve", plots.decision(entry), "Of use where the model is above both other lines."),
        ),
        pieces.grid(
            pieces.card("Probabilities", plots.histogram(entry)),
            pieces.card(
                "Decisions", plots.confusion(stored), f"At the stored threshold, {text.threshold(stored['threshold'])}."
            ),
        ),
    ]


def _chosen(entry: Mapping[str, Any]) -> str:
    said = [text.chosen(entry)] if text.chosen(entry) else []
    if entry["prevalence"] is not None:
        said.append(f"The stated prevalence is {entry['prevalence']:g}.")
    return " ".join(said)


def _table(found: text.Table) -> Markup:
    return table(*found)


def _tail(entry: Mapping[str, Any]) -> Markup:
    system, machine = entry["system"], entry["machine"]
    about = {
        system["kind"]: system["path"],
        "its SHA-256": system["digest"],
        "target": system["target"],
        "manifest": entry["manifest"]["path"],
        "manifest, SHA-256": entry["manifest"]["sha256"],
        "parts": text.parts(entry),
        "when": entry["measured_at"],
    }
    about |= {f"note {at}": one for at, one in enumerate(system["remarks"], 1)}
    rows = {
        "processor": machine["cpu"],
        "threads": str(machine["threads"]),
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "intervals": "95 %; see docs/evaluation.md for what each figure means",
    }
    return pieces.grid(
        pieces.card("What was measured", pieces.facts(about)), pieces.card("Machine", pieces.facts(rows))
    )
