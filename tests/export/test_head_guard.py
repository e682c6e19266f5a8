"""A number that is not finite, anywhere in a head, has no answer: NaN, and nothing that looks right.

scikit-learn refuses infinity between its steps; a folded scaler is computed nowhere, and what compares, clips or
saturates makes a number of NaN, on OpenVINO Relu and Clip too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
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
from xgboost import XGBClassifier

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.head import lower, report
from mpmmu_rt.spec import Array
from tests.export.running_heads import ENGINES, on_onnxruntime

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Stochastic Optimizer|lbfgs failed"),
    # scikit-learn's own, of rows that it then refuses or is NaN for; ours would be a failure.
    pytest.mark.filterwarnings(
        "ignore:overflow encountered|invalid value encountered|divide by zero:RuntimeWarning:(sklearn|numpy|scipy)"
    ),
]

FINAL = 2e-5
RNG = np.random.default_rng(0)
X = np.maximum(RNG.normal(0.3, 1, (120, 6)), 0).astype(np.float32)
Y = (X[:, 0] + X[:, 1] + RNG.normal(0, 0.5, 120) > 1.2).astype(int)
TAME = 8  # rows as those that it was fitted on


def huge() -> Array:
    """Rows as those of the fit, then some of which a few columns are of 1e10 up to what float32 holds."""
    rng = np.random.default_rng(1)
    x = X[:32].copy()
    for row in x[TAME:]:
        chosen = rng.choice(6, rng.integers(1, 7), replace=False)
        size = 10.0 ** rng.choice([10, 15, 18, 19, 20, 25, 30, 33, 35, 37, 38])
        row[chosen] = np.clip(rng.normal(0, 1, len(chosen)) * size, -3.3e38, 3.3e38)
    return x


def theirs(head: Any, x: Array) -> Array:
    """What scikit-learn says of each row, and NaN where it refuses one."""
    said = np.full(len(x), np.nan)
    for number, row in enumerate(x):
        try:
            said[number] = head.predict_proba(row[None])[0, 1]
        except ValueError as error:  # of its own steps: infinity, or a number too large
            if not re.search("contains (infinity|NaN)", str(error)):
                raise
    return said


def stacked(*learners: Any, final: Any, **options: Any) -> StackingClassifier:
    return StackingClassifier([(f"l{k}", one) for k, one in enumerate(learners)], final, cv=2, **options)


def tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=4, random_state=0)


HEADS: dict[str, Callable[[], Any]] = {
    "a tree behind a scaler": lambda: make_pipeline(MinMaxScaler((0, 1e20)), tree()),
    "a forest behind two": lambda: make_pipeline(
        MinMaxScaler((0, 1e15)), StandardScaler(), RandomForestClassifier(5, random_state=0)
    ),
    "a column that none reads": lambda: make_pipeline(MinMaxScaler((0, 1e20)), SelectKBest(k=2), LogisticRegression()),
    "a tree behind powers": lambda: make_pipeline(PowerTransformer(), tree()),
    "a tree behind a projection": lambda: make_pipeline(MinMaxScaler((0, 1e15)), PCA(3), tree()),
    "a tree behind a discriminant": lambda: make_pipeline(
        MinMaxScaler((0, 1e15)), LinearDiscriminantAnalysis(), tree()
    ),
    "a tree behind a norm": lambda: make_pipeline(Normalizer(), tree()),
    "a tree behind a union": lambda: make_pipeline(
        FeatureUnion([("a", MinMaxScaler((0, 1e20))), ("b", PCA(2))]), tree()
    ),
    "histograms behind a projection": lambda: make_pipeline(
        MinMaxScaler((0, 1e15)), PCA(3), HistGradientBoostingClassifier(max_iter=4)
    ),
    "xgboost behind a projection": lambda: make_pipeline(
        StandardScaler(), PCA(3), XGBClassifier(n_estimators=4, n_jobs=1)
    ),
    "bins behind a projection": lambda: make_pipeline(
        MinMaxScaler((0, 1e15)), PCA(2), KBinsDiscretizer(3, encode="onehot-dense"), LogisticRegression()
    ),
    "bins behind a scaler": lambda: make_pipeline(
        MinMaxScaler((0, 1e20)), KBinsDiscretizer(3, encode="onehot-dense"), LogisticRegression()
    ),
    "quantiles": lambda: make_pipeline(QuantileTransformer(n_quantiles=20), LogisticRegression()),
    "a network of Relu": lambda: make_pipeline(
        StandardScaler(), MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    ),
    "a network of tanh": lambda: MLPClassifier((4, 3), activation="tanh", solver="lbfgs", max_iter=50, random_state=0),
    "a polynomial": lambda: CalibratedClassifierCV(SVC(kernel="poly"), cv=2),
    "isotonic calibration": lambda: make_pipeline(
        StandardScaler(), CalibratedClassifierCV(SVC(), method="isotonic", cv=2)
    ),
    "libsvm's probability": lambda: SVC(probability=True, random_state=0),
    "a decision clipped": lambda: SGDClassifier(loss="modified_huber", random_state=0),
    "naive Bayes": GaussianNB,
    "labels of squares": lambda: stacked(
        QuadraticDiscriminantAnalysis(), LogisticRegression(), final=LogisticRegression(), stack_method="predict"
    ),
    "a vote of squares": lambda: VotingClassifier(
        [("a", QuadraticDiscriminantAnalysis()), ("b", tree())], voting="soft"
    ),
    "boosted labels": lambda: AdaBoostClassifier(LogisticRegression(), n_estimators=3, random_state=0),
    "a stack": lambda: make_pipeline(
        StandardScaler(),
        stacked(ExtraTreesClassifier(5, random_state=0), LogisticRegression(), final=tree(), passthrough=True),
    ),
}


@pytest.mark.filterwarnings("ignore:Feature . is constant|Bins whose width are too small:UserWarning")
@pytest.mark.parametrize("kind", HEADS)
def test_no_answer_where_scikit_learn_has_none_and_its_own_elsewhere(kind: str) -> None:
    head = HEADS[kind]().fit(X, Y)
    x = huge()
    want = theirs(head, x)
    assert np.isfinite(want[:TAME]).all()
    for form, run in ENGINES:
        got = run(lower(head, 6, form), x).probability
        assert np.isfinite(got[:TAME]).all()
        answered = np.isfinite(got)
        # scikit-learn's NaN equals nothing
        assert (np.abs(got - want)[answered] <= FINAL).all(), (form, run.__name__, got[answered], want[answered])


@pytest.mark.parametrize(
    "booster", [HistGradientBoostingClassifier(max_iter=3), LGBMClassifier(n_estimators=3, verbose=-1)]
)
def test_trees_that_would_take_infinity_have_no_answer_either(booster: Any) -> None:
    """In a bag or a stack that passes it on, scikit-learn refuses it."""
    x = np.repeat(X[:2], 2, axis=0)
    x[1::2, 3] = 1e25
    head = make_pipeline(MinMaxScaler((0, 1e20)), booster).fit(X, Y)
    for form, run in ENGINES:
        np.testing.assert_array_equal(np.isnan(run(lower(head, 6, form), x).probability), [False, True] * 2)


@pytest.mark.parametrize("before", [None, StandardScaler()])
@pytest.mark.parametrize(
    "learner", [tree(), RandomForestClassifier(5, random_state=0), HistGradientBoostingClassifier()]
)
def test_trees_that_were_fitted_with_missing_values_answer(learner: Any, before: Any) -> None:
    """By what they learned of those; an embedding has none."""
    fit = X.copy()
    fit[Y == 1, 0], fit[::5, 2] = np.nan, np.nan
    head = make_pipeline(before, learner).fit(fit, Y)
    for form, run in ENGINES:
        np.testing.assert_allclose(
            run(lower(head, 6, form), X).probability, head.predict_proba(X)[:, 1], rtol=0, atol=FINAL
        )


def test_what_is_finite_by_its_weights_is_not_asked() -> None:
    """Of this project's head, the embedding and what the learners say, and of each SVM its decision."""
    learners = (LogisticRegression(), tree(), CalibratedClassifierCV(SVC(), cv=2, ensemble=False))
    final = MLPClassifier((4,), solver="lbfgs", max_iter=50, random_state=0)
    asked = []
    for head in (stacked(*learners, final=final), tree()):
        model = lower(head.fit(X, Y), 6)
        made = {name: node for node in model.graph.node for name in node.output}
        (limit,) = (node for node in model.graph.node if node.op_type == "LessOrEqual")
        total = made[made[limit.input[0]].input[0]]
        asked.append(len(made[made[total.input[0]].input[0]].input))
    assert asked == [1 + 3 + 1, 1 + 1]


