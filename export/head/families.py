"""From fitted scikit-learn estimators to the intermediate form: the dispatcher and what families share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.spec import Array

from .ir import Above, Concat, Curve, Elementwise, Node, Normalise, Product, Select, YeoJohnson, inputs, walk

Translate = Callable[[Any, Node, str], Node]

# Class name → translation; filled by the family modules, read through the functions below. Names and not classes,
# so that a scikit-learn that lacks one of them does no harm; subclasses are not accepted: they may compute anything.
TRANSFORMERS: dict[str, Translate] = {}
PROBABILITIES: dict[str, Translate] = {}  # predict_proba's column of class 1, [N, 1]
DECISIONS: dict[str, Translate] = {}  # decision_function, [N, 1]
LABELS: dict[str, Translate] = {}  # predict, of those that neither rule of `label` fits
# What reaches the final estimator of a stack, and that stack.
STACKED: WeakKeyDictionary[Node, Any] = WeakKeyDictionary()
# What holds another estimator and answers as it does, to that one and its path; unless a table above knows better.
HOLDERS: dict[str, Callable[[Any, str], tuple[Any, str]]] = {}
REFUSED: set[str] = set()  # those in `PROBABILITIES` that only say why not
_PACKAGES = ("sklearn", "xgboost", "lightgbm")

PROMISE = 1e-5  # in probability: what float32 arithmetic may be off by, see the package

# Above a half by more than float32 sums of votes err: a tie is class 0 in scikit-learn.
_TIE = 0.5 + 2.0**-20


def transform(estimator: Any, x: Node, path: str) -> Node:
    """What a fitted transformer makes of `x`."""
    if estimator is None or (isinstance(estimator, str) and estimator == "passthrough"):
        return x
    return _translated(TRANSFORMERS, estimator, x, path, "transformer")


def probability(estimator: Any, x: Node, path: str) -> Node:
    """The probability of class 1, [N, 1]."""
    return _translated(PROBABILITIES, estimator, x, path, "classifier with predict_proba")


def decision(estimator: Any, x: Node, path: str) -> Node:
    """decision_function, [N, 1]; positive means class 1."""
    return _translated(DECISIONS, estimator, x, path, "classifier with decision_function")


def label(estimator: Any, x: Node, path: str) -> Node:
    """predict, as 0.0 or 1.0, [N, 1]: by the sign of the decision where scikit-learn predicts by it, else by the
    larger probability. A tie is class 0, but for those in `LABELS`."""
    estimator, path = unwrap(estimator, path, LABELS)
    kind = type(estimator).__name__
    if kind in LABELS:
        return _translated(LABELS, estimator, x, path, "classifier")
    if kind in DECISIONS:
        return Above(1, decision(estimator, x, path), 0.0)
    return label_by_probability(estimator, x, path)


def label_by_probability(estimator: Any, x: Node, path: str) -> Node:
    return Above(1, probability(estimator, x, path), _TIE)


def respond(estimator: Any, x: Node, path: str, method: str) -> Node:
    """What a stacking or calibrating estimator takes from a learner: `method` is a scikit-learn method's name."""
    return {"predict_proba": probability, "decision_function": decision, "predict": label}[method](estimator, x, path)


def unwrap(estimator: Any, path: str, table: Mapping[str, object] | None = None) -> tuple[Any, str]:
    """What a holder holds, however deep, and its path; one that is in `table` as it is."""
    while ours(estimator) and (kind := type(estimator).__name__) in HOLDERS and kind not in (table or {}):
        estimator, path = HOLDERS[kind](estimator, path)
    return estimator, path


def ours(estimator: Any) -> bool:
    """Whether a class is of scikit-learn or of a library whose classifiers are read here."""
    return type(estimator).__module__.split(".")[0] in _PACKAGES


def refuse(estimator: Any, path: str, reason: str, hint: str = "") -> NoReturn:
    """Raise `UnsupportedEstimator`: what `path` is and what was expected; the hint is what is supported, if empty."""
    raise UnsupportedEstimator(f"{path} is a {type(estimator).__name__} {reason}", hint=hint or _supported())


def _translated(table: dict[str, Translate], estimator: Any, x: Node, path: str, role: str) -> Node:
    estimator, path = unwrap(estimator, path, table)
    return require(table, estimator, x, path, role)(estimator, x, path)


