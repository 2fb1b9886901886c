"""The calls of models whose blocks are layers: by layer, and over a path of λ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from influence_core.blocks import as_number
from influence_core.curvature import KroneckerInverse, LayerSummary
from influence_core.errors import CapabilityError
from influence_core.influence import Influence, as_path
from influence_core.methods import Ekfac, Method
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
    def influences_by_position(
        self, x_test: Any, y_test: Any, x: Any = None, y: Any = None
    ) -> Array:
        """Return the share of every position of the training points in `influences` (Up).

        The gradient of a point is a sum over the positions at which its layers are used: the tokens
        of a sequence, say. Its influence is the sum of theirs.

        Returns:
            `(m, n, s)`, which sums over `s` to `influences`, and is zero at padding.

        Raises:
            NotFittedException: before `fit`.
            CapabilityError: the layers do not all see the same positions; it names those that
                differ. Some methods have no layers.
            DataError: the points cannot be used, or only one of `x` and `y` was passed.
        """
        call = "influences_by_position"
        fitted, regularization = self._state()
        left, right = fitted.sides(call, x_test, y_test, x, y)
        shares, reports = [], {}
        for block in fitted.blocks:
            name, inverse = block.name, fitted.inverses[block.name]
            if not isinstance(inverse, KroneckerInverse):
                raise _without_layers(call, self._method)
            sides = left.of(block.names), right.of(block.names)
            share, reports[name] = inverse.scores_by_position(*sides, regularization[name])
            shares.append(share)
        self._report = {**reports}
        return fitted.hand_over(sum(shares[1:], start=shares[0]))

    def layer_summary(self) -> LayerSummary:
        """Return how the layers are approximated, and what that takes; `print` shows a table.

        Before `fit`, it is that of the model as it is now. No data is read.

        Raises:
            CapabilityError: the backend does not show its layers, or the method has none.
            NotImplementedLayerRepresentationException: a parameter belongs to no layer.
        """
        if not isinstance(self._method, Ekfac):
            raise _without_layers("layer_summary", self._method)
        problem = self._problem() if self._fitted is None else self._fitted.problem
        return self._method.summary(problem, self._blocks())

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


def _without_layers(call: str, method: Method) -> CapabilityError:
    return CapabilityError(
        f"`{call}` needs a method that sees layers; {type(method).__name__} does not. Use Ekfac."
    )
