"""PowerTransformer by Yeo and Johnson, then standardised."""

from __future__ import annotations

from typing import Any

from .families import TRANSFORMERS, column, refuse, transform
from .ir import Node, YeoJohnson
from .preprocessing import exactly


def _power(transformer: Any, x: Node, path: str) -> Node:
    if transformer.method != "yeo-johnson":
        refuse(
            transformer,
            path,
            f"with method={transformer.method!r}, which has no answer unless every number is positive; "
            "expected yeo-johnson",
            hint="method='yeo-johnson'",
        )
    alone = type(transformer)(standardize=False)
    alone.lambdas_, alone.n_features_in_ = transformer.lambdas_, x.width
    powered = YeoJohnson(x.width, x, column(transformer.lambdas_), exactly(alone))
    return transform(transformer._scaler, powered, path) if transformer.standardize else powered


TRANSFORMERS.update(PowerTransformer=_power)
