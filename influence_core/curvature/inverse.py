"""What a method prepares for one block: `(C + λI)⁻¹` as an operator that reports its solves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from influence_core.arrays import Exchange, namespace, row_dots
from influence_core.problem import Array, Problem
from influence_core.sources import GradientSource, Watched


@dataclass(frozen=True)
class SolveReport:
    """How a solve with `k` right-hand sides ended; every field has one entry for each of them.

    Attributes:
        iterations: steps taken, `(k,)`; 0 for methods that do not iterate.
        residual_norms: `‖b - (C + λI) x‖`, `(k,)`, measured with the answer, not carried along.
        converged: whether the residual is within the tolerance, `(k,)`; for methods without one,
            whether the matrix is regular to working precision.
        negative_curvature: whether a direction with `pᵀ(C + λI)p ≤ 0` was met, `(k,)`; for methods
            with eigenvalues, whether one of them is negative.
    """

    iterations: npt.NDArray[np.int64]
    residual_norms: npt.NDArray[np.float64]
    converged: npt.NDArray[np.bool_]
    negative_curvature: npt.NDArray[np.bool_]

    def __str__(self) -> str:
        """Return the report in one line."""
        return (
            f"{int(self.converged.sum())} of {self.converged.size} right-hand sides converged, "
            f"at most {self.iterations.max(initial=0)} iterations, "
            f"largest residual norm {self.residual_norms.max(initial=0):.2e}, "
            f"negative curvature on {int(self.negative_curvature.sum())}"
        )


class BlockReports(dict[str, SolveReport]):
    """The report of every block, by its name; prints one line for each."""

    def __str__(self) -> str:
        """Return a line for each block."""
        return "\n".join(f"{name!r}: {report}" for name, report in self.items())


@dataclass(frozen=True)
class Solution:
    """Rows `x`, `(k, d)`, that solve `(C + λI) x = b`, and how that went, where it is known."""

    rows: Array
    report: SolveReport | None


class Inverse(ABC):
    """`(C + λI)⁻¹` of one block. λ is an argument of every call and is stored nowhere.

    A dataclass: `save` writes its fields. Its arrays are those of the solver's library, or NumPy's
    where they are annotated so. An inverse that has its curvature as a field reads the data in its
    solves, and needs it again when it is loaded.

    Attributes:
        batches_matter: whether answers depend on how the data is cut into batches.
    """

    batches_matter: ClassVar[bool] = False

    @property
    def watched(self) -> Watched:
        """What `scores` and `self_scores` ask to see of layers; nothing, unless said otherwise."""
        return Watched()

    @abstractmethod
    def solve(self, rows: Array, regularization: float) -> Solution:
        """Apply the inverse to `rows`, `(k, d)`."""

    def solve_over(self, rows: Array, regularizations: Sequence[float]) -> list[Solution]:
        """Apply the inverse to `rows` for every λ; overridden where they can share the work."""
        return [self.solve(rows, regularization) for regularization in regularizations]

    @abstractmethod
    def on(self, problem: Problem, exchange: Exchange) -> Inverse:
        """Return the same inverse for the same model on another device."""

    def scores(
        self, left: GradientSource, right: GradientSource, regularizations: Sequence[float]
    ) -> tuple[Array, Sequence[SolveReport | None]]:
        """Return `left (C + λI)⁻¹ rightᵀ` for every λ, `(r, m, n)`, with the reports.

        The smaller side is the one that is solved, and whose gradients are held; the other side is
        asked once for its products with all solutions. An inverse that knows a cheaper way to the
        same numbers overrides this.
        """
        swap = right.size < left.size
        solved, other = (right, left) if swap else (left, right)
        solutions = self.solve_over(solved.rows(), regularizations)
        xp = namespace(solutions[0].rows)
        products = other.products(xp.concat([solution.rows for solution in solutions]))
        scores = xp.reshape(products, (len(solutions), solved.size, other.size))
        reports = [solution.report for solution in solutions]
        return xp.matrix_transpose(scores) if swap else scores, reports

    def self_scores(
        self, sources: Sequence[GradientSource], regularization: float
    ) -> tuple[Array, SolveReport | None]:
        """Return `⟨rows (C + λI)⁻¹, rows⟩` for the points of all sources, with the report."""
        parts = [source.rows() for source in sources]
        rows = namespace(parts[0]).concat(parts)
        solution = self.solve(rows, regularization)
        return row_dots(solution.rows, rows), solution.report


def closed_form_report(
    residual_norms: npt.NDArray[Any], *, reliable: bool = True, indefinite: bool = False
) -> SolveReport:
    """Return the report of a solve that does not iterate.

    Args:
        residual_norms: `(k,)`.
        reliable: False where rounding dominates the answer; it then counts as not converged.
        indefinite: whether the matrix has negative eigenvalues.
    """
    k = residual_norms.size
    return SolveReport(
        iterations=np.zeros(k, np.int64),
        residual_norms=residual_norms.astype(np.float64),
        converged=np.isfinite(residual_norms) & reliable,
        negative_curvature=np.full(k, indefinite, np.bool_),
    )


def join_reports(reports: Sequence[SolveReport | None]) -> SolveReport | None:
    """Return one report of solves that were made one after the other; None where one has none."""
    known = [report for report in reports if report is not None]
    if len(known) < len(reports):
        return None
    return SolveReport(
        *(
            np.concatenate([getattr(report, field.name) for report in known])
            for field in fields(SolveReport)
        )
    )
