"""The Kronecker-factored Fisher matrix, learnt for all layers of all blocks together.

With the second moments `A` of a layer's inputs and `S` of its output gradients (see `layer_data`)
and the eigenvectors `Q_A`, `Q_S` of both, the matrix of the layer is `(Q_S ⊗ Q_A)ᵀ Λ (Q_S ⊗ Q_A)`:

    K-FAC    Λ = λ_S ⊗ λ_A
    EK-FAC   Λ = the mean squares of the per-sample gradients in the eigenbasis: a second pass

Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML
2015. George, Laurent, Bouthillier, Ballas and Vincent, Fast approximate natural gradient descent in
a Kronecker-factored eigenbasis, NeurIPS 2018. Shared positions are the "expand" setting of
Eschenhagen, Immer, Turner, Schneider and Hennig, Kronecker-factored approximate curvature for
modern neural network architectures, NeurIPS 2023.

A quadratic penalty `P` of the objective adds its diagonal in the eigenbasis, `Q_S² P (Q_A²)ᵀ` with
the squares entry by entry: exact where the penalty is uniform on a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from influence_core.arrays import Exchange, eigh, namespace, read_flag, to_host
from influence_core.curvature.base import Curvature
from influence_core.curvature.kronecker import KroneckerInverse, KroneckerLayer
from influence_core.curvature.layer_data import FisherLabels, LayerData, layered
from influence_core.curvature.layers import LayerColumns, columns_of_layers
from influence_core.errors import NonFiniteError
from influence_core.problem import Array


def kronecker_inverses(
    curvatures: Sequence[Curvature],
    labels: FisherLabels,
    update_diagonal: bool,
    step: Callable[[], object] = lambda: None,
) -> list[KroneckerInverse]:
    """Return the inverse of the factored Fisher matrix of every block.

    All blocks are learnt in one pass over the data, or in two with `update_diagonal`.

    Args:
        curvatures: the blocks, over one objective; their own matrices are not asked for.
        labels: of the Fisher matrix.
        update_diagonal: whether eigenvalues are measured in the eigenbasis (EK-FAC), or products of
            those of the factors (K-FAC).
        step: called after every batch.

    Raises:
        CapabilityError: the backend does not show its layers, or knows no distribution of labels.
        NotImplementedLayerRepresentationException: a parameter belongs to no layer, or its gradient
            is not the one that its layer says.
        NonFiniteError: a second moment is NaN or infinite.
    """
    objective, exchange = curvatures[0].objective, curvatures[0].exchange
    known, parameters = layered(objective).layers(), objective.problem.parameters
    blocks = [columns_of_layers(each.block, known, parameters) for each in curvatures]
    names = tuple(dict.fromkeys(columns.name for columns in chain.from_iterable(blocks)))
    data = LayerData(objective, names, labels, step)
    moments = data.moments([name for each in curvatures for name in each.block.names])
    layers = _eigenbases(list(chain.from_iterable(blocks)), moments, exchange)
    if update_diagonal:
        squares = data.mean_squares([layer.map(exchange.to_model) for layer in layers])
        layers = [
            replace(layer, values=_host(values))
            for layer, values in zip(layers, squares, strict=True)
        ]
    rest = iter(layers)
    return [
        KroneckerInverse(
            tuple(_with_penalty(next(rest), curvature) for _ in block), curvature.block.name
        )
        for block, curvature in zip(blocks, curvatures, strict=True)
    ]


def _eigenbases(
    parts: Sequence[LayerColumns],
    moments: Mapping[str, tuple[Array, Array]],
    exchange: Exchange,
) -> list[KroneckerLayer]:
    """Return the layers with the eigenvalues of K-FAC."""
    outputs = {name: _eigenpairs(name, s, exchange) for name, (_, s) in moments.items()}
    answer = []
    for columns in parts:
        a = moments[columns.name][0][columns.span, columns.span]
        input_values, inputs = _eigenpairs(columns.name, a, exchange)
        output_values, vectors = outputs[columns.name]
        values = np.multiply.outer(output_values, input_values)
        answer.append(KroneckerLayer(columns, inputs, vectors, values))
    return answer


def _eigenpairs(
    name: str, matrix: Array, exchange: Exchange
) -> tuple[npt.NDArray[np.float64], Array]:
    matrix = exchange.to_solver(matrix)
    xp = namespace(matrix)
    if not read_flag(xp.all(xp.isfinite(matrix))):
        raise NonFiniteError(
            f"EK-FAC: the second moments of what layer {name!r} sees hold NaN or infinity. Look "
            "for points whose activations or gradients are not finite, or use float64."
        )
    values, vectors = eigh(matrix)
    return np.maximum(_host(values), 0.0), vectors  # below zero only by rounding


def _with_penalty(layer: KroneckerLayer, curvature: Curvature) -> KroneckerLayer:
    penalty = curvature.penalty()
    if penalty is None:
        return layer
    diagonal = layer.columns.gather(curvature.exchange.to_solver(penalty)[None, :])[0, :, :]
    turned = (layer.inputs**2) @ namespace(diagonal).matrix_transpose(diagonal)
    added = (layer.outputs**2) @ namespace(turned).matrix_transpose(turned)
    return replace(layer, values=layer.values + _host(added))


def _host(array: Array) -> npt.NDArray[np.float64]:
    return to_host(array).astype(np.float64)
