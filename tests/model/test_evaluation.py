from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score

from mpmmu_rt.checks import decide
from mpmmu_rt.metrics import brier_score, calibration_error
from mpmmu_rt.model.evaluation import evaluate, operating_point

Scored = tuple[np.ndarray, np.ndarray]


@st.composite
def scored(draw: st.DrawFn) -> Scored:
    """Label with both classes and probability with ties, from a coarse grid that includes 0 and 1."""
    count = draw(st.integers(2, 60))
    label = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.int64)
    label[:2] = (0, 1)
    grid = draw(st.lists(st.integers(0, 16), min_size=count, max_size=count))
    return label, np.array(grid) / 16


@pytest.mark.slow
@settings(deadline=None)
@given(scored(), st.sampled_from([0.0, 0.25, 0.5, 0.97, 1.5]))
def test_the_operating_point_is_scikit_learns(case: Scored, threshold: float) -> None:
    label, probability = case
    point = operating_point(label, probability, threshold)
    decided = probability >= threshold
    counts = [point.true_negative, point.false_positive, point.false_negative, point.true_positive]
    assert counts == confusion_matrix(label, decided, labels=[0, 1]).ravel().tolist()
    assert point.f1 == pytest.approx(f1_score(label, decided))
    assert (point.ppv is None) == (not decided.any())
    assert (point.npv is None) == bool(decided.all())


def test_the_operating_point_by_hand() -> None:
    label, probability = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([0.9, 0.8, 0.5, 0.4, 0.6, 0.1, 0.2])
    point = operating_point(label, probability, 0.5)  # 0.5 itself is malignant
    assert (point.sensitivity, point.specificity) == pytest.approx((3 / 4, 2 / 3))
    assert (point.ppv, point.npv, point.f1) == pytest.approx((3 / 4, 2 / 3, 3 / 4))


def test_a_decision_is_the_runtimes() -> None:
    """Probabilities are float32 where they are decided on: 0.4 less 1e-12 is 0.4 there."""
    probability = np.array([0.4 - 1e-12, 0.3])
    assert operating_point(np.array([1, 0]), probability, 0.4).true_positive == 1
    assert decide(probability.astype(np.float32), 0.4).tolist() == [True, False]


def test_rates_of_a_missing_class_are_none() -> None:
    point = operating_point(np.array([0, 0]), np.array([0.1, 0.2]), 0.5)
    assert (point.sensitivity, point.specificity, point.ppv, point.npv, point.f1) == (None, 1.0, None, 1.0, None)


@settings(deadline=None)
@given(scored())
def test_the_brier_score_is_scikit_learns(case: Scored) -> None:
    label, probability = case
    assert brier_score(label, probability) == pytest.approx(brier_score_loss(label, probability))


def test_the_calibration_error_by_hand() -> None:
    """Bins of 0.5: {0.1, 0.3} with one malignant, {0.7, 1.0} with two: (|1 - 0.4| + |2 - 1.7|) / 4."""
    label, probability = np.array([0, 1, 1, 1]), np.array([0.1, 0.3, 0.7, 1.0])
    assert calibration_error(label, probability, bins=2) == pytest.approx(0.9 / 4)


def test_the_report_is_json_even_where_nothing_can_be_estimated() -> None:
    report = evaluate(np.array([1]), np.array([0.7]), ["a"], 0.5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["auc"]["value"] is None
    assert report["sensitivity"] == 1.0
