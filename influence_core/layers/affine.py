"""What an affine layer saw: `a'`, at one or several positions.

The gradient of a point in a pair of bases is

    Q_S (Σ_s g_s ⊗ a'_s) Q_Aᵀ = Σ_s (Q_S g_s) ⊗ (Q_A a'_s)

turned after the sum or before it, whichever is less work. At a single position its square is the
product of squares, and no gradient is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from influence_core.arrays import namespace
from influence_core.layers.bases import Bases
from influence_core.layers.seen import MatrixSeen, second_moment
from influence_core.problem import Array


@dataclass(frozen=True)
class AffineSeen(MatrixSeen):
    """`M = [W, b]`, or one of the two.

    Attributes:
        inputs: `a'`, `(n, s, i')`.
    """

    inputs: Array

    @property
    def width(self) -> int:
        """The number `i'` of columns of `M`."""
        return int(self.inputs.shape[2])

    def part(self, start: int, stop: int) -> Self:
        """Return some of the points."""
        return replace(super().part(start, stop), inputs=self.inputs[start:stop, :, :])

    def cast(self, dtype: Any) -> Self:
        """Return the same in another floating-point dtype."""
        if self.inputs.dtype == dtype:
            return super().cast(dtype)
        return replace(
            super().cast(dtype), inputs=namespace(self.inputs).astype(self.inputs, dtype)
        )

    def absolute(self) -> Self:
        """Return the magnitudes of what was seen."""
        return replace(super().absolute(), inputs=namespace(self.inputs).abs(self.inputs))

    def in_bases(self, bases: Bases) -> AffineSeen:
        """Return what is seen of `Q_S M Q_Aᵀ`: the factors turned, position by position."""
        return replace(
            self,
            inputs=bases.turn_inputs(self.inputs),
            gradients=bases.turn_outputs(self.gradients),
        )

    def matrices(self, c: int = 0) -> Array:
        """Return `Σ_s g_s ⊗ a'_s` of one slice, `(n, o, i')`."""
        return namespace(self.inputs).matrix_transpose(self.gradients[c, ...]) @ self.inputs

    def turned(self, bases: Bases, c: int = 0) -> Array:
        """Return the matrices of one slice in their bases, `(n, o, i')`."""
        one = self.with_gradients(self.gradients[c : c + 1, ...])
        if self._turns_sums(bases, 1):
            return bases.turn(one.matrices())
        return one.in_bases(bases).matrices()

    def input_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return `A`, `(i', i')`, or its diagonal, `(i',)`, from shares `(n,)`."""
        xp, weights = namespace(shares), self.mean_weights()
        if reduce:
            return second_moment(xp.sum(self.inputs * weights[:, :, None], axis=1), shares, dense)
        rows = xp.reshape(self.inputs, (-1, self.width))
        return second_moment(rows, xp.reshape(weights * shares[:, None], (-1,)), dense)

    def mean_squares(self, shares: Array, bases: Bases) -> Array:
        """Return `Λ`, `(o, i')`, from shares `(n,)`."""
        if self.positions > 1:
            # the inputs of all slices are turned once
            slices = int(self.gradients.shape[0])
            seen = self if self._turns_sums(bases, slices) else self.in_bases(bases)
            return MatrixSeen.mean_squares(seen, shares, bases if seen is self else Bases())
        xp, turned = namespace(shares), self.in_bases(bases)
        a, g = turned.inputs[:, 0, :], turned.gradients[:, :, 0, :]
        squares = xp.sum(g * g, axis=0)  # (ĝ ⊗ â)² = ĝ² ⊗ â²
        return xp.matrix_transpose(squares * shares[:, None]) @ (a * a)

    def self_products(self, weights: Array, bases: Bases, entries: int) -> Array:
        """Return `Σ_{oi} W (Q_S M Q_Aᵀ)²` of every point, `(n,)`, for `W`, `(o, i')`."""
        if self.positions > 1:
            return super().self_products(weights, bases, entries)
        turned = self.in_bases(bases)
        a, g = turned.inputs[:, 0, :], turned.gradients[0, :, 0, :]
        return namespace(weights).sum(((g * g) @ weights) * (a * a), axis=-1)

    def products(self, others: Array, entries: int) -> Array:
        """Return `⟨X, M⟩` with the matrices of every point, `(k, n)`, for `X`, `(k, o, i')`."""
        k, s = int(others.shape[0]), self.positions
        if k * s > k + s:  # to sum over the positions first is less work
            return super().products(others, entries)
        return namespace(others).sum(self.products_by_position(others, entries), axis=-1)

    def products_by_position(self, others: Array, entries: int) -> Array:
        """Return `⟨X, g_s ⊗ a'_s⟩` of every position, `(k, n, s)`, for `X`, `(k, o, i')`."""
        xp, k, s = namespace(others), int(others.shape[0]), self.positions
        inward = self.width < self.outputs  # the shorter side is left between the two products
        parts = []
        for start, stop in self.chunks(entries, k * s * min(self.width, self.outputs)):
            few = self.part(start, stop)
            a, g = few.inputs, few.gradients[0, ...]
            first, last = (g, a) if inward else (a, g)
            matrices = others if inward else xp.matrix_transpose(others)
            images = xp.reshape(first, (-1, first.shape[2])) @ matrices
            images = xp.reshape(images, (k, *last.shape))
            parts.append(xp.sum(images * last, axis=-1))
        return xp.concat(parts, axis=1)

    def _turns_sums(self, bases: Bases, slices: int) -> bool:
        """Tell whether it is less work to turn the matrices than the factors."""
        (i, o), s = bases.work(), self.positions
        matrices = slices * self.outputs * self.width * (i + o)
        return matrices < s * (self.width * i + slices * self.outputs * o)
