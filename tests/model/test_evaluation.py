from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, roc_auc_score

from mpmmu_rt.evaluation.auc import estimate_auc
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


def alone(count: int) -> list[str]:
    return [str(row) for row in range(count)]


@settings(deadline=None)
@given(scored())
def test_auc_is_scikit_learns(case: Scored) -> None:
    label, score = case
    assert estimate_auc(label, score, alone(len(label))).value == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_the_interval_is_delongs_by_hand() -> None:
    """Malignant 0.9, 0.6, 0.4 against benign 0.7, 0.3, 0.2: AUC 7/9.

    Placements of the malignant rows: 1, 2/3, 2/3, sample variance 1/27; of the benign: 1/3, 1, 1, variance 4/27.
    DeLong: (1/27) / 3 + (4/27) / 3 = 5/81.
    """
    label, score = np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.6, 0.4, 0.7, 0.3, 0.2])
    auc = estimate_auc(label, score, alone(6))
    assert auc.value == pytest.approx(7 / 9)
    reach = 1.959964 * math.sqrt(5 / 81) / (7 / 9 * 2 / 9)
    expected = [1 / (1 + math.exp(-(math.log(3.5) + side * reach))) for side in (-1, 1)]
    assert [auc.low, auc.high] == pytest.approx(expected)
    assert auc.reason == ""


def test_repeated_rows_of_a_patient_add_no_certainty() -> None:
    """Every row five times over: without the patients the interval would shrink, with them it must not."""
    rng = np.random.default_rng(0)
    label = np.tile([0, 1], 40)
    score = rng.normal(label, 1.2)
    once = estimate_auc(label, score, alone(80))
    again = estimate_auc(np.repeat(label, 5), np.repeat(score, 5), [str(row // 5) for row in range(400)])
    naive = estimate_auc(np.repeat(label, 5), np.repeat(score, 5), alone(400))
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
    assert None not in (naive.low, naive.high, once.low, once.high)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)  # type: ignore[operator]


def test_the_interval_covers_the_truth_when_patients_have_several_rows() -> None:
    """300 trials with patients of both classes; 95 % ± 3 standard errors of the share."""
    rng = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # rows N(0 or 1, 1): P(X > Y) = Φ(1 / √2)
    hits = 0
    for _ in range(300):
        groups = np.repeat(np.arange(60), 3)
        label = np.where(groups < 20, 0, np.where(groups < 40, 1, np.arange(180) % 2))
        shared = rng.normal(0, math.sqrt(0.7), 60)[groups]
        auc = estimate_auc(label, label + shared + rng.normal(0, math.sqrt(0.3), 180), [str(g) for g in groups])
        assert auc.low is not None
        assert auc.high is not None
        hits += auc.low <= truth <= auc.high
    assert abs(hits / 300 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize(
    ("label", "score", "groups", "value", "reason"),
    [
        ([1, 1], [0.2, 0.9], "ab", None, "0 benign"),
        ([0], [0.2], "a", None, "0 malignant"),
        ([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], "abcd", 1.0, "variance"),
        ([1, 0], [0.1, 0.9], "ab", 0.0, "variance"),
        ([0, 0, 1, 1], [0.1, 0.7, 0.6, 0.8], "abcc", 0.75, "1 malignant"),
    ],
)
def test_what_cannot_be_estimated_is_none_with_a_reason(
    label: list[int], score: list[float], groups: str, value: float | None, reason: str
) -> None:
    auc = estimate_auc(np.array(label), np.array(score), list(groups))
    assert (auc.value, auc.low, auc.high) == (value, None, None)
    assert reason in auc.reason


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
