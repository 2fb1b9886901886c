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
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from influence_core.arrays import Exchange, epsilon, row_dots, row_norms, to_host, unit_rows
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

    Attributes:
        maxiter: most steps, hence batches, of a solve.
        dampen: from 0 to 1; adds `dampen · scale` to λ.
        scale: what the curvature is divided by. It must be more than half the largest eigenvalue of
            `C_batch + λI` for every batch. None estimates the largest norm `μ` of the batches'
            matrices in `fit`, by a few products with each, and takes `0.65 (μ + λ)` for a single
            batch; for several, whose noise a larger one averages out, the larger one of
            `1.5 (μ + λ)` and `λ · maxiter / 3`.
        rtol: relative change of a row at which it stops.
        progress: show a progress bar.
        warn_on_max_iteration: warn where a row has not converged; False logs at DEBUG instead.
        seed: of the order of the batches, another one in every epoch. Every solve starts from it.

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

    def prepare(self, curvature: Curvature) -> LissaInverse:
        """Learn how to read the batches by index, and estimate their norms where asked to.

        Raises:
            NonFiniteError: a product with the curvature is NaN or infinite.
        """
        largest = largest_batch_norm(curvature, self.seed) if self.scale is None else None
        return LissaInverse(self, curvature, curvature.objective.indexed(), largest)


@dataclass(frozen=True)
class LissaInverse(Inverse):
    """`(C + (λ + dampen · scale) I)⁻¹` of one block by a stochastic iteration.

    Attributes:
        settings: of the method.
        curvature: `C`.
        pairs: the batches by their index, or None where they can only be read in order: every solve
            then reads them once and holds them in memory.
        largest: the largest norm of a batch's matrix, where `scale` is to be found.
    """

    settings: Lissa
    curvature: Curvature
    pairs: Sequence[Any] | None = field(
        metadata=remade(lambda at: at.curvature.objective.indexed())
    )
    largest: float | None

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
        unit, peaks, lengths = unit_rows(rows)
        norms = to_host(peaks[:, 0]).astype(np.float64) * to_host(lengths[:, 0])
        if not np.isfinite(norms).all():
            raise NonFiniteError(
                "LiSSA: the norm of a right-hand side is NaN or infinite. Look for points whose "
                "gradients are not finite or very large, or use float64."
            )
        if not norms.any():
            return Solution(unit, closed_form_report(norms))
        recursion = self._recursion(regularization)
        state = self._iterate(recursion, unit, regularization)
        if to_host(state.diverged).any():
            raise NonFiniteError(self._explain_divergence(recursion, state, regularization))
        x = state.rows / recursion.scale
        report = self._measure(recursion, state, unit, regularization)
        if not report.converged.all():
            self._tell(report, recursion.scale)
        report = replace(report, residual_norms=report.residual_norms * norms)
        return Solution(x * lengths * peaks, report)

    def on(self, problem: Problem, exchange: Exchange) -> LissaInverse:
        """Return the same inverse on the device of the problem."""
        return replace(self, curvature=self.curvature.on(problem, exchange))

    def _recursion(self, regularization: float) -> Recursion:
        scale = self.settings.scale
        if scale is None:
            assert self.largest is not None  # prepare has estimated it
            size, steps = self.largest + regularization, self.settings.maxiter
            if self.curvature.objective.batch_count == 1:
                scale = _ONE_BATCH * size
            else:
                scale = max(_SEVERAL * size, regularization * steps / _TIME_CONSTANTS)
            scale = scale or 1.0
        return Recursion(float(self.settings.dampen), float(scale), float(self.settings.rtol))

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
        self, recursion: Recursion, state: Iterate, b: Array, regularization: float
    ) -> SolveReport:
        """Return the report for right-hand sides of length one, from one pass over all data."""
        x = state.rows / recursion.scale
        product = self.curvature.product(x) + x * (
            regularization + recursion.dampen * recursion.scale
        )
        norms = to_host(row_norms(b - product)).astype(np.float64)
        rounding = epsilon(b) * recursion.scale
        if not np.isfinite(norms).all():
            raise NonFiniteError(
                "LiSSA: the norm of a residual is NaN or infinite. Look for points whose second "
                "derivatives are not finite or very large, or use float64."
            )
        return SolveReport(
            iterations=to_host(state.iterations).astype(np.int64),
            residual_norms=norms,
            converged=np.where(to_host(state.active), norms <= _SOLVED, norms <= _STOPPED),
            negative_curvature=to_host(row_dots(x, product) < row_dots(x, x) * -rounding),
        )

    def _tell(self, report: SolveReport, scale: float) -> None:
        message = self._where + _explain(report, scale)
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


def _explain(report: SolveReport, scale: float) -> str:
    missed = ~report.converged
    residuals = report.residual_norms[missed]
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
