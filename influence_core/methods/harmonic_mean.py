"""The mean of the inverses of the points' own matrices, in place of the inverse of their mean.

Kwon, Wu, Wu and Zou, DataInf: Efficiently estimating data influence in LoRA-tuned LLMs and
diffusion models, ICLR 2024. Time: one pass of per-sample gradients a solve; memory `O(n d)` for the
`n` points of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from influence_core.arrays import Exchange, namespace, ones
from influence_core.curvature import Curvature, Inverse, Solution, closed_form_report
from influence_core.memory import parts_of
from influence_core.methods.base import Method
from influence_core.objective import point_shares
from influence_core.problem import Array, Batch, Problem

# per-sample gradients, and one scaled copy of them
_COPIES = 2


@dataclass(frozen=True)
class InverseHarmonicMean(Method):
    """`1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹`, the inverse of the harmonic mean of `∇ℓᵢ∇ℓᵢᵀ + λI`.

    Each term is known by the formula of Sherman and Morrison:
    `(gᵢgᵢᵀ + D)⁻¹ b = D⁻¹b - D⁻¹gᵢ ⟨gᵢ, D⁻¹b⟩ / (1 + ⟨gᵢ, D⁻¹gᵢ⟩)` with `D = λI`, plus the penalty
    where the objective has one. Which curvature is asked for does not matter: this one is made of
    gradients only. It lies close to `I/λ` where λ is small against the squared gradients.
    """

    @property
    def needs_damping(self) -> bool:
        """True: the matrix of one point has rank one."""
        return True

    def prepare(self, curvature: Curvature) -> HarmonicMeanInverse:
        """Return the inverse; nothing is computed before λ is known."""
        return HarmonicMeanInverse(curvature)


@dataclass(frozen=True)
class HarmonicMeanInverse(Inverse):
    """`1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + D)⁻¹` of one block, evaluated in one pass over the data.

    A solve is exact: its report has residuals of zero.
    """

    curvature: Curvature

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return the image of `rows`, `(k, d)`."""
        return self.solve_over(rows, [regularization])[0]

    def solve_over(self, rows: Array, regularizations: Sequence[float]) -> list[Solution]:
        """Return the images of `rows` for every λ, from one pass over the data."""
        exchange, objective = self.curvature.exchange, self.curvature.objective
        v, penalty = exchange.to_model(rows), self.curvature.penalty()
        inverses = [
            1.0 / (value if penalty is None else penalty + value) for value in regularizations
        ]
        scaled = [v * inverse for inverse in inverses]
        drops = objective.reduce(lambda batch: self._drops(batch, scaled, inverses))
        report = closed_form_report(np.zeros(rows.shape[0]))
        return [
            Solution(exchange.to_solver(each - drop), report)
            for each, drop in zip(scaled, drops, strict=True)
        ]

    def on(self, problem: Problem, exchange: Exchange) -> HarmonicMeanInverse:
        """Return the same inverse on the device of the problem."""
        return replace(self, curvature=self.curvature.on(problem, exchange))

    def _drops(
        self, batch: Batch, scaled: Sequence[Array], inverses: Sequence[Array | float]
    ) -> list[Array]:
        """Return the batch's mean of `D⁻¹gᵢ ⟨gᵢ, D⁻¹b⟩ / (1 + ⟨gᵢ, D⁻¹gᵢ⟩)` for every λ."""
        problem, block = self.curvature.problem, self.curvature.block
        shares = ones((batch.size,), problem.reference) * point_shares(batch, problem.reference)
        totals = [each * 0.0 for each in scaled]
        for part in parts_of(problem, batch, _COPIES * block.size):
            gradients = problem.gradients(batch[part], block.names)
            xp = namespace(gradients)
            columns = xp.matrix_transpose(gradients)
            for index, inverse in enumerate(inverses):
                lengths = xp.vecdot(gradients, gradients * inverse, axis=-1)
                weights = shares[part] / (1.0 + lengths)
                totals[index] = totals[index] + ((scaled[index] @ columns) * weights) @ gradients
        return [total * inverse for total, inverse in zip(totals, inverses, strict=True)]
