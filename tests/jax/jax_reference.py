"""Slow dense references: `jax.hessian` and `jax.jacfwd` of single points, systems by NumPy.

Nothing here comes from the package. A point is a batch of one; columns are the parameters in the
order of the tree, each row-major.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

Host = np.ndarray


class Reference:
    """Influence functions by dense solves.

    Args:
        apply: `apply(params, x)`.
        params: a tree of arrays, all of them parameters.
        loss: of a batch; only batches of one are asked for.
        x: training inputs.
        y: training targets.
    """

    def __init__(
        self, apply: Callable[..., Any], params: Any, loss: Callable[..., Any], x: Any, y: Any
    ) -> None:
        self.theta, restore = ravel_pytree(params)
        self.x, self.y = x, y
        one = lambda tree: jax.tree.map(lambda t: t[None], tree)  # noqa: E731
        outputs = lambda theta, a: apply(restore(theta), one(a))  # noqa: E731
        point = lambda theta, a, b: loss(outputs(theta, a), one(b)).reshape(())  # noqa: E731
        self._gradient = each(jax.jacfwd(point))
        self._hessian = each(jax.hessian(point))
        self._jacobian = each(jax.jacfwd(outputs))
        self._outputs = each(outputs)
        self._bend = jax.jit(jax.vmap(jax.hessian(lambda f, b: loss(f, one(b)).reshape(()))))
        self._mixed = each(jax.jacfwd(jax.grad(point), argnums=1))

    def gradients(self, x: Any, y: Any) -> Host:
        """`∇ℓᵢ`, `(n, p)`."""
        return np.asarray(self._gradient(self.theta, x, y))

    def hessians(self, x: Any, y: Any) -> Host:
        """`∇²ℓᵢ`, `(n, p, p)`."""
        return np.asarray(self._hessian(self.theta, x, y))

    def gauss_newtons(self, x: Any, y: Any) -> Host:
        """`Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`, `(n, p, p)`."""
        n, p = len(jax.tree.leaves(y)[0]), self.theta.size
        jacobian = np.asarray(self._jacobian(self.theta, x)).reshape(n, -1, p)
        bend = np.asarray(self._bend(self._outputs(self.theta, x), y))
        bend = bend.reshape(n, jacobian.shape[1], jacobian.shape[1])
        return np.einsum("nfp,nfg,ngq->npq", jacobian, bend, jacobian)

    def mixed(self, x: Any, y: Any) -> Any:
        """`∂/∂x ∇θℓᵢ`, `(n, p, *x.shape[1:])`, or a tree of those."""
        return self._mixed(self.theta, x, y)

    def curvature(self, mode: str = "hessian") -> Host:
        """`C`, `(p, p)`; `mode` is a plain string of `SecondOrderMode`."""
        if mode == "hessian":
            return self.hessians(self.x, self.y).mean(axis=0)
        if mode == "gauss_newton":
            rows = self.gradients(self.x, self.y)
            return rows.T @ rows / len(rows)
        return self.gauss_newtons(self.x, self.y).mean(axis=0)

    def factors(self, x: Any, y: Any, regularization: float, mode: str = "hessian") -> Host:
        """Rows `(C + λI)⁻¹ ∇ℓ`, `(n, p)`."""
        damped = self.curvature(mode) + regularization * np.eye(self.theta.size)
        return np.linalg.solve(damped, self.gradients(x, y).T).T

    def influences(
        self, x_test: Any, y_test: Any, x: Any, y: Any, regularization: float, mode: str = "hessian"
    ) -> Host:
        """`(m, n)`."""
        return self.factors(x_test, y_test, regularization, mode) @ self.gradients(x, y).T


def each(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of every point, the parameters held."""
    return jax.jit(lambda theta, *data: jax.vmap(lambda *point: fn(theta, *point))(*data))


def close(got: Any, want: Any, tolerance: float = 1e-8) -> None:
    """Assert that `got` is a JAX array of the shape and the numbers, relative to the largest."""
    assert isinstance(got, jax.Array)
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    size = np.abs(want).max(initial=0)
    error = np.abs(got - want).max(initial=0)
    assert error <= tolerance * size, f"relative error {error / size if size else error:.1e}"
