"""Figures with their intervals: shares by exact binomial limits, all else by a bootstrap of patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.checks import decide
from mpmmu_rt.metrics import CONFIDENCE, area_under_curve, brier_score, calibration_error, counts, share_interval
from mpmmu_rt.spec import Array

DRAWS = 2000
TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval; None for what can't be estimated. of: how many rows it is a share of."""

    value: float | None
    low: float | None = None
    high: float | None = None
    of: int | None = None


@dataclass(frozen=True)
class Answers:
    """What a system says of the cases that are judged: label int [N] (0 or 1), probability float32 [N], and whose each
    row is."""

    label: Array
    probability: Array
    groups: tuple[str, ...]

    @property
    def clustered(self) -> bool:
        return len(set(self.groups)) < len(self.groups)

    @property
    def patients(self) -> Mapping[str, int]:
        """Of all, and of each class; one with rows of both is malignant."""
        malignant = {g for g, y in zip(self.groups, self.label, strict=True) if y == 1}
        return {"all": len(set(self.groups)), "malignant": len(malignant), "benign": len(set(self.groups) - malignant)}

    def rows(self, chosen: Array) -> Answers:
        """chosen: int or bool [N]."""
        at = np.arange(len(self.label))[chosen]
        return Answers(self.label[at], self.probability[at], tuple(self.groups[row] for row in at))


def share(hits: Array, groups: Sequence[str]) -> Figure:
    """The share of True in hits bool [N], and its interval: Clopper and Pearson 1934 (Biometrika 26:404).

    Where patients have several rows, of an effective number of rows, N over the design effect, as Korn and Graubard
    1998 (Survey Methodology 24:193) have it; where all patients say the same, so that there is no variance to take it
    from, of the number of patients. A bootstrap would give such a share an interval without any width.
    """
    count, total = int(hits.sum()), len(hits)
    if not total:
        return Figure(None, of=0)
    size, value = effective_rows(hits, groups), count / total
    return Figure(value, *share_interval(value * size, size), total)


def effective_rows(hits: Array, groups: Sequence[str]) -> float:
    """How many independent rows tell as much as these: all, where each is another patient's; at most all."""
    total, value = len(hits), float(hits.mean())
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    patients = len(names)
    if patients == total:
        return float(total)
    if patients < 2 or value in (0.0, 1.0):
        return float(patients)
    of_row = np.array([names[group] for group in groups])
    residual = np.bincount(of_row, hits - value, minlength=patients)
    if np.abs(residual).max() < 0.5 / total:  # rows of whole numbers: what is less is rounding
        return float(patients)
    variance = patients / (patients - 1) * float(residual @ residual) / total**2
    t = require("scipy.stats", "an interval of a share", "evaluate").t.ppf
    size = value * (1 - value) / variance
    size *= (float(t(1 - TAIL, total - 1)) / float(t(1 - TAIL, patients - 1))) ** 2
    return float(min(max(size, 1.0), total))


def bootstrap(
    answers: Answers, figures: Mapping[str, Callable[[Answers], float | None]], seed: int = 0
) -> dict[str, Figure]:
    """Each figure and the 2.5 and 97.5 percentiles of it on patients drawn with replacement (Efron and Tibshirani 1993,
    section 13.3; whole patients as in Davison and Hinkley 1997, section 3.8). Draws of one class alone are left out.
    None for an interval of fewer than two patients of a class."""
    found = {name: Figure(figure(answers)) for name, figure in figures.items()}
    patients = answers.patients
    if min(patients["malignant"], patients["benign"]) < 2:
        return found
    of_patient = _rows_by_patient(answers.groups) if answers.clustered else []
    rng = np.random.default_rng(seed)
    seen: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(DRAWS):
        rows = rng.integers(0, patients["all"], patients["all"])
        if of_patient:
            rows = np.concatenate([of_patient[k] for k in rows])
        drawn = Answers(answers.label[rows], answers.probability[rows], ())
        if drawn.label.min() == drawn.label.max():
            continue
        for name, figure in figures.items():
            if (value := figure(drawn)) is not None:
                seen[name].append(value)
    for name, one in found.items():
        if one.value is not None and seen[name]:
            low, high = np.quantile(seen[name], [TAIL, 1 - TAIL]).tolist()
            found[name] = Figure(one.value, low, high)
    return found


def _rows_by_patient(groups: Sequence[str]) -> list[Array]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return [np.array(found) for found in rows.values()]


def average_precision(answers: Answers) -> float | None:
    """Σ (recall gained) × precision over all thresholds, without interpolation, as scikit-learn has it; computed from
    one sort, for it is asked of thousands of draws. None without a malignant row."""
    malignant = int((answers.label == 1).sum())
    if not malignant:
        return None
    order = np.argsort(-answers.probability, kind="stable")
    score, label = answers.probability[order], answers.label[order]
    last = np.r_[np.flatnonzero(np.diff(score)), len(score) - 1]  # of each run of equal scores
    hits = np.cumsum(label == 1)[last]
    return float(np.sum(np.diff(np.r_[0, hits]) * hits / (last + 1)) / malignant)


# Of all rows, at no threshold. AUC here is the bootstrap's; `auc.estimate_auc` has the interval that is shown. The
# calibration error has none: see `calibration_figure`.
WITHOUT_THRESHOLD: Mapping[str, Callable[[Answers], float | None]] = {
    "auc": lambda a: area_under_curve(a.label, a.probability),
    "average_precision": average_precision,
    "brier": lambda a: brier_score(a.label, a.probability.astype(np.float64)),
    "calibration_error": lambda a: calibration_error(a.label, a.probability.astype(np.float64)),
}


