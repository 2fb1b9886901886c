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
from influence_core.curvature.inverse import Inverse, Solution, closed_form_report
from influence_core.errors import ConditioningWarning, SingularCurvatureError, warn
from influence_core.problem import Array, Problem

# eigenvalues of a sum in working precision are off by a few of its units
_ROUNDING = 10.0


def spectral_product(vectors: Array, weights: npt.NDArray[Any], rest: float, rows: Array) -> Array:
    """Return `rows · (Vᵀ diag(weights) V + rest · (I - VᵀV))`; `V`, `(r, d)`, orthonormal rows."""
    columns = namespace(vectors).matrix_transpose(vectors)
    within = ((rows @ columns) * from_host(weights - rest, rows)) @ vectors
    return within + rows * rest if rest else within


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
        damped = self.values + regularization
        reliable, indefinite = self._condition(damped, regularization)
        answer = spectral_product(self.vectors, 1.0 / damped, 0.0, rows)
        residual = to_host(row_norms(rows - answer @ self.matrix - answer * regularization))
        report = closed_form_report(residual, reliable=reliable, indefinite=indefinite)
        return Solution(answer, report)

    def on(self, problem: Problem, exchange: Exchange) -> SpectralInverse:
        """Return the same inverse on the device of the exchange's solver."""
        target = device(exchange.solver)
        return replace(self, matrix=move(self.matrix, target), vectors=move(self.vectors, target))

    def _condition(
        self, damped: npt.NDArray[np.float64], regularization: float
    ) -> tuple[bool, bool]:
        """Return whether `C + λI` is regular and whether it is indefinite; say where it matters."""
        sizes = np.abs(damped)
        smallest, precision = sizes.min(), epsilon(self.vectors) * sizes.max()
        if smallest == 0.0:
            raise SingularCurvatureError(
                f"{self._shifted(regularization)} is singular: {int((damped == 0).sum())} of its "
                f"{damped.size} eigenvalues are zero. Use a positive `regularization`."
            )
        if smallest <= precision:
            warn(
                f"{self._shifted(regularization)} is singular to working precision: its "
                f"eigenvalues go down to {smallest:.1e} where the largest is {sizes.max():.1e}. "
                "The answer is dominated by rounding; use a larger `regularization`.",
                ConditioningWarning,
            )
        negative = damped[damped < -_ROUNDING * precision]
        if negative.size:
            warn(
                f"{self._shifted(regularization)} is indefinite: {negative.size} of its "
                f"{damped.size} eigenvalues are negative, down to {negative.min():.2e}. The "
                f"solution is exact, but no minimum: use a `regularization` above "
                f"{-self.values.min():.2g}, or second_order_mode='generalized_gauss_newton'.",
                ConditioningWarning,
            )
        return bool(smallest > precision), negative.size > 0

    def _shifted(self, regularization: float) -> str:
        block = f" of block {self.block!r}" if self.block else ""
        return f"`C + λI`{block} with λ={regularization:g}"
