"""The lowered head against scikit-learn and skl2onnx: real data, labels, refusals, notes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, Normalizer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.head import HeadEngine, lower, report
from mpmmu_rt.spec import Array

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES: tuple[HeadEngine, ...] = ("portable", "onnxruntime")
SMOOTH = 1e-5  # of a learner that is smooth in the embedding: float32 against float64 arithmetic
FINAL = 2e-5  # of the probability, in which the learners' differences add up
RNG = np.random.default_rng(0)
X = np.maximum(RNG.normal(0.3, 1, (120, 6)), 0).astype(np.float32)
Y = (X[:, 0] + X[:, 1] + RNG.normal(0, 0.5, 120) > 1.2).astype(int)


def run(model: onnx.ModelProto, x: Array) -> tuple[Array, Array]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    probability, base = session.run(["probability", "base_probability"], {"embedding": x})
    return probability, base


def platt(svc: SVC, **options: Any) -> CalibratedClassifierCV:
    return CalibratedClassifierCV(svc, cv=3, **options)


def the_head(trees: int = 300) -> Any:
    """The head of this project: four learners under an MLP, behind a scaler."""
    learners = [
        ("logistic_regression", LogisticRegression(max_iter=5000)),
        ("svm", platt(SVC(), ensemble=False)),
        ("random_forest", RandomForestClassifier(trees, random_state=0)),
        ("extra_trees", ExtraTreesClassifier(trees, random_state=0)),
    ]
    meta = MLPClassifier((8,), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)
    return make_pipeline(StandardScaler(), StackingClassifier(learners, meta, stack_method="predict_proba", cv=5))


# ---------------------------------------------------------------- real data, and another compiler


@pytest.fixture(scope="module")
def breast_cancer() -> tuple[Any, Array, Array]:
    """The fitted head, test inputs and labels."""
    x, y = load_breast_cancer(return_X_y=True)
    train, test, train_label, test_label = train_test_split(
        x.astype(np.float32), y, test_size=0.4, random_state=0, stratify=y
    )
    return the_head().fit(train, train_label), test, test_label


@pytest.mark.parametrize("engine", ENGINES)
def test_breast_cancer(breast_cancer: tuple[Any, Array, Array], engine: HeadEngine) -> None:
    head, x, y = breast_cancer
    probability, base = run(lower(head, 30, engine), x)
    want = head.predict_proba(x)[:, 1]
    learners = head[-1].transform(head[:-1].transform(x))
    worst = np.abs(base - learners).max(axis=0)
    print(f"{engine}: |Δp| of LR, SVM, RF, ET {worst}, final {np.abs(probability - want).max():.2e}")
    assert (worst <= SMOOTH).all()
    assert np.abs(probability - want).max() <= FINAL
    assert abs(roc_auc_score(y, probability) - roc_auc_score(y, want)) <= 1e-6
    assert ((probability > 0.5) == (head.predict(x) == 1)).all()
    assert roc_auc_score(y, want) > 0.97


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attribute `prob[AB]_` was deprecated:FutureWarning")
def test_skl2onnx_as_referee(breast_cancer: tuple[Any, Array, Array]) -> None:
    """Another compiler's graph of the same head agrees with ours, and is no nearer to scikit-learn."""
    skl2onnx = pytest.importorskip("skl2onnx")
    head, x, _ = breast_cancer
    options = {id(head): {"zipmap": False}}
    referee = skl2onnx.to_onnx(head, x[:1], options=options, target_opset={"": 18, "ai.onnx.ml": 3})
    session = onnxruntime.InferenceSession(referee.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(["probabilities"], {"X": x})[0][:, 1]
    want = head.predict_proba(x)[:, 1]
    for engine in ENGINES:
        ours, _ = run(lower(head, 30, engine), x)
        # theirs scales in float32, so that a case may take another leaf: 300 trees, hence 1 / 300 of a forest
        assert np.median(np.abs(ours - theirs)) <= 1e-6
        assert np.abs(ours - theirs).max() <= 2e-2
        assert np.abs(ours - want).max() <= max(1e-6, np.abs(theirs - want).max())


# ---------------------------------------------------------------- single learners that need care


LABELLED: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(),
    "svc": lambda: SVC(),
    "linear svc": lambda: LinearSVC(),
    # an even number of pure votes: ties happen, and are class 0
    "forest": lambda: RandomForestClassifier(10, random_state=0),
    "tree": lambda: DecisionTreeClassifier(max_depth=2),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=5),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=5),
    "mlp": lambda: MLPClassifier((3,), solver="lbfgs", max_iter=2000, random_state=0),
    "pipeline to forest": lambda: make_pipeline(StandardScaler(), RandomForestClassifier(6, random_state=0)),
    "pipeline to svc": lambda: make_pipeline(StandardScaler(), SVC()),
    "calibrated": lambda: platt(SVC()),
    "voting": lambda: VotingClassifier(
        [("a", LogisticRegression()), ("b", RandomForestClassifier(4, random_state=0))], voting="soft"
    ),
    "bagging of linear": lambda: BaggingClassifier(LogisticRegression(), 3, random_state=0),
    "bagging of trees": lambda: BaggingClassifier(DecisionTreeClassifier(), 4, random_state=0),
    "stack to mlp": lambda: StackingClassifier(
        [("a", LogisticRegression())], MLPClassifier((2,), solver="lbfgs", max_iter=2000, random_state=0), cv=2
    ),
    "stack to linear": lambda: StackingClassifier([("a", LogisticRegression())], LogisticRegression(), cv=2),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", LABELLED)
