"""A weighted low-rank form of a matrix, with a known error: `W ≈ Σ_r u_r v_rᵀ`.

The damped inverse `W = 1/(Λ + λ)` of a Kronecker factorisation, `(o, i')`, is a smooth function of
its row and column and therefore numerically of low rank. What counts is not `W` but what it is
multiplied with: entry `(o, i')` meets factors of the sizes `rows_o` and `columns_i`. The singular
value decomposition is taken of `diag(rows) W diag(columns)`, and the weights are undone in `u` and
`v`. The relative error of this weighted matrix, in the Frobenius norm, is then that of the numbers
that come out, as far as the factors are independent.

The range is found by a random sketch with one power step and checked against the matrix itself, so
that the error is measured (Halko, Martinsson and Tropp, Finding structure with randomness, SIAM
Review 53, 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    from_host,
    masked_reciprocal,
    namespace,
    normal_rows,
    read_float,
    singular_value_decomposition,
    to_host,
    widen,
)
from influence_core.problem import Array

_FIRST_RANK = 32
# the sketch holds a few directions more than are kept
_OVERSAMPLING = 8


@dataclass(frozen=True)
class LowRank:
    """`W ≈ Σ_r u_r v_rᵀ`.

    Attributes:
        left: `u`, `(r, o)`.
        right: `v`, `(r, i')`.
    """

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        """The number of terms."""
        return int(self.left.shape[0])


def low_rank(
    matrix: npt.NDArray[np.float64], rows: Array, columns: Array, tolerance: float, most: int
) -> LowRank | None:
    """Return the weighted low-rank form of `matrix`; None where its rank would exceed `most`.

    None as well where a number is NaN or infinite.

    Args:
        matrix: `W`, `(o, i')`, on the host.
        rows: sizes of what a row is multiplied with, `(o,)`, zero or more.
        columns: sizes of what a column is multiplied with, `(i',)`.
        tolerance: relative error of the weighted matrix, in the Frobenius norm.
        most: the largest rank that is of use.
    """
    xp, like = namespace(rows), rows
    rows, columns = widen(rows), widen(columns)
    weighted = rows[:, None] * from_host(matrix, rows) * columns
    total = read_float(xp.linalg.vector_norm(weighted))
    if not math.isfinite(total):
        return None
    if total == 0.0:
        return LowRank(xp.zeros_like(like[None, :]), xp.astype(columns[None, :] * 0.0, like.dtype))
    found = _truncated(weighted, tolerance * total, most)
    if found is None:
        return None
    u, singular, vt = found
    roots = from_host(np.sqrt(singular), rows)
    left = (xp.matrix_transpose(u) * roots[:, None]) * masked_reciprocal(rows, rows > 0)
    right = (vt * roots[:, None]) * masked_reciprocal(columns, columns > 0)
    return LowRank(xp.astype(left, like.dtype), xp.astype(right, like.dtype))


def _truncated(
    matrix: Array, error: float, most: int
) -> tuple[Array, npt.NDArray[np.float64], Array] | None:
    """Return the fewest singular triplets that come within `error` of the matrix."""
    full, size = min(matrix.shape), _FIRST_RANK
    while True:
        exact = 2 * size >= full
        u, s, vt = singular_value_decomposition(matrix) if exact else _sketched(matrix, size)
        host = to_host(s).astype(np.float64)
        left_out = 0.0 if exact else _distance(matrix, u, s, vt)
        if left_out <= error / 2:
            # what the sketch misses and what is cut off, together at most the error
            tails = np.sqrt(np.cumsum(host[::-1] ** 2))[::-1]
            count = int((tails > np.sqrt(error**2 - left_out**2)).sum())
            if count > most:
                return None
            count = max(count, 1)
            return u[:, :count], host[:count], vt[:count, :]
        if exact or size >= 2 * most:
            return None
        size *= 2


def _sketched(matrix: Array, size: int) -> tuple[Array, Array, Array]:
    """Return singular triplets from a random sketch of the range, with one power step."""
    xp = namespace(matrix)
    tests = normal_rows(0, size + _OVERSAMPLING, matrix.shape[0], matrix)
    across, _ = xp.linalg.qr(xp.matrix_transpose(tests @ matrix))  # (i', r): the range of Wᵀ
    along, _ = xp.linalg.qr(matrix @ across)  # (o, r): the range of W
    u, s, vt = singular_value_decomposition(xp.matrix_transpose(along) @ matrix)
    return along @ u, s, vt


def _distance(matrix: Array, u: Array, s: Array, vt: Array) -> float:
    return read_float(namespace(matrix).linalg.vector_norm(matrix - (u * s) @ vt))
