"""Poisson regression as an `ExplicitModel`: counts `y` with the rate `exp(η)`, `η = ⟨w, x⟩ + b`.

The loss is `ℓ = exp(η) - y η`. With `φ = (x, 1)` and `r = exp(η) - y`:
`∇ℓ = r φ`, `∇²ℓ = exp(η) φ φᵀ` and `∂/∂x_a ∇ℓ = exp(η) w_a φ + r e_a`.
"""

import numpy as np
import numpy.typing as npt

from influence_explicit.model import ExplicitModel


def poisson_regression(coefficients: npt.ArrayLike, intercept: float) -> ExplicitModel:
    """Return the model with these coefficients, `(i,)`, for inputs `(n, i)` and counts `(n,)`."""
    parameters = {
        "coefficients": np.array(coefficients, dtype=np.float64),
        "intercept": np.array([intercept], dtype=np.float64),
    }
    return ExplicitModel(parameters, _gradients, _hessians, _mixed)


def _features(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _rates(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.exp(_features(x) @ theta)


def _gradients(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (_rates(theta, x) - y)[:, None] * _features(x)


def _hessians(theta: np.ndarray, x: np.ndarray, _y: np.ndarray) -> np.ndarray:
    features = _features(x)
    return _rates(theta, x)[:, None, None] * features[:, :, None] * features[:, None, :]


def _mixed(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rates, i = _rates(theta, x), x.shape[1]
    through_rate = rates[:, None, None] * theta[:i, None] * _features(x)[:, None, :]
    return through_rate + (rates - y)[:, None, None] * np.eye(i, i + 1)
