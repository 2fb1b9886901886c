"""The iteration of LiSSA on rows: no data, no blocks, only one product a step.

`h ← b + (1 - dampen) h - h A_t / scale` from `h = b`, or with a preconditioner
`h ← P⁻¹b + (1 - dampen) h - P⁻¹ A_t h / scale` from `h = P⁻¹b`. Where no step enlarges an error,
`‖h‖ ≤ (t + 1) ‖P⁻¹b‖` after `t` steps: a row far above that diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from influence_core.arrays import namespace, read_float, row_norms
from influence_core.problem import Array

# steps between two looks at the device
_LOOK = 10
# noise may exceed the bound for a while, and small negative eigenvalues do so slowly
_GROWTH = 1e3


@dataclass(frozen=True)
class Recursion:
    """The numbers of the recursion.

    Attributes:
        dampen: what is taken from `h` in a step.
        scale: what products are divided by.
        rtol: the change of a row in a step, relative to the row, at which it stops.
        precondition: `r ↦ P⁻¹ r` for rows, or None without a preconditioner.
    """

    dampen: float
    scale: float
    rtol: float
    precondition: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Iterate:
    """Where the iteration is.

    Attributes:
        rows: `h`, `(k, d)`.
        active: which rows have not stopped, `(k,)`.
        diverged: which rows have grown beyond the bound, `(k,)`; they keep the last finite `h`.
        iterations: steps in which the row was still worked on, `(k,)`.
        changes: the relative changes of the rows in the last step, `(k,)`.
    """

    rows: Array
    active: Array
    diverged: Array
    iterations: Array
    changes: Array


def neumann_series(
    recursion: Recursion,
    products: Iterable[Callable[[Array], Array]],
    b: Array,
    progress: Any,
) -> Iterate:
    """Iterate for the rows of `b`, `(k, d)`, of length one or zero, while there are products.

    Every few steps one number is read: it ends the iteration when all rows have stopped or one has
    diverged. A row that stopped is frozen by a mask; what the others do cannot change it.
    """
    precondition = recursion.precondition or _unchanged
    start = precondition(b)
    state, sizes = _start(start), row_norms(start)
    for step, product in enumerate(products, 1):
        h = state.rows
        new = start + h * (1.0 - recursion.dampen) - precondition(product(h)) / recursion.scale
        state = _advance(recursion, state, new, sizes * (_GROWTH * (step + 1)))
        progress.update()
        if step % _LOOK == 0:
            change = _largest_change(state)
            progress.set_postfix_str(f"largest relative change {change:.1e}", refresh=False)
            if not 0.0 < change < math.inf:
                break
    return state


def _start(b: Array) -> Iterate:
    xp, norms = namespace(b), row_norms(b)
    active = norms > 0
    none = xp.zeros_like(active)
    return Iterate(b, active, none, xp.astype(none, xp.int32), norms)


def _unchanged(rows: Array) -> Array:
    return rows


def _advance(recursion: Recursion, state: Iterate, new: Array, bounds: Array) -> Iterate:
    """Take the new rows where they have not stopped; `bounds`, `(k,)`, is what none may exceed."""
    xp, h = namespace(new), state.rows
    size, norms = row_norms(new), row_norms(h)
    bounded = size <= bounds  # not so for NaN
    changes = row_norms(new - h) / xp.where(norms > 0, norms, xp.ones_like(norms))
    return Iterate(
        xp.where((state.active & xp.isfinite(size))[:, None], new, h),
        state.active & bounded & (changes > recursion.rtol),
        state.diverged | (state.active & ~bounded),
        state.iterations + xp.astype(state.active, xp.int32),
        changes,
    )


def _largest_change(state: Iterate) -> float:
    """Read the largest relative change among the active rows, infinity if a row has diverged."""
    xp, changes = namespace(state.changes), state.changes
    active = xp.where(state.active, changes, xp.zeros_like(changes))
    far = xp.full_like(changes, math.inf)
    return read_float(xp.max(xp.where(state.diverged, far, active)))
