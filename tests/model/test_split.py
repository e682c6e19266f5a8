from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpmmu_rt.errors import ManifestError
from mpmmu_rt.model.split import MIN_PATIENTS, patient_folds, patients_by_class, split_patients


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, list[str]]:
    """Rows of patients with one to five rows each, shuffled; a malignant patient may have benign rows too."""
    counts = [draw(st.integers(MIN_PATIENTS, 30)) for _ in range(2)]
    label, groups = [], []
    for patient in range(sum(counts)):
        malignant = patient >= counts[0]
        mine = [draw(st.booleans()) and malignant for _ in range(draw(st.integers(1, 5)))]
        mine[0] = malignant
        label += mine
        groups += [f"p{patient}"] * len(mine)
    order = draw(st.permutations(range(len(label))))
    return np.array([label[i] for i in order]).astype(np.int64), [groups[i] for i in order]


@settings(deadline=None, max_examples=60)
@given(rows(), st.integers(0, 2**31))
def test_no_patient_is_in_two_parts_and_no_row_is_lost(case: tuple[np.ndarray, list[str]], seed: int) -> None:
    label, groups = case
    split = split_patients(label, groups, seed=seed)
    parts = list(split.parts().values())
    assert sorted(np.concatenate(parts)) == list(range(len(label)))
    patients = [{groups[row] for row in part} for part in parts]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    for part, members in zip(parts, patients, strict=True):
        assert (np.diff(part) > 0).all()
        malignant = {groups[row] for row in part if label[row]}
        assert 0 < len(malignant) < len(members), "a part without one of the classes"


def test_the_papers_cohort_is_split_as_in_the_paper() -> None:
    label = np.repeat([0, 1], [384, 279])
    split = split_patients(label, [str(row) for row in range(663)], seed=0)
    assert [len(part) for part in split.parts().values()] == [464, 133, 66]
    assert [int(label[part].sum()) for part in split.parts().values()] == [195, 56, 28]


def test_it_is_decided_by_the_seed() -> None:
    label, groups = np.tile([0, 1], 50), [str(row) for row in range(100)]
    first, again, other = (split_patients(label, groups, seed=seed).test.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_patient_with_one_malignant_row_is_malignant() -> None:
    """Eight patients of two rows; those of the malignant ones are half benign, and stratification must see that."""
    label = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0])
    groups = [str(row // 2) for row in range(16)]
    split = split_patients(label, groups, seed=4)
    for part in split.parts().values():
        assert {int(groups[row]) >= 4 for row in part} == {False, True}


@pytest.mark.parametrize(("benign", "malignant", "named"), [(3, 9, "3 benign"), (9, 3, "3 malignant"), (9, 0, "0 mal")])
def test_too_few_patients_of_a_class(benign: int, malignant: int, named: str) -> None:
    label = np.repeat([0, 0, 1, 1], [benign, benign, malignant, malignant])  # rows don't count, patients do
    groups = [f"b{i % max(1, benign)}" for i in range(2 * benign)]
    groups += [f"m{i % max(1, malignant)}" for i in range(2 * malignant)]
    with pytest.raises(ManifestError, match=named) as caught:
        split_patients(label, groups, seed=0)
    assert "patient" in caught.value.hint


@settings(deadline=None, max_examples=60)
@given(rows(), st.integers(2, 5), st.integers(0, 3), st.lists(st.sampled_from([1, 3, 30]), min_size=60, max_size=60))
def test_folds_leave_patients_enough_whatever_rows_they_have(
    case: tuple[np.ndarray, list[str]], folds: int, leave: int, copies: list[int]
) -> None:
    """Each row is there as often as its patient's number says: some patients have very many."""
    often = [copies[int(group[1:])] for group in case[1]]
    label, groups = np.repeat(case[0], often), np.repeat(case[1], often).tolist()
    patients = patients_by_class(label, groups)
    folds = min(folds, *patients)
    most = min(count - -(-count // folds) for count in patients)
    found = patient_folds(label, groups, folds, leave=min(leave, most), seed=leave or None)
    assert sorted(np.concatenate([out for _, out in found])) == list(range(len(label)))
    for rest, out in found:
        assert len(out)
        assert sorted([*rest, *out]) == list(range(len(label)))
        assert not {groups[row] for row in rest} & {groups[row] for row in out}
        assert min(patients_by_class(label[rest], [groups[row] for row in rest])) >= min(leave, most)
