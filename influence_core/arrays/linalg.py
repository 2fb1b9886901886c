"""Small dense algebra: in float64 where the device has it, cast back. Vectors are rows."""

from __future__ import annotations

from influence_core.arrays.namespace import namespace, widen
from influence_core.problem import Array


def row_dots(a: Array, b: Array) -> Array:
    """Return the products of corresponding rows, `(k,)`."""
    return namespace(a, b).vecdot(a, b, axis=-1)


def row_norms(a: Array) -> Array:
    """Return the Euclidean norms of the rows, `(k,)`."""
    return namespace(a).linalg.vector_norm(a, axis=-1)


def unit_rows(a: Array) -> tuple[Array, Array, Array]:
    """Return the rows with length one, and two factors, `(k, 1)` each, that scale them back.

    The length itself may be out of the range of the numbers, and so may its square; the product of
    the factors is not formed. Zero rows stay zero.
    """
    xp = namespace(a)
    peaks = xp.max(xp.abs(a), axis=-1, keepdims=True)
    ones = xp.ones_like(peaks)
    scaled = a / xp.where(peaks > 0, peaks, ones)
    lengths = xp.linalg.vector_norm(scaled, axis=-1, keepdims=True)
    return scaled / xp.where(lengths > 0, lengths, ones), peaks, lengths


def symmetrize(matrix: Array) -> Array:
    """Return `(A + Aᵀ) / 2`."""
    return (matrix + namespace(matrix).matrix_transpose(matrix)) / 2


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Return the eigenvalues (ascending) and eigenvectors, as rows, of a symmetric matrix."""
    xp = namespace(matrix)
    values, columns = xp.linalg.eigh(widen(symmetrize(matrix)))
    rows = xp.matrix_transpose(columns)
    return xp.astype(values, matrix.dtype), xp.astype(rows, matrix.dtype)


def singular_value_decomposition(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the thin `U, s, Vᵀ` with `matrix = U diag(s) Vᵀ`, computed in float64 if possible."""
    xp = namespace(matrix)
    parts = xp.linalg.svd(widen(matrix), full_matrices=False)
    u, s, vt = (xp.astype(part, matrix.dtype) for part in parts)
    return u, s, vt


def masked_reciprocal(a: Array, keep: Array) -> Array:
    """Return `1/a` where `keep` holds and 0 elsewhere, without dividing by zero."""
    xp = namespace(a)
    ones, nothing = xp.ones_like(a), xp.zeros_like(a)
    return xp.where(keep, ones / xp.where(keep, a, ones), nothing)
