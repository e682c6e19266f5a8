from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mpmmu_rt.errors import ManifestError, UsageError
from mpmmu_rt.model.config import HeadConfig
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.spec import Array

CONFIG = HeadConfig(trees=15, hidden=4)


def cohort(patients: int, rows_each: int = 2, seed: int = 0) -> tuple[Array, Array, list[str]]:
    """Embeddings in which two channels carry the label, one is dead, and a patient's rows are near copies."""
    rng = np.random.default_rng(seed)
    of_patient = rng.integers(0, 2, patients)
    of_patient[:4] = (0, 1, 0, 1)
    centre = rng.normal(size=(patients, 12)) + of_patient[:, None] * np.r_[1.5, 1.5, np.zeros(10)]
    embedding = np.repeat(centre, rows_each, 0) + rng.normal(0, 0.05, (patients * rows_each, 12))
    embedding[:, 11] = 1e-9 * rng.normal(size=len(embedding))
    groups = [f"p{row // rows_each}" for row in range(len(embedding))]
    return embedding.astype(np.float32), np.repeat(of_patient, rows_each), groups


@pytest.mark.slow
def test_the_papers_learners_on_out_of_fold_probabilities() -> None:
    embedding, label, groups = cohort(60)
    head = fit_head(embedding, label, groups, CONFIG, seed=1)
    stack = head.named_steps["stack"]
    kinds = [type(estimator).__name__ for estimator in stack.estimators_]
    assert kinds == ["LogisticRegression", "CalibratedClassifierCV", "RandomForestClassifier", "ExtraTreesClassifier"]
    assert type(stack.final_estimator_).__name__ == "MLPClassifier"
    assert stack.final_estimator_.n_features_in_ == 4  # one probability of each, nothing else
    assert list(head.classes_) == [0, 1]
    fresh, truth, _ = cohort(200, 1, seed=9)
    assert roc_auc_score(truth, head.predict_proba(fresh)[:, 1]) > 0.85


@pytest.mark.slow
def test_a_dead_channel_has_no_say() -> None:
    embedding, label, groups = cohort(60)
    head = fit_head(embedding, label, groups, CONFIG, seed=1)
    shaken = embedding.copy()
    shaken[:, 11] += 1e-6  # a thousand times its deviation
    np.testing.assert_array_equal(head.predict_proba(shaken), head.predict_proba(embedding))


@pytest.mark.slow
def test_deterministic_and_free_of_row_numbers() -> None:
    embedding, label, groups = cohort(40)
    first, second = (fit_head(embedding, label, groups, CONFIG, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(embedding), second.predict_proba(embedding))
    assert isinstance(first.named_steps["stack"].cv, int)


def test_folds_keep_patients_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every outer training part that a learner was cloned for holds whole patients."""
    from sklearn.ensemble import RandomForestClassifier

    embedding, label, groups = cohort(30, rows_each=3)
    # A channel that says whose row it is survives scaling as an order: rows of one patient share its value.
    embedding[:, 10] = [int(group[1:]) for group in groups]
    parts: list[Array] = []
    original = RandomForestClassifier.fit

    def spy(self: RandomForestClassifier, x: Array, y: Array, *rest: object, **more: object) -> object:
        parts.append(np.unique(x[:, 10], return_counts=True)[1])
        return original(self, x, y, *rest, **more)

    monkeypatch.setattr(RandomForestClassifier, "fit", spy)
    fit_head(embedding, label, groups, CONFIG, seed=0)
    assert len(parts) == 1 + CONFIG.folds
    assert len(parts[0]) == 30
    assert all(len(rows) < 30 and set(rows) == {3} for rows in parts[1:])  # whole patients or nothing


def test_the_folds_of_platts_scaling_keep_patients_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does what each SVM is fitted on: of the whole set, of each outer part, and of each inner part of these."""
    from sklearn.svm import SVC

    embedding, label, groups = cohort(30, rows_each=3)
    embedding[:, 10] = [int(group[1:]) for group in groups]
    parts: list[Array] = []
    original = SVC.fit

    def spy(self: SVC, x: Array, y: Array, *rest: object, **more: object) -> object:
        parts.append(np.unique(x[:, 10], return_counts=True)[1])
        return original(self, x, y, *rest, **more)

    monkeypatch.setattr(SVC, "fit", spy)
    head = fit_head(embedding, label, groups, CONFIG, seed=0)
    assert len(parts) == (1 + CONFIG.folds) * (1 + CONFIG.folds)
    assert all(set(rows) == {3} for rows in parts)
    assert isinstance(head.named_steps["stack"].named_estimators_["svm"].cv, int)


def test_too_few_patients_of_a_class() -> None:
    embedding, label, groups = cohort(10)
    label[:] = 0
    label[:2] = 1  # both rows of one patient
    with pytest.raises(ManifestError, match="9 benign and 1 malignant patients to learn from, expected at least 2"):
        fit_head(embedding, label, groups, CONFIG, seed=0)


def test_two_patients_of_a_class_are_enough() -> None:
    embedding, label, groups = cohort(10, rows_each=4)
    label[:] = 0
    label[:8] = 1
    head = fit_head(embedding, label, groups, CONFIG, seed=0)
    assert np.isfinite(head.predict_proba(embedding)).all()


@pytest.mark.parametrize(
    "patients",
    [
        # of m2 one lesion is benign; folds that are alike in rows leave m0 and m1 on one side, and no malignant row
        {"b0": [0], "b1": [0], "b2": [0, 0], "b3": [0], "m0": [1, 1], "m1": [1, 1, 1, 1], "m2": [1, 0]},
        {"b0": [0], "b1": [0], "b2": [0], "m0": [1], "m1": [1]},  # whoever is left out, one row is to be learnt from
    ],
)
def test_few_patients_of_unequal_rows(patients: dict[str, list[int]]) -> None:
    groups = [name for name, rows in patients.items() for _ in rows]
    label = np.array([y for rows in patients.values() for y in rows])
    embedding = np.random.default_rng(0).normal(size=(len(label), 3)).astype(np.float32) + label[:, None]
    head = fit_head(embedding, label, groups, CONFIG, seed=0)
    assert np.isfinite(head.predict_proba(embedding)).all()


@pytest.mark.parametrize(("value", "message"), [(np.nan, "are not finite"), (0.5, "are the same of every row")])
def test_embeddings_that_tell_nothing(value: float, message: str) -> None:
    embedding, label, groups = cohort(10)
    with pytest.raises(UsageError, match=message) as caught:
        fit_head(np.full_like(embedding, value), label, groups, CONFIG, seed=0)
    assert "learning rate" in caught.value.hint
