"""Every family of classifier and transformer, alone, behind a scaler, as a learner whose labels a stack takes: by
scikit-learn, or the library itself, on both engines and in both forms.

Each with every scaler where MPMMU_RANDOM_HEADS is set, else with one in turn.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from lightgbm import LGBMClassifier, early_stopping
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import (
    RFE,
    RFECV,
    GenericUnivariateSelect,
    SelectFdr,
    SelectFpr,
    SelectFwe,
    SelectPercentile,
    SequentialFeatureSelector,
)
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier, XGBRFClassifier

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.head import lower, report
from mpmmu_rt.model.checkpoint import load_skops
from mpmmu_rt.spec import Array
from tests.export.running_heads import ENGINES, on_onnxruntime

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning"),  # of LightGBM
    pytest.mark.filterwarnings("ignore:Bins whose width are too small:UserWarning"),
    pytest.mark.filterwarnings("ignore:n_quantiles .* is greater than the total number:UserWarning"),
    pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Stochastic Optimizer:sklearn.exceptions.ConvergenceWarning"),
]

PROMISE, WIDTH = 1e-5, 9
TEMPERATURE = "temperature" in CalibratedClassifierCV._parameter_constraints["method"][0].options
BINS: dict[str, Any] = (
    {"quantile_method": "averaged_inverted_cdf"} if "quantile_method" in KBinsDiscretizer().get_params() else {}
)


def data() -> tuple[Array, Array]:
    """Embeddings as after a ReLU, with a dead channel and one of a few whole numbers; noisy labels."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.3, 1, (500, WIDTH)), 0)
    x[:, 3], x[:, 5] = 0, rng.integers(-2, 5, 500)
    signal = x[:, 0] + x[:, 1] - x[:, 2] + (x[:, 5] % 3 == 0)
    return x.astype(np.float32), (signal + rng.normal(0, 0.7, 500) > np.median(signal)).astype(int)


X, Y = data()
FIT, FIT_LABEL, NEW = X[:250], Y[:250], X[250:].copy()
NEW[::5, 5] += 0.5  # categories that were never seen
NEW[1::7] *= 3  # beyond the bounds of bins and quantiles


def forest(count: int = 9, **options: Any) -> RandomForestClassifier:
    return RandomForestClassifier(count, random_state=0, **options)


def two(**options: Any) -> VotingClassifier:
    return VotingClassifier(
        [("a", LogisticRegression()), ("b", GaussianNB()), ("c", DecisionTreeClassifier(max_depth=3))], **options
    )


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "grid search": lambda: GridSearchCV(make_pipeline(StandardScaler(), SVC(probability=True)), {"svc__C": [1]}, cv=2),
    "random search": lambda: RandomizedSearchCV(forest(), {"max_depth": [2, 4]}, n_iter=2, cv=2, random_state=0),
    "halving": lambda: HalvingGridSearchCV(forest(), {"max_depth": [2, 4]}, cv=2, random_state=0),
    "fixed threshold": lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.3),
    "fixed decision": lambda: FixedThresholdClassifier(
        LogisticRegression(), threshold=-0.4, response_method="decision_function"
    ),
    "tuned threshold": lambda: TunedThresholdClassifierCV(forest(), cv=2, thresholds=9, random_state=0),
    "tuned in a search": lambda: GridSearchCV(TunedThresholdClassifierCV(forest(3), cv=2, thresholds=9), {}, cv=2),
    "ada": lambda: AdaBoostClassifier(n_estimators=15, random_state=0),
    "ada of trees": lambda: AdaBoostClassifier(DecisionTreeClassifier(max_depth=3), n_estimators=15, random_state=0),
    "ada of others": lambda: AdaBoostClassifier(LogisticRegression(), n_estimators=4, random_state=0),
    "lda": lambda: LinearDiscriminantAnalysis(),
    "lda, lsqr": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.2, 0.8]),
    "lda, eigen": lambda: LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1),
    "qda": lambda: QuadraticDiscriminantAnalysis(reg_param=0.1, priors=[0.2, 0.8]),
    "naive bayes": lambda: GaussianNB(),
    "sgd": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "sgd, huber": lambda: SGDClassifier(loss="modified_huber", alpha=0.1, random_state=0),
    "eliminated": lambda: RFE(LogisticRegression(), n_features_to_select=3),
    "eliminated by folds": lambda: RFECV(forest(5), cv=2),
    "categories": lambda: HistGradientBoostingClassifier(max_iter=15, categorical_features=[5, 3]),
    "xgb": lambda: XGBClassifier(n_estimators=12, n_jobs=1),
    "xgb, dart": lambda: XGBClassifier(n_estimators=8, booster="dart", rate_drop=0.5, n_jobs=1),
    "xgb, linear": lambda: XGBClassifier(n_estimators=8, booster="gblinear", n_jobs=1),
    "xgb, pruned": lambda: XGBClassifier(n_estimators=6, gamma=3.0, tree_method="exact", base_score=0.2, n_jobs=1),
    "xgb, forest": lambda: XGBRFClassifier(n_estimators=9, n_jobs=1),
    "lgbm": lambda: LGBMClassifier(n_estimators=12, min_child_samples=3, verbose=-1, n_jobs=1),
    "lgbm, forest": lambda: LGBMClassifier(boosting_type="rf", subsample_freq=1, subsample=0.5, verbose=-1, n_jobs=1),
    "lgbm, slope": lambda: LGBMClassifier(boosting_type="dart", n_estimators=8, sigmoid=0.4, verbose=-1, n_jobs=1),
    "lgbm, a leaf": lambda: LGBMClassifier(n_estimators=3, min_child_samples=1000, verbose=-1, n_jobs=1),
}
HARD: dict[str, Callable[[], Any]] = {
    "hard votes": lambda: two(),
    "hard votes, whole weights": lambda: two(weights=[1, 2, 3]),
    "hard votes, other weights": lambda: two(weights=[0.1, 0.2, 0.3]),
    "perceptron": lambda: Perceptron(random_state=0),
    "ridge": lambda: RidgeClassifier(),
    "fixed threshold of an svm": lambda: FixedThresholdClassifier(LinearSVC(), threshold=-0.2),
}


