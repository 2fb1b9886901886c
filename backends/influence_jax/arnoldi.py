"""`ArnoldiInfluence`: the documented class over the core's `Arnoldi`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.modes import BlockMode, SecondOrderMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class ArnoldiInfluence(JaxInfluence):
    """Influence functions from the eigenpairs of the curvature that are largest in absolute value.

    `x = V (D + λ)⁻¹ Vᵀ b` drops what is orthogonal to the `rank` eigenvectors; `use_woodbury=True`
    divides that part by λ, which makes the answer the exact inverse of `V D Vᵀ + λI`. Any λ after
    `fit` is free. `rank ≥ d` is exact.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ in `C + λI`: a number, or a mapping block name -> number; None is 0.
        rank: number of eigenpairs of each block.
        krylov_dimension: number of basis vectors that the Lanczos iteration keeps; None means
            `min(d, max(2·rank + 1, 20))`.
        tol: an eigenpair has converged when `‖Cv - θv‖ ≤ tol·|θ|`.
        max_iter: most restarts of the iteration; None is a generous number.
        eigen_computation_on_gpu: compute with CuPy on the model's device, as
            ``array_backend="cupy"`` does. False stays in JAX and on that device.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted.
        use_woodbury: divide what is orthogonal to the eigenvectors by λ; needs `λ > 0`.
        seed: of the start of the iteration.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode, or a setting outside its range.
        ExchangeError: CuPy is asked for and cannot be imported.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is negative or not finite, or an unknown block is named.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization = None,
        rank: int = 10,
        krylov_dimension: int | None = None,
        tol: float = 1e-6,
        max_iter: int | None = None,
        eigen_computation_on_gpu: bool = False,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        use_woodbury: bool = False,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.arnoldi(
            regularization=regularization,
            rank=rank,
            krylov_dimension=krylov_dimension,
            tol=tol,
            max_iter=max_iter,
            eigen_computation_on_gpu=eigen_computation_on_gpu,
            block_structure=block_structure,
            second_order_mode=second_order_mode,
            use_woodbury=use_woodbury,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
