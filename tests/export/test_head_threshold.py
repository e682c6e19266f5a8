"""Fixed- and TunedThresholdClassifier: their threshold is the bundle's, and says of every case what they say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, StackingClassifier
from sklearn.feature_selection import RFE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, recall_score
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from mpmmu_rt import load
from mpmmu_rt.errors import ExportError, UnsupportedEstimator
from mpmmu_rt.export import Wanted, export_bundle
from mpmmu_rt.export.build import model_of
from mpmmu_rt.export.head import operating_threshold
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import Array

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
X = np.maximum(RNG.normal(0.3, 1, (200, 5)), 0).astype(np.float32)
Y = (X[:, 0] + X[:, 1] + RNG.normal(0, 0.7, 200) > 1.2).astype(int)


def fixed(inner: Any, threshold: Any, **options: Any) -> Any:
    return FixedThresholdClassifier(inner, threshold=threshold, **options).fit(X, Y)


def forest(count: int = 10) -> RandomForestClassifier:
    return RandomForestClassifier(count, random_state=0)


FOUND: dict[str, tuple[Callable[[], Any], Callable[[Any], float | None]]] = {
    "none": (lambda: LogisticRegression().fit(X, Y), lambda head: None),
    "fixed": (lambda: fixed(LogisticRegression(), 0.3), lambda head: 0.3),
    "auto": (lambda: fixed(LogisticRegression(), "auto"), lambda head: 0.5),
    "never fitted itself": (
        lambda: FixedThresholdClassifier(LogisticRegression().fit(X, Y), threshold=0.2),
        lambda head: 0.2,
    ),
    "tuned": (
        lambda: TunedThresholdClassifierCV(forest(), cv=2, random_state=0).fit(X, Y),
        lambda head: float(head.best_threshold_),
    ),
    "behind a scaler": (
        lambda: make_pipeline(StandardScaler(), FixedThresholdClassifier(LogisticRegression(), threshold=0.3)).fit(
            X, Y
        ),
        lambda head: 0.3,
    ),
    "in a search": (
        lambda: GridSearchCV(FixedThresholdClassifier(forest()), {"threshold": [0.4]}, cv=2).fit(X, Y),
        lambda head: 0.4,
    ),
    "in a stack": (  # where it decides nothing but its own label
        lambda: StackingClassifier(
            [("a", FixedThresholdClassifier(LogisticRegression(), threshold=0.2))], LogisticRegression(), cv=2
        ).fit(X, Y),
        lambda head: None,
    ),
    "at the end of a stack": (
        lambda: StackingClassifier(
            [("a", forest()), ("b", LogisticRegression())],
            TunedThresholdClassifierCV(LogisticRegression(), cv=2, scoring="recall"),
            cv=2,
        ).fit(X, Y),
        lambda head: float(head.final_estimator_.best_threshold_),
    ),
    "at the end of a pipeline of a stack": (
        lambda: make_pipeline(
            StandardScaler(),
            StackingClassifier(
                [("a", LogisticRegression())],
                make_pipeline(StandardScaler(), FixedThresholdClassifier(LogisticRegression(), threshold=0.2)),
                cv=2,
            ),
        ).fit(X, Y),
        lambda head: 0.2,
    ),
    "behind an elimination": (
        lambda: RFE(
            FixedThresholdClassifier(LogisticRegression(), threshold=0.2),
            n_features_to_select=3,
            importance_getter="estimator_.coef_",
        ).fit(X, Y),
        lambda head: 0.2,
    ),
    "a stack of none": (
        lambda: StackingClassifier([("a", forest())], LogisticRegression(), cv=2).fit(X, Y),
        lambda head: None,
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_the_threshold_is_found(kind: str) -> None:
    make, expected = FOUND[kind]
    head = make()
    found = operating_threshold(head)
    assert found == expected(head)
    at = 0.5 if found is None else found
    np.testing.assert_array_equal(head.predict_proba(X)[:, 1] >= at, head.predict(X) == 1)


STEPS: dict[str, Callable[[], Any]] = {
    "votes": lambda: forest(10),
    "hundred votes": lambda: forest(100),
    "bag": lambda: BaggingClassifier(DecisionTreeClassifier(), 10, random_state=0),
    "tree": lambda: DecisionTreeClassifier(max_depth=3, random_state=0),
    "isotonic": lambda: CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2, ensemble=False),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_probability_that_equals_the_threshold_is_on_scikit_learns_side(kind: str) -> None:
    """Thresholds on, one float64 above and one below each probability that occurs: all three are one float32, and
    compared as float32 they decide as scikit-learn does in float64."""
    inner = STEPS[kind]().fit(X, Y)
    probability = inner.predict_proba(X)[:, 1]
    values = np.unique(probability)
    if kind == "isotonic":  # between its plateaus values are arbitrary, and float32 can't tell
        values = np.intersect1d(values, inner.calibrated_classifiers_[0].calibrators[0].y_thresholds_)
    assert ((values > 0) & (values < 1)).sum() > 2
    inside = values[(values > 0) & (values < 1)]
    for value in inside[:: 1 + len(inside) // 12]:
        for threshold in (value, np.nextafter(value, 0), np.nextafter(value, 1), value - 1e-9, value + 1e-9):
            head = FixedThresholdClassifier(inner, threshold=float(threshold))
            ours = operating_threshold(head)
            assert ours is not None
            np.testing.assert_array_equal(probability.astype(np.float32) >= np.float32(ours), head.predict(X) == 1)


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "decision": (
        lambda: fixed(LogisticRegression(), 0.3, response_method="decision_function"),
        "head is a FixedThresholdClassifier with a threshold on decision_function",
        "response_method='predict_proba'",
    ),
    "class 0": (
        lambda: fixed(LogisticRegression(), 0.3, pos_label=0),
        "head is a FixedThresholdClassifier with a threshold for class 0",
        "pos_label=1, and 1 - threshold",
    ),
    "tuned for class 0": (
        lambda: TunedThresholdClassifierCV(
            LogisticRegression(), scoring=make_scorer(recall_score, pos_label=0), cv=2
        ).fit(X, Y),
        "head is a TunedThresholdClassifierCV with a threshold for class 0",
        "pos_label=1, and 1 - threshold",
    ),
    "above one": (
        lambda: fixed(LogisticRegression(), 1.5),
        "head is a FixedThresholdClassifier with the threshold 1.5, expected a probability between 0 and 1",
        "0.5, if unsure; or export the estimator that it holds",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_thresholds_that_a_bundle_cannot_have(kind: str) -> None:
    make, message, hint = REFUSED[kind]
    with pytest.raises(UnsupportedEstimator, match=message) as caught:
        operating_threshold(make())
    assert caught.value.hint == hint


class Thumb(nn.Module):
    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(64, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.avg_pool2d(pixels.float() / 255, 4).flatten(1)
        found: torch.Tensor = torch.tanh(self.layer(pooled))
        return found


def arguments(threshold: float) -> dict[str, Any]:
    modules = {"mammography": Thumb(4, 0), "ultrasound": Thumb(3, 1)}
    pixels, label = phantom_pixels(60, seed=4, preprocessing=Preprocessing(size=32))
    with torch.inference_mode():
        embedding = np.concatenate(
            [modules[m](torch.from_numpy(pixels[m])).numpy() for m in ("mammography", "ultrasound")], 1
        )
    head = FixedThresholdClassifier(RandomForestClassifier(10, random_state=0), threshold=threshold)
    return {
        **modules,
        "head": head.fit(embedding, label),
        "preprocessing": Preprocessing(size=32),
        "wanted": Wanted(()),
    }


@pytest.mark.slow
def test_a_bundle_decides_as_its_head_does(tmp_path: Path) -> None:
    """Votes of ten trees and a threshold of 3 / 10: a tie in many cases."""
    given = arguments(0.3)
    bundle = export_bundle(tmp_path / "own.bundle", **given)
    assert bundle.threshold == 0.3
    pixels, _ = phantom_pixels(64, seed=5, preprocessing=given["preprocessing"])
    with load(tmp_path / "own.bundle") as predictor:
        found = predictor.predict(pixels)
    want: Array = given["head"].predict(found.embedding)
    assert np.isclose(given["head"].predict_proba(found.embedding)[:, 1], 0.3).any()
    np.testing.assert_array_equal(found.probability >= np.float32(bundle.threshold), want == 1)


@pytest.mark.slow
def test_a_head_that_decides_by_something_else_is_refused(tmp_path: Path) -> None:
    """An SVC goes by the sign of its decision, which is not p = 0.5 where classes are weighted."""
    given = arguments(0.3)
    pixels, y = phantom_pixels(60, seed=4, preprocessing=given["preprocessing"])
    parts = [given[m](torch.from_numpy(pixels[m])).detach().numpy() for m in ("mammography", "ultrasound")]
    features = np.concatenate(parts, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-learn deprecates `probability`
        given["head"] = SVC(probability=True, class_weight={0: 1, 1: 8}, random_state=0).fit(features, y)
    with pytest.raises(
        ExportError, match=r"`predict` decides \d+ of 32 cases otherwise than its probability at 0\.5"
    ) as told:
        export_bundle(tmp_path / "own.bundle", **given)
    assert told.value.hint == "threshold=0.5, if that is meant"
    assert not (tmp_path / "own.bundle").exists()
    assert export_bundle(tmp_path / "own.bundle", **given, threshold=0.5).threshold == 0.5


def test_two_thresholds_that_differ_are_refused(tmp_path: Path, small_model: Checkpoint) -> None:
    given = arguments(0.3)
    with pytest.raises(ExportError, match=r"threshold is 0\.5, and the head decides at 0\.3, expected one") as caught:
        export_bundle(tmp_path / "own.bundle", **given, threshold=0.5)
    assert caught.value.hint == "pass no threshold, or export the estimator that the head holds"
    assert not (tmp_path / "own.bundle").exists()
    checkpoint = Checkpoint(small_model.config, small_model.encoders, given["head"], 0.4, {})
    with pytest.raises(ExportError, match=r"threshold is 0\.4, and the head decides at 0\.3, expected one") as caught:
        model_of(checkpoint, "own", trained=True)
    assert caught.value.hint.startswith("write the checkpoint with the head's threshold")
    assert model_of(Checkpoint(small_model.config, small_model.encoders, given["head"], 0.3, {}), "own", trained=True)
