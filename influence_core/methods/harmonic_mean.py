"""The mean of the inverses of the points' own matrices, in place of the inverse of their mean.

Kwon, Wu, Wu and Zou, DataInf: Efficiently estimating data influence in LoRA-tuned LLMs and
diffusion models, ICLR 2024. Time: one pass of per-sample gradients a solve; memory `O(n d)` for the
`n` points of a batch.
"""

from __future__ import annotations

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
        exchange, objective = self.curvature.exchange, self.curvature.objective
        v = exchange.to_model(rows)
        penalty = self.curvature.penalty()
        inverse = 1.0 / (regularization if penalty is None else penalty + regularization)
        scaled = v * inverse
        drop = objective.reduce(lambda batch: self._drop(batch, scaled, inverse))
        answer = exchange.to_solver(scaled - drop)
        return Solution(answer, closed_form_report(np.zeros(rows.shape[0])))

    def on(self, problem: Problem, exchange: Exchange) -> HarmonicMeanInverse:
        """Return the same inverse on the device of the problem."""
        return replace(self, curvature=self.curvature.on(problem, exchange))

    def _drop(self, batch: Batch, scaled: Array, inverse: Array | float) -> Array:
        """Return the batch's mean of `D⁻¹gᵢ ⟨gᵢ, D⁻¹b⟩ / (1 + ⟨gᵢ, D⁻¹gᵢ⟩)`, `(k, d)`."""
        problem, block = self.curvature.problem, self.curvature.block
        shares = ones((batch.size,), scaled) * point_shares(batch, scaled)
        total = scaled * 0.0
        for part in parts_of(problem, batch, _COPIES * block.size):
            gradients = problem.gradients(batch[part], block.names)
            xp = namespace(gradients)
            lengths = xp.vecdot(gradients, gradients * inverse, axis=-1)
            weights = shares[part] / (1.0 + lengths)
            total = total + ((scaled @ xp.matrix_transpose(gradients)) * weights) @ gradients
        return total * inverse
