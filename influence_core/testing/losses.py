"""The losses of the closed forms, as functions of a model's outputs `f` of one point.

    squared         ℓ = ½ c ‖f - y‖²            ∇_f ℓ = c (f - y)  ∇²_f ℓ = c I
    cross-entropy   ℓ = log Σ exp(f) - ⟨t, f⟩   ∇_f ℓ = π - t      ∇²_f ℓ = diag(π) - π πᵀ
    binary          ℓ = log(1 + exp(f)) - t f   ∇_f ℓ = σ - t      ∇²_f ℓ = σ (1 - σ)

with `π = softmax(f)` and `t` the one-hot row of the label; with one output, `σ = 1 / (1 + exp(-f))`
and `t` the label, 0 or 1. All are convex in `f`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from influence_core.arrays import device, is_array, matching, namespace
from influence_core.errors import DataError, DataTypeError, OptionError
from influence_core.problem import Array


class Loss(Protocol):
    """A loss of a model's outputs, with its first two derivatives."""

    def targets(self, y: Any, outputs: int, like: Array) -> Array:
        """Return what the other methods take for `y`: `(n, o)`, as an array like `like`."""
        ...

    def values(self, f: Array, targets: Array) -> Array:
        """Return the losses of the points, `(n,)`."""
        ...

    def gradient(self, f: Array, targets: Array) -> Array:
        """Return `∇_f ℓ` of the points, `(n, o)`."""
        ...

    def curvature(self, f: Array, u: Array) -> Array:
        """Return `(∇²_f ℓ) u` of the points, `(k, n, o)` for `u` of that shape."""
        ...

    def check(self, targets: Array) -> tuple[Array, str]:
        """Return whether the targets are within their range (0-d), and the rule."""
        ...


@dataclass(frozen=True)
class Squared:
    """`½ c ‖f - y‖²`, summed over the outputs; `y` is `(n, o)`.

    Attributes:
        scale: `c`, above zero.
    """

    scale: float = 1.0

    def targets(self, y: Any, outputs: int, like: Array) -> Array:
        """Return `y`.

        Raises:
            DataError: `y` is not `(n, o)`.
        """
        y = y if is_array(y) else np.asarray(y)
        # (n,) would broadcast against (n, 1) into (n, n)
        if y.ndim != 2 or y.shape[1] != outputs:
            raise DataError(
                f"`batch((x, y))`: `y` of a squared loss must have the shape (n, {outputs}), one "
                f"column an output; got {tuple(y.shape)}. Reshape it."
            )
        return matching(y, like)

    def values(self, f: Array, targets: Array) -> Array:
        """Return `½ c ‖f - y‖²`, `(n,)`."""
        return namespace(f).sum((f - targets) ** 2, axis=-1) * (self.scale / 2)

    def gradient(self, f: Array, targets: Array) -> Array:
        """Return `c (f - y)`, `(n, o)`."""
        return (f - targets) * self.scale

    def curvature(self, f: Array, u: Array) -> Array:
        """Return `c u`."""
        return u * self.scale

    def check(self, targets: Array) -> tuple[Array, str]:
        """Return that any finite number will do."""
        xp = namespace(targets)
        return xp.all(xp.isfinite(targets)), "hold finite numbers"


