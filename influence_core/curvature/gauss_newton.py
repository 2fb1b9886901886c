"""The outer-product form of Gauss–Newton, `G = 1/N Σ ∇ℓᵢ ∇ℓᵢᵀ` (the empirical Fisher)."""

from __future__ import annotations

from influence_core.arrays import namespace, row_dots
from influence_core.curvature.base import Curvature, Product
from influence_core.objective import point_shares
from influence_core.problem import Array, Batch


class GaussNewton(Curvature):
    """`G = 1/N Σ ∇ℓᵢ ∇ℓᵢᵀ`: positive semi-definite, of rank at most `N`."""

    def batch_product(self, batch: Batch, v: Array) -> Array:
        """Return `v · G_batch`, `(k, d)`, without holding the per-sample gradients."""
        products = self.problem.gradient_products(batch, v, self.block.names)
        weighted = products * point_shares(batch, products)
        return self.problem.gradient_combinations(batch, weighted, self.block.names)

    def batch_matrix(self, batch: Batch) -> Array:
        """Return `G_batch`, `(d, d)`: one product of the gradients with themselves."""
        rows = self.problem.gradients(batch, self.block.names)
        weighted = namespace(rows).matrix_transpose(rows) * point_shares(batch, rows)
        return weighted @ rows

    def batch_diagonal(self, batch: Batch) -> Array:
        """Return the diagonal of `G_batch`, `(d,)`: the mean squares of the gradients."""
        rows = self.problem.gradients(batch, self.block.names)
        xp = namespace(rows)
        return xp.sum(xp.matrix_transpose(rows**2) * point_shares(batch, rows), axis=-1)

    def batch_quadratics(self, batch: Batch, v: Array) -> Array:
        """Return `⟨vᵢ, ∇ℓᵢ⟩²`, `(n,)`."""
        return row_dots(v, self.problem.gradients(batch, self.block.names)) ** 2

    def linearize_batch(self, batch: Batch) -> Product:
        """Return the product with the per-sample gradients kept, `(n, d)`."""
        rows = self.problem.gradients(batch, self.block.names)
        columns, shares = namespace(rows).matrix_transpose(rows), point_shares(batch, rows)
        return lambda v: ((v @ columns) * shares) @ rows
