"""Random heads: whatever hypothesis composes of the covered estimators, against scikit-learn.

What is asserted of every head, in both forms:
- a learner that is smooth in the embedding: |Δp| ≤ 1e-5; the final probability: ≤ 2e-5; labels equal outside that
  band;
- trees on columns of the embedding (behind scalers and selectors): the report says `exact`, and |Δp| ≤ 1e-5 then
  means the same leaves (a wrong leaf moves a probability by far more; `test_head_exactness` compares them one by one).

A final estimator may amplify: one that found next to nothing to tell its learners apart multiplies their seventh digit
by thousands. Then its probability is that of scikit-learn's final estimator on our learners' values, within 2e-5.
So may a steep Platt slope; there scikit-learn itself answers float32 and float64 embeddings differently, and we are
within four times that. Both are counted, and are next to none.

A polynomial SVM adds up powers of both signs. Where γ x·v is large (γ = 1 / variance far from a mean of zero) they
cancel, and float32 keeps nothing of the sum, so that γ is small here, and the bound 1e-4.

Some heads have steps on numbers that were computed before: trees behind PCA or a Normalizer or on probabilities, the
steep segments of isotonic calibration, predicted labels, libsvm's iteration. Float32 arithmetic can land on the other
side of such a step than float64, so that no bound holds for every case: cases of those heads (`stepped`) that differ
by more than 1e-4 are counted, and are less than a half percent of all (asserted at the end; measured: 0.1 %).

Embeddings are non-negative with dead channels, as after a ReLU, or far from zero (mean 1e4, deviation 1), or of a tiny
or huge scale. The last three always meet a Standard or Robust scaler first: without one, float32 products of such
numbers have no five digits, in scikit-learn's own float32 neither. The same is true of a MinMaxScaler far from zero.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpmmu_rt.export.head import HeadEngine, lower, report
from mpmmu_rt.spec import Array

# Parameters that scikit-learn 1.8 brought and asks for.
NEWER: dict[str, Any] = (
    {"use_legacy_attributes": st.just(False), "l1_ratios": st.just((0.0,)), "scoring": st.just("neg_log_loss")}
    if hasattr(LogisticRegressionCV(), "use_legacy_attributes")
    else {}
)
ENGINES: tuple[HeadEngine, ...] = ("portable", "onnxruntime")
SMOOTH, FINAL, STEEP = 1e-5, 2e-5, 1e-4
AMPLIFIED = 1e-3  # at most, of what scikit-learn's own float32 is off; a tree's leaf is more
EXAMPLES, DISTINCT = 350, 200  # hypothesis varies what it drew before, so that not all heads are new
SHARE_OF_ALL = 0.005


@dataclass
class Part:
    """An estimator to be fitted, and whether it has steps on computed numbers."""

    estimator: Any
    stepped: bool = False
    family: str = ""


@dataclass
class Tally:
    """Over all heads: what was covered, how far it was off, and how many cases crossed a step."""

    families: Counter[str]
    worst: dict[bool, float]  # by `stepped`
    heads: set[str] = field(default_factory=set)
    cases: int = 0
    crossed: int = 0
    amplified: int = 0
    tied: int = 0


TALLY = Tally(Counter(), {})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


# ---------------------------------------------------------------- strategies

seeds = st.integers(0, 9999)
weights = st.sampled_from([None, "balanced"])


def scalers() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(StandardScaler, with_mean=st.booleans(), with_std=st.booleans()),
        st.builds(MinMaxScaler, feature_range=st.sampled_from([(0, 1), (-1, 1), (-0.2, 3)]), clip=st.booleans()),
        st.builds(RobustScaler, with_centering=st.booleans(), unit_variance=st.booleans()),
        st.builds(MaxAbsScaler),
    )


def selectors(width: int) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(SelectKBest, k=st.integers(1, width)),
        st.just(VarianceThreshold()),
        st.builds(
            lambda seed: SelectFromModel(ExtraTreesClassifier(4, random_state=seed), threshold="median"), seed=seeds
        ),
        st.builds(SimpleImputer, strategy=st.sampled_from(["mean", "median", "constant"])),
    )


@st.composite
def monotone(draw: st.DrawFn, width: int) -> Part:
    """A transformer that keeps columns apart."""
    kind = draw(st.sampled_from(["scaler", "selector", "chain", "union", "columns"]))
    if kind == "scaler":
        return Part(draw(scalers()), family="scaler")
    if kind == "selector":
        return Part(draw(selectors(width)), family="selector")
    if kind == "chain":
        return Part(make_pipeline(draw(scalers()), draw(selectors(width)), draw(scalers())), family="chain")
    if kind == "union":
        return Part(FeatureUnion([("a", draw(scalers())), ("b", draw(selectors(width)))]), family="union")
    columns = draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=6))
    rest = draw(st.sampled_from(["drop", "passthrough"]))
    parts = [("a", draw(scalers()), columns), ("b", draw(scalers()), slice(0, max(1, width // 2)))]
    return Part(ColumnTransformer(parts, remainder=rest), family="columns")


def widening() -> st.SearchStrategy[Part]:
    """A transformer that keeps all columns."""
    return st.one_of(
        scalers().map(lambda one: Part(one, family="scaler")),
        st.builds(lambda a, b: Part(FeatureUnion([("a", a), ("b", b)]), family="union"), scalers(), scalers()),
        st.sampled_from(["l1", "l2", "max"]).map(lambda norm: Part(Normalizer(norm), True, "normalizer")),
    )


@st.composite
def transformer(draw: st.DrawFn, width: int) -> Part:
    if draw(st.integers(0, 3)):
        return draw(monotone(width))
    if draw(st.booleans()):
        return Part(Normalizer(draw(st.sampled_from(["l1", "l2", "max"]))), True, "normalizer")
    size = draw(st.integers(1, min(width, 8)))
    # Whitened directions of next to no variance are rounding, in scikit-learn too: keep the first ones.
    pca = PCA(size, whiten=draw(st.booleans()) and size <= width // 2, svd_solver="full")
    return Part(make_pipeline(StandardScaler(), pca), True, "pca")


def linear() -> st.SearchStrategy[Part]:
    strength = st.sampled_from([1e-3, 0.1, 1.0, 10.0])
    return st.one_of(
        st.builds(
            LogisticRegression, C=strength, class_weight=weights, fit_intercept=st.booleans(), max_iter=st.just(2000)
        ),
        st.builds(LogisticRegressionCV, Cs=st.just(3), cv=st.just(2), max_iter=st.just(2000), **NEWER),
    ).map(lambda one: Part(one, family=type(one).__name__))


def calibrations() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"method": st.sampled_from(["sigmoid", "isotonic"]), "ensemble": st.booleans(), "cv": st.just(2)}
    )


@st.composite
def svm(draw: st.DrawFn, kernels: Sequence[str] = ("linear", "rbf", "rbf", "poly", "sigmoid")) -> Part:
    kernel = draw(st.sampled_from(kernels))
    svc = SVC(
        kernel=kernel,
        C=draw(st.sampled_from([0.1, 1.0, 5.0])),
        degree=draw(st.integers(1, 3)),
        coef0=draw(st.sampled_from([0.0, 0.5])),
        gamma=draw(st.sampled_from([0.01, 0.05] if kernel == "poly" else ["scale", "auto"])),
        class_weight=draw(weights),
        random_state=0,
        max_iter=20000,
    )
    if not draw(st.integers(0, 3)):
        return Part(svc.set_params(probability=True), True, "svc with probability")
    if not draw(st.integers(0, 3)):
        svc = LinearSVC(C=draw(st.sampled_from([0.01, 1.0])), random_state=0)
    options = draw(calibrations())
    family = f"{svc.kernel if isinstance(svc, SVC) else 'LinearSVC'}, {options['method']}"
    return Part(CalibratedClassifierCV(svc, **options), options["method"] == "isotonic", family)


@st.composite
def trees(draw: st.DrawFn) -> Part:
    depth = draw(st.sampled_from([None, 1, 2, 5]))
    seed, weight = draw(seeds), draw(weights)
    kind = draw(st.sampled_from([RandomForestClassifier, ExtraTreesClassifier, "tree", "gb", "hgb"]))
    if kind == "tree":
        tree = draw(st.sampled_from([DecisionTreeClassifier, ExtraTreeClassifier]))
        one = tree(max_depth=depth, class_weight=weight, random_state=seed)
        if draw(st.integers(0, 3)) == 0:  # a single leaf; balanced, it would be a tie, and its label a matter of 1e-16
            one.set_params(min_samples_split=1000, class_weight=None)
        return Part(one, family=type(one).__name__)
    if kind == "gb":
        gb = GradientBoostingClassifier(
            loss=draw(st.sampled_from(["log_loss", "exponential"])),
            n_estimators=draw(st.integers(1, 15)),
            learning_rate=draw(st.sampled_from([0.05, 0.3])),
            max_depth=depth,
            subsample=draw(st.sampled_from([0.6, 1.0])),
            init=draw(st.sampled_from([None, "zero"])),
            random_state=seed,
        )
        return Part(gb, family=f"boosting, {gb.loss}")
    if kind == "hgb":
        hgb = HistGradientBoostingClassifier(
            max_iter=draw(st.integers(1, 12)),
            max_depth=depth,
            min_samples_leaf=3,
            random_state=seed,
            class_weight=weight,
        )
        return Part(hgb, family=type(hgb).__name__)
    count = draw(st.sampled_from([1, 2, 7, 30]))
    forest = kind(
        count,
        max_depth=depth,
        class_weight=weight,
        random_state=seed,
        criterion=draw(st.sampled_from(["gini", "entropy"])),
        ccp_alpha=draw(st.sampled_from([0.0, 0.0, 0.01])),
    )
    return Part(forest, family=type(forest).__name__)


@st.composite
def mlp(draw: st.DrawFn) -> Part:
    activation = draw(st.sampled_from(["identity", "logistic", "tanh", "relu"]))
    layers = draw(st.sampled_from([(3,), (8,), (5, 3), (4, 4, 4)]))
    one = MLPClassifier(
        layers, activation=activation, solver="lbfgs", alpha=0.1, max_iter=150, random_state=draw(seeds)
    )
    return Part(one, family=f"MLP, {activation}")


@st.composite
def learner(draw: st.DrawFn, width: int, depth: int = 1) -> Part:
    """A classifier with probabilities; at most `depth` compositions around it."""
    simple: list[Callable[[], st.SearchStrategy[Part]]] = [linear, svm, trees, trees, mlp]
    kind = draw(st.sampled_from([*range(5), *(["pipeline", "bagging", "voting", "calibrated"] if depth else [])]))
    if isinstance(kind, int):
        return draw(simple[kind]())
    if kind == "pipeline":
        before, last = draw(transformer(width)), draw(learner(width, 0))
        TALLY.families[before.family] += 1
        stepped = last.stepped or (before.stepped and _has_trees(last.estimator))
        return Part(make_pipeline(before.estimator, last.estimator), stepped, last.family)
    inner = draw(learner(width, 0))
    if kind == "bagging":
        bag = BaggingClassifier(
            inner.estimator,
            draw(st.integers(1, 4)),
            max_features=draw(st.sampled_from([0.5, 1.0])),
            bootstrap_features=draw(st.booleans()),
            bootstrap=False,
            random_state=draw(seeds),
        )
        return Part(bag, inner.stepped, f"bagging of {inner.family}")
    if kind == "calibrated":
        # Calibration reads a tree's steps from exact leaves, and an isotonic one may be steep there.
        options = draw(calibrations())
        stepped = inner.stepped or options["method"] == "isotonic"
        return Part(CalibratedClassifierCV(inner.estimator, **options), stepped, f"calibrated {inner.family}")
    other = draw(learner(width, 0))
    vote = VotingClassifier(
        [("a", inner.estimator), ("b", other.estimator)],
        voting="soft",
        weights=draw(st.sampled_from([None, [1, 3], [0.2, 0.1]])),
    )
    return Part(vote, inner.stepped or other.stepped, "voting")


def _has_trees(estimator: Any) -> bool:
    return "Tree" in str(estimator) or "Forest" in str(estimator) or "Boosting" in str(estimator)


@st.composite
def stack(draw: st.DrawFn, width: int) -> Part:
    parts = draw(st.lists(learner(width), min_size=1, max_size=4))
    final = draw(st.one_of(linear(), mlp(), trees(), svm(("linear", "rbf"))))
    method = draw(st.sampled_from(["auto", "auto", "predict_proba", "predict"]))
    prefit = draw(st.booleans())
    one = StackingClassifier(
        [(f"l{k}", part.estimator) for k, part in enumerate(parts)],
        final.estimator,
        cv="prefit" if prefit else 2,
        stack_method=method,
        passthrough=draw(st.booleans()),
    )
    stepped = any(part.stepped for part in parts) or final.stepped or method == "predict" or _has_trees(final.estimator)
    for part in (*parts, final):
        TALLY.families[part.family] += 1
    return Part(one, stepped, "stacking")


@dataclass(repr=False)
class Case:
    head: Any
    x: Array
    y: Array
    stepped: bool
    family: str

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis shows of a failure: not the numbers."""
        printer.text(f"Case({self.head}, x {self.x.shape} up to {self.x.max():.3g}, stepped={self.stepped})")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width = draw(st.sampled_from([1, 2, 3, 5, 8, 8, 13, 13, 24, 40]))
    if draw(st.integers(0, 39)) == 0:
        width = draw(st.sampled_from([1024, 4096]))
    rows = draw(st.integers(60, 120))
    rng = np.random.default_rng(draw(seeds))
    x = np.maximum(rng.normal(0.3, 1, (2 * rows, width)), 0)
    if width > 4:
        x[:, rng.random(width) < 0.15] = 0
    signal = x[:, : max(1, width // 3)].sum(1)
    y = (signal + rng.normal(0, 0.7 * signal.std() + 1e-3, 2 * rows) > np.median(signal)).astype(int)
    y[:12], x[:12] = np.arange(12) % 2, rng.random((12, width)) * (x.std(axis=0) > 0)
    scale, offset = draw(st.sampled_from([(1.0, 0.0), (1.0, 0.0), (1.0, 1e4), (1e-12, 0.0), (1e12, 0.0)]))
    one = draw(st.one_of(stack(width), stack(width), learner(width)))
    TALLY.families[one.family] += 1
    head = one.estimator
    if scale != 1 or offset:
        head = make_pipeline(draw(st.sampled_from([StandardScaler(), RobustScaler()])), head)
    elif draw(st.booleans()):
        before = draw(widening())  # what follows may choose from all `width` columns
        TALLY.families[before.family] += 1
        one.stepped = one.stepped or (before.stepped and _has_trees(head))
        head = make_pipeline(before.estimator, head)
    return Case(head, (x * scale + offset).astype(np.float32), y, one.stepped, one.family)


# ---------------------------------------------------------------- the comparison


def fit(head: Any, x: Array, y: Array) -> Any:
    """Fit, prefit learners too."""
    steps = head.steps if type(head).__name__ == "Pipeline" else [("", head)]
    values = x
    for _, step in steps[:-1]:
        values = step.fit(values, y).transform(values)
    last = steps[-1][1]
    if isinstance(last, StackingClassifier) and last.cv == "prefit":
        for _, one in last.estimators:
            one.fit(values, y)
    last.fit(values, y)
    return head


def run(model: onnx.ModelProto, x: Array) -> tuple[Array, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    probability, base = session.run(["probability", "base_probability"], {"embedding": x})
    return probability, base


def parts(head: Any, x: Array) -> tuple[Any, Array]:
    """What is behind the transformers of a head, and what scikit-learn hands to it."""
    if type(head).__name__ != "Pipeline":
        return head, x
    for _, step in head.steps[:-1]:
        x = step.transform(x)
    return parts(head.steps[-1][1], x)


def learners(last: Any, x: Array) -> Array | None:
    """What the learners of a stack or a vote say, by scikit-learn; None for others."""
    if isinstance(last, VotingClassifier):
        return np.stack([one.predict_proba(x)[:, 1] for one in last.estimators_], axis=1)
    if not isinstance(last, StackingClassifier):
        return None
    return np.asarray(last.transform(x))[:, : len(last.estimators_)]


def finally_(last: Any, base: Array, x: Array) -> Array | None:
    """What scikit-learn's final estimator makes of our learners' values; None for other heads."""
    if not isinstance(last, StackingClassifier):
        return None
    meta = np.concatenate([base, x], axis=1) if last.passthrough else base
    return np.asarray(last.final_estimator_.predict_proba(meta))[:, 1]


def tied(last: Any, x: Array) -> Array:
    """Cases in which a learner that gives its label is at one half: which label that is, is a matter of 1e-16.
    Balanced weights make such leaves."""
    found = np.zeros(len(x), bool)
    for one, method in zip(last.estimators_, last.stack_method_, strict=True):
        if method == "predict" and hasattr(one, "predict_proba"):
            found |= np.abs(one.predict_proba(x)[:, 1] - 0.5) < 1e-6
    return found


def check(case: Case, head: Any, engine: HeadEngine) -> None:
    model = lower(head, case.x.shape[1], engine)
    probability, base = run(model, case.x)
    want = head.predict_proba(case.x)[:, 1]
    assert probability.shape == want.shape
    assert np.isfinite(probability).all()
    last, x = parts(head, case.x)
    theirs, repeated = learners(last, x), finally_(last, base, x)
    apart = np.abs(probability - want)
    steep = case.stepped or "poly" in str(case.head)
    crossed = apart > (STEEP if steep else FINAL)
    own = np.abs(head.predict_proba(case.x.astype(np.float64))[:, 1] - want).max()
    amplified = apart <= min(AMPLIFIED, 4 * own)
    if repeated is not None:
        amplified |= np.abs(probability - repeated) <= FINAL
    TALLY.amplified += int((crossed & amplified).sum())
    crossed &= ~amplified
    if theirs is None:
        np.testing.assert_array_equal(base[:, 0], probability)
    else:
        assert base.shape == theirs.shape
        # Learners may be decisions, without a bound: relative to their size there.
        off = np.abs(base - theirs) / np.maximum(1, np.abs(theirs).max(axis=0))
        crossed |= (off > (STEEP if steep else SMOOTH)).any(axis=1)
    if isinstance(last, StackingClassifier):
        ties = tied(last, x)
        TALLY.tied += int((crossed & ties).sum())
        crossed &= ~ties
        apart[ties] = np.maximum(apart[ties], 0.5)  # nothing is said of their labels
    labels = (probability > 0.5) == (want > 0.5)
    assert (labels | crossed | (np.abs(want - 0.5) <= apart)).all()
    TALLY.cases += len(want)
    TALLY.crossed += int(crossed.sum())
    TALLY.worst[case.stepped] = max(TALLY.worst.get(case.stepped, 0.0), float(apart[apart <= FINAL].max(initial=0)))
    if not case.stepped:
        assert not crossed.any(), f"{crossed.sum()} of {len(want)} cases differ, by up to {apart.max():.2e}"
        assert all(forest["exact"] for forest in report(model)["forests"])


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a head does not shrink: every step of it would be fitted again
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_a_random_head(case: Case) -> None:
    with warnings.catch_warnings():
        # What random hyper-parameters on random data provoke; anything else is an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for message in (
            "The `probability` parameter",
            "Features .* are constant",
            "invalid value encountered in divide",
        ):
            warnings.filterwarnings("ignore", message)
        rows = len(case.x) // 2
        head = fit(case.head, case.x[:rows], case.y[:rows])
        for engine in ENGINES:
            check(case, head, engine)
    TALLY.heads.add(" ".join(str(case.head).split()))


def test_the_random_heads_covered_every_family_and_hardly_crossed_a_step() -> None:
    """Runs after the test above, and is about all of its heads."""
    if not TALLY.heads:
        pytest.skip("the random heads did not run")
    print(f"{len(TALLY.heads)} distinct heads, {TALLY.cases} cases: {TALLY.crossed} beyond a step,", end=" ")
    print(f"{TALLY.amplified} amplified, {TALLY.tied} tied; worst of the others, by stepped or not: {TALLY.worst}")
    assert len(TALLY.heads) >= DISTINCT
    assert TALLY.crossed + TALLY.amplified <= SHARE_OF_ALL * TALLY.cases
    missing = {
        *("scaler", "chain", "union", "columns", "normalizer", "pca", "stacking", "voting"),
        *("LogisticRegression", "LogisticRegressionCV", "svc with probability"),
        *("RandomForestClassifier", "ExtraTreesClassifier", "DecisionTreeClassifier", "ExtraTreeClassifier"),
        *("boosting, log_loss", "boosting, exponential", "HistGradientBoostingClassifier"),
        *(f"MLP, {activation}" for activation in ("identity", "logistic", "tanh", "relu")),
    } - set(TALLY.families)
    assert not missing
    for part in ("bagging of", "calibrated", "linear, ", "rbf, ", "poly, ", "sigmoid, ", "LinearSVC, "):
        assert any(part in family for family in TALLY.families), part
