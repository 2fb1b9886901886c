"""Whether what layers saw of some points explains the gradients of their parameters.

It does not where a parameter is used outside of its layer as well, where a weight is tied, or where
the model folds the points into one another before a layer. Kronecker factors would then be those
of another model, silently; so they are checked on a few points before they are trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from influence_core.arrays import epsilon, namespace, read_flag
from influence_core.errors import NotImplementedLayerRepresentationException
from influence_core.problem import Array, Layer, LayerStatistics

# units of rounding that an output gradient may carry where the loss is of the order of one: those
# of a point that is fitted well are small differences of numbers near one
_ROUNDING = 64.0


CHECKED = 4
"""How many points are compared."""


def check_layers(
    points: int,
    rows: Array,
    names: Sequence[str],
    parameters: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, Layer],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Compare the gradients of the first points with those that the statistics say.

    Args:
        points: the number of points that the layers should have seen.
        rows: the gradients of the first of them, `(n, d)`.
        names: the parameters that the columns stand for.
        parameters: name to shape of all parameters.
        layers: the layers, by name.
        statistics: what they saw of the points, at the labels of the data.

    Raises:
        NotImplementedLayerRepresentationException: they differ; it names the parameters.
    """
    rebuilt: dict[str, tuple[Array, Array]] = {}
    for name, layer in layers.items():
        own = [each for each in (layer.weight, layer.bias) if each and each in names]
        seen = statistics[name].inputs.shape[0]
        if seen != points:
            raise unfactored(own, f"the layer meets {seen} points where the batch has {points}")
        rebuilt |= dict(_rebuilt(layer, _first(statistics[name], rows.shape[0])))
    start, wrong = 0, []
    for name in names:
        stop = start + math.prod(parameters[name])
        if not _agree(rows[:, start:stop], *rebuilt[name]):
            wrong.append(name)
        start = stop
    if wrong:
        fault = "the layer's inputs and output gradients do not explain the gradients"
        raise unfactored(wrong, fault)


def unfactored(names: Sequence[str], fault: str) -> NotImplementedLayerRepresentationException:
    """Return the exception that says which parameters EK-FAC cannot serve, and the way out."""
    return NotImplementedLayerRepresentationException(
        f"EK-FAC needs every parameter to belong to one affine layer that can be factored. "
        f"{', '.join(map(repr, names))}: {fault}. Make a constant of what does not fit (freeze the "
        "parameter), or use another method, such as Cg."
    )


def _first(statistics: LayerStatistics, count: int) -> LayerStatistics:
    inputs, gradients = statistics.inputs, statistics.output_gradients
    return LayerStatistics(inputs[:count, :, :], gradients[:, :count, :, :])


def weight_columns(matrices: Array, layer: Layer) -> Array:
    """Return the columns of a layer's weight, `(k, o·i)`, from matrices `W`, `(k, o, i)`."""
    xp = namespace(matrices)
    own = xp.matrix_transpose(matrices) if layer.transposed else matrices
    return xp.reshape(own, (matrices.shape[0], layer.outputs * layer.inputs))


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
