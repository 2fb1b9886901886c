"""The training data as layers see it: second moments of their inputs and output gradients.

Means over the points, sums over the `c` slices of the labels (see `LayerStatistics`), with
homogeneous inputs `a'` and output gradients `g` at `s` shared positions:

    A = 1/N Σ_n 1/s Σ_s a' a'ᵀ        S = 1/N Σ_n Σ_c Σ_s g gᵀ
    Λ = 1/N Σ_n Σ_c (Q_S (Σ_s g_s ⊗ a'_s) Q_Aᵀ)²        entry by entry
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from influence_core.arrays import map_tree, namespace, ones, uniforms, zeros
from influence_core.curvature.kronecker import KroneckerLayer
from influence_core.curvature.layers import homogeneous
from influence_core.errors import CapabilityError
from influence_core.layer_check import CHECKED, check_layers
from influence_core.memory import parts_of
from influence_core.modes import LabelKind
from influence_core.objective import Objective, point_shares
from influence_core.problem import Array, Batch, HasLayers, Labels, Layer, LayerStatistics, Tree

_Statistics: TypeAlias = Mapping[str, LayerStatistics]

# what is held beside the statistics: weighted and rotated copies of a layer's share, and the
# gradients in the outputs while they are computed
_COPIES = 3

# the most numbers of per-sample gradients that are formed at once, where positions are shared
_ENTRIES = 2**22


@dataclass(frozen=True)
class FisherLabels:
    """The labels at which the Fisher matrix takes its gradients.

    Attributes:
        kind: which labels; None leaves it to the backend.
        draws: the random labels of each distribution, where they are sampled.
        seed: of the random labels. A point has the same ones whatever the batch size.
    """

    kind: LabelKind | None = None
    draws: int = 1
    seed: int = 0

    def of_points(self, first: int, points: int) -> Labels:
        """Return the labels of the points `first`, `first + 1`, … of the data."""

        def draw(positions: int) -> npt.NDArray[np.float64]:
            numbers = uniforms(self.seed, first, points, self.draws * positions)
            return np.swapaxes(numbers.reshape(points, self.draws, positions), 0, 1)

        return Labels(self.kind, draw)


@dataclass(frozen=True)
class LayerData:
    """The data of an objective, as some layers of the model see them.

    Attributes:
        objective: the data.
        names: the layers.
        labels: of the output gradients.
        step: called after every batch.
    """

    objective: Objective
    names: tuple[str, ...]
    labels: FisherLabels
    step: Callable[[], object]

    @property
    def problem(self) -> HasLayers:
        """The model and loss.

        Raises:
            CapabilityError: the backend does not show its layers.
        """
        return layered(self.objective)

    def moments(self, parameters: Sequence[str]) -> dict[str, tuple[Array, Array]]:
        """Return layer -> `A`, `(i + 1, i + 1)`, and `S`, `(o, o)`; one pass over the data.

        A layer without a bias has `A`, `(i, i)`.

        Raises:
            NotImplementedLayerRepresentationException: on a few points of every batch, the gradient
                of one of the `parameters` is not the one that its layer says.
        """
        layers = self.problem.layers()

        def of_points(statistics: _Statistics, shares: Array) -> Tree:
            return {name: _moments(layers[name], statistics[name], shares) for name in self.names}

        answer: dict[str, tuple[Array, Array]]
        answer = self._mean(of_points, lambda batch: self._check(batch, parameters))
        return answer

    def mean_squares(self, layers: Sequence[KroneckerLayer]) -> list[Array]:
        """Return `Λ`, `(o, i')`, of every layer in its eigenbasis; one pass over the data."""

        def of_points(statistics: _Statistics, shares: Array) -> Tree:
            return [_mean_squares(each, statistics[each.columns.name], shares) for each in layers]

        answer: list[Array] = self._mean(of_points)
        return answer

    def _mean(
        self,
        of_points: Callable[[_Statistics, Array], Tree],
        inspect: Callable[[Batch], None] = lambda _: None,
    ) -> Tree:
        """Return the mean over the data of sums over points, a part of a batch at a time."""
        seen = numbers = 0

        def of_batch(batch: Batch) -> Tree:
            nonlocal seen, numbers
            if seen == 0 or batch.size > 1:  # a single point shows little: one such is enough
                inspect(batch)
            numbers = numbers or self._numbers(batch)
            shares, total = self._shares(batch), None
            for part in parts_of(self.objective.problem, batch, numbers):
                term = of_points(self._statistics(batch, part, seen), shares[part])
                total = term if total is None else map_tree(_add, total, term)
            seen += batch.size
            self.step()
            return total

        return self.objective.reduce(of_batch)

    def _statistics(self, batch: Batch, part: slice, first: int) -> _Statistics:
        points = batch[part]
        labels = self.labels.of_points(first + part.start, points.size)
        return self.problem.layer_statistics(points, self.names, labels)

    def _numbers(self, batch: Batch) -> int:
        """Return what the statistics of a point, and what is made of them, take at once."""
        one = self._statistics(batch, slice(0, 1), 0)
        held = (each for seen in one.values() for each in (seen.inputs, seen.output_gradients))
        return _COPIES * sum(int(math.prod(each.shape)) for each in held)

    def _check(self, batch: Batch, parameters: Sequence[str]) -> None:
        few = batch[: min(CHECKED, batch.size)]
        labels = replace(self.labels, kind=LabelKind.GIVEN).of_points(0, few.size)
        statistics = self.problem.layer_statistics(few, self.names, labels)
        known, problem = self.problem.layers(), self.objective.problem
        layers = {name: known[name] for name in self.names}
        rows = problem.gradients(few, parameters)
        check_layers(few.size, rows, parameters, problem.parameters, layers, statistics)

    def _shares(self, batch: Batch) -> Array:
        """Return the part of the batch's mean that each point has, `(n,)`."""
        reference = self.objective.problem.reference
        return ones((batch.size,), reference) * point_shares(batch, reference)


