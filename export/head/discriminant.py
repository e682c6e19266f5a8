"""Gaussian classes: linear and quadratic discriminant analysis, and naive Bayes. By Bayes' rule p = σ(d), with d the
difference of the log posteriors; a tie is class 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import (
    DECISIONS,
    LABELS,
    PROBABILITIES,
    TRANSFORMERS,
    Translate,
    column,
    computed_note,
    dense,
    refuse,
    require_finite,
    single,
)
from .ir import Above, Elementwise, Node, Product, Square, concat
from .thresholds import exact

_FAR = 1e6  # deviations: a float32 number keeps no more than a tenth of one


def _linear(activation: str) -> Translate:
    def translate(analysis: Any, x: Node, path: str) -> Node:
        weight, bias = column(analysis.coef_)[:, None], column(analysis.intercept_)
        require_finite(analysis, path, weight, bias)
        # Around the mean, which keeps the digits of an embedding far from zero.
        centre = column(np.asarray(analysis.priors_, np.float64) @ dense(analysis.means_))
        size = float(np.abs(centre) @ np.abs(weight[:, 0]) + np.abs(bias[0]))
        note = single(analysis.coef_, size, path) or computed_note(x, centre * weight[:, 0], path)
        return Product(1, x, weight, bias + centre @ weight, activation, centre, note)

    return translate


def _projection(analysis: Any, x: Node, path: str) -> Node:
    if analysis.solver == "lsqr":
        refuse(analysis, path, "with solver='lsqr', which has no transform, expected svd or eigen", hint="solver='svd'")
    weight = dense(analysis.scalings_)[:, : analysis._max_components]
    centre = column(analysis.xbar_) if analysis.solver == "svd" else None
    return Product(weight.shape[1], x, weight, np.zeros(weight.shape[1]), centre=centre)


def _quadratic(analysis: Any, x: Node, path: str) -> tuple[Node, Array, Array]:
    """Squares of the whitened differences from both means, their weights, and the rest of the decision."""
    parts, weights, rest = [], [], np.zeros(1)
    for label, sign in ((1, 1.0), (0, -1.0)):
        scale = column(analysis.scalings_[label])
        with np.errstate(divide="ignore"):
            weight = dense(analysis.rotations_[label]) * scale**-0.5
            rest = rest + sign * (np.log(analysis.priors_[label]) - 0.5 * np.log(scale).sum())
        width = weight.shape[1]
        require_finite(analysis, path, weight, rest)
        parts.append(Product(width, x, weight, np.zeros(width), centre=column(analysis.means_[label])))
        weights.append(np.full(width, -0.5 * sign))
    joined = concat(*parts)
    return Square(joined.width, joined), np.concatenate(weights)[:, None], rest


def _naive(bayes: Any, x: Node, path: str) -> tuple[Node, Array, Array]:
    """d = Σ a t² + b t + c of t, each feature's distance from the middle of both means in units of its deviations."""
    mean, var, prior = dense(bayes.theta_), dense(bayes.var_), column(bayes.class_prior_)
    middle, half = (mean[0] + mean[1]) / 2, (mean[1] - mean[0]) / 2
    unit = np.sqrt(np.minimum(var[0], var[1]))
    with np.errstate(divide="ignore"):
        first, second = unit**2 / var[1], unit**2 / var[0]
        shift = half / unit
        square = -0.5 * (first - second)
        slope = shift * (first + second)
        rest = np.log(prior[1]) - np.log(prior[0]) - 0.5 * (np.log(var[1]) - np.log(var[0])).sum()
        rest = rest - 0.5 * (shift**2 * (first - second)).sum()
    require_finite(bayes, path, square, slope, rest)
    _require_spread(bayes, x, np.abs(middle) / unit, path)
    t = Elementwise(x.width, x, middle, 1 / unit, lambda matrix: (matrix - middle) / unit)
    return concat(Square(x.width, t), t), np.concatenate([square, slope])[:, None], np.array([rest])


def _require_spread(bayes: Any, x: Node, deviations: Array, path: str) -> None:
    """Computed features are float32 numbers, in scikit-learn too: their distance from a mean is no more precise."""
    computed = np.array([not exact(x, feature) for feature in range(x.width)])
    worst = int(np.where(computed, deviations, 0).argmax())
    if computed[worst] and deviations[worst] > _FAR:
        refuse(
            bayes,
            path,
            f"whose feature {worst} is {deviations[worst]:.1g} of its standard deviations from zero, expected at most "
            f"{_FAR:.0e} of one that is computed in float32",
            hint="leave constant columns out (VarianceThreshold), or fit it with a larger var_smoothing",
        )


def _naive_note(bayes: Any, x: Node, path: str) -> str:
    """Of the log likelihoods of its own means, and one deviation from them."""
    mean, var = dense(bayes.theta_), dense(bayes.var_)
    slopes = np.abs(np.diff(mean / var, axis=0)) + np.abs(np.diff(1 / np.sqrt(var), axis=0))
    note = single(bayes.theta_, float(np.abs(0.5 * (np.log(2 * np.pi * var) + 1)).sum()), path)
    return note or computed_note(x, slopes * np.abs(mean).max(axis=0), path)


def _product(parts: Callable[[Any, Node, str], tuple[Node, Array, Array]], activation: str) -> Translate:
    def translate(classifier: Any, x: Node, path: str) -> Node:
        terms, weight, rest = parts(classifier, x, path)
        note = _naive_note(classifier, x, path) if parts is _naive else ""
        return Product(1, terms, weight, rest, activation, note=note)

    return translate


def _naive_label(bayes: Any, x: Node, path: str) -> Node:
    return Above(1, _product(_naive, "identity")(bayes, x, path), 0.0)


DECISIONS.update(
    LinearDiscriminantAnalysis=_linear("identity"),
    QuadraticDiscriminantAnalysis=_product(_quadratic, "identity"),
)
PROBABILITIES.update(
    LinearDiscriminantAnalysis=_linear("logistic"),
    QuadraticDiscriminantAnalysis=_product(_quadratic, "logistic"),
    GaussianNB=_product(_naive, "logistic"),
)
LABELS.update(GaussianNB=_naive_label)
TRANSFORMERS.update(LinearDiscriminantAnalysis=_projection)
