"""`DirectInfluence`: the documented class over the core's `Direct`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.modes import BlockMode, SecondOrderMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class DirectInfluence(JaxInfluence):
    """Influence functions by materialising each block of the curvature and factoring it once.

    Exact, for up to some ten thousand parameters a block: time `O(d³)`, memory `O(d²)`. Any λ after
    `fit` is free.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ in `C + λI`: a number, or a mapping block name -> number; None is 0.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted.
        seed: accepted by every class; nothing is random here.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is negative or not finite, or an unknown block is named.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization = None,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.direct(
            regularization=regularization,
            block_structure=block_structure,
            second_order_mode=second_order_mode,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
