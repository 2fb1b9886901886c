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

from influence_core.arrays import Exchange, device, epsilon, from_host, move, namespace
from influence_core.curvature.inverse import Inverse, Solution
from influence_core.curvature.layers import LayerColumns, join_columns
from influence_core.curvature.spectral import check_condition
from influence_core.problem import Array, Problem


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
        condition = check_condition(self.values, regularization, epsilon(rows), self.block)
        damped = [layer.values + regularization for layer in self.layers]
        answer = self.scale(rows, [from_host(1.0 / values, rows) for values in damped])
        image = self.scale(answer, [from_host(values, rows) for values in damped])
        return Solution(answer, condition.report(rows - image))

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
