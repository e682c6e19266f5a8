"""What holds one estimator and answers as it does: a frozen estimator and a search for hyper-parameters."""

from __future__ import annotations

from typing import Any

from .families import HOLDERS, refuse


def _frozen(frozen: Any, path: str) -> tuple[Any, str]:
    """A FrozenEstimator (scikit-learn 1.6)."""
    return frozen.estimator, path


def _search(search: Any, path: str) -> tuple[Any, str]:
    """The estimator that was found, fitted again on all of the data."""
    if not hasattr(search, "best_estimator_"):
        refuse(
            search,
            path,
            "without best_estimator_, expected a search that was fitted with refit=True",
            hint="fit it with refit=True, or fit the estimator with its best_params_",
        )
    return search.best_estimator_, f"{path}.best_estimator_"


HOLDERS.update(
    FrozenEstimator=_frozen,
    GridSearchCV=_search,
    RandomizedSearchCV=_search,
    HalvingGridSearchCV=_search,
    HalvingRandomSearchCV=_search,
)
