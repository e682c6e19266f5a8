"""HistGradientBoostingClassifier, which compares in float64, with categories."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from . import thresholds
from .families import DECISIONS, PROBABILITIES, column, refuse
from .forest import join
from .ir import Forest, Node, Product, Trees, Within, concat, select


def _raw(boosting: Any, x: Node, path: str) -> Node:
    categorical = getattr(boosting, "is_categorical_", None)
    categories: list[Array] = []
    if categorical is not None and np.any(categorical):
        # Its own encoder puts the categorical columns first.
        order = np.r_[np.flatnonzero(categorical), np.flatnonzero(~np.asarray(categorical))]
        x = select(x, order)
        categories = [column(one) for one in boosting._preprocessor.named_transformers_["encoder"].categories_]
        if not _known(x, len(categories)):
            refuse(
                boosting,
                path,
                "whose categories are computed from the embedding, expected columns of it, or scaled ones: "
                "a category is one exact number",
                hint="give it the categorical columns unchanged, by a ColumnTransformer",
            )
    parts: list[Trees] = []
    sets: list[tuple[int, Array]] = []
    known = boosting._bin_mapper.make_known_categories_bitsets() if categories else None
    for (predictor,) in boosting._predictors:
        trees, found = _tree(predictor, [len(one) for one in categories], known, x.width + len(sets))
        parts.append(trees)
        sets.extend(found)
    if sets:
        x = concat(x, _members(x, categories, sets))
    return Forest(1, x, join(parts), float(np.ravel(boosting._baseline_prediction)[0]), double=True)


def _known(x: Node, count: int) -> bool:
    """Whether the first columns are scikit-learn's very numbers, or follow from one column of the embedding each."""
    return all(thresholds.exact(x, one) or thresholds.route(x, one) is not None for one in range(count))


def _tree(predictor: Any, counts: list[int], known: Any, first: int) -> tuple[Trees, list[tuple[int, Array]]]:
    """A tree's arrays, and for each of its categorical splits the feature and the codes of a set: features from
    `first` on say whether a case is in it. What is in no bitset goes where missing values go."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes))
    trees = Trees(
        feature=np.where(leaf, -1, nodes["feature_idx"].astype(np.int64)),
        threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
        left=np.where(leaf, own, nodes["left"].astype(np.int64)),
        right=np.where(leaf, own, nodes["right"].astype(np.int64)),
        value=np.where(leaf, nodes["value"], 0.0),
        roots=np.zeros(1, np.int64),
    )
    sets: list[tuple[int, Array]] = []
    for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf) if counts else ():
        feature = int(nodes["feature_idx"][node])
        codes = np.arange(counts[feature])
        goes_left = _in_bitset(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]], codes)
        bitsets, rows = known
        seen = _in_bitset(bitsets[rows[feature]], codes)
        trees.feature[node], trees.threshold[node] = first + len(sets), 0.5
        if nodes["missing_go_to_left"][node]:
            sets.append((feature, codes[seen & ~goes_left]))
        else:  # those in the set go left: to the right of a half
            sets.append((feature, codes[goes_left]))
            trees.left[node], trees.right[node] = trees.right[node], trees.left[node]
    return trees, sets


def _in_bitset(bitset: Array, codes: Array) -> Array:
    words = np.asarray(bitset, np.uint64)[codes // 32]
    found: Array = (words >> (codes % 32).astype(np.uint64)) & np.uint64(1) == 1
    return found


def _members(x: Node, categories: list[Array], sets: list[tuple[int, Array]]) -> Node:
    """A column for each set: 1 for cases whose category is in it."""
    owner = np.repeat(np.arange(len(categories)), [len(one) for one in categories])
    starts = np.cumsum([0, *(len(one) for one in categories)])[:-1]
    values = np.concatenate(categories)
    one_of = Within(len(owner), x, owner, values, np.nextafter(values, np.inf))
    weight = np.zeros((len(owner), len(sets)))
    for number, (feature, codes) in enumerate(sets):
        weight[starts[feature] + codes, number] = 1
    return Product(len(sets), one_of, weight, np.zeros(len(sets)))


def _probability(boosting: Any, x: Node, path: str) -> Node:
    return Product(1, _raw(boosting, x, path), np.ones((1, 1)), np.zeros(1), "logistic")


PROBABILITIES.update(HistGradientBoostingClassifier=_probability)
DECISIONS.update(HistGradientBoostingClassifier=_raw)
