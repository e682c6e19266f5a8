"""Heads that lose digits in float32 if they are written down as they stand: linear ones far from zero, and isotonic
calibration of impure forests, whose steps are as steep as two of their means are close."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.head import emit_split, lower, report
from mpmmu_rt.export.head.graph import Graph
from mpmmu_rt.spec import Array
from tests.export.running_heads import ENGINES, on_onnxruntime

pytestmark = pytest.mark.usefixtures("one_thread")

PROMISE = 1e-5


# ---------------------------------------------------------------- far from zero


def far(width: int, deviations: float, *, scales: float = 0.0) -> tuple[Array, Array]:
    """Float64 embeddings whose means are that many of their deviations, and labels that depend on all of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, width)) + deviations * (0.5 + rng.random(width))
    weight = rng.normal(size=width) * 3 / np.sqrt(width)
    y = ((x - x.mean(0)) @ weight + rng.logistic(size=400) > 0).astype(int)
    return x * np.exp(scales * rng.normal(size=width)), y


def logistic(x: Array, y: Array) -> LogisticRegression:
    """Fitted on the centred data, then moved: solvers do not get there from zero."""
    scaler = StandardScaler().fit(x)
    found = LogisticRegression().fit(scaler.transform(x), y)
    weight = found.coef_[0] / scaler.scale_
    found.coef_, found.intercept_ = weight[None], found.intercept_ - scaler.mean_ @ weight
    return found


@pytest.mark.parametrize("scales", [0.0, 3.0])
@pytest.mark.parametrize("deviations", [0.0, 50.0, 500.0])
@pytest.mark.parametrize("width", [1, 20, 512])
def test_a_logistic_regression_without_a_scaler(width: int, deviations: float, scales: float) -> None:
    """By scikit-learn in float64, of the same float32 embedding."""
    x, y = far(width, deviations, scales=scales)
    head = logistic(x, y)
    embedding = x.astype(np.float32)
    want = head.predict_proba(embedding.astype(np.float64))[:, 1]
    assert np.ptp(want) > 0.5
    for form, run in ENGINES:
        for products in ("gemm", "convolution"):
            got = run(lower(head, width, form, products=products), embedding).probability
            np.testing.assert_allclose(got, want, rtol=0, atol=PROMISE / 5, err_msg=f"{form} {run.__name__} {products}")


BEFORE: dict[str, Callable[[], Any]] = {
    "selected": lambda: SelectKBest(k=7),
    "scaled without mean": lambda: StandardScaler(with_mean=False),
    "scaled by the largest": lambda: MaxAbsScaler(),
    "side by side": lambda: FeatureUnion([("a", MaxAbsScaler()), ("b", "passthrough")]),
}


@pytest.mark.parametrize("before", BEFORE)
def test_what_keeps_its_offset_is_as_exact(before: str) -> None:
    x, y = far(12, 300.0)
    embedding = x.astype(np.float32)
    step = BEFORE[before]().fit(embedding, y)
    head = make_pipeline(step, logistic(step.transform(x), y))
    want = head.predict_proba(embedding)[:, 1]  # scales in float32, as we do, then adds in float64
    for form, run in ENGINES[::2]:
        np.testing.assert_allclose(run(lower(head, 12, form), embedding).probability, want, rtol=0, atol=PROMISE)


@pytest.mark.parametrize("scaler", [StandardScaler(), RobustScaler()])
def test_a_scaler_far_from_zero(scaler: Any) -> None:
    """OpenVINO made x / s - c / s of (x - c) / s, which was 3e-4 off."""
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (200, 12)).astype(np.float32)
    y = (x[:, 0] + rng.normal(0, 1, 200) > 1e4).astype(int)
    for steps in ([], [Normalizer()], [MinMaxScaler()]):
        head = make_pipeline(scaler, *steps, LogisticRegression(C=10)).fit(x, y)
        want = head.predict_proba(x)[:, 1]
        for form, run in ENGINES:
            np.testing.assert_allclose(
                run(lower(head, 12, form), x).probability, want, rtol=0, atol=PROMISE / 5, err_msg=form
            )


