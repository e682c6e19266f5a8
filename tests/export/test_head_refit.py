"""Heads that were changed after they were fitted, or fitted by another version: what scikit-learn says of them, or a
refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from scipy.sparse import csr_matrix
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.svm import SVC, LinearSVC

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.head import lower
from mpmmu_rt.spec import Array

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
X = np.maximum(RNG.normal(0.3, 1, (120, 6)), 0).astype(np.float32)
Y = (X[:, 0] + X[:, 1] + RNG.normal(0, 0.5, 120) > 1.2).astype(int)


def run(head: Any) -> tuple[Array, Array]:
    session = onnxruntime.InferenceSession(lower(head, 6).SerializeToString(), providers=["CPUExecutionProvider"])
    probability, base = session.run(["probability", "base_probability"], {"embedding": X})
    return probability, base


def sparse_svc(kernel: str) -> Any:
    return CalibratedClassifierCV(SVC(kernel=kernel), cv=2).fit(csr_matrix(X), Y)


def calibrated_sparse(learner: Any) -> Any:
    head = CalibratedClassifierCV(learner, cv=2).fit(X, Y)
    for pair in head.calibrated_classifiers_:
        pair.estimator.sparsify()
    return head


SPARSE: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression().fit(X, Y).sparsify(),
    "logistic of an L1": lambda: LogisticRegression(C=0.05, penalty="l1", solver="liblinear").fit(X, Y).sparsify(),
    "calibrated sgd": lambda: calibrated_sparse(SGDClassifier(random_state=0)),
    "calibrated linear svc": lambda: calibrated_sparse(LinearSVC()),
    "linear svc": lambda: sparse_svc("linear"),
    "rbf svc": lambda: sparse_svc("rbf"),
    "poly svc": lambda: sparse_svc("poly"),
    "sigmoid svc": lambda: sparse_svc("sigmoid"),
    "svc of libsvm": lambda: SVC(probability=True, random_state=0).fit(csr_matrix(X), Y),
    "behind a scaler": lambda: make_pipeline(MaxAbsScaler(), LogisticRegression()).fit(csr_matrix(X), Y),
    "in a stack": lambda: StackingClassifier(
        [("a", LogisticRegression()), ("b", SVC()), ("c", RandomForestClassifier(5, random_state=0))],
        LogisticRegression(),
        cv=2,
    ).fit(csr_matrix(X), Y),
}


@pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Inconsistent values.* penalty:UserWarning")
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_numbers_are_numbers(kind: str) -> None:
    """Coefficients that were made sparse, and what was fitted on sparse embeddings."""
    head = SPARSE[kind]()
    np.testing.assert_allclose(run(head)[0], head.predict_proba(X)[:, 1], rtol=0, atol=1e-5)


def test_a_learner_that_was_dropped_after_the_fit_still_answers_as_in_scikit_learn() -> None:
    learners = [("a", LogisticRegression()), ("b", RandomForestClassifier(9, random_state=0)), ("c", LinearSVC())]
    for gone in ("a", "b", "c"):
        stack = StackingClassifier(learners, LogisticRegression(), cv=2).fit(X, Y)
        before = stack.predict_proba(X)[:, 1]
        stack.set_params(**{gone: "drop"})
        np.testing.assert_array_equal(stack.predict_proba(X)[:, 1], before)
        probability, base = run(stack)
        np.testing.assert_allclose(probability, before, rtol=0, atol=1e-5)
        np.testing.assert_allclose(base, stack.transform(X), rtol=0, atol=1e-5)
        vote = VotingClassifier(learners[:2], voting="soft").fit(X, Y).set_params(**{"a": "drop"})
        np.testing.assert_allclose(run(vote)[0], vote.predict_proba(X)[:, 1], rtol=0, atol=1e-5)


def test_weights_that_no_longer_fit_are_refused() -> None:
    """scikit-learn can't answer either."""
    vote = VotingClassifier(
        [("a", LogisticRegression()), ("b", RandomForestClassifier(3, random_state=0))], voting="soft", weights=[1, 2]
    ).fit(X, Y)
    for change in ({"a": "drop"}, {"weights": [1.0]}, {"weights": [1, 2, 3]}):
        changed = VotingClassifier(vote.estimators, voting="soft", weights=[1, 2]).fit(X, Y).set_params(**change)
        with pytest.raises(UnsupportedEstimator, match=r"head is a VotingClassifier of \d weights for 2") as caught:
            lower(changed, 6)
        assert caught.value.hint == "fit it again after its learners or weights were changed"
    changed = vote.set_params(weights=[3, 1])  # read anew at every prediction
    np.testing.assert_allclose(run(changed)[0], changed.predict_proba(X)[:, 1], rtol=0, atol=1e-5)


def test_learners_that_were_taken_away_are_refused() -> None:
    stack = StackingClassifier([("a", LogisticRegression()), ("b", SVC())], LogisticRegression(), cv=2).fit(X, Y)
    stack.estimators_ = stack.estimators_[:1]
    with pytest.raises(UnsupportedEstimator, match="head is a StackingClassifier of 2 names for 1 fitted"):
        lower(stack, 6)
    stack = StackingClassifier([("a", LogisticRegression()), ("b", SVC())], LogisticRegression(), cv=2).fit(X, Y)
    stack.stack_method_ = stack.stack_method_[:1]
    with pytest.raises(UnsupportedEstimator, match="head is a StackingClassifier of 1 methods for 2 fitted"):
        lower(stack, 6)


@pytest.mark.skipif("multi_class" in LogisticRegression().get_params(), reason="scikit-learn has multi_class here")
def test_multinomial_of_an_older_version_is_refused() -> None:
    """Fitted to be σ(2d), read as σ(d) by what is installed: up to 0.15 apart."""
    old = LogisticRegression().fit(X, Y)
    old.multi_class = "multinomial"
    for head, path in ((old, "head"), (make_pipeline(MaxAbsScaler().fit(X), old), r"head\.logisticregression")):
        with pytest.raises(UnsupportedEstimator, match=f"{path} is a LogisticRegression with multi_class") as caught:
            lower(head, 6)
        assert caught.value.hint.startswith("fit it again, or export it with the scikit-learn that it was fitted with")
    old.multi_class = "auto"  # of two classes as it is now
    np.testing.assert_allclose(run(old)[0], old.predict_proba(X)[:, 1], rtol=0, atol=1e-5)
