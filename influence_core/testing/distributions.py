"""The distributions of labels that the losses stand for, and gradients at their labels.

A loss is a negative log-likelihood of `y` given the outputs `f`, up to a constant:

    squared         y ~ N(f, I/c)          ∇_f ℓ = -√c z at y = f + z/√c, z ~ N(0, I)
    cross-entropy   y ~ softmax(f) = π     ∇_f ℓ = π - e_c at the class c, of probability π_c
    binary          y ~ Bernoulli(σ(f))    the second output of softmax((0, f))

Expected labels give one slice of gradients a class, `√π_c (π - e_c)`, or one an output, `√c e_o`:
the sum of the slices' outer products is the Fisher matrix of the outputs, `diag(π) - ππᵀ` or `c I`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from influence_core.arrays import eye, from_host, namespace, zeros
from influence_core.errors import CapabilityError
from influence_core.modes import LabelKind
from influence_core.problem import Array, Labels
from influence_core.testing.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    Squared,
    sigmoid,
)

# expected labels cost a backward pass for every class: above this many, None means sampled ones
_CLASSES = 32


def output_slopes(loss: Loss, f: Array, targets: Array, labels: Labels) -> Array:
    """Return `∇_f ℓ` at the labels, `(c, n, o)`, in slices as `LayerStatistics` has them.

    Args:
        loss: its distribution must be known, except for given labels.
        f: outputs, `(n, o)`.
        targets: of the data, `(n, o)`.
        labels: at which labels.

    Raises:
        CapabilityError: the distribution of the loss is not known.
    """
    if labels.kind is LabelKind.GIVEN:
        return loss.gradient(f, targets)[None, :, :]
    if not isinstance(loss, Squared | CrossEntropy | BinaryCrossEntropy):
        raise CapabilityError(
            f"labels of the model's own need a loss whose distribution is known; "
            f"{type(loss).__name__} has none. Use 'squared', 'cross_entropy' or labels='given'."
        )
    few = f.shape[1] <= _CLASSES
    expected = few if labels.kind is None else labels.kind is LabelKind.EXPECTED
    if isinstance(loss, Squared):
        slopes = _gaussian_expected(f) if expected else _gaussian_sampled(f, labels)
        return slopes * math.sqrt(loss.scale)
    binary = isinstance(loss, BinaryCrossEntropy)
    probabilities = _two_classes(f) if binary else loss.gradient(f, zeros(f.shape, f))
    slopes = (
        _classes_expected(probabilities) if expected else _classes_sampled(probabilities, labels)
    )
    return slopes[:, :, 1:] if binary else slopes


def _two_classes(f: Array) -> Array:
    return namespace(f).concat([sigmoid(-f), sigmoid(f)], axis=1)


def _gaussian_expected(f: Array) -> Array:
    return eye(f.shape[1], f)[:, None, :] + zeros((1, *f.shape), f)


def _gaussian_sampled(f: Array, labels: Labels) -> Array:
    normals = _normals(labels.uniforms(2 * f.shape[1]))
    return from_host(-normals / np.sqrt(normals.shape[0]), f)


def _normals(uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return normal numbers, `(…, o)`, from uniform ones in `[0, 1)`, `(…, 2 o)`.

    Box and Muller, A note on the generation of random normal deviates, 1958.
    """
    radii, turns = np.split(uniforms, 2, axis=-1)
    normals: npt.NDArray[np.float64] = np.sqrt(-2 * np.log1p(-radii)) * np.cos(2 * np.pi * turns)
    return normals


def _classes_expected(probabilities: Array) -> Array:
    xp, classes = namespace(probabilities), eye(probabilities.shape[1], probabilities)
    weights = xp.sqrt(xp.matrix_transpose(probabilities))[:, :, None]
    return weights * (probabilities[None, :, :] - classes[:, None, :])


def _classes_sampled(probabilities: Array, labels: Labels) -> Array:
    """Return `(π - e_c) / √draws` for the first class `c` at which the distribution exceeds `u`."""
    xp, outputs = namespace(probabilities), probabilities.shape[1]
    host = labels.uniforms(1)
    numbers = from_host(host, probabilities)  # (draws, n, 1)
    below = xp.cumulative_sum(probabilities, axis=-1)[:, : outputs - 1] <= numbers
    passed = xp.sum(xp.astype(below, probabilities.dtype), axis=-1)  # the last takes the rest
    classes = xp.cumulative_sum(xp.ones_like(probabilities[0, :])) - 1
    drawn = xp.astype(passed[:, :, None] == classes, probabilities.dtype)
    return (probabilities - drawn) / float(np.sqrt(host.shape[0]))
