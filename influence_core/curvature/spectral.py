"""Inverses from eigenvalues: `x = V (Λ + λ)⁻¹ Vᵀ b`, for any λ from one factorisation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
from influence_core.errors import ConditioningWarning, SingularCurvatureError
from influence_core.problem import Array, Problem
from influence_core.sources import GradientSource


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
        weights = self._weights(regularization)
        answer = spectral_product(self.vectors, weights, 0.0, rows)
        return Solution(answer, self._report(rows, answer, regularization))

    def scores_over(
        self, left: GradientSource, right: GradientSource, regularizations: Sequence[float]
    ) -> tuple[Array, list[SolveReport]]:
        """Return the scores for every λ, `(r, m, n)`; each gradient is rotated once."""
        xp = namespace(self.vectors)
        swap = right.size < left.size  # the smaller side is the one that is solved
        rows, others = (right.rows(), left.rows()) if swap else (left.rows(), right.rows())
        columns = xp.matrix_transpose(self.vectors)
        turned, turned_others = rows @ columns, xp.matrix_transpose(others @ columns)
        scores, reports = [], []
        for regularization in regularizations:
            solved = turned * from_host(self._weights(regularization), turned)
            products = solved @ turned_others
            scores.append(xp.matrix_transpose(products) if swap else products)
            reports.append(self._report(rows, solved @ self.vectors, regularization))
        return xp.stack(scores), reports

    def on(self, problem: Problem, exchange: Exchange) -> SpectralInverse:
        """Return the same inverse on the device of the exchange's solver."""
        target = device(exchange.solver)
        return replace(self, matrix=move(self.matrix, target), vectors=move(self.vectors, target))

    def _weights(self, regularization: float) -> npt.NDArray[np.float64]:
        damped = self.values + regularization
        smallest, largest = np.abs(damped).min(), np.abs(damped).max()
        if smallest == 0.0:
            raise SingularCurvatureError(
                f"{self._shifted(regularization)} is singular: {int((damped == 0).sum())} of its "
                f"{damped.size} eigenvalues are zero. Use a positive `regularization`."
            )
        precision = epsilon(self.vectors) * largest
        if smallest <= precision:
            self._warn(
                f"{self._shifted(regularization)} is singular to working precision: its "
                f"eigenvalues go down to {smallest:.1e} where the largest is {largest:.1e}. "
                "The answer is dominated by rounding; use a larger `regularization`."
            )
        elif (negative := damped[damped < 0]).size:
            self._warn(
                f"{self._shifted(regularization)} is indefinite: {negative.size} of its "
                f"{damped.size} eigenvalues are negative, down to {negative.min():.2e}. The "
                f"solution is exact, but no minimum: use a `regularization` above "
                f"{-self.values.min():.2g}, or second_order_mode='generalized_gauss_newton'."
            )
        return 1.0 / damped

    def _report(self, rows: Array, answer: Array, regularization: float) -> SolveReport:
        residual = rows - answer @ self.matrix - answer * regularization
        return closed_form_report(to_host(row_norms(residual)))

    def _shifted(self, regularization: float) -> str:
        block = f" of block {self.block!r}" if self.block else ""
        return f"`C + λI`{block} with λ={regularization:g}"

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, ConditioningWarning, stacklevel=2)
