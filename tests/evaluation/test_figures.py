"""Shares, bootstrap, predictive values, thresholds, curves and paired decisions: by hand, by scikit-learn and SciPy,
and against figures that were published."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_curve

from mpmmu_rt.evaluation import figures
from mpmmu_rt.evaluation.curves import calibration, curves, decision_curve
from mpmmu_rt.evaluation.figures import Answers, at_threshold, average_precision, bootstrap, predictive_values, share
from mpmmu_rt.evaluation.paired import mcnemar
from mpmmu_rt.evaluation.thresholds import at_sensitivity, rates, youden
from mpmmu_rt.metrics import share_interval
from mpmmu_rt.spec import Array


def answers(label: Sequence[int], probability: Sequence[float], groups: Sequence[str] | None = None) -> Answers:
    names = groups or [str(row) for row in range(len(label))]
    return Answers(np.array(label), np.array(probability, np.float32), tuple(names))


def some(patients: int, rows: int = 1, seed: int = 0) -> Answers:
    """Several rows of each patient, which are alike."""
    rng = np.random.default_rng(seed)
    of_patient = rng.integers(0, 2, patients)
    of_patient[:4] = (0, 1, 0, 1)
    label = np.repeat(of_patient, rows)
    shared = np.repeat(rng.normal(0, 0.9, patients), rows)
    score = 1 / (1 + np.exp(-(1.5 * label - 0.8 + shared + rng.normal(0, 0.3, len(label)))))
    return answers(label.tolist(), score.tolist(), [f"p{row // rows}" for row in range(len(label))])


# ---------------------------------------------------------------- shares


@given(st.integers(1, 200), st.data())
def test_a_share_of_independent_rows_has_the_exact_interval(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    found = share(np.arange(count) < hits, [str(row) for row in range(count)])
    assert found.value == hits / count
    assert (found.low, found.high) == pytest.approx(share_interval(hits, count), abs=1e-9)
    exact = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_clopper_and_pearson_by_their_chart() -> None:
    """0 of 10: 1 - 0.025^(1/10); 8 of 10: 0.444 to 0.975, as every table has it."""
    ten = [str(row) for row in range(10)]
    assert share(np.zeros(10, bool), ten).high == pytest.approx(1 - 0.025**0.1)
    found = share(np.arange(10) < 8, ten)
    assert (found.low, found.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)


def test_a_share_of_nothing_is_none() -> None:
    assert share(np.zeros(0, bool), []) == figures.Figure(None, None, None, 0)


def test_copies_of_a_row_add_no_certainty_to_a_share() -> None:
    hits = np.arange(30) % 3 == 0
    once = share(hits, [str(row) for row in range(30)])
    again = share(np.repeat(hits, 6), [str(row // 6) for row in range(180)])
    assert again.value == once.value
    assert None not in (once.low, once.high, again.low, again.high)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=0.02)
    naive = share(np.repeat(hits, 6), [str(row) for row in range(180)])
    assert naive.high - naive.low < 0.5 * (again.high - again.low)  # type: ignore[operator]


def test_a_perfect_share_of_several_rows_each_is_as_unsure_as_its_patients() -> None:
    found = share(np.ones(40, bool), [str(row // 8) for row in range(40)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(share_interval(5, 5)[0])


@pytest.mark.slow
def test_the_interval_of_a_clustered_share_covers_the_truth() -> None:
    """500 trials, 12 patients with 5 rows each, a rate of 0.8 that varies from patient to patient."""
    rng = np.random.default_rng(3)
    names, hits = [str(row // 5) for row in range(60)], 0
    for _ in range(500):
        rate = np.repeat(rng.beta(4, 1, 12), 5)
        found = share(rng.random(60) < rate, names)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.8 <= found.high
    assert hits / 500 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 500)


# ---------------------------------------------------------------- figures without and with a threshold


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
def test_average_precision_is_scikit_learns(count: int, data: st.DataObject) -> None:
    label = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    label[:2] = (0, 1)
    score = np.array(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))) / 12
    assert average_precision(answers(label.tolist(), score.tolist())) == pytest.approx(
        average_precision_score(label, score.astype(np.float32))
    )


def test_the_bootstrap_draws_patients_and_not_rows() -> None:
    """The mean probability of patients with copies has the spread of patients: s / √patients."""
    few = some(40, rows=5)

    def mean(drawn: Answers) -> float:
        return float(drawn.probability.mean())

    found = bootstrap(few, {"mean": mean})["mean"]
    by_patient = few.probability.reshape(40, 5).mean(1)
    error = float(by_patient.std()) / math.sqrt(40)
    assert found.value == pytest.approx(float(by_patient.mean()), abs=1e-6)
    assert None not in (found.low, found.high)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.12)  # type: ignore[operator]
    assert bootstrap(few, {"mean": mean}) == bootstrap(few, {"mean": mean})  # seeded


def test_without_two_patients_of_each_class_there_is_no_interval() -> None:
    found = bootstrap(answers([0, 0, 1], [0.1, 0.4, 0.8]), figures.WITHOUT_THRESHOLD)
    assert found["brier"].value == pytest.approx((0.01 + 0.16 + 0.04) / 3)
    assert found["brier"].low is None


def test_figures_at_a_threshold_by_hand() -> None:
    few = answers([1, 1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.5, 0.4, 0.6, 0.1, 0.2])
    found = {name: one.value for name, one in at_threshold(few, 0.5, None).items()}
    assert found["sensitivity"] == pytest.approx(3 / 4)
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["ppv"] == pytest.approx(3 / 4)
    assert found["npv"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["f1"] == pytest.approx(3 / 4)
    assert "ppv_at_prevalence" not in found


def test_a_class_that_is_missing_has_no_rate() -> None:
    found = at_threshold(answers([0, 0, 0], [0.1, 0.2, 0.9]), 0.5, 0.01)
    assert found["sensitivity"] == figures.Figure(None, None, None, 0)
    assert found["specificity"].value == pytest.approx(2 / 3)
    assert found["balanced_accuracy"].value is None
    assert found["ppv_at_prevalence"].value is None


def test_predictive_values_by_bayes() -> None:
    """Eddy 1982's mammography problem: sensitivity 0.8, specificity 0.904, prevalence 0.01: 7.8 %."""
    found = predictive_values(0.8, 0.904, 0.01, (1000, 1000))
    ppv, npv = found["ppv_at_prevalence"], found["npv_at_prevalence"]
    assert ppv.value == pytest.approx(0.0776, abs=5e-5)
    assert npv.value == pytest.approx(0.904 * 0.99 / (0.904 * 0.99 + 0.2 * 0.01))
    assert None not in (ppv.low, ppv.high)
    assert ppv.low < ppv.value < ppv.high  # type: ignore[operator]