def test_the_first_layer_of_a_network_far_from_zero() -> None:
    x, y = far(9, 400.0)
    head = MLPClassifier((6,), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=3000, random_state=0)
    scaler = StandardScaler().fit(x)
    head.fit(scaler.transform(x), y)
    head.coefs_[0] = head.coefs_[0] / scaler.scale_[:, None]
    head.intercepts_[0] = head.intercepts_[0] - scaler.mean_ @ head.coefs_[0]
    embedding = x.astype(np.float32)
    want = head.predict_proba(embedding.astype(np.float64))[:, 1]
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, 9, form), embedding).probability, want, rtol=0, atol=PROMISE)


def test_a_linear_svm_far_from_zero() -> None:
    x, y = far(6, 200.0)
    head = CalibratedClassifierCV(SVC(kernel="linear"), cv=2).fit(x, y)
    embedding = x.astype(np.float32)
    want = head.predict_proba(embedding.astype(np.float64))[:, 1]
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, 6, form), embedding).probability, want, rtol=0, atol=PROMISE)


def test_the_smallest_floats_answer_and_so_does_what_has_no_weight() -> None:
    """What its slices can't hold has no answer: clipped, two such contributions would cancel."""
    head = LogisticRegression().fit(np.eye(4)[:, :3], [0, 1, 0, 1])
    head.coef_, head.intercept_ = np.array([[1.0, -2.0, 0.0]]), np.zeros(1)
    top, tiny = np.finfo(np.float32).max, np.float32(1e-45)
    x = np.array([[tiny, -tiny, 0], [0, 0, top], [1e30, -1e30, 0], [top, 1, 0], [1e35, 1e35, 3]], np.float32)
    for form, run in ENGINES:
        np.testing.assert_allclose(
            run(lower(head, 3, form), x).probability, [0.5, 0.5, 1, np.nan, np.nan], rtol=0, atol=1e-7
        )