def test_a_stack_of_labels(kind: str, engine: HeadEngine) -> None:
    """stack_method="predict": the very labels of scikit-learn, but for decisions within rounding of the border."""
    stack = StackingClassifier(
        [("one", LABELLED[kind]())], LogisticRegression(), cv=2, stack_method="predict", passthrough=True
    ).fit(X, Y)
    probability, base = run(lower(stack, 6, engine), X)
    np.testing.assert_array_equal(base[:, 0], stack.estimators_[0].predict(X))
    np.testing.assert_allclose(probability, stack.predict_proba(X)[:, 1], rtol=0, atol=FINAL)


def test_votes_that_tie_are_class_zero() -> None:
    """Five of ten trees: exactly a half in scikit-learn, and 0.5 or a bit more as a float32 sum of tenths."""
    forest = RandomForestClassifier(10, max_depth=4, random_state=1).fit(X, Y)
    for number, tree in enumerate(forest.estimators_):
        tree.tree_.value[:, 0, 0], tree.tree_.value[:, 0, 1] = 1.0 * (number % 2), 1.0 - number % 2
    stack = StackingClassifier([("a", forest)], LogisticRegression(), cv="prefit", stack_method="predict").fit(X, Y)
    assert (forest.predict_proba(X) == 0.5).all()
    for engine in ENGINES:
        assert (run(lower(stack, 6, engine), X)[1] == 0).all()


@pytest.mark.parametrize("learner", [LogisticRegression(), SVC(), GradientBoostingClassifier(n_estimators=9)])
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibrated_bagging_is_calibrated_on_its_decision(learner: Any, method: str) -> None:
    """Bagging has a decision function where its learner has one, and scikit-learn calibrates that, also behind a
    Pipeline; probabilities in its place would be calibrated to nonsense."""
    bagging = BaggingClassifier(learner, 3, max_features=0.7, random_state=0)
    for one in (bagging, make_pipeline(StandardScaler(), bagging)):
        head = CalibratedClassifierCV(one, method=method, cv=2).fit(X, Y)
        probability, _ = run(lower(head, 6), X)
        np.testing.assert_allclose(probability, head.predict_proba(X)[:, 1], rtol=0, atol=FINAL)


@pytest.mark.parametrize(
    ("kernel", "scale"),
    [
        *(("linear", scale) for scale in (1e-30, 1e-15, 1.0, 1e15)),  # libsvm itself can't fit one at 1e30
        *((kernel, scale) for kernel in ("rbf", "poly", "sigmoid") for scale in (1e-30, 1e-15, 1.0, 1e15, 1e30)),
    ],
)
def test_svm_of_any_scale(kernel: str, scale: float) -> None:
    """γ = 1 / variance of an embedding of an extreme scale is no float32, nor is |x|²."""
    x = (X.astype(np.float64) * scale).astype(np.float32)
    svc = SVC(kernel=kernel, gamma="scale" if kernel != "linear" else 1.0, C=1.0 if kernel != "linear" else scale**-2)
    head = platt(svc).fit(x, Y)
    want = head.predict_proba(x)[:, 1]
    assert np.ptp(want) > 0.2
    np.testing.assert_allclose(run(lower(head, 6), x)[0], want, rtol=0, atol=SMOOTH)


