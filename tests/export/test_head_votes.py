"""Trees behind votes, means, and ties: where one unit in the last place of float32 is another leaf.

A forest of pure leaves says k / n. A tree behind it that learned from k - 1 and k + 1 splits at k / n itself, so that
its cases turn on how the division was rounded. Reports of the kind: posit-dev/orbital#58, onnx/sklearn-onnx#1192.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpmmu_rt.export.head import lower
from mpmmu_rt.spec import Array
from tests.export.running_heads import ENGINES, on_onnxruntime

FEATURES = 12
NEWER: Any = (
    {"quantile_method": "averaged_inverted_cdf"} if "quantile_method" in KBinsDiscretizer().get_params() else {}
)


@pytest.fixture(scope="module")
def data() -> tuple[Array, Array]:
    """Noisy labels: votes of every kind."""
    x, y = make_classification(2600, FEATURES, n_informative=6, flip_y=0.25, class_sep=0.7, random_state=0)
    return x.astype(np.float32), y


LEARNERS: dict[str, Callable[[int], list[Any]]] = {
    "forests": lambda n: [RandomForestClassifier(n, random_state=0), ExtraTreesClassifier(n, random_state=1)],
    "bags and votes": lambda n: [
        BaggingClassifier(DecisionTreeClassifier(random_state=0), n, random_state=0),
        VotingClassifier([(f"t{k}", ExtraTreesClassifier(1, random_state=k)) for k in range(n)], voting="soft"),
    ],
}
FINALS: dict[str, Callable[[], Any]] = {
    "forest": lambda: RandomForestClassifier(30, random_state=0),
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=20, max_depth=4, random_state=0),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=20, random_state=0),
    "scaled forest": lambda: make_pipeline(StandardScaler(), MinMaxScaler(), FINALS["forest"]()),
    "scaled histogram": lambda: make_pipeline(StandardScaler(), FINALS["histogram"]()),
}
STACKS = [("forests", 49, False), ("forests", 100, True), ("bags and votes", 10, False)]


class Recorded(DecisionTreeClassifier):  # type: ignore[misc]
    """A last learner that keeps what it learnt from."""

    def fit(self, x: Array, y: Array, *more: Any, **options: Any) -> Any:
        self.given_ = x, y
        return super().fit(x, y, *more, **options)


Stack = Callable[[str, int, bool], StackingClassifier]


@pytest.fixture(scope="module")
def fitted(data: tuple[Array, Array]) -> Stack:
    """The learners of a stack, fitted once for all that come last."""
    x, y = data

    @functools.cache
    def stack(kind: str, count: int, passthrough: bool) -> StackingClassifier:
        named = [(f"l{k}", one) for k, one in enumerate(LEARNERS[kind](count))]
        with threadpool_limits(1):
            return StackingClassifier(named, Recorded(random_state=0), cv=3, passthrough=passthrough).fit(
                x[:800], y[:800]
            )

    return stack


def ended(stack: StackingClassifier, final: Any) -> StackingClassifier:
    """The stack as `fit` would have made it with `final` in place of what it ends with."""
    head = copy.copy(stack).set_params(final_estimator=final)
    with threadpool_limits(1):
        head.final_estimator_ = clone(final).fit(*stack.final_estimator_.given_)
    return head


def test_a_stack_that_ends_otherwise_is_the_one_that_is_fitted_whole(data: tuple[Array, Array], fitted: Stack) -> None:
    x, y = data
    stack = fitted("bags and votes", 10, False)
    with threadpool_limits(1):
        whole = StackingClassifier(stack.estimators, FINALS["forest"](), cv=3).fit(x[:800], y[:800])
    np.testing.assert_array_equal(ended(stack, FINALS["forest"]()).predict_proba(x), whole.predict_proba(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("final", "kind", "count", "passthrough"),
    [
        *((final, *stack) for final in FINALS for stack in STACKS),
        *((final, "forests", 300, False) for final in ("forest", "histogram")),
    ],
)
def test_trees_on_votes_take_the_leaf_of_scikit_learn(
    data: tuple[Array, Array], fitted: Stack, final: str, kind: str, count: int, passthrough: bool
) -> None:
    x, _ = data
    head = ended(fitted(kind, count, passthrough), FINALS[final]())
    with threadpool_limits(1):
        want, meta = head.predict_proba(x[800:])[:, 1], head.transform(x[800:])[:, :2]
    assert len(np.unique(meta)) > 3
    for form, run in ENGINES:
        probability, base = run(lower(head, FEATURES, form), x[800:])
        np.testing.assert_allclose(probability, want, rtol=0, atol=2e-6, err_msg=f"{form} {run.__name__}")
        np.testing.assert_allclose(base, meta, rtol=1.2e-7, atol=0)


def test_a_share_is_rounded_as_scikit_learn_rounds_it(data: tuple[Array, Array]) -> None:
    """In ONNX Runtime to the last bit, for every number of trees where a product with 1 / n is not."""
    x, y = data
    votes = {n: np.arange(n + 1, dtype=np.float32) for n in range(1, 300)}
    wrong = [n for n, k in votes.items() if (k * np.float32(1 / n) != np.float32(np.arange(n + 1) / n)).any()]
    assert len(wrong) > 200
    for count in wrong[::40]:
        forest = RandomForestClassifier(count, random_state=0).fit(x[:300], y[:300])
        want = forest.predict_proba(x)[:, 1].astype(np.float32)
        for form in ("portable", "onnxruntime"):
            np.testing.assert_array_equal(on_onnxruntime(lower(forest, FEATURES, form), x)[0], want)


MEANS: dict[str, Callable[[], Any]] = {
    "bagging of 10": lambda: BaggingClassifier(random_state=0),
    "bagging of 30": lambda: BaggingClassifier(n_estimators=30, random_state=0),
    "vote of 10": lambda: VotingClassifier(
        [(f"t{k}", DecisionTreeClassifier(max_depth=5, random_state=k)) for k in range(10)], voting="soft"
    ),
    "weighted vote": lambda: VotingClassifier(
        [(f"t{k}", DecisionTreeClassifier(max_depth=6, random_state=k)) for k in range(7)],
        voting="soft",
        weights=[0.1, 0.2, 0.3, 0.7, 1.1, 1.3, 0.9],
    ),
    "isotonic": lambda: CalibratedClassifierCV(RandomForestClassifier(30, random_state=0), method="isotonic", cv=10),
    "impure forest": lambda: RandomForestClassifier(100, max_depth=3, random_state=0),
}


@pytest.mark.parametrize("name", MEANS)
def test_no_mean_of_probabilities_exceeds_one(name: str) -> None:
    """Where all agree, the clearest cases, a mean by weights that are rounded is 1.0000001, which is refused."""
    x, y = make_classification(4000, FEATURES, n_informative=6, class_sep=2.5, random_state=0)
    x = x.astype(np.float32)
    with threadpool_limits(1):
        head = MEANS[name]().fit(x[:600], y[:600])
        want = head.predict_proba(x)[:, 1]
    for form, run in ENGINES:
        probability, base = run(lower(head, FEATURES, form), x)
        for found in (probability, base):
            assert found.min() >= 0
            assert found.max() <= 1
        np.testing.assert_allclose(probability, want, rtol=0, atol=1e-6)


def tied(kind: str) -> Any:
    """A fitted classifier whose decision on [0, 0] is exactly zero."""
    x = np.array([[-1.0, 0], [-1, 0], [1, 0], [1, 0], [0, 0], [0, 0]])
    y = np.array([0, 0, 1, 1, 0, 1])
    if kind == "boosting":
        return GradientBoostingClassifier(n_estimators=1, init="zero", max_depth=2, random_state=0).fit(x, y)
    if kind == "histogram":
        return HistGradientBoostingClassifier(max_iter=1, min_samples_leaf=1, random_state=0).fit(x, y)
    if kind == "svc":
        return SVC(kernel="linear").fit(x[:4], y[:4])
    if kind == "logistic":
        one = LogisticRegression().fit(x, y)
        one.intercept_[:] = 0
        return one
    return DecisionTreeClassifier(random_state=0).fit(x, y)


@pytest.mark.parametrize("kind", ["boosting", "histogram", "svc", "logistic", "tree"])
def test_a_tie_is_the_class_that_scikit_learn_takes(kind: str) -> None:
    one = tied(kind)
    at = np.zeros((1, 2), np.float32)
    decision = one.decision_function(at)[0] if hasattr(one, "decision_function") else one.predict_proba(at)[0, 1] - 0.5
    assert decision == 0
    rows = np.array([[-1.0, 0], [1, 0], [0, 0], [2, 1], [-2, 1], [0.5, 2]], np.float32)
    final = LogisticRegression()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = StackingClassifier([("one", one)], final, cv="prefit", stack_method="predict").fit(
            rows, np.array([0, 1, 0, 1, 0, 1])
        )
    want = head.transform(rows)[:, 0]
    assert want[2] == one.predict(at)[0]
    for form, run in ENGINES:
        _, base = run(lower(head, 2, form), rows)
        np.testing.assert_array_equal(base[:, 0], want, err_msg=f"{form} {run.__name__}")


# ---------------------------------------------------------------- probabilities near their ends


SATURATED: dict[str, Any] = {
    "histogram": HistGradientBoostingClassifier(max_iter=20, random_state=0),
    "extra trees": ExtraTreesClassifier(30, random_state=0),
    "forest": RandomForestClassifier(30, random_state=0),
    "bins": make_pipeline(KBinsDiscretizer(5, encode="ordinal", **NEWER), DecisionTreeClassifier(random_state=0)),
}


@pytest.mark.parametrize("prefit", [False, True])
@pytest.mark.parametrize("final", SATURATED)
def test_probabilities_that_float32_does_not_tell_apart(final: str, prefit: bool) -> None:
    """Naive Bayes of many columns says 1 - 1e-9 and 1 - 1e-12, between which trees in float64 split."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.3, 1, (600, 24)), 0).astype(np.float32)
    y = (x[:, :4].sum(axis=1) + rng.normal(0, 1.2, 600) > np.median(x[:, :4].sum(axis=1))).astype(int)
    learners = [("nb", make_pipeline(StandardScaler(), GaussianNB())), ("lr", LogisticRegression())]
    for _, one in learners:
        one.fit(x[:300].astype(np.float64), y[:300])
    head = StackingClassifier(learners, clone(SATURATED[final]), cv="prefit" if prefit else 3)
    head.fit(x[:300].astype(np.float64), y[:300])
    want = head.predict_proba(x.astype(np.float64))[:, 1]
    for form, run in ENGINES:
        crossed = np.abs(run(lower(head, 24, form), x)[0] - want) > 1e-5
        assert not crossed[300:].any()
        assert crossed[:300].mean() <= 0.01  # of a prefit learner each of these stands on a split
