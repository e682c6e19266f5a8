"""Decisions on the same cases: held to what the export calls them, and to figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import decide
from mpmmu_rt.decisions import UNKNOWN, checks_of, compare, limits_of, recorded
from mpmmu_rt.export.quantization import Limits
from mpmmu_rt.export.quantization import compare as at_export
from mpmmu_rt.spec import Array, Target

LIMITS = {"flips": 0.05, "mean_difference": 0.03, "auc_loss": 0.005, "sensitivity_loss": 0.01}


def drawn(seed: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    count = int(random.integers(4, 120))
    reference = random.random(count).astype(np.float32)
    new = np.clip(reference + 0.1 * random.standard_normal(count), 0, 1).astype(np.float32)
    return reference, new, np.r_[0, 1, random.integers(0, 2, count - 2)]


@pytest.mark.parametrize("seed", range(30))
def test_it_judges_as_the_export_does(seed: int) -> None:
    """Same figures, same limits, same verdict: a target that the export takes is not refused here on the same cases."""
    reference, new, labels = drawn(seed)
    gate = at_export(reference, new, labels, 0.4, Limits())
    found = compare(reference, new, labels, 0.4)
    assert (found.flips, found.cases) == (gate.flips, gate.cases)
    assert found.mean_difference == pytest.approx(gate.mean_difference)
    assert found.auc == pytest.approx(gate.auc)
    assert found.sensitivity == pytest.approx(gate.sensitivity)
    checks = checks_of(found, reference, new, LIMITS)
    assert [check.value for check in checks] == pytest.approx([check.value for check in gate.checks])
    assert [check.limit for check in checks] == pytest.approx([check.limit for check in gate.checks])


def test_by_hand() -> None:
    reference = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.2], np.float32)
    new = np.array([0.1, 0.5, 0.3, 0.3, 0.9, 0.6], np.float32)
    found = compare(reference, new, np.array([0, 0, 1, 1, 1, UNKNOWN]), 0.4)
    assert (found.to_malignant, found.to_benign, found.flips) == (2, 2, 4)
    assert (found.labelled, found.malignant, found.lost, found.won) == (5, 3, 2, 0)
    assert found.sensitivity == pytest.approx((1, 1 / 3))
    assert found.specificity == pytest.approx((1, 1 / 2))
    said = found.to_json()
    assert said["sensitivity"]["delta"] == pytest.approx(-2 / 3)  # new - reference
    assert said["auc"]["delta"] == pytest.approx(4 / 6 - 1)
    assert said["brier_score"]["delta"] > 0
    assert said["flipped_interval"] == pytest.approx([0.2228, 0.9567], abs=1e-4)  # of 4 of 6


def test_without_labels_flips_count() -> None:
    reference, new, labels = drawn(3)
    found = compare(reference, new, np.full(len(labels), UNKNOWN), 0.4)
    assert found.auc is found.sensitivity is found.specificity is found.brier is found.calibration_error is None
    assert len(checks_of(found, reference, new, LIMITS)) == 2


def test_the_threshold_is_compared_as_it_is_printed() -> None:
    assert decide(np.array([np.float32(0.7)]), 0.7).all()  # as float64 it is below
    assert decide(np.array([0.7]), 0.7).all()


def test_fp32_may_cross_a_split_and_flips_nothing() -> None:
    reference = np.linspace(0, 1, 100, dtype=np.float32)
    new = reference.copy()
    new[10] += 0.015
    assert all(check.passed for check in checks_of(compare(reference, new, np.zeros(100), 0.4), reference, new, {}))
    for row, by in ((10, 0.03), (39, 0.012)):  # too far; over the threshold
        new = reference.copy()
        new[row] += by
        failed = [check for check in checks_of(compare(reference, new, np.zeros(100), 0.4), reference, new, {})]
        assert [check.passed for check in failed].count(False) == 1
    assert checks_of(compare(reference, new, np.zeros(100), 0.4), reference, new, None) == []


@pytest.mark.slow
def test_the_limits_are_those_that_the_export_recorded(int8_folder: object) -> None:
    bundle = Bundle.open(int8_folder)  # type: ignore[arg-type]
    int8, fp32, bf16 = (Target("openvino", precision) for precision in ("int8", "fp32", "bf16"))
    assert limits_of(bundle, (int8, fp32)) == dict.fromkeys(LIMITS, 1.0)  # as the fixture has it
    assert limits_of(bundle, (fp32, Target("onnxruntime", "fp32"))) == {}
    assert limits_of(bundle, (bf16, fp32)) is None  # it was not judged
    assert recorded(bundle, int8)["cases"] == 12
    assert recorded(bundle, Target("onnxruntime", "fp32"))["decisions_flipped"] == 0
