"""`LissaInfluence`: the documented class over the core's `Lissa`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.modes import BlockMode, SecondOrderMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class LissaInfluence(JaxInfluence):
    """Influence functions by LiSSA: a stochastic Neumann series, one batch a step.

    `h ← b + (1 - dampen)·h - (C_batch + λI)h / scale`, answer `h / scale`, whose limit is
    `(C + (λ + dampen·scale)I)⁻¹b`. It converges where `scale` exceeds half the largest eigenvalue
    of `C_batch + λI`, and slowly where it exceeds it by far. `report` holds the residuals over all
    data.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ in `C + λI`: a number, or a mapping block name -> number; None is 0.
        maxiter: most steps of a solve, one batch each.
        dampen: shrinks the answer towards zero, like a λ larger by `dampen·scale`.
        scale: divides the curvature; None estimates its largest eigenvalue at `fit` and picks one
            that converges.
        rtol: a row stops when a step changes it by less than this part of its length.
        progress: show a progress bar.
        warn_on_max_iteration: warn where a row has not stopped; False logs at DEBUG instead.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted.
        seed: of the order of the batches. Which points a batch has is up to the loader: one that
            shuffles by a global generator makes other batches at every `fit`.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode, or a setting outside its range.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is negative or not finite, or an unknown block is named.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization = None,
        maxiter: int = 1000,
        dampen: float = 0.0,
        scale: float | None = 10.0,
        rtol: float = 1e-4,
        progress: bool = False,
        warn_on_max_iteration: bool = True,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.lissa(
            regularization=regularization,
            maxiter=maxiter,
            dampen=dampen,
            scale=scale,
            rtol=rtol,
            progress=progress,
            warn_on_max_iteration=warn_on_max_iteration,
            block_structure=block_structure,
            second_order_mode=second_order_mode,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
