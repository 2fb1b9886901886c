"""Randomised Nyström approximation of a positive semi-definite matrix.

`C_nys = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ = U Λ Uᵀ` with an orthonormalised Gaussian test matrix `Ω`, `(d, r)`.
Frangella, Tropp and Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal. 44 (2023).

The recipe is for positive semi-definite `C`. On an indefinite one the core `ΩᵀCΩ` has negative
eigenvalues, and small positive ones beside them that blow up in the pseudo-inverse. Both betray
themselves. Let `V` be an orthonormal basis of the range of `CΩ`. For `C ⪰ 0` the approximation is
`0 ⪯ C_nys ⪯ C`, hence `‖C_nys‖ ≤ ‖VᵀC‖ ≤ ‖C‖`, and every unit vector `w` satisfies
`‖CΩw‖² ≤ ‖VᵀC‖ wᵀ(ΩᵀCΩ)w`. Directions of the core that break this are left out, and no eigenvalue
above `‖VᵀC‖` is returned, whatever `C` is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    eigh,
    epsilon,
    from_host,
    namespace,
    normal_rows,
    read_flag,
    row_norms,
    singular_value_decomposition,
    symmetrize,
    to_host,
)
from influence_core.curvature.base import Curvature, Product
from influence_core.errors import ConditioningWarning, NonFiniteError, warn
from influence_core.problem import Array


@dataclass(frozen=True)
class Sketch:
    """Eigenpairs of `C_nys`, in descending order.

    Attributes:
        values: eigenvalues on the host, positive, `(r,)`.
        vectors: orthonormal eigenvectors as rows, `(r, d)`.
        clipped: the eigenvalues of the core that were left out because `C` is indefinite.
    """

    values: npt.NDArray[np.float64]
    vectors: Array
    clipped: npt.NDArray[np.float64]


def sketch_curvature(
    curvature: Curvature, rank: int, seed: int, caller: str, consequence: str
) -> Sketch:
    """Return the sketch of a curvature, and say where it had to be clipped.

    Args:
        curvature: `C`.
        rank: the number of random directions.
        seed: of the Gaussian test matrix.
        caller: who asks, for the warning.
        consequence: what clipping means to the caller.

    Warns:
        ConditioningWarning: `C` is indefinite; how many directions were clipped, and how far.
    """
    size = curvature.block.size
    sketch = nystroem_sketch(curvature.product, size, rank, seed, curvature.reference)
    if sketch.clipped.size:
        warn(
            f"`{caller}` is for positive semi-definite curvature; {sketch.clipped.size} of the "
            f"{min(rank, size)} eigenvalues of its core were clipped to zero, down to "
            f"{sketch.clipped.min():.2e}. {consequence} "
            "second_order_mode='generalized_gauss_newton' has no such directions.",
            ConditioningWarning,
        )
    return sketch


def nystroem_sketch(product: Product, size: int, rank: int, seed: int, reference: Array) -> Sketch:
    """Return the eigenpairs of the Nyström approximation of `C`, at most `rank` of them.

    Args:
        product: `v ↦ v · C`; called twice, with `rank` rows.
        size: the number `d` of rows of `C`.
        rank: the number of random directions; cut to `size`.
        seed: of the Gaussian test matrix.
        reference: an array in the library, dtype and device of the answer.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    xp = namespace(reference)
    rank = min(rank, size)
    tests, _ = xp.linalg.qr(xp.matrix_transpose(normal_rows(seed, rank, size, reference)))
    tests = xp.matrix_transpose(tests)
    images = product(tests)
    if not read_flag(xp.all(xp.isfinite(images))):
        raise NonFiniteError(
            "products with the curvature are NaN or infinite. Look for points where the loss has "
            "no second derivative, or use float64."
        )
    _, _, basis = singular_value_decomposition(images)
    _, stretches, _ = singular_value_decomposition(product(basis))
    bound = float(to_host(stretches).max())  # ‖VᵀC‖
    values, directions = eigh(symmetrize(images @ xp.matrix_transpose(tests)))
    turned = directions @ images  # (CΩw)ᵀ for every eigenvector w of the core
    core = to_host(values).astype(np.float64)
    norms = to_host(row_norms(turned)).astype(np.float64)
    keep, clipped = _semidefinite_part(core, norms, bound, epsilon(reference))
    scales = np.where(keep, 1.0 / np.sqrt(np.where(keep, core, 1.0)), 0.0)
    root = turned * from_host(scales, reference)[:, None]  # C_nys = rootᵀ root
    _, singular, vectors = singular_value_decomposition(root)
    squares = np.minimum(to_host(singular).astype(np.float64) ** 2, bound)
    count = int((squares > epsilon(reference) * squares.max(initial=0.0)).sum())
    # a copy: a slice would keep what is left out in memory, and not come back from disk as it is
    return Sketch(squares[:count], xp.asarray(vectors[:count, :], copy=True), clipped)


def _semidefinite_part(
    core: npt.NDArray[np.float64], norms: npt.NDArray[np.float64], bound: float, eps: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return which directions of the core to keep, and the eigenvalues clipped as indefinite."""
    rounding = eps * core.size * bound
    consistent = norms**2 <= 2.0 * bound * np.maximum(core, rounding)  # twice: they are rounded
    return (core > rounding) & consistent, core[~consistent]
