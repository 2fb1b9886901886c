"""The loss of one point, `ℓᵢ = loss(apply(params, xᵢ), yᵢ)` of a batch of one, for many points.

What a user hands over is the loss of a batch: its mean, its sum, or the vector of the points. All
derivatives are those of `ℓᵢ`, vmapped, so which one it is matters to none; the batch loss is only
compared, so that a loss that is neither is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from influence_core.errors import LossError, ModelError
from influence_jax.data import shown
from influence_jax.snapshot import Snapshot, leading_one, split_floats, with_floats

Loss = Callable[[Any, Any], Array]
Reduction = Literal["mean", "sum", "none"]
Host = npt.NDArray[np.float64]

# how much the outputs are shrunk where the losses at the outputs themselves are too small to tell
_SHRUNK = 1 / 8


@dataclass(frozen=True)
class PointLosses:
    """The losses of single points, traceable functions of parameters, inputs and outputs.

    A point has no axis of points; the model and the loss get a batch of one.

    Attributes:
        snapshot: the model.
        loss: the user's, of a batch.
    """

    snapshot: Snapshot
    loss: Loss

    def outputs(self, parameters: Mapping[str, Array], x: Any) -> Any:
        """Return the outputs of the model at one point, as a batch of one."""
        return self.snapshot(parameters, leading_one(x))

    def of_outputs(self, outputs: Any, y: Any) -> Array:
        """Return the loss of one point, `()`, from its outputs as a batch of one."""
        return jnp.reshape(self.loss(outputs, leading_one(y)), ())

    def point(self, parameters: Mapping[str, Array], x: Any, y: Any) -> Array:
        """Return the loss of one point, `()`: the definition."""
        return self.of_outputs(self.outputs(parameters, x), y)

    def vector(self, parameters: Mapping[str, Array], x: Any, y: Any) -> Array:
        """Return the losses of `n` points, `(n,)`."""
        return jax.vmap(lambda a, b: self.point(parameters, a, b))(x, y)

    def comparison(
        self, parameters: Mapping[str, Array], x: Any, y: Any, factor: Array
    ) -> tuple[Array, Array, Array]:
        """Return the loss of the batch, those of its points, and the size of the outputs.

        All with the outputs times `factor`.
        """
        batch = _scaled(self.snapshot(parameters, x), factor)
        points = _scaled(jax.vmap(lambda a: self.outputs(parameters, a))(x), factor)
        return self.loss(batch, y), jax.vmap(self.of_outputs)(points, y), _size(batch)


@dataclass(frozen=True)
class Comparison:
    """The loss of a batch beside the losses of its points, on the host.

    Attributes:
        value: of the batch, `()` or `(n,)`.
        points: `(n,)`.
        rtol: how far two computations of the same loss may lie apart, relative to it.
        atol: what the rounding of the outputs adds to that.
    """

    value: Host
    points: Host
    rtol: float
    atol: float

    @classmethod
    def of(cls, value: Array, points: Array, size: Array, dtype: Any) -> Comparison:
        """Return the comparison of losses that went through `dtype`, from outputs of some size."""
        rtol, roundings = (1e-9, 256) if dtype == jnp.float64 else (1e-4, 16)
        atol = roundings * float(jnp.finfo(dtype).eps) * float(size)
        host = np.asarray(value, dtype=np.float64)
        host = host.reshape(-1) if host.size > 1 else host.reshape(())
        return cls(host, np.asarray(points, dtype=np.float64), rtol, atol)

    @property
    def finite(self) -> bool:
        """Whether all losses are."""
        return bool(np.isfinite(self.value).all() and np.isfinite(self.points).all())

    @property
    def telling(self) -> bool:
        """Whether the losses stand out from the rounding of the outputs."""
        return self.rtol * abs(float(self.points.mean())) > self.atol

    def reductions(self) -> set[Reduction]:
        """Return all that the batch loss may be: mean and sum alike where it is zero."""
        if self.value.ndim == 1:
            return {"none"} if self._close(self.value, self.points) else set()
        mean = self.points.mean()
        as_mean: dict[Reduction, Any] = {"mean": self.value, "sum": self.value / self.points.size}
        return {name for name, value in as_mean.items() if self._close(value, mean)}

    def _close(self, a: Any, b: Any) -> bool:
        return bool(np.allclose(a, b, rtol=self.rtol, atol=self.atol))


class Contract:
    """What the loss of a batch was learnt to be, and every batch is held to."""

    reduction: Reduction | None = None

    def check(self, compare: Callable[[float], Comparison], where: str) -> None:
        """Compare the loss of a batch with those of its points.

        A well-fitted model has losses below the rounding of its outputs; nearer to zero the outputs
        fit no longer, and stay what the loss can take (probabilities, variances).

        Args:
            compare: the factor of the outputs ↦ the losses.
            where: names the batch in the message.

        Raises:
            LossError: the batch loss is NaN or infinite, or neither mean, sum nor vector of the
                point losses.
        """
        seen = [compare(1.0)]
        if not seen[0].finite:
            raise LossError(
                f"`{where}`: the loss is NaN or infinite although the data is finite. Look at the "
                "points where it is, or train the model with a smaller step."
            )
        if not seen[0].telling:
            smaller = compare(_SHRUNK)
            seen += [smaller] * smaller.finite
        for comparison in seen:
            self._hold(comparison, where)

    def _hold(self, comparison: Comparison, where: str) -> None:
        if comparison.points.size == 1:
            return
        possible = comparison.reductions()
        if self.reduction is not None:
            possible &= {self.reduction}
        if not possible:
            raise _neither(comparison, where)
        if len(possible) == 1 and (comparison.telling or "none" in possible):
            (self.reduction,) = possible


def check_loss(loss: Any) -> None:
    """Raise unless `loss` can be called.

    Raises:
        LossError: it cannot.
    """
    if not callable(loss):
        raise LossError(f"`loss` must be callable as loss(outputs, y); got {loss!r}.")


def check_shapes(losses: PointLosses, x: Any, y: Any, size: int, where: str) -> None:
    """Trace the loss of a batch and of its first point.

    Raises:
        ModelError: the model or the loss fails.
        LossError: what comes out is no loss, or there is none for a batch of one.
    """
    parameters = losses.snapshot.parameters

    def batch(parameters: Any, x: Any, y: Any) -> Any:
        return losses.loss(losses.snapshot(parameters, x), y)

    value = _traced(batch, (parameters, x, y), where, f"a batch of {size}")
    floats = isinstance(value, jax.ShapeDtypeStruct) and jnp.issubdtype(value.dtype, jnp.floating)
    fits = floats and (value.size == 1 or value.shape[0] == value.size == size)
    if not fits:
        raise LossError(
            f"`{where}`: the loss must return a scalar, or one number a point; got {shown(value)} "
            f"for {size} points. Average over whatever else there is inside the loss."
        )
    one = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), (x, y))
    point = _traced(
        lambda p, x, y: losses.loss(losses.outputs(p, x), leading_one(y)),
        (parameters, *one),
        where,
        "a batch of one point, which the loss of a point is",
    )
    if point.size != 1:
        raise LossError(
            f"`{where}`: the loss of a batch of one point must be one number; got {shown(point)}. "
            "Average over whatever else there is inside the loss."
        )


def _traced(fn: Callable[..., Any], arguments: tuple[Any, ...], where: str, batch: str) -> Any:
    try:
        return jax.eval_shape(fn, *arguments)
    except Exception as error:  # whatever the user's code raises, or JAX cannot trace
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"`{where}`: loss(apply(params, x), y) fails for {batch}: {type(error).__name__}: "
            f"{reason} x is {shown(arguments[1])}, y is {shown(arguments[2])}. The function must "
            "be one that `jax.jit` and `jax.vmap` take, and every point must have a loss of its "
            "own."
        ) from error


def _neither(comparison: Comparison, where: str) -> LossError:
    value, points = comparison.value, comparison.points
    got = f"{value:.6g}" if value.ndim == 0 else f"the vector {value[:4].tolist()}…"
    return LossError(
        f"`{where}`: the loss of a batch must be the mean, the sum or the vector of the losses of "
        f"its points, each taken as a batch of one; got {got} where the mean of the points is "
        f"{points.mean():.6g} and their sum {points.sum():.6g}. Class weights, masks and terms "
        "that mix points do this, and so does batch normalisation in training: use a loss that "
        "returns one number a point, and the model as in evaluation."
    )


def _scaled(tree: Any, factor: Array) -> Any:
    floats, rest, structure = split_floats(tree)
    return with_floats([t * factor.astype(t.dtype) for t in floats], rest, structure)


def _size(tree: Any) -> Array:
    """Return the largest absolute value of the outputs."""
    floats = [t for t in split_floats(tree)[0] if t.size]
    if not floats:
        return jnp.asarray(10.0)
    return jnp.stack([jnp.abs(t).max().astype(jnp.float32) for t in floats]).max()
