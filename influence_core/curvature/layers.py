"""Where the parameters of affine layers stand among the columns of a block.

A layer's parameters make one matrix `M = [W, b]`, `(o, i')`, that acts on homogeneous inputs
`a' = [a, 1]`: the column of ones is there exactly where the bias is in the block, and it alone
where the weight is not. The gradient of a point is then `Σ_s g_s ⊗ a'_s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from influence_core.arrays import namespace, ones
from influence_core.blocks import Block
from influence_core.layer_check import unfactored, weight_columns
from influence_core.problem import Array, Layer


@dataclass(frozen=True)
class LayerColumns:
    """The columns of a block that are one layer's.

    Attributes:
        name: the name of the layer.
        layer: the layer.
        weight: the first column of `W`; None where it is not in the block.
        bias: the first column of `b`; None where it is not in the block.
    """

    name: str
    layer: Layer
    weight: int | None
    bias: int | None

    @property
    def span(self) -> slice:
        """The entries of `[a, 1]` that `a'` consists of."""
        start = self.layer.inputs if self.weight is None else 0
        return slice(start, self.layer.inputs + (self.bias is not None))

    def homogeneous(self, inputs: Array) -> Array:
        """Return `a'`, `(…, i')`, from `a`, `(…, i)`."""
        return homogeneous(inputs, self.layer)[..., self.span]

    def gather(self, rows: Array) -> Array:
        """Return the matrices `M`, `(k, o, i')`, of rows `(k, d)` of the block."""
        xp, (k, o, i) = namespace(rows), (rows.shape[0], self.layer.outputs, self.layer.inputs)
        parts = []
        if self.weight is not None:
            weights = rows[:, self.weight : self.weight + o * i]
            if self.layer.transposed:
                parts.append(xp.matrix_transpose(xp.reshape(weights, (k, i, o))))
            else:
                parts.append(xp.reshape(weights, (k, o, i)))
        if self.bias is not None:
            parts.append(xp.reshape(rows[:, self.bias : self.bias + o], (k, o, 1)))
        return xp.concat(parts, axis=-1)

    def scatter(self, matrices: Array) -> dict[int, Array]:
        """Return first column -> columns, `(k, o·i)` and `(k, o)`, from `M`, `(k, o, i')`."""
        pieces = {}
        if self.weight is not None:
            pieces[self.weight] = weight_columns(matrices[:, :, : self.layer.inputs], self.layer)
        if self.bias is not None:
            pieces[self.bias] = matrices[:, :, -1]
        return pieces


def homogeneous(inputs: Array, layer: Layer) -> Array:
    """Return `[a, 1]`, `(…, i + 1)`, from `a`, `(…, i)`; `a` for a layer without a bias."""
    if layer.bias is None:
        return inputs
    return namespace(inputs).concat([inputs, ones((*inputs.shape[:-1], 1), inputs)], axis=-1)


def join_columns(pieces: Mapping[int, Array]) -> Array:
    """Return the rows of a block, `(k, d)`, from first column -> columns."""
    parts = [pieces[start] for start in sorted(pieces)]
    return namespace(parts[0]).concat(parts, axis=1)


def columns_of_layers(
    block: Block, layers: Mapping[str, Layer], parameters: Mapping[str, tuple[int, ...]]
) -> tuple[LayerColumns, ...]:
    """Return the columns of every layer that has a parameter in the block.

    Args:
        block: the parameters.
        layers: name to layer of all that can be factored.
        parameters: name to shape of all parameters.

    Raises:
        NotImplementedLayerRepresentationException: a parameter belongs to no layer, or to several.
    """
    _check_owners(block, layers)
    starts, start = {}, 0
    for name in block.names:
        starts[name] = start
        start += math.prod(parameters[name])
    found = [
        LayerColumns(name, layer, starts.get(layer.weight or ""), starts.get(layer.bias or ""))
        for name, layer in layers.items()
    ]
    return tuple(c for c in found if c.weight is not None or c.bias is not None)


def _check_owners(block: Block, layers: Mapping[str, Layer]) -> None:
    owned = [name for layer in layers.values() for name in (layer.weight, layer.bias)]
    without = [name for name in block.names if owned.count(name) == 0]
    if without:
        raise unfactored(without, "of no such layer")
    shared = [name for name in block.names if owned.count(name) > 1]
    if shared:
        raise unfactored(shared, "shared by several layers")
