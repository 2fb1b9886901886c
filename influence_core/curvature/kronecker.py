"""Kronecker-factored inverses: `C ≈ (Q_S ⊗ Q_A)ᵀ Λ (Q_S ⊗ Q_A)` for every layer.

With the eigenvectors of `S`, `(o, o)`, and of `A`, `(i', i')`, as rows of `Q_S` and `Q_A`, and the
parameters of a layer as a matrix `M`, `(o, i')`:

    (C + λI)⁻¹ M = Q_Sᵀ ((Q_S M Q_Aᵀ) ∘ 1/(Λ + λ)) Q_A

George, Laurent, Bouthillier, Ballas and Vincent, Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis, NeurIPS 2018. Products across layers count as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    Exchange,
    device,
    epsilon,
    from_host,
    move,
    namespace,
    row_norms,
    to_host,
    zeros,
)
from influence_core.curvature.inverse import Inverse, Solution, SolveReport, closed_form_report
from influence_core.curvature.kronecker_scores import Factors, layer_scores, self_scores
from influence_core.curvature.layers import LayerColumns, join_columns
from influence_core.errors import ConditioningWarning, warn
from influence_core.memory import parts_of
from influence_core.problem import Array, LayerStatistics, Problem
from influence_core.sources import GradientSource

Host = npt.NDArray[np.float64]

# sums over the data are off by some such rounding units of the largest eigenvalue
_ROUNDING = 100.0
# the factors as the model gives them, and rotated
_COPIES = 2


@dataclass(frozen=True)
class KroneckerLayer:
    """The approximated curvature of one layer's parameters in a block, by its eigenpairs.

    Attributes:
        columns: where the parameters stand in the block.
        inputs: `Q_A`, eigenvectors as rows, `(i', i')`.
        outputs: `Q_S`, eigenvectors as rows, `(o, o)`.
        values: the eigenvalues `Λ`, on the host in float64, `(o, i')`.
    """

    columns: LayerColumns
    inputs: Array
    outputs: Array
    values: Host

    def scale(self, rows: Array, weights: Array) -> dict[int, Array]:
        """Return `Q_Sᵀ ((Q_S M Q_Aᵀ) ∘ weights) Q_A` by columns; `M` from rows `(k, d)`."""
        xp = namespace(rows)
        matrices = self.columns.gather(rows)
        rotated = self.outputs @ (matrices @ xp.matrix_transpose(self.inputs))
        scaled = (rotated * weights) @ self.inputs
        return self.columns.scatter(xp.matrix_transpose(self.outputs) @ scaled)

    def factors(self, seen: LayerStatistics) -> Factors:
        """Return what the layer saw of some points, at one label each, in the eigenbasis."""
        xp = namespace(seen.inputs)
        return Factors(
            self.columns.homogeneous(seen.inputs) @ xp.matrix_transpose(self.inputs),
            seen.output_gradients[0, ...] @ xp.matrix_transpose(self.outputs),
        )

    def map(self, carry: Callable[[Array], Array]) -> KroneckerLayer:
        """Return the same with its arrays carried elsewhere."""
        return replace(self, inputs=carry(self.inputs), outputs=carry(self.outputs))


@dataclass(frozen=True)
class KroneckerInverse(Inverse):
    """The exact (pseudo-)inverse of `C + λI` for a `C` that is Kronecker-factored, layer by layer.

    Residuals in a report are those of the approximated `C`.

    Attributes:
        layers: the layers that make up the block; together they have all its columns.
        block: the name of the block, for messages.
    """

    layers: tuple[KroneckerLayer, ...]
    block: str

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return `(C + λI)⁻¹ rows`, `(k, d)`.

        Warns:
            ConditioningWarning: eigenvalues of `C + λI` are zero to working precision. What rows
                have in their directions is left out: the softmax, for one, ignores a common shift
                of its inputs, and has no gradient along it either.
        """
        weights, regular = self._damped_inverse(regularization)
        answer = self.scale(rows, [from_host(weight, rows) for weight in weights])
        damped = [from_host(layer.values + regularization, rows) for layer in self.layers]
        norms = to_host(row_norms(rows - self.scale(answer, damped)))
        return Solution(answer, closed_form_report(norms, reliable=regular))

    def scores(
        self, left: GradientSource, right: GradientSource, regularizations: Sequence[float]
    ) -> tuple[Array, Sequence[SolveReport | None]]:
        """Return `left (C + λI)⁻¹ rightᵀ` for every λ, `(r, m, n)`, with the reports.

        The gradients are not formed where what the layers see is smaller, and fits into memory: see
        `kronecker_scores`. Nothing is solved then, and the residuals in the reports are zero.

        Warns:
            ConditioningWarning: as in `solve`.
        """
        if not (self._by_factors(left) and self._by_factors(right)):
            return super().scores(left, right, regularizations)
        inverses = [self._damped_inverse(value) for value in regularizations]
        totals = [zeros((left.size, right.size), self.layers[0].inputs) for _ in regularizations]
        for index, layer in enumerate(self.layers):
            name = layer.columns.name
            sides = layer.factors(left.factors[name]), layer.factors(right.factors[name])
            totals = [
                total + layer_scores(*sides, weights[index])
                for total, (weights, _) in zip(totals, inverses, strict=True)
            ]
        nothing = np.zeros(min(left.size, right.size))
        reports = [closed_form_report(nothing, reliable=regular) for _, regular in inverses]
        return namespace(totals[0]).stack(totals), reports

    def self_scores(
        self, sources: Sequence[GradientSource], regularization: float
    ) -> tuple[Array, SolveReport | None]:
        """Return `⟨rows (C + λI)⁻¹, rows⟩`, without the rows where that is cheaper."""
        if not all(map(self._by_factors, sources)):
            return super().self_scores(sources, regularization)
        weights, regular = self._damped_inverse(regularization)
        scores = [
            sum(
                self_scores(layer.factors(source.factors[layer.columns.name]), weight)
                for layer, weight in zip(self.layers, weights, strict=True)
            )
            for source in sources
        ]
        count = sum(source.size for source in sources)
        report = closed_form_report(np.zeros(count), reliable=regular)
        return namespace(scores[0]).concat(scores), report

    def _by_factors(self, source: GradientSource) -> bool:
        """Tell whether what the layers see is less than gradients, and fits into memory."""
        one = source.points.first.factors
        seen = [one[layer.columns.name] for layer in self.layers]
        numbers = sum(
            each.inputs.shape[1] * (each.inputs.shape[2] + each.output_gradients.shape[3])
            for each in seen
        )
        less = numbers <= sum(layer.values.size for layer in self.layers)
        held = sum(
            math.prod(each.inputs.shape) + math.prod(each.output_gradients.shape)
            for each in one.values()
        )
        parts = parts_of(source.points.problem, source.points.batch, _COPIES * held)
        return less and len(list(parts)) == 1

    def _damped_inverse(self, regularization: float) -> tuple[list[Host], bool]:
        """Return `1/(Λ + λ)` of every layer, and whether none of it had to be left out."""
        weights, null, size = [], 0, 0
        for layer in self.layers:
            damped = layer.values + regularization
            rounding = _ROUNDING * epsilon(layer.inputs) * damped.max()
            zero = damped <= rounding
            weights.append(np.where(zero, 0.0, 1.0 / np.where(zero, 1.0, damped)))
            null, size = null + int(zero.sum()), size + damped.size
        if null:
            warn(
                f"`C + λI`{f' of block {self.block!r}' if self.block else ''} with "
                f"λ={regularization:g} is singular to working precision: {null} of its {size} "
                "eigenvalues are zero up to rounding. What a gradient has in their directions is "
                "left out; use a positive `regularization`.",
                ConditioningWarning,
            )
        return weights, not null

    def scale(self, rows: Array, weights: Sequence[Array]) -> Array:
        """Return `rows · f(C)`, `(k, d)`, for weights `f(Λ)`, `(o, i')` for each layer."""
        pieces: dict[int, Array] = {}
        for layer, weight in zip(self.layers, weights, strict=True):
            pieces |= layer.scale(rows, weight)
        return join_columns(pieces)

    def on(self, problem: Problem, exchange: Exchange) -> KroneckerInverse:
        """Return the same inverse on the device of the exchange's solver."""
        return self.to(device(exchange.solver))

    def to(self, target: Any) -> KroneckerInverse:
        """Return the same inverse on the device `target`."""
        layers = tuple(layer.map(lambda array: move(array, target)) for layer in self.layers)
        return replace(self, layers=layers)
