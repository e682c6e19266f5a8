"""How well a model did on its test patients, as `train` prints it and `inspect` repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._report import fitted, wrapped

TOO_FEW = "too few to tell"


def test_table(metrics: Mapping[str, Any]) -> str:
    """Of `TrainedModel.metrics`; a row for each modality alone and for both."""
    doubtful = bool(metrics.get("weakness"))
    header = ["test", "AUC", "95 % interval", "sensitivity", "specificity", *([""] if doubtful else [])]
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


def weakness_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Why the table does not tell; nothing where it does."""
    weakness = metrics.get("weakness")
    return [wrapped(f"{TOO_FEW}: {weakness}")] if weakness else []


def interval(auc: Mapping[str, Any]) -> str:
    return "-" if auc["low"] is None else f"{auc['low']:.3f} to {auc['high']:.3f}"


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
