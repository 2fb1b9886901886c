"""Gradient sources: the per-sample gradients of some points, in whatever form they are needed.

A method asks for `rows` only where it has to hold them; products and combinations need no `(n, d)`,
and neither do the factors that affine layers see. Answers are in the library of the solver; the
exchange happens here, once a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from influence_core.arrays import Exchange, map_tree
from influence_core.errors import CapabilityError
from influence_core.layer_check import CHECKED, check_layers
from influence_core.modes import LabelKind
from influence_core.problem import (
    Array,
    Batch,
    HasLayers,
    Labels,
    Layer,
    LayerStatistics,
    Problem,
    Tree,
)


@dataclass
class Points:
    """The points of one batch, as all blocks see them.

    Attributes:
        problem: the model and loss that are differentiated.
        batch: the `n` points.
        exchange: the way from the model's array library to the solver's.
    """

    problem: Problem
    batch: Batch
    exchange: Exchange

    @cached_property
    def factors(self) -> Mapping[str, LayerStatistics]:
        """What every affine layer sees of the points, at their own labels; from one pass.

        Raises:
            CapabilityError: the backend does not show its layers.
            NotImplementedLayerRepresentationException: the gradients of the first points are not
                what their layers say.
        """
        if not isinstance(self.problem, HasLayers):
            raise CapabilityError(
                f"{type(self.problem).__name__} offers no `layer_statistics`. Use a method that "
                "needs gradients only, such as Cg."
            )
        labels = Labels(LabelKind.GIVEN, lambda positions: np.zeros((1, 0, positions)))
        layers = self.problem.layers()
        found = self.problem.layer_statistics(self.batch, list(layers), labels)
        if self.batch.size > 1:  # one point cannot be taken for another
            self._check(layers, found)
        carry = self.exchange.to_solver
        return {
            name: LayerStatistics(carry(each.inputs), carry(each.output_gradients))
            for name, each in found.items()
        }

    @cached_property
    def first(self) -> Points:
        """The first point alone: it shows what all of them will take."""
        return Points(self.problem, self.batch[0:1], self.exchange)

    def of(self, names: tuple[str, ...]) -> GradientSource:
        """Return the gradients with respect to the parameters of a block."""
        return GradientSource(self, names)

    def _check(self, layers: Mapping[str, Layer], found: Mapping[str, LayerStatistics]) -> None:
        own = {name for layer in layers.values() for name in (layer.weight, layer.bias)}
        names = [name for name in self.problem.parameters if name in own]
        few = self.batch[: min(CHECKED, self.batch.size)]
        rows = self.problem.gradients(few, names)
        check_layers(self.batch.size, rows, names, self.problem.parameters, layers, found)


@dataclass
class GradientSource:
    """The gradients `∇θℓᵢ` of some points with respect to one block.

    Attributes:
        points: the `n` points.
        names: the parameters of the block, `d` numbers.
    """

    points: Points
    names: tuple[str, ...]
    _rows: Array | None = field(default=None, init=False, repr=False)

    @property
    def size(self) -> int:
        """Number of points `n`."""
        return self.points.batch.size

    @property
    def factors(self) -> Mapping[str, LayerStatistics]:
        """What every affine layer sees of the points; the rows are made of it."""
        return self.points.factors

    def rows(self) -> Array:
        """Return the gradients, `(n, d)`; computed once and kept."""
        if self._rows is None:
            points = self.points
            rows = points.problem.gradients(points.batch, self.names)
            self._rows = points.exchange.to_solver(rows)
        return self._rows

    def products(self, v: Array) -> Array:
        """Return `v · rowsᵀ`, `(k, n)`, for `v` of shape `(k, d)`."""
        points = self.points
        v = points.exchange.to_model(v)
        products = points.problem.gradient_products(points.batch, v, self.names)
        return points.exchange.to_solver(products)

    def combinations(self, w: Array) -> Array:
        """Return `w · rows`, `(k, d)`, for `w` of shape `(k, n)`."""
        points = self.points
        w = points.exchange.to_model(w)
        combinations = points.problem.gradient_combinations(points.batch, w, self.names)
        return points.exchange.to_solver(combinations)

    def mixed_products(self, v: Array) -> Tree:
        """Return `∇ₓ⟨v, rows⟩`, `(k, n, *x.shape[1:])`, or a tree of those."""
        points = self.points
        v = points.exchange.to_model(v)
        products = points.problem.mixed_gradient_products(points.batch, v, self.names)
        return map_tree(points.exchange.to_solver, products)
