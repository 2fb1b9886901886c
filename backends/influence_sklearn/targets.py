"""A `Ridge` with a penalty for each target, as one estimator a target.

Removing a point moves the coefficients of every target by its residual over one minus its leverage,
and the leverage depends on the penalty.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline

from influence_sklearn.data import on_host
from influence_sklearn.estimators import split


def targets_apart(estimator: Any, *targets: Any) -> list[tuple[Any, ...]]:
    """Return an estimator and its column of all `targets`, `(n, o)`, for each target.

    One tuple of what was passed, unless every target has a penalty of its own.
    """
    _, final = split(estimator)
    if not (isinstance(final, Ridge) and np.size(final.alpha) > 1 and hasattr(final, "coef_")):
        return [(estimator, *targets)]
    columns = [on_host(y) for y in targets]
    if any(y.shape[1:] != final.alpha.shape for y in columns):
        return [(estimator, *targets)]  # a wrong shape is refused with the batch
    return [
        (_ending_in(estimator, _one(final, at)), *(y[:, at : at + 1] for y in columns))
        for at in range(len(final.alpha))
    ]


def _one(final: Ridge, at: int) -> Ridge:
    one = copy.copy(final)
    one.alpha, one.coef_ = final.alpha[at], final.coef_[at : at + 1, ...]
    if final.fit_intercept:
        one.intercept_ = final.intercept_[at : at + 1]
    return one


def _ending_in(estimator: Any, final: Any) -> Any:
    if not isinstance(estimator, Pipeline):
        return final
    *before, (name, last) = estimator.steps
    again = copy.copy(estimator)
    again.steps = [*before, (name, _ending_in(last, final))]
    return again