def in_turn(kinds: Iterable[str], others: Sequence[Any]) -> list[tuple[str, Any]]:
    if "MPMMU_RANDOM_HEADS" in os.environ:
        return [(kind, other) for kind in kinds for other in others]
    return [(kind, others[number % len(others)]) for number, kind in enumerate(kinds)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scaled"), in_turn(CLASSIFIERS, [False, True]))
def test_a_classifier(kind: str, scaled: bool) -> None:
    """Its probability, alone and calibrated; trees in it take scikit-learn's own leaves."""
    before = [StandardScaler()] if scaled else []
    head = make_pipeline(*before, CLASSIFIERS[kind]()).fit(FIT, FIT_LABEL)
    calibrated = CalibratedClassifierCV(make_pipeline(*before, CLASSIFIERS[kind]()), cv=2).fit(FIT, FIT_LABEL)
    for one in (head, calibrated):
        want = one.predict_proba(NEW)[:, 1]
        for form, run in ENGINES:
            got, _ = run(lower(one, WIDTH, form), NEW)
            np.testing.assert_allclose(got, want, rtol=0, atol=PROMISE, err_msg=f"{form} {run.__name__}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CLASSIFIERS, *HARD])
def test_a_learner_of_a_stack(kind: str) -> None:
    """The very labels that it predicts, and what the stack takes from it else."""
    learner = {**CLASSIFIERS, **HARD}[kind]
    for method in ("predict", "auto") if "MPMMU_RANDOM_HEADS" in os.environ else ("predict",):
        stack = StackingClassifier([("one", learner())], LogisticRegression(), cv=2, stack_method=method)
        stack.fit(FIT, FIT_LABEL)
        for form, run in ENGINES:
            probability, base = run(lower(stack, WIDTH, form), NEW)
            want = stack.transform(NEW)[:, 0]
            atol = 0 if stack.stack_method_ == ["predict"] else PROMISE * max(1, np.abs(want).max())
            np.testing.assert_allclose(base[:, 0], want, rtol=0, atol=atol, err_msg=f"{method} {form} {run.__name__}")
            np.testing.assert_allclose(probability, stack.predict_proba(NEW)[:, 1], rtol=0, atol=2 * PROMISE)


TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "svd": lambda: TruncatedSVD(4, random_state=0),
    "incremental pca": lambda: IncrementalPCA(4),
    "whitened": lambda: IncrementalPCA(4, whiten=True),
    "lda": lambda: LinearDiscriminantAnalysis(),
    "lda, eigen": lambda: LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1),
    "eliminated": lambda: RFE(LogisticRegression(), n_features_to_select=4),
    "eliminated by folds": lambda: RFECV(LogisticRegression(), cv=2),
    "percentile": lambda: SelectPercentile(percentile=40),
    "false positives": lambda: SelectFpr(alpha=0.3),
    "false discoveries": lambda: SelectFdr(alpha=0.4),
    "family wise": lambda: SelectFwe(alpha=0.4),
    "univariate": lambda: GenericUnivariateSelect(mode="k_best", param=3),
    "sequential": lambda: SequentialFeatureSelector(LogisticRegression(), n_features_to_select=3, cv=2),
    "searched": lambda: GridSearchCV(make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()), {}, cv=2),
    "bins": lambda: KBinsDiscretizer(4, encode="ordinal", **BINS),
    "bins, a column each": lambda: KBinsDiscretizer(4, encode="onehot", strategy="uniform"),
    "bins, dense": lambda: KBinsDiscretizer([2, 3, 4, 5, 6, 2, 3, 4, 5], encode="onehot-dense", **BINS),
    "quantiles": lambda: QuantileTransformer(n_quantiles=60),
    "all quantiles": lambda: QuantileTransformer(),
    "two quantiles": lambda: QuantileTransformer(n_quantiles=2),
    "normal quantiles": lambda: QuantileTransformer(n_quantiles=60, output_distribution="normal"),
    "powers": lambda: PowerTransformer(),
    "powers as they are": lambda: PowerTransformer(standardize=False),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Features .* are constant:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Feature 3 is constant and will be replaced:UserWarning")