# ---------------------------------------------------------------- probabilities next to zero


def saturated(final: Any) -> tuple[Any, Array]:
    """A stack of learners that say 1e-3 to 1e-12 of what it is asked, and that."""
    rng = np.random.default_rng(2)
    head = stacked(LogisticRegression(), LogisticRegression(C=0.1), final=final).fit(X, Y)
    first, second = head.estimators_
    first.coef_, first.intercept_ = np.full((1, 6), 0.1) + np.arange(6) / 20, np.full(1, -0.3)
    second.coef_, second.intercept_ = np.full((1, 6), 0.4) - np.arange(6) / 20, np.full(1, 0.2)
    head.final_estimator_ = final.fit(head.transform(X * np.float32(-20)), Y)
    return head, (-rng.uniform(2, 20, (60, 6))).astype(np.float32)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_a_norm_of_small_probabilities_is_that_of_float64(norm: str) -> None:
    """scikit-learn leaves rows alone below ten units of its type, and has these in float64."""
    head, x = saturated(make_pipeline(Normalizer(norm), LogisticRegression()))
    said = head.transform(x)
    assert ((said < 1e-6).all(axis=1) & (said > 1e-13).all(axis=1)).sum() >= 10
    for form, run in ENGINES:
        np.testing.assert_allclose(
            run(lower(head, 6, form), x).probability, head.predict_proba(x)[:, 1], rtol=0, atol=FINAL
        )


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_quantiles_of_small_probabilities(distribution: str) -> None:
    quantiles = QuantileTransformer(n_quantiles=30, output_distribution=distribution)
    head, x = saturated(make_pipeline(quantiles, LogisticRegression()))
    for form, run in ENGINES:
        np.testing.assert_allclose(
            run(lower(head, 6, form), x).probability, head.predict_proba(x)[:, 1], rtol=0, atol=FINAL
        )


