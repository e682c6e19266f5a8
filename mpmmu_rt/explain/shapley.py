"""Shapley values: what each patch of both images adds to the probability, on average over the orders of uncovering.

Both images begin covered, as `occlusion` covers a window, and patch by patch is uncovered; a patch gets the change
that it makes, averaged over orders drawn at random (Castro et al. 2009, "Polynomial calculation of the Shapley value
based on sampling"; Strumbelj and Kononenko 2014, "Explaining prediction models and individual predictions with feature
contributions"). Each order is followed by its reverse, which lowers the variance (Mitchell et al. 2022, "Sampling
permutations for Shapley value estimation", antithetic sampling).

The changes of one order add up to the probability less that of two covered images, whatever the head: what integrated
gradients call completeness (Sundararajan et al. 2017, arXiv 1703.01365). Those need a gradient, and a stacking head
has none that tells anything: between two splits of its trees it is zero. Unlike `occlusion`, which covers one window of
an image that is otherwise whole, it sees evidence that stands in two places of which either is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .occlusion import BATCH, WINDOWS, Box

FEWEST_ORDERS = 4  # two pairs: of one there is no spread
Place = tuple[slice, slice]


@dataclass(frozen=True)
class Sampling:
    """How many orders, an even number from `FEWEST_ORDERS` on: half of them drawn by `seed`, and their reverses."""

    orders: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Shapley:
    """Of one case. maps: float32 [S, S] of each modality, at each pixel what its patch adds to the probability;
    positive speaks for malignant, 0 outside of the image. totals: of each image's patches. standard_error: of the
    patch where it is largest, by the spread of pairs of orders. totals_error: that of either total; as their sum is
    known, what one gains the other loses. covered: the probability of both images covered."""

    maps: Mapping[Modality, Array]
    totals: Mapping[Modality, float]
    standard_error: float
    totals_error: float
    covered: float
    sampling: Sampling


def patches(size: int, box: Box) -> list[Place]:
    """What tiles `box` of a square of `size`, each about as large as a window of `occlusion`."""
    rows, columns = (_edges(along.start, along.stop, size / WINDOWS) for along in box.slices)
    return [(slice(*y), slice(*x)) for y in pairwise(rows) for x in pairwise(columns)]


def _edges(start: int, stop: int, side: float) -> list[int]:
    """Of parts that are alike to a pixel and about `side` long."""
    parts = min(stop - start, max(1, round((stop - start) / side)))
    return [start + (stop - start) * part // parts for part in range(parts + 1)]


def sampled(
    ask: Callable[[Array], Array], players: int, sampling: Sampling, progress: Progress = silent
) -> tuple[Array, Array]:
    """What players add to a game, float64 [pairs, players], by each pair of an order and its reverse: the Shapley
    values are the mean over pairs. And the worth float64 [2] of nobody and of everybody.

    ask: the worth float [K] of coalitions bool [K, players], at most `BATCH` of them.
    """
    rng = np.random.default_rng(sampling.seed)
    drawn = [rng.permutation(players) for _ in range(sampling.orders // 2)]
    ends = ask(np.array([np.zeros(players, bool), np.ones(players, bool)])).astype(np.float64)
    pairs = np.zeros((len(drawn), players))
    for number, order in enumerate(drawn):
        for half, one in enumerate((order, order[::-1])):
            progress("uncovering both images", 2 * number + half, sampling.orders, "orders")
            # Row k: the first k + 1 of the order have joined; nobody and everybody are known.
            joined = np.tri(players, dtype=bool)[:-1]
            coalitions = np.zeros((players - 1, players), bool)
            coalitions[:, one] = joined
            worth = [ask(coalitions[start : start + BATCH]) for start in range(0, players - 1, BATCH)]
            steps = np.concatenate([ends[:1], *worth, ends[1:]]).astype(np.float64)
            pairs[number, one] += np.diff(steps) / 2
    progress("uncovering both images", sampling.orders, sampling.orders, "orders")
    return pairs, ends


def standard_error(pairs: Array) -> Array:
    """Of the mean over the first axis, float64 of the other axes."""
    error: Array = pairs.std(0, ddof=1) / np.sqrt(len(pairs))
    return error


def shapley(
    predictor: Predictor,
    pixels: Mapping[Modality, Array],
    boxes: Mapping[Modality, Box],
    sampling: Sampling,
    progress: Progress = silent,
) -> Shapley:
    """The Shapley values of the patches of both images: `sampled`, the probability being the worth.

    pixels: of one case, uint8 [1, 1, S, S] each. It asks as many cases as there
    are orders times patches, of which a square image has 49. Raises what `Predictor.predict` raises.
    """
    size = pixels[MODALITIES[0]].shape[-1]
    places = [(modality, place) for modality in MODALITIES for place in patches(size, boxes[modality])]
    covered: dict[Modality, Array] = {}
    for modality, array in pixels.items():
        covered[modality] = array.copy()
        inside = covered[modality][(0, 0, *boxes[modality].slices)]
        inside[:] = np.uint8(np.median(inside))

    def ask(coalitions: Array) -> Array:
        asked: dict[Modality, Array] = {name: np.repeat(one, len(coalitions), 0) for name, one in covered.items()}
        for row, coalition in enumerate(coalitions):
            for player in np.flatnonzero(coalition):
                modality, place = places[player]
                asked[modality][(row, 0, *place)] = pixels[modality][(0, 0, *place)]
        return predictor.predict(asked).probability

    pairs, ends = sampled(ask, len(places), sampling, progress)
    of_first = np.array([modality == MODALITIES[0] for modality, _ in places])
    maps: dict[Modality, Array] = {modality: np.zeros((size, size), np.float32) for modality in MODALITIES}
    totals = dict.fromkeys(MODALITIES, 0.0)
    for (modality, place), value in zip(places, pairs.mean(0), strict=True):
        maps[modality][place] = value
        totals[modality] += float(value)
    totals_error = float(standard_error(pairs[:, of_first].sum(1)))
    return Shapley(maps, totals, float(standard_error(pairs).max()), totals_error, float(ends[0]), sampling)
