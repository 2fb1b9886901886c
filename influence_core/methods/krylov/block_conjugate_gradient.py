"""Breakdown-free block conjugate gradient: one Krylov space for all right-hand sides.

Ji and Li, A breakdown-free block conjugate gradient method, BIT Numerical Mathematics 57 (2017).
With orthonormal search directions `P` (rows) and `H = P A Pᵀ`:
`α = H⁻¹ P Rᵀ`, `X += αᵀ P`, `R -= αᵀ P A`, `β = -H⁻¹ (P A) Zᵀ`, `P = orth(Z + βᵀ P)`.
In exact arithmetic the new directions are conjugate to all before the last ones, too. In float32
that is lost within a few steps, and a step more is a pass over the data: so `β` is made for each of
the last few blocks.

Dependent right-hand sides (duplicates are common) stall the block method, so they are compressed
first: `b = T V` with orthonormal rows `V`, which are solved and expanded by `T`. Directions that
become dependent later are zeroed by a mask, so that shapes stay fixed. Rounding can stall the
recurrence; the iteration then stops, so that the caller may start again from the answer.
"""

from __future__ import annotations

import math
from typing import Any

from influence_core.arrays import (
    eigh,
    epsilon,
    eye,
    masked_reciprocal,
    namespace,
    row_norms,
    singular_value_decomposition,
    to_host,
)
from influence_core.methods.krylov.iteration import (
    Iterate,
    LinearSystem,
    StopWatch,
    largest_ratio,
)
from influence_core.problem import Array

_PATIENCE = 30
# more save no further steps where 100 rows are solved in float32; each costs a few percent of one
MOST_CONJUGATED = 5


def block_conjugate_gradient(
    system: LinearSystem, b: Array, maxiter: int, progress: Any, conjugated: int = MOST_CONJUGATED
) -> Iterate:
    """Solve `x A = b` for the rows of `b`, `(k, d)`, from zero, in at most `maxiter` steps.

    Negative curvature concerns the shared space: every row that has not converged stops with it.

    Args:
        system: `A`, and when a row has converged.
        b: the right-hand sides.
        maxiter: most steps.
        progress: a tqdm bar.
        conjugated: how many blocks are held, two arrays of `(k, d)` each, for new ones to be made
            conjugate to.
    """
    xp = namespace(b)
    expand, r = compress(b)
    # in exact arithmetic the space is exhausted after d / r steps
    watch = StopWatch(progress, patience=max(_PATIENCE, math.ceil(b.shape[1] / r.shape[0])))
    x = xp.zeros_like(r)
    p, kept = orthonormal_rows(system.precondition(r))
    history: list[tuple[Array, Array, Array]] = []
    active = row_norms(b) > system.tolerances
    iterations = xp.zeros_like(xp.astype(active, xp.int32))
    positive = finite = xp.all(xp.ones_like(active))
    step = 0
    while step < maxiter:
        ap = system.product(p)
        # decompositions raise or hang on NaN; a product of zeros ends the iteration instead
        finite = xp.all(xp.isfinite(ap))
        ap = xp.where(finite, ap, xp.zeros_like(ap))
        inverse, definite = _inverse(ap @ xp.matrix_transpose(p), kept)
        positive = positive & definite & finite
        go = xp.astype(positive, b.dtype)
        alpha = (r @ xp.matrix_transpose(p)) @ inverse * go
        x, r = x + alpha @ p, r - alpha @ ap
        iterations = iterations + xp.astype(active & positive, xp.int32)
        norms = row_norms(expand @ r)
        active = norms > system.tolerances
        step += 1
        pending = active & positive
        if watch.due(step) and not watch.look(
            step, largest_ratio(norms, system.tolerances, pending)
        ):
            break
        history = [*history, (p, ap, inverse)][-conjugated:]
        p, kept = orthonormal_rows(_conjugate(system.precondition(r), history))
    return Iterate(expand @ x, iterations, active & ~positive & finite, step)


def compress(b: Array) -> tuple[Array, Array]:
    """Return `T`, `(k, r)`, and orthonormal rows `V`, `(r, d)`, with `b = T V` and `r = rank b`.

    Rows are scaled to one length first, so that a short right-hand side is not taken for rounding.
    The row of `T` that belongs to a zero row of `b` is exactly zero.
    """
    xp, norms = namespace(b), row_norms(b)
    q, triangle = _factor(b, norms)
    u, s, vt = singular_value_decomposition(xp.matrix_transpose(triangle))
    values = to_host(s)
    count = max(int((values > _rounding(b) * values.max(initial=0.0)).sum()), 1)
    return (norms[:, None] * u * s)[:, :count], (vt @ xp.matrix_transpose(q))[:count, :]


def orthonormal_rows(rows: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the span of `rows`, `(k, d)`, padded with zero rows.

    The second answer, `(k,)`, is 1 for the rows of the basis and 0 for the padding.
    """
    xp = namespace(rows)
    q, triangle = _factor(rows, row_norms(rows))
    u, s, _ = singular_value_decomposition(triangle)
    kept = xp.astype(s > xp.max(s) * _rounding(rows), rows.dtype)
    return xp.matrix_transpose((q @ u) * kept), kept


def _conjugate(z: Array, history: list[tuple[Array, Array, Array]]) -> Array:
    """Return the part of `z`, `(k, d)`, that is conjugate to blocks `(P, P A, H⁻¹)`."""
    for p, ap, inverse in history:
        z = z - ((z @ namespace(z).matrix_transpose(ap)) @ inverse) @ p
    return z


def _factor(rows: Array, norms: Array) -> tuple[Array, Array]:
    """Return `Q`, `(d, r)`, and `R`, `(r, k)`, with `Q R` the rows at length one, as columns."""
    xp = namespace(rows)
    unit = rows * masked_reciprocal(norms, norms > 0)[:, None]
    q, triangle = xp.linalg.qr(xp.matrix_transpose(unit))
    return q, triangle


def _rounding(rows: Array) -> float:
    """Return the relative size of singular values of unit rows, `(k, d)`, that are rounding.

    A reflection leaves `k` roundings behind and an inner product of random numbers `√d`.
    """
    k, d = rows.shape
    return epsilon(rows) * float(k + math.sqrt(d))


def _inverse(h: Array, kept: Array) -> tuple[Array, Array]:
    """Return `h⁻¹` without its null space, and whether `h` has no negative eigenvalue.

    Both apart from the padding and from rounding: a direction whose curvature is lost in rounding
    is left out of the step, and is no evidence of negative curvature.
    """
    xp = namespace(h)
    scale = xp.max(xp.abs(h)) + xp.finfo(h.dtype).smallest_normal
    values, vectors = eigh(h + eye(h.shape[0], h) * ((1.0 - kept) * scale))
    rounding = xp.max(xp.abs(values)) * (epsilon(h) * h.shape[0])
    weights = masked_reciprocal(values, values > rounding)
    inverse = (xp.matrix_transpose(vectors) * weights) @ vectors
    return inverse, xp.all(values >= -rounding)