@pytest.mark.parametrize(("kind", "before"), in_turn(TRANSFORMERS, ["nothing", "standard", "minmax"]))
def test_a_transformer(kind: str, before: str) -> None:
    first: list[Any] = {"nothing": [], "standard": [StandardScaler()], "minmax": [MinMaxScaler((-1, 1))]}[before]
    for last in (LogisticRegression(), forest(20)):
        head = make_pipeline(*first, TRANSFORMERS[kind](), last).fit(FIT, FIT_LABEL)
        want = head.predict_proba(NEW)[:, 1]
        for form, run in ENGINES:
            got, _ = run(lower(head, WIDTH, form), NEW)
            np.testing.assert_allclose(got, want, rtol=0, atol=PROMISE, err_msg=f"{form} {run.__name__} {last}")


@pytest.mark.skipif(not TEMPERATURE, reason="temperature scaling came with scikit-learn 1.8")
@pytest.mark.parametrize(
    "learner",
    [
        LogisticRegression(),
        LinearSVC(),
        forest(30),
        forest(30, max_depth=4),
        DecisionTreeClassifier(max_depth=3),
        MLPClassifier((5,), max_iter=300, random_state=0),
        GaussianNB(),
        two(voting="soft"),
        BaggingClassifier(MLPClassifier((3,), random_state=0), 2, random_state=0),
    ],
)
def test_temperature_scaling(learner: Any) -> None:
    """Also where the temperature is so high that the smallest probabilities count."""
    ensemble = isinstance(learner, LogisticRegression | RandomForestClassifier)
    head = CalibratedClassifierCV(learner, method="temperature", cv=2, ensemble=ensemble)
    head.fit(FIT.astype(np.float64), FIT_LABEL)
    for beta in (None, 0.05, 3.0):
        for pair in head.calibrated_classifiers_ if beta else []:
            pair.calibrators[0].beta_ = beta
        want = head.predict_proba(NEW)[:, 1]
        for form, run in ENGINES:
            got, _ = run(lower(head, WIDTH, form), NEW)
            np.testing.assert_allclose(got, want, rtol=0, atol=2 * PROMISE, err_msg=f"{beta} {form} {run.__name__}")


@pytest.mark.skipif(not TEMPERATURE, reason="temperature scaling came with scikit-learn 1.8")
def test_a_high_temperature_of_what_float32_has_no_digits_of_is_refused() -> None:
    """1 - p of a learner that answers in float32 is a multiple of 6e-8, to the power of 0.05 a third."""
    for learner in (GaussianNB(), XGBClassifier(n_estimators=5, n_jobs=1), two(voting="soft")):
        head = CalibratedClassifierCV(learner, method="temperature", cv=2, ensemble=False).fit(FIT, FIT_LABEL)
        (calibrator,) = head.calibrated_classifiers_[0].calibrators
        calibrator.beta_ = 0.05
        with pytest.raises(UnsupportedEstimator, match=r"of an inverse temperature of 0\.05 on prob") as caught:
            lower(head, WIDTH)
        assert caught.value.hint == "method='sigmoid', or fit the learner on float64"
        calibrator.beta_ = 1.2
        want = head.predict_proba(NEW)[:, 1]
        np.testing.assert_allclose(on_onnxruntime(lower(head, WIDTH), NEW)[0], want, rtol=0, atol=2 * PROMISE)


