"""What a lookup saw: the index `v` of the column of `M`, `(o, V)`, that every position asks for.

`a'` is the unit vector of `v`. In the expand setting `A` is then diagonal, with the shares of the
indices; in the reduce setting its diagonal is taken. Nothing of the size `V²` is formed, and
`(o, V)` only where it is the answer. Equal indices of one point are summed before anything is
squared,

    Λ_ov = Σ_n w_n Σ_c (Σ_{s: v_s = v} ĝ_s)²_o

by comparing the positions of a point with each other; each of `μ` equal ones then counts `1/μ`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from influence_core.arrays import device, namespace, sum_by_index
from influence_core.layers.bases import Bases
from influence_core.layers.seen import Seen
from influence_core.problem import Array

# the most numbers that are formed at once where positions are compared
_ENTRIES = 2**22


@dataclass(frozen=True)
class LookupSeen(Seen):
    """`M` is the transpose of the table.

    Attributes:
        indices: `v`, `(n, s)`.
        vocabulary: the number `V` of them.
    """

    indices: Array
    vocabulary: int

    @property
    def width(self) -> int:
        """The number `V` of columns of `M`."""
        return self.vocabulary

    def part(self, start: int, stop: int) -> Self:
        """Return some of the points."""
        return replace(super().part(start, stop), indices=self.indices[start:stop, :])

    def in_bases(self, bases: Bases) -> LookupSeen:
        """Return what is seen of `Q_S M`; the other basis is the identity."""
        return replace(self, gradients=bases.turn_outputs(self.gradients))

    def matrices(self, c: int = 0) -> Array:
        """Return `Σ_s g_s ⊗ e_v` of one slice, `(n, o, V)`."""
        xp, n = namespace(self.gradients), self.size
        rows = xp.reshape(self.gradients[c, ...], (-1, self.outputs))
        points = xp.arange(n, dtype=self.indices.dtype, device=device(self.indices))
        places = xp.reshape(self.indices + points[:, None] * self.vocabulary, (-1,))
        sums = sum_by_index(places, rows, n * self.vocabulary)
        return xp.matrix_transpose(xp.reshape(sums, (n, self.vocabulary, self.outputs)))

    def turned(self, bases: Bases, c: int = 0) -> Array:
        """Return the matrices of one slice in their bases, `(n, o, V)`."""
        return self.in_bases(bases).matrices(c)

    def input_moment(self, shares: Array, reduce: bool, dense: bool) -> Array:
        """Return the diagonal of `A`, `(V,)`, from shares `(n,)`."""
        xp, weights = namespace(shares), self.mean_weights()
        if reduce:
            parts = []
            for few, start, stop in self._parts():
                equal, counts = few.equal()
                sums = (equal @ weights[start:stop, :, None])[:, :, 0]
                parts.append(sums * sums / counts)
            weights = xp.concat(parts, axis=0)
        rows = xp.reshape(weights * shares[:, None], (-1, 1))
        return sum_by_index(xp.reshape(self.indices, (-1,)), rows, self.vocabulary)[:, 0]

    def mean_squares(self, shares: Array, bases: Bases) -> Array:
        """Return `Λ`, `(o, V)`, from shares `(n,)`."""
        xp, seen = namespace(shares), self.in_bases(bases)
        parts = [
            few.squares() * shares[start:stop, None, None] for few, start, stop in seen._parts()
        ]
        rows = xp.reshape(xp.concat(parts, axis=0), (-1, self.outputs))
        return xp.matrix_transpose(
            sum_by_index(xp.reshape(self.indices, (-1,)), rows, self.vocabulary)
        )

    def self_products(self, weights: Array, bases: Bases, entries: int) -> Array:
        """Return `Σ_{ov} W (Q_S M)²` of every point, `(n,)`, for `W`, `(o, V)`."""
        xp, seen = namespace(weights), self.in_bases(bases)
        parts = [
            xp.sum(few.columns(weights) * few.squares(), axis=(1, 2)) for few, _, _ in seen._parts()
        ]
        return xp.concat(parts)

    def columns(self, weights: Array) -> Array:
        """Return the columns of `W`, `(o, V)`, that were asked for, `(n, s, o)`."""
        xp = namespace(weights)
        own = xp.take(weights, xp.reshape(self.indices, (-1,)), axis=1)
        return xp.reshape(xp.matrix_transpose(own), (self.size, self.positions, -1))

    def squares(self) -> Array:
        """Return `Σ_c (Σ_{s': v_s' = v_s} g_s')²/μ_s`, `(n, s, o)`: each index once in all."""
        equal, counts = self.equal()
        total: Any = 0.0
        for c in range(self.gradients.shape[0]):
            sums = equal @ self.gradients[c, ...]
            total = total + sums * sums
        return total / counts[:, :, None]

    def equal(self) -> tuple[Array, Array]:
        """Return where positions of a point agree, `(n, s, s)`, and with how many, `(n, s)`."""
        xp = namespace(self.gradients)
        equal = self.indices[:, :, None] == self.indices[:, None, :]
        mask = xp.astype(equal, self.gradients.dtype)
        return mask, xp.sum(mask, axis=2)

    def points(self) -> Iterator[LookupSeen]:
        """Yield what was seen of each point."""
        return (self.part(at, at + 1) for at in range(self.size))

    def matches(self, solved: LookupSeen) -> Array:
        """Return `Σ_t [v_t = v_s] ⟨x_t, g_s⟩` of every position, `(c, n, s)`.

        What the positions ask for is looked up among the indices of one other point.

        Args:
            solved: a single point, whose positions are the `t` and whose gradients the `x`,
                `(c, 1, t, o)`.
        """
        xp, own = namespace(self.gradients), solved.indices[0, :]
        equal, _ = solved.equal()
        order = xp.argsort(own)
        known = xp.take(own, order)
        flat = xp.reshape(self.indices, (-1,))
        places = xp.searchsorted(known, flat)
        places = xp.where(places < known.shape[0], places, xp.zeros_like(places))
        found = xp.astype(xp.take(known, places) == flat, self.gradients.dtype)
        g = xp.reshape(self.gradients[0, ...], (-1, self.outputs)) * found[:, None]
        answers = []
        for c in range(solved.gradients.shape[0]):
            sums = xp.take(equal[0, ...] @ solved.gradients[c, 0, ...], order, axis=0)
            answers.append(xp.sum(xp.take(sums, places, axis=0) * g, axis=-1))
        return xp.reshape(xp.stack(answers), (len(answers), self.size, self.positions))

    def _parts(self) -> list[tuple[LookupSeen, int, int]]:
        """Return a few points at a time, with their ends."""
        chunks = self.chunks(_ENTRIES, self.positions * max(self.positions, self.outputs))
        return [(self.part(start, stop), start, stop) for start, stop in chunks]
