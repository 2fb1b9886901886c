"""`EkfacInfluence`: the documented class over the core's `Ekfac`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from jax import Array

from influence_core import facade
from influence_core.blocks import Regularization, as_number
from influence_core.influence import as_path
from influence_core.modes import InfluenceMode, LabelKind
from influence_jax.base import JaxInfluence
from influence_jax.likelihoods import cross_entropy
from influence_jax.losses import Loss
from influence_jax.model import Apply


class EkfacInfluence(JaxInfluence):
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
        hessian_regularization: λ in `C + λI`: a number, or a mapping layer name -> number.
        progress: show a progress bar over the batches of `fit`.
        loss: `loss(outputs, y)` of a batch; None is the cross-entropy of the outputs as logits.
        labels: at which labels the Fisher takes its gradients: ``"expected"``, ``"sampled"`` or
            ``"given"``, see `LabelKind`. None is the exact expectation for one distribution a point
            over at most 32 classes, and samples otherwise.
        draws: number of sampled labels a point.
        seed: of the sampled labels.
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
            array_backend=array_backend,
        )
        loss = cross_entropy if loss is None else loss
        super().__init__(apply, params, loss, settings, max_memory=max_memory)

    @JaxInfluence.fit_required
    def influences_by_layer(
        self,
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Any]:
        """Return the share of each layer in `influences`, by the name of the layer."""
        call = "influences_by_layer"
        fitted, shares = self._influences(call, x_test, y_test, x, y, mode)
        return fitted.by_block(shares)

    @JaxInfluence.fit_required
    def influence_factors_by_layer(self, x: Any, y: Any) -> OrderedDict[str, Array]:
        """Return the columns of `influence_factors` of each layer, by its name."""
        return self._factors(x, y, "influence_factors_by_layer")

    @JaxInfluence.fit_required
    def influences_from_factors_by_layer(
        self,
        z_test_factors: Mapping[str, Array],
        x: Any,
        y: Any,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Any]:
        """Return the share of each layer, from what `influence_factors_by_layer` returned."""
        call = "influences_from_factors_by_layer"
        fitted, shares = self._influences_from_factors(call, z_test_factors, x, y, mode)
        return fitted.by_block(shares)

    @JaxInfluence.fit_required
    def explore_hessian_regularization(
        self, x: Any, y: Any, regularization_values: Iterable[float]
    ) -> dict[float, dict[str, Array]]:
        """Return the influences of the points on each other for many λ, `{λ: {layer: (n, n)}}`.

        The gradients are computed once, and the regularisation of the instance stays as it is.

        Raises:
            NotFittedException: before `fit`.
            OptionError: there are no values, or not a sequence of them.
            RegularizationError: one of them is no number, or negative.
        """
        call = "explore_hessian_regularization"
        values = [as_number(value) for value in as_path(call, regularization_values)]
        fitted, shares = self._influences_over(call, values, x, y, None, None)
        by_layer = fitted.by_block(shares)
        return {
            value: {name: share[index] for name, share in by_layer.items()}
            for index, value in enumerate(values)
        }
