"""AUC, its interval and the difference of two: against scikit-learn, R's pROC, and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from mpmmu_rt.evaluation.auc import _covariance, compare_auc, estimate_auc
from mpmmu_rt.spec import Array

Scored = tuple[Array, Array]

# The aneurysmal subarachnoid haemorrhage data of Turck et al. 2010 (Intensive Care Med 36:107) in the order of R's
# pROC: poor outcome, WFNS grade, S100B in 0.01 µg/l and NDKA in 0.01 µg/l of 113 patients.
POOR = (
    "00001101001011001011101000000000100110110000000001100010001010011101101111000110100000010000000000001111110001000"
)
WFNS = (
    "11113254125255125225211112121134214541425511241125521251222151125214524414121421232421451154221113125225552445111"
)
S100B = """13 14 10 4 13 10 47 16 18 10 12 10 44 71 4 8 49 4 7 33 9 9 7 11 7 17 7 11 13 19 5 16 41 14 34 35 48
9 96 25 50 46 16 7 43 45 11 8 9 86 52 8 6 13 207 10 14 15 7 6 77 5 9 30 3 9 4 23 70 9 27 71 8 26 8
16 9 13 10 8 11 33 11 28 7 10 32 22 7 5 24 38 10 15 8 14 10 7 4 19 56 14 58 32 82 74 15 47 17 44 15
50 48"""
NDKA = """301 854 809 1042 1740 1275 600 1320 1554 601 1596 1786 518 890 1341 2075 1160 1611 3237 5482 3241
4994 4034 947 629 1253 654 630 8030 1280 980 981 985 1821 503 1404 2193 802 742 838 659 963 1312 796
1434 4143 763 706 1259 1356 387 944 766 1298 41919 2719 2227 995 2122 1173 1040 5883 639 1109 1222
1367 1721 2263 1290 970 2157 823 7257 1554 1051 1060 1457 519 963 461 2148 1730 1271 944 1107 1946
1083 537 1197 775 983 1055 2849 853 1257 1290 4683 1168 1267 901 957 3406 1172 1426 4761 1167 2458
1033 1387 1589 2243 679 1345"""
LABEL = np.array([int(one) for one in POOR])
MARKERS = {
    "wfns": np.array([float(one) for one in WFNS]),
    "s100b": np.array([float(one) for one in S100B.split()]),
    "ndka": np.array([float(one) for one in NDKA.split()]),
}


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


def test_variances_and_covariances_are_those_of_r() -> None:
    """pROC 1.19, tests/testthat/test-var.R and test-cov.R, method "delong"."""
    found = _covariance(LABEL, list(MARKERS.values()), alone(113))
    assert not isinstance(found, str)
    areas, covariance, _ = found
    assert covariance is not None
    assert areas == pytest.approx([0.8236788618, 0.7313685637, 0.6119579946], abs=1e-9)
    assert np.diag(covariance) == pytest.approx([0.00146991470882363, 0.00266868245717244, 0.0031908105493913])
    assert covariance[0, 2] == pytest.approx(-0.000532967856762438)
    assert covariance[2, 1] == pytest.approx(-0.000756164938056579)
    assert covariance[1, 0] == pytest.approx(0.00119615567376754)


@pytest.mark.parametrize(
    ("first", "second", "z", "p", "low", "high"),
    [
        ("s100b", "wfns", 2.20898359144091, 0.0271757822291882, 0.0104061769564846, 0.174214419249478),
        ("ndka", "wfns", 2.79777591868904, 0.00514557970691098, 0.0634011709339876, 0.3600405634833566),
        ("s100b", "ndka", -1.39077002573558, 0.164295175223054, -0.2876917446341914, 0.0488706064228094),
    ],
)
def test_the_difference_is_that_of_r(first: str, second: str, z: float, p: float, low: float, high: float) -> None:
    """pROC 1.19, tests/testthat/test-roc.test.R, whose law is the normal one where ours is Student's t."""
    found = compare_auc(LABEL, MARKERS[first], MARKERS[second], alone(113))
    assert None not in (found.value, found.low, found.high, found.p)
    df = int(LABEL.sum()) - 1
    stretch = float(stats.t.ppf(0.975, df) / stats.norm.ppf(0.975))
    centre, reach = (low + high) / 2, (high - low) / 2
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx((centre - stretch * reach, centre + stretch * reach))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(z), df))
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(p)


def test_the_interval_is_delongs_by_hand() -> None:
    """Malignant 0.9, 0.6, 0.4 against benign 0.7, 0.3, 0.2: AUC 7/9.

    Placements of the malignant rows: 1, 2/3, 2/3, sample variance 1/27; of the benign: 1/3, 1, 1, variance 4/27.
    DeLong: (1/27) / 3 + (4/27) / 3 = 5/81. Student's t of 3 - 1 patients: 4.302653.
    """
    label, score = np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.6, 0.4, 0.7, 0.3, 0.2])
    auc = estimate_auc(label, score, alone(6))
    assert auc.value == pytest.approx(7 / 9)
    reach = 4.302653 * math.sqrt(5 / 81) / (7 / 9 * 2 / 9)
    expected = [1 / (1 + math.exp(-(math.log(3.5) + side * reach))) for side in (-1, 1)]
    assert [auc.low, auc.high] == pytest.approx(expected)
    assert auc.reason == ""


