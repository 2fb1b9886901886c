"""What the answers of a backend are held against: dense derivatives of every point, in float64.

An oracle knows nothing of the backend. `FiniteDifferences` needs the losses in NumPy only;
`ClosedForm` is for models that `influence_core.testing` has in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from influence_core.problem import Tree
from influence_core.testing.models import Model
from influence_core.testing.problem import ClosedFormProblem

Host: TypeAlias = npt.NDArray[Any]
"""A NumPy array; numbers are float64, labels may be integers."""

Values: TypeAlias = Mapping[str, Host]
"""Name to value of every parameter, in the model's order."""


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of the losses `ℓᵢ` of `n` points; `p` parameters in the model's order, row-major.

    Attributes:
        gradients: `∇ℓᵢ`, `(n, p)`.
        hessians: `∇²ℓᵢ`, `(n, p, p)`.
        mixed: `∇ₓ∇θℓᵢ`, `(n, *x.shape[1:], p)`, in the tree of `x`; None for a leaf of integers.
        gauss_newton: `Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`, `(n, p, p)`; None where the outputs `f` are not known.
    """

    gradients: Host
    hessians: Host
    mixed: Tree
    gauss_newton: Host | None = None


class Oracle(Protocol):
    """Knows the derivatives of a model without asking its backend."""

    def derivatives(self, parameters: Values, x: Tree, y: Tree) -> Derivatives:
        """Return the derivatives at `parameters` for the points `(x, y)`, all on the host."""
        ...


@dataclass(frozen=True)
class ClosedForm:
    """The derivatives of `LeastSquares`, `Logistic` or `TanhNetwork`.

    Attributes:
        model: makes the model from the parameters, as in ``lambda p: Logistic(dict(p))``; its
            parameters must have the order that the backend has them in.
    """

    model: Callable[[Values], Model]

    def derivatives(self, parameters: Values, x: Tree, y: Tree) -> Derivatives:
        """Return the derivatives; `x` is one array, `(n, *)`."""
        problem = ClosedFormProblem(self.model(parameters))
        batch, names = problem.batch((x, y)), list(problem.parameters)
        gradients = problem.gradients(batch, names)
        eye = np.eye(gradients.shape[1])
        points = [batch[at : at + 1] for at in range(batch.size)]
        hessians = [problem.hessian_product(point, eye, names) for point in points]
        products = problem.generalized_gauss_newton_product
        gauss_newton = [products(point, eye, names) for point in points]
        mixed = problem.mixed_gradient_products(batch, eye, names)
        return Derivatives(
            gradients, np.stack(hessians), np.moveaxis(mixed, 0, -1), np.stack(gauss_newton)
        )