@pytest.mark.parametrize(("hits", "calm"), [((45, 50), (70, 100)), ((50, 50), (70, 100)), ((9, 12), (15, 20))])
def test_the_interval_of_predictive_values_is_that_of_draws(hits: tuple[int, int], calm: tuple[int, int]) -> None:
    """Jeffreys' posterior of both rates: within a fifth of its width, also where a rate is 1."""
    rng = np.random.default_rng(0)
    rate = [rng.beta(k + 0.5, n - k + 0.5, 200_000) for k, n in (hits, calm)]
    drawn = rate[0] * 0.05 / (rate[0] * 0.05 + (1 - rate[1]) * 0.95)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = predictive_values(hits[0] / hits[1], calm[0] / calm[1], 0.05, (hits[1], calm[1]))["ppv_at_prevalence"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.2 * (high - low))


def test_no_false_alarm_is_no_certainty() -> None:
    found = predictive_values(0.9, 1.0, 0.05, (50, 100))["ppv_at_prevalence"]
    assert found.value == 1.0
    assert found.low is not None
    assert 0.2 < found.low < 0.66  # Jeffreys' posterior begins at 0.65


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.floats(0.001, 0.999))
def test_a_predictive_value_lies_in_its_interval(hits: int, calm: int, prevalence: float) -> None:
    """The adjustment for a rate of 0 or 1 moves away from what was seen, and would leave it outside."""
    for one in predictive_values(hits / 12, calm / 12, prevalence, (12, 12)).values():
        if one.value is not None:
            assert one.low is not None
            assert one.high is not None
            assert 0 <= one.low <= one.value <= one.high <= 1