def test_embeddings_far_from_zero() -> None:
    """Mean 1e4, deviation 1: the scaler's mean is subtracted to the last bit of float32."""
    x = (X + 1e4).astype(np.float32)
    for learner in (LogisticRegression(), platt(SVC()), MLPClassifier((4,), solver="lbfgs", alpha=0.1, max_iter=5000)):
        head = make_pipeline(StandardScaler(), learner).fit(x, Y)
        np.testing.assert_allclose(run(lower(head, 6), x)[0], head.predict_proba(x)[:, 1], rtol=0, atol=SMOOTH)
    head = platt(SVC()).fit(x, Y)  # the kernel is centred by itself
    np.testing.assert_allclose(run(lower(head, 6), x)[0], head.predict_proba(x)[:, 1], rtol=0, atol=SMOOTH)


def test_a_steep_slope_on_a_decision_that_hardly_varies() -> None:
    """The intercept dwarfs the rest: slope and intercept are multiplied out in float64, not in the graph."""
    svc = SVC(kernel="poly", gamma=1e-3).fit(X, Y)
    head = CalibratedClassifierCV(svc, cv=2, ensemble=False).fit(X, Y)
    assert abs(head.calibrated_classifiers_[0].calibrators[0].a_) > 1e4
    assert np.ptp(head.predict_proba(X)[:, 1]) > 0.2
    np.testing.assert_allclose(run(lower(head, 6), X)[0], head.predict_proba(X)[:, 1], rtol=0, atol=SMOOTH)


def test_isotonic_steps() -> None:
    """Every breakpoint, its neighbours, and beyond both ends, through a decision that is the embedding itself."""
    x = np.linspace(-3, 3, 200, dtype=np.float32)[:, None]
    y = (np.sin(5 * x[:, 0]) + x[:, 0] > 0).astype(int)
    head = CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2).fit(x, y)
    for pair in head.calibrated_classifiers_:
        pair.estimator.coef_, pair.estimator.intercept_ = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    limits = np.concatenate([pair.calibrators[0].X_thresholds_ for pair in head.calibrated_classifiers_])
    limits = limits.astype(np.float32)
    near = [np.nextafter(limits, np.float32(side)) for side in (-np.inf, np.inf)]
    points = np.concatenate([limits, *near, np.linspace(-9, 9, 99, dtype=np.float32)])[:, None]
    np.testing.assert_allclose(run(lower(head, 1), points)[0], head.predict_proba(points)[:, 1], rtol=0, atol=SMOOTH)


def test_an_isotonic_step_within_one_float_stays_below_its_top() -> None:
    """Two breakpoints 2e-12 apart that round to neighbouring floats: from one to the next, the slope would rise to
    thousands."""
    head = CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2, ensemble=False).fit(X[:, :1], Y)
    (pair,) = head.calibrated_classifiers_
    pair.estimator.coef_, pair.estimator.intercept_ = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    (calibrator,) = pair.calibrators
    limits, heights = np.array([-1, 1 + 2.0**-24 - 1e-12, 1 + 2.0**-24 + 1e-12]), np.array([0.1, 0.2, 0.7])
    calibrator.X_thresholds_, calibrator.y_thresholds_ = limits, heights
    calibrator.X_min_, calibrator.X_max_ = limits[0], limits[-1]
    calibrator._build_f(limits, heights)
    points = np.array([-2, 0, 1, 1 + 2.0**-23, 3], np.float32)[:, None]
    want = head.predict_proba(points)[:, 1]
    np.testing.assert_allclose(want[-3:], [0.2, 0.7, 0.7], rtol=0, atol=SMOOTH)
    np.testing.assert_allclose(run(lower(head, 1), points)[0], want, rtol=0, atol=SMOOTH)


