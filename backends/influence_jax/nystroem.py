"""`NystroemSketchInfluence`: the documented class over the core's `NystroemSketch`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.modes import BlockMode, SecondOrderMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class NystroemSketchInfluence(JaxInfluence):
    """Influence functions from a Nyström sketch of the curvature.

    `C_nys = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ = U Λ Uᵀ` with a Gaussian `Ω` of `rank` columns; the inverse is
    `U (Λ + λ)⁻¹ Uᵀ + (I - UUᵀ)/λ`. Any λ after `fit` is free. For positive semi-definite curvature;
    directions in which it is not are clipped, with a warning.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ > 0 in `C + λI`: a number, or a mapping that names every block.
        rank: number of random directions of each block; two passes with as many products.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted.
        seed: of the random directions.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode, or `rank` is less than one.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is not positive and finite for every block.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization,
        rank: int,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.nystroem_sketch(
            regularization=regularization,
            rank=rank,
            block_structure=block_structure,
            second_order_mode=second_order_mode,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
