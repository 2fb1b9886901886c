"""Inverses from eigenvalues: `x = V (Λ + λ)⁻¹ Vᵀ b`, for any λ from one factorisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    Exchange,
    device,
    epsilon,
    from_host,
    move,
    namespace,
    row_norms,
    to_host,
)
from influence_core.curvature.inverse import Inverse, Solution, SolveReport, closed_form_report
from influence_core.errors import ConditioningWarning, SingularCurvatureError, warn
from influence_core.problem import Array, Problem

# eigenvalues of a sum in working precision are off by a few of its units
_ROUNDING = 10.0


def spectral_product(vectors: Array, weights: npt.NDArray[Any], rest: float, rows: Array) -> Array:
    """Return `rows · (Vᵀ diag(weights) V + rest · (I - VᵀV))`; `V`, `(r, d)`, orthonormal rows."""
    columns = namespace(vectors).matrix_transpose(vectors)
    inner = rows @ columns
    within = (inner * from_host(weights, rows)) @ vectors
    if not rest:
        return within
    # what lies outside is formed before it is divided by a small λ, and twice: after the first time
    # a part of what lies within is left, by rounding
    outside = rows - inner @ vectors
    outside = outside - (outside @ columns) @ vectors
    return within + outside * rest


@dataclass(frozen=True)
class SpectralInverse(Inverse):
    """The exact inverse of `C + λI` from all eigenpairs of `C`.

    Attributes:
        matrix: `C`, `(d, d)`; kept to measure residuals against.
        values: eigenvalues of `C`, on the host in float64, `(d,)`.
        vectors: its eigenvectors as rows, `(d, d)`.
        block: the name of the block, for messages.
    """

    matrix: Array
    values: npt.NDArray[np.float64]
    vectors: Array
    block: str

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return `(C + λI)⁻¹ rows`, `(k, d)`.

        Warns:
            ConditioningWarning: `C + λI` is indefinite, or singular to working precision.

        Raises:
            SingularCurvatureError: an eigenvalue of `C + λI` is exactly zero.
        """
        condition = check_condition(self.values, regularization, epsilon(self.vectors), self.block)
        weights = 1.0 / (self.values + regularization)
        answer = spectral_product(self.vectors, weights, 0.0, rows)
        residual = rows - answer @ self.matrix - answer * regularization
        return Solution(answer, condition.report(residual))

    def on(self, problem: Problem, exchange: Exchange) -> SpectralInverse:
        """Return the same inverse on the device of the exchange's solver."""
        target = device(exchange.solver)
        return replace(self, matrix=move(self.matrix, target), vectors=move(self.vectors, target))


@dataclass(frozen=True)
class LowRankInverse(Inverse):
    """The inverse of `V Λ Vᵀ + λI`, or of its restriction to the span of `V`.

    With the complement, `x = V (Λ + λ)⁻¹ Vᵀ b + (b - V Vᵀ b) / λ`, which is the identity of
    Woodbury for orthonormal `V` and needs `λ > 0`; without it, `x = V (Λ + λ)⁻¹ Vᵀ b`. The
    residual in a report is that of the matrix that is inverted, `V Λ Vᵀ + λI`: without the
    complement it is the length of the part of `b` that lies outside of the span.

    Attributes:
        values: eigenvalues, on the host in float64, `(r,)`.
        vectors: orthonormal eigenvectors as rows, `(r, d)`.
        complement: whether what is orthogonal to `V` is divided by λ, or dropped.
        block: the name of the block, for messages.
        indefinite: whether the matrix that `V Λ Vᵀ` stands for was seen to be indefinite.
    """

    values: npt.NDArray[np.float64]
    vectors: Array
    complement: bool
    block: str
    indefinite: bool = False

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return the solutions for `rows`, `(k, d)`.

        Warns:
            ConditioningWarning: an eigenvalue plus λ is negative, or zero to working precision.

        Raises:
            SingularCurvatureError: an eigenvalue plus λ is exactly zero.
        """
        condition = check_condition(self.values, regularization, epsilon(self.vectors), self.block)
        rest = 1.0 / regularization if self.complement else 0.0
        weights = 1.0 / (self.values + regularization)
        answer = spectral_product(self.vectors, weights, rest, rows)
        image = spectral_product(self.vectors, self.values, 0.0, answer)
        condition = replace(condition, indefinite=condition.indefinite or self.indefinite)
        return Solution(answer, condition.report(rows - image - answer * regularization))

    def on(self, problem: Problem, exchange: Exchange) -> LowRankInverse:
        """Return the same inverse on the device of the exchange's solver."""
        return replace(self, vectors=move(self.vectors, device(exchange.solver)))


@dataclass(frozen=True)
class Condition:
    """What the eigenvalues of `C + λI` say about a solve with it.

    Attributes:
        regular: whether the smallest of them stands out from rounding.
        indefinite: whether one of them is negative.
    """

    regular: bool
    indefinite: bool

    def report(self, residual: Array) -> SolveReport:
        """Return the report of a solve that left the residuals, `(k, d)`."""
        norms = to_host(row_norms(residual))
        return closed_form_report(norms, reliable=self.regular, indefinite=self.indefinite)


def check_condition(
    values: npt.NDArray[np.float64], regularization: float, eps: float, block: str
) -> Condition:
    """Tell whether `C + λI` is regular and whether it is indefinite; say where it matters.

    Args:
        values: eigenvalues of `C`, any number of them.
        regularization: λ.
        eps: the rounding unit of the numbers that the solve is done in.
        block: the name of the block, for messages.

    Warns:
        ConditioningWarning: `C + λI` is indefinite, or singular to working precision.

    Raises:
        SingularCurvatureError: an eigenvalue of `C + λI` is exactly zero.
    """
    damped = values + regularization
    if not damped.size:
        return Condition(regular=True, indefinite=False)
    shifted = f"`C + λI`{f' of block {block!r}' if block else ''} with λ={regularization:g}"
    sizes = np.abs(damped)
    smallest, precision = sizes.min(), eps * sizes.max()
    if smallest == 0.0:
        raise SingularCurvatureError(
            f"{shifted} is singular: {int((damped == 0).sum())} of its {damped.size} eigenvalues "
            "are zero. Use a positive `regularization`."
        )
    if smallest <= precision:
        warn(
            f"{shifted} is singular to working precision: its eigenvalues go down to "
            f"{smallest:.1e} where the largest is {sizes.max():.1e}. The answer is dominated by "
            "rounding; use a larger `regularization`.",
            ConditioningWarning,
        )
    negative = damped[damped < -_ROUNDING * precision]
    if negative.size:
        warn(
            f"{shifted} is indefinite: {negative.size} of its {damped.size} eigenvalues are "
            f"negative, down to {negative.min():.2e}. The solution is exact, but no minimum: use a "
            f"`regularization` above {-values.min():.2g}, or "
            "second_order_mode='generalized_gauss_newton'.",
            ConditioningWarning,
        )
    return Condition(bool(smallest > precision), negative.size > 0)
