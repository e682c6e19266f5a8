"""Figures of decisions, held to scikit-learn's and SciPy's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from mpmmu_rt.evaluation.curves import calibration
from mpmmu_rt.evaluation.figures import Answers
from mpmmu_rt.metrics import (
    area_under_curve,
    bin_of,
    brier_score,
    calibration_error,
    poisson_quantile,
    share_interval,
)


@pytest.mark.parametrize("seed", range(20))
def test_auc_and_brier_score_are_those_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(4, 200))
    label = np.r_[0, 1, random.integers(0, 2, count)]
    score = np.round(random.random(count + 2), int(random.integers(1, 8)))  # with and without ties
    assert area_under_curve(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert brier_score(label, score) == pytest.approx(brier_score_loss(label, score), abs=1e-12)


def test_one_class_has_no_auc() -> None:
    assert area_under_curve(np.ones(3, np.int64), np.arange(3.0)) is None
    assert area_under_curve(np.zeros(3, np.int64), np.arange(3.0)) is None


def test_calibration_error_by_hand() -> None:
    # Bin 2 (0.2): one of two is malignant, 0.5 - 0.2 too few; bin 9 (0.9, 1): both are, by 0.05 too few.
    label, probability = np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.9, 1.0])
    assert calibration_error(label, probability) == pytest.approx((2 * 0.3 + 2 * 0.05) / 4)


def test_float32_lies_in_the_bin_of_its_value() -> None:
    tenths = np.arange(11) / 10
    exact = [min(9, int(Fraction(float(one)) * 10)) for one in tenths.astype(np.float32)]
    assert bin_of(tenths.astype(np.float32)).tolist() == exact
    assert exact[7] == 6, "0.7 as float32 is less than 0.7"
    label = np.zeros(11, np.int64)
    answers = Answers(label, tenths.astype(np.float32), tuple(map(str, range(11))))
    table = calibration(answers)
    error = sum(one["rows"] * one["said"] for one in table) / 11
    assert calibration_error(label, tenths.astype(np.float32)) == pytest.approx(error)
    assert sum(one["rows"] for one in table) == 11
    assert [one["rows"] for one in table] == np.bincount(exact)[np.unique(exact)].tolist()


def test_the_exact_interval_is_that_of_the_beta_distribution() -> None:
    for count in (1, 2, 3, 7, 32, 101, 1000, 20_000):
        for hits in {0, 1, count // 7, count // 2, count - 1, count}:
            low, high = share_interval(hits, count)
            assert low == pytest.approx(stats.beta.ppf(0.025, hits, count - hits + 1) if hits else 0, abs=1e-9)
            assert high == pytest.approx(stats.beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1, abs=1e-9)
    assert share_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_exact_interval_covers(share: float) -> None:
    """In at least 95 % of all samples: summed over every outcome, not drawn."""
    count = 60
    covered = 0.0
    for hits in range(count + 1):
        low, high = share_interval(hits, count)
        covered += float(stats.binom.pmf(hits, count, share)) * (low <= share <= high)
    assert 0.95 <= covered < 1


def test_quantiles_are_those_of_the_poisson_distribution() -> None:
    for mean in (0.0, 1e-3, 0.11, 1.0, 3.5, 40.0, 699.0, 800.0, 9000.0):
        for share in (0.025, 0.5, 0.975):
            assert poisson_quantile(mean, share) == max(0, stats.poisson.ppf(share, mean)), (mean, share)
    assert poisson_quantile(2e4, 0.975) == pytest.approx(stats.poisson.ppf(0.975, 2e4), abs=2)
