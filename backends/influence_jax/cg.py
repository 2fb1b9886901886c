"""`CgInfluence`: the documented class over the core's `Cg`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.methods import Preconditioner
from influence_core.modes import BlockMode, SecondOrderMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class CgInfluence(JaxInfluence):
    """Influence functions by conjugate gradient: products with the curvature, never the matrix.

    All right-hand sides share one pass over the data a step. A row has converged when
    `‖r‖ ≤ max(rtol·‖b‖, atol)`; `report` says how every row ended.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ in `C + λI`: a number, or a mapping block name -> number; None is 0.
        rtol: tolerance relative to the norm of the right-hand side.
        atol: absolute tolerance.
        maxiter: most steps of a solve; None means `10·d`.
        progress: show a progress bar.
        precompute_grad: keep what a product reuses between the steps in memory: the same numbers,
            faster, more memory.
        preconditioner: None, `JacobiPreconditioner()` or `NystroemPreconditioner(rank)`.
        solve_simultaneously: block CG, one Krylov space for all right-hand sides (Ji and Li 2017).
        warn_on_max_iteration: warn where a row has not converged; False logs at DEBUG instead.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted.
        seed: of the random numbers of the preconditioner.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode, or a tolerance, `maxiter` or preconditioner that is none.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is negative or not finite, or an unknown block is named.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization = None,
        rtol: float = 1e-4,
        atol: float = 1e-6,
        maxiter: int | None = None,
        progress: bool = False,
        precompute_grad: bool = False,
        preconditioner: Preconditioner | None = None,
        solve_simultaneously: bool = False,
        warn_on_max_iteration: bool = True,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.cg(
            regularization=regularization,
            rtol=rtol,
            atol=atol,
            maxiter=maxiter,
            progress=progress,
            precompute_grad=precompute_grad,
            preconditioner=preconditioner,
            solve_simultaneously=solve_simultaneously,
            warn_on_max_iteration=warn_on_max_iteration,
            block_structure=block_structure,
            second_order_mode=second_order_mode,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