def test_xgboost_and_lightgbm_stop_where_they_stopped() -> None:
    """Early: the best iteration answers, not the last one."""
    xgb = XGBClassifier(n_estimators=60, early_stopping_rounds=3, num_parallel_tree=2, learning_rate=0.9, n_jobs=1)
    xgb.fit(FIT, FIT_LABEL, eval_set=[(NEW, Y[250:])], verbose=False)
    assert xgb.best_iteration < 50
    lgbm = LGBMClassifier(n_estimators=60, learning_rate=0.9, verbose=-1, n_jobs=1)
    stop = early_stopping(3, verbose=False)
    lgbm.fit(FIT, FIT_LABEL, eval_X=(NEW,), eval_y=(Y[250:],), callbacks=[stop])
    assert lgbm.best_iteration_ < 50
    heads: list[Any] = [xgb, lgbm]
    for head in heads:
        want = head.predict_proba(NEW)[:, 1]
        for form, run in ENGINES:
            np.testing.assert_allclose(run(lower(head, WIDTH, form), NEW)[0], want, rtol=0, atol=PROMISE)


def around(thresholds: Array, column: Array) -> Array:
    """Rows of which one column is on a threshold, as float32, or next to it."""
    rows: list[Any] = []
    for one, value in zip(column, thresholds.astype(np.float32), strict=True):
        for side in (value, np.nextafter(value, np.float32(-np.inf)), np.nextafter(value, np.float32(np.inf))):
            row = np.array(NEW[len(rows) % len(NEW)])
            row[one] = side
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["xgb", "lgbm"])
def test_boosters_at_their_thresholds(kind: str, scaled: bool) -> None:
    """x < t of float32 in the one, x ≤ t of float64 in the other: a single tree, on both sides of every split."""
    options: Any = {"n_estimators": 1, "max_depth": 5, "n_jobs": 1}
    x = np.round(FIT * 8) / 8  # so that thresholds are values of the data
    if kind == "xgb":
        booster: Any = XGBClassifier(**options).fit(x, FIT_LABEL)
        frame = booster.get_booster().get_dump(dump_format="json")[0]
    else:
        booster = LGBMClassifier(min_child_samples=3, verbose=-1, **options).fit(x, FIT_LABEL)
        frame = str(booster.booster_.dump_model()["tree_info"]).replace("'", '"')
    found = splits(kind, frame)
    assert len(found) > 3
    rows = around(np.array([t for _, t in found]), np.array([f for f, _ in found]))
    head = booster
    if scaled:
        scaler = StandardScaler().fit(rows)
        head = make_pipeline(scaler, booster)
        rows = scaler.inverse_transform(rows).astype(np.float32)
    want = head.predict_proba(rows)[:, 1]
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, WIDTH, form), rows)[0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "learner", [HistGradientBoostingClassifier(max_iter=2, max_depth=1), AdaBoostClassifier(n_estimators=2)]
)
def test_xgboost_on_what_another_learner_said(learner: Any) -> None:
    """Its splits are values that the learner said, which differ from the graph's in their last bit: all cases of a
    learner that says few values went to the other side."""
    learner.fit(FIT, FIT_LABEL)
    final = XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1)
    head = StackingClassifier([("one", learner)], final, cv="prefit").fit(FIT, FIT_LABEL)
    want = head.predict_proba(FIT)[:, 1]
    assert np.ptp(want) > 0.1
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, WIDTH, form), FIT)[0], want, rtol=0, atol=PROMISE)


def splits(kind: str, dump: str) -> list[tuple[int, float]]:
    if kind == "lgbm":
        pairs = re.findall(r'"split_feature": (\d+).*?"threshold": ([-\d.e+]+)', dump)
        return [(int(feature), float(threshold)) for feature, threshold in pairs]
    found = []
    stack = [json.loads(dump)]
    while stack:
        node = stack.pop()
        if "split" in node:
            found.append((int(str(node["split"]).lstrip("f")), float(node["split_condition"])))
            stack.extend(node["children"])
    return found


