"""Kronecker-factored inverses: `C ≈ (Q_S ⊗ Q_A)ᵀ Λ (Q_S ⊗ Q_A)` for every layer.

With the eigenvectors of `S`, `(o, o)`, and of `A`, `(i', i')`, as rows of `Q_S` and `Q_A`, and the
parameters of a layer as a matrix `M`, `(o, i')`:

    (C + λI)⁻¹ M = Q_Sᵀ ((Q_S M Q_Aᵀ) ∘ 1/(Λ + λ)) Q_A

George, Laurent, Bouthillier, Ballas and Vincent, Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis, NeurIPS 2018. Products across layers count as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import Exchange, device, epsilon, from_host, move, namespace, zeros
from influence_core.curvature.inverse import Inverse, Solution, SolveReport, closed_form_report
from influence_core.curvature.kronecker_scores import Factors, layer_scores, self_scores
from influence_core.curvature.layers import LayerColumns, join_columns
from influence_core.curvature.spectral import Condition, check_condition
from influence_core.problem import Array, LayerStatistics, Problem
from influence_core.sources import GradientSource


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
    values: npt.NDArray[np.float64]

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
    """The exact inverse of `C + λI` for a `C` that is Kronecker-factored, layer by layer.

    Residuals in a report are those of the approximated `C`.

    Attributes:
        layers: the layers that make up the block; together they have all its columns.
        block: the name of the block, for messages.
    """

    layers: tuple[KroneckerLayer, ...]
    block: str

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """All eigenvalues of `C`, on the host, `(d,)`, layer by layer."""
        return np.concatenate([layer.values.ravel() for layer in self.layers])

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return `(C + λI)⁻¹ rows`, `(k, d)`.

        Warns:
            ConditioningWarning: `C + λI` is singular to working precision.

        Raises:
            SingularCurvatureError: an eigenvalue of `C + λI` is exactly zero.
        """
        condition = self._condition(regularization)
        damped = [layer.values + regularization for layer in self.layers]
        answer = self.scale(rows, [from_host(1.0 / values, rows) for values in damped])
        image = self.scale(answer, [from_host(values, rows) for values in damped])
        return Solution(answer, condition.report(rows - image))

    def scores(
        self, left: GradientSource, right: GradientSource, regularizations: Sequence[float]
    ) -> tuple[Array, Sequence[SolveReport | None]]:
        """Return `left (C + λI)⁻¹ rightᵀ` for every λ, `(r, m, n)`, with the reports.

        The gradients are never formed: see `kronecker_scores`. Nothing is solved, and the residuals
        in the reports are zero.

        Warns:
            ConditioningWarning: `C + λI` is singular to working precision.

        Raises:
            SingularCurvatureError: an eigenvalue of `C + λI` is exactly zero.
        """
        reports = [self._report(min(left.size, right.size), value) for value in regularizations]
        totals = [zeros((left.size, right.size), self.layers[0].inputs) for _ in regularizations]
        for layer in self.layers:
            name = layer.columns.name
            sides = layer.factors(left.factors[name]), layer.factors(right.factors[name])
            totals = [
                total + layer_scores(*sides, 1.0 / (layer.values + value))
                for total, value in zip(totals, regularizations, strict=True)
            ]
        return namespace(totals[0]).stack(totals), reports

    def self_scores(
        self, source: GradientSource, regularization: float
    ) -> tuple[Array, SolveReport | None]:
        """Return `⟨rows (C + λI)⁻¹, rows⟩`, `(n,)`, without the rows."""
        report = self._report(source.size, regularization)
        scores = [
            self_scores(
                layer.factors(source.factors[layer.columns.name]),
                1.0 / (layer.values + regularization),
            )
            for layer in self.layers
        ]
        return sum(scores[1:], start=scores[0]), report

    def _report(self, count: int, regularization: float) -> SolveReport:
        condition = self._condition(regularization)
        return closed_form_report(
            np.zeros(count), reliable=condition.regular, indefinite=condition.indefinite
        )

    def _condition(self, regularization: float) -> Condition:
        eps = epsilon(self.layers[0].inputs)
        return check_condition(self.values, regularization, eps, self.block)

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
