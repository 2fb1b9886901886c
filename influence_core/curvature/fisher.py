"""The Kronecker-factored Fisher matrix, learnt for all layers of all blocks together.

With the second moments `A` of a layer's inputs and `S` of its output gradients (see
`influence_core.layers.seen`) and the eigenvectors `Q_A`, `Q_S` of both, the matrix of the layer is
`(Q_S ⊗ Q_A)ᵀ Λ (Q_S ⊗ Q_A)`:

    K-FAC    Λ = λ_S ⊗ λ_A
    EK-FAC   Λ = the mean squares of the per-sample gradients in the eigenbasis: a second pass

A factor that is diagonal has the identity for eigenvectors. Free parameters have `A = 1`, and are
exact from the first pass on.

Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML
2015. George, Laurent, Bouthillier, Ballas and Vincent, Fast approximate natural gradient descent in
a Kronecker-factored eigenbasis, NeurIPS 2018.

A quadratic penalty `P` of the objective adds its diagonal in the eigenbasis, `Q_S² P (Q_A²)ᵀ` with
the squares entry by entry: exact where the penalty is uniform on a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import Exchange, eigh, namespace, read_flag, supports_float64, to_host
from influence_core.curvature.base import Curvature
from influence_core.curvature.kronecker import KroneckerInverse, KroneckerLayer
from influence_core.curvature.layer_data import LayerData, layered
from influence_core.curvature.layer_parts import (
    BlockLayers,
    KroneckerSettings,
    LayerPart,
    layers_of_blocks,
)
from influence_core.errors import NonFiniteError, OptionError
from influence_core.modes import Sharing
from influence_core.problem import Array

_LOGGER = logging.getLogger(__name__)


def kronecker_inverses(
    curvatures: Sequence[Curvature],
    settings: KroneckerSettings,
    step: Callable[[], object] = lambda: None,
) -> list[KroneckerInverse]:
    """Return the inverse of the factored Fisher matrix of every block.

    All blocks are learnt in one pass over the data, or in two with `update_diagonal`; with
    `layers_at_once`, in as many for each group of layers.

    Args:
        curvatures: the blocks, over one objective; their own matrices are not asked for.
        settings: what the matrix is made of.
        step: called after every batch of a pass.

    Raises:
        CapabilityError: the backend does not show its layers, or knows no distribution of labels.
        NotImplementedLayerRepresentationException: a parameter belongs to no layer, or its gradient
            is not the one that its layer says.
        OptionError: the device does not have the dtype that is asked for.
        NonFiniteError: a second moment is NaN or infinite.
    """
    objective, exchange = curvatures[0].objective, curvatures[0].exchange
    known, parameters = layered(objective.problem).layers(), objective.problem.parameters
    own = [each.block for each in curvatures]
    blocks = layers_of_blocks(own, known, parameters, settings)
    _tell(blocks)
    teacher = _Teacher(curvatures[0], settings, _dtype(settings, exchange), step)
    learnt = teacher.layers([part for block in blocks for part in block.parts])
    return [
        KroneckerInverse(
            tuple(_with_penalty(next(learnt), curvature) for _ in block.parts),
            curvature.block.name,
            block.left_out,
        )
        for block, curvature in zip(blocks, curvatures, strict=True)
    ]


def _tell(blocks: Sequence[BlockLayers]) -> None:
    skipped = [repr(name) for block in blocks for name in block.skipped]
    if skipped:
        _LOGGER.info("EK-FAC: unsupported='skip' leaves out %s", ", ".join(skipped))


def _dtype(settings: KroneckerSettings, exchange: Exchange) -> Any:
    """Return the dtype of the factors, in the library of the model.

    Raises:
        OptionError: the device does not have it.
    """
    if settings.factor_dtype is None:
        return exchange.model.dtype
    if settings.factor_dtype == "float64" and not supports_float64(exchange.model):
        raise OptionError(
            "`factor_dtype='float64'` needs a device that computes in float64; that of the model "
            "does not. Leave it out, or move the model."
        )
    return getattr(namespace(exchange.model), settings.factor_dtype)


@dataclass(frozen=True)
class _Teacher:
    """Learns layers from the data.

    Attributes:
        curvature: any of the blocks'.
        settings: what the matrix is made of.
        dtype: of the factors.
        step: called after every batch of a pass.
    """

    curvature: Curvature
    settings: KroneckerSettings
    dtype: Any
    step: Callable[[], object]

    def layers(self, parts: Sequence[LayerPart]) -> Iterator[KroneckerLayer]:
        """Yield the layers in their order, learnt a group at a time."""
        names = tuple(dict.fromkeys(part.columns.name for part in parts))
        some = self.settings.layers_at_once or max(1, len(names))
        learnt: dict[int, KroneckerLayer] = {}
        for start in range(0, len(names), some):
            group = names[start : start + some]
            own = {at: part for at, part in enumerate(parts) if part.columns.name in group}
            learnt |= dict(zip(own, self._group(group, list(own.values())), strict=True))
        return (learnt[at] for at in range(len(parts)))

    def _group(self, names: tuple[str, ...], parts: Sequence[LayerPart]) -> list[KroneckerLayer]:
        data = self._data(names)
        moments = data.moments(parts, self.settings.sharing is Sharing.REDUCE)
        layers = [self._layer(part, *pair) for part, pair in zip(parts, moments, strict=True)]
        del moments  # the eigenvectors take their place
        inexact = [at for at, part in enumerate(parts) if not part.exact]
        if not (self.settings.update_diagonal and inexact):
            return layers
        carry = self.curvature.exchange.to_model
        data = self._data(tuple(dict.fromkeys(parts[at].columns.name for at in inexact)))
        squares = data.mean_squares([layers[at].map(carry) for at in inexact])
        for at, values in zip(inexact, squares, strict=True):
            layers[at] = replace(layers[at], values=_host(values))
        return layers

    def _data(self, names: tuple[str, ...]) -> LayerData:
        objective, labels = self.curvature.objective, self.settings.labels
        return LayerData(objective, names, labels, self.dtype, self.step)

    def _layer(self, part: LayerPart, a: Array, s: Array) -> KroneckerLayer:
        """Return the layer with the eigenvalues of K-FAC."""
        input_values, inputs = self._eigenpairs(part, a)
        output_values, outputs = self._eigenpairs(part, s)
        values = np.multiply.outer(output_values, input_values)
        return KroneckerLayer(part.columns, inputs, outputs, values)

    def _eigenpairs(
        self, part: LayerPart, factor: Array
    ) -> tuple[npt.NDArray[np.float64], Array | None]:
        """Return the eigenvalues and eigenvectors of a matrix, or of a diagonal."""
        factor = self.curvature.exchange.to_solver(factor)
        xp = namespace(factor)
        if not read_flag(xp.all(xp.isfinite(factor))):
            raise NonFiniteError(
                f"EK-FAC: the second moments of what layer {part.columns.name!r} sees hold NaN or "
                "infinity. Look for points whose activations or gradients are not finite, or use "
                "float64."
            )
        if factor.ndim == 1:
            return np.maximum(_host(factor), 0.0), None
        values, vectors = eigh(factor)
        # below zero only by rounding; vectors longer than what they will meet are of no use
        return np.maximum(_host(values), 0.0), _shortened(vectors, self.curvature.reference)


def _with_penalty(layer: KroneckerLayer, curvature: Curvature) -> KroneckerLayer:
    penalty = curvature.penalty()
    if penalty is None:
        return layer
    diagonal = layer.columns.gather(curvature.exchange.to_solver(penalty)[None, :])
    added = layer.squared_bases.turn(diagonal)[0, :, :]
    return replace(layer, values=layer.values + _host(added))


def _shortened(array: Array, like: Array) -> Array:
    xp = namespace(array)
    longer = xp.finfo(array.dtype).bits > xp.finfo(like.dtype).bits
    return xp.astype(array, like.dtype) if longer else array


def _host(array: Array) -> npt.NDArray[np.float64]:
    return to_host(array).astype(np.float64)
