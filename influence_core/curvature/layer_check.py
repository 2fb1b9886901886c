"""Whether what layers saw of some points explains the gradients of their parameters.

It does not where a parameter is used outside of its layer as well, where a weight is tied, or where
the model folds the points into one another before a layer. Kronecker factors would then be those
of another model, silently; so they are checked on a few points before they are trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from influence_core.arrays import epsilon, namespace, read_flag
from influence_core.curvature.layers import unfactored, weight_columns
from influence_core.problem import Array, Batch, Layer, LayerStatistics, Problem

# units of rounding that an output gradient may carry where the loss is of the order of one: those
# of a point that is fitted well are small differences of numbers near one
_ROUNDING = 64.0


def check_layers(
    problem: Problem,
    batch: Batch,
    layers: Mapping[str, Layer],
    statistics: Mapping[str, LayerStatistics],
    names: Sequence[str],
) -> None:
    """Compare the gradients of some points with those that the statistics say.

    Args:
        problem: the model and loss.
        batch: the points.
        layers: the layers, by name.
        statistics: what they saw of the points, at the labels of the data.
        names: the parameters to compare.

    Raises:
        NotImplementedLayerRepresentationException: they differ; it names the parameters.
    """
    rebuilt: dict[str, tuple[Array, Array]] = {}
    for name, layer in layers.items():
        if statistics[name].inputs.shape[0] != batch.size:
            own = [each for each in (layer.weight, layer.bias) if each and each in names]
            seen = statistics[name].inputs.shape[0]
            raise unfactored(own, f"meets {seen} points where the batch has {batch.size}")
        rebuilt |= dict(_rebuilt(layer, statistics[name]))
    rows, start, wrong = problem.gradients(batch, names), 0, []
    for name in names:
        stop = start + math.prod(problem.parameters[name])
        if not _agree(rows[:, start:stop], *rebuilt[name]):
            wrong.append(name)
        start = stop
    if wrong:
        raise unfactored(wrong, "has gradients that its layer's inputs and outputs do not explain")


def _rebuilt(
    layer: Layer, statistics: LayerStatistics
) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """Yield name -> gradients `(n, size)` and the error that rounding may make, 0-d."""
    xp, a = namespace(statistics.inputs), statistics.inputs
    g = xp.matrix_transpose(xp.sum(statistics.output_gradients, axis=0))  # (n, o, s)
    eps = epsilon(a)
    relative = eps**0.4  # 6e-7 in float64, 2e-3 in float32
    for name, inputs in ((layer.weight, a), (layer.bias, xp.ones_like(a[..., :1]))):
        if name is not None:
            matrices = g @ inputs  # (n, o, i), or (n, o, 1) for the bias
            gradients = (
                weight_columns(matrices, layer) if name == layer.weight else matrices[:, :, 0]
            )
            size = xp.max(xp.abs(g) @ xp.abs(inputs))  # of the terms: they may cancel in the sum
            unit = xp.max(xp.sum(xp.abs(inputs), axis=1))
            yield name, (gradients, relative * size + _ROUNDING * eps * unit)


def _agree(rows: Array, rebuilt: Array, tolerance: Array) -> bool:
    xp = namespace(rows)
    # what is not finite compares as false: the factors will tell of it
    return rows.shape == rebuilt.shape and not read_flag(xp.any(xp.abs(rows - rebuilt) > tolerance))
