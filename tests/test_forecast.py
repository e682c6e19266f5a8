"""The forecast of flips: its thresholds are the head's own, and what it says is what happens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.errors import BundleError
from mpmmu_rt.export import head
from mpmmu_rt.forecast import LEAST, forecast
from mpmmu_rt.forests import read_forests
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import Array
from mpmmu_rt.verify import portable_head

CASES = 96
FORECASTS = int(os.environ.get("MPMMU_FORECASTS", "8"))  # of each size of noise
Head = Callable[[Array], Array]


@pytest.fixture(scope="module")
def embedding(bundle_folder: Path) -> Array:
    with load(bundle_folder) as predictor:
        pixels, _ = phantom_pixels(CASES, seed=77, preprocessing=predictor.bundle.preprocessing)
        return predictor.predict(pixels).embedding


@pytest.fixture(scope="module")
def says(bundle_folder: Path) -> Iterator[Head]:
    with load(bundle_folder) as predictor, portable_head(predictor) as found:
        assert found is not None
        yield found.probability


def same_leaf(leaves: Array) -> Array:
    """Which two cases share a leaf, in each tree: bool [trees, N, N]."""
    return np.asarray(leaves.T[:, :, None] == leaves.T[:, None, :])


def sklearn_leaves(estimator: Any, values: Array) -> Array:
    return np.asarray(estimator.apply(values))


def test_the_leaves_are_scikit_learns(bundle_folder: Path, small_model: Checkpoint, embedding: Array) -> None:
    found = read_forests(Bundle.open(bundle_folder)).leaves(embedding)
    learners = [step for step in small_model.head[-1].named_estimators_.values() if hasattr(step, "apply")]
    values = small_model.head[:-1].transform(embedding)
    wanted = np.concatenate([sklearn_leaves(learner, values) for learner in learners], 1)
    assert found.shape == wanted.shape == (CASES, 24)
    assert np.array_equal(same_leaf(found), same_leaf(wanted))


def test_nothing_nearer_than_the_nearest_threshold_changes_a_leaf(bundle_folder: Path, embedding: Array) -> None:
    forests = read_forests(Bundle.open(bundle_folder))
    leaves, nearest = forests.leaves(embedding), forests.distances(embedding)
    assert nearest.min() > 0
    for by in (0.99 * nearest.min(), -0.99 * nearest.min()):
        assert np.array_equal(forests.leaves(embedding + np.float32(by)), leaves)
    row, tree = np.unravel_index(np.argmin(nearest), nearest.shape)
    moved = [forests.leaves(embedding + np.float32(by)) for by in (1.01 * nearest.min(), -1.01 * nearest.min())]
    assert any(leaf[row, tree] != leaves[row, tree] for leaf in moved)


def sealed_with(head_graph: onnx.ModelProto, bundle_folder: Path, tmp_path: Path) -> Bundle:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))
    onnx.save(head_graph, folder / "onnx/head_onnxruntime.onnx")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    return Bundle.open(folder)


def test_trees_that_read_something_else_than_the_embedding(
    bundle_folder: Path, embedding: Array, tmp_path: Path
) -> None:
    label = np.arange(CASES) % 2
    fitted = make_pipeline(PCA(3), RandomForestClassifier(5, max_depth=3, random_state=0)).fit(embedding, label)
    bundle = sealed_with(head.lower(fitted, embedding.shape[1], "onnxruntime"), bundle_folder, tmp_path)
    with read_forests(bundle) as forests:
        assert "embedding" not in {forest.source for forest in forests.forests}
        leaves = forests.leaves(embedding)
    wanted = sklearn_leaves(fitted[-1], fitted[:-1].transform(embedding))
    agree = same_leaf(leaves) == same_leaf(wanted)
    assert agree.mean() > 0.999  # products in float32 move what lies on a threshold


def test_trees_that_compare_otherwise_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle_folder / "onnx/head_onnxruntime.onnx")
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "nodes_modes":
                attribute.strings[:] = [b"BRANCH_LT" if mode == b"BRANCH_GT" else mode for mode in attribute.strings]
    with pytest.raises(BundleError, match="trees that decide by BRANCH_LT, expected BRANCH_GT"):
        read_forests(sealed_with(model, bundle_folder, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [11, 7, 5])
def test_what_is_forecast_is_what_happens(bundle_folder: Path, embedding: Array, says: Head, bits: int) -> None:
    """Rounding to so many bits, drawn anew each time: 95 % intervals may miss some of the time, and no more.

    The error of a value is that of a mean over as many active values as make it up: it grows with the value's root.
    """
    forests = read_forests(Bundle.open(bundle_folder))
    missed, flips = {"flips": 0, "crossings": 0}, []
    for seed in range(FORECASTS):
        random = np.random.default_rng(seed)
        scale = 2.0**-bits * np.sqrt(np.abs(embedding) * np.abs(embedding).mean(0))
        new = embedding + scale * random.standard_normal(embedding.shape)
        found = forecast(says, forests, embedding, new.astype(np.float32), 0.4)
        assert found is not None
        assert found.crossings is not None
        flips.append((found.flips.expected, found.flips.happened))
        missed["flips"] += not found.flips.as_forecast
        missed["crossings"] += not found.crossings.as_forecast
    allowed = 1 + FORECASTS // 10  # of 10 with 5 % each, more than 2 miss once in 90
    assert max(missed.values()) <= allowed, missed
    expected, happened = np.mean(flips, 0)
    assert expected == pytest.approx(happened, rel=0.5, abs=0.5)
    assert happened > 0 or bits == 11


def test_errors_that_aim_at_the_threshold_are_not_as_forecast(
    bundle_folder: Path, embedding: Array, says: Head
) -> None:
    """An error that depends on the case is no rounding: those near the threshold become their neighbour beyond it."""
    wanted = says(embedding)
    rows = np.argsort(np.abs(wanted - 0.4))[:20]
    new = embedding.copy()
    for row in rows:
        others = np.flatnonzero((wanted >= 0.4) != (wanted[row] >= 0.4))
        new[row] = embedding[others[np.argmin(np.abs(embedding[others] - embedding[row]).sum(1))]]
    found = forecast(says, None, embedding, new, 0.4)
    assert found is not None
    assert found.flips.happened == 20
    assert not found.flips.as_forecast
    assert found.crossings is None


def test_without_an_error_nothing_is_expected(bundle_folder: Path, embedding: Array, says: Head) -> None:
    found = forecast(says, read_forests(Bundle.open(bundle_folder)), embedding, embedding.copy(), 0.4)
    assert found is not None
    assert (found.flips.expected, found.flips.happened, found.flips.low) == (0, 0, 0)
    assert found.flips.high <= 2  # nothing was seen: so much can't be ruled out
    json.dumps(found.to_json(), allow_nan=False)


def test_too_few_cases_tell_nothing(embedding: Array, says: Head) -> None:
    few = embedding[: 2 * LEAST - 1]
    assert forecast(says, None, few, few, 0.4) is None


def test_patients_stay_together(embedding: Array, says: Head) -> None:
    """All cases of one patient: nobody else's error is there to be lent."""
    assert forecast(says, None, embedding, embedding, 0.4, ["one"] * CASES) is None
    found = forecast(says, None, embedding, embedding, 0.4, [str(row // 4) for row in range(CASES)])
    assert found is not None


def test_cases_of_a_patient_that_flip_together_widen_the_interval(embedding: Array, says: Head) -> None:
    """The same cases four times over: four times the flips, in lumps of four."""
    random = np.random.default_rng(0)
    new = (embedding * (1 + 2.0**-6 * random.standard_normal(embedding.shape))).astype(np.float32)
    once = forecast(says, None, embedding, new, 0.4)
    names = [str(row) for row in range(CASES)]
    many = forecast(says, None, np.tile(embedding, (4, 1)), np.tile(new, (4, 1)), 0.4, names * 4)
    alone = forecast(says, None, np.tile(embedding, (4, 1)), np.tile(new, (4, 1)), 0.4)
    assert once is not None
    assert many is not None
    assert alone is not None
    assert many.flips.happened == 4 * once.flips.happened
    assert many.flips.high - many.flips.low > 1.5 * (alone.flips.high - alone.flips.low)
