"""PowerTransformer by Yeo and Johnson, then standardised."""

from __future__ import annotations

from typing import Any

import numpy as np

from .families import TRANSFORMERS, column, refuse, transform
from .ir import Node, YeoJohnson
from .preprocessing import exactly

_LARGEST = 1e36  # of what float32 holds, some deviations away
_ROUNDED = 1e-4  # of a standard deviation


def _power(transformer: Any, x: Node, path: str) -> Node:
    if transformer.method != "yeo-johnson":
        refuse(
            transformer,
            path,
            f"with method={transformer.method!r}, which has no answer unless every number is positive; "
            "expected yeo-johnson",
            hint="method='yeo-johnson'",
        )
    if transformer.standardize:
        _require_spread(transformer, path)
    alone = type(transformer)(standardize=False)
    alone.lambdas_, alone.n_features_in_ = transformer.lambdas_, x.width
    powered = YeoJohnson(x.width, x, column(transformer.lambdas_), exactly(alone))
    return transform(transformer._scaler, powered, path) if transformer.standardize else powered


def _require_spread(transformer: Any, path: str) -> None:
    """scikit-learn rounds powers of a float32 embedding to float32 before it standardises them."""
    scaler = transformer._scaler
    size, scale = np.abs(column(scaler.mean_)), column(scaler.scale_)
    rounded = np.where(size > _LARGEST, np.inf, size / scale * 2.0**-24)
    worst = int(rounded.argmax())
    if rounded[worst] > _ROUNDED:
        refuse(
            transformer,
            path,
            f"whose power {column(transformer.lambdas_)[worst]:.3g} of column {worst} leaves little but rounding "
            f"(±{rounded[worst]:.1g} deviations in float32, in scikit-learn too), expected at most {_ROUNDED:g}",
            hint="put a StandardScaler before it: far from zero a power flattens everything",
        )


TRANSFORMERS.update(PowerTransformer=_power)