def test_repeated_rows_of_a_patient_add_no_certainty() -> None:
    """Every row five times over: without the patients the interval would shrink, with them it must not."""
    rng = np.random.default_rng(0)
    label = np.tile([0, 1], 40)
    score, other = rng.normal(label, 1.2), rng.normal(label, 1.0)
    names = [str(row // 5) for row in range(400)]
    once = estimate_auc(label, score, alone(80))
    again = estimate_auc(np.repeat(label, 5), np.repeat(score, 5), names)
    naive = estimate_auc(np.repeat(label, 5), np.repeat(score, 5), alone(400))
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
    assert None not in (naive.low, naive.high, once.low, once.high)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)  # type: ignore[operator]
    one = compare_auc(label, score, other, alone(80))
    five = compare_auc(np.repeat(label, 5), np.repeat(score, 5), np.repeat(other, 5), names)
    assert (five.value, five.low, five.high, five.p) == pytest.approx((one.value, one.low, one.high, one.p))


@pytest.mark.slow
@pytest.mark.parametrize(("benign", "malignant"), [(6, 3), (20, 12)])
def test_the_interval_covers_the_truth_of_few_patients_with_several_rows(benign: int, malignant: int) -> None:
    """400 trials of 4 rows a patient: at least 95 % less 3 standard errors of the share."""
    rng = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(1.2 / 2))  # rows N(0 or 1.2, 1): P(X > Y) = Φ(1.2 / √2)
    groups = np.repeat(np.arange(benign + malignant), 4)
    label, names, hits = (groups >= benign).astype(int), [str(one) for one in groups], 0
    for _ in range(400):
        shared = rng.normal(0, math.sqrt(0.7), benign + malignant)[groups]
        score = 1.2 * label + shared + rng.normal(0, math.sqrt(0.3), len(label))
        auc = estimate_auc(label, score, names)
        hits += auc.low is None or auc.high is None or auc.low <= truth <= auc.high
    assert hits / 400 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


@pytest.mark.slow
def test_equal_systems_differ_in_one_of_twenty() -> None:
    """400 trials of two scores that are as good as each other, 15 and 25 patients with 3 rows: at most 5 % + 3 s.e."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 3)
    label, names = (groups >= 25).astype(int), [str(one) for one in groups]
    found = 0
    for _ in range(400):
        shared = (label + rng.normal(0, 0.8, 40)[groups])[None]
        first, second = shared + rng.normal(0, 0.7, (2, len(label)))
        p = compare_auc(label, first, second, names).p
        found += p is not None and p < 0.05
    assert found / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


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


def test_two_that_rank_alike_have_no_difference_and_no_interval() -> None:
    label, score = np.array([0, 0, 1, 1, 0, 1]), np.array([0.1, 0.7, 0.6, 0.8, 0.3, 0.2])
    found = compare_auc(label, score, score**3, alone(6))
    assert (found.value, found.low, found.p) == (0.0, None, None)
    assert "alike" in found.reason


@settings(deadline=None)
@given(scored(), st.integers(1, 4))
def test_an_interval_has_a_width(case: Scored, rows_of_one: int) -> None:
    """Scores that are all equal, or patients whose rows cancel out, have no variance: that is no certainty."""
    label, score = case
    auc = estimate_auc(label, score, [str(row // rows_of_one) for row in range(len(label))])
    assert auc.low is None or auc.high is None or auc.high - auc.low > 1e-6
    assert (auc.low is None) == bool(auc.reason)


@pytest.mark.parametrize(
    ("label", "score", "groups", "value"),
    [
        ([0, 0, 0, 1, 1, 1], [0.5] * 6, "abcdef", 0.5),
        ([0, 1, 0, 1, 0, 1], [2, 2, 3, 2, 2, 1], "baaabb", 2 / 9),
    ],
)
def test_without_a_variance_there_is_no_interval(
    label: list[int], score: list[float], groups: str, value: float
) -> None:
    auc = estimate_auc(np.array(label), np.array(score, float), list(groups))
    assert auc.value == pytest.approx(value)
    assert (auc.low, auc.high) == (None, None)
    assert "variance" in auc.reason


def test_a_difference_without_a_variance_is_not_called_alike() -> None:
    label = np.repeat([0, 1], 20)
    found = compare_auc(label, np.full(40, 0.5), label.astype(float), alone(40))
    assert (found.value, found.low, found.p) == (0.5, None, None)
    assert "alike" not in found.reason


def test_one_pair_of_many_is_a_difference() -> None:
    """20,000 patients of whom two change places. Of each class one placement changes by 10⁻⁴: the variance is
    2 · 10⁻¹⁶, and no rounding; z is 10⁻⁸ over its root, 1/√2."""
    label, score = np.repeat([0, 1], 10_000), np.arange(20_000.0)
    other = score.copy()
    other[[9_999, 10_000]] = score[[10_000, 9_999]]
    found = compare_auc(label, score, other, alone(20_000))
    assert found.value == pytest.approx(-1e-8)
    assert found.p == pytest.approx(2 * stats.norm.sf(1 / math.sqrt(2)), abs=1e-3)
    assert found.low is not None
