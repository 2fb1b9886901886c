"""`EkfacInfluence`: the documented class over the core's `Ekfac`."""

from __future__ import annotations

from typing import Any

from influence_core import facade
from influence_core.blocks import Regularization
from influence_core.layer_calls import LayerCalls
from influence_core.modes import LabelKind, Sharing, Unsupported
from influence_jax.base import JaxInfluence
from influence_jax.likelihoods import cross_entropy
from influence_jax.losses import Loss
from influence_jax.model import Apply


class EkfacInfluence(LayerCalls, JaxInfluence):
    """Influence functions with the Kronecker-factored Fisher matrix of every layer.

    For classification with cross-entropy. With the inputs `a` of a layer (and a one for its bias)
    and the gradients `g` of its outputs, `A = E[aaᵀ]` and `S = E[ggᵀ]`; the curvature is `S ⊗ A` in
    their eigenbases (Martens and Grosse 2015), or has the mean squares of the per-sample gradients
    there as eigenvalues (George et al. 2018). One pass over the data for all layers, two with
    `update_diagonal`. Any λ after `fit` is free. A block is a layer.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace.
        params: the trained parameters, any tree of JAX arrays. They are copied by `fit`.
        update_diagonal: correct the eigenvalues.
        hessian_regularization: λ in `C + λI`: a number, or a mapping layer name -> number. With 0,
            directions without any curvature are left out, with a warning.
        progress: show a progress bar over the batches of `fit`.
        loss: `loss(outputs, y)` of a batch; None is the cross-entropy of the outputs as logits.
        labels: at which labels the Fisher takes its gradients: ``"expected"``, ``"sampled"`` or
            ``"given"``, see `LabelKind`. None is the exact expectation for one distribution a point
            over at most 32 classes, and samples otherwise.
        draws: number of sampled labels a point.
        seed: of the sampled labels.
        sharing: a `Sharing`: how positions that share a layer enter the factors.
        unsupported: an `Unsupported`: what becomes of parameters that no layer explains.
        largest_exact: the most parameters of a layer without factors (a normalisation, say) whose
            block is exact; more get its diagonal.
        largest_factor: the most rows of a factor that is taken as a matrix; larger ones are
            diagonal. None takes any as a matrix.
        layers_at_once: how many layers are learnt in the same passes over the data; fewer need less
            memory and more passes. None learns all together.
        factor_dtype: of the factors, ``"float32"`` or ``"float64"``; None is the parameters' own.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic, such as ``"numpy"``; None is JAX.

    Raises:
        OptionError: `labels` or `draws` is outside its range.
        RegularizationError: λ is negative or not finite, or an unknown layer is named.
    """

    def __init__(
        self,
        apply: Apply,
        params: Any,
        update_diagonal: bool = False,
        hessian_regularization: Regularization = 0.0,
        progress: bool = False,
        *,
        loss: Loss | None = None,
        labels: LabelKind | str | None = None,
        draws: int = 1,
        seed: int = 0,
        sharing: Sharing | str = Sharing.EXPAND,
        unsupported: Unsupported | str = Unsupported.RAISE,
        largest_exact: int = 2048,
        largest_factor: int | None = None,
        layers_at_once: int | None = None,
        factor_dtype: str | None = None,
        max_memory: int | None = None,
        array_backend: str | None = None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        settings = facade.ekfac(
            update_diagonal=update_diagonal,
            hessian_regularization=hessian_regularization,
            progress=progress,
            labels=labels,
            draws=draws,
            seed=seed,
            sharing=sharing,
            unsupported=unsupported,
            largest_exact=largest_exact,
            largest_factor=largest_factor,
            layers_at_once=layers_at_once,
            factor_dtype=factor_dtype,
            array_backend=array_backend,
        )
        loss = cross_entropy if loss is None else loss
        super().__init__(apply, params, loss, settings, max_memory=max_memory)
