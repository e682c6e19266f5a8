"""QuantileTransformer: each column to its quantile, or on to that of a normal distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import norm

from mpmmu_rt.spec import Array

from .families import PROMISE, TRANSFORMERS, dense, refuse
from .ir import Curve, Node, tails
from .preprocessing import exactly
from .thresholds import exact, single

_BOUND = 1e-7  # scikit-learn's BOUNDS_THRESHOLD: nearer to an end is the end


def _quantiles(transformer: Any, x: Node, path: str) -> Node:
    if transformer.output_distribution not in ("uniform", "normal"):
        refuse(transformer, path, f"with output_distribution={transformer.output_distribution!r}, expected uniform")
    normal = transformer.output_distribution == "normal"
    references = dense(transformer.references_)
    columns = [_pieces(column, references, normal) for column in dense(transformer.quantiles_).T]
    most = max(len(pieces) for pieces in columns)
    # Edges at infinity are never reached.
    padded = np.array([np.pad(pieces, ((0, most - len(pieces)), (0, 0)), mode="edge") for pieces in columns])
    for feature, pieces in enumerate(columns):
        padded[feature, len(pieces) :, 0] = np.inf
    clip = float(-norm.ppf(_BOUND - np.spacing(1))) if normal else 0.0
    edges, start, slope, base, rest = np.moveaxis(padded, 2, 0)
    found = Curve(x.width, x, tails(x), edges, start, slope, base, rest, exactly(transformer), clip)
    return replace(found, note=_steep(found, path))


def _steep(curve: Curve, path: str) -> str:
    """A note, if columns that are computed in float32 lie so close together that their rounding shows."""
    computed = [column for column in range(curve.width) if not _known(curve.x, column)]
    if not computed:
        return ""
    with np.errstate(invalid="ignore"):
        moved = float((np.abs(curve.start) * curve.slope)[computed].max()) * 2.0**-24
    if moved <= PROMISE:
        return ""
    return (
        f"{path}: the values that its quantiles are of lie so close together that their rounding in float32 may move a "
        f"quantile by {moved:.1g}; expect that of the probability too, or use a scaler"
    )


def _known(x: Node, column: int) -> bool:
    """Whether scikit-learn's very number, or one that follows from one column of the embedding."""
    return exact(x, column) or single(x, column)


def _pieces(quantiles: Array, references: Array, normal: bool) -> Array:
    """Rows (edge, start, slope, base, 1 - base) of one column.

    scikit-learn interpolates from both sides and takes the mean, so that a value that fills several quantiles is in
    the middle of them, alone. Beyond the quantiles, and of a uniform distribution at the outermost, it is 0 or 1.
    """
    values, first = np.unique(quantiles, return_index=True)
    last = np.r_[first[1:], len(quantiles)] - 1
    middle = (references[first] + references[last]) / 2
    if not normal:
        middle[-1], middle[0] = 1, 0  # of a single value: 0
    rows = [(-np.inf, 0.0, 0.0, 0.0, 1.0)]
    for j, value in enumerate(values):
        alone = first[j] < last[j] or middle[j] != references[first[j]]
        if alone or j == len(values) - 1:
            rows.append((value, value, 0.0, middle[j], 1 - middle[j]))
        begin = np.nextafter(value, np.inf) if alone else value
        if j == len(values) - 1:
            rows.append((np.nextafter(value, np.inf), value, 0.0, 1.0, 0.0))
            break
        at, to, end = references[last[j]], references[first[j + 1]], values[j + 1]
        slope = (to - at) / (end - value)
        rows.append((begin, value, slope, at, 1 - at))
        half = value + (end - value) / 2
        if j == len(values) - 2 and begin < half < end:  # counted from its end, where 1 - p is small
            rows.append((half, end, slope, to, 1 - to))
    return _ends(np.array(rows), values) if normal else np.array(rows)


def _ends(rows: Array, values: Array) -> Array:
    """Of a normal distribution, x - 1e-7 < lowest is 0, else x + 1e-7 > highest is 1, in the embedding's float32."""
    low = _first(lambda x: ~(x - np.float32(_BOUND) < values[0]), values[0])
    high = max(low, _first(lambda x: x + np.float32(_BOUND) > values[-1], values[-1]))
    inner = rows[1:]
    inner = inner[np.r_[inner[1:, 0] > low, True] & (inner[:, 0] < high)]
    inner[:1, 0] = np.maximum(inner[:1, 0], low)
    return np.concatenate([rows[:1], inner if low < high else inner[:0], [[high, high, 0.0, 1.0, 0.0]]])


def _first(holds: Any, near: float) -> float:
    """The first float32 around `near` for which a monotone condition holds."""
    low, high = np.float32(near - 4e-7 - abs(near) * 1e-6), np.float32(near + 4e-7 + abs(near) * 1e-6)
    while np.nextafter(low, high) < high:
        middle = np.float32((float(low) + float(high)) / 2)
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return float(high)


TRANSFORMERS.update(QuantileTransformer=_quantiles)
