"""The stacking head: logistic regression, SVM, random forest and Extra-Trees under an MLP meta-learner.

Level 0 turns the scaled embedding into four probabilities; the meta-learner is fitted on their out-of-fold
values (Wolpert 1992, "Stacked generalization", section 2), so that it never sees a learner judge its own
training cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, StackingClassifier
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mpmmu_rt.errors import ManifestError, UsageError
from mpmmu_rt.spec import Array

from .config import DIVERGED, HeadConfig
from .split import patient_folds, patients_by_class

# A channel that varies this much less than the median one is dead: it holds rounding, and the scaler would blow
# that up to the size of evidence, so that the same image could get another probability on another machine.
_DEAD = 1e-3


def fit_head(embedding: Array, label: Array, groups: Sequence[str], config: HeadConfig, *, seed: int) -> Pipeline:
    """Fit the head on embeddings float32 [N, D] and labels int [N]; deterministic by `seed`.

    All folds, those of the SVM's Platt scaling too, keep the rows of one patient (`groups`) together. Raises
    `ManifestError` when a class has fewer than two patients, so that no honest fold exists, and `UsageError` for
    embeddings that hold no finite numbers, or the same of every row.
    """
    patients = patients_by_class(label, groups)
    if min(patients) < 2:
        raise ManifestError(
            f"the head has {patients[0]} benign and {patients[1]} malignant patients to learn from, "
            "expected at least 2 of each",
            hint="add cases of the smaller class",
        )
    folds = min(config.folds, *patients)
    fewest = min(patients)
    # Two, so that Platt's scaling can part them again.
    outer = patient_folds(label, groups, folds, leave=min(2, fewest - -(-fewest // folds)), seed=seed)
    if not np.isfinite(embedding).all():
        raise UsageError("the embeddings hold numbers that are not finite, expected finite ones", hint=DIVERGED)
    deviation = embedding.std(axis=0, dtype=np.float64)
    if not deviation.any():
        raise UsageError("the embeddings are the same of every row, expected ones that differ", hint=DIVERGED)
    head = _unfitted(config, (_DEAD * float(np.median(deviation))) ** 2, seed)
    scaled = head[:-1].fit_transform(embedding)
    inner = _Inner(config.folds, {row.tobytes(): group for row, group in zip(scaled, groups, strict=True)})
    stack: Any = head.named_steps["stack"]
    stack.set_params(cv=outer, svm__cv=inner)
    stack.fit(scaled, label)
    # Which rows the training set had is no part of the model.
    stack.set_params(cv=folds, svm__cv=config.folds)
    stack.named_estimators_["svm"].cv = config.folds
    return head


class _Inner:
    """Folds for the SVM's Platt scaling, which splits each outer training part again and is told no patients: it knows
    a row by what it holds, `of_row`. Rows of different patients that are equal to the bit count as one patient's."""

    def __init__(self, folds: int, of_row: Mapping[bytes, str]) -> None:
        self.folds, self.of_row = folds, of_row

    def split(self, x: Array, y: Array, groups: object = None) -> Iterator[tuple[Array, Array]]:
        of_patient = [self.of_row[row.tobytes()] for row in x]
        rows = int(np.bincount(y, minlength=2).min())
        if (most := min(patients_by_class(y, of_patient))) >= 2:
            yield from patient_folds(y, of_patient, min(self.folds, most), leave=1, seed=None)
        elif rows >= 2:  # one patient of a class: only her rows can be parted
            yield from StratifiedKFold(min(self.folds, rows)).split(x, y)
        else:  # of one row: nothing can
            yield np.arange(len(y)), np.arange(len(y))

    def get_n_splits(self, x: Array, y: Array, groups: object = None) -> int:
        return len(list(self.split(x, y)))


def _unfitted(config: HeadConfig, dead_variance: float, seed: int) -> Pipeline:
    forest = {"n_estimators": config.trees, "max_depth": config.max_depth, "class_weight": "balanced"}
    svm = SVC(kernel="rbf", class_weight="balanced", random_state=seed)
    learners = [
        ("logistic_regression", LogisticRegression(class_weight="balanced", max_iter=5000)),
        ("svm", CalibratedClassifierCV(svm, method="sigmoid", cv=config.folds, ensemble=False)),
        ("random_forest", RandomForestClassifier(**forest, random_state=seed)),
        ("extra_trees", ExtraTreesClassifier(**forest, random_state=seed)),
    ]
    # tanh: a few ReLU units on inputs in 0..1 can all die, and the head then says the same of every case.
    meta = MLPClassifier(
        (config.hidden,), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=seed
    )
    return Pipeline(
        [
            ("alive", VarianceThreshold(dead_variance)),
            ("scale", StandardScaler()),
            ("stack", StackingClassifier(learners, meta, stack_method="predict_proba")),
        ]
    )
