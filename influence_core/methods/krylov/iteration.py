"""What the Krylov iterations share: the system, the state they return, and when to look."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from influence_core.arrays import namespace, read_float
from influence_core.problem import Array

_LONGEST_WAIT = 3


@dataclass(frozen=True)
class LinearSystem:
    """`A x = b` for several rows `b`, up to tolerances.

    Attributes:
        product: `v ↦ v · A` for rows, one pass over the data.
        precondition: `r ↦ r · M⁻¹` for rows.
        tolerances: the residual norm under which a row has converged, `(k,)`.
    """

    product: Callable[[Array], Array]
    precondition: Callable[[Array], Array]
    tolerances: Array


@dataclass(frozen=True)
class Iterate:
    """Where an iteration stopped.

    Attributes:
        rows: the solutions, `(k, d)`.
        iterations: steps in which the row was still worked on, `(k,)`.
        negative: whether the row stopped at `pᵀAp ≤ 0`, `(k,)`.
        steps: number of products with `A`.
    """

    rows: Array
    iterations: Array
    negative: Array
    steps: int


class StopWatch:
    """Decides in which steps the stop flag is read: reading stops an asynchronous device.

    The number that is read is the largest ratio of a residual to its tolerance. Its rate of descent
    so far foretells the steps that are left; half of them, at most three, pass before the next
    look. No more: conjugate gradient may end sooner than it foretold, and a step too many is a pass
    over the data.
    """

    def __init__(self, progress: Any, patience: float = math.inf) -> None:
        """Start.

        Args:
            progress: a tqdm bar that shows what is read.
            patience: steps without halving the smallest number that was read after which it is time
                to stop.
        """
        self._progress = progress
        self._patience = patience
        self._best = 0, math.inf
        self._next = 1
        self._first: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Tell whether the flag is to be read after `step` steps."""
        self._progress.update()
        return step >= self._next

    def look(self, step: int, ratio: float) -> bool:
        """Note what was read and tell whether to go on."""
        text = f"largest residual {ratio:.1e} x its tolerance"
        self._progress.set_postfix_str(text, refresh=False)
        if self._first is None:
            self._first = step, ratio
        self._next = step + self._wait(step, ratio, *self._first)
        best_step, best = self._best
        if ratio < best / 2:
            self._best = best_step, best = step, ratio
        return ratio > 1.0 and step - best_step < self._patience

    @staticmethod
    def _wait(step: int, ratio: float, first_step: int, first: float) -> int:
        if step == first_step or not (1.0 < ratio < math.inf):
            return 1
        if ratio >= first:
            return _LONGEST_WAIT
        rate = math.log(first / ratio) / (step - first_step)
        return min(max(int(math.log(ratio) / rate / 2), 1), _LONGEST_WAIT)


def largest_ratio(norms: Array, tolerances: Array, active: Array) -> float:
    """Read the largest ratio of a residual norm to its tolerance among the active rows, or 0."""
    xp = namespace(norms)
    tiny = xp.full_like(tolerances, float(xp.finfo(norms.dtype).smallest_normal))
    ratios = xp.where(active, norms / xp.maximum(tolerances, tiny), xp.zeros_like(norms))
    return read_float(xp.max(ratios))
