"""Which columns are a layer's, and the gradients there that its statistics say, in NumPy."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from influence_core.problem import FreeParameters, Layer, LayerStatistics
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

AnyLayer: TypeAlias = Layer | FreeParameters


def names_of(layer: AnyLayer) -> list[str]:
    """Return the names of the layer's parameters, in the order of its columns."""
    if isinstance(layer, FreeParameters):
        return list(layer.names)
    return [name for name in (layer.weight, layer.bias) if name is not None]


def size_of(layer: AnyLayer) -> int:
    """Return how many numbers the layer says to have."""
    if isinstance(layer, FreeParameters):
        return layer.outputs
    return layer.outputs * (
        (0 if layer.weight is None else layer.inputs) + (layer.bias is not None)
    )


def columns_of(layer: AnyLayer, subject: Subject) -> npt.NDArray[np.int64]:
    """Return where the layer's numbers lie among all parameters, `(d,)`: its weight, its bias.

    Rows that a parameter does not have are left out.
    """
    columns = [_matrix(name, layer, subject) for name in names_of(layer)]
    return np.concatenate([np.ravel(each) for each in columns])


def gradients_of(layer: AnyLayer, statistics: LayerStatistics) -> Host:
    """Return the gradients in those columns in every slice, `(c, n, d)`."""
    g = on_host(statistics.output_gradients)
    if isinstance(layer, FreeParameters):
        summed: Host = np.sum(g, axis=2)
        return summed
    parts = []
    if layer.weight is not None:
        a = on_host(statistics.inputs)
        a = np.eye(layer.inputs)[a] if layer.lookup else a
        order = "io" if layer.transposed else "oi"
        weight = np.einsum(f"cnso,nsi->cn{order}", g, a)
        parts.append(weight.reshape(*g.shape[:2], layer.outputs * layer.inputs))
    if layer.bias is not None:
        parts.append(np.sum(g, axis=2))
    return np.concatenate(parts, axis=2)


def shapes_of(
    layer: AnyLayer, slices: int, points: int, positions: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes that inputs and output gradients must have."""
    gradients = slices, points, positions, layer.outputs
    if isinstance(layer, FreeParameters):
        return (points, positions, 0), gradients
    if layer.lookup:
        return (points, positions), gradients
    return (points, positions, layer.inputs), gradients


def _matrix(name: str, layer: AnyLayer, subject: Subject) -> npt.NDArray[np.int64]:
    columns, shape = subject.columns([name]), subject.values[name].shape
    if isinstance(layer, FreeParameters):
        return columns
    rows = slice(layer.first, layer.first + layer.outputs)
    matrix = columns.reshape(shape[0], math.prod(shape[1:]))
    return matrix[:, rows] if name == layer.weight and layer.transposed else matrix[rows]
