"""Support vector machines with a linear, rbf, polynomial or sigmoid kernel, and libsvm's own Platt scaling.

libsvm's probability is not Platt's: it couples the two classes as it would more (Wu, Lin, Weng 2004, its function
multiclass_probability), by iteration from one half, and stops early, up to 0.005 away. `SVC.predict_proba` is that,
with its steps (a plateau of exactly 0.5 among them), so `Coupling` repeats the iteration; two classes need at most two
rounds. CalibratedClassifierCV has none of this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mpmmu_rt.spec import Array

from .families import DECISIONS, LABELS, PROBABILITIES, column, dense, platt_note, refuse
from .ir import Above, Clip, Coupling, Kernel, Node, Product, sigmoid

_ASKED = 512  # vectors of which decisions are compared
_ALIKE = 1 / 16  # of the sum of absolute terms: what decisions differ by, where a few of float32's digits are gone
_BENT = 0.9  # a hyperbolic tangent beyond this has lost digits by itself
_NEAR = 1e-34  # the kernel of the centre with each vector: its inverse is the largest number that may occur
_LIBSVM_MINIMUM = 1e-7  # libsvm's svm_predict_probability keeps probabilities away from 0 and 1 by this


def _decision(svc: Any, x: Node, path: str) -> Node:
    if svc.kernel not in ("linear", "rbf", "poly", "sigmoid"):
        refuse(svc, path, f"with the kernel {svc.kernel!r}, expected linear, rbf, poly or sigmoid")
    order = _interleaved(column(svc.dual_coef_))
    vectors = dense(svc.support_vectors_)[order]
    dual = column(svc.dual_coef_)[order, None]
    bias = column(svc.intercept_)
    if svc.kernel == "linear":
        return Product(1, x, vectors.T @ dual, bias)
    gamma, constant = float(svc._gamma), float(svc.coef0)
    if svc.kernel == "poly" and svc.degree == 1:
        return Product(1, x, gamma * (vectors.T @ dual), bias + constant * dual.sum())
    kernel = Kernel(len(vectors), x, vectors, svc.kernel, gamma, constant, int(svc.degree))
    if not _alike(kernel, dual):
        return Product(1, kernel, dual, bias)
    centre = np.median(vectors, axis=0)
    return Product(1, replace(kernel, centre=centre), dual, bias + (kernel.exact(centre[None]) @ dual)[0])


def _alike(kernel: Kernel, dual: Array) -> bool:
    """Whether the kernel is next to the same for all vectors, so that their decisions are small differences of large
    sums: see `emit_kernels`."""
    middle = kernel.exact(np.median(kernel.vectors, axis=0)[None])
    if (kernel.kind == "rbf" and middle.min() < _NEAR) or (kernel.kind == "sigmoid" and np.abs(middle).max() > _BENT):
        return False
    terms = kernel.exact(_few(kernel)) * dual[:, 0]
    return bool(np.ptp(terms.sum(axis=1)) < _ALIKE * np.abs(terms).sum(axis=1).max())


def _few(kernel: Kernel) -> Array:
    return kernel.vectors[:: len(kernel.vectors) // _ASKED + 1]


def lost(decision: Node) -> float:
    """What float32 may be off by in a decision, by the terms that those of its own support vectors are summed from; 0
    of what is no sum of kernels."""
    if not (isinstance(decision, Product) and isinstance(decision.x, Kernel)):
        return 0.0
    kernel = decision.x
    terms = kernel.exact(_few(kernel))
    if kernel.centre is not None:
        terms = terms - kernel.exact(kernel.centre[None])
    return 2.0**-23 * float(np.linalg.norm(terms * decision.weight[:, 0], axis=1).max())


def _interleaved(dual: Array) -> Array:
    """An order in which both signs take turns. libsvm lists one class after the other, so that a float32 sum first
    climbs to half of Σ|α| and then cancels (`benchmarks/NOTES.md`)."""
    sides = [np.flatnonzero(dual < 0), np.flatnonzero(dual >= 0)]
    rank = np.concatenate([(np.arange(len(side)) + 0.5) / max(1, len(side)) for side in sides])
    interleaved: Array = np.concatenate(sides)[np.argsort(rank, kind="stable")]
    return interleaved


def platt(svc: Any) -> tuple[float, float] | None:
    """(a, b) of p = σ(a · decision + b), or None if the SVC was fitted without probabilities."""
    slope, offset = np.ravel(svc._probA), np.ravel(svc._probB)
    # libsvm: P(class 0) = 1 / (1 + exp(A f + B)) of its own decision f, which is scikit-learn's with the sign turned.
    return (-float(slope[0]), float(offset[0])) if slope.size else None


def _probability(svc: Any, x: Node, path: str) -> Node:
    found = platt(svc)
    if found is None:
        refuse(svc, path, "without probabilities, expected it inside CalibratedClassifierCV")
    slope, offset = found
    raw = _decision(svc, x, path)
    scaled = sigmoid(raw, slope, offset, platt_note(slope, lost(raw), path))
    return Coupling(1, Clip(1, scaled, _LIBSVM_MINIMUM, 1 - _LIBSVM_MINIMUM))


def _label(svc: Any, x: Node, path: str) -> Node:
    """libsvm votes for class 0 where its own decision, scikit-learn's with the sign turned, is positive: a tie is 1."""
    return Above(1, _decision(svc, x, path), 0.0, inclusive=True)


LABELS.update(SVC=_label)
DECISIONS.update(SVC=_decision)
PROBABILITIES.update(SVC=_probability)
