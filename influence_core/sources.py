"""Gradient sources: the per-sample gradients of some points, in whatever form they are needed.

A method asks for `rows` only where it has to hold them; products and combinations need no `(n, d)`,
and neither does what layers see. Answers are in the library of the solver; the
exchange happens here, once a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from influence_core.arrays import Exchange, map_tree
from influence_core.errors import CapabilityError
from influence_core.layer_check import CHECKED, check_layers
from influence_core.layers import numbers_of
from influence_core.memory import parts_of
from influence_core.modes import LabelKind
from influence_core.problem import (
    Array,
    Batch,
    HasLayers,
    Labels,
    LayerStatistics,
    Problem,
    Tree,
)

# what layers see, as the model gives it, and turned
_COPIES = 2


@dataclass(frozen=True)
class Watched:
    """What the inverses of some blocks ask to see.

    Attributes:
        layers: names of layers.
        parameters: those of the layers that are in a block.
    """

    layers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def __add__(self, other: Watched) -> Watched:
        """Return what either asks for."""
        layers = dict.fromkeys(self.layers + other.layers)
        return Watched(tuple(layers), tuple(dict.fromkeys(self.parameters + other.parameters)))


@dataclass
class Points:
    """The points of one batch, as all blocks see them.

    Attributes:
        problem: the model and loss that are differentiated.
        batch: the `n` points.
        exchange: the way from the model's array library to the solver's.
        watched: what all blocks together ask to see of layers.
    """

    problem: Problem
    batch: Batch
    exchange: Exchange
    watched: Watched = Watched()
    _checked: bool = field(default=False, init=False, repr=False)

    @cached_property
    def factors(self) -> Mapping[str, LayerStatistics]:
        """What every watched layer sees of the points, at their own labels; from one pass.

        Raises:
            CapabilityError: the backend does not show its layers.
            NotImplementedLayerRepresentationException: the gradients of the first points are not
                what their layers say.
        """
        return self._seen(self.batch, self.watched.layers)

    def parts(self, names: Sequence[str]) -> Iterator[tuple[int, Mapping[str, LayerStatistics]]]:
        """Yield what some layers see of all points, as many points at a time as fit into memory.

        Yields:
            The number of points, and name -> statistics. Where all of it fits, it is that of one
            pass, which serves all blocks.

        Raises:
            CapabilityError: as for `factors`.
            NotImplementedLayerRepresentationException: as for `factors`.
        """
        if not names:
            yield self.batch.size, {}
            return
        if len(list(self._cut(self.watched.layers))) == 1:
            yield self.batch.size, self.factors
            return
        for part in self._cut(names):
            points = self.batch[part]
            yield points.size, self._seen(points, names)

    @cached_property
    def first(self) -> Points:
        """The first point alone: it shows what all of them will take."""
        return Points(self.problem, self.batch[0:1], self.exchange, self.watched)

    def of(self, names: tuple[str, ...]) -> GradientSource:
        """Return the gradients with respect to the parameters of a block."""
        return GradientSource(self, names)

    def _cut(self, names: Sequence[str]) -> Iterator[slice]:
        one = {name: self.first.factors[name] for name in names}
        return parts_of(self.problem, self.batch, _COPIES * numbers_of(one))

    def _seen(self, batch: Batch, names: Sequence[str]) -> dict[str, LayerStatistics]:
        if not isinstance(self.problem, HasLayers):
            raise CapabilityError(
                f"{type(self.problem).__name__} offers no `layer_statistics`. Use a method that "
                "needs gradients only, such as Cg."
            )
        labels = Labels(LabelKind.GIVEN, lambda positions: np.zeros((1, 0, positions)))
        found = self.problem.layer_statistics(batch, names, labels)
        if batch.size > 1 and not self._checked:  # one point cannot be taken for another
            few = batch[: min(CHECKED, batch.size)]
            check_layers(self.problem, few, batch.size, self.watched.parameters, found)
            self._checked = True
        return {name: self._carried(each) for name, each in found.items()}

    def _carried(self, seen: LayerStatistics) -> LayerStatistics:
        carry, counted = self.exchange.to_solver, seen.counted
        return LayerStatistics(
            carry(seen.inputs),
            carry(seen.output_gradients),
            None if counted is None else carry(counted),
        )


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
    def reference(self) -> Array:
        """An array in the library and on the device of the solver."""
        return self.points.exchange.solver

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
