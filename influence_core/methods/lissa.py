"""LiSSA: `(C + λI) x = b` by a stochastic Neumann series, one batch a step.

Agarwal, Bullins and Hazan, Second-order stochastic optimization for machine learning in linear
time, JMLR 18 (2017); Koh and Liang, Understanding black-box predictions via influence functions,
ICML 2017, section 3. From `h = b`,

`h ← b + (1 - dampen) h - h (C_batch + λI) / scale`,

whose mean has the limit `h / scale = (C + (λ + dampen · scale) I)⁻¹ b`. `C_batch` is the mean over
the points of a batch times (its share of all points × the number of batches): the mean of these
matrices over an epoch is `C`, so that the points of a short last batch count like all others.

The iteration shrinks errors where all eigenvalues of the matrices lie between 0 and `2 · scale`.
Directions of eigenvalue `a` need `scale / a` steps to come down by a factor of e, and what the
batches differ by leaves noise that a larger `scale` averages out. Time: one batch a step and one
pass over all data at the end; memory `O(k d)` for `k` right-hand sides in a block of `d`
parameters.

Large and small eigenvalues then need very different scales. With a preconditioner `P ≈ C + λI` in
the place of the identity, `h ← P⁻¹ b + h - P⁻¹ (C_batch + λI) h / scale` from `h = P⁻¹ b` has the
same limit, and what counts is the eigenvalues of `P⁻¹ (C_batch + λI)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    Exchange,
    device,
    epsilon,
    row_dots,
    row_norms,
    to_host,
    unit_rows,
)
from influence_core.curvature import (
    Curvature,
    Inverse,
    Solution,
    SolveReport,
    closed_form_report,
)
from influence_core.errors import ConvergenceWarning, NonFiniteError, OptionError, warn
from influence_core.methods.base import Method, check_positive_integer
from influence_core.methods.batch_norms import largest_batch_norm
from influence_core.methods.neumann import Iterate, Recursion, neumann_series
from influence_core.methods.preconditioners import (
    Preconditioner,
    PreparedPreconditioner,
    check_preconditioner,
)
from influence_core.methods.right_hand_sides import Overall, RightHandSides, RowByRow
from influence_core.problem import Array, Batch, Problem
from influence_core.restoring import remade

_LOGGER = logging.getLogger(__name__)

# what `scale=None` takes times the largest norm of a batch's matrix: over one half, as far as the
# norm may be underestimated; with several batches the smallest at which their noise stays small
_ONE_BATCH, _SEVERAL = 0.65, 1.5
# time constants of the slowest direction, of eigenvalue λ, that shall fit into `maxiter`: a larger
# scale makes less noise, as long as the iteration comes to an end
_TIME_CONSTANTS = 3.0
# residuals relative to the right-hand side: the largest of a row that stopped by its change, and
# the one that counts as solved however much the noise of the batches still moves the row
_STOPPED, _SOLVED = 0.1, 0.01


@dataclass(frozen=True)
class Lissa(Method):
    """Stochastic Neumann series, one batch a step, all right-hand sides in one product.

    A row stops when the change of a step falls under `rtol`, relative to the row. With more than
    one batch the noise of the batches may keep it above any small `rtol`; the row then ends after
    `maxiter` steps. It has converged when it stopped, and the residual that is measured over all
    data at the end is at most a tenth of the right-hand side: far too large a `scale` makes small
    changes, too. The residual is that of the limit, `‖b - (C + (λ + dampen · scale) I) x‖`.

    With `overall`, residuals are those of the matrix of all right-hand sides, in Frobenius' norm,
    and only the few directions that make it up are iterated on: less work a step. Right-hand sides
    of points with small gradients may come out with large errors of their own, or as zero.

    Attributes:
        maxiter: most steps, hence batches, of a solve.
        dampen: from 0 to 1; adds `dampen · scale` to λ. Not with a preconditioner.
        scale: what the curvature is divided by. It must be more than half the largest eigenvalue of
            `C_batch + λI` for every batch. None estimates the largest norm `μ` of the batches'
            matrices in `fit`, by a few products with each, and takes `0.65 (μ + λ)` for a single
            batch; for several, whose noise a larger one averages out, the larger one of
            `1.5 (μ + λ)` and `λ · maxiter / 3`. With a preconditioner, what counts is the norm `ν`
            of `P⁻¹ (C_batch + λI)`; None estimates it in every solve, since it depends on λ, and
            takes `0.65 ν` or `1.5 ν`.
        rtol: relative change of a row at which it stops.
        progress: show a progress bar.
        warn_on_max_iteration: warn where a row has not converged; False logs at DEBUG instead.
        seed: of the order of the batches, another one in every epoch. Every solve starts from it.
            Also of the random numbers of the preconditioner.
        preconditioner: None, or a `Preconditioner`: far fewer steps at small λ.
        overall: look at all right-hand sides together.

    Raises:
        OptionError: a value outside these meanings.
    """

    maxiter: int = 1000
    dampen: float = 0.0
    scale: float | None = 10.0
    rtol: float = 1e-4
    progress: bool = False
    warn_on_max_iteration: bool = True
    seed: int = 0
    _: KW_ONLY
    preconditioner: Preconditioner | None = None
    overall: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("maxiter", self.maxiter)
        if not (_is_number(self.dampen) and 0 <= self.dampen <= 1):
            raise OptionError(f"`dampen` must be a number from 0 to 1; got {self.dampen!r}.")
        if self.scale is not None and not (_is_number(self.scale) and 0 < self.scale < math.inf):
            raise OptionError(
                "`scale` must be a finite number above zero, or None to estimate it; got "
                f"{self.scale!r}."
            )
        if not (_is_number(self.rtol) and 0 <= self.rtol < math.inf):
            raise OptionError(f"`rtol` must be a finite number, zero or more; got {self.rtol!r}.")
        check_positive_integer("seed", self.seed, "or zero", least=0)
        check_preconditioner(self.preconditioner)
        if self.preconditioner is not None and self.dampen:
            raise OptionError(
                f"`dampen` must be 0 with a preconditioner; got {self.dampen!r}. Use a larger "
                "`regularization`."
            )

    def prepare(self, curvature: Curvature) -> LissaInverse:
        """Learn how to read the batches by index, prepare the preconditioner, estimate norms.

        Raises:
            NonFiniteError: a product with the curvature is NaN or infinite.
        """
        pairs, largest, prepared = curvature.objective.indexed(), None, None
        if self.preconditioner is not None:
            prepared = self.preconditioner.prepare(curvature, self.seed)
        elif self.scale is None:
            largest = largest_batch_norm(curvature, self.seed)
        return LissaInverse(self, curvature, pairs, largest, prepared)


def _pairs(at: Any) -> Sequence[Any] | None:
    """Return the batches by their index when the inverse is loaded."""
    return at.curvature.objective.indexed()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LissaInverse(Inverse):
    """`(C + (λ + dampen · scale) I)⁻¹` of one block by a stochastic iteration.

    Attributes:
        settings: of the method.
        curvature: `C`.
        pairs: the batches by their index, or None where they can only be read in order: every solve
            then reads them once and holds them in memory.
        largest: the largest norm of a batch's matrix, where `scale` is to be found.
        preconditioner: None, or the prepared one.
    """

    settings: Lissa
    curvature: Curvature
    pairs: Sequence[Any] | None = field(
        metadata=remade(lambda at: at.curvature.objective.indexed())
    )
    largest: float | None
    preconditioner: PreparedPreconditioner | None

    batches_matter: ClassVar[bool] = True

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return the solutions for `rows`, `(k, d)`.

        The report holds the steps of each row and `‖b - (C + (λ + dampen · scale) I) x‖` over all
        data; negative curvature is met where `xᵀ (C + (λ + dampen · scale) I) x < 0`.

        Warns:
            ConvergenceWarning: a row has not converged.

        Raises:
            NonFiniteError: the norm of a row is NaN or infinite, or the iteration diverges.
        """
        b = self._right_hand_sides(rows)
        if not b.lengths.any():
            return Solution(rows, closed_form_report(b.lengths))
        recursion = self._recursion(regularization)
        state = self._iterate(recursion, b.rows, regularization)
        if to_host(state.diverged).any():
            raise NonFiniteError(self._explain_divergence(recursion, state, regularization))
        report, relative = self._measure(recursion, state, b, regularization)
        if not report.converged.all():
            self._tell(report, relative, recursion.scale)
        return Solution(b.expand(state.rows / recursion.scale), report)

    def on(self, problem: Problem, exchange: Exchange) -> LissaInverse:
        """Return the same inverse on the device of the problem."""
        prepared = self.preconditioner
        return replace(
            self,
            curvature=self.curvature.on(problem, exchange),
            preconditioner=prepared and prepared.to(device(exchange.solver)),
        )

    def _right_hand_sides(self, rows: Array) -> RightHandSides:
        if self.settings.overall:
            return Overall.of(rows, 2 * _SOLVED, "LiSSA")
        return RowByRow.of(rows, "LiSSA")

    def _recursion(self, regularization: float) -> Recursion:
        settings, prepared = self.settings, self.preconditioner
        precondition = None if prepared is None else prepared.at(regularization)
        scale = settings.scale or self._found_scale(precondition, regularization)
        return Recursion(float(settings.dampen), float(scale), float(settings.rtol), precondition)

    def _found_scale(
        self, precondition: Callable[[Array], Array] | None, regularization: float
    ) -> float:
        curvature, slowest = self.curvature, 0.0
        if precondition is not None:
            size = largest_batch_norm(curvature, self.settings.seed, precondition, regularization)
        else:
            assert self.largest is not None  # prepare has estimated it
            size, slowest = self.largest + regularization, regularization
        if curvature.objective.batch_count == 1:
            scale = _ONE_BATCH * size
        else:
            scale = max(_SEVERAL * size, slowest * self.settings.maxiter / _TIME_CONSTANTS)
        return scale or 1.0

    def _iterate(self, recursion: Recursion, b: Array, regularization: float) -> Iterate:
        from tqdm import tqdm  # here: it takes longer to import than the rest of the core

        steps = self.settings.maxiter
        products = islice(self._products(regularization), steps)
        label = f"LiSSA {self.curvature.block.name}".strip()
        with tqdm(
            desc=label, total=steps, unit=" steps", disable=not self.settings.progress
        ) as bar:
            return neumann_series(recursion, products, b, bar)

    def _products(self, regularization: float) -> Iterator[Callable[[Array], Array]]:
        """Yield `h ↦ h (C_batch + λI)` for one batch after the other."""
        for batch, weight in self.curvature.objective.shuffled(self.pairs, self.settings.seed):
            yield partial(self._product, batch, weight, regularization)

    def _product(
        self, batch: Batch, weight: Array | float, regularization: float, h: Array
    ) -> Array:
        return self.curvature.weighted_batch_product(batch, weight, h) + h * regularization

    def _measure(
        self, recursion: Recursion, state: Iterate, b: RightHandSides, regularization: float
    ) -> tuple[SolveReport, npt.NDArray[Any]]:
        """Return the report, and the relative residuals, from one pass over all data."""
        x = state.rows / recursion.scale
        product = self.curvature.product(x) + x * (
            regularization + recursion.dampen * recursion.scale
        )
        residuals = b.rows - product
        norms = to_host(row_norms(residuals)).astype(np.float64)
        if not np.isfinite(norms).all():
            raise NonFiniteError(
                "LiSSA: the norm of a residual is NaN or infinite. Look for points whose second "
                "derivatives are not finite or very large, or use float64."
            )
        relative, rounding = b.relative(norms), epsilon(x) * recursion.scale
        going_on = b.most(to_host(state.active))
        report = SolveReport(
            iterations=b.most(to_host(state.iterations).astype(np.int64)),
            residual_norms=b.residual_norms(residuals),
            converged=np.where(going_on, relative <= _SOLVED, relative <= _STOPPED),
            negative_curvature=b.most(to_host(row_dots(x, product) < row_dots(x, x) * -rounding)),
        )
        return report, relative

    def _tell(self, report: SolveReport, relative: npt.NDArray[Any], scale: float) -> None:
        message = self._where + _explain(report, relative, scale)
        if self.settings.warn_on_max_iteration:
            warn(message, ConvergenceWarning)
        else:
            _LOGGER.debug(message)

    def _explain_divergence(
        self, recursion: Recursion, state: Iterate, regularization: float
    ) -> str:
        """Say which curvature the rows met that have grown."""
        rows, _, _ = unit_rows(state.rows)
        product = self.curvature.product(rows) + rows * regularization
        grown = to_host(state.diverged)
        met = to_host(row_dots(rows, product))[grown]
        curvature = float(met[np.argmax(np.abs(met))])
        message = (
            f"{self._where} diverges with scale={recursion.scale:g}: {int(grown.sum())} of "
            f"{grown.size} right-hand sides have grown beyond all bounds within "
            f"{to_host(state.iterations)[grown].max()} steps, where the curvature of `C + λI` "
            f"(λ={regularization:g}) is {curvature:.1e}"
        )
        if self.largest is not None:
            message += f"; the largest norm of a batch's matrix was estimated as {self.largest:.1e}"
        if curvature < 0:
            return message + (
                ". Use a `regularization` that makes all eigenvalues positive, or "
                "second_order_mode='generalized_gauss_newton' (GENERALIZED_GAUSS_NEWTON)."
            )
        remedy = "raise it" if self.settings.scale is None else "raise it, or pass scale=None"
        return message + (
            ". `scale` must be more than half the largest eigenvalue for every batch: "
            f"{remedy}; where batches differ much, raise `regularization` or use larger batches."
        )

    @property
    def _where(self) -> str:
        name = self.curvature.block.name
        return f"LiSSA of block {name!r}" if name else "LiSSA"


def _explain(report: SolveReport, relative: npt.NDArray[Any], scale: float) -> str:
    missed = ~report.converged
    residuals = relative[missed]
    message = (
        f": {int(missed.sum())} of {missed.size} right-hand sides have not converged after "
        f"{report.iterations.max()} steps with scale={scale:g}; relative residuals over all data "
        f"from {residuals.min():.1e} to {residuals.max():.1e}. "
    )
    negative = int(report.negative_curvature.sum())
    if negative:
        return message + (
            f"{negative} met negative curvature: the iteration diverges slowly. Use a larger "
            "`regularization`, or second_order_mode='generalized_gauss_newton' "
            "(GENERALIZED_GAUSS_NEWTON)."
        )
    return message + (
        "Raise `maxiter`; a smaller `scale` or a larger `regularization` needs fewer steps. The "
        "noise of several batches keeps residuals up: a larger `scale`, or larger batches, make "
        "less of it."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float | int | np.number) and not isinstance(value, bool)
