"""The generalised Gauss–Newton matrix, `1/N Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`.

Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural
Computation 14 (2002). Equal to the Fisher matrix for losses that are a negative log-likelihood of
an exponential family in its natural parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from influence_core.curvature.base import Curvature
from influence_core.errors import CapabilityError
from influence_core.problem import Array, Batch, PointQuadratics
from influence_core.problem import GeneralizedGaussNewton as OffersProduct


@dataclass(frozen=True)
class GeneralizedGaussNewton(Curvature):
    """`1/N Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`: positive semi-definite where the loss is convex in the outputs."""

    def __post_init__(self) -> None:
        """Raise `CapabilityError` if the backend does not offer the product."""
        if not isinstance(self.problem, OffersProduct):
            raise CapabilityError(
                "`second_order_mode='generalized_gauss_newton'` needs a backend that offers "
                f"`generalized_gauss_newton_product`; {type(self.problem).__name__} does not. "
                "Use 'hessian' or 'gauss_newton'."
            )

    def batch_product(self, batch: Batch, v: Array) -> Array:
        """Return the product with the batch's mean, `(k, d)`."""
        problem = cast(OffersProduct, self.problem)
        return problem.generalized_gauss_newton_product(batch, v, self.block.names)

    def batch_quadratics(self, batch: Batch, v: Array) -> Array:
        """Return `vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, `(n,)`, in one pass where the backend can."""
        if isinstance(self.problem, PointQuadratics):
            names = self.block.names
            return self.problem.generalized_gauss_newton_quadratics(batch, v, names)
        return super().batch_quadratics(batch, v)
