"""What the layers of a chain show of themselves, at one position a point (`s = 1`)."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from influence_core.arrays import namespace
from influence_core.problem import Array, LayerStatistics
from influence_core.problem import Layer as AffineLayer
from influence_core.testing.chain import Layer, Trace


def affine_layers(layers: Sequence[Layer], values: Mapping[str, Array]) -> dict[str, AffineLayer]:
    """Return name to layer, first to last, from the parameters by name."""
    return {_name(layer): _affine(layer, values) for layer in layers}


def layer_statistics(
    passed: Trace, gradients: Sequence[Array], names: Container[str]
) -> dict[str, LayerStatistics]:
    """Return the statistics of the layers `names`.

    Args:
        passed: a forward pass over the batch.
        gradients: `g_1 … g_L`, `(c, n, o)` each.
        names: of layers.
    """
    return {
        _name(layer): LayerStatistics(_fresh(a)[:, None, :], g[:, :, None, :])
        for layer, a, g in zip(passed.layers, passed.inputs, gradients, strict=True)
        if _name(layer) in names
    }


def _name(layer: Layer) -> str:
    return layer.weight.rpartition(".")[0]


def _affine(layer: Layer, values: Mapping[str, Array]) -> AffineLayer:
    outputs, inputs = values[layer.weight].shape
    bias = layer.bias if layer.bias in values else None
    return AffineLayer(layer.weight, bias, int(inputs), int(outputs))


def _fresh(array: Array) -> Array:
    return namespace(array).asarray(array, copy=True)  # the first layer's inputs are the user's
