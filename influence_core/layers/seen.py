"""What the parameters of a layer saw of some points, and the sums that are made of it.

With `a'` and `g` at `s` shared positions (see `LayerStatistics`), a share `w_n` of every point,
sums over the `c` slices of the labels, and means over the positions that count:

    expand    A = Σ_n w_n mean_s a' a'ᵀ            S = Σ_n w_n Σ_c Σ_s g gᵀ
    reduce    A = Σ_n w_n (mean_s a')(mean_s a')ᵀ  S = Σ_n w_n Σ_c (Σ_s g)(Σ_s g)ᵀ
    both      Λ = Σ_n w_n Σ_c (Q_S (Σ_s g_s ⊗ a'_s) Q_Aᵀ)²     entry by entry

Eschenhagen, Immer, Turner, Schneider and Hennig, Kronecker-factored approximate curvature for
modern neural network architectures, NeurIPS 2023.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from influence_core.arrays import masked_reciprocal, namespace, ones
from influence_core.layers.bases import Bases
from influence_core.problem import Array, LayerStatistics

# the most numbers of per-sample gradients that are formed at once, where positions are shared
_ENTRIES = 2**22


@dataclass(frozen=True)
class Seen(ABC):
    """What the parameters of one layer saw of `n` points.

    Attributes:
        gradients: `g`, `(c, n, s, o)`.
        counted: `(n, s)`, zero at padding, whose `g` is zero; None where there is none.
    """

    gradients: Array
    counted: Array | None

    @property
    def size(self) -> int:
        """The number `n` of points."""
        return int(self.gradients.shape[1])

    @property
    def positions(self) -> int:
        """The number `s` of positions."""
        return int(self.gradients.shape[2])

    @property
    def outputs(self) -> int:
        """The number `o` of rows of `M`."""
        return int(self.gradients.shape[3])

    @property
    @abstractmethod
    def width(self) -> int:
        """The number `i'` of columns of `M`."""

    def part(self, start: int, stop: int) -> Self:
        """Return some of the points."""
        counted = None if self.counted is None else self.counted[start:stop, :]
        return replace(self, gradients=self.gradients[:, start:stop, :, :], counted=counted)

    def chunks(self, entries: int, each: int) -> Iterator[tuple[int, int]]:
        """Yield the ends of parts, whose points form no more than `entries` numbers at once.

        Args:
            entries: how many.
            each: what one point forms.
        """
        size = max(1, entries // max(1, each))
        return ((start, min(start + size, self.size)) for start in range(0, self.size, size))

    def cast(self, dtype: Any) -> Self:
        """Return the same in another floating-point dtype."""
        if self.gradients.dtype == dtype:
            return self
        xp = namespace(self.gradients)
        counted = None if self.counted is None else xp.astype(self.counted, dtype)
        return replace(self, gradients=xp.astype(self.gradients, dtype), counted=counted)

    def absolute(self) -> Self:
        """Return the magnitudes of what was seen."""
        return replace(self, gradients=namespace(self.gradients).abs(self.gradients))

    def with_gradients(self, gradients: Array) -> Self:
        """Return the same with other output gradients."""
        return replace(self, gradients=gradients)

    @abstractmethod
    def in_bases(self, bases: Bases) -> Seen:
        """Return what is seen of `Q_S M Q_Aᵀ`: the factors turned, position by position."""

    @abstractmethod
    def matrices(self, c: int = 0) -> Array:
        """Return `Σ_s g_s ⊗ a'_s` of one slice, `(n, o, i')`."""

    def turned(self, bases: Bases, c: int = 0) -> Array:
        """Return the matrices of one slice in their bases, `(n, o, i')`."""
        return bases.turn(self.matrices(c))

    def mean_weights(self) -> Array:
        """Return what the positions count in the mean over those of their point, `(n, s)`."""
        if self.counted is None:
            return ones((self.size, self.positions), self.gradients) / self.positions
        totals = namespace(self.counted).sum(self.counted, axis=1, keepdims=True)
        return self.counted * masked_reciprocal(totals, totals > 0)

    @abstractmethod
    def input_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return `A`, `(i', i')`, or its diagonal, `(i',)`, from shares `(n,)`."""

    def output_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return `S`, `(o, o)`, or its diagonal, `(o,)`, from shares `(n,)`."""
        xp, g = namespace(shares), self.gradients
        if reduce and self.positions > 1:
            g = xp.sum(g, axis=2, keepdims=True)
        weights = xp.broadcast_to(shares[None, :, None], g.shape[:3])
        rows = xp.reshape(g, (-1, g.shape[3]))
        return second_moment(rows, xp.reshape(weights, (-1,)), dense)

    def mean_squares(self, shares: Array, bases: Bases) -> Array:
        """Return `Λ`, `(o, i')`, from shares `(n,)`: a few per-sample gradients at a time."""
        xp = namespace(shares)
        total: Any = 0.0
        for start, stop in self.chunks(_ENTRIES, self.outputs * self.width):
            few = self.part(start, stop)
            for c in range(self.gradients.shape[0]):
                turned = few.turned(bases, c)
                squares = xp.tensordot(shares[start:stop], turned * turned, axes=((0,), (0,)))
                total = total + squares
        return total

    @abstractmethod
    def self_products(self, weights: Array, bases: Bases, entries: int) -> Array:
        """Return `Σ_{oi} W (Q_S M Q_Aᵀ)²` of every point, `(n,)`, for `W`, `(o, i')`.

        At most `entries` numbers are formed at once.
        """


@dataclass(frozen=True)
class MatrixSeen(Seen):
    """What is seen where the matrices `M` of a few points may be formed."""

    def self_products(self, weights: Array, bases: Bases, entries: int) -> Array:
        """Return `Σ_{oi} W (Q_S M Q_Aᵀ)²` of every point, `(n,)`, for `W`, `(o, i')`."""
        xp = namespace(weights)
        parts = []
        for start, stop in self.chunks(entries, self.outputs * self.width):
            turned = self.part(start, stop).turned(bases)
            parts.append(xp.sum(weights * turned * turned, axis=(1, 2)))
        return xp.concat(parts)

    def products(self, others: Array, entries: int) -> Array:
        """Return `⟨X, M⟩` with the matrices of every point, `(k, n)`, for `X`, `(k, o, i')`."""
        xp = namespace(others)
        flat = xp.reshape(others, (others.shape[0], -1))
        parts = []
        for start, stop in self.chunks(entries, self.outputs * self.width):
            rows = xp.reshape(self.part(start, stop).matrices(), (stop - start, -1))
            parts.append(flat @ xp.matrix_transpose(rows))
        return xp.concat(parts, axis=1)

    @abstractmethod
    def products_by_position(self, others: Array, entries: int) -> Array:
        """Return `⟨X, g_s ⊗ a'_s⟩` of every position, `(k, n, s)`, for `X`, `(k, o, i')`."""


def second_moment(rows: Array, weights: Array, dense: bool) -> Array:
    """Return `Σ w row rowᵀ`, `(f, f)`, or its diagonal, `(f,)`, for rows `(k, f)`."""
    xp, weighted = namespace(rows), rows * weights[:, None]
    return xp.matrix_transpose(weighted) @ rows if dense else xp.sum(weighted * rows, axis=0)


def numbers_of(statistics: Mapping[str, LayerStatistics]) -> int:
    """Return how many numbers there are in the statistics, and in what lookups compare."""
    return sum(
        math.prod(each.inputs.shape)
        + math.prod(each.output_gradients.shape)
        + (each.inputs.shape[-1] ** 2 * each.inputs.shape[0] if each.inputs.ndim == 2 else 0)
        for each in statistics.values()
    )
