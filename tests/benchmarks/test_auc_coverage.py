"""The coverage of the AUC's intervals: what is simulated has the AUC it says, and the page shows the stored result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.auc_coverage import DESIGNS, Design
from mpmmu_rt.metrics import area_under_curve

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("auc", [0.5, 0.8, 0.94])
def test_a_study_has_the_auc_it_says(auc: float) -> None:
    many = Design(8000, 8000, 2, auc).study(np.random.default_rng(0))
    assert area_under_curve(many.label, many.probability) == pytest.approx(auc, abs=0.01)
    assert many.patients == {"all": 16_000, "malignant": 8000, "benign": 8000}


def test_the_page_shows_the_stored_result() -> None:
    stored = (ROOT / "benchmarks/results/auc_coverage.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in stored if line.startswith("|")]
    assert len(rows) == 2 + len(DESIGNS)
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in page
