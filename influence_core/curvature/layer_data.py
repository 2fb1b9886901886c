"""The training data as layers see it: means over it of what `influence_core.layers` sums.

A pass reads what some layers see of every batch, a part of it at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from influence_core.arrays import map_tree, namespace, ones
from influence_core.curvature.fisher_labels import FisherLabels
from influence_core.curvature.kronecker import KroneckerLayer
from influence_core.curvature.layer_parts import LayerPart
from influence_core.errors import CapabilityError
from influence_core.layer_check import CHECKED, check_layers
from influence_core.layers import LayerColumns, Seen, numbers_of
from influence_core.memory import parts_of
from influence_core.modes import LabelKind
from influence_core.objective import Objective, point_shares
from influence_core.problem import Array, Batch, HasLayers, LayerStatistics, Problem, Tree

_Statistics: TypeAlias = Mapping[str, LayerStatistics]
_Look: TypeAlias = Callable[[LayerColumns], Seen]

# what is held beside the statistics: weighted and rotated copies of a layer's share, and the
# gradients in the outputs while they are computed
COPIES = 3


@dataclass(frozen=True)
class LayerData:
    """The data of an objective, as some layers of the model see them.

    Attributes:
        objective: the data.
        names: the layers.
        labels: of the output gradients.
        dtype: in which sums are made; that of an array of the backend's library.
        step: called after every batch.
    """

    objective: Objective
    names: tuple[str, ...]
    labels: FisherLabels
    dtype: Any
    step: Callable[[], object]

    @property
    def problem(self) -> HasLayers:
        """The model and loss.

        Raises:
            CapabilityError: the backend does not show its layers.
        """
        return layered(self.objective.problem)

    def moments(self, parts: Sequence[LayerPart], reduce: bool) -> list[tuple[Array, Array]]:
        """Return `A` and `S` of every layer, or their diagonals; one pass over the data.

        Args:
            parts: the layers.
            reduce: whether the positions of a point are summed first, see `layers.seen`.

        Raises:
            NotImplementedLayerRepresentationException: on a few points of every batch, the gradient
                of one of the parameters is not the one that its layer says.
        """
        own = {name for part in parts for name in part.columns.parameters}
        parameters = [name for name in self.objective.problem.parameters if name in own]

        def of_points(look: _Look, shares: Array) -> Tree:
            return [
                (
                    look(part.columns).input_moment(shares, reduce, part.dense_inputs),
                    look(part.columns).output_moment(shares, reduce, part.dense_outputs),
                )
                for part in parts
            ]

        answer: list[tuple[Array, Array]]
        answer = self._mean(of_points, lambda batch: self._check(batch, parameters))
        return answer

    def mean_squares(self, layers: Sequence[KroneckerLayer]) -> list[Array]:
        """Return `Λ`, `(o, i')`, of every layer in its eigenbasis; one pass over the data."""

        def of_points(look: _Look, shares: Array) -> Tree:
            return [look(each.columns).mean_squares(shares, each.bases) for each in layers]

        answer: list[Array] = self._mean(of_points)
        return answer

    def _mean(
        self,
        of_points: Callable[[_Look, Array], Tree],
        inspect: Callable[[Batch], None] = lambda _: None,
    ) -> Tree:
        """Return the mean over the data of sums over points, a part of a batch at a time."""
        seen = numbers = 0

        def of_batch(batch: Batch) -> Tree:
            nonlocal seen, numbers
            if seen == 0 or batch.size > 1:  # a single point shows little: one such is enough
                inspect(batch)
            numbers = numbers or COPIES * numbers_of(self._statistics(batch, slice(0, 1), 0))
            shares, total = self._shares(batch), None
            for part in parts_of(self.objective.problem, batch, numbers):
                term = of_points(self._look(self._statistics(batch, part, seen)), shares[part])
                total = term if total is None else map_tree(_add, total, term)
            seen += batch.size
            self.step()
            return total

        # weights of the model's dtype may have widened a shorter one
        return map_tree(self._cast, self.objective.reduce(of_batch))

    def _look(self, statistics: _Statistics) -> _Look:
        return lambda columns: columns.seen(statistics[columns.name]).cast(self.dtype)

    def _statistics(self, batch: Batch, part: slice, first: int) -> _Statistics:
        points = batch[part]
        labels = self.labels.of_points(first + part.start, points.size)
        return self.problem.layer_statistics(points, self.names, labels)

    def _check(self, batch: Batch, parameters: Sequence[str]) -> None:
        few = batch[: min(CHECKED, batch.size)]
        labels = replace(self.labels, kind=LabelKind.GIVEN).of_points(0, few.size)
        statistics = self.problem.layer_statistics(few, self.names, labels)
        check_layers(self.objective.problem, few, few.size, parameters, statistics)

    def _shares(self, batch: Batch) -> Array:
        """Return the part of the batch's mean that each point has, `(n,)`."""
        reference = self.objective.problem.reference
        return self._cast(ones((batch.size,), reference) * point_shares(batch, reference))

    def _cast(self, array: Array) -> Array:
        return array if array.dtype == self.dtype else namespace(array).astype(array, self.dtype)


def layered(problem: Problem) -> HasLayers:
    """Return the problem as one that shows its layers.

    Raises:
        CapabilityError: the backend does not show them.
    """
    if isinstance(problem, HasLayers):
        return problem
    raise CapabilityError(
        "EK-FAC needs a backend that offers `layers` and `layer_statistics`; "
        f"{type(problem).__name__} does not. Use another method, such as Cg."
    )


def _add(a: Array, b: Array) -> Array:
    return a + b
