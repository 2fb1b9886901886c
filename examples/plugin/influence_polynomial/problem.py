"""`influence_core.problem.Problem` for `PolynomialRegression`, in closed form.

The loss of a point is `ℓ = r²/2` with `r = f(x) - y`. With the features `φ = (1, x, x², …)`:
`∇ℓ = r φ`, `∇²ℓ = φ φᵀ` and `∂/∂x ⟨v, ∇ℓ⟩ = f'(x) ⟨v, φ⟩ + r ⟨v, φ'⟩`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_core.errors import DataError, DeviceError, LossError
from influence_polynomial.model import PolynomialRegression


@dataclass(frozen=True)
class Points:
    """The points `x` and `y`, both `(n,)`, and their weights in the objective."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of points `n`."""
        return len(self.x)

    def __getitem__(self, points: slice) -> Points:
        """Return the points of a slice."""
        weights = None if self.weights is None else self.weights[points]
        return Points(self.x[points], self.y[points], weights)


class PolynomialProblem:
    """The squared error of one polynomial, seen through derivatives."""

    def __init__(
        self,
        model: PolynomialRegression,
        loss: None = None,
        *,
        device: Any = None,
        max_memory: int | None = None,
    ) -> None:
        """Copy the model's parameters; `max_memory` goes unused, since nothing here is large.

        Raises:
            LossError: `loss` is given, but the squared error is built in.
            DeviceError: `device` is not the CPU.
        """
        if loss is not None:
            raise LossError(f"`Influence(polynomial, loss)`: pass None for the loss, not {loss!r}.")
        if device not in (None, "cpu"):
            raise DeviceError(f"`device=`: NumPy knows only 'cpu'; got {device!r}.")
        self._values = {"intercept": model.intercept.copy(), "slopes": model.slopes.copy()}
        self.reference = self._values["slopes"]
        self.parameters = {name: value.shape for name, value in self._values.items()}

    def batch(self, data: tuple[Any, Any]) -> Points:
        """Check one pair `(x, y)` and give it the dtype of the parameters."""
        x, y = (np.asarray(part, dtype=self.reference.dtype) for part in data)
        if x.ndim != 1 or x.shape != y.shape or x.size == 0:
            raise DataError(
                f"`batch((x, y))`: both must have the same shape (n,), n > 0; got {x.shape} and "
                f"{y.shape}. Flatten them, or pair each x with its y."
            )
        return Points(x, y)

    def gradients(self, batch: Points, names: Sequence[str]) -> np.ndarray:
        """Return `r φ`, `(n, d)`."""
        return self._residuals(batch)[:, None] * self._features(batch.x, names)

    def gradient_products(self, batch: Points, v: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return `⟨v, φ⟩ r`, `(k, n)`."""
        return (v @ self._features(batch.x, names).T) * self._residuals(batch)

    def gradient_combinations(
        self, batch: Points, w: np.ndarray, names: Sequence[str]
    ) -> np.ndarray:
        """Return `Σ w r φ`, `(k, d)`."""
        return (w * self._residuals(batch)) @ self._features(batch.x, names)

    def hessian_product(self, batch: Points, v: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return `⟨v, φ⟩ φ` averaged over the points, `(k, d)`."""
        features = self._features(batch.x, names)
        weights = np.ones_like(batch.x) if batch.weights is None else batch.weights
        return ((v @ features.T) * (weights / weights.sum())) @ features

    def mixed_gradient_products(
        self, batch: Points, v: np.ndarray, names: Sequence[str]
    ) -> np.ndarray:
        """Return `f'(x) ⟨v, φ⟩ + r ⟨v, φ'⟩`, `(k, n)`."""
        slope = self._derivatives(batch.x, tuple(self._values)) @ self._theta
        through_residual = slope * (v @ self._features(batch.x, names).T)
        through_features = self._residuals(batch) * (v @ self._derivatives(batch.x, names).T)
        return through_residual + through_features

    @property
    def _theta(self) -> np.ndarray:
        return np.concatenate(list(self._values.values()))

    def _residuals(self, batch: Points) -> np.ndarray:
        return self._features(batch.x, tuple(self._values)) @ self._theta - batch.y

    def _features(self, x: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return x[:, None] ** self._powers(names)

    def _derivatives(self, x: np.ndarray, names: Sequence[str]) -> np.ndarray:
        powers = self._powers(names)
        return powers * x[:, None] ** np.maximum(powers - 1, 0)

    def _powers(self, names: Sequence[str]) -> np.ndarray:
        powers = np.arange(self._theta.size, dtype=self.reference.dtype)
        of = {"intercept": powers[:1], "slopes": powers[1:]}
        return np.concatenate([of[name] for name in names])
