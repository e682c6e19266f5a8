"""By patient: training, validation and test part in the paper's proportion 7 : 2 : 1, and folds to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from mpmmu_rt.errors import ManifestError
from mpmmu_rt.spec import Array

VALIDATION_SHARE = 0.2
TEST_SHARE = 0.1
MIN_PATIENTS = 4  # of a class: one to validate, one to test, two to learn from

CLASSES = ("benign", "malignant")


@dataclass(frozen=True)
class Split:
    """Row indices, int64 [rows], ascending. Together they are all rows, and no patient is in two parts."""

    train: Array
    validation: Array
    test: Array

    def parts(self) -> dict[str, Array]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def patient_labels(label: Array, groups: Sequence[str]) -> dict[str, int]:
    """Patient to label, in order of appearance: malignant (1) if any of the patient's rows is."""
    labels: dict[str, int] = {}
    for group, value in zip(groups, label.tolist(), strict=True):
        labels[group] = max(labels.get(group, 0), int(value))
    return labels


def split_patients(label: Array, groups: Sequence[str], *, seed: int) -> Split:
    """Split rows, given by label int [N] and patient (`groups`), stratified by the patients' labels.

    Of each class a tenth of the patients, rounded and at least one, are for testing, a fifth for validation
    and the rest for training; the paper's 384 + 279 patients become its 464, 133 and 66. Deterministic by
    `seed`. Raises `ManifestError` when a class has fewer than `MIN_PATIENTS` patients.
    """
    labels = patient_labels(label, groups)
    part: dict[str, int] = {}
    for kind, name in enumerate(CLASSES):
        patients = [patient for patient, value in labels.items() if value == kind]
        if len(patients) < MIN_PATIENTS:
            raise ManifestError(
                f"there are {len(patients)} {name} patients, expected at least {MIN_PATIENTS} for "
                "a training, a validation and a test part",
                hint=f"add {name} cases; without a `patient` column every row counts as a patient",
            )
        test = max(1, round(TEST_SHARE * len(patients)))
        validation = max(1, round(VALIDATION_SHARE * len(patients)))
        order = np.random.default_rng([seed, kind]).permutation(len(patients))
        for rank, index in enumerate(order):
            part[patients[index]] = 2 if rank < test else 1 if rank < test + validation else 0
    of_row = np.array([part[group] for group in groups])
    return Split(*(np.flatnonzero(of_row == number) for number in range(3)))


def patients_by_class(label: Array, groups: Sequence[str]) -> tuple[int, int]:
    """How many have benign rows, and how many malignant ones; one with rows of both counts twice."""
    benign, malignant = ({group for group, y in zip(groups, label, strict=True) if y == kind} for kind in (0, 1))
    return len(benign), len(malignant)


def patient_folds(
    label: Array, groups: Sequence[str], folds: int, *, leave: int, seed: int | None
) -> list[tuple[Array, Array]]:
    """Rows to learn from and rows left out, int64 each, of every fold; a patient's rows stay together.

    label int [N], groups N patients, of each class at least `folds` and two. The folds are alike in rows, where each
    has some and leaves `leave` patients of each class to learn from. Patients of very many rows beside others of few
    don't let them be: then patients are dealt one by one, which leaves as many as can be. seed: None for no shuffle.
    """

    def enough(rest: Array, out: Array) -> bool:
        return len(out) > 0 and min(patients_by_class(label[rest], [groups[row] for row in rest])) >= leave

    splitter = StratifiedGroupKFold(folds, shuffle=seed is not None, random_state=seed)
    found = list(splitter.split(label, label, groups))
    if all(enough(*fold) for fold in found):
        return found
    classes: dict[str, set[int]] = {}
    for group, value in zip(groups, label.tolist(), strict=True):
        classes.setdefault(group, set()).add(value)
    names = list(classes)
    if seed is not None:
        names = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    both = [name for name in names if len(classes[name]) == 2]
    fold_of = {name: rank % folds for rank, name in enumerate(both)}
    for kind in (0, 1):  # each goes on where those of both classes ended, so that a class lies evenly over the folds
        alone = (name for name in names if classes[name] == {kind})
        fold_of |= {name: rank % folds for rank, name in enumerate(alone, len(both))}
    of_row = np.array([fold_of[group] for group in groups])
    return [(np.flatnonzero(of_row != fold), np.flatnonzero(of_row == fold)) for fold in range(folds)]
