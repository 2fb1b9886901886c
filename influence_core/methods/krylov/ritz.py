"""An orthonormal basis with its images under a symmetric matrix, and the Ritz pairs in it.

Nothing here assumes that the rows of the basis span a Krylov space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    epsilon,
    from_host,
    namespace,
    read_flag,
    to_host,
    unit_rows,
)
from influence_core.errors import NonFiniteError
from influence_core.problem import Array

Host = npt.NDArray[np.float64]

# against the basis; again because that cancels; again for what has grown from a vanished row
_ROUNDS = 3
_OVERLAP = 10.0


@dataclass(frozen=True)
class RitzPairs:
    """Pairs `(θ, v)` by descending `|θ|`, with `v C - θ v` orthogonal to the basis.

    Attributes:
        values: `θ`, on the host, `(r,)`.
        residuals: `v C - θ v`, `(r, d)`.
        norms: their lengths, on the host, `(r,)`.
    """

    values: Host
    residuals: Array
    norms: Host


@dataclass(frozen=True)
class Basis:
    """Orthonormal rows `V` and their images `W = V C`, `(j, d)` each, in parts.

    Attributes:
        vectors: `V`, cut into groups of rows as they came.
        images: `W`, cut alike.
        projected: `V Wᵀ`, on the host, symmetric, `(j, j)`.
    """

    vectors: tuple[Array, ...] = ()
    images: tuple[Array, ...] = ()
    projected: Host = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def size(self) -> int:
        """The number `j` of rows."""
        return len(self.projected)

    def extended(self, block: Array, images: Array) -> Basis:
        """Return the basis with the rows of `block`, `(b, d)`, and their images.

        Raises:
            NonFiniteError: an image is NaN or infinite.
        """
        vectors = (*self.vectors, block)
        xp = namespace(block)
        inner = xp.concat([images @ xp.matrix_transpose(part) for part in vectors], axis=1)
        rows = to_host(inner).astype(np.float64)
        if not np.isfinite(rows).all():
            raise NonFiniteError(
                "products with the curvature are NaN or infinite. Look for points where the loss "
                "has no second derivative, or use float64."
            )
        corner = (rows[:, self.size :] + rows[:, self.size :].T) / 2
        beside = rows[:, : self.size]
        projected = np.block([[self.projected, beside.T], [beside, corner]])
        return Basis(vectors, (*self.images, images), projected)

    def ritz_pairs(self, count: int) -> RitzPairs:
        """Return the Ritz pairs largest in absolute value, `count` of them or all `j`."""
        values, weights = self._spectrum(count)
        scaled = values[:, None] * weights
        residuals = _combine(weights, self.images) - _combine(scaled, self.vectors)
        # the square of a small residual would underflow in float32
        _, peaks, lengths = unit_rows(residuals)
        norms = to_host(peaks[:, 0]).astype(np.float64) * to_host(lengths[:, 0])
        return RitzPairs(values, residuals, norms)

    def cut(self, count: int) -> Basis:
        """Return the span of the Ritz vectors largest in absolute value."""
        values, weights = self._spectrum(count)
        return Basis(
            (_combine(weights, self.vectors),), (_combine(weights, self.images),), np.diag(values)
        )

    def complement(self, rows: Array, random: Iterator[Array]) -> Array:
        """Return as many orthonormal rows, orthogonal to the basis: what it lacks of `rows`.

        Where it lacks nothing, other directions stand in.

        Args:
            rows: `(b, d)` with `b ≤ d - j`.
            random: blocks of `b` rows or more, for the case that no other directions come up.
        """
        block = self._orthonormal(rows)
        if self._overlaps(block):
            return self._orthonormal(next(random)[: rows.shape[0], :])
        return block

    def _spectrum(self, count: int) -> tuple[Host, Host]:
        values, columns = np.linalg.eigh(self.projected)
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        return values[order], columns.T[order]

    def _orthonormal(self, rows: Array) -> Array:
        xp = namespace(rows)
        for _ in range(_ROUNDS):
            rows, _, _ = unit_rows(rows)
            for part in self.vectors:
                rows = rows - (rows @ xp.matrix_transpose(part)) @ part
            columns, _ = xp.linalg.qr(xp.matrix_transpose(rows))
            rows = xp.matrix_transpose(columns)
        return rows

    def _overlaps(self, block: Array) -> bool:
        if not self.vectors:
            return False
        xp = namespace(block)
        products = [part @ xp.matrix_transpose(block) for part in self.vectors]
        return read_flag(xp.max(xp.abs(xp.concat(products))) > _OVERLAP * epsilon(block))


def _combine(weights: Host, parts: tuple[Array, ...]) -> Array:
    """Return `weights · rows` for rows that are cut into parts."""
    ends = np.cumsum([part.shape[0] for part in parts])
    cuts = np.split(weights, ends[:-1], axis=1)
    terms = [from_host(cut, part) @ part for cut, part in zip(cuts, parts, strict=True)]
    return sum(terms[1:], start=terms[0])