def require(table: dict[str, Translate], estimator: Any, x: Node, path: str, role: str) -> Translate:
    """The translation of `estimator`, if it is a library's own, fitted, binary, and of `x`'s width."""
    found = table.get(type(estimator).__name__)
    if found is None or not ours(estimator):
        raise UnsupportedEstimator(
            f"{path} is a {type(estimator).__module__}.{type(estimator).__qualname__}, expected a supported {role}",
            hint=_supported(),
        )
    _require_fitted(estimator, path, role.split()[0])
    if table is not TRANSFORMERS:
        _require_binary(estimator, path)
    width = getattr(estimator, "n_features_in_", x.width)
    if width != x.width:
        refuse(estimator, path, f"fitted on {width} features, expected the {x.width} that reach it")
    return found


def _supported() -> str:
    known = {*PROBABILITIES, *DECISIONS, *TRANSFORMERS, *HOLDERS} - REFUSED
    return "supported: " + ", ".join(sorted(known))


def _require_fitted(estimator: Any, path: str, role: str) -> None:
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise UnsupportedEstimator(
            f"{path} is a {type(estimator).__name__} that is not fitted, expected a fitted {role}",
            hint="fit it on labels 0 and 1",
        ) from error


def _require_binary(estimator: Any, path: str) -> None:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        refuse(estimator, path, "without classes, expected a classifier fitted on labels 0 and 1")
    if isinstance(classes, list):
        refuse(estimator, path, f"of {len(classes)} outputs, expected one")
    if np.asarray(classes).tolist() != [0, 1]:
        raise UnsupportedEstimator(
            f"{path} is a {type(estimator).__name__} of the classes {np.asarray(classes).tolist()}, "
            "expected 0 (benign) and 1 (malignant)",
            hint="fit it on labels 0 and 1, both present",
        )


def require_finite(estimator: Any, path: str, *arrays: Array) -> None:
    """Refuse fitted numbers that are infinite or NaN: a prior of 0, a fit that diverged."""
    if not all(np.isfinite(array).all() for array in arrays):
        refuse(
            estimator,
            path,
            "with fitted numbers that are infinite or NaN, expected finite ones",
            hint="fit it again: scale the features, and give every class a prior above 0",
        )


def single(fitted: Any, size: float, path: str) -> str:
    """A note, if scikit-learn adds terms of this size in float32, as it does for what was fitted on float32: then its
    own answer is off by more than this package's, and the two may differ by that."""
    own = size * 2.0**-24 / 4  # σ's slope
    if np.asarray(fitted).dtype != np.float32 or own <= PROMISE:
        return ""
    return (
        f"{path}: fitted on float32, so that scikit-learn's own probability may be off by {own:.1g}, and differ from "
        "the exported one by as much; fit it on float64, or behind a StandardScaler"
    )


def computed_note(x: Node, terms: Array, path: str) -> str:
    """A note on a logit of these terms, each a feature's distance from zero times its weight, where features of `x` are
    computed in float32: the last bit of each is then another one than in scikit-learn."""
    computed = (Curve, Normalise, Product, YeoJohnson)
    own = float(np.linalg.norm(terms)) * 2.0**-24 / 4  # σ's slope
    if own <= PROMISE or not any(isinstance(node, computed) for node in walk(x)):
        return ""
    return (
        f"{path}: its features are computed in float32, in scikit-learn too, and differ so little for their size that "
        f"its probability may be off by {own:.1g} in both; centre them before, with a StandardScaler"
    )


def stacked_double(x: Node) -> bool:
    """Whether scikit-learn has `x` in float64, as it has what most learners say; not what those do that were fitted on
    float32. An embedding and what is scaled of it is float32."""
    if (stack := STACKED.get(x)) is not None:
        asked = np.zeros((1, stack.n_features_in_), np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that the zeros don't have
            return bool(stack.transform(asked).dtype == np.float64)
    plain = isinstance(x, Select | Concat | Elementwise | Curve | YeoJohnson | Normalise)
    return plain and any(stacked_double(one) for one in inputs(x))


def platt_note(slope: float, lost: float, path: str) -> str:
    """A note on σ(slope · decision + …) of a decision that float32 may be off by `lost`, if it is worth one."""
    if slope < 0:
        return f"{path}: the fitted Platt slope runs backwards: its probability falls as its decision value rises"
    moved = slope / 4 * lost  # at σ's steepest
    if moved <= PROMISE:
        return ""
    return (
        f"{path}: its decisions differ so little, and the fitted Platt slope is so steep, that rounding of a decision "
        f"in float32 may move the probability by {min(1.0, moved):.1g}; scale the features, or lower C"
    )


def dense(values: Any) -> Array:
    """A fitted array as float64; `sparsify` and fitting on sparse matrices leave sparse ones."""
    return np.asarray(values.toarray() if issparse(values) else values, np.float64)


def column(values: Any) -> Array:
    """A fitted array as float64, flat."""
    return dense(values).ravel()
