"""The calls of models whose blocks are layers: by layer, and over a path of λ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from influence_core.blocks import as_number
from influence_core.influence import Influence, as_path
from influence_core.modes import InfluenceMode
from influence_core.problem import Array, Tree


class LayerCalls(Influence):
    """The documented calls of `EkfacInfluence`, for every backend."""

    @Influence.fit_required
    def influences_by_layer(
        self,
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Tree]:
        """Return the share of each layer in `influences`, by the name of the layer."""
        call = "influences_by_layer"
        fitted, shares = self._influences(call, x_test, y_test, x, y, mode)
        return fitted.by_block(shares)

    @Influence.fit_required
    def influence_factors_by_layer(self, x: Any, y: Any) -> OrderedDict[str, Array]:
        """Return the columns of `influence_factors` of each layer, by its name."""
        return self._factors(x, y, "influence_factors_by_layer")

    @Influence.fit_required
    def influences_from_factors_by_layer(
        self,
        z_test_factors: Mapping[str, Array],
        x: Any,
        y: Any,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Tree]:
        """Return the share of each layer, from what `influence_factors_by_layer` returned."""
        call = "influences_from_factors_by_layer"
        fitted, shares = self._influences_from_factors(call, z_test_factors, x, y, mode)
        return fitted.by_block(shares)

    @Influence.fit_required
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
            value: {name: share[index, ...] for name, share in by_layer.items()}
            for index, value in enumerate(values)
        }
