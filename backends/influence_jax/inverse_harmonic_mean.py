"""`InverseHarmonicMeanInfluence`: the documented class over the core's `InverseHarmonicMean`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import BlockStructure, Regularization
from influence_core.modes import BlockMode
from influence_jax.base import JaxInfluence
from influence_jax.losses import Loss
from influence_jax.model import Apply


class InverseHarmonicMeanInfluence(JaxInfluence):
    """Influence functions by the mean of the inverses of the points (DataInf, Kwon et al. 2024).

    `1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹` by the formula of Sherman and Morrison, in one pass of per-sample
    gradients a solve. A rough and cheap stand-in for the inverse of the mean.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        regularization: λ > 0 in `C + λI`: a number, or a mapping that names every block.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        seed: accepted by every class; nothing is random here.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: an unknown mode.
        BlockError: the block structure names unknown parameters, or one twice.
        RegularizationError: λ is not positive and finite for every block.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        loss: Loss,
        regularization: Regularization,
        block_structure: BlockStructure = BlockMode.FULL,
        *,
        seed: int = 0,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.inverse_harmonic_mean(
            regularization=regularization,
            block_structure=block_structure,
            seed=seed,
            array_backend=array_backend,
        )
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
