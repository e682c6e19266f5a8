"""Scalers, imputers, projections and their compositions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import TRANSFORMERS, column, dense, refuse, stacked_double, transform
from .ir import Elementwise, Node, Normalise, Product, concat, select, tails


def exactly(scaler: Any) -> Callable[[Array], Array]:
    """What the scaler itself computes, for `Elementwise.exact`; whatever container it was told to answer in."""

    def transform(matrix: Array) -> Array:
        with warnings.catch_warnings():
            # A scaler that was fitted on a data frame misses the columns' names.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            return np.asarray(scaler.transform(matrix.copy()))  # with copy=False it works in place

    return transform


def _subtracted(scaler: Any, centre: Any) -> Array:
    """The offset that the scaler really subtracts: newer releases round it to the embedding's float32, and far from
    zero that shows. The column of a float32 that it maps to zero has that for its offset."""
    centre = column(centre)
    rounded = centre.astype(np.float32)
    offset: Array = np.where(exactly(scaler)(rounded[None])[0] == 0, rounded, centre)
    return offset


def _inverse(scale: Any) -> Array:
    with np.errstate(divide="ignore"):
        inverse: Array = 1 / column(scale)
    return inverse


def _require_rising(scaler: Any, path: str, offset: Array, scale: Array) -> None:
    """One that was fitted on a column without numbers has NaN for its mean; trees are folded through rising ones."""
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale >= 0).all()):
        refuse(
            scaler,
            path,
            "that shifts or scales a column by what is no number, or turns it round, expected finite numbers and a "
            "scale above 0",
            hint="fit it again, on columns that hold numbers",
        )


def _standard(scaler: Any, x: Node, path: str) -> Node:
    offset = _subtracted(scaler, scaler.mean_) if scaler.with_mean else np.zeros(x.width)
    scale = _inverse(scaler.scale_) if scaler.with_std else np.ones(x.width)
    _require_rising(scaler, path, offset, scale)
    return Elementwise(x.width, x, offset, scale, exactly(scaler), divides=True)


def _min_max(scaler: Any, x: Node, path: str) -> Node:
    scale = column(scaler.scale_)
    low, high = scaler.feature_range
    # scikit-learn: x · scale + (low - data_min · scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = -column(scaler.min_) / scale
    _require_rising(scaler, path, offset, scale)
    bounds = (float(low), float(high)) if scaler.clip else (-np.inf, np.inf)
    return Elementwise(x.width, x, offset, scale, exactly(scaler), *bounds)


def _robust(scaler: Any, x: Node, path: str) -> Node:
    offset = _subtracted(scaler, scaler.center_) if scaler.with_centering else np.zeros(x.width)
    scale = _inverse(scaler.scale_) if scaler.with_scaling else np.ones(x.width)
    _require_rising(scaler, path, offset, scale)
    return Elementwise(x.width, x, offset, scale, exactly(scaler), divides=True)


def _max_abs(scaler: Any, x: Node, path: str) -> Node:
    bounds = (-1.0, 1.0) if getattr(scaler, "clip", False) else (-np.inf, np.inf)
    offset, scale = np.zeros(x.width), _inverse(scaler.scale_)
    _require_rising(scaler, path, offset, scale)
    return Elementwise(x.width, x, offset, scale, exactly(scaler), *bounds, divides=True)


def _normalizer(normalizer: Any, x: Node, path: str) -> Node:
    return Normalise(x.width, tails(x), normalizer.norm, stacked_double(x))


def _imputer(imputer: Any, x: Node, path: str) -> Node:
    """An embedding that holds NaN is refused at the border, so an imputer of NaN only drops its empty columns."""
    if not (isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)):
        refuse(imputer, path, f"of missing_values={imputer.missing_values!r}, expected NaN")
    if imputer.add_indicator:
        refuse(imputer, path, "with add_indicator, expected none: an embedding has no missing values")
    if imputer.keep_empty_features:
        empty = np.isnan(np.asarray(imputer.statistics_, np.float64))
        if empty.any():
            refuse(imputer, path, "that keeps empty features, expected keep_empty_features=False")
        return x
    return select(x, np.flatnonzero(~np.isnan(np.asarray(imputer.statistics_, np.float64))))


def _pca(pca: Any, x: Node, path: str) -> Node:
    weight = np.asarray(pca.components_, np.float64).T
    if pca.whiten:
        scale = np.sqrt(np.asarray(pca.explained_variance_))  # in its own dtype, whose rounding unit bounds it
        weight = weight / column(np.maximum(scale, np.finfo(scale.dtype).eps))
    return Product(weight.shape[1], x, weight, np.zeros(weight.shape[1]), centre=column(pca.mean_))


def _truncated(svd: Any, x: Node, path: str) -> Node:
    weight = dense(svd.components_).T
    return Product(weight.shape[1], x, weight, np.zeros(weight.shape[1]))


def _function(transformer: Any, x: Node, path: str) -> Node:
    if transformer.func is not None:
        refuse(transformer, path, "with a function of its own, expected the identity")
    return x


def _pipeline(pipeline: Any, x: Node, path: str) -> Node:
    for name, step in pipeline.steps:
        x = transform(step, x, f"{path}.{name}")
    return x


def _union(union: Any, x: Node, path: str) -> Node:
    if union.transformer_weights:
        refuse(union, path, "with transformer_weights, expected none")
    parts = [
        transform(step, x, f"{path}.{name}")
        for name, step in union.transformer_list
        if not (isinstance(step, str) and step == "drop")
    ]
    parts = [part for part in parts if part.width]
    if not parts:
        refuse(union, path, "that selects no column")
    return concat(*parts)


def _columns(transformer: Any, x: Node, path: str) -> Node:
    if transformer.transformer_weights:
        refuse(transformer, path, "with transformer_weights, expected none")
    parts = []
    for name, step, columns in transformer.transformers_:
        if isinstance(step, str) and step == "drop":
            continue
        chosen = _indices(transformer, columns, x.width, path)
        if not chosen.size:  # scikit-learn neither fits it nor asks it
            continue
        part = transform(step, select(x, chosen), f"{path}.{name}")
        if part.width:
            parts.append(part)
    if not parts:
        refuse(transformer, path, "that selects no column")
    return concat(*parts)


def _indices(transformer: Any, columns: Any, width: int, path: str) -> Array:
    if isinstance(columns, slice):
        if not all(end is None or isinstance(end, int | np.integer) for end in (columns.start, columns.stop)):
            refuse(transformer, path, f"with columns {columns!r}, expected positions")
        return np.arange(width)[columns]
    chosen = np.atleast_1d(np.asarray(columns))
    if chosen.size == 0:
        return np.zeros(0, np.int64)
    if chosen.dtype == bool:
        return np.flatnonzero(chosen)
    if chosen.dtype.kind not in "iu":
        refuse(transformer, path, f"with columns {columns!r}, expected positions")
    positions: Array = np.arange(width)[chosen]
    return positions


TRANSFORMERS.update(
    StandardScaler=_standard,
    MinMaxScaler=_min_max,
    RobustScaler=_robust,
    MaxAbsScaler=_max_abs,
    Normalizer=_normalizer,
    SimpleImputer=_imputer,
    PCA=_pca,
    IncrementalPCA=_pca,
    TruncatedSVD=_truncated,
    FunctionTransformer=_function,
    Pipeline=_pipeline,
    FeatureUnion=_union,
    ColumnTransformer=_columns,
)
