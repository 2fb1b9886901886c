"""Influence functions of fitted scikit-learn models, in closed form.

`influences(estimator, X_train, y_train, X_test, y_test)` answers in one call; everything else goes
through `influence_core.Influence(estimator, None, Direct())`. Names are loaded when they are used,
so that the plug-in registry can look at this package without importing scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_core.plugins import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ("sklearn",), "scikit-learn", "sklearn")
