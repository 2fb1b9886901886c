"""Breakdown-free block conjugate gradient: one Krylov space for all right-hand sides.

Ji and Li, A breakdown-free block conjugate gradient method, BIT Numerical Mathematics 57 (2017).
With orthonormal search directions `P` (rows) and `H = P A Pᵀ`:
`α = H⁻¹ P Rᵀ`, `X += αᵀ P`, `R -= αᵀ P A`, `β = -H⁻¹ (P A) Zᵀ`, `P = orth(Z + βᵀ P)`.

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


def block_conjugate_gradient(
    system: LinearSystem, b: Array, maxiter: int, progress: Any
) -> Iterate:
    """Solve `x A = b` for the rows of `b`, `(k, d)`, from zero, in at most `maxiter` steps.

    Negative curvature concerns the shared space: every row that has not converged stops with it.
    """
    xp = namespace(b)
    expand, r = compress(b)
    # in exact arithmetic the space is exhausted after d / r steps
    watch = StopWatch(progress, patience=max(_PATIENCE, math.ceil(b.shape[1] / r.shape[0])))
    x = xp.zeros_like(r)
    p, kept = orthonormal_rows(system.precondition(r))
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
        z = system.precondition(r)
        beta = (z @ xp.matrix_transpose(ap)) @ inverse
        p, kept = orthonormal_rows(z - beta @ p)
        iterations = iterations + xp.astype(active & positive, xp.int32)
        norms = row_norms(expand @ r)
        active = norms > system.tolerances
        step += 1
        pending = active & positive
        if watch.due(step) and not watch.look(
            step, largest_ratio(norms, system.tolerances, pending)
        ):
            break
    return Iterate(expand @ x, iterations, active & ~positive & finite, step)


def compress(b: Array) -> tuple[Array, Array]:
    """Return `T`, `(k, r)`, and orthonormal rows `V`, `(r, d)`, with `b = T V` and `r = rank b`.

    Rows are scaled to one length first, so that a short right-hand side is not taken for rounding.
    The row of `T` that belongs to a zero row of `b` is exactly zero.
    """
    norms = row_norms(b)
    u, s, vt = singular_value_decomposition(b * masked_reciprocal(norms, norms > 0)[:, None])
    values = to_host(s)
    count = max(int((values > epsilon(b) * max(b.shape) * values.max(initial=0.0)).sum()), 1)
    return (norms[:, None] * u * s)[:, :count], vt[:count, :]


def orthonormal_rows(rows: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the span of `rows`, `(k, d)`, padded with zero rows.

    The second answer, `(k,)`, is 1 for the rows of the basis and 0 for the padding.
    """
    xp = namespace(rows)
    norms = row_norms(rows)
    scaled = rows * masked_reciprocal(norms, norms > 0)[:, None]
    q, triangle = xp.linalg.qr(xp.matrix_transpose(scaled))
    u, s, _ = singular_value_decomposition(triangle)
    kept = xp.astype(s > xp.max(s) * (epsilon(rows) * max(rows.shape)), rows.dtype)
    return xp.matrix_transpose((q @ u) * kept), kept


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
