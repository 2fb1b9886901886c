"""Conjugate gradient: `(C + λI) x = b` from products with `C` alone.

Koh and Liang, Understanding black-box predictions via influence functions, ICML 2017, section 3.
All right-hand sides share one pass over the data a step. Time: iterations × one pass; memory
`O(k d)` for `k` right-hand sides in a block of `d` parameters.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    Exchange,
    device,
    from_host,
    namespace,
    row_norms,
    to_host,
)
from influence_core.curvature import Curvature, Inverse, Solution, SolveReport
from influence_core.errors import ConvergenceWarning, NonFiniteError, OptionError, warn
from influence_core.memory import points_in_memory
from influence_core.methods.base import Method, check_positive_integer
from influence_core.methods.krylov import (
    MOST_CONJUGATED,
    Iterate,
    LinearSystem,
    block_conjugate_gradient,
    conjugate_gradient,
)
from influence_core.methods.preconditioners import (
    Preconditioner,
    PreparedPreconditioner,
    check_preconditioner,
)
from influence_core.methods.right_hand_sides import Overall, RightHandSides, RowByRow
from influence_core.problem import Array, Problem

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cg(Method):
    """Conjugate gradient, row by row or as one block.

    A row has converged when `‖b - (C + λI) x‖ ≤ max(rtol ‖b‖, atol)`. The residual that counts is
    the one measured with the answer: where the one that the recurrence carries along has drifted
    from it (float32, small λ), the iteration starts again from the answer as long as that helps.

    With `overall`, the norm is Frobenius' and `b` the matrix of all right-hand sides: the scores
    then have about the relative error `rtol`, taken over all of them. Only the few directions that
    make up the right-hand sides are solved for. Those of points with small gradients may come out
    with large errors of their own, or as zero.

    Attributes:
        rtol: tolerance relative to the norm of the right-hand side.
        atol: absolute tolerance.
        maxiter: most steps of a solve; None means `10 d`.
        progress: show a progress bar.
        precompute_grad: do the forward work of a pass once a solve and hold it in memory.
        preconditioner: None, or a `Preconditioner`.
        solve_simultaneously: block CG, one Krylov space for all right-hand sides (Ji and Li 2017):
            fewer passes, and more dense algebra a step.
        warn_on_max_iteration: warn where a row has not converged; False logs at DEBUG instead.
        seed: of the random numbers of the preconditioner.
        overall: let the tolerances hold for all right-hand sides together.

    Raises:
        OptionError: a value outside these meanings.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    maxiter: int | None = None
    progress: bool = False
    precompute_grad: bool = False
    preconditioner: Preconditioner | None = None
    solve_simultaneously: bool = False
    warn_on_max_iteration: bool = True
    seed: int = 0
    _: KW_ONLY
    overall: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            number = isinstance(value, float | int | np.number) and not isinstance(value, bool)
            if not (number and 0 <= value < math.inf):
                raise OptionError(f"`{name}` must be a finite number, zero or more; got {value!r}.")
        if self.maxiter is not None:
            check_positive_integer("maxiter", self.maxiter, "or None for 10·d steps")
        check_positive_integer("seed", self.seed, "or zero", least=0)
        check_preconditioner(self.preconditioner)

    def prepare(self, curvature: Curvature) -> CgInverse:
        """Prepare the preconditioner."""
        if self.preconditioner is None:
            return CgInverse(self, curvature, None)
        return CgInverse(self, curvature, self.preconditioner.prepare(curvature, self.seed))


