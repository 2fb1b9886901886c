"""Gradient sources: the per-sample gradients of some points, in whatever form they are needed.

A method asks for `rows` only where it has to hold them; products and combinations need no `(n, d)`.
Answers are in the library of the solver; the exchange happens here, once a call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from influence_core.arrays import Exchange, map_tree
from influence_core.problem import Array, Batch, Problem, Tree


@dataclass
class GradientSource:
    """The gradients `∇θℓᵢ` of the points of one batch with respect to one block.

    Attributes:
        problem: the model and loss that are differentiated.
        batch: the `n` points.
        names: the parameters of the block, `d` numbers.
        exchange: the way from the model's array library to the solver's.
    """

    problem: Problem
    batch: Batch
    names: tuple[str, ...]
    exchange: Exchange
    _rows: Array | None = field(default=None, init=False, repr=False)

    @property
    def size(self) -> int:
        """Number of points `n`."""
        return self.batch.size

    def rows(self) -> Array:
        """Return the gradients, `(n, d)`; computed once and kept."""
        if self._rows is None:
            rows = self.problem.gradients(self.batch, self.names)
            self._rows = self.exchange.to_solver(rows)
        return self._rows

    def products(self, v: Array) -> Array:
        """Return `v · rowsᵀ`, `(k, n)`, for `v` of shape `(k, d)`."""
        v = self.exchange.to_model(v)
        products = self.problem.gradient_products(self.batch, v, self.names)
        return self.exchange.to_solver(products)

    def combinations(self, w: Array) -> Array:
        """Return `w · rows`, `(k, d)`, for `w` of shape `(k, n)`."""
        w = self.exchange.to_model(w)
        combinations = self.problem.gradient_combinations(self.batch, w, self.names)
        return self.exchange.to_solver(combinations)

    def mixed_products(self, v: Array) -> Tree:
        """Return `∇ₓ⟨v, rows⟩`, `(k, n, *x.shape[1:])`, or a tree of those."""
        v = self.exchange.to_model(v)
        products = self.problem.mixed_gradient_products(self.batch, v, self.names)
        return map_tree(self.exchange.to_solver, products)