class CrossEntropy:
    """Cross-entropy of the softmax; `y` holds integer labels, `(n,)`."""

    def targets(self, y: Any, outputs: int, like: Array) -> Array:
        """Return one-hot rows.

        Raises:
            DataTypeError: `y` does not hold integers.
            DataError: `y` is not `(n,)`.
        """
        xp, labels = namespace(like), _labels(y, like)
        classes = xp.arange(outputs, dtype=like.dtype, device=device(like))
        return xp.astype(labels[:, None] == classes[None, :], like.dtype)

    def values(self, f: Array, targets: Array) -> Array:
        """Return `log Σ exp(f) - ⟨t, f⟩`, `(n,)`."""
        xp = namespace(f)
        shifted = f - xp.max(f, axis=-1, keepdims=True)
        return xp.log(xp.sum(xp.exp(shifted), axis=-1)) - xp.sum(targets * shifted, axis=-1)

    def gradient(self, f: Array, targets: Array) -> Array:
        """Return `π - t`, `(n, o)`."""
        return _softmax(f) - targets

    def curvature(self, f: Array, u: Array) -> Array:
        """Return `π ∘ u - π ⟨π, u⟩`, `(k, n, o)`."""
        share = _softmax(f) * u
        return share - _softmax(f) * namespace(f).sum(share, axis=-1, keepdims=True)

    def check(self, targets: Array) -> tuple[Array, str]:
        """Return whether every label names a class."""
        xp = namespace(targets)
        rule = f"hold labels from 0 to {targets.shape[1] - 1}"
        return xp.all(xp.sum(targets, axis=1) == 1), rule


class BinaryCrossEntropy:
    """Cross-entropy of the sigmoid of one output; `y` holds the integer labels 0 and 1, `(n,)`."""

    def targets(self, y: Any, outputs: int, like: Array) -> Array:
        """Return the labels as a column.

        Raises:
            DataTypeError: `y` does not hold integers.
            DataError: `y` is not `(n,)`.
            OptionError: the model has more outputs than one.
        """
        if outputs != 1:
            raise OptionError(
                f"`loss='binary_cross_entropy'` is for a model with one output; this one has "
                f"{outputs}. Choose `loss='cross_entropy'`."
            )
        return _labels(y, like)[:, None]

    def values(self, f: Array, targets: Array) -> Array:
        """Return `log(1 + exp(f)) - t f`, `(n,)`."""
        xp = namespace(f)
        size = xp.abs(f)
        return xp.sum((f + size) / 2 - targets * f + xp.log1p(xp.exp(-size)), axis=-1)

    def gradient(self, f: Array, targets: Array) -> Array:
        """Return `σ - t`, `(n, 1)`."""
        return sigmoid(f) - targets

    def curvature(self, f: Array, u: Array) -> Array:
        """Return `σ (1 - σ) u`, `(k, n, 1)`."""
        return sigmoid(f) * sigmoid(-f) * u

    def check(self, targets: Array) -> tuple[Array, str]:
        """Return whether every label is 0 or 1."""
        return namespace(targets).all((targets == 0) | (targets == 1)), "hold the labels 0 and 1"


def sigmoid(f: Array) -> Array:
    """Return `1 / (1 + exp(-f))`, to full relative precision for any `f`."""
    xp = namespace(f)
    power = xp.exp(-xp.abs(f))
    return xp.where(f < 0, power, xp.ones_like(f)) / (1 + power)


def _labels(y: Any, like: Array) -> Array:
    """Return integer labels, `(n,)`, as an array like `like`."""
    y = y if is_array(y) else np.asarray(y)
    if not namespace(y).isdtype(y.dtype, "integral"):
        raise DataTypeError(
            f"`batch((x, y))`: `y` of a cross-entropy must hold integer labels; got "
            f"{y.dtype}. Cast it, or choose `loss='squared'`."
        )
    if y.ndim != 1:
        raise DataError(
            f"`batch((x, y))`: `y` of a cross-entropy must have the shape (n,); got "
            f"{tuple(y.shape)}. Pass labels, not one-hot rows."
        )
    return matching(y, like)


def _softmax(f: Array) -> Array:
    xp = namespace(f)
    powers = xp.exp(f - xp.max(f, axis=-1, keepdims=True))
    return powers / xp.sum(powers, axis=-1, keepdims=True)


LOSSES: dict[str, Loss] = {
    "squared": Squared(),
    "cross_entropy": CrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
}


def find_loss(loss: str | Loss) -> Loss:
    """Return the loss of that name; a loss is returned as it is.

    Raises:
        OptionError: no loss has the name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise OptionError(
            f"`loss` must be one of {', '.join(map(repr, LOSSES))}, or None for the model's own; "
            f"got {loss!r}."
        )
    return LOSSES[loss]