@pytest.mark.parametrize(("rows_of_one", "most"), [(1, 0.05), (4, 0.05)])
def test_calibrated_systems_are_beyond_chance_in_one_of_twenty(
    monkeypatch: pytest.MonkeyPatch, rows_of_one: int, most: float
) -> None:
    monkeypatch.setattr(figures, "DRAWS", 200)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        probability = rng.beta(1, 1.5, 80).astype(np.float32)
        label = (rng.random(80) < probability).astype(int)
        one = figures.calibration_figure(
            Answers(label, probability, tuple(str(row // rows_of_one) for row in range(80)))
        )
        assert one["low"] is None, "an interval would not hold the truth, which is 0"
        found += one["value"] > one["by_chance"]
    assert found / 200 < most + 3 * math.sqrt(most * (1 - most) / 200)


def test_a_system_that_is_not_calibrated_is_beyond_chance() -> None:
    label = np.repeat([0, 1], 50)
    one = figures.calibration_figure(Answers(label, np.full(100, 0.9, np.float32), tuple(map(str, range(100)))))
    assert one["value"] == pytest.approx(0.4)
    assert one["by_chance"] < 0.1


# ---------------------------------------------------------------- thresholds


@settings(deadline=None)
@given(st.integers(2, 50), st.data())
def test_rates_are_scikit_learns(count: int, data: st.DataObject) -> None:
    label = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    label[:2] = (0, 1)
    score = (np.array(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))) / 9).astype(np.float32)
    values, sensitivity, specificity = rates(label, score)
    alarms, hits, thresholds = roc_curve(label, score, drop_intermediate=False)
    assert values.tolist() == thresholds[1:].tolist()
    assert sensitivity == pytest.approx(hits[1:])
    assert specificity == pytest.approx(1 - alarms[1:])


def test_thresholds_by_hand() -> None:
    label = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    score = np.array([0.9, 0.8, 0.6, 0.2, 0.7, 0.3, 0.1, 0.05], np.float32)
    assert youden(label, score) == pytest.approx(0.8)  # 2/4 + 4/4 as good as 3/4 + 3/4: the higher
    assert at_sensitivity(label, score, 0.5) == pytest.approx(0.8)
    assert at_sensitivity(label, score, 0.75) == pytest.approx(0.6)
    assert at_sensitivity(label, score, 0.76) == pytest.approx(0.2)
    assert at_sensitivity(label, score, 1.0) == pytest.approx(0.2)


# ---------------------------------------------------------------- curves


def test_net_benefit_by_hand() -> None:
    """10 cases, 4 malignant; at 0.2 six are called so, 4 of them rightly: 4/10 - 2/10 × 0.25."""
    label = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    score = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.25, 0.1, 0.1, 0.05, 0.0], np.float32)
    found = {round(one["threshold"], 2): one for one in decision_curve(label, score)}
    assert found[0.2]["model"] == pytest.approx(0.4 - 0.2 * 0.25)
    assert found[0.2]["all"] == pytest.approx(0.4 - 0.6 * 0.25)
    assert found[0.5]["model"] == pytest.approx(0.3 - 0.1)
    assert found[0.5]["all"] == pytest.approx(0.4 - 0.6)
    assert found[0.95]["model"] == 0


def test_calibration_bins_hold_every_row() -> None:
    many = some(200)
    bins = calibration(many)
    assert sum(one["rows"] for one in bins) == 200
    error = sum(one["rows"] * abs(one["said"] - one["seen"]) for one in bins) / 200
    assert error == pytest.approx(figures.WITHOUT_THRESHOLD["calibration_error"](many), abs=1e-6)
    assert all(one["low"] <= one["seen"] <= one["high"] for one in bins)


def test_the_roc_curve_encloses_its_area() -> None:
    many = some(300)
    x, y = np.array(curves(many)["roc"]).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert float(np.trapezoid(y, x)) == pytest.approx(figures.WITHOUT_THRESHOLD["auc"](many), abs=2e-3)


# ---------------------------------------------------------------- two systems


def right(both: int, first: int, second: int, neither: int) -> tuple[Array, Array, list[str]]:
    a = np.array([True] * (both + first) + [False] * (second + neither))
    b = np.array([True] * both + [False] * first + [True] * second + [False] * neither)
    return a, b, [str(row) for row in range(len(a))]


def test_mcnemar_of_a_published_table() -> None:
    """Agresti 2002 (Categorical Data Analysis, section 10.1.1), ratings of a prime minister: 794, 150, 86, 570, whose
    statistic is 17.36; the exact test agrees with chi-squared."""
    found = mcnemar(*right(794, 150, 86, 570))
    assert (found.rows, found.first, found.second) == (1600, 150, 86)
    assert found.p == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert found.p == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.3)


def test_mcnemar_by_patient_is_mcnemar_for_one_row_each() -> None:
    """By patient with one pair of rows, of which one tells nothing: (150 - 86)² / (150 + 86) = 17.36."""
    a, b, names = right(794, 150, 86, 570)
    two = ([*a, *a], [*b, *a], [*names, *names])  # the second row of each patient is the same for both
    found = mcnemar(np.array(two[0]), np.array(two[1]), two[2])
    assert "by patient" in found.test
    assert found.p == pytest.approx(stats.chi2.sf((150 - 86) ** 2 / (150 + 86), 1))


def test_copies_of_a_discordant_row_prove_nothing_more() -> None:
    a, b, names = right(20, 8, 3, 5)
    once = mcnemar(a, b, names)
    five = mcnemar(np.repeat(a, 5), np.repeat(b, 5), [name for name in names for _ in range(5)])
    assert once.p is not None
    assert five.p == pytest.approx(stats.chi2.sf(25 / 11, 1))
    assert five.p is not None
    assert five.p > 0.1  # five times as many rows, taken for independent: p = 0.0008


def test_no_decision_differs() -> None:
    found = mcnemar(*right(5, 0, 0, 5))
    assert (found.p, found.test) == (None, "no decision differs")


@pytest.mark.parametrize(("patients", "hits"), [(6, [1, 0, 1, 0]), (7, [1, 0, 0]), (2, [1, 0]), (11, [1, 1, 0])])
def test_patients_who_all_say_the_same_count_as_one_row_each(patients: int, hits: list[int]) -> None:
    """Whether the variance between them is rounded to zero, or to 1e-33, made it 4 rows of 24, or all of 21."""
    names = [str(patient) for patient in range(patients) for _ in hits]
    assert figures.effective_rows(np.array(hits * patients, bool), names) == patients