def test_whitening_bounds_the_variance_in_its_own_type() -> None:
    """A projection of no variance, of float32 data: divided by float32's rounding unit, not float64's."""
    x = X.copy()
    x[:, 5] = x[:, 4]
    pca = PCA(whiten=True, svd_solver="full").fit(x)
    pca.explained_variance_[-1] = 0
    head = make_pipeline(pca, MLPClassifier((3,), solver="lbfgs", max_iter=500, random_state=0).fit(X * 0, Y))
    head[-1].coefs_[0][-1] = 1e-6
    np.testing.assert_allclose(run(lower(head, 6), x)[0], head.predict_proba(x)[:, 1], rtol=0, atol=SMOOTH)


def test_frozen_estimators() -> None:
    frozen = pytest.importorskip("sklearn.frozen", reason="FrozenEstimator came with scikit-learn 1.6").FrozenEstimator
    scaler = StandardScaler().fit(X)
    svc = make_pipeline(scaler, SVC()).fit(X, Y)
    forest = RandomForestClassifier(4, random_state=0).fit(X, Y)
    stack = StackingClassifier(
        [("svc", CalibratedClassifierCV(frozen(svc))), ("forest", frozen(forest))], LogisticRegression(), cv=2
    ).fit(X, Y)
    for head in (stack, frozen(stack)):
        probability, base = run(lower(head, 6), X)
        np.testing.assert_allclose(base, stack.transform(X), rtol=0, atol=SMOOTH)
        np.testing.assert_allclose(probability, stack.predict_proba(X)[:, 1], rtol=0, atol=FINAL)


def test_scalers_that_answer_in_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"f{k}" for k in range(6)])
    head = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).set_output(transform="pandas")
    head.fit(frame, Y)
    np.testing.assert_allclose(run(lower(head, 6), X)[0], head.predict_proba(frame)[:, 1], rtol=0, atol=1e-6)


def test_base_probability_has_the_learners_of_votes_and_stacks() -> None:
    two = [("a", LogisticRegression()), ("b", "drop"), ("c", SVC())]
    stack = StackingClassifier(two, LogisticRegression(), cv=2).fit(X, Y)
    assert run(lower(stack, 6), X)[1].shape == (120, 2)
    np.testing.assert_allclose(run(lower(stack, 6), X)[1], stack.transform(X), rtol=0, atol=SMOOTH)
    vote = VotingClassifier(
        [("a", LogisticRegression()), ("b", "drop"), ("c", RandomForestClassifier(3))], voting="soft", weights=[3, 9, 1]
    ).fit(X, Y)
    probability, base = run(lower(make_pipeline(StandardScaler().fit(X), vote), 6), X)
    assert base.shape == (120, 2)
    vote = vote.fit(StandardScaler().fit_transform(X), Y)
    probability, base = run(lower(make_pipeline(StandardScaler().fit(X), vote), 6), X)
    want = np.stack([one.predict_proba(StandardScaler().fit_transform(X))[:, 1] for one in vote.estimators_], 1)
    np.testing.assert_allclose(base, want, rtol=0, atol=SMOOTH)
    np.testing.assert_allclose(probability, want @ [0.75, 0.25], rtol=0, atol=SMOOTH)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_any_number_of_rows(engine: HeadEngine, rows: int) -> None:
    head = the_head(20).fit(X, Y)
    probability, base = run(lower(head, 6, engine), X[:rows])
    assert probability.shape == (rows,)
    assert base.shape == (rows, 4)
    np.testing.assert_allclose(probability, head.predict_proba(X[:rows])[:, 1], rtol=0, atol=FINAL)


def test_lowering_is_deterministic_and_leaves_the_estimator_alone() -> None:
    head = the_head(10).fit(X, Y)
    before = head.predict_proba(X)
    assert lower(head, 6).SerializeToString() == lower(copy.deepcopy(head), 6).SerializeToString()
    np.testing.assert_array_equal(head.predict_proba(X), before)


# ---------------------------------------------------------------- not a number


