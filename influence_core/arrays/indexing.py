"""Sums of rows by an index: the one thing that lookups need and the standard does not have."""

from __future__ import annotations

import array_api_compat

from influence_core.arrays.namespace import device, namespace, zeros
from influence_core.problem import Array

# numbers of the mask that the fallback forms at once
_ENTRIES = 2**22


def sum_by_index(indices: Array, rows: Array, size: int) -> Array:
    """Return `Σ_k [indices_k = j] rows_k` for every `j` below `size`, `(size, f)`.

    The sums are made in a fixed order, wherever the library says so.

    Args:
        indices: integers, zero or more and below `size`, `(k,)`.
        rows: `(k, f)`.
        size: the number of sums.
    """
    empty = zeros((size, rows.shape[1]), rows)
    if array_api_compat.is_torch_array(rows):
        return empty.index_put((indices,), rows, accumulate=True)  # `index_add` has no fixed order
    if array_api_compat.is_jax_array(rows):
        return empty.at[indices, :].add(rows)
    if array_api_compat.is_numpy_array(rows) or array_api_compat.is_cupy_array(rows):
        namespace(rows).add.at(empty, indices, rows)
        return empty
    return _by_masks(indices, rows, size)


def _by_masks(indices: Array, rows: Array, size: int) -> Array:
    """Return the same as products with masks: more work, in nothing but the standard."""
    xp = namespace(rows)
    some = max(1, _ENTRIES // max(1, rows.shape[0]))
    parts = []
    for start in range(0, size, some):
        stop = min(start + some, size)
        wanted = xp.arange(start, stop, dtype=indices.dtype, device=device(indices))
        parts.append(xp.astype(wanted[:, None] == indices, rows.dtype) @ rows)
    return xp.concat(parts, axis=0)