def test_slices_add_up_to_what_was_sliced_and_their_products_are_exact() -> None:
    """To the bit; and any order of the first two parts' sums gives the same."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 77)) + 300).astype(np.float32)
    weight = rng.normal(size=(77, 2))
    graph = Graph()
    slices, wide, _ = emit_split.affine(graph, "embedding", weight, np.zeros(2))
    graph.op("Identity", slices, output="probability")
    graph.op("Identity", slices, output="base_probability")
    model = graph.model(77, 231, 18, 3)
    model.graph.output[0].CopyFrom(model.graph.output[1])
    model.graph.output[0].name = "probability"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (parts,) = session.run(["base_probability"], {"embedding": x})
    exact = parts.astype(np.float64) @ wide
    np.testing.assert_allclose(exact[:, :2] + exact[:, 2:4] + exact[:, 4:], x @ weight, rtol=1e-13)
    orders = [rng.permutation(231) for _ in range(5)]
    for order in orders:
        terms = parts[:, order, None] * wide[order, :4].astype(np.float32)
        one = terms[:, 0].copy()
        for k in range(1, 231):
            one += terms[:, k]
        np.testing.assert_array_equal(one, exact[:, :4])


# ---------------------------------------------------------------- kernels that hardly differ


ALIKE: dict[str, Any] = {
    "rbf": SVC(gamma=0.01),
    "polynomial": SVC(kernel="poly", gamma=0.01, coef0=0.5, degree=3),
    "polynomial, of the first degree": SVC(kernel="poly", gamma=1000.0, degree=1, C=100.0),
    "sigmoid": SVC(kernel="sigmoid", gamma=0.01, coef0=0.5),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_vectors_that_are_close_together_for_their_kernel(kind: str) -> None:
    """Shares of a whole, next to which the kernel is nearly flat, with the steep Platt slope that follows from it."""
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(200, 30))
    x /= x.sum(axis=1, keepdims=True)
    y = (x[:, :15].sum(axis=1) + rng.normal(0, 0.05, 200) > 0.5).astype(int)
    embedding = x.astype(np.float32)
    head = CalibratedClassifierCV(ALIKE[kind], cv=2).fit(embedding, y)
    want = head.predict_proba(embedding)[:, 1]
    assert np.ptp(want) > 0.5
    for form, run in ENGINES:
        for products in ("gemm", "convolution"):
            graph = lower(head, 30, form, products=products)
            assert report(graph)["notes"] == []
            np.testing.assert_allclose(
                run(graph, embedding).probability, want, rtol=0, atol=1e-6, err_msg=f"{form} {products}"
            )


def test_a_hyperbolic_tangent_that_says_one_thing_of_all() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(30, 1, (80, 4)).astype(np.float32)
    y = (rng.random(80) > 0.4).astype(int)
    head = CalibratedClassifierCV(SVC(kernel="sigmoid", gamma=1.0), cv=2).fit(x, y)
    want = head.predict_proba(x)[:, 1]
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, 4, form), x).probability, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_decisions_of_which_float32_keeps_nothing_are_noted(method: str) -> None:
    """A polynomial far from zero: its decisions are 1e-9 of what they are summed from."""
    rng = np.random.default_rng(2)
    x = rng.normal(30, 1, (120, 4)).astype(np.float32)
    y = (x.sum(axis=1) + rng.normal(0, 1, 120) > 120).astype(int)
    head = CalibratedClassifierCV(SVC(kernel="poly", gamma=1.0, degree=2, max_iter=5000), method=method, cv=2)
    with pytest.warns(ConvergenceWarning):
        head.fit(x, y)
    notes = report(lower(head, 4))["notes"]
    assert notes
    assert all(note.startswith("head: ") and "rounding of" in note for note in notes)


# ---------------------------------------------------------------- computed features that hardly differ


def test_a_power_that_flattens_everything_is_refused() -> None:
    """Far from zero scikit-learn's own powers are little but rounding of float32; standardised before, they are not."""
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (200, 3))
    y = (x[:, 0] > 1e4).astype(int)
    head = make_pipeline(PowerTransformer(), LogisticRegression()).fit(x, y)
    with pytest.raises(
        UnsupportedEstimator, match=r"powertransformer is .* whose power [-\d.e+]+ of column \d leaves"
    ) as caught:
        lower(head, 3)
    assert "StandardScaler" in caught.value.hint
    embedding = x.astype(np.float32)
    head = make_pipeline(StandardScaler(), PowerTransformer(), LogisticRegression()).fit(embedding, y)
    for form, run in ENGINES:
        np.testing.assert_allclose(
            run(lower(head, 3, form), embedding).probability, head.predict_proba(embedding)[:, 1], atol=1e-5
        )


def test_naive_bayes_of_computed_features_that_never_vary_is_refused() -> None:
    x = np.ones((60, 2))
    y = np.arange(60) % 2
    quantiles = QuantileTransformer(n_quantiles=9, output_distribution="normal")
    with pytest.raises(UnsupportedEstimator, match=r"whose feature \d is .* of its standard deviations from zero"):
        lower(make_pipeline(quantiles, GaussianNB()).fit(x, y), 2)
    x[:, 0] += y * np.arange(60)
    lower(make_pipeline(quantiles, GaussianNB()).fit(x, y), 2)  # one of them is constant: smoothing is enough
    lower(GaussianNB().fit(x, y), 2)


@pytest.mark.parametrize("learner", [GaussianNB(), LinearDiscriminantAnalysis()])
def test_shares_of_what_is_far_from_zero_are_noted(learner: Any) -> None:
    """A Normalizer without a scaler before it: each share is next to the same, in scikit-learn's float32 too."""
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (200, 12)).astype(np.float32)
    y = (x[:, 0] + rng.normal(0, 1, 200) > 1e4).astype(int)
    head = make_pipeline(Normalizer(), learner).fit(x.astype(np.float64), y)
    (note,) = report(lower(head, 12))["notes"]
    assert "computed in float32" in note
    assert np.abs(head.predict_proba(x) - head.predict_proba(x.astype(np.float64))).max() > PROMISE
    head = make_pipeline(StandardScaler(), Normalizer(), learner).fit(x.astype(np.float64), y)
    for form, run in ENGINES:
        graph = lower(head, 12, form)
        assert report(graph)["notes"] == []
        np.testing.assert_allclose(run(graph, x).probability, head.predict_proba(x)[:, 1], rtol=0, atol=PROMISE)


