"""Shapley values: exact where they are known, and what adds up to the probability of a deployed bundle."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt import load
from mpmmu_rt.explain.occlusion import BATCH, Box
from mpmmu_rt.explain.shapley import Sampling, patches, sampled, shapley, standard_error
from mpmmu_rt.spec import MODALITIES, Array, Modality

Game = Callable[[Array], Array]


def estimated(game: Game, players: int, sampling: Sampling) -> tuple[Array, Array, Array]:
    """Values, standard errors, and the worth of nobody and of everybody."""
    pairs, ends = sampled(game, players, sampling)
    return pairs.mean(0), standard_error(pairs), ends


def by_definition(game: Game, players: int) -> Array:
    """The mean over all orders."""
    found = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        joined = np.zeros((players + 1, players), bool)
        for step, one in enumerate(order):
            joined[step + 1 :, one] = True
        found[list(order)] += np.diff(game(joined))
    return found / len(orders)


def additive(coalitions: Array) -> Array:
    return 0.1 + coalitions @ np.linspace(-0.3, 0.4, coalitions.shape[1])


def either(coalitions: Array) -> Array:
    """Evidence in two places, either of which is enough."""
    worth: Array = (coalitions[:, 1] | coalitions[:, 3]).astype(np.float64)
    return worth


def steps(coalitions: Array) -> Array:
    """Flat almost everywhere, as trees are."""
    sums = coalitions @ np.arange(1.0, coalitions.shape[1] + 1)
    worth: Array = np.digitize(sums, [4, 9, 13]) / 3
    return worth


@pytest.mark.parametrize("players", [1, 2, 33, 70])
def test_what_adds_up_is_found_exactly_in_any_order(players: int) -> None:
    def ask(coalitions: Array) -> Array:
        assert len(coalitions) <= BATCH
        return additive(coalitions)

    values, errors, ends = estimated(ask, players, Sampling(4, seed=5))
    np.testing.assert_allclose(values, np.linspace(-0.3, 0.4, players), atol=1e-12)
    np.testing.assert_allclose(errors, 0, atol=1e-12)
    assert ends[0] == pytest.approx(0.1)


@pytest.mark.parametrize("game", [additive, either, steps])
def test_samples_come_to_the_definition_within_their_standard_error(game: Game) -> None:
    want = by_definition(game, 6)
    values, errors, ends = estimated(game, 6, Sampling(2000, seed=1))
    assert np.abs(values - want).max() <= 4 * errors.max() + 1e-12
    assert errors.max() < 0.02
    few, wider, _ = estimated(game, 6, Sampling(4, seed=1))
    assert few.sum() == pytest.approx(ends[1] - ends[0], abs=1e-12), "complete for any number of orders"
    if game is steps:
        assert wider.max() > errors.max()


def test_either_of_two_places_is_seen() -> None:
    """Covering one of them alone changes nothing, which is what occlusion asks."""
    everybody = np.ones((1, 6), bool)
    without = everybody.copy()
    without[0, 1] = False
    assert either(everybody)[0] == either(without)[0]
    values, _, _ = estimated(either, 6, Sampling(8, seed=2))
    np.testing.assert_allclose(values, [0, 0.5, 0, 0.5, 0, 0], atol=1e-12)  # an order and its reverse share it


def test_orders_are_those_of_the_seed() -> None:
    first, again, other = (estimated(steps, 9, Sampling(4, seed=seed))[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [1, 2, 5, 13, 48, 64, 224])
def test_patches_tile_the_image(size: int) -> None:
    box = Box(size // 4, 0, size - size // 4 - size // 5, size)
    covered = np.zeros((size, size), int)
    for place in patches(size, box):
        covered[place] += 1
    inside = np.zeros((size, size), int)
    inside[box.slices] = 1
    assert np.array_equal(covered, inside)
    areas = [(y.stop - y.start) * (x.stop - x.start) for y, x in patches(size, Box(0, 0, size, size))]
    assert len(areas) == min(7, size) ** 2
    assert min(areas) >= max(areas) / 4, "no slivers"


def coarse(size: int, seed: int) -> dict[Modality, Array]:
    rng = np.random.default_rng(seed)
    return {
        modality: np.kron(rng.integers(0, 256, (1, 1, 6, 6)), np.ones((8, 8)))[:, :, :size, :size].astype(np.uint8)
        for modality in MODALITIES
    }


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_all_patches_add_up_to_the_probability(bundle_folder: Path, target: str) -> None:
    pytest.importorskip(target.partition(":")[0], reason="the engine is not installed")
    boxes: dict[Modality, Box] = {"mammography": Box(6, 0, 30, 48), "ultrasound": Box(0, 0, 48, 48)}
    with load(bundle_folder, target) as predictor:
        pixels = coarse(predictor.bundle.preprocessing.size, 3)
        found = shapley(predictor, pixels, boxes, Sampling(4))
        blank = {modality: array.copy() for modality, array in pixels.items()}
        for modality, box in boxes.items():
            blank[modality][0, 0][box.slices] = np.uint8(np.median(blank[modality][0, 0][box.slices]))
        want = [float(predictor.predict(one).probability[0]) for one in (blank, pixels)]
    assert found.covered == pytest.approx(want[0], abs=2e-6)
    assert sum(found.totals.values()) == pytest.approx(want[1] - want[0], abs=4e-6)
    assert found.standard_error > 0
    assert found.totals_error > 0
    for modality, box in boxes.items():
        places = patches(48, box)
        of_patches = [found.maps[modality][place].ravel() for place in places]
        assert all((one == one[0]).all() for one in of_patches)
        assert sum(float(one[0]) for one in of_patches) == pytest.approx(found.totals[modality], abs=1e-6)
    assert (found.maps["mammography"][:6] == 0).all(), "padding is no part of the image"
    assert found.maps["mammography"].std() > 0
