"""Preconditioned conjugate gradient for many right-hand sides, each its own, in shared passes.

For every row: `α = ⟨r, z⟩ / ⟨p, Ap⟩`, `x += α p`, `r -= α Ap`, `z = M⁻¹r`,
`β = ⟨r, z⟩ / ⟨r, z⟩_old`, `p = z + β p`.
Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

All rows go through one product with `A` a step. A row that has converged, or met `pᵀAp ≤ 0`, is
frozen by a mask: shapes stay the same, and what the other rows do cannot change it any more.
"""

from __future__ import annotations

from typing import Any

from influence_core.arrays import namespace, row_dots, row_norms
from influence_core.methods.krylov.iteration import (
    Iterate,
    LinearSystem,
    StopWatch,
    largest_ratio,
)
from influence_core.problem import Array


def conjugate_gradient(system: LinearSystem, b: Array, maxiter: int, progress: Any) -> Iterate:
    """Solve `x A = b` for the rows of `b`, `(k, d)`, from zero, in at most `maxiter` steps."""
    xp = namespace(b)
    watch = StopWatch(progress)
    x, r = xp.zeros_like(b), b
    p = z = system.precondition(r)
    rz = row_dots(r, z)
    active = row_norms(r) > system.tolerances
    negative = xp.zeros_like(active)
    iterations = xp.astype(negative, xp.int32)
    step = 0
    while step < maxiter:
        ap = system.product(p)
        curvature = row_dots(p, ap)
        negative = negative | (active & (curvature <= 0))
        go = active & (curvature > 0)
        alpha = _quotient(rz, curvature, go)
        x, r = x + alpha * p, r - alpha * ap
        z = system.precondition(r)
        rz, previous = row_dots(r, z), rz
        p = xp.where(go[:, None], z + _quotient(rz, previous, go) * p, xp.zeros_like(p))
        iterations = iterations + xp.astype(go, xp.int32)
        norms = row_norms(r)
        active = go & (norms > system.tolerances)
        step += 1
        if watch.due(step) and not watch.look(
            step, largest_ratio(norms, system.tolerances, active)
        ):
            break
    return Iterate(x, iterations, negative, step)


def _quotient(a: Array, b: Array, where: Array) -> Array:
    """Return `a / b` as a column where asked, 0 elsewhere."""
    xp = namespace(a)
    nothing = xp.zeros_like(a)
    quotient = xp.where(where, a, nothing) / xp.where(where, b, xp.ones_like(b))
    return quotient[:, None]
