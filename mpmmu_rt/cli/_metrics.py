"""How well a model did on its test patients, as `train` prints it and `inspect` repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._report import count, fitted, wrapped

TOO_FEW = "too few to tell"


def with_weakness(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of `TrainedModel.metrics`, and what `cross_validate` found in them, why their AUC does not tell, if so."""
    from mpmmu_rt.metrics import too_few

    def judged(counts: Mapping[str, Any], test: Mapping[str, Any]) -> str:
        malignant, auc = counts["malignant_patients"], test["fused"]["auc"]
        return too_few(counts["patients"] - malignant, malignant, auc["low"], auc["high"])

    found = {**metrics, "weakness": judged(metrics["parts"]["test"], metrics["test"])}
    if folds := metrics.get("cross_validation"):
        found["cross_validation"] = {**folds, "weakness": judged(folds, folds["test"])}
    return found


def auc_table(metrics: Mapping[str, Any], title: str = "test") -> str:
    """A row for each modality alone and for both."""
    doubtful = bool(metrics.get("weakness"))
    header = [title, "AUC", "95 % interval", "sensitivity", "specificity", *([""] if doubtful else [])]
    rows = [
        [
            name,
            _told(found["auc"]["value"]),
            interval(found["auc"]),
            *(_told(found[key]) for key in ("sensitivity", "specificity")),
            *([TOO_FEW] if doubtful else []),
        ]
        for name, found in metrics["test"].items()
    ]
    return fitted(header, rows)


def tested(metrics: Mapping[str, Any]) -> str:
    """What the test patients say, and if there were folds what all patients say; and why a table does not tell."""
    lines = [auc_table(metrics), *_why(metrics)]
    if folds := metrics.get("cross_validation"):
        each = [f"{value:.3f}" for value in folds["auc_by_fold"]["fused"] if value is not None]
        lines += [
            "",
            auc_table(folds, "out of fold"),
            *_why(folds),
            wrapped(
                f"{folds['folds']} folds, each of {folds['patients']} patients tested once, by a model that has not "
                f"seen her; fused AUC by fold: {', '.join(each)}"
            ),
        ]
    return "\n".join([*lines, *_unlike(metrics)])


def _unlike(metrics: Mapping[str, Any]) -> list[str]:
    """How often those are warned of who are as the training's patients are: what a new place is to be held to."""
    if (found := metrics.get("unlike")) is None:
        return []
    share = f"{found['unlike']} of {count(found['images'], 'test image')}"
    return [wrapped(f"{share} would be warned of as unlike the images learnt from")]


def _why(metrics: Mapping[str, Any]) -> list[str]:
    return [wrapped(f"{TOO_FEW}: {metrics['weakness']}")] if metrics.get("weakness") else []


def interval(auc: Mapping[str, Any]) -> str:
    return "-" if auc["low"] is None else f"{auc['low']:.3f} to {auc['high']:.3f}"


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