# ----------------------------------------------------------------  isotonic calibration


IMPURE: dict[str, Callable[[], Any]] = {
    "forest": lambda: RandomForestClassifier(60, max_depth=5, random_state=0),
    "balanced forest": lambda: RandomForestClassifier(60, max_depth=7, class_weight="balanced", random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(60, min_samples_leaf=5, random_state=0),
    "pure forest": lambda: RandomForestClassifier(60, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=40, random_state=0),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=30),
    "bagging": lambda: BaggingClassifier(DecisionTreeClassifier(max_depth=4), 12, max_features=0.7, random_state=0),
    "votes": lambda: VotingClassifier(
        [(f"t{k}", DecisionTreeClassifier(max_depth=4, random_state=k)) for k in range(5)], voting="soft"
    ),
    "weighted votes": lambda: VotingClassifier(
        [("a", ExtraTreesClassifier(9, max_depth=4, random_state=0)), ("b", DecisionTreeClassifier(max_depth=4))],
        voting="soft",
        weights=[0.3, 0.7],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMPURE)
def test_isotonic_calibration_of_trees(kind: str) -> None:
    ensemble = kind in ("forest", "boosting", "bagging")
    x, y = make_classification(2000, 12, n_informative=6, flip_y=0.2, class_sep=0.7, random_state=0)
    x = x.astype(np.float32)
    head = CalibratedClassifierCV(IMPURE[kind](), method="isotonic", cv=2, ensemble=ensemble).fit(x[:1000], y[:1000])
    want = head.predict_proba(x)[:, 1]
    for form, run in ENGINES:
        model = lower(head, 12, form)
        np.testing.assert_allclose(run(model, x).probability, want, rtol=0, atol=1e-6, err_msg=f"{form} {run.__name__}")
        assert report(model)["notes"] == []


def test_steps_that_float32_cannot_tell_apart_are_noted() -> None:
    """Of a decision that is no sum of trees; by its path. A flat calibration is not."""
    x, y = make_classification(900, 12, n_informative=6, flip_y=0.2, class_sep=0.7, random_state=0)
    head = CalibratedClassifierCV(SVC(), method="isotonic", cv=2, ensemble=False).fit(x, y)
    (calibrator,) = head.calibrated_classifiers_[0].calibrators
    steep = float((np.diff(calibrator.y_thresholds_) / np.diff(calibrator.X_thresholds_)).max())
    assert steep > 100
    (note,) = report(lower(head, 12))["notes"]
    assert note.startswith("head: isotonic calibration")
    assert "method='sigmoid'" in note
    calibrator.X_thresholds_, calibrator.y_thresholds_ = np.array([-3.0, 3.0]), np.array([0.0, 1.0])
    assert report(lower(head, 12))["notes"] == []


def test_what_scikit_learn_itself_adds_in_float32_is_noted() -> None:
    """Naive Bayes that was fitted on float32 adds thousands of log densities in it, and is off by 1e-4 and more."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.3, 1, (200, 4096)), 0).astype(np.float32)
    y = (x[:, :40].sum(1) > 20).astype(int)
    single, double = (GaussianNB(var_smoothing=1e-2).fit(x.astype(kind), y) for kind in (np.float32, np.float64))
    (note,) = report(lower(single, 4096))["notes"]
    assert note.startswith("head: fitted on float32")
    model = lower(double, 4096)
    assert report(model)["notes"] == []
    np.testing.assert_allclose(
        on_onnxruntime(model, x).probability, double.predict_proba(x)[:, 1], rtol=0, atol=2 * PROMISE
    )