NAN_HEADS: dict[str, Callable[[], Any]] = {
    "tree": lambda: DecisionTreeClassifier(max_depth=2),
    "forest": lambda: make_pipeline(StandardScaler(), RandomForestClassifier(9, random_state=0)),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=3),
    "single leaf": lambda: DecisionTreeClassifier(min_samples_split=1000),
    "all": lambda: the_head(9),
    "clipped": lambda: make_pipeline(MinMaxScaler(clip=True), LogisticRegression()),
    "few columns": lambda: make_pipeline(SelectKBest(k=2), LogisticRegression()),
    "imputer": lambda: make_pipeline(SimpleImputer(), LogisticRegression()),
}


def poisoned() -> tuple[Array, Array]:
    """Rows of which some hold NaN or infinity, at either end of a row; and which those are."""
    x = np.repeat(X[:4], 5, axis=0)
    bad = np.zeros(len(x), bool)
    for row, (column, value) in enumerate([(0, np.nan), (5, np.inf), (2, -np.inf), (5, np.nan), (0, np.inf)]):
        x[3 * row + 1, column], bad[3 * row + 1] = value, True
    x[19, 0], x[19, 1], bad[19] = np.inf, -np.inf, True
    return x, bad


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", NAN_HEADS)
def test_an_embedding_that_is_not_finite_gives_nan(kind: str, engine: HeadEngine) -> None:
    head = NAN_HEADS[kind]().fit(X, Y)
    x, bad = poisoned()
    probability, _ = run(lower(head, 6, engine), x)
    np.testing.assert_array_equal(np.isnan(probability), bad)
    np.testing.assert_allclose(probability[~bad], head.predict_proba(x[~bad])[:, 1], rtol=0, atol=FINAL)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [QuadraticDiscriminantAnalysis(reg_param=0.1), GaussianNB()])
def test_a_learner_without_a_number_gives_nan(base: Any, engine: HeadEngine) -> None:
    """Squares of large features are more than float32 holds, and trees behind them would answer all the same."""
    stack = StackingClassifier([("a", base), ("b", LogisticRegression())], DecisionTreeClassifier(max_depth=3), cv=3)
    stack.fit(X, Y)
    x = np.repeat(X[:4], 2, axis=0)
    x[1::2] *= np.float32(1e25)
    probability, learners = run(lower(stack, 6, engine), x)
    silent: Array = np.isfinite(learners).min(1) == 0
    assert silent[1::2].sum() >= 3
    assert np.isnan(probability[silent]).all()
    assert not np.isnan(probability[::2]).any()
    np.testing.assert_allclose(probability[::2], stack.predict_proba(x[::2])[:, 1], rtol=0, atol=FINAL)


