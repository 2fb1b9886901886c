"""The Hessian of the objective, `H = 1/N Σ ∇²ℓᵢ`."""

from __future__ import annotations

from influence_core.curvature.base import Curvature, Product
from influence_core.problem import Array, Batch, LinearizesHessian, PointQuadratics


class Hessian(Curvature):
    """`H = 1/N Σ ∇²ℓᵢ`; indefinite for networks away from a strict minimum."""

    def batch_product(self, batch: Batch, v: Array) -> Array:
        """Return `v · H_batch`, `(k, d)`."""
        return self.problem.hessian_product(batch, v, self.block.names)

    def linearize_batch(self, batch: Batch) -> Product:
        """Return the product with the forward work kept, where the backend can keep it."""
        if isinstance(self.problem, LinearizesHessian):
            return self.problem.linearize(batch, self.block.names)
        return super().linearize_batch(batch)

    def batch_quadratics(self, batch: Batch, v: Array) -> Array:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ`, `(n,)`, in one pass where the backend can."""
        if isinstance(self.problem, PointQuadratics):
            return self.problem.hessian_quadratics(batch, v, self.block.names)
        return super().batch_quadratics(batch, v)
