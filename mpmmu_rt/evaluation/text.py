"""An evaluation as text: tables of cells for the terminal, and the whole as Markdown. From its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

AT_THRESHOLD = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "ppv_at_prevalence": "PPV at prev.",
    "npv_at_prevalence": "NPV at prev.",
}
WITHOUT = {
    "average_precision": "average precision",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
Table = tuple[list[str], list[list[str]]]


def with_interval(one: Mapping[str, Any], digits: int = 2) -> str:
    """`0.88 (0.72-0.96)`; a dash for what can't be estimated."""
    if one["value"] is None:
        return "-"
    if one["low"] is None:
        return f"{one['value']:.{digits}f} (-)"
    return f"{one['value']:.{digits}f} ({one['low']:.{digits}f}-{one['high']:.{digits}f})"


def p_value(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def threshold(value: float) -> str:
    """All digits of a float32: one more or less of a threshold that a case has chosen, and the case is on its other
    side."""
    return f"{value:.9g}"


def title(entry: Mapping[str, Any]) -> str:
    system, cases = entry["system"], entry["cases"]
    untrained = "" if system["trained"] else " (UNTRAINED)"
    return (
        f"{system['name']}{untrained} on {system['target']}: {cases['judged']} cases of {cases['patients']['all']} "
        f"patients, {cases['patients']['malignant']} of them malignant, of {PurePath(entry['manifest']['path']).name}"
    )


def parts(entry: Mapping[str, Any]) -> str:
    """Which part of the manifest is judged, and by whose word."""
    counts = entry["parts"]["judged"]
    judged = ", ".join(f"{count} {name}" for name, count in counts.items())
    left_out = ", ".join(f"{count} {name}" for name, count in entry["parts"]["left_out"].items())
    source = entry["parts"]["source"] or "no one: neither the manifest nor the model's card tells parts"
    return f"judged: {judged}" + (f"; left out: {left_out}" if left_out else "") + f"; by {source}"


def overall(entry: Mapping[str, Any], digits: int = 2) -> Table:
    rows = [["AUC", with_interval(entry["auc"], digits)]]
    rows += [[name, with_interval(entry["figures"][key], digits)] for key, name in WITHOUT.items()]
    return ["figure", "95 % interval"], rows


def by_threshold(entry: Mapping[str, Any], digits: int = 2) -> Table:
    at = entry["thresholds"]
    rows = [["threshold", *(threshold(one["threshold"]) for one in at)]]
    rows += [
        [name, *(with_interval(one["figures"][key], max(digits, 3) if "prev" in key else digits) for one in at)]
        for key, name in AT_THRESHOLD.items()
        if key in at[0]["figures"]
    ]
    counts = ("true_positive", "false_positive", "true_negative", "false_negative")
    rows.append(["TP, FP, TN, FN", *(", ".join(str(one[key]) for key in counts) for one in at)])
    return ["figure", *(one["name"] for one in at)], rows


def chosen(entry: Mapping[str, Any]) -> str:
    """What the thresholds are; all that were chosen were chosen on the same cases."""
    names = [one["name"] for one in entry["thresholds"] if one["chosen_on"]]
    return f"{' and '.join(names)}: chosen on {entry['thresholds'][1]['chosen_on']}." if names else ""


def subgroups(found: Sequence[Mapping[str, Any]], column: str, digits: int = 2) -> Table:
    rows = [
        [
            str(one["value"]),
            f"{one['patients']['malignant']} of {one['patients']['all']}",
            *(with_interval(one[key], digits) for key in ("auc", "sensitivity", "specificity")),
        ]
        for one in found
    ]
    return [column, "malignant", "AUC", "sensitivity", "specificity"], rows


def against(entry: Mapping[str, Any]) -> Table:
    found = entry["against"]
    delta = found["difference"]
    ends = "-" if delta["low"] is None else f"{delta['low']:+.4f} to {delta['high']:+.4f}"
    value = "-" if delta["value"] is None else f"{delta['value']:+.4f}"
    rows = [["AUC", value, ends, p_value(delta["p"])]]
    for name, one in found["decisions"].items():
        rows.append(
            [
                f"right on {name} cases",
                f"{one['second'] - one['first']:+d} of {one['rows']}",
                f"{one['second']} won, {one['first']} lost",
                p_value(one["p"]),
            ]
        )
    return ["judged - other", "Δ", "95 % interval", "p"], rows


def other(entry: Mapping[str, Any]) -> str:
    found = entry["against"]
    one = found["system"]
    untrained = "" if one["trained"] else " (UNTRAINED)"
    return (
        f"against {one['name']}{untrained} on {one['target']}, {found['cases']} cases that both answer; other AUC "
        f"{with_interval(found['auc'])}; {found['decisions_differ']} decisions differ, max |Δp| "
        f"{found['max_difference']:.2g}"
    )


def failures(entry: Mapping[str, Any], most: int = 20) -> list[str]:
    """A line for each case that has no answer, judged or to choose on, up to so many."""
    lost = [*entry["failed"], *entry["choosing_failed"]]
    lines = [f"`{one['case_id']}`: {one['error']}" for one in lost[:most]]
    return [*lines, *([f"and {len(lost) - most} more: see report.json"] if len(lost) > most else [])]


def markdown(entry: Mapping[str, Any]) -> str:
    """The report; its plots lie beside it."""
    lines = [f"# {title(entry)}", "", parts(entry), ""]
    for text in entry["remarks"]:
        lines += [f"**{text}**" if text.startswith("WARNING") else text, ""]
    lines += [*grid(overall(entry, 3)), "", *grid(by_threshold(entry, 3)), ""]
    if entry["prevalence"] is not None:
        lines += [f"The stated prevalence is {entry['prevalence']:g}.", ""]
    lines += [chosen(entry)]
    for column, found in entry["subgroups"].items():
        lines += ["", *grid(subgroups(found, column, 3))]
    if entry["against"]:
        lines += ["", other(entry), "", *grid(against(entry))]
    if lost := failures(entry):
        lines += ["", "Without an answer:", "", *(f"- {one}" for one in lost)]
    if entry["curves"]:
        lines += ["", *(f"![{name}]({name}.svg)" for name in PLOTS)]
    machine, system = entry["machine"], entry["system"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines += [
        "",
        f"{system['kind']} {system['digest'][:12]}, manifest {entry['manifest']['sha256'][:12]}; "
        f"{entry['measured_at']}; {machine['cpu']}, {machine['threads']} threads, {versions}.",
        "",
        "For research and engineering. Not a medical device, not for diagnosis.",
    ]
    return "\n".join(lines) + "\n"


PLOTS = ("roc", "precision_recall", "calibration", "decision", "histogram", "confusion")


def grid(found: Table) -> list[str]:
    """A table of Markdown, whose cells may hold anything."""
    header, rows = found

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]
