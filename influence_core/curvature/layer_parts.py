"""How the layers of a block are taken: which of their factors are matrices, which are diagonal.

| kind | inputs `A` | outputs `S` |
|---|---|---|
| affine | a matrix | a matrix |
| lookup | diagonal: `A` is | a matrix |
| free parameters | the number one | a matrix up to `largest_exact`, diagonal beyond |

A factor of more than `largest_factor` rows is diagonal whatever the kind, and so is that of free
parameters that should be a layer's and cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from influence_core.blocks import Block
from influence_core.curvature.fisher_labels import FisherLabels
from influence_core.layers import (
    FreeColumns,
    LayerColumns,
    columns_of_layers,
    find_faults,
    unfactored,
)
from influence_core.layers.columns import AffineColumns
from influence_core.modes import Sharing, Unsupported
from influence_core.problem import FreeParameters, Layer


@dataclass(frozen=True)
class KroneckerSettings:
    """What a Kronecker-factored Fisher matrix is made of.

    Attributes:
        labels: of the Fisher matrix.
        update_diagonal: whether eigenvalues are measured in the eigenbasis (EK-FAC), or products of
            those of the factors (K-FAC).
        sharing: how positions that share a layer are taken.
        unsupported: what becomes of a parameter that no layer has.
        largest_exact: the most free parameters of one layer that get a matrix of their own.
        largest_factor: the most rows of a factor that is a matrix; None for any number.
        layers_at_once: the layers whose factors are held at once; None for all.
        factor_dtype: of the factors, ``"float32"`` or ``"float64"``; None for the model's.
    """

    labels: FisherLabels = field(default_factory=FisherLabels)
    update_diagonal: bool = False
    sharing: Sharing = Sharing.EXPAND
    unsupported: Unsupported = Unsupported.RAISE
    largest_exact: int = 2048
    largest_factor: int | None = None
    layers_at_once: int | None = None
    factor_dtype: str | None = None

    def part(self, columns: LayerColumns) -> LayerPart:
        """Return how a layer's parameters in a block are taken."""
        o, i = columns.shape
        if isinstance(columns, FreeColumns):
            layer = columns.layer
            return LayerPart(columns, False, layer.fault is None and o <= self.largest_exact)
        most = math.inf if self.largest_factor is None else self.largest_factor
        lookup = isinstance(columns, AffineColumns) and columns.layer.lookup
        return LayerPart(columns, not lookup and i <= most, o <= most)


@dataclass(frozen=True)
class LayerPart:
    """One layer's parameters in a block.

    Attributes:
        columns: where they stand.
        dense_inputs: whether `A` is a matrix.
        dense_outputs: whether `S` is a matrix.
    """

    columns: LayerColumns
    dense_inputs: bool
    dense_outputs: bool

    @property
    def exact(self) -> bool:
        """Whether the second moments are the Fisher matrix: their eigenvalues are not corrected."""
        return isinstance(self.columns, FreeColumns)

    @property
    def kind(self) -> str:
        """The kind of the approximation, in words."""
        if self.exact:
            return "exact" if self.dense_outputs else "diagonal"
        diagonal = [
            side
            for side, dense in (("inputs", self.dense_inputs), ("outputs", self.dense_outputs))
            if not dense
        ]
        return ", ".join(["kronecker", *(f"diagonal {side}" for side in diagonal)])


@dataclass(frozen=True)
class BlockLayers:
    """The layers that make up a block.

    Attributes:
        parts: the layers.
        skipped: name -> why, of the parameters that are left out.
        left_out: first column -> size of those.
    """

    parts: tuple[LayerPart, ...]
    skipped: Mapping[str, str]
    left_out: Mapping[int, int]


def layers_of_blocks(
    blocks: Sequence[Block],
    layers: Mapping[str, Layer | FreeParameters],
    parameters: Mapping[str, tuple[int, ...]],
    settings: KroneckerSettings,
) -> list[BlockLayers]:
    """Return how the layers of every block are taken.

    Args:
        blocks: the parameters.
        layers: name to layer.
        parameters: name to shape of all parameters.
        settings: what is asked for.

    Raises:
        NotImplementedLayerRepresentationException: a parameter belongs to no layer, to several, or
            should and cannot be a layer's, and the settings do not say what to do.
    """
    names = [name for block in blocks for name in block.names]
    faults = find_faults(names, layers, parameters)
    skipped = _skipped(faults, layers, settings.unsupported)
    answer = []
    for block in blocks:
        own = {name: skipped[name] for name in block.names if name in skipped}
        columns = columns_of_layers(block.names, layers, parameters, own)
        left_out, start = {}, 0
        for name in block.names:
            size = math.prod(parameters[name])
            if name in own:
                left_out[start] = size
            start += size
        answer.append(BlockLayers(tuple(map(settings.part, columns)), own, left_out))
    return answer


def _skipped(
    faults: Mapping[str, str],
    layers: Mapping[str, Layer | FreeParameters],
    unsupported: Unsupported,
) -> Mapping[str, str]:
    if unsupported is Unsupported.SKIP:
        return faults
    shown = {
        name
        for layer in layers.values()
        if isinstance(layer, FreeParameters)
        for name, fault in faults.items()
        if name in layer.names and fault == layer.fault
    }
    if unsupported is Unsupported.DIAGONAL:
        faults = {
            name: f"{fault}, and the backend shows no gradients of it by itself"
            for name, fault in faults.items()
            if name not in shown
        }
    if faults:
        diagonal = ", 'diagonal' for a diagonal block" if shown.issuperset(faults) else ""
        raise unfactored(faults, f"pass unsupported='skip' to leave it out{diagonal}, ")
    return {}
