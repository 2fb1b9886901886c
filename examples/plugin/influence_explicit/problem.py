"""`influence_core.problem.Problem` for `ExplicitModel`: every product from its three callables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_core.errors import DataError, DeviceError, LossError
from influence_explicit.model import ExplicitModel


@dataclass(frozen=True)
class Points:
    """The points `x` `(n, …)` and `y` `(n, …)`, and their weights `(n,)` in the objective."""

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


class ExplicitProblem:
    """The loss of one `ExplicitModel`, seen through derivatives, in float64."""

    def __init__(
        self,
        model: ExplicitModel,
        loss: None = None,
        *,
        device: Any = None,
        max_memory: int | None = None,
    ) -> None:
        """Copy the parameters; `max_memory` goes unused: the callables decide what they hold.

        Raises:
            LossError: `loss` is given, but the callables have it built in.
            DeviceError: `device` is not the CPU.
        """
        if loss is not None:
            raise LossError(f"`Influence(model, loss)`: the model has its loss; got {loss!r}.")
        if device not in (None, "cpu"):
            raise DeviceError(f"`device=`: NumPy knows only 'cpu'; got {device!r}.")
        self._model = model
        self._values = {
            name: np.array(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        self._theta = np.concatenate([value.ravel() for value in self._values.values()])

    @property
    def reference(self) -> np.ndarray:
        """All parameters: NumPy, float64."""
        return self._theta

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every parameter."""
        return {name: value.shape for name, value in self._values.items()}

    def batch(self, data: Any) -> Points:
        """Check `(x, y)`, or `(x, y, weights)`.

        Raises:
            DataError: no points, or lengths that differ.
        """
        arrays = [np.asarray(part) for part in data]
        lengths = [len(array) if array.ndim else 0 for array in arrays]
        if len(arrays) not in (2, 3) or lengths[0] == 0 or len(set(lengths)) > 1:
            raise DataError(
                f"`batch(data)`: `data` must be (x, y) or (x, y, weights) for the same points, one "
                f"or more; got the lengths {lengths}. Pair each x with its y."
            )
        return Points(*arrays)

    def validate(self, batch: Points, where: str) -> None:
        """Check that all numbers are finite.

        Raises:
            DataError: some are not.
        """
        for name, array in vars(batch).items():
            if array is not None and not np.all(np.isfinite(array)):
                raise DataError(f"`{where}`: {name} must hold finite numbers. Drop those points.")

    def gradients(self, batch: Points, names: Sequence[str]) -> np.ndarray:
        """Return `∇ℓᵢ`, `(n, d)`."""
        rows = self._model.gradients(self._theta, batch.x, batch.y)
        return rows[:, self._columns(names)]

    def gradient_products(self, batch: Points, v: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return `v · gradientsᵀ`, `(k, n)`."""
        return v @ self.gradients(batch, names).T

    def gradient_combinations(
        self, batch: Points, w: np.ndarray, names: Sequence[str]
    ) -> np.ndarray:
        """Return `w · gradients`, `(k, d)`."""
        return w @ self.gradients(batch, names)

    def hessian_product(self, batch: Points, v: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return `v · mean(∇²ℓᵢ)`, `(k, d)`; the mean is weighted where the points are."""
        place = self._columns(names)
        matrices = self._model.hessians(self._theta, batch.x, batch.y)
        weights = np.ones(batch.size) if batch.weights is None else batch.weights
        # a batch of weight zero has the mean zero
        shares = weights / (weights.sum() or 1.0)
        return v @ np.tensordot(shares, matrices, axes=1)[np.ix_(place, place)]

    def mixed_gradient_products(
        self, batch: Points, v: np.ndarray, names: Sequence[str]
    ) -> np.ndarray:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`."""
        mixed = self._model.mixed(self._theta, batch.x, batch.y)
        return np.moveaxis(mixed[..., self._columns(names)] @ v.T, -1, 0)

    def _columns(self, names: Sequence[str]) -> np.ndarray:
        """Return where the parameters `names` lie in `theta`, in their order."""
        ends = np.cumsum([value.size for value in self._values.values()])
        places = dict(zip(self._values, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
        return np.concatenate([places[name] for name in names])
