"""How large the matrices of single batches are: what bounds the step of a stochastic iteration.

The norm of a matrix is that of its products with unit vectors, at most; a few steps of the power
method, `v ← v C / ‖v C‖`, come near it, and for indefinite matrices too. Batches are much alike:
each starts from the best vector of the one before it, and from fresh ones beside it.
"""

from __future__ import annotations

import math

from influence_core.arrays import namespace, normal_rows, read_float, unit_rows
from influence_core.curvature import Curvature
from influence_core.errors import NonFiniteError
from influence_core.problem import Array, Batch

_FRESH = 2
_STEPS_FIRST, _STEPS = 15, 3


def largest_batch_norm(curvature: Curvature, seed: int) -> float:
    """Estimate the largest norm of `weight · C_batch + penalty`, in one pass over the data.

    The weight of a batch is its share in the objective times the number of batches.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    objective, like = curvature.objective, curvature.problem.reference
    xp = namespace(like)
    fresh = normal_rows(seed, _FRESH, curvature.block.size, like)
    rows, largest, batches = fresh, xp.zeros_like(fresh[0, 0]), 0
    for batch in objective.batches():
        norms, rows = _power(curvature, batch, rows, _STEPS if batches else _STEPS_FIRST)
        largest = xp.maximum(largest, xp.max(norms) * objective.share(batch))
        best = xp.take(rows, xp.reshape(xp.argmax(norms), (1,)), axis=0)
        rows = xp.concat([best, fresh])
        batches += 1
    penalty = curvature.penalty()
    bound = largest * batches
    norm = read_float(bound if penalty is None else bound + xp.max(xp.abs(penalty)))
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"the curvature of block {curvature.block.name!r} has products that are NaN or "
            "infinite. Look for points where the loss has no second derivative, or use float64."
        )
    return norm


def _power(curvature: Curvature, batch: Batch, rows: Array, steps: int) -> tuple[Array, Array]:
    """Return lower bounds of the norm of `C_batch`, `(k,)`, and the vectors that reach them."""
    norms, (rows, _, _) = rows[:, 0], unit_rows(rows)
    for _ in range(steps):
        rows, peaks, lengths = unit_rows(curvature.batch_product(batch, rows))
        norms = (peaks * lengths)[:, 0]
    return norms, rows
