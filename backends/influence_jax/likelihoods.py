"""The distribution of the labels that a loss belongs to, and gradients at labels drawn from it.

Under cross-entropy the label at a position `t` of a point has the probabilities `p_t`, the softmax
of its outputs, independently of the others. With `w_t` the share of the position in the loss of
the point, the gradient in the outputs at label `c` is `w_t (p_t - e_c)`, whose mean over the labels
is zero: what is quadratic in the gradient of the point has as its mean over the labels the sum over
`t` and `c` of what it is for `√p_tc · w_t (p_t - e_c)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from influence_core.errors import CapabilityError, LossError
from influence_core.modes import LabelKind

# the label of a position that has no loss
_IGNORED = -100
# up to here the exact expectation is what is meant where nobody says
_FEW_CLASSES = 32

_OPTAX = "softmax_cross_entropy_with_integer_labels"


def cross_entropy(outputs: Array, y: Array) -> Array:
    """Return the mean over the points of the mean cross-entropy over the positions of a point.

    Args:
        outputs: logits, `(n, …, classes)`.
        y: labels, `(n, …)`, where -100 marks a position that does not count; or probabilities in
            the shape of `outputs`. A label that is no class makes the loss NaN.

    Raises:
        LossError: the shapes do not go together.
    """
    logs = jax.nn.log_softmax(outputs, axis=-1)
    counts = _counts(outputs, y)
    if jnp.issubdtype(y.dtype, jnp.floating):
        losses = -(y * logs).sum(axis=-1)
    else:
        picked = jnp.take_along_axis(logs, jnp.where(counts, y, 0)[..., None], axis=-1)[..., 0]
        known = (y >= 0) & (y < outputs.shape[-1])
        losses = jnp.where(counts, jnp.where(known, -picked, jnp.nan), 0.0)
    each = losses.reshape(losses.shape[0], -1) * _shares(counts, losses.dtype)
    return each.sum(axis=1).mean()


@dataclass(frozen=True)
class Slices:
    """Gradients in the outputs of a model at one point, one a slice.

    Attributes:
        rows: what tells the slices apart, arrays `(c, …)`.
        cotangent: a row ↦ the gradients, in the structure of the outputs.
    """

    rows: Mapping[str, Array]
    cotangent: Callable[[Mapping[str, Array]], Any]


def check_known(loss: Any, kind: LabelKind | None) -> None:
    """Raise unless the distribution is known that `loss` belongs to.

    Raises:
        CapabilityError: it is not; `kind` of labels was asked for.
    """
    if loss is cross_entropy or _is_optax(loss):
        return
    asked = f"labels={kind.value!r}" if kind else "labels=None"
    raise CapabilityError(
        f"`{asked}` needs a loss whose distribution is known: influence_jax.cross_entropy, or "
        f"optax.{_OPTAX}; got {getattr(loss, '__qualname__', loss)!r}. Pass one of these, or "
        "`labels='given'` for the labels of the data (the empirical Fisher)."
    )


def kind_or_default(kind: LabelKind | None, outputs: Any) -> LabelKind:
    """Return `kind`; where it is None, expected for one distribution a point over few classes.

    Args:
        kind: of the labels.
        outputs: those of one point, as a batch of one, or their shape.
    """
    few = positions_of(outputs) == 1 and outputs.shape[-1] <= _FEW_CLASSES
    return kind or (LabelKind.EXPECTED if few else LabelKind.SAMPLED)


def positions_of(outputs: Any) -> int:
    """Return the number of distributions that one point has."""
    return math.prod(outputs.shape[:-1])


def expected(outputs: Array, y: Array) -> Slices:
    """Return `√p_tc · w_t (p_t - e_c)` for one point: a slice a position and class."""
    softmax = _Softmax.of(outputs, y)
    positions, classes = softmax.probabilities.shape
    place, label = jnp.arange(positions), jnp.arange(classes)

    def cotangent(row: Mapping[str, Array]) -> Array:
        chosen = label == row["label"]
        roots = jnp.sqrt((softmax.probabilities * chosen).sum(axis=-1))
        return softmax.gradients(chosen, roots * (place == row["position"]))

    rows = {"position": jnp.repeat(place, classes), "label": jnp.tile(label, positions)}
    return Slices(rows, cotangent)


def sampled(outputs: Array, y: Array, uniforms: Array) -> Slices:
    """Return `1/√draws · w (p - e_label)` for one point.

    Args:
        outputs: as a batch of one.
        y: the labels of the data: they say which positions count.
        uniforms: numbers in [0, 1), `(draws, t)`; a label is where the sum of `p` exceeds one.
    """
    softmax = _Softmax.of(outputs, y)
    sums = softmax.probabilities.cumsum(axis=-1)
    reached = uniforms.astype(sums.dtype) * sums[:, -1]  # the last sum is 1 up to rounding
    labels = (sums <= reached[..., None]).sum(axis=-1)
    labels = jnp.minimum(labels, sums.shape[-1] - 1)
    scale = 1 / math.sqrt(labels.shape[0])

    def cotangent(row: Mapping[str, Array]) -> Array:
        chosen = row["labels"][:, None] == jnp.arange(sums.shape[-1])
        return softmax.gradients(chosen, scale * jnp.ones_like(softmax.shares))

    return Slices({"labels": labels}, cotangent)


@dataclass(frozen=True)
class _Softmax:
    """Independent distributions at the `t` positions of a point.

    Attributes:
        probabilities: `p`, `(t, classes)`.
        shares: `w`, `(t,)`.
        shape: of the outputs.
    """

    probabilities: Array
    shares: Array
    shape: tuple[int, ...]

    @classmethod
    def of(cls, outputs: Array, y: Array) -> _Softmax:
        p = jax.nn.softmax(outputs, axis=-1).reshape(-1, outputs.shape[-1])
        return cls(p, _shares(_counts(outputs, y), p.dtype)[0], outputs.shape)

    def gradients(self, chosen: Array, scale: Array) -> Array:
        own = self.probabilities - chosen.astype(self.probabilities.dtype)
        return (own * (self.shares * scale)[:, None]).reshape(self.shape)


def _is_optax(loss: Any) -> bool:
    module = str(getattr(loss, "__module__", ""))
    return module.split(".")[0] == "optax" and getattr(loss, "__name__", "") == _OPTAX


def _counts(outputs: Array, y: Array) -> Array:
    """Return which positions count, `(n, …)`."""
    soft = jnp.issubdtype(y.dtype, jnp.floating)
    if outputs.ndim < 2 or (y.shape != outputs.shape if soft else y.shape != outputs.shape[:-1]):
        raise LossError(
            "`cross_entropy(outputs, y)` needs outputs (n, …, classes) for labels (n, …), or for "
            f"probabilities of their own shape; got outputs {outputs.shape} and {y.dtype} targets "
            f"{y.shape}. Bring them into this form in `apply`."
        )
    return jnp.ones(outputs.shape[:-1], bool) if soft else y != _IGNORED


def _shares(counts: Array, dtype: Any) -> Array:
    """Return the share of every position in its point, `(n, t)`."""
    flat = counts.reshape(counts.shape[0], -1).astype(dtype)
    return flat / jnp.maximum(flat.sum(axis=1, keepdims=True), 1)
