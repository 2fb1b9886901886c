"""Influence functions of fitted scikit-learn models, in closed form.

`influences(estimator, X_train, y_train, X_test, y_test)` answers in one call; everything else goes
through `influence_core.Influence(estimator, None, Direct())`. Names are loaded when they are used,
so that the plug-in registry can look at this package without importing scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influence_sklearn.calls import influences, leave_one_out
    from influence_sklearn.data import Weighted
    from influence_sklearn.problem import SklearnProblem

__all__ = ["SklearnProblem", "Weighted", "influences", "leave_one_out"]

_HOMES = {
    "SklearnProblem": "influence_sklearn.problem",
    "Weighted": "influence_sklearn.data",
    "influences": "influence_sklearn.calls",
    "leave_one_out": "influence_sklearn.calls",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        from influence_core.errors import BackendImportError

        raise BackendImportError(
            f"`influence_sklearn.{name}` needs scikit-learn, which is not installed. "
            'Install it with `pip install "influence-core[sklearn]"`.'
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