@dataclass(frozen=True)
class CgInverse(Inverse):
    """`(C + λI)⁻¹` of one block by conjugate gradient."""

    settings: Cg
    curvature: Curvature
    preconditioner: PreparedPreconditioner | None

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return the solutions for `rows`, `(k, d)`.

        Warns:
            ConvergenceWarning: a row has not converged, or met negative curvature.

        Raises:
            NonFiniteError: the norm of a row, or of a residual, is NaN or infinite.
        """
        b = self._right_hand_sides(rows)
        system = self._system(b, regularization)
        with self._progress_bar() as bar:
            state = self._refine(system, b.rows, bar)
        report = state.report(b, to_host(system.tolerances))
        if not report.converged.all():
            self._tell(report, b.relative(state.norms), regularization)
        return Solution(b.expand(state.rows), report)

    def on(self, problem: Problem, exchange: Exchange) -> CgInverse:
        """Return the same inverse on the device of the problem."""
        prepared = self.preconditioner
        return replace(
            self,
            curvature=self.curvature.on(problem, exchange),
            preconditioner=prepared and prepared.to(device(exchange.solver)),
        )

    def _right_hand_sides(self, rows: Array) -> RightHandSides:
        if self.settings.overall:
            return Overall.of(rows, self.settings.rtol, "CG")
        return RowByRow.of(rows, "CG")

    def _system(self, b: RightHandSides, regularization: float) -> LinearSystem:
        linearize = self.settings.precompute_grad
        product = self.curvature.linearized() if linearize else self.curvature.product
        tolerances = b.tolerances(self.settings.rtol, self.settings.atol)
        return LinearSystem(
            lambda v: product(v) + v * regularization,
            self.preconditioner.at(regularization) if self.preconditioner else lambda r: r,
            from_host(tolerances, b.rows),
        )

    def _refine(self, system: LinearSystem, b: Array, bar: Any) -> _State:
        """Iterate, measure the residual, and go on from there for the rows that need it."""
        xp = namespace(b)
        iterate = self._iteration(b)
        tolerances = to_host(system.tolerances)
        state = _State(xp.zeros_like(b), b, to_host(row_norms(b)))
        pending, residual = state.norms > tolerances, b
        while pending.any() and state.steps < self._maxiter:
            start = xp.where(_on_device(pending, b)[:, None], residual, xp.zeros_like(b))
            part = iterate(system, start, self._maxiter - state.steps, bar)
            rows = state.rows + part.rows
            residual = b - system.product(rows)
            norms = to_host(row_norms(residual))
            _check_finite(norms)
            helped = pending & (norms < state.norms / 2)
            state = state.after(part, rows, residual, norms)
            pending = helped & (norms > tolerances) & np.logical_not(state.negative)
        return state

    def _iteration(self, b: Array) -> Callable[[LinearSystem, Array, int, Any], Iterate]:
        if not self.settings.solve_simultaneously:
            return conjugate_gradient
        blocks = points_in_memory(self.curvature.problem, 2 * b.shape[0] * b.shape[1])
        return partial(block_conjugate_gradient, conjugated=min(blocks, MOST_CONJUGATED))

    @property
    def _maxiter(self) -> int:
        return self.settings.maxiter or 10 * self.curvature.block.size

    def _progress_bar(self) -> Any:
        from tqdm import tqdm  # here: it takes longer to import than the rest of the core

        label = f"CG {self.curvature.block.name}".strip()
        return tqdm(desc=label, unit=" steps", disable=not self.settings.progress)

    def _tell(self, report: SolveReport, relative: npt.NDArray[Any], regularization: float) -> None:
        message = _explain(report, relative, regularization, self.curvature.block.name)
        if self.settings.warn_on_max_iteration:
            warn(message, ConvergenceWarning)
        else:
            _LOGGER.debug(message)


@dataclass(frozen=True)
class _State:
    """What all rounds of a solve have reached."""

    rows: Array
    residuals: Array
    norms: npt.NDArray[Any]
    iterations: npt.NDArray[np.int64] | int = 0
    negative: npt.NDArray[np.bool_] | bool = False
    steps: int = 0

    def after(
        self, part: Iterate, rows: Array, residuals: Array, norms: npt.NDArray[Any]
    ) -> _State:
        """Return what is reached with another round; one that made a row worse is not taken."""
        # the first round is taken as it is: zero is no iterate
        better = norms <= (self.norms if self.steps else np.inf)
        xp, taken = namespace(rows), _on_device(better, rows)[:, None]
        return _State(
            xp.where(taken, rows, self.rows),
            xp.where(taken, residuals, self.residuals),
            np.where(better, norms, self.norms),
            self.iterations + to_host(part.iterations).astype(np.int64),
            np.logical_or(self.negative, to_host(part.negative)),
            self.steps + part.steps,
        )

    def report(self, b: RightHandSides, tolerances: npt.NDArray[Any]) -> SolveReport:
        """Return the report for the right-hand sides that the rows stand for."""
        shape = self.norms.shape
        return SolveReport(
            iterations=b.most(np.zeros(shape, np.int64) + self.iterations),
            residual_norms=b.residual_norms(self.residuals),
            converged=~b.most(self.norms > tolerances),
            negative_curvature=b.most(np.zeros(shape, np.bool_) | self.negative),
        )


def _check_finite(norms: npt.NDArray[Any]) -> None:
    if not np.isfinite(norms).all():
        raise NonFiniteError(
            "CG: the norm of a residual is NaN or infinite. Look for points whose gradients or "
            "second derivatives are not finite or very large, or use float64."
        )


def _on_device(mask: npt.NDArray[np.bool_], like: Array) -> Array:
    return from_host(mask.astype(np.float64), like) > 0


def _explain(
    report: SolveReport, relative: npt.NDArray[Any], regularization: float, block: str
) -> str:
    missed = ~report.converged
    relative = relative[missed]
    where = f" of block {block!r}" if block else ""
    message = (
        f"CG{where}: {int(missed.sum())} of {missed.size} right-hand sides have not converged "
        f"after {report.iterations.max()} steps; relative residuals from {relative.min():.1e} to "
        f"{relative.max():.1e}, residual norms up to {report.residual_norms[missed].max():.1e}. "
    )
    if report.negative_curvature.any():
        return message + (
            f"{int(report.negative_curvature.sum())} met negative curvature: `C + λI` is not "
            f"positive definite at λ={regularization:g}. Use a larger `regularization`, or "
            "second_order_mode='generalized_gauss_newton' (GENERALIZED_GAUSS_NEWTON)."
        )
    return message + (
        "Raise `maxiter`, `rtol` or `regularization`, pass `preconditioner=`, or use float64 "
        "where the residuals no longer fall."
    )
