"""Curvature matrices `C` of one block, seen through products with vectors.

Methods see `Curvature` only: they neither know what is summed nor which library differentiates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import final

from influence_core.arrays import (
    Exchange,
    eye,
    namespace,
    rademacher_rows,
    read_flag,
    row_dots,
    symmetrize,
)
from influence_core.blocks import Block
from influence_core.errors import NonFiniteError
from influence_core.objective import Objective
from influence_core.problem import Array, Batch, HasPenalty, Problem

Product = Callable[[Array], Array]
"""`v ↦ v · C` for rows `v`, `(k, d) -> (k, d)`."""


@dataclass(frozen=True)
class Curvature(ABC):
    """A symmetric matrix `C`, `(d, d)`: the mean over the data of a matrix of each batch.

    Attributes:
        objective: the data, read through the problem.
        block: the parameters that rows and columns stand for.
        exchange: the way from the model's array library to the solver's.
    """

    objective: Objective
    block: Block
    exchange: Exchange

    @abstractmethod
    def batch_product(self, batch: Batch, v: Array) -> Array:
        """Return `v · C_batch`, `(k, d)`, in the model's library; `C_batch` is the batch's mean."""

    def batch_matrix(self, batch: Batch) -> Array:
        """Return `C_batch`, `(d, d)`, in the model's library."""
        return self.batch_product(batch, eye(self.block.size, self.problem.reference))

    def batch_diagonal(self, batch: Batch) -> Array | None:
        """Return the diagonal of `C_batch`, `(d,)`, where it is known without the matrix."""
        return None

    def batch_quadratics(self, batch: Batch, v: Array) -> Array:
        """Return `vᵢ · Cᵢ · vᵢᵀ`, `(n,)`, with `Cᵢ` of point `i` alone and its own row of `v`."""
        each = [batch[i : i + 1] for i in range(batch.size)]
        products = [self.batch_product(one, v[i : i + 1, :]) for i, one in enumerate(each)]
        return row_dots(v, namespace(v).concat(products))

    def linearize_batch(self, batch: Batch) -> Product:
        """Return `v ↦ batch_product(batch, v)` with whatever can be kept between products."""
        return partial(self.batch_product, batch)

    @property
    def problem(self) -> Problem:
        """The model and loss."""
        return self.objective.problem

    @property
    def reference(self) -> Array:
        """An array in the library and on the device of the solver."""
        return self.exchange.solver

    @final
    def product(self, v: Array) -> Array:
        """Return `v · C`, `(k, d)`, for all rows of `v` in one pass over the data."""
        return self._summed(v, lambda u: self.objective.reduce(lambda b: self.batch_product(b, u)))

    @final
    def quadratics(self, batch: Batch, v: Array) -> Array:
        """Return `vᵢ · Cᵢ · vᵢᵀ`, `(n,)`, for every point of a batch and its row of `v`, `(n, d)`.

        `Cᵢ` is the matrix of the point alone, without a penalty of the objective.
        """
        return self.exchange.to_solver(self.batch_quadratics(batch, self.exchange.to_model(v)))

    @final
    def weighted_batch_product(self, batch: Batch, weight: Array | float, v: Array) -> Array:
        """Return `v · (weight · C_batch + penalty)`, `(k, d)`, for all rows of `v`."""
        return self._summed(v, lambda u: self.batch_product(batch, u) * weight)

    @final
    def linearized(self) -> Product:
        """Return `product` with the forward work of a whole pass done and held in memory."""
        kept = [
            (self.objective.share(b), self.linearize_batch(b)) for b in self.objective.batches()
        ]
        return lambda v: self._summed(v, lambda u: sum(share * term(u) for share, term in kept))

    @final
    def matrix(self) -> Array:
        """Return `C`, `(d, d)`, symmetric, from one pass over the data.

        Raises:
            NonFiniteError: an entry is NaN or infinite.
        """
        matrix = self.objective.reduce(self.batch_matrix)
        penalty = self.penalty()
        if penalty is not None:
            matrix = matrix + eye(self.block.size, matrix) * penalty
        return self._finite(symmetrize(self.exchange.to_solver(matrix)))

    @final
    def diagonal(self, samples: int, seed: int) -> Array:
        """Return the diagonal of `C`, `(d,)`, exactly where it is known, else estimated; one pass.

        The estimate is the mean of `z ⊙ Cz` over random signs `z` (Bekas, Kokiopoulou and Saad, An
        estimator for the diagonal of a matrix, 2007).
        """
        shape = (samples, self.block.size)
        draw = cache(partial(rademacher_rows, seed, *shape, self.problem.reference))

        def of_batch(batch: Batch) -> Array:
            known = self.batch_diagonal(batch)
            if known is not None:
                return known
            signs = draw()
            return namespace(signs).mean(signs * self.batch_product(batch, signs), axis=0)

        diagonal, penalty = self.objective.reduce(of_batch), self.penalty()
        diagonal = diagonal if penalty is None else diagonal + penalty
        return self._finite(self.exchange.to_solver(diagonal))

    def on(self, problem: Problem, exchange: Exchange) -> Curvature:
        """Return the same curvature for the same model on another device."""
        return replace(self, objective=self.objective.on(problem), exchange=exchange)

    def _summed(self, v: Array, over_data: Product) -> Array:
        u = self.exchange.to_model(v)
        products = over_data(u)
        penalty = self.penalty()
        return self.exchange.to_solver(products if penalty is None else products + u * penalty)

    def penalty(self) -> Array | None:
        """Return the diagonal of the objective's quadratic penalty, `(d,)`, or None without one."""
        if isinstance(self.problem, HasPenalty):
            return self.problem.penalty(self.block.names, self.objective.weight)
        return None

    def _finite(self, array: Array) -> Array:
        xp = namespace(array)
        if not read_flag(xp.all(xp.isfinite(array))):
            raise NonFiniteError(
                f"the curvature of block {self.block.name!r} has entries that are NaN or infinite. "
                "Look for points where the loss has no second derivative, or use float64."
            )
        return array
