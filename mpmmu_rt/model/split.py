"""Training, validation and test part in the paper's proportion 7 : 2 : 1, by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
