"""Orthonormal bases of the two sides of a layer's matrix `M`, `(o, i')`."""

from __future__ import annotations

from dataclasses import dataclass

from influence_core.arrays import namespace
from influence_core.problem import Array


@dataclass(frozen=True)
class Bases:
    """`Q_S` and `Q_A`; None is the identity, of a factor that is diagonal.

    They are cast to the numbers that they meet: they may be kept in shorter ones.

    Attributes:
        inputs: `Q_A`, vectors as rows, `(i', i')`.
        outputs: `Q_S`, vectors as rows, `(o, o)`.
    """

    inputs: Array | None = None
    outputs: Array | None = None

    def turn(self, matrices: Array) -> Array:
        """Return `Q_S M Q_Aᵀ`, `(…, o, i')`."""
        turned = self.turn_inputs(matrices)
        return turned if self.outputs is None else _cast(self.outputs, turned) @ turned

    def turn_back(self, matrices: Array) -> Array:
        """Return `Q_Sᵀ M Q_A`, `(…, o, i')`."""
        xp = namespace(matrices)
        if self.inputs is not None:
            matrices = matrices @ _cast(self.inputs, matrices)
        if self.outputs is not None:
            matrices = xp.matrix_transpose(_cast(self.outputs, matrices)) @ matrices
        return matrices

    def turn_inputs(self, rows: Array) -> Array:
        """Return `a Q_Aᵀ`, `(…, i')`."""
        return _turned(rows, self.inputs)

    def turn_outputs(self, rows: Array) -> Array:
        """Return `g Q_Sᵀ`, `(…, o)`."""
        return _turned(rows, self.outputs)

    def turn_outputs_back(self, rows: Array) -> Array:
        """Return `g Q_S`, `(…, o)`."""
        return rows if self.outputs is None else rows @ _cast(self.outputs, rows)

    def work(self) -> tuple[int, int]:
        """Return how many products it takes to turn a row `a`, and a row `g`, for each entry."""
        return _length(self.inputs), _length(self.outputs)


def _turned(rows: Array, basis: Array | None) -> Array:
    if basis is None:
        return rows
    return rows @ namespace(rows).matrix_transpose(_cast(basis, rows))


def _cast(basis: Array, like: Array) -> Array:
    return basis if basis.dtype == like.dtype else namespace(like).astype(basis, like.dtype)


def _length(basis: Array | None) -> int:
    return 0 if basis is None else int(basis.shape[0])
