"""What an evaluation shows and can't show, in sentences: from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpmmu_rt.bundle import TRIED_INT8
from mpmmu_rt.spec import Target

# Vergouwe et al. 2005 (J Clin Epidemiol 58:475) and Collins et al. 2016 (Statistics in Medicine 35:214): a validation
# needs at least 100 with and 100 without the event.
ENOUGH = 100
FEW = 20  # of the smaller class: what was simulated of fewer stands in docs/evaluation.md
_LOUD = "WARNING: "


def remarks(entry: Mapping[str, Any]) -> list[str]:
    """The loud ones first, which begin with WARNING. They name no case: a model card carries them."""
    makers = (_of_no_use, _learnt, _several, _inverse, _lost, _chosen, _few, _calibrated, _none_missed)
    found = [text for make in makers for text in make(entry)]
    return sorted(found, key=lambda text: not text.startswith(_LOUD))


def is_loud(remark: str) -> bool:
    return remark.startswith(_LOUD)


def _of_no_use(entry: Mapping[str, Any]) -> list[str]:
    systems = [entry["system"], *([entry["against"]["system"]] if entry["against"] else [])]
    return [
        f"{_LOUD}{one['path']} is UNTRAINED: its weights are random, and every figure of it is chance."
        for one in systems
        if not one["trained"]
    ] + [
        f"{_LOUD}{one['path']} was asked on {one['target']}. {TRIED_INT8}."
        for one in systems
        if TRIED_INT8 in (one.get("warning") or "") and Target.parse(one["target"]).in_8_bits
    ]


def _learnt(entry: Mapping[str, Any]) -> list[str]:
    found = []
    for whose, one in (("the model", entry), ("the other system", entry["against"] or {})):
        seen, images = one.get("learnt_from") or {}, one.get("learnt_images", 0)
        if images > sum(seen.values()):
            found.append(
                f"{_LOUD}{whose} was trained on images of {images} of the {entry['cases']['asked']} cases that are "
                "judged, whatever their ids say. Their figures are too good, and say nothing about new patients."
            )
        elif seen:
            counts = " and ".join(f"{count} in its {part} part" for part, count in seen.items())
            found.append(
                f"{_LOUD}{whose} has learnt from {sum(seen.values())} of the {entry['cases']['asked']} cases that are "
                f"judged ({counts}). Their figures are too good, and say nothing about new patients."
            )
    strangers = entry["parts"]["judged"].get("in no part", 0)
    if entry["parts"]["source"] and strangers and not entry["learnt_from"] and not entry.get("learnt_images"):
        found.append(
            f"By their ids the model has not learnt from the patients of {strangers} cases: they are not among those "
            "that its card records. Ids that are written otherwise there would not be found."
        )
    if not entry["parts"]["source"]:
        found.append(
            "Whether the model has learnt from these patients is not known: its card records none of them, and the "
            "manifest has no column `split`. If it has, these figures are too good."
        )
    return found


def _several(entry: Mapping[str, Any]) -> list[str]:
    cases, found = entry["cases"], []
    narrow = "They count as independent and are not: every interval is too narrow."
    if count := cases["images_of_several"]:
        found.append(
            f"{_LOUD}{count} of {cases['judged']} cases show an image that a case of another patient shows, too. "
            f"{narrow} Name one patient for both, or correct the images."
        )
    if count := cases["named_twice"]:
        found.append(
            f"{_LOUD}{count} of {cases['judged']} cases are by their headers (PatientID) of a patient whom an earlier "
            f"case calls otherwise. {narrow} Call her by one name in the column `patient`."
        )
    return found


def _inverse(entry: Mapping[str, Any]) -> list[str]:
    """An AUC below 0.5 that chance doesn't explain. One of 0 has no interval: with 4 patients of each class it comes by
    chance once in 70 evaluations."""
    auc, patients = entry["auc"], entry["cases"]["patients"]
    fewest = min(patients["malignant"], patients["benign"])
    if not (auc["high"] is not None and auc["high"] < 0.5) and not (auc["value"] == 0 and fewest >= 4):
        return []
    return [
        f"{_LOUD}the AUC is below 0.5, and not by chance: malignant cases have the lower probabilities. Either the "
        "labels are the other way round (0 is benign, 1 malignant), or the rows pair images and labels wrongly."
    ]


def _lost(entry: Mapping[str, Any]) -> list[str]:
    cases, found = entry["cases"], []
    if failed := entry["failed"]:
        found.append(
            f"{_LOUD}{len(failed)} of {cases['asked']} cases have no answer and are in no figure. If the hard ones "
            "fail, the figures are too good."
        )
    if lost := entry["choosing_failed"]:
        found.append(f"{_LOUD}{len(lost)} of the cases to choose thresholds on have no answer, and chose nothing.")
    if cases["unlabelled"]:
        found.append(f"{cases['unlabelled']} of {cases['asked']} cases have no label and are in no figure.")
    if swapped := cases["look_swapped"]:
        found.append(
            f"{_LOUD}the images of {swapped} of {cases['asked']} cases look swapped: the mammogram like an ultrasound "
            "image, and the other way round. Where they are, no figure counts: see cases.csv, and correct the manifest."
        )
    if unlike := cases["unlike_training"]:
        loud = _LOUD if 2 * unlike >= cases["asked"] else ""  # then it is the model that is out of place
        found.append(
            f"{loud}{unlike} of {cases['asked']} cases have an image unlike those that the model has learnt from: "
            "inverted, cropped, of another device or of something else, see cases.csv. The figures count them like all "
            "others."
        )
    if headers := cases["against_headers"]:
        found.append(f"{headers} cases have images whose headers say something against them: see cases.csv.")
    if entry["against"] and entry["against"]["unanswered"]:
        found.append(
            f"The other system has no answer for {entry['against']['unanswered']} cases: they are not compared."
        )
    return found


def _chosen(entry: Mapping[str, Any]) -> list[str]:
    found = []
    on = next((one for one in entry["thresholds"] if one["chosen_on"]), None)
    if on is None:
        found.append(
            "Only the stored threshold is judged: there are no validation cases to choose another on that are not "
            "judged themselves. Name some with --choose-on, or in a column `split` of the manifest, without --part all."
        )
    elif min(on["chosen_on_malignant"], on["chosen_on_cases"] - on["chosen_on_malignant"]) < FEW:
        found.append(
            f"Thresholds were chosen on {on['chosen_on_cases']} cases, {on['chosen_on_malignant']} of them malignant: "
            "so few don't tell where a threshold keeps what it promises."
        )
    if on and on["chosen_on_swapped"]:
        found.append(
            f"{_LOUD}the images of {on['chosen_on_swapped']} of the cases that thresholds were chosen on look swapped: "
            "where they are, these thresholds are worth nothing."
        )
    if on and on["chosen_on_unlike"]:
        found.append(
            f"{on['chosen_on_unlike']} of the cases that thresholds were chosen on have an image unlike those that the "
            "model has learnt from."
        )
    if on and on["chosen_on_learnt_patients"]:
        found.append(
            f"{_LOUD}thresholds were chosen on {on['chosen_on_cases']} cases, and the model has learnt from "
            f"{on['chosen_on_learnt_patients']} of their patients: of these it says what it says of no new ones, and a "
            "threshold may keep far less than it promised. Name other patients with --choose-on."
        )
    return found


def _few(entry: Mapping[str, Any]) -> list[str]:
    patients, auc, found = entry["cases"]["patients"], entry["auc"], []
    if entry["cases"]["several_rows_per_patient"]:
        found.append(
            f"{entry['cases']['judged']} rows are of {patients['all']} patients: intervals count patients, not rows."
        )
    fewest = min(patients["malignant"], patients["benign"])
    if fewest >= ENOUGH:
        return found
    wide = "can't be given" if auc["low"] is None else f"is {auc['low']:.2f} to {auc['high']:.2f}"
    sensitivity = entry["thresholds"][0]["figures"]["sensitivity"]
    ends = (
        "" if sensitivity["low"] is None else f" ({sensitivity['low']:.0%} to {sensitivity['high']:.0%} are possible)"
    )
    found.append(
        f"{patients['malignant']} malignant and {patients['benign']} benign patients are few: a validation needs 100 "
        f"of each (Vergouwe 2005, Collins 2016). They can't show the AUC more closely than its interval, which {wide}; "
        f"nor the sensitivity{ends}; nor that the probabilities are calibrated; nor that two systems or two "
        "subgroups are equal."
    )
    if fewest < FEW and entry["figures"]["brier"]["low"] is not None:
        found.append(
            f"With {fewest} patients of the smaller class the intervals from a bootstrap (average precision, F1, "
            "balanced accuracy, Brier score) are too narrow; those of AUC and of shares are not made that way."
        )
    return found


def _calibrated(entry: Mapping[str, Any]) -> list[str]:
    one = entry["figures"]["calibration_error"]
    chance = f"of calibrated systems 19 of 20 stay below {one['by_chance']:.2f} on as many cases"
    if one["value"] > one["by_chance"]:
        return [f"The calibration error of {one['value']:.2f} is more than chance: {chance}."]
    return [f"The calibration error of {one['value']:.2f} may be chance: {chance}."]


def _none_missed(entry: Mapping[str, Any]) -> list[str]:
    stored = entry["thresholds"][0]
    one = stored["figures"]["sensitivity"]
    if stored["false_negative"] or not one["of"]:
        return []
    return [
        f"No malignant case of {one['of']} was missed at the stored threshold; up to {1 - one['low']:.0%} missed is "
        "compatible with that."
    ]