def test_the_largest_floats_are_finite() -> None:
    """A whole row of them: its sum is not, and the trees must still answer."""
    tree = DecisionTreeClassifier(max_depth=3).fit(X, Y)
    for sign in (1, -1):
        x = np.full((3, 6), sign * np.finfo(np.float32).max, np.float32)
        want = [tree.tree_.value[tree.tree_.apply(x)][:, 0, 1]]
        for engine in ENGINES:
            np.testing.assert_allclose(run(lower(tree, 6, engine), x)[0], want[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- notes


@pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning")
def test_platt_slopes_that_run_backwards_are_noted() -> None:
    calibrated = platt(SVC(), ensemble=False).fit(X, Y)
    assert report(lower(calibrated, 6))["notes"] == []
    svc = make_pipeline(StandardScaler(), SVC()).fit(X, Y)
    # The SVM says one thing, the calibration was fitted on another.
    (pair,) = calibrated.calibrated_classifiers_
    pair.estimator = svc
    pair.calibrators[0].fit(svc.decision_function(X), 1 - Y)
    stack = StackingClassifier([("flipped", calibrated)], LogisticRegression(), cv="prefit").fit(X, Y)
    model = lower(stack, 6)
    (note,) = report(model)["notes"]
    assert note.startswith("head.flipped")
    assert "backwards" in note
    np.testing.assert_allclose(run(model, X)[1], stack.transform(X), rtol=0, atol=SMOOTH)


@pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning")
def test_backward_slopes_of_libsvm_are_noted() -> None:
    """libsvm fits its slope by folds of its own; labels without any signal, in a small class, turn it round."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(24, 6)).astype(np.float32), (np.arange(24) % 2)
        svc = SVC(probability=True, random_state=0).fit(x, y)
        decision, want = svc.decision_function(x), svc.predict_proba(x)[:, 1]
        model = lower(svc, 6)
        rise = want[decision.argmax()] - want[decision.argmin()]
        if abs(rise) > 0.01:  # else it is as good as flat
            found.append((rise > 0, report(model)["notes"] == []))
        steps = np.abs(run(model, x)[0] - want)  # but for cases at a step of libsvm's: see below
        assert (steps > SMOOTH).sum() <= 1
    assert all(rising == silent for rising, silent in found)
    assert {rising for rising, _ in found} == {True, False}


@pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning")
def test_the_probability_of_libsvm_with_its_plateau_and_steps() -> None:
    """libsvm's iteration stops up to 0.005 from Platt's sigmoid: the same here, on thousands of decisions, but for
    the few within rounding of the points where it takes one round more."""
    svc = SVC(kernel="linear", probability=True, random_state=0).fit(X[:, :1], Y)
    x = np.linspace(-8, 9, 20001, dtype=np.float32)[:, None]
    want = svc.predict_proba(x)[:, 1]
    sigmoid = 1 / (1 + np.exp(svc._probA[0] * -svc.decision_function(x) + svc._probB[0]))
    assert (want == 0.5).sum() > 10
    assert np.abs(want - (1 - sigmoid)).max() > 4e-3
    assert want.min() < 1e-4
    assert want.max() > 1 - 1e-4
    for engine in ENGINES:
        difference = np.abs(run(lower(svc, 1, engine), x)[0] - want)
        assert (difference > SMOOTH).sum() <= 8  # two at each of four steps
        assert difference.max() <= 5.1e-3


# ---------------------------------------------------------------- refusals


class Bolder(LogisticRegression):  # type: ignore[misc]
    """A subclass may compute anything."""

    def predict_proba(self, x: Array) -> Array:
        return np.asarray(super().predict_proba(x) ** 2)


class StackingImpostor(BaseEstimator):  # type: ignore[misc]
    classes_ = np.array([0, 1])


StackingImpostor.__name__ = StackingImpostor.__qualname__ = "StackingClassifier"


def stacked(learner: Any) -> Any:
    return StackingClassifier([("ok", LogisticRegression()), ("odd", learner)], LogisticRegression(), cv=2).fit(X, Y)


def behind(*steps: Any) -> Any:
    return make_pipeline(*steps, LogisticRegression()).fit(X, Y)


def with_missing() -> Array:
    x = X.copy()
    x[0, 0] = np.nan
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "hard voting": (
        lambda: VotingClassifier([("a", LogisticRegression())]).fit(X, Y),
        r"head is a VotingClassifier with hard voting",
    ),
    "subclass": (lambda: Bolder().fit(X, Y), r"head is a .*Bolder, expected a supported classifier"),
    "subclass in a stack": (lambda: stacked(Bolder()), r"head\.odd is a .*Bolder, expected"),
    "impostor": (StackingImpostor, r"head is a .*StackingClassifier, expected a supported"),
    "svc without probability": (lambda: SVC().fit(X, Y), r"head is a SVC without probabilities"),
    "svc in a bagging": (
        lambda: BaggingClassifier(SVC(), 2).fit(X, Y),
        r"head\.estimators_\[0\] is a SVC without probabilities",
    ),
    "linear svc": (lambda: LinearSVC().fit(X, Y), r"head is a sklearn\.svm\._classes\.LinearSVC, expected"),
    "callable kernel": (
        lambda: stacked(SVC(kernel=lambda a, b: a @ b.T)),
        r"head\.odd is a SVC with the kernel",
    ),
    "three classes": (lambda: LogisticRegression().fit(X, np.arange(120) % 3), r"of the classes \[0, 1, 2\]"),
    "names as classes": (lambda: LogisticRegression().fit(X, np.where(Y, "m", "b")), r"of the classes \['b', 'm'\]"),
    "one class": (lambda: DummyClassifier().fit(X, Y * 0), r"DummyClassifier, expected"),
    "one class, tree": (lambda: DecisionTreeClassifier().fit(X, Y * 0), r"of the classes \[0\]"),
    "two outputs": (lambda: DecisionTreeClassifier().fit(X, np.stack([Y, Y], 1)), r"of 2 outputs"),
    "not fitted": (LogisticRegression, r"head is a LogisticRegression that is not fitted"),
    "pipeline not fitted": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), r"is not fitted"),
    "step not fitted": (
        lambda: Pipeline([("scale", StandardScaler()), ("last", LogisticRegression().fit(X, Y))]),
        r"head\.scale is a StandardScaler that is not fitted",
    ),
    "stack not fitted": (lambda: StackingClassifier([("a", LogisticRegression())]), r"is not fitted"),
    "indicator": (
        lambda: make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(with_missing(), Y),
        r"head\.simpleimputer is a SimpleImputer with add_indicator",
    ),
    "zeros are missing": (lambda: behind(SimpleImputer(missing_values=0)), r"SimpleImputer of missing_values=0"),
    "function": (lambda: behind(FunctionTransformer(np.abs)), r"head\.functiontransformer is a .* with a function"),
    "unknown transformer": (lambda: behind(PolynomialFeatures()), r"head\.polynomialfeatures is a sklearn.*expected"),
    "multinomial bayes": (
        lambda: stacked(MultinomialNB()),
        r"head\.odd is a sklearn\.naive_bayes\.MultinomialNB, expected",
    ),
    "multinomial bayes, last": (
        lambda: StackingClassifier([("a", LogisticRegression())], MultinomialNB(), cv=2).fit(X, Y),
        r"head\.final_estimator_ is a sklearn\.naive_bayes\.MultinomialNB",
    ),
    "deep": (
        lambda: stacked(make_pipeline(StandardScaler(), PolynomialFeatures(), LogisticRegression())),
        r"head\.odd\.polynomialfeatures is a",
    ),
    "union weights": (
        lambda: behind(FeatureUnion([("a", StandardScaler())], transformer_weights={"a": 2.0})),
        r"head\.featureunion is a FeatureUnion with transformer_weights",
    ),
    "column weights": (
        lambda: behind(ColumnTransformer([("a", StandardScaler(), [0])], transformer_weights={"a": 2.0})),
        r"head\.columntransformer is a ColumnTransformer with transformer_weights",
    ),
    "boosting on another": (
        lambda: GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()).fit(X, Y),
        r"GradientBoostingClassifier with init=LogisticRegression",
    ),
    "boosting on dice": (
        lambda: GradientBoostingClassifier(n_estimators=2, init=DummyClassifier(strategy="stratified")).fit(X, Y),
        r"GradientBoostingClassifier with a random init",
    ),
    "other width": (lambda: LogisticRegression().fit(X[:, :5], Y), r"fitted on 5 features"),
    "width of a step": (
        lambda: Pipeline([("all", "passthrough"), ("last", LogisticRegression().fit(X[:, :4], Y))]),
        r"head.* fitted on 4 features",
    ),
    "calibrated bayes": (
        lambda: CalibratedClassifierCV(MultinomialNB(), cv=2).fit(X, Y),
        r"head\.calibrated_classifiers_\[0\] is a sklearn.naive_bayes.MultinomialNB",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_the_place_the_class_and_what_is_supported(kind: str, engine: HeadEngine) -> None:
    make, message = REFUSED[kind]
    estimator = make()
    with pytest.raises(UnsupportedEstimator, match=message) as caught:
        lower(estimator, 6, engine)
    assert re.search(r"supported: .*RandomForest|fit (it|the head) on|voting='soft'", caught.value.hint)


def test_what_changes_nothing_is_not_refused() -> None:
    """Identity functions, imputers of data that lacks nothing, a Normalizer: translated."""
    missing = with_missing()
    heads = [
        behind(FunctionTransformer(), "passthrough"),
        make_pipeline(SimpleImputer(strategy="median"), LogisticRegression()).fit(missing, Y),
        behind(Normalizer("l1")),
        behind(Normalizer("max")),
    ]
    for head in heads:
        np.testing.assert_allclose(run(lower(head, 6), X)[0], head.predict_proba(X)[:, 1], rtol=0, atol=SMOOTH)
