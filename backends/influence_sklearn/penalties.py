"""The quadratic penalties that the estimators put on the sum of their losses.

    LinearRegression      Σ ℓ
    Ridge                 Σ ℓ + α ‖W‖²               second derivative 2 α, a number a target
    LogisticRegression    Σ ℓ + 1/(2C) ‖W‖²          second derivative 1/C

`C = ∞` is no penalty at all, whatever `l1_ratio` says.

Intercepts are free, but for the solver 'liblinear': it takes `b / s` for one more coefficient, with
`s` the `intercept_scaling`, and so penalises it by `1/(2C) (b/s)²`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge

from influence_core.errors import CapabilityError

Host = npt.NDArray[np.float64]


def second_derivatives(estimator: Any) -> dict[str, Host]:
    """Return parameter name to the second derivative of its penalty.

    Of the coefficients `(o, 1)` or `()`, of the intercepts `()`; a parameter without one is left
    out.

    Raises:
        CapabilityError: the penalty has a part that is not quadratic.
    """
    if isinstance(estimator, Ridge):
        return {"coef": 2.0 * np.asarray(estimator.alpha, dtype=np.float64)[..., None]}
    if isinstance(estimator, LogisticRegression):
        return _logistic(estimator)
    return {}


def _logistic(estimator: LogisticRegression) -> dict[str, Host]:
    # from scikit-learn 1.8 on, `l1_ratio` and `C` say what `penalty` said
    kind = getattr(estimator, "penalty", "deprecated")
    strength = np.asarray(0.0 if kind is None else 1.0 / estimator.C)
    if not strength:
        return {}
    if kind == "l1" or (kind != "l2" and estimator.l1_ratio):
        given = [f"l1_ratio={estimator.l1_ratio}", f"C={estimator.C}"]
        given += [] if kind == "deprecated" else [f"penalty={kind!r}"]
        raise CapabilityError(
            f"`estimator` must have a quadratic penalty, or none; got {', '.join(given)}: the part "
            "|w| has no second derivative at zero, where it holds coefficients. Fit it with "
            "l1_ratio=0 (penalty='l2') or C=inf, on the features that it selected, say."
        )
    if estimator.solver != "liblinear":
        return {"coef": strength}
    return {"coef": strength, "intercept": strength / estimator.intercept_scaling**2}