def layered(objective: Objective) -> HasLayers:
    """Return the problem of an objective as one that shows its layers.

    Raises:
        CapabilityError: the backend does not show them.
    """
    problem = objective.problem
    if isinstance(problem, HasLayers):
        return problem
    raise CapabilityError(
        "EK-FAC needs a backend that offers `layers` and `layer_statistics`; "
        f"{type(problem).__name__} does not. Use another method, such as Cg."
    )


def _moments(layer: Layer, statistics: LayerStatistics, shares: Array) -> tuple[Array, Array]:
    inputs = homogeneous(statistics.inputs, layer)
    return (
        _second_moment(inputs, shares / inputs.shape[1]),
        _second_moment(statistics.output_gradients, shares),
    )


def _second_moment(rows: Array, shares: Array) -> Array:
    """Return the sum of `share · row rowᵀ`, `(f, f)`, for rows `(…, n, s, f)`, shares `(n,)`."""
    xp, width = namespace(rows), rows.shape[-1]
    weighted = xp.reshape(rows * shares[:, None, None], (-1, width))
    return xp.matrix_transpose(weighted) @ xp.reshape(rows, (-1, width))


def _mean_squares(layer: KroneckerLayer, statistics: LayerStatistics, shares: Array) -> Array:
    """Return `Σ_n share Σ_c (Σ_s ĝ_s ⊗ â_s)²`, `(o, i')`, with `ĝ = g Q_Sᵀ`, `â = a' Q_Aᵀ`."""
    xp = namespace(shares)
    a = layer.columns.homogeneous(statistics.inputs) @ xp.matrix_transpose(layer.inputs)
    g = statistics.output_gradients @ xp.matrix_transpose(layer.outputs)
    if a.shape[1] > 1:
        return _squares_of_sums(a, g, shares)
    squares = xp.sum(g * g, axis=0)[:, 0, :]  # of one position: (ĝ ⊗ â)² = ĝ² ⊗ â²
    return xp.matrix_transpose(squares * shares[:, None]) @ (a * a)[:, 0, :]


def _squares_of_sums(a: Array, g: Array, shares: Array) -> Array:
    """Return the same for several positions, a few per-sample gradients at a time."""
    xp, (slices, n, _, outputs) = namespace(a), g.shape
    total = zeros((outputs, a.shape[-1]), a)
    few = max(1, _ENTRIES // (outputs * a.shape[-1]))
    for start in range(0, n, few):
        stop = min(start + few, n)
        for c in range(slices):
            gradients = xp.matrix_transpose(g[c, start:stop, :, :]) @ a[start:stop, :, :]
            squares = gradients * gradients
            total = total + xp.tensordot(shares[start:stop], squares, axes=((0,), (0,)))
    return total


def _add(a: Array, b: Array) -> Array:
    return a + b
