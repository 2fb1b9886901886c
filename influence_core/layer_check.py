"""Whether what layers saw of some points explains the gradients of their parameters.

It does not where a parameter is used outside of its layer as well, where a weight is tied, or where
the model folds the points into one another before a layer. Factors would then be those of another
model, silently; so they are checked on a few points before they are trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from influence_core.arrays import device, epsilon, namespace, to_host
from influence_core.layers import LayerColumns, Seen, columns_of_layers, unfactored
from influence_core.memory import points_in_memory
from influence_core.problem import (
    Array,
    Batch,
    FreeParameters,
    HasLayers,
    Layer,
    LayerStatistics,
    Problem,
)

# units of rounding that an output gradient may carry where the loss is of the order of one: those
# of a point that is fitted well are small differences of numbers near one
_ROUNDING = 64.0

CHECKED = 4
"""How many points are compared."""

COPIES = 4
"""Gradients that are held for it: the true ones, the rebuilt ones, two bounds of their rounding."""


def check_layers(
    problem: Problem,
    few: Batch,
    points: int,
    names: Sequence[str],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Compare the gradients of the first points with those that the statistics say.

    Args:
        problem: shows its layers.
        few: the first points.
        points: the number of points that the layers should have seen.
        names: the parameters to compare.
        statistics: what the layers saw of the points, at the labels of the data; those that are
            not here are not compared.

    Raises:
        NotImplementedLayerRepresentationException: they differ; it names the parameters.
    """
    assert isinstance(problem, HasLayers)
    layers = {name: layer for name, layer in problem.layers().items() if name in statistics}
    everything = columns_of_layers(names, layers, problem.parameters)
    for columns in everything:
        met = int(statistics[columns.name].output_gradients.shape[1])
        if met != points:
            fault = f"the layer meets {met} points where the batch has {points}"
            raise unfactored(dict.fromkeys(columns.parameters, fault))
    wrong: dict[str, None] = {}
    for group in _groups(problem, few, everything):
        wrong |= dict.fromkeys(_wrong(problem, few, group, layers, statistics))
    if wrong:
        fault = "the layer's inputs and output gradients do not explain the gradients"
        raise unfactored({name: fault for name in names if name in wrong})


def _groups(
    problem: Problem, few: Batch, everything: Sequence[LayerColumns]
) -> Iterator[list[LayerColumns]]:
    """Yield layers together as far as the gradients of the points fit into memory."""
    group: list[LayerColumns] = []
    room = most = points_in_memory(problem, COPIES * few.size)
    for columns in everything:
        size = sum(math.prod(problem.parameters[name]) for name in columns.parameters)
        if group and size > room:
            yield group
            group, room = [], most
        group.append(columns)
        room -= size
    if group:
        yield group


def _wrong(
    problem: Problem,
    few: Batch,
    group: Sequence[LayerColumns],
    layers: Mapping[str, Layer | FreeParameters],
    statistics: Mapping[str, LayerStatistics],
) -> list[str]:
    """Return the parameters of some layers whose gradients are others than their layer says."""
    own = {name for columns in group for name in columns.parameters}
    names = [name for name in problem.parameters if name in own]
    rows = problem.gradients(few, names)
    told: list[str] = []
    beyond = []
    for columns in columns_of_layers(
        names, {c.name: layers[c.name] for c in group}, problem.parameters
    ):
        seen = columns.seen(statistics[columns.name]).part(0, few.size)
        for name, differs in _differences(columns, seen, rows):
            told.append(name)
            beyond.append(differs)
    answers = to_host(namespace(rows).stack(beyond))
    return [name for name, differs in zip(told, answers, strict=True) if differs]


def _differences(columns: LayerColumns, seen: Seen, rows: Array) -> Iterator[tuple[str, Array]]:
    """Yield name -> whether the gradients differ from the rebuilt ones beyond rounding, 0-d."""
    xp = namespace(rows)
    eps = epsilon(rows)
    relative = eps**0.4  # 6e-7 in float64, 2e-3 in float32
    magnitudes = seen.absolute()
    sums = magnitudes.with_gradients(xp.ones_like(seen.gradients[..., :1]))  # of inputs alone
    matrices = seen.matrices()
    shape = matrices.shape
    rebuilt, terms, units = (
        dict(columns.split(each))
        for each in (
            matrices,
            magnitudes.matrices(),  # of the terms: they may cancel in the sum
            xp.broadcast_to(sums.matrices(), shape),
        )
    )
    for name, true in columns.pick(rows):
        if shape[1:] != columns.shape:
            yield name, xp.asarray(True, device=device(rows))
            continue
        difference = xp.max(xp.abs(true - rebuilt[name]))
        tolerance = relative * xp.max(terms[name]) + _ROUNDING * eps * xp.max(units[name])
        # what is not finite compares as false: the factors will tell of it
        yield name, difference > tolerance