def test_quantiles_of_what_float32_cannot_tell_apart_are_noted() -> None:
    head, _ = saturated(make_pipeline(QuantileTransformer(n_quantiles=30), LogisticRegression()))
    assert report(lower(head, 6))["notes"] == []
    for learner in head.estimators_:
        learner.coef_ = -learner.coef_
    head.final_estimator_.fit(head.transform(X * np.float32(-20)), Y)
    (note,) = report(lower(head, 6))["notes"]
    assert note.startswith(
        "head.final_estimator_.quantiletransformer: the values that its quantiles are of lie so close"
    )


# ---------------------------------------------------------------- parameters that change what is said


@pytest.mark.parametrize("weights", [[2, -1], [0, 0], [1, -1], [1, np.nan], [1, np.inf]])
def test_weights_whose_mean_is_no_probability_are_refused(weights: list[float]) -> None:
    vote = VotingClassifier([("a", LogisticRegression()), ("b", tree())], voting="soft", weights=weights).fit(X, Y)
    with pytest.raises(UnsupportedEstimator, match="whose mean is no probability") as caught:
        lower(vote, 6)
    assert caught.value.hint == "fit it with other weights"


@pytest.mark.parametrize("size", [1e-45, 1e-300, 1e300])
def test_weights_of_any_size(size: float) -> None:
    weights = [size, 3 * size]
    vote = VotingClassifier([("a", LogisticRegression()), ("b", tree())], voting="soft", weights=weights).fit(X, Y)
    got = on_onnxruntime(lower(vote, 6), X).probability
    np.testing.assert_allclose(got, vote.predict_proba(X)[:, 1], rtol=0, atol=FINAL)


def test_columns_by_slices_of_names_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    columns = ColumnTransformer([("some", StandardScaler(), slice("b", "d"))])
    head = make_pipeline(columns, LogisticRegression()).fit(frame, Y)
    with pytest.raises(UnsupportedEstimator, match=r"with columns slice\('b', 'd', None\), expected positions"):
        lower(head, 6)


def test_a_transformer_of_no_columns_is_no_transformer() -> None:
    columns = ColumnTransformer([("none", SimpleImputer(), []), ("some", StandardScaler(), [1, 0])])
    head = make_pipeline(columns, LogisticRegression()).fit(X, Y)
    got = on_onnxruntime(lower(head, 6), X).probability
    np.testing.assert_allclose(got, head.predict_proba(X)[:, 1], rtol=0, atol=FINAL)


@pytest.mark.parametrize(("name", "value"), [("mean_", np.nan), ("scale_", np.nan), ("scale_", 0.0), ("scale_", -1.0)])
def test_a_scaler_without_numbers_or_that_turns_a_column_round_is_refused(name: str, value: float) -> None:
    """As one that was fitted on a column of missing values; a tree behind it would be folded the wrong way."""
    head = make_pipeline(StandardScaler(), tree()).fit(X, Y)
    getattr(head[0], name)[2] = value
    with pytest.raises(
        UnsupportedEstimator, match="standardscaler is a StandardScaler that shifts or scales"
    ) as caught:
        lower(head, 6)
    assert caught.value.hint == "fit it again, on columns that hold numbers"


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler()])
def test_a_scaler_that_was_fitted_on_a_column_of_missing_values_is_refused(scaler: Any) -> None:
    missing = X.copy()
    missing[:, 4] = np.nan
    head = make_pipeline(scaler, tree()).fit(X, Y)
    head[0].fit(missing)
    with pytest.raises(UnsupportedEstimator, match="that shifts or scales a column by what is no number"):
        lower(head, 6)