def calibration_figure(answers: Answers, seed: int = 0) -> dict[str, Any]:
    """The calibration error, without an interval: chance adds to it, the more the fewer rows, and to a bootstrap of it
    once more: of calibrated systems none has an error of 0, and no percentile interval would hold that.

    by_chance: what 19 of 20 calibrated systems that say these probabilities stay below, by labels drawn from them
    (Bröcker and Smith 2007, Weather and Forecasting 22:651). A patient's rows are drawn as one: as alike as may be.
    """
    said = answers.probability.astype(np.float64)
    names = {group: index for index, group in enumerate(dict.fromkeys(answers.groups))}
    of_row = np.array([names[group] for group in answers.groups])
    rng = np.random.default_rng(seed)
    drawn = [calibration_error((rng.random(len(names))[of_row] < said).astype(int), said) for _ in range(DRAWS)]
    reason = "no interval: chance adds to it"
    value = calibration_error(answers.label, said)
    return asdict(Figure(value)) | {"reason": reason, "by_chance": float(np.quantile(drawn, CONFIDENCE))}


def at_threshold(answers: Answers, threshold: float, prevalence: float | None) -> dict[str, Figure]:
    """Accuracy, sensitivity, specificity, PPV and NPV as shares; F1 and balanced accuracy by bootstrap; with a stated
    prevalence the predictive values that it would have."""
    decided, truth = decide(answers.probability, threshold), answers.label == 1

    def of(hits: Array, rows: Array) -> Figure:
        return share(hits[rows], [answers.groups[row] for row in np.flatnonzero(rows)])

    every = np.ones(len(truth), bool)
    found = {
        "accuracy": of(decided == truth, every),
        "sensitivity": of(decided, truth),
        "specificity": of(~decided, ~truth),
        "ppv": of(truth, decided),
        "npv": of(~truth, ~decided),
        **bootstrap(answers, {"f1": _f1(threshold), "balanced_accuracy": _balanced(threshold)}),
    }
    if prevalence is not None:
        sizes = [
            effective_rows(hits[rows], [answers.groups[row] for row in np.flatnonzero(rows)]) if rows.any() else 0.0
            for hits, rows in ((decided, truth), (~decided, ~truth))
        ]
        found |= predictive_values(found["sensitivity"].value, found["specificity"].value, prevalence, sizes)
    return found


def _f1(threshold: float) -> Callable[[Answers], float | None]:
    def figure(answers: Answers) -> float | None:
        found = counts(answers.label, decide(answers.probability, threshold))
        hits = 2 * found["true_positive"]
        either = hits + found["false_positive"] + found["false_negative"]
        return hits / either if either else None

    return figure


def _balanced(threshold: float) -> Callable[[Answers], float | None]:
    def figure(answers: Answers) -> float | None:
        decided, truth = decide(answers.probability, threshold), answers.label == 1
        if truth.all() or not truth.any():
            return None
        return float(decided[truth].mean() + (~decided[~truth]).mean()) / 2

    return figure


def predictive_values(
    sensitivity: float | None, specificity: float | None, prevalence: float, sizes: Sequence[float]
) -> dict[str, Figure]:
    """`ppv_at_prevalence` and `npv_at_prevalence` by Bayes' theorem, from rates that were seen in `sizes` (malignant,
    benign) rows, and their intervals on the logit scale (Mercaldo, Lau and Zhou 2007, Statistics in Medicine 26:2170,
    section 2.2; with its adjustment, z² / 2 more of each outcome, where a rate is 0 or 1, and widened to what was seen,
    which the adjustment moves away from)."""
    names = ("ppv_at_prevalence", "npv_at_prevalence")
    if sensitivity is None or specificity is None:
        return dict.fromkeys(names, Figure(None))
    z = float(require("scipy.stats", "a predictive value", "evaluate").norm.ppf(1 - TAIL))
    rates, counts = (sensitivity, specificity), tuple(sizes)
    ppv, npv = _bayes(*rates, prevalence), _bayes(specificity, sensitivity, 1 - prevalence)
    if {0.0, 1.0} & set(rates):
        rates = tuple((rate * n + z * z / 2) / (n + z * z) for rate, n in zip(rates, counts, strict=True))  # type: ignore[assignment]
        counts = tuple(n + z * z for n in counts)
    ends = []
    for (hit, other), (n_hit, n_other), odds in (
        (rates, counts, prevalence / (1 - prevalence)),
        (rates[::-1], counts[::-1], (1 - prevalence) / prevalence),
    ):
        centre = math.log(hit / (1 - other) * odds)
        reach = z * math.sqrt((1 - hit) / hit / n_hit + other / (1 - other) / n_other)
        ends.append([1 / (1 + math.exp(-(centre + side * reach))) for side in (-1, 1)])
    return {
        name: Figure(value, *((low, high) if value is None else (min(low, value), max(high, value))))
        for name, value, (low, high) in zip(names, (ppv, npv), ends, strict=True)
    }


def _bayes(hit: float, other: float, prevalence: float) -> float | None:
    """The share that has it, of those called so: `hit` of those who have it are, 1 - `other` of those who don't."""
    called = hit * prevalence + (1 - other) * (1 - prevalence)
    return hit * prevalence / called if called else None
