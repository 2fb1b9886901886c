"""Closed forms as subjects, with oracles that are written in NumPy once more."""

from __future__ import annotations

from typing import Any

import numpy as np
from namespaces import NUMPY, Library

from influence_core.plugins import BackendSpec
from influence_core.testing import (
    BACKEND,
    FiniteDifferences,
    LeastSquares,
    Logistic,
    Subject,
    TanhNetwork,
)

POINTS, INPUTS, HIDDEN, OUTPUTS = 7, 3, 2, 2
KINDS = ("least_squares", "logistic", "tanh_squared", "tanh_cross_entropy")
PENALTIES = {"least_squares": {"weight": 0.3, "bias": 0.1}, "tanh_squared": {"hidden.weight": 0.2}}


def outputs(parameters, x):
    """`x Wᵀ + b`, once or twice with tanh between."""
    a = x.reshape(len(x), -1)
    weights = [value for value in parameters.values() if value.ndim == 2]
    biases = [value for value in parameters.values() if value.ndim == 1]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        a = (np.tanh(a) if index else a) @ weight.T + bias
    return a


def squared(f, y):
    """`½ ‖f - y‖²`."""
    return 0.5 * np.sum((f - y) ** 2, axis=1)


def cross_entropy(f, y):
    """Of the softmax of `f` at the labels `y`."""
    return np.log(np.sum(np.exp(f), axis=1)) - f[np.arange(len(f)), y]


def differences(losses):
    """The oracle of `losses(outputs, y)`."""
    return FiniteDifferences(lambda p, x, y: losses(outputs(p, x), y), outputs, losses)


def make_data(loss, shape=(INPUTS,)):
    """Random points as NumPy arrays."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((POINTS, *shape))
    if loss == "squared":
        return x, rng.standard_normal((POINTS, OUTPUTS))
    return x, rng.integers(0, OUTPUTS, POINTS)


def make_model(kind, library=NUMPY):
    """A random closed form."""
    like = library.array(0.0)
    if kind == "least_squares":
        return LeastSquares.random(INPUTS, OUTPUTS, seed=1, like=like)
    if kind == "logistic":
        return Logistic.random(INPUTS, OUTPUTS, seed=1, like=like)
    loss = kind.removeprefix("tanh_")
    return TanhNetwork.random(INPUTS, HIDDEN, OUTPUTS, loss=loss, seed=1, like=like)


def make_subject(
    kind: str,
    library: Library = NUMPY,
    backend: BackendSpec = BACKEND,
    shape: tuple[int, ...] = (INPUTS,),
    **fields: Any,
) -> Subject:
    """A closed form in a library, with weights and, for some kinds, a penalty.

    Args:
        kind: one of `KINDS`.
        library: of the model and the data.
        backend: for the model.
        shape: of a point's `x`.
        **fields: of the subject, in place of its own.
    """
    model, penalties = fields.pop("model", None) or make_model(kind, library), PENALTIES.get(kind)
    losses = squared if model.loss == "squared" else cross_entropy

    def penalty(parameters, weight):
        return sum(0.5 * c * np.sum(parameters[name] ** 2) for name, c in (penalties or {}).items())

    own = {
        "model": model,
        "data": tuple(library.array(a) for a in make_data(model.loss, shape)),
        "oracle": differences(losses),
        "backend": backend,
        "options": {"penalty": penalties},
        "weighted": lambda x, y, w: (x, y, library.array(w)),
        "penalty": penalty if penalties else None,
    }
    return Subject(**{**own, **fields})