@pytest.mark.filterwarnings("ignore:Feature 3 is constant and will be replaced:UserWarning")
@pytest.mark.parametrize("encode", ["ordinal", "onehot-dense"])
def test_bins_at_their_edges(encode: str) -> None:
    """Behind a scaler, which moves a value over an edge if its last bit differs; the forest says `exact`."""
    scaler = StandardScaler().fit(FIT)
    bins = KBinsDiscretizer(4, encode=encode, strategy="uniform").fit(scaler.transform(FIT))
    column = np.concatenate([np.full(len(edges) - 2, k) for k, edges in enumerate(bins.bin_edges_) if len(edges) > 2])
    edges = np.concatenate([edges[1:-1] for edges in bins.bin_edges_])
    raw = edges * scaler.scale_[column] + scaler.mean_[column]
    rows = around(raw, column)
    head = make_pipeline(scaler, bins, DecisionTreeClassifier(random_state=0)).fit(FIT, FIT_LABEL)
    want = head.predict_proba(rows)[:, 1]
    for form, run in ENGINES:
        model = lower(head, WIDTH, form)
        np.testing.assert_array_equal(run(model, rows)[0], want.astype(np.float32))
        assert [one["exact"] for one in report(model)["forests"]] == [True]


def test_quantiles_at_their_jumps() -> None:
    """A value that fills several quantiles is in their middle, alone."""
    rows: Any = np.repeat(NEW[:1], 6, axis=0)
    rows[:, 0] = [0, 1e-30, -1, FIT[:, 0].max(), 99, 1e-3]
    rows[:, 3] = [0, 1e-30, -1e-30, 0, 1, -1]
    rows[:, 5] = [1, 2, 3, np.nextafter(np.float32(2), np.float32(9)), -2, 4]
    for distribution in ("uniform", "normal"):
        transformer = QuantileTransformer(n_quantiles=100, output_distribution=distribution)
        head = make_pipeline(MinMaxScaler(), transformer, LogisticRegression(C=10)).fit(FIT, FIT_LABEL)
        want = head.predict_proba(rows)[:, 1]
        for form, run in ENGINES:
            np.testing.assert_allclose(run(lower(head, WIDTH, form), rows)[0], want, rtol=0, atol=PROMISE)


@pytest.mark.parametrize("centre", [0.0, 300.0])
def test_quantiles_in_float32(centre: float) -> None:
    """scikit-learn rounds p to float32 before it takes the normal quantile, so that 1 - p of large values has few
    digits: the same few, or what weighs what is rare moves."""
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (400, 2)) + centre).astype(np.float32)
    y = (x[:, 0] + rng.normal(0, 0.5, 400) > centre).astype(int)
    quantiles = QuantileTransformer(n_quantiles=100, output_distribution="normal").fit(x)
    tail = [np.linspace(ends[-2], ends[-1], 2000) for ends in quantiles.quantiles_.T]
    rows = np.stack(tail, axis=1).astype(np.float32)
    decided = LogisticRegression().fit(quantiles.transform(x), y)
    decided.coef_, decided.intercept_ = np.array([[1.0, -0.3]]), np.array([-2.5])
    head = make_pipeline(quantiles, decided)
    want = head.predict_proba(rows)[:, 1]
    assert np.abs(want - head.predict_proba(rows.astype(np.float64))[:, 1]).max() > 1e-4  # what rounding p has cost
    for form, run in ENGINES:
        np.testing.assert_allclose(run(lower(head, 2, form), rows)[0], want, rtol=0, atol=1e-6)


def test_scalers_that_work_in_place() -> None:
    """copy=False: the compiler asked the scaler about a number, which the scaler then changed."""
    for last in (LogisticRegression(), forest()):
        head = make_pipeline(StandardScaler(copy=False), last).fit(FIT.copy(), FIT_LABEL)
        want = head.predict_proba(NEW.copy())[:, 1]
        np.testing.assert_allclose(on_onnxruntime(lower(head, WIDTH), NEW)[0], want, rtol=0, atol=PROMISE)


@pytest.mark.parametrize("count", [2, 4])
def test_hard_votes_of_every_outcome(count: int) -> None:
    """All combinations of labels, with weights whose float64 sums tie or almost do."""
    x = np.array([[(row >> k) & 1 for k in range(count)] for row in range(2**count)], np.float32)
    y = np.arange(len(x)) % 2
    voters = [(f"v{k}", make_pipeline(PCA(1), DecisionTreeClassifier())) for k in range(count)]
    for weights in (None, [0.1, 0.2, 0.3, 0.6][:count], [1, 2, 3, 6][:count], [1, 1, 0, 2][:count]):
        vote = VotingClassifier(voters, weights=weights).fit(x, y)
        vote.estimators_ = [DecisionTreeClassifier().fit(x, x[:, k].astype(int)) for k in range(count)]
        stack = StackingClassifier([("vote", vote)], LogisticRegression(), cv="prefit", stack_method="predict")
        stack.fit(np.concatenate([x, x]), np.r_[y, y])
        want = stack.transform(x)[:, 0]
        for form, run in ENGINES:
            np.testing.assert_array_equal(run(lower(stack, count, form), x)[1][:, 0], want, err_msg=str(weights))


