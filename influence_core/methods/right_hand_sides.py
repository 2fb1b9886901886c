"""What an iterative method solves for: rows of length one, and the way back from their solutions.

Row by row, a right-hand side is its length times a unit vector: tolerances that compare squares of
norms would underflow for tiny ones. Overall, all of them are a few orthonormal rows: with the
singular value decomposition `B = U S V`, the rows of `V` whose singular values are too small to
matter are left out. Gradients of many points lie close to a space of few dimensions where most of
them are short (points that the model is sure of): that saves most of the work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    epsilon,
    from_host,
    namespace,
    row_norms,
    singular_value_decomposition,
    to_host,
    unit_rows,
)
from influence_core.errors import NonFiniteError
from influence_core.problem import Array

Host = npt.NDArray[np.float64]

_TINY = float(np.finfo(np.float64).tiny)
# of the square of the tolerance: what rounding may add
_MARGIN = 0.01
# of the tolerance: what is left out of the right-hand sides
_LEFT_OUT = 0.25


class RightHandSides(ABC):
    """Right-hand sides `B`, `(k, d)`, and rows `V`, `(r, d)`, that are solved in their place.

    Attributes:
        rows: `V`, of length one or zero.
        lengths: of the right-hand sides, `(k,)`.
    """

    rows: Array
    lengths: Host

    @abstractmethod
    def expand(self, solutions: Array) -> Array:
        """Return the solutions for `B`, `(k, d)`, from those for `V`."""

    @abstractmethod
    def tolerances(self, rtol: float, atol: float) -> Host:
        """Return the residual norms, `(r,)`, that each row of `V` may have."""

    @abstractmethod
    def residual_norms(self, residuals: Array) -> Host:
        """Return the residual norms of `B`, `(k,)`, from the residuals of `V`."""

    @abstractmethod
    def relative(self, norms: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the residual norms of `B` relative to its lengths, from those of `V`."""

    @abstractmethod
    def most(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return for every right-hand side the largest of the values of its rows of `V`."""


@dataclass(frozen=True)
class RowByRow(RightHandSides):
    """Every right-hand side by itself: its direction, its length, a tolerance of its own.

    Attributes:
        rows: the directions, `(k, d)`.
        lengths: of the right-hand sides.
        factors: two, `(k, 1)` each, whose product is the lengths.
    """

    rows: Array
    lengths: Host
    factors: tuple[Array, Array]

    @classmethod
    def of(cls, b: Array, caller: str) -> RowByRow:
        """Return the rows of `b`, `(k, d)`.

        Raises:
            NonFiniteError: the norm of a row is NaN or infinite; `caller` names the method.
        """
        rows, peaks, lengths = unit_rows(b)
        with np.errstate(over="ignore"):  # it is looked for below
            norms = to_host(peaks[:, 0]).astype(np.float64) * to_host(lengths[:, 0])
        if not np.isfinite(norms).all():
            raise NonFiniteError(
                f"{caller}: the norm of a right-hand side is NaN or infinite. Look for points "
                "whose gradients are not finite or very large, or use float64."
            )
        return cls(rows, norms, (lengths, peaks))

    def expand(self, solutions: Array) -> Array:
        """Return the solutions with the lengths of their right-hand sides."""
        first, second = self.factors
        return solutions * first * second

    def tolerances(self, rtol: float, atol: float) -> Host:
        """Return `max(rtol, atol / length)`."""
        # a tolerance of one is met by x = 0 already
        return np.maximum(rtol, atol / np.maximum(self.lengths, max(atol, _TINY)))

    def residual_norms(self, residuals: Array) -> Host:
        """Return the norms in the units of the right-hand sides."""
        return to_host(row_norms(residuals)).astype(np.float64) * self.lengths

    def relative(self, norms: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the norms as they are."""
        return norms

    def most(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values as they are."""
        return values


@dataclass(frozen=True)
class Overall(RightHandSides):
    """All right-hand sides as one matrix: `B / scale = E V + rest`, with the Frobenius norm.

    Attributes:
        rows: `V`, orthonormal.
        lengths: of the right-hand sides.
        scale: the largest of them, or one.
        scaled: `B / scale`.
        weights: `E = U S`, `(k, r)`.
        values: the singular values `S` of `B / scale` that are kept, `(r,)`.
        rest: the Frobenius norm of what is left out, relative to that of `B`.
    """

    rows: Array
    lengths: Host
    scale: float
    scaled: Array
    weights: Array
    values: Host
    rest: float

    @classmethod
    def of(cls, b: Array, tolerance: float, caller: str) -> Overall:
        """Return the few rows that make up `b`, `(k, d)`, but for a part that does not matter.

        Args:
            b: the right-hand sides.
            tolerance: relative, of the solve; a quarter of it may be left out.
            caller: names the method in the error.

        Raises:
            NonFiniteError: the norm of a row is NaN or infinite.
        """
        single = RowByRow.of(b, caller)
        xp = namespace(b)
        scale = float(single.lengths.max(initial=0.0)) or 1.0
        scaled = single.rows * from_host(single.lengths / scale, b)[:, None]
        q, triangle = xp.linalg.qr(xp.matrix_transpose(scaled))
        u, s, vt = singular_value_decomposition(xp.matrix_transpose(triangle))
        values = to_host(s).astype(np.float64)
        # of all but the first, all but the first two, …
        rests = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1])
        total = max(float(rests[0]), _TINY)
        allowed = max(_LEFT_OUT * tolerance, epsilon(b)) * total
        count = max(int((rests > allowed).sum()), 1)
        rest = float(rests[count]) / total if count < rests.size else 0.0
        return cls(
            (vt @ xp.matrix_transpose(q))[:count, :],
            single.lengths,
            scale,
            scaled,
            (u * s)[:, :count],
            values[:count],
            rest,
        )

    @property
    def total(self) -> float:
        """The Frobenius norm of `B / scale`, or one where it is zero."""
        return float(np.linalg.norm(self.lengths / self.scale)) or 1.0

    def expand(self, solutions: Array) -> Array:
        """Return the combinations of the solutions."""
        return (self.weights @ solutions) * self.scale

    def tolerances(self, rtol: float, atol: float) -> Host:
        """Return what lets the residuals of `B` have the Frobenius norm `max(rtol ‖B‖, atol)`.

        Each row of `V` may use the same part of it; those of small singular values are solved
        coarsely.
        """
        limit = max(rtol, atol / (self.total * self.scale))
        allowed = max((1.0 - _MARGIN) * limit**2 - self.rest**2, 0.0)
        each = math.sqrt(allowed / self.values.size) * self.total
        return each / np.maximum(self.values, _TINY)

    def residual_norms(self, residuals: Array) -> Host:
        """Return the lengths of the rows of `B - E (V - residuals)`."""
        solved = self.weights @ (self.rows - residuals)
        return to_host(row_norms(self.scaled - solved)).astype(np.float64) * self.scale

    def relative(self, norms: npt.NDArray[Any]) -> Host:
        """Return the Frobenius norm of the residuals of `B`, relative to its own, `k` times."""
        solved = float(np.linalg.norm(norms * self.values)) / self.total
        return np.full(self.lengths.shape, math.hypot(solved, self.rest))

    def most(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the largest value, `k` times."""
        return np.full(self.lengths.shape, values.max())
