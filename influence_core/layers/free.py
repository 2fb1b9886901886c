"""What free parameters saw: their gradients at every position, whose sum is that of the point.

`M` is a column, so that the second moment `F = Σ_n w_n Σ_c (Σ_s g)(Σ_s g)ᵀ` is no approximation: it
is the Fisher matrix of these parameters, and its eigenvalues need no correction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from influence_core.arrays import namespace
from influence_core.layers.bases import Bases
from influence_core.layers.seen import MatrixSeen
from influence_core.problem import Array


@dataclass(frozen=True)
class FreeSeen(MatrixSeen):
    """`M` is the column of the parameters, and `a' = 1`."""

    @property
    def width(self) -> int:
        """One."""
        return 1

    def in_bases(self, bases: Bases) -> FreeSeen:
        """Return what is seen of `Q_S M`."""
        return replace(self, gradients=bases.turn_outputs(self.gradients))

    def matrices(self, c: int = 0) -> Array:
        """Return `Σ_s g_s` of one slice, `(n, o, 1)`."""
        return namespace(self.gradients).sum(self.gradients[c, ...], axis=1)[:, :, None]

    def input_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return the mean of ones, `(1,)`, from shares `(n,)`."""
        return namespace(shares).sum(shares, keepdims=True)

    def output_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return `F`, `(o, o)`, or its diagonal, `(o,)`, from shares `(n,)`."""
        return super().output_moment(shares, True, dense)

    def products_by_position(self, others: Array, entries: int) -> Array:
        """Return `⟨X, g_s⟩` of every position, `(k, n, s)`, for `X`, `(k, o, 1)`."""
        xp, g = namespace(others), self.gradients[0, ...]
        rows = xp.reshape(g, (-1, self.outputs))
        answer = others[:, :, 0] @ xp.matrix_transpose(rows)
        return xp.reshape(answer, (others.shape[0], self.size, self.positions))