def test_an_ensemble_of_votes_that_tie_to_the_last_digits() -> None:
    """AdaBoost of stumps with weights ±1 ± 1e-9: float32 calls that a tie, float64 does not."""
    x = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    y = np.array([0, 0, 1, 1])
    for small in (1e-9, -1e-9, 1e-7):
        ada = AdaBoostClassifier(n_estimators=2, random_state=0).fit(np.tile(x, (4, 1)), np.tile([0, 1, 1, 1], 4))
        ada.estimators_ = [DecisionTreeClassifier().fit(x[:, :2] * side, y) for side in (1, -1)]
        ada.estimator_weights_ = np.array([1.0, 1 + small])
        stack = StackingClassifier([("a", ada)], LogisticRegression(), cv="prefit", stack_method="predict").fit(x, y)
        want = stack.transform(x)[:, 0]
        assert len(set(want)) == 2
        for form, run in ENGINES:
            np.testing.assert_array_equal(run(lower(stack, 2, form), x)[1][:, 0], want)


@pytest.mark.filterwarnings("ignore:Features .* are constant:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Feature 3 is constant and will be replaced:UserWarning")
@pytest.mark.parametrize(
    "kind", ["grid search", "tuned in a search", "ada", "qda", "naive bayes", "sgd", "percentile", "bins, dense"]
)
def test_a_checkpoint_can_hold_it_without_a_pickle(kind: str, tmp_path: Path) -> None:
    one = {**CLASSIFIERS, **TRANSFORMERS}[kind]()
    head = (one if kind in CLASSIFIERS else make_pipeline(one, LogisticRegression())).fit(FIT, FIT_LABEL)
    skops.io.dump(head, tmp_path / "head.skops")
    read = load_skops(tmp_path / "head.skops")
    np.testing.assert_array_equal(
        on_onnxruntime(lower(read, WIDTH), NEW)[0], on_onnxruntime(lower(head, WIDTH), NEW)[0]
    )


@pytest.mark.filterwarnings("ignore:Feature 3 is constant and will be replaced:UserWarning")
def test_not_a_number_gives_not_a_number() -> None:
    x = NEW[:6].copy()
    x[1, 0], x[2, 8], x[3, 5] = np.nan, np.inf, -np.inf
    for kind in ("ada", "qda", "naive bayes", "categories", "xgb", "lgbm", "sgd, huber"):
        head = CLASSIFIERS[kind]().fit(FIT, FIT_LABEL)
        for form, run in ENGINES:
            bad = np.isnan(run(lower(head, WIDTH, form), x)[0])
            np.testing.assert_array_equal(bad, [False, True, True, True, False, False], err_msg=kind)
    for kind in ("bins", "quantiles", "normal quantiles", "powers"):
        head = make_pipeline(TRANSFORMERS[kind](), ExtraTreesClassifier(3, random_state=0)).fit(FIT, FIT_LABEL)
        for form, run in ENGINES:
            bad = np.isnan(run(lower(head, WIDTH, form), x)[0])
            np.testing.assert_array_equal(bad, [False, True, True, True, False, False], err_msg=kind)


@pytest.mark.parametrize("named", [True, False])
def test_lightgbm_that_may_leave_trees_out_is_refused(named: bool) -> None:
    """Asked early whether the sum can still change, it answers with part of the trees."""
    given: Any = {"pred_early_stop": True, "pred_early_stop_margin": 0.5} if named else {}
    head = LGBMClassifier(n_estimators=60, learning_rate=0.9, verbose=-1, n_jobs=1, **given).fit(FIT, FIT_LABEL)
    if not named:
        assert lower(head, FIT.shape[1])
        return
    with pytest.raises(UnsupportedEstimator, match=r"LGBMClassifier with pred_early_stop, expected all trees") as told:
        lower(head, FIT.shape[1])
    assert told.value.hint == "fit it without pred_early_stop"
